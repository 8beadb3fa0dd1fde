"""The pictures: loss while training, accuracy against the number of paths, calibration, what noise does.

This room hides matplotlib, which is the extra ``[plot]``: without it every function here raises `NoMatplotlib`.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; every line also has a dash or marker of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
MOST_EPOCHS = 20
"""Where there are more, their ends are not drawn."""


class NoMatplotlib(ImportError):
    """matplotlib is not installed; the message says how to install it."""


def loss_curve(stats: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write how training went, against the step: the loss, and below it, where known, learning rate, gradient
    norm and AUROC.

    ``stats`` are the lines of metrics.jsonl. An entry has "step" and any of "loss", "val_loss", "train_loss" (of an
    epoch, which it ends), "lr", "grad_norm", "val_auroc"; others are passed over.
    """
    found = {name: _series(stats, name) for name in ("loss", "train_loss", "val_loss", "lr", "grad_norm", "val_auroc")}
    ends, logged = found["train_loss"][0], {step for steps, _ in found.values() for step in steps}
    panels: list[tuple[float, Callable[[Axes], None]]] = [(3.4, partial(_losses, found))]
    for name, shown in (("lr", _rate), ("grad_norm", _norm), ("val_auroc", _areas)):
        steps, values = found[name]
        if len(steps) > (name != "val_auroc"):  # a single rate or norm shows nothing
            panels.append((1.1, partial(shown, steps, values)))

    def draw(number: int, axes: Axes) -> None:
        panels[number][1](axes)
        for end in ends[:-1] if len(ends) <= MOST_EPOCHS else ():
            axes.axvline(end, color=GREY, linewidth=0.9, linestyle=(0, (5, 3)), zorder=0.9)
        axes.margins(x=0.02)
        if len(logged) > 1:
            axes.locator_params(axis="x", integer=True)
        else:
            axes.set_xticks(sorted(logged))
        if number == len(panels) - 1:
            axes.set_xlabel("optimizer step" + (" (dashed: an epoch ends)" if 1 < len(ends) <= MOST_EPOCHS else ""))

    _write([partial(draw, number) for number in range(len(panels))], path, [height for height, _ in panels])


def _series(stats: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the entries that have it."""
    pairs = [(entry["step"], entry[name]) for entry in stats if entry.get(name) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _trail(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """Every value as a dot, and the mean over a fifteenth of them as a line; few of them: joined dots."""
    width = len(values) // 15 | 1  # odd: as many before as after
    if width == 1:
        axes.plot(steps, values, color=colour, marker="o", markersize=4, label=label)
        return
    axes.plot(steps, values, color=colour, marker=".", markersize=3, linestyle="", alpha=0.3)
    window = np.ones(width)  # at both ends there are fewer to take the mean of
    smooth = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    axes.plot(steps, smooth, color=colour, linewidth=1.8, label=f"{label}, mean of {width} log lines")


def _losses(found: Mapping[str, tuple[np.ndarray, np.ndarray]], axes: Axes) -> None:
    axes.set(ylabel="loss", title="Loss while training")
    steps, losses = found["loss"]
    if len(steps):
        _trail(axes, steps, losses, BLUE, "training")
    elif len(found["train_loss"][0]):  # a run shorter than --logging_steps
        _trail(axes, *found["train_loss"], BLUE, "training, mean of an epoch")
    steps, losses = found["val_loss"]
    if len(steps):
        axes.plot(steps, losses, color=RED, marker="s", markersize=4, label="validation, squared error")
        best = int(losses.argmin())
        lowest = f"lowest: {losses[best]:.4f} in step {steps[best]:.0f}"
        axes.plot(*[[one[best]] for one in (steps, losses)], color=BLACK, marker="o", markersize=10, fillstyle="none",
                  linestyle="", label=lowest)  # fmt: skip
    if axes.has_data():
        axes.legend(frameon=False)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=GREY)


def _rate(steps: np.ndarray, values: np.ndarray, axes: Axes) -> None:
    axes.plot(steps, values, color=GREEN)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(bottom=0)


def _norm(steps: np.ndarray, values: np.ndarray, axes: Axes) -> None:
    _trail(axes, steps, values, ORANGE, "gradient norm")
    if values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    axes.set_ylabel("gradient\nnorm")


def _areas(steps: np.ndarray, values: np.ndarray, axes: Axes) -> None:
    axes.axhline(0.5, color=GREY, linestyle=":")
    axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
                  ha="right", color=GREY, fontsize="small")  # fmt: skip
    axes.plot(steps, values, color=RED, marker="s", markersize=4)
    axes.set_ylabel("AUROC within\nquestions")


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


def _write(draws: Sequence[Callable[[Axes], None]], path: Path, heights: Sequence[float] = ()) -> None:
    """Draw each into a panel of its own, row by row; with ``heights`` (inches) one below the other over one x axis."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib('Pictures need matplotlib. Type: pip install "latent-prm[plot]"') from error
    columns = 1 if heights else min(len(draws), ABREAST)
    rows = -(-len(draws) // columns)
    high = sum(heights) + 1.1 if heights else 4.5 if rows == 1 else 3.5 * rows
    figure = Figure(figsize=(max(7.5, 3.2 * columns), high), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # never a window, whatever the user's settings say
    grid = figure.add_gridspec(rows, columns, height_ratios=heights or None)
    for number, draw in enumerate(draws):
        axes = figure.add_subplot(grid[number], sharex=figure.axes[0] if heights and number else None)
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        if heights and number < len(draws) - 1:
            axes.tick_params(labelbottom=False)
    if heights:
        figure.align_ylabels()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, partial(figure.savefig, format="png"))
