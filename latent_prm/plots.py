"""The pictures: loss while training, accuracy against the number of paths, calibration, abstaining, what noise does.

This room hides matplotlib, which is the extra ``[plot]``: without it every function here raises `NoMatplotlib`.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; every line also has a dash or marker of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from latent_prm.comparison import Comparison, Discrimination
from latent_prm.files import atomic_write
from latent_prm.metrics import Interval, Method
from latent_prm.predictions import Bin, Coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, GREY, ORANGE, GREEN, BLUE, RED = "#000000", "#7f7f7f", "#e69f00", "#009e73", "#0072b2", "#d55e00"
PURPLE = "#cc79a7"

LABELS: dict[Method, str] = {
    "noise_free": "noise-free path",
    "random": "random path",
    "vote": "majority",
    "best": "PRM best",
    "weighted_vote": "PRM-weighted vote",
    "logit_vote": "PRM logit vote",
    "rank_vote": "PRM rank vote",
    "tie_break": "PRM breaks ties",
    "conservative": "PRM lower bounds",
    "agreement": "PRM x agreement",
    "auto": "PRM, auto rule",
    "oracle": "any path (oracle)",
}
_LINES: dict[Method, tuple[str, str, str]] = {  # colour, dash, marker
    "noise_free": (BLACK, "--", ""),
    "random": (GREY, ":", ""),
    "vote": (ORANGE, "-", "s"),
    "best": (BLUE, "-", "^"),
    "weighted_vote": (RED, "-", "o"),
    "auto": (PURPLE, "--", "D"),
    "oracle": (GREEN, "-.", ""),
}

NoiseLine = Literal["mixed", "random", "vote", "oracle"]
_NOISE_LINES: dict[NoiseLine, tuple[str, str, str, str]] = {  # label, colour, dash, marker
    "mixed": ("questions with right and wrong paths", BLUE, "-", "o"),
    "random": ("a single noisy path is right", GREY, ":", "v"),
    "vote": ("the majority is right", ORANGE, "-", "s"),
    "oracle": ("any path is right", GREEN, "-.", "D"),
}
ABOUT = {
    "auroc": "AUROC within questions",
    "brier": "Brier score",
    "ece": "ECE",
    "oracle": "any path is right",
    "vote": "majority is right",
}
"""What an experiment's figures are; the others are rules, and how often they are right."""
ABREAST = 3
"""Panels side by side."""
MOST_EPOCHS = 20
"""Where there are more, their ends are not drawn."""


class NoMatplotlib(ImportError):
    """matplotlib is not installed; the message says how to install it."""


def loss_curve(stats: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write how training went, against the step: the loss, and below it, where known, the squared error on
    validation (which the loss is not, unless it is mse), learning rate, gradient norm and AUROC.

    ``stats`` are the lines of metrics.jsonl. An entry has "step" and any of "loss", "val_loss", "train_loss" (of an
    epoch, which it ends), "lr", "grad_norm", "val_auroc"; others are passed over.
    """
    found = {name: _series(stats, name) for name in ("loss", "train_loss", "val_loss", "lr", "grad_norm", "val_auroc")}
    ends, logged = found["train_loss"][0], {step for steps, _ in found.values() for step in steps}
    panels: list[tuple[float, Callable[[Axes], None]]] = [(2.8, partial(_losses, found))]
    for name, shown in (("val_loss", _errors), ("lr", _rate), ("grad_norm", _norm), ("val_auroc", _areas)):
        steps, values = found[name]
        if len(steps) > (name in ("lr", "grad_norm")):  # a single rate or norm shows nothing
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
    if axes.has_data():
        axes.legend(frameon=False)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no loss was logged", transform=axes.transAxes, ha="center", color=GREY)


def _errors(steps: np.ndarray, losses: np.ndarray, axes: Axes) -> None:
    axes.plot(steps, losses, color=RED, marker="s", markersize=4)
    best = int(losses.argmin())
    lowest = f"lowest: {losses[best]:.4f} in step {steps[best]:.0f}"
    axes.plot(*[[one[best]] for one in (steps, losses)], color=BLACK, marker="o", markersize=10, fillstyle="none",
              linestyle="", label=lowest)  # fmt: skip
    axes.set_ylabel("squared error\non validation")
    axes.legend(frameon=False)


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
    """Write the main methods' accuracy, in per cent, against the number of paths, each with its 95 % interval as a
    band.
    """

    def draw(axes: Axes) -> None:
        for method, by_size in reversed(comparison.accuracy.items()):  # as in the legend, the oracle on top
            if method in _LINES:
                colour, dash, marker = _LINES[method]
                line = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "label": LABELS[method]}
                _band(axes, list(by_size), [_per_cent(interval) for interval in by_size.values()], line)
        axes.set_xscale("log", base=2)
        ticks = [size for size in comparison.accuracy["vote"] if size & (size - 1) == 0 or size == comparison.num_paths]
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.minorticks_off()
        axes.set(xlabel="paths per question (N)", ylabel="questions answered right, %", title=title)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    _write([draw], path)


def _band(axes: Axes, at: Sequence[float], intervals: Sequence[Interval], line: Mapping[str, Any]) -> None:
    """A line through the means, and a band between the intervals' ends."""
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    axes.fill_between(at, low, high, color=line["color"], alpha=0.12, linewidth=0)
    axes.plot(at, [i.mean for i in intervals], **line)


def _per_cent(share: Interval) -> Interval:
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high)


def calibration_curves(panels: Mapping[str, Mapping[str, Sequence[Bin]]], path: Path) -> None:
    """Write the share that is right against the predicted probability, a panel each for what is predicted of.

    A panel holds reliability curves by label, first the one before calibration; a dot's area is its bin's count.
    """

    def draw(title: str, curves: Mapping[str, Sequence[Bin]], axes: Axes) -> None:
        looks = ((BLUE, "-"), (RED, "--"), (GREEN, "-."))
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
        for (label, bins), (colour, dash) in zip(curves.items(), looks, strict=False):
            most = max((b.count for b in bins), default=1)
            predicted, right = [b.predicted for b in bins], [b.right for b in bins]
            axes.plot(predicted, right, color=colour, linestyle=dash, label=label)
            axes.scatter(predicted, right, s=[10 + 90 * b.count / most for b in bins], color=colour)
        axes.set(xlabel="predicted probability", ylabel="share that was right", title=title)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(frameon=False, loc="upper left", fontsize="small")

    _write([partial(draw, title, curves) for title, curves in panels.items()], path)


def coverage_picture(curves: Mapping[str, Sequence[Coverage]], path: Path, of: str = "") -> None:
    """Write the accuracy of the answers given against the share of questions answered, surest first; a line per way of
    telling how sure an answer is. ``of`` ends the title.
    """

    def draw(axes: Axes) -> None:
        for (label, points), (colour, dash) in zip(curves.items(), ((RED, "-"), (ORANGE, "--")), strict=False):
            given = [(100 * p.coverage, 100 * p.accuracy) for p in points if p.accuracy is not None]
            axes.plot(*zip(*given, strict=True), color=colour, linestyle=dash, marker=".", label=label)
        axes.set(xlabel="questions answered, %", ylabel="answers that are right, %")
        axes.set_title(f"Answering only when sure{of}")
        axes.set_xlim(0, 102)
        axes.legend(frameon=False, title="sure by")

    _write([draw], path)


def steps_curve(steps: Sequence[Discrimination], path: Path) -> None:
    """Write how well the score after each latent tells right from wrong paths of the same question."""

    def draw(axes: Axes) -> None:
        axes.axhline(0.5, color=GREY, linestyle=":", label="chance")
        known = [(t, step.auroc) for t, step in enumerate(steps, 1) if step.auroc is not None]
        line = {"color": BLUE, "marker": "o", "markersize": 4, "label": "score after this latent"}
        _band(axes, [t for t, _ in known], [area for _, area in known], line)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="latent", ylabel="AUROC within questions", title="When the PRM knows")
        axes.legend(frameon=False)

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
            line_style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "label": label}
            _band(axes, noises, [_per_cent(interval) for interval in intervals], line_style)
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


@dataclass(frozen=True, slots=True)
class ComputeCurve:
    """A way of choosing among more and more paths: what they cost a question, in latent steps, and what it gets."""

    label: str
    latents: list[float]
    total: list[float]
    right: list[Interval]


class ComputePoint(NamedTuple):
    """One way of growing and choosing, by the same costs."""

    method: str
    scorer: str
    latents: float
    total: float
    right: Interval


def compute_curve(curves: Sequence[ComputeCurve], points: Sequence[ComputePoint], path: Path) -> None:
    """Write accuracy, in per cent, against latent steps and against all compute, with 95 % intervals.

    A point has the marker of its method and the colour of its scorer.
    """
    methods, scorers = ([*dict.fromkeys(getattr(point, of) for point in points)] for of in ("method", "scorer"))
    markers, colours = "Xs^vD<>PohH*pd", (BLACK, BLUE, GREY, GREEN, RED)

    def draw(of: str, label: str, axes: Axes) -> None:
        for curve, colour, dash in zip(curves, (ORANGE, *colours[1:]), ("-", "--", ":", "-.", "-"), strict=False):
            low, high = [100 * i.low for i in curve.right], [100 * i.high for i in curve.right]
            means = [100 * i.mean for i in curve.right]
            axes.fill_between(getattr(curve, of), low, high, color=colour, alpha=0.1, linewidth=0)
            axes.plot(getattr(curve, of), means, color=colour, linestyle=dash, marker=".", label=curve.label)
        for point in points:
            marker = markers[methods.index(point.method) % len(markers)]
            colour = colours[scorers.index(point.scorer) % len(colours)]
            mean, low, high = (100 * share for share in (point.right.mean, point.right.low, point.right.high))
            named = point.method + (f", by {point.scorer}" if point.scorer else "")
            axes.errorbar([getattr(point, of)], [mean], [[mean - low], [high - mean]], color=colour, marker=marker,
                          elinewidth=0.4, markersize=5, linestyle="", label=named)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set(xlabel=f"{label} per question", ylabel="questions answered right, %" if of == "latents" else "")
        if of == "total":
            axes.figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right upper",
                               fontsize="x-small")  # fmt: skip

    _write([partial(draw, "latents", "latent steps"), partial(draw, "total", "all compute, in latent steps,")], path)


def axis_curve(axis: str, lines: Mapping[str, Sequence[tuple[float, Interval]]], name: str, path: Path) -> None:
    """Write a figure of an experiment, in per cent, against an axis (of a log scale where numbers grow tenfold), with
    its 95 % intervals over questions as bands.
    """

    def draw(axes: Axes) -> None:
        looks = [(colour, dash) for dash in ("-", "--", ":") for colour in (BLUE, RED, GREEN, ORANGE, PURPLE)]
        for i, (label, points) in enumerate(lines.items()):
            colour, dash = looks[i % len(looks)]
            line = {"label": label, "color": colour, "linestyle": dash, "marker": "o", "markersize": 4}
            _band(axes, [x for x, _ in points], [_per_cent(over) for _, over in points], line)
        values = sorted({x for points in lines.values() for x, _ in points})
        if values[0] > 0 and values[-1] >= 10 * values[0]:
            axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:,g}" if value < 1e6 else f"{value:g}" for value in values])
        axes.minorticks_off()
        if name.startswith("gap_"):
            axes.axhline(0, color=GREY, linestyle=":")
            said = f"gap recovered by {name.removeprefix('gap_')}"
        else:
            said = ABOUT.get(name, f"right by {name}")
        axes.set(xlabel={"questions": "training questions"}.get(axis, axis), ylabel=f"{said}, %")
        if any(lines):
            axes.legend(frameon=False)

    _write([draw], path)


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
