"""What a grid of trainings found: from what every PRM does to each question, to tables with intervals and a picture.

This room hides how figures are made of questions, how arms are compared with the first one (paired: on the same
questions, in the same resamplings of them), and when one may be called better.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.table import Table
from rich.text import Text

from latent_prm.comparison import accuracy_table
from latent_prm.evaluation import Scores, pool_of
from latent_prm.metrics import RIVALS, Interval, gap_share, question_aurocs, resampled_means, rounded
from latent_prm.predictions import brier, forecast
from latent_prm.tree import ReasoningTree

LOW = ("brier", "ece")
"""The figures of which less is better."""
MOST_COLUMNS = 5
"""Figures that a table of the terminal has room for; the others stand in results.md alone."""
WHOLE = ("ece",)
"""The figures of all paths together, which no question has for itself: there is no interval over questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the PRM of one training does to the questions of one pool."""

    questions: list[str]
    """Their ids."""
    num_paths: int
    rows: dict[str, list[float | None]]
    """By figure, a number per question: how often the choice is right, the AUROC (None where all paths are alike)."""
    ece: float


def measure(trees: Sequence[ReasoningTree], scores: Scores) -> Measured:
    """Hold predicted scores (one per path of every tree) against what the paths came to.

    Trees without a graded noisy path are left out. Raises ValueError when none is left.
    """
    which = [i for i, tree in enumerate(trees) if tree.offered()]
    kept = [trees[i] for i in which]
    pool = pool_of(kept, [scores[i] for i in which])
    n = pool.num_paths
    table = accuracy_table([pool], [n], seed=0)
    rows: dict[str, list[float | None]] = {method: table[method, n][0].tolist() for method in pool.methods}
    areas = question_aurocs(pool.scores, pool.correct)
    rows["auroc"] = [None if np.isnan(area) else area for area in areas.tolist()]
    rows["brier"] = [brier(own, right) for own, right in zip(pool.scores, pool.correct, strict=True)]
    ece = forecast(np.concatenate(pool.scores), np.concatenate(pool.correct)).calibration_error
    return Measured(questions=[tree.question_id for tree in kept], num_paths=n, rows=rows, ece=ece)


class Cell(NamedTuple):
    """One training, measured on one pool."""

    arm: str
    seed: int
    pool: str
    measured: Measured
    facts: dict[str, Any]
    """Other columns of its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of an arm on a pool; shares (0..1), not per cent."""

    seeds: list[float]
    """Of each training by itself."""
    mean: float
    """Over trainings, question by question (a gap: of their mean accuracy)."""
    interval: Interval | None
    """Over questions."""
    gain: Interval | None
    """Paired: this arm less the first one; None of the first itself."""

    @property
    def spread(self) -> float | None:
        """Standard deviation over training seeds; None where there is one."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else None


Found = dict[str, dict[str, dict[str, Figure]]]
"""By pool, arm and name."""
Lines = dict[str, list[tuple[float, Interval]]]
"""A figure along an axis, by label: where it stands, and what it is there."""


# --- figures ----------------------------------------------------------------------------------------------------------


def find(
    cells: Sequence[Cell], arms: Sequence[str], names: Sequence[str], num_bootstrap: int = 2000, seed: int = 42
) -> Found:
    """The figures of every arm on every pool. Arms are compared with the first of ``arms``, where it was measured."""
    found: Found = {}
    for pool in dict.fromkeys(cell.pool for cell in cells):
        own = {arm: [cell.measured for cell in cells if (cell.pool, cell.arm) == (pool, arm)] for arm in arms}
        own = {arm: measured for arm, measured in own.items() if measured}
        common = shared(each for measured in own.values() for each in measured)
        if not common:
            continue
        drawn = {arm: _Drawn.of(measured, common, num_bootstrap, seed) for arm, measured in own.items()}
        first = drawn.get(arms[0])
        found[pool] = {
            arm: {name: figure for name in names if (figure := _figure(name, each, first))}
            for arm, each in drawn.items()
        }
    return found


def shared(measured: Iterable[Measured]) -> list[str]:
    """The questions that all have, in the order of the first."""
    lists = [each.questions for each in measured]
    common = set.intersection(*map(set, lists)) if lists else set()
    return [question for question in lists[0] if question in common] if lists else []


class _Drawn(NamedTuple):
    """An arm on a pool: its trainings, and the means over them and over questions, resampled."""

    rows: dict[str, Float[np.ndarray, "S Q"]]
    draws: dict[str, Float[np.ndarray, " b"]]
    ece: list[float]

    @classmethod
    def of(cls, measured: Sequence[Measured], common: Sequence[str], num_bootstrap: int, seed: int) -> _Drawn:
        places = [{question: i for i, question in enumerate(each.questions)} for each in measured]
        rows: dict[str, Float[np.ndarray, "S Q"]] = {}
        for name in measured[0].rows:
            if all(name in each.rows for each in measured):
                picked = [[m.rows[name][at[q]] for q in common] for m, at in zip(measured, places, strict=True)]
                rows[name] = np.array(picked, dtype=float)
        rows["auroc"] = rows["auroc"][:, ~np.isnan(rows["auroc"][0])]  # mixed are the same questions for every PRM
        draws: dict[str, Float[np.ndarray, " b"]] = {}
        for names in ([name for name in rows if name != "auroc"], ["auroc"]):
            if rows[names[0]].shape[1]:
                means = resampled_means(np.stack([rows[name].mean(0) for name in names]), num_bootstrap, seed)
                draws |= dict(zip(names, means.T, strict=True))
        return cls(rows, draws, [each.ece for each in measured])

    def value(self, name: str, of: Mapping[str, Any]) -> Any:
        """A figure from means by name (numbers or resampled ones); nan where there is no gap."""
        if not name.startswith("gap_"):
            return of[name]
        bases = [of[base] for base in RIVALS if base in of]
        return gap_share(np.stack([of[name.removeprefix("gap_")], of["oracle"], *bases], axis=-1))


def _figure(name: str, arm: _Drawn, first: _Drawn | None) -> Figure | None:
    """None where it is not known: no mixed question, no noise-free path, no gap."""
    if name in WHOLE:
        return Figure(seeds=arm.ece, mean=float(np.mean(arm.ece)), interval=None, gain=None)
    if name.removeprefix("gap_") not in arm.draws:
        return None
    mean = _mean(name, arm)
    draws = arm.value(name, arm.draws)
    if np.isnan(mean) or np.isnan(draws).all():
        return None
    each = [{row: float(own[s].mean()) for row, own in arm.rows.items() if own.shape[1]} for s in range(len(arm.ece))]
    gain = None
    if first is not None and first is not arm and name.removeprefix("gap_") in first.draws:
        gain = Interval.of(mean - _mean(name, first), draws - first.value(name, first.draws))
    seeds = [float(arm.value(name, own)) for own in each]
    return Figure(seeds=seeds, mean=mean, interval=Interval.of(mean, draws), gain=gain)


def _mean(name: str, arm: _Drawn) -> float:
    return float(arm.value(name, {row: own.mean() for row, own in arm.rows.items() if own.shape[1]}))


def better(name: str, figure: Figure) -> bool:
    """Whether the arm's paired interval lies wholly on the good side of the first arm."""
    if figure.gain is None:
        return False
    return figure.gain.high < 0 if name in LOW else figure.gain.low > 0


# --- tables -----------------------------------------------------------------------------------------------------------


def csv_of(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """A line per arm, seed and pool; figures are shares, of all the questions that this cell was measured on."""
    facts = list(dict.fromkeys(key for cell in cells for key in cell.facts))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "pool", "test_questions", "paths", *names, *facts])
    for cell in cells:
        own = _Drawn.of([cell.measured], cell.measured.questions, 1, 0)
        figures = {name: _figure(name, own, None) for name in names}
        shown = [f"{figure.mean:.6f}" if figure else "" for figure in figures.values()]
        size = (len(cell.measured.questions), cell.measured.num_paths)
        writer.writerow([cell.arm, cell.seed, cell.pool, *size, *shown, *(cell.facts.get(key, "") for key in facts)])
    return out.getvalue()


def markdown_of(found: Found, cells: Sequence[Cell], names: Sequence[str], first: str) -> str:
    """For every pool the arms' figures and what they have over the first one; of several pools, first all beside each
    other.
    """
    parts = [LEGEND.format(first=first)]
    if len(found) > 1:
        parts.append(f"## {names[0]}, by the pool it is measured on\n\n" + _across(found, names[0], first))
    for pool, arms in found.items():
        parts.append(f"## {_head(pool, cells)}\n\n{_table(arms, names)}\n\nLess {first}:\n\n{_gains(arms, names)}")
    return "\n\n".join(parts) + "\n"


def _head(pool: str, cells: Sequence[Cell]) -> str:
    measured = [cell.measured for cell in cells if cell.pool == pool]
    return f"On {pool}: {len(shared(measured)):,} questions, N = {min(each.num_paths for each in measured)}"


def tables_of(found: Found, cells: Sequence[Cell], names: Sequence[str], first: str) -> list[Table]:
    """For every pool the arms' means, and what they have of the first of ``names`` over the first arm: 100 columns."""
    shown, tables = names[:MOST_COLUMNS], []
    for pool, arms in found.items():
        title = f"\n{_head(pool, cells)}, in per cent; the gain is that of {names[0]} over {first}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("arm", overflow="fold")
        for name in (*shown, "gain"):
            table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
        best = {name: _best(name, arms) for name in shown}
        for arm, figures in arms.items():
            known = {name: rounded(100 * figures[name].mean) if name in figures else "–" for name in shown}
            means = [Text(mean, style="bold" if best[name] == arm else "") for name, mean in known.items()]
            table.add_row(arm, *means, _signed(figures[names[0]].gain if names[0] in figures else None))
        tables.append(table)
    return tables


LEGEND = """Everything in per cent (auroc, brier and ece: times 100). A figure is the mean over training seeds, ± their
standard deviation (what another seed does; left out where there is one), [95 % interval over the questions]
(percentile bootstrap: what other questions would do). Gains are paired, question by question, over "{first}": the
interval is over questions and does not hold what another seed does. The best of a column is bold only where its gain's
interval leaves out zero; without bold nothing was measurably better than "{first}". (Of twenty intervals one leaves out
zero by chance alone.) brier and ece: less is better."""


def _table(arms: Mapping[str, Mapping[str, Figure]], names: Sequence[str]) -> str:
    best = {name: _best(name, arms) for name in names}
    lines = [["arm", "seeds", *names]]
    for arm, figures in arms.items():
        shown = [_bold(_shown(figures.get(name)), best[name] == arm) for name in names]
        lines.append([arm, str(max((len(figure.seeds) for figure in figures.values()), default=0)), *shown])
    return _rows(lines)


def _gains(arms: Mapping[str, Mapping[str, Figure]], names: Sequence[str]) -> str:
    names = [name for name in names if any(f.gain for own in arms.values() if (f := own.get(name)))]
    lines = [["arm", *names]]
    for arm, figures in arms.items():
        gains = [figure.gain if (figure := figures.get(name)) else None for name in names]
        if any(gains):
            lines.append([arm, *(_signed(gain) for gain in gains)])
    return _rows(lines) if len(lines) > 1 else "(nothing to compare)"


def _across(found: Found, name: str, first: str) -> str:
    arms = list(dict.fromkeys(arm for own in found.values() for arm in own))
    lines = [["arm", *found]]
    best = {pool: _best(name, own) for pool, own in found.items()}
    for arm in arms:
        shown = [_bold(_shown(own.get(arm, {}).get(name)), best[pool] == arm) for pool, own in found.items()]
        lines.append([arm, *shown])
    return _rows(lines)


def _best(name: str, arms: Mapping[str, Mapping[str, Figure]]) -> str | None:
    """The best arm, if it is measurably better than the first."""
    known = {arm: own[name] for arm, own in arms.items() if name in own}
    if not known:
        return None
    arm = (min if name in LOW else max)(known, key=lambda arm: known[arm].mean)
    return arm if better(name, known[arm]) else None


def _rows(lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---", *(["---:"] * (len(lines[0]) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure.spread is None else f" ± {rounded(100 * figure.spread)}"
    over = figure.interval
    between = "" if over is None else f" [{rounded(100 * over.low)}, {rounded(100 * over.high)}]"
    return f"{rounded(100 * figure.mean)}{spread}{between}"


def _signed(gain: Interval | None) -> str:
    return "–" if gain is None else gain.per_cent("+")


# --- along an axis ----------------------------------------------------------------------------------------------------


def lines_of(found: Found, places: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, Lines] | None:
    """The axis with numbers (of several the one with the most) and a figure's lines along it.

    There is a line per pool and combination of the other axes. ``places`` holds each arm's value on every axis. None
    where no axis has two numbers.
    """
    on: dict[str, set[float]] = {}
    for place in places.values():
        for axis, value in place.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                on.setdefault(axis, set()).add(value)
    if not on or len(on[axis := max(on, key=lambda one: len(on[one]))]) < 2:
        return None
    lines: Lines = {}
    for pool, arms in found.items():
        for arm, figures in arms.items():
            if name not in figures or (over := figures[name].interval) is None or places[arm].get(axis) is None:
                continue
            others = [f"{key}={value}" for key, value in places[arm].items() if key != axis]
            label = ", ".join([f"on {pool}"] * (len(found) > 1) + others)
            lines.setdefault(label, []).append((float(places[arm][axis]), over))
    return axis, {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items()}
