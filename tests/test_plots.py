"""plots.py: the pictures of runs and of noise show what they are given, and nothing else. (Others: test_evaluator)"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_prm import plots
from latent_prm.metrics import Interval
from latent_prm.plots import NoiseLine, NoisePanel

pytest.importorskip("matplotlib", reason="matplotlib is the extra [plot]")

MAIN, SMALL = 585, 165
"""Pixels of the picture with the loss alone, and of every panel below it; matplotlib rounds them up or down."""


def steps(count: int, **names: float) -> list[dict[str, Any]]:
    """So many log lines with these values, which go down."""
    each = ({name: value / math.sqrt(step) for name, value in names.items()} for step in range(1, count + 1))
    return [{"step": 10 * step, "epoch": 1, **values} for step, values in enumerate(each, 1)]


def drawn(entries: list[dict[str, Any]], folder: Path) -> tuple[int, dict[str, int]]:
    """How high the picture is, and the pixels of each colour."""
    import matplotlib.image as image

    plots.loss_curve(entries, folder / "pictures" / "loss_curve.png")
    pixels = 255 * image.imread(folder / "pictures" / "loss_curve.png")[..., :3]
    found = {}
    for name in ("BLUE", "RED", "GREEN", "ORANGE"):
        code = getattr(plots, name)
        rgb = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
        found[name] = int((np.abs(pixels - rgb).max(2) < 2).sum())
    return round(pixels.shape[0] / 15) * 15, found


def test_a_panel_is_there_for_what_was_logged(tmp_path: Path) -> None:
    loss, validated = steps(90, loss=0.3), steps(3, val_loss=0.3)
    height, inks = drawn(loss, tmp_path)
    assert height == MAIN and inks["BLUE"] > 500 and inks["RED"] == inks["GREEN"] == inks["ORANGE"] == 0
    height, inks = drawn([*loss, *validated], tmp_path)
    assert height == MAIN + SMALL and min(inks["BLUE"], inks["RED"]) > 500
    height, inks = drawn([*steps(90, loss=0.3, lr=2e-5, grad_norm=9.0), *validated], tmp_path)
    assert height == MAIN + 3 * SMALL and min(inks.values()) > 500
    height, more = drawn(
        [*steps(90, loss=0.3, lr=2e-5, grad_norm=9.0), *steps(3, val_loss=0.3, val_auroc=0.6)], tmp_path
    )
    assert height == MAIN + 4 * SMALL and more["RED"] > inks["RED"] + 100


@pytest.mark.parametrize(
    ("entries", "ink", "panels"),
    [
        ([{"step": 10, "epoch": 1, "loss": 0.25, "lr": 2e-5, "grad_norm": 1.0}], "BLUE", 0),
        ([{"step": 7, "epoch": 1, "val_loss": 0.2, "val_auroc": 0.7}], "RED", 2),
        ([{"step": 7, "epoch": 1, "train_loss": 0.2}, {"step": 14, "epoch": 2, "train_loss": 0.1}], "BLUE", 0),
        ([{"step": 10, "epoch": 1, "loss": 0.2, "grad_norm": None}, {"step": 20, "epoch": 1, "loss": 0.1}], "BLUE", 0),
    ],
)
def test_few_entries_are_visible(tmp_path: Path, entries: list[dict[str, Any]], ink: str, panels: int) -> None:
    height, inks = drawn(entries, tmp_path)
    assert height == MAIN + panels * SMALL
    assert inks.pop(ink) > 30 and not any(inks.values())


def test_without_an_entry_the_picture_says_so_and_is_there(tmp_path: Path) -> None:
    assert drawn([], tmp_path) == (MAIN, dict.fromkeys(["BLUE", "RED", "GREEN", "ORANGE"], 0))


def test_the_line_is_the_mean_around_a_step_and_does_not_lag() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    values = np.arange(45.0)
    plots._trail(axes, 10 * values, values, plots.BLUE, "training")
    dots, line = axes.lines
    assert np.array_equal(dots.get_ydata(), values)
    middle = np.asarray(line.get_ydata())
    assert middle[1:-1] == pytest.approx(values[1:-1])  # the mean of three in a row is the middle one
    assert middle[[0, -1]] == pytest.approx([0.5, 43.5])
    assert line.get_label() == "training, mean of 3 log lines"


def test_a_picture_is_written_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    stats = [*steps(60, loss=1.0), {"step": 600, "val_loss": 0.1}]
    plots.loss_curve(stats, tmp_path / "pictures" / "loss.png")
    plots.loss_curve([], tmp_path / "empty.png")
    for picture in ("pictures/loss.png", "empty.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("tasks", "rows"), [(1, 1), (3, 1), (5, 2)])
def test_the_picture_of_noise_has_a_panel_per_task_and_marks_the_chosen_one(
    tmp_path: Path, tasks: int, rows: int
) -> None:
    from matplotlib import image

    lines: dict[NoiseLine, list[Interval]] = {"mixed": [Interval(0.2, 0.1, 0.3), Interval(0.6, 0.5, 0.7)]}
    lines["random"] = [Interval(0.5, 0.4, 0.6), Interval(0.4, 0.3, 0.5)]
    panel = NoisePanel("a task", Interval(0.5, 0.4, 0.6), lines, marked=0.4, said="chosen: 0.4")
    plots.noise_curve([0.1, 0.4], [panel] * tasks, tmp_path / "reports" / "noise.png")
    pixels = 255 * image.imread(tmp_path / "reports" / "noise.png")[..., :3]
    red = (abs(pixels - (0xD5, 0x5E, 0)).max(2) < 2).sum(0)  # per column of pixels
    marks = np.flatnonzero(red > 0.25 * pixels.shape[0])
    assert (np.diff(marks) > 5).sum() + 1 == min(tasks, 3)  # a vertical line in each panel
    blue = (abs(pixels - (0, 0x72, 0xB2)).max(2) < 2).sum()
    assert blue > 100 * tasks
    assert (pixels.shape[0] > 900) == (rows > 1)
