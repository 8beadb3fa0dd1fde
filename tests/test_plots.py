"""plots.py: the picture of a run shows what its metrics.jsonl has, and nothing else. (The others: test_metrics.py.)"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_prm import plots

pytest.importorskip("matplotlib", reason="matplotlib is the extra [plot]")

MAIN, SMALL = 675, 165
"""Pixels of the picture with the loss alone, and of every panel below it."""


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
    return pixels.shape[0], found


def test_a_panel_is_there_for_what_was_logged(tmp_path: Path) -> None:
    loss, validated = steps(90, loss=0.3), steps(3, val_loss=0.3)
    height, inks = drawn(loss, tmp_path)
    assert height == MAIN and inks["BLUE"] > 500 and inks["RED"] == inks["GREEN"] == inks["ORANGE"] == 0
    height, inks = drawn([*loss, *validated], tmp_path)
    assert height == MAIN and min(inks["BLUE"], inks["RED"]) > 500
    height, inks = drawn([*steps(90, loss=0.3, lr=2e-5, grad_norm=9.0), *validated], tmp_path)
    assert height == MAIN + 2 * SMALL and min(inks.values()) > 500
    height, more = drawn(
        [*steps(90, loss=0.3, lr=2e-5, grad_norm=9.0), *steps(3, val_loss=0.3, val_auroc=0.6)], tmp_path
    )
    assert height == MAIN + 3 * SMALL and more["RED"] > inks["RED"] + 100


@pytest.mark.parametrize(
    ("entries", "ink", "panels"),
    [
        ([{"step": 10, "epoch": 1, "loss": 0.25, "lr": 2e-5, "grad_norm": 1.0}], "BLUE", 0),
        ([{"step": 7, "epoch": 1, "val_loss": 0.2, "val_auroc": 0.7}], "RED", 1),
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
