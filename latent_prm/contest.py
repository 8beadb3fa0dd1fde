"""What methods of steering are worth: their accuracy held against their compute, in numbers and as tables.

This room hides how methods are made comparable: paired over the same questions, against the vote of as many unsteered
paths as cost no less, of which any number's cost and accuracy is known. It needs no reasoner and no scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from latent_prm import screen
from latent_prm.metrics import Interval, Pool, expected_accuracies, rounded
from latent_prm.plots import ComputeCurve
from latent_prm.selector import How, choose_among
from latent_prm.settling import Settled, paths_used

ALL = "all tasks"
UNSTEERED = "unsteered"
CONFIDENCES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
COSTS = ("prompts", "latents", "answers", "scorer")
LATENTS = COSTS.index("latents")

Each = Float[np.ndarray, " Q"]
Costs = Float[np.ndarray, "Q 4"]
"""Of every question, in the order of `COSTS`; a batch's are spread evenly over its questions."""
Mean = Callable[[Each], Interval]
"""The mean over questions, with its interval."""
Ways = Callable[[str], dict[str, Settled]]
"""What can say that an answer chosen by the scores of this scorer is settled."""


class Tried(NamedTuple):
    """How a method did on Q questions."""

    name: str
    scorer: str
    right: Each
    costs: Costs
    paths: Each
    """Noisy paths that finished."""
    asked: int | None = None
    """Noisy paths that were asked for; None: as many as of all that have no number of their own."""


@dataclass(frozen=True)
class Unsteered:
    """A pool of paths that nobody steered, with somebody's scores, of which any number can be taken."""

    scorer: str
    pool: Pool
    spent: Float[np.ndarray, "N Q 4"]
    """What 1, 2, … and all paths of each question cost, whichever they are."""
    select: How

    def costs(self, k: int) -> Costs:
        """Of k paths."""
        return self.spent[k - 1]

    def right(self, k: int) -> Each:
        """How often the answer chosen among k paths is right, over all sets of k."""
        return expected_accuracies(self.pool, self.select, k).per_question

    def equal(self, costs: Costs, part: slice) -> int:
        """The fewest paths that cost no less than this, at most all; ``part`` says which of the costs count."""
        sizes = range(1, self.pool.num_paths + 1)
        wanted = costs[:, part].sum(1).mean() - 1e-6
        return next((k for k in sizes if self.costs(k)[:, part].sum(1).mean() >= wanted), sizes[-1])

    def take(self, some: Sequence[int]) -> Unsteered:
        """Some of the questions."""
        return replace(self, pool=self.pool.take(some), spent=self.spent[:, some])


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is said of a method. Accuracies and gains are shares (0..1), costs are means over questions."""

    name: str
    scorer: str
    right: Interval
    costs: dict[str, float]
    """By the names of `COSTS`, and in "total"."""
    paths: float
    gain: Interval | None = None
    """Paired, over the unsteered vote of as many paths as were asked for, by the same scorer."""
    at_equal_latents: tuple[int, Interval] | None = None
    """Of how many unsteered paths (at most the whole pool), and the paired gain over their vote."""
    at_equal_total: tuple[int, Interval] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """What stopping at a confidence does to the unsteered paths, taken in the order in which they are grown."""

    scorer: str
    by: str
    """What says that the answer is settled: agreement, scores, or the regret that was learnt with the calibration."""
    confidence: float
    share: Interval
    """Of the paths that are used."""
    right: Interval
    gains: dict[How, Interval]
    """Paired, over using all of them: by the rule itself, by weighted_vote and by best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is found out about the questions of one task, or of all."""

    num_questions: int
    lines: list[Line]
    curves: list[ComputeCurve]
    """The unsteered votes."""
    stops: list[Stop]


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(
    tried: Sequence[Tried],
    unsteered: Sequence[Unsteered],
    tasks: Sequence[str],
    num_paths: int,
    settled: Ways,
    interval: Mean,
) -> dict[str, Report]:
    """A report per task and, where there are several, one of all questions together, which stands last.

    ``tasks`` is each question's, ``num_paths`` how many were asked for of a method without a number of its own.
    """
    groups = {name: [i for i, other in enumerate(tasks) if other == name] for name in sorted(set(tasks))}
    if len(groups) > 1:
        groups[ALL] = list(range(len(tasks)))
    return {
        name: _report(
            [one._replace(right=one.right[some], costs=one.costs[some], paths=one.paths[some]) for one in tried],
            [each.take(some) for each in unsteered],
            num_paths,
            settled,
            interval,
        )
        for name, some in groups.items()
    }


def _report(tried: Sequence[Tried], unsteered: Sequence[Unsteered], n: int, settled: Ways, interval: Mean) -> Report:
    def line(one: Tried, **gains: Any) -> Line:
        means: list[float] = one.costs.mean(0).tolist()
        costs = {**dict(zip(COSTS, means, strict=True)), "total": sum(means)}
        paths = float(one.paths.mean())
        return Line(name=one.name, scorer=one.scorer, right=interval(one.right), costs=costs, paths=paths, **gains)

    unscored = unsteered[0].spent * [1, 1, 1, 0]
    majority = replace(unsteered[0], select="vote", scorer="", spent=unscored)
    by_scorer = {each.scorer: each for each in unsteered}
    lines = [line(tried[0])]
    for each in (majority, *unsteered):
        paths = np.full(len(each.pool), float(n))
        lines.append(
            line(
                Tried(f"{UNSTEERED}, {each.select.replace('_', ' ')}", each.scorer, each.right(n), each.costs(n), paths)
            )
        )
    for one in tried[1:]:
        rival = by_scorer[one.scorer]
        gains: dict[str, Any] = {"gain": interval(one.right - rival.right(one.asked or n))}
        for name, part in (("at_equal_latents", slice(LATENTS, LATENTS + 1)), ("at_equal_total", slice(None))):
            k = rival.equal(one.costs, part)
            gains[name] = k, interval(one.right - rival.right(k))
        lines.append(line(one, **gains))
    return Report(
        num_questions=len(tried[0].right),
        lines=lines,
        curves=[_curve(each, interval) for each in (majority, *unsteered)],
        stops=[stop for each in unsteered for stop in _stops(each, settled(each.scorer), n, interval)],
    )


def _curve(each: Unsteered, interval: Mean) -> ComputeCurve:
    most = each.pool.num_paths
    sizes = sorted({2**i for i in range(most.bit_length())} | {most})
    costs = [each.costs(k).mean(0) for k in sizes]
    by = f" by {each.scorer}" if each.scorer else ""
    return ComputeCurve(
        label=f"{UNSTEERED}, {each.select.replace('_', ' ')}{by}",
        latents=[float(cost[LATENTS]) for cost in costs],
        total=[float(cost.sum()) for cost in costs],
        right=[interval(each.right(k)) for k in sizes],
    )


def _stops(each: Unsteered, ways: dict[str, Settled], n: int, interval: Mean) -> list[Stop]:
    """The first n paths, stopped in each of these ways at each of `CONFIDENCES`."""
    rows = [
        (v[:n], c[:n], s[:n]) for v, c, s in zip(each.pool.values, each.pool.correct, each.pool.scores, strict=True)
    ]

    def right(used: Sequence[int], how: How = each.select) -> Each:
        chosen = [choose_among(v[:k], s[:k], how).index for (v, _, s), k in zip(rows, used, strict=True)]
        return np.array([c[i] for (_, c, _), i in zip(rows, chosen, strict=True)], dtype=float)

    rivals: tuple[How, ...] = (each.select, "weighted_vote", "best")
    whole: dict[How, Each] = {how: right([n] * len(rows), how) for how in rivals}
    found = []
    for by, settled in ways.items():
        for confidence in CONFIDENCES:
            used = [paths_used(values, scores, confidence, settled) for values, _, scores in rows]
            early = right(used)
            found.append(
                Stop(
                    scorer=each.scorer,
                    by=by,
                    confidence=confidence,
                    share=interval(np.array(used) / n),
                    right=interval(early),
                    gains={how: interval(early - all_of_them) for how, all_of_them in whole.items()},
                )
            )
    return found


# --- tables --------------------------------------------------------------------------------------------------------


def print_reports(reports: dict[str, Report], console: Console | None = None) -> None:
    """Print, per task and for all: what each method gets right and costs, what stopping early does, and the gains."""
    console = console or screen.console()
    for name, found in reports.items():
        for table in tables_of(name, found):
            console.print(table)


def tables_of(name: str, found: Report) -> list[Table]:
    """Of one task: what each method gets right and costs, what stopping early does, and last what is gained."""
    head = f"{name}: {found.num_questions} questions"
    return [
        _costs_table(f"{head}, answered right, % [95 % interval]; mean latent steps per question", found),
        _stops_table("Anytime: unsteered paths in order until settled; %, points more than all", found),
        _gains_table("Points more than unsteered paths with the same scorer (their number)", found),
    ]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _costs_table(title: str, found: Report) -> Table:
    table = _table(title, "method", "right", "paths", *(*COSTS, "total"))
    for line in found.lines:
        costs = [f"{line.costs[name]:.0f}" for name in (*COSTS, "total")]
        table.add_row(_named(line.name, line.scorer), line.right.per_cent(), f"{line.paths:.1f}", *costs)
    return table


def _gains_table(title: str, found: Report) -> Table:
    table = _table(title, "method", "as many asked for", "equal latents", "equal compute")
    for line in found.lines:
        if line.gain and line.at_equal_latents and line.at_equal_total:
            equal = [f"{gain.per_cent('+')} ({k})" for k, gain in (line.at_equal_latents, line.at_equal_total)]
            table.add_row(_named(line.name, line.scorer), line.gain.per_cent("+"), *equal)
    return table


def _stops_table(title: str, found: Report) -> Table:
    """A row is a line of 80 columns: of a third rival, and of the intervals of shares, steering.json tells."""
    rivals = list(found.stops[0].gains)[:2] if found.stops else []
    table = _table(title, "settled by", "at", "paths", "right", *(f"than {how.replace('_', ' ')}" for how in rivals))
    for stop in found.stops:
        shares = [rounded(100 * share.mean) for share in (stop.share, stop.right)]
        gains = [stop.gains[how].per_cent("+") for how in rivals]
        table.add_row(_named(stop.by, stop.scorer), f"{stop.confidence:g}", *shares, *gains)
    return table


def _named(name: str, scorer: str) -> str:
    return f"{name} · {scorer}" if scorer else name
