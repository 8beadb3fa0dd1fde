"""What steering is worth: grow questions under several methods, and hold their accuracy against their compute.

latent-prm steer --methods beam,particles,anytime --scorer prm,random,oracle

This room hides how methods are made comparable: on the same questions and from the same seed, against the vote of as
many unsteered paths as cost no less. Compute is counted in latent steps of the reasoner: prompt tokens read, latents
thought, answer tokens decoded, and what the scorer computed, the final scores included.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from latent_prm import confidence as calibrations
from latent_prm import preflight
from latent_prm.files import save_json
from latent_prm.growth import Growth, every_latent
from latent_prm.metrics import Interval, Pool, bootstrap_interval, expected_accuracies
from latent_prm.model import QwenLatentPRM, checkpoint_folder
from latent_prm.options import SteerOptions
from latent_prm.plots import ComputeCurve, ComputePoint, NoMatplotlib, compute_curve
from latent_prm.pretrained import find_device, pick_device, versions
from latent_prm.reasoner import Reasoner, batch_size
from latent_prm.scorers import SCORERS, HeuristicScorer, OracleScorer, PrmScorer, RandomScorer, Scorer, score_ends
from latent_prm.selector import How, choose_among
from latent_prm.settling import Settled, by_agreement, by_prm, paths_used
from latent_prm.steering import NAMES, Guide, from_name
from latent_prm.stopping import ending_on_sigterm
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree

ALL = "all tasks"
UNSTEERED = "unsteered"
CONFIDENCES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
COSTS = ("prompts", "latents", "answers", "scorer")
LATENTS = COSTS.index("latents")

Each = Float[np.ndarray, " Q"]
Costs = Float[np.ndarray, "Q 4"]
"""Of every question, in the order of `COSTS`; a batch's are spread evenly over its questions."""


class Tried(NamedTuple):
    """How a method did on Q questions."""

    name: str
    scorer: str
    right: Each
    costs: Costs
    paths: Each
    """Noisy paths that finished."""


@dataclass(frozen=True)
class Unsteered:
    """A pool of paths that nobody steered, with somebody's scores, of which any number can be taken."""

    scorer: str
    pool: Pool
    first: Costs
    """Of one path of each question."""
    whole: Costs
    """Of all."""
    select: How

    def costs(self, k: int) -> Costs:
        """Of k paths: between one and all they rise evenly."""
        return self.first + (self.whole - self.first) * (k - 1) / max(1, self.pool.num_paths - 1)

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
        return replace(self, pool=self.pool.take(some), first=self.first[some], whole=self.whole[some])


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


def main(options: SteerOptions) -> dict[str, Report]:
    """Run the stage: load, try every method, compare, report. Returns a report per task, and of all together, last.

    Raises ValueError (or one of its kin) in plain words, KeyboardInterrupt on Ctrl-C and SystemExit(143) on SIGTERM.
    """
    logging.basicConfig(format="[Steerer] %(message)s")
    logging.getLogger("latent_prm").setLevel(logging.INFO)
    with ending_on_sigterm():
        began = time.monotonic()
        preflight.can_write(options.output_dir)
        find_device(options.device)
        if "prm" in options.scorer.split(","):
            preflight.check_reasoner(options.model_path, options.revision, options.checkpoint)
        bench = Bench(options)
        tried, unsteered = bench.try_all()
        reports = compare(tried, unsteered, bench)
        print_reports(reports)
        save(reports, bench, {**bench.reasoner.describe(), "seconds": round(time.monotonic() - began, 1)})
    return reports


# --- trying ---------------------------------------------------------------------------------------------------------


class Bench:
    """The questions, the reasoner and the scorers that every method is tried with.

    Raises ValueError for an unknown method or scorer, when there are no questions, and when one is too long.
    """

    def __init__(self, options: SteerOptions) -> None:
        self.options, self.task = options, load_task(options.task)
        self.methods, names = _names(options.methods, NAMES, "methods"), _names(options.scorer, SCORERS, "scorer")
        drawn = list(islice(self.task.stream(options.split, options.seed), options.max_samples))
        if not drawn:
            raise ValueError(f"{options.task} has no questions in the split {options.split}. Type another --split.")
        # A batch is of one task, so that costs are too.
        self.questions: list[Question] = sorted(drawn, key=attrgetter("task"))
        self.reasoner = Reasoner.from_pretrained(**options.reasoner())
        self.growth = replace(self.reasoner.growth(**options.growth()), noise_free=False)
        for question in self.questions:
            self.reasoner.check_length(question, self.growth)
        self.scorers = [self._scorer(name) for name in names]
        folder = checkpoint_folder(self.options.checkpoint)
        calibrated = "prm" in names and (folder / calibrations.FILE).is_file()
        self.calibration = calibrations.load(folder) if calibrated else None

    def settled(self, scorer: str) -> dict[str, Settled]:
        """What can say that an answer chosen by this scorer's scores is settled; the best of them last."""
        found: dict[str, Settled] = {"agreement": by_agreement, "scores": by_prm}
        if scorer == "prm" and self.calibration is not None and self.options.select in self.calibration.regrets:
            found["regret"] = self.calibration.settled(self.options.select)
        return found

    def _scorer(self, name: str) -> Scorer:
        if name == "prm":
            model = QwenLatentPRM.from_pretrained(self.options.checkpoint, device=pick_device(self.options.device))
            return PrmScorer(model, self.reasoner)
        if name == "oracle":
            return OracleScorer(self.reasoner, self.task, self.growth, self.questions)
        return HeuristicScorer(self.reasoner) if name == "heuristic" else RandomScorer(self.options.seed)

    @cached_property
    def pool_growth(self) -> Growth:
        """The growth of the unsteered pool: cut as the steered ones are, so that they share their paths with it."""
        first, *later = every_latent(self.growth).runs
        times = -(-(self.options.pool_paths or 4 * self.growth.num_paths) // self.growth.num_paths)
        growth = replace(self.growth, runs=(replace(first, branches=first.branches * times), *later))
        return replace(growth, keep_hidden=any(scorer.reads_hidden for scorer in self.scorers))

    def try_all(self) -> tuple[list[Tried], list[Unsteered]]:
        """Every method by every scorer, after the rivals; and the unsteered pool, scored by each."""
        total = (2 + len(self.scorers) * len(self.methods)) * len(self.questions)
        with tqdm(total=total, desc="Steering", unit=" trees") as bar:
            trees, costs = self._grow(self._plainly(self.pool_growth), bar)
            unsteered = [self._scored(trees, costs, scorer) for scorer in self.scorers]
            tried = [self._noise_free(bar)]
            for scorer in self.scorers:
                tried += [self._try(name, scorer, bar) for name in self.methods]
        return tried, unsteered

    def _grow(self, grow: Callable[[list[Question]], list[Any]], bar: tqdm[Any]) -> tuple[list[Any], Costs]:
        """What ``grow`` gives for all questions, batch by batch, and what each question cost."""
        size = self.options.batch_size or batch_size(self.reasoner, self.questions, self.pool_growth)
        found: list[Any] = []
        costs: list[list[float]] = []
        for _, group in groupby(self.questions, attrgetter("task")):
            of_task = list(group)
            for start in range(0, len(of_task), size):
                batch, before = of_task[start : start + size], self._bill()
                found += grow(batch)
                after = self._bill()
                costs += [[(after[name] - before[name]) / len(batch) for name in COSTS]] * len(batch)
                bar.update(len(batch))
        return found, np.array(costs)

    def _bill(self) -> dict[str, float]:
        spent: Counter[str] = self.reasoner.spent
        computed = (spent["prompt_tokens"], spent["latents"], spent["answer_tokens"], sum(s.cost for s in self.scorers))
        return dict(zip(COSTS, map(float, computed), strict=True))

    def _plainly(self, growth: Growth, roots: range | None = None) -> Callable[[list[Question]], list[ReasoningTree]]:
        return lambda batch: self.reasoner.grow(batch, self.task, growth, roots=roots)

    def _noise_free(self, bar: tqdm[Any]) -> Tried:
        trees, costs = self._grow(self._plainly(replace(self.growth, noise_free=True), range(0)), bar)
        right = np.array([tree.paths[-1].answers[0].correct for tree in trees], dtype=float)
        return Tried("noise-free path", "", right, costs, np.zeros(len(right)))

    def _scored(self, trees: Sequence[ReasoningTree], costs: Costs, scorer: Scorer) -> Unsteered:
        """The pool with this scorer's scores. Its cost is known of one path and of all."""
        ends, billed, costs = [tree.offered() for tree in trees], [], costs.copy()
        for some in ([each[:1] for each in ends], ends):
            before = scorer.cost
            scores = score_ends(scorer, trees, some)
            billed.append((scorer.cost - before) / len(trees))
        answers = [[tree.paths[i].answers[0] for i in each] for tree, each in zip(trees, ends, strict=True)]
        first = costs / np.array([[len(each)] for each in ends])
        first[:, 0] = costs[:, 0]  # prompts are read once
        first[:, -1], costs[:, -1] = billed
        pool = Pool(
            values=[[answer.value for answer in each] for each in answers],
            correct=[np.array([answer.correct for answer in each]) for each in answers],
            scores=scores,
        )
        return Unsteered(scorer.name, pool, first, costs, self.options.select)

    def _try(self, name: str, scorer: Scorer, bar: tqdm[Any]) -> Tried:
        bar.set_postfix_str(f"{name} by {scorer.name}")
        guide = self._guide(name, scorer)
        growth = self.growth
        if guide.num_paths and self.options.num_paths is None and self.options.branches is None:
            settings: dict[str, Any] = {**self.options.growth(), "num_paths": guide.num_paths}
            growth = replace(self.reasoner.growth(**settings), noise_free=False)
        if name == "anytime":  # cut alike, so that it grows paths of the pool
            growth = every_latent(growth)
        grown, costs = self._grow(lambda batch: guide.grow(self.reasoner, batch, self.task, growth), bar)
        chosen = [each.tree.paths[each.choose(self.options.select).index].answers[0].correct for each in grown]
        paths = np.array([len(each.tree.offered()) for each in grown], dtype=float)
        return Tried(name, scorer.name, np.array(chosen, dtype=float), costs, paths)

    def _guide(self, name: str, scorer: Scorer) -> Guide:
        if name == "anytime":
            *_, settled = self.settled(scorer.name).values()
            return from_name(name, scorer, confidence=self.options.confidence, settled=settled)
        return from_name(name, scorer, after=self.options.latents())


def _names(typed: str, known: Sequence[str], option: str) -> list[str]:
    found = typed.replace(" ", "").split(",")
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"--{option} names {unknown[0]!r}, which is none of {', '.join(known)}.")
    return list(dict.fromkeys(found))


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(tried: Sequence[Tried], unsteered: Sequence[Unsteered], bench: Bench) -> dict[str, Report]:
    """A report per task and, where there are several, one of all questions together, which stands last."""
    names = [question.task for question in bench.questions]
    groups = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(set(names))}
    if len(groups) > 1:
        groups[ALL] = list(range(len(names)))
    return {
        name: _report(
            [one._replace(right=one.right[some], costs=one.costs[some], paths=one.paths[some]) for one in tried],
            [each.take(some) for each in unsteered],
            bench,
        )
        for name, some in groups.items()
    }


def _report(tried: Sequence[Tried], unsteered: Sequence[Unsteered], bench: Bench) -> Report:
    options, n = bench.options, bench.growth.num_paths

    def interval(each: Each) -> Interval:
        return bootstrap_interval(each, options.num_bootstrap, options.seed)

    def line(one: Tried, **gains: Any) -> Line:
        means: list[float] = one.costs.mean(0).tolist()
        costs = {**dict(zip(COSTS, means, strict=True)), "total": sum(means)}
        paths = float(one.paths.mean())
        return Line(name=one.name, scorer=one.scorer, right=interval(one.right), costs=costs, paths=paths, **gains)

    majority = replace(unsteered[0], select="vote", scorer="", first=_unscored(unsteered[0].first),
                       whole=_unscored(unsteered[0].whole))  # fmt: skip
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
        gains: dict[str, Any] = {"gain": interval(one.right - rival.right(n))}
        for name, part in (("at_equal_latents", slice(LATENTS, LATENTS + 1)), ("at_equal_total", slice(None))):
            k = rival.equal(one.costs, part)
            gains[name] = k, interval(one.right - rival.right(k))
        lines.append(line(one, **gains))
    return Report(
        num_questions=len(tried[0].right),
        lines=lines,
        curves=[_curve(each, interval) for each in (majority, *unsteered)],
        stops=[stop for each in unsteered for stop in _stops(each, bench.settled(each.scorer), n, interval)],
    )


def _unscored(costs: Costs) -> Costs:
    return np.concatenate([costs[:, :-1], np.zeros((len(costs), 1))], axis=1)


def _curve(each: Unsteered, interval: Callable[[Each], Interval]) -> ComputeCurve:
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


def _stops(each: Unsteered, ways: dict[str, Settled], n: int, interval: Callable[[Each], Interval]) -> list[Stop]:
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


# --- reporting ------------------------------------------------------------------------------------------------------


def print_reports(reports: dict[str, Report], console: Console | None = None) -> None:
    """Print, per task and for all: what each method gets right and costs, its gains, and what stopping early does."""
    console = console or Console(highlight=False, markup=False)
    for name, found in reports.items():
        for table in tables_of(name, found):
            console.print(table)


def tables_of(name: str, found: Report) -> list[Table]:
    """Of one task: what each method gets right and costs, its gains, and what stopping early does."""
    head = f"{name}: {found.num_questions} questions"
    return [
        _costs_table(f"{head}, answered right, % [95 % interval]; mean latent steps per question", found),
        _gains_table("Points more than unsteered paths with the same scorer (their number)", found),
        _stops_table("Anytime: unsteered paths in their order, until the answer is settled", found),
    ]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
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
    rivals = list(found.stops[0].gains) if found.stops else []
    than = [f"more than {how.replace('_', ' ')} of all" for how in rivals]
    table = _table(title, "settled by", "at", "paths used, %", "right, %", *than)
    for stop in found.stops:
        gains = [stop.gains[how].per_cent("+") for how in rivals]
        table.add_row(
            _named(stop.by, stop.scorer), f"{stop.confidence:g}", stop.share.per_cent(), stop.right.per_cent(), *gains
        )
    return table


def _named(name: str, scorer: str) -> str:
    return f"{name} · {scorer}" if scorer else name


def save(reports: dict[str, Report], bench: Bench, facts: dict[str, Any]) -> None:
    """Write steering.json (``facts`` say what it was measured with) and, with matplotlib, steering.png."""
    folder = Path(bench.options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        **facts,
        "options": asdict(bench.options),
        "settings": asdict(bench.growth) | {"num_paths": bench.growth.num_paths},
        "versions": versions(),
        "reports": {name: asdict(one) for name, one in reports.items()},
    }
    save_json(found, folder / "steering.json")
    print(f"Saved {folder / 'steering.json'}")
    last = list(reports.values())[-1]
    points = [
        ComputePoint(line.name, line.scorer, line.costs["latents"], line.costs["total"], line.right)
        for line in last.lines
        if not line.name.startswith(UNSTEERED)
    ]
    try:
        compute_curve(last.curves, points, folder / "steering.png")
        print(f"Saved {folder / 'steering.png'}")
    except NoMatplotlib as missing:
        print(missing)
