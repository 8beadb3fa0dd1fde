"""The pictures: loss while training, accuracy against the number of paths, calibration, what noise does.

This room hides matplotlib, which is the extra ``[plot]``: without it every function here raises `NoMatplotlib`.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; every line also has a dash or marker of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from latent_prm.files import atomic_write
from latent_prm.metrics import Bin, Comparison, Interval, Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, GREY, ORANGE, GREEN, BLUE, RED = "#000000", "#7f7f7f", "#e69f00", "#009e73", "#0072b2", "#d55e00"

LABELS: dict[Method, str] = {
    "noise_free": "noise-free path",
    "random": "random path",
    "vote": "majority",
    "best": "PRM best",
    "weighted_vote": "PRM-weighted vote",
    "oracle": "any path (oracle)",
}
_LINES: dict[Method, tuple[str, str, str]] = {  # colour, dash, marker
    "noise_free": (BLACK, "--", ""),
    "random": (GREY, ":", ""),
    "vote": (ORANGE, "-", "s"),
    "best": (BLUE, "-", "^"),
    "weighted_vote": (RED, "-", "o"),
    "oracle": (GREEN, "-.", ""),
}

NoiseLine = Literal["mixed", "random", "vote", "oracle"]
_NOISE_LINES: dict[NoiseLine, tuple[str, str, str, str]] = {  # label, colour, dash, marker
    "mixed": ("questions with right and wrong paths", BLUE, "-", "o"),
    "random": ("a single noisy path is right", GREY, ":", "v"),
    "vote": ("the majority is right", ORANGE, "-", "s"),
    "oracle": ("any path is right", GREEN, "-.", "D"),
}
ABREAST = 3
"""Panels side by side."""


class NoMatplotlib(ImportError):
    """matplotlib is not installed; the message says how to install it."""


def loss_curve(stats: Sequence[dict], path: Path) -> None:
    """Write the loss against the step. An entry has "step" and "loss", "val_loss" or both; others are passed over."""
    trained = [(entry["step"], entry["loss"]) for entry in stats if entry.get("loss") is not None]
    validated = [(entry["step"], entry["val_loss"]) for entry in stats if entry.get("val_loss") is not None]

    def draw(axes: Axes) -> None:
        if trained:
            steps, losses = map(np.array, zip(*trained, strict=True))
            width = max(1, len(losses) // 8)
            axes.plot(steps, losses, color=BLUE, alpha=0.3 if width > 1 else 1.0, label="training")
            if width > 1:
                smooth = np.convolve(losses, np.ones(width) / width, "valid")
                axes.plot(steps[width - 1 :], smooth, color=BLUE, label=f"training, mean of {width} entries")
        if validated:
            axes.plot(*zip(*validated, strict=True), color=RED, marker="o", markersize=4, label="validation")
        axes.set(xlabel="optimizer step", ylabel="loss", title="Loss while training")
        if trained or validated:
            axes.legend(frameon=False)

    _write([draw], path)


def accuracy_curve(comparison: Comparison, path: Path, title: str = "Accuracy against the number of paths") -> None:
    """Write every method's accuracy, in per cent, against the number of paths, with its 95 % interval as a band."""

    def draw(axes: Axes) -> None:
        for method, by_size in reversed(comparison.accuracy.items()):  # as in the legend, the oracle on top
            colour, dash, marker = _LINES[method]
            sizes, intervals = list(by_size), list(by_size.values())
            low, high = [100 * i.low for i in intervals], [100 * i.high for i in intervals]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
            means = [100 * i.mean for i in intervals]
            axes.plot(sizes, means, color=colour, linestyle=dash, marker=marker, markersize=4, label=LABELS[method])
        axes.set_xscale("log", base=2)
        ticks = [size for size in comparison.accuracy["vote"] if size & (size - 1) == 0 or size == comparison.num_paths]
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.minorticks_off()
        axes.set(xlabel="paths per question (N)", ylabel="questions answered right, %", title=title)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    _write([draw], path)


def calibration_curve(bins: Sequence[Bin], path: Path) -> None:
    """Write the share of right paths against the predicted probability; a dot's area is its bin's number of paths."""

    def draw(axes: Axes) -> None:
        most = max((b.count for b in bins), default=1)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
        predicted, right = [b.predicted for b in bins], [b.right for b in bins]
        axes.plot(predicted, right, color=BLUE, label="the PRM")
        axes.scatter(
            predicted, right, s=[15 + 120 * b.count / most for b in bins], color=BLUE, label="area: number of paths"
        )
        axes.set(xlabel="predicted probability of a right answer", ylabel="share that was right", title="Calibration")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    _write([draw], path)


class NoisePanel(NamedTuple):
    """What `noise_curve` shows of one task."""

    title: str
    noise_free: Interval
    lines: dict[NoiseLine, list[Interval]]
    """An interval per noise."""
    marked: float
    """The noise that a vertical line stands at."""
    said: str
    """What is written beside it."""


def noise_curve(noises: Sequence[float], panels: Sequence[NoisePanel], path: Path) -> None:
    """Write how questions came out, in per cent, against the noise, with 95 % intervals as bands; a panel per task."""

    def draw(panel: NoisePanel, axes: Axes) -> None:
        axes.axhline(100 * panel.noise_free.mean, color=BLACK, linestyle="--", label="the noise-free path is right")
        for line, intervals in panel.lines.items():
            label, colour, dash, marker = _NOISE_LINES[line]
            low, high = [100 * i.low for i in intervals], [100 * i.high for i in intervals]
            axes.fill_between(noises, low, high, color=colour, alpha=0.12, linewidth=0)
            means = [100 * i.mean for i in intervals]
            axes.plot(noises, means, color=colour, linestyle=dash, marker=marker, markersize=4, label=label)
        axes.axvline(panel.marked, color=RED, linewidth=1.5)
        left = panel.marked <= max(noises) / 2
        axes.annotate(
            panel.said,
            (panel.marked, 1.0),
            xytext=(3 if left else -3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top",
            color=RED,
        )
        axes.set(
            xlabel="noise", title=panel.title, xlim=(0, 1.05 * max(noises)), ylim=(0, 112), yticks=range(0, 101, 20)
        )
        axes.set_ylabel("% of questions" if panel is panels[0] else "")
        if panel is panels[-1]:
            axes.figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)

    _write([partial(draw, panel) for panel in panels], path)


def _write(draws: Sequence[Callable[[Axes], None]], path: Path) -> None:
    """Draw each into a panel of its own, row by row."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib('Pictures need matplotlib. Type: pip install "latent-prm[plot]"') from error
    columns = min(len(draws), ABREAST)
    rows = -(-len(draws) // columns)
    figure = Figure(figsize=(max(7.5, 3.2 * columns), 4.5 if rows == 1 else 3.5 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # never a window, whatever the user's settings say
    for number, draw in enumerate(draws, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, partial(figure.savefig, format="png"))
