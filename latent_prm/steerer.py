"""What steering is worth: grow questions under several methods, and hold their accuracy against their compute.

latent-prm steer --methods beam,particles,anytime --scorer prm,random,oracle

This room hides how methods are tried alike, on the same questions and from the same seed; `contest` compares them.
Compute is counted in latent steps of the reasoner: prompt tokens read, latents thought, answer tokens decoded, and what
the scorer computed, the final scores included.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import accumulate, groupby, islice
from math import comb
from operator import attrgetter, mul
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from latent_prm import confidence as calibrations
from latent_prm import kinship, preflight, screen
from latent_prm.contest import COSTS, UNSTEERED, Costs, Report, Tried, Unsteered, compare, print_reports
from latent_prm.files import save_json
from latent_prm.growth import Growth, every_latent
from latent_prm.metrics import Pool, bootstrap_interval
from latent_prm.model import QwenLatentPRM, checkpoint_folder
from latent_prm.options import SteerOptions
from latent_prm.plots import ComputePoint, NoMatplotlib, compute_curve
from latent_prm.pretrained import find_device, versions
from latent_prm.reasoner import Reasoner, batch_size
from latent_prm.scorers import SCORERS, HeuristicScorer, OracleScorer, PrmScorer, RandomScorer, Scorer, score_ends
from latent_prm.settling import CONFIDENCE, Settled, by_agreement, by_prm
from latent_prm.steering import NAMES, Guide, from_name
from latent_prm.stopping import ending_on_sigterm
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree


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
        reports = bench.compare(tried, unsteered)
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
        for scorer in (one for one in self.scorers if isinstance(one, PrmScorer)):
            here = kinship.grower(self.reasoner)
            self.calibration = kinship.believed(options.checkpoint, scorer.model, self.calibration, here)

    def settled(self, scorer: str) -> dict[str, Settled]:
        """What can say that an answer chosen by this scorer's scores is settled; the best of them last."""
        found: dict[str, Settled] = {"agreement": by_agreement, "scores": by_prm}
        if scorer == "prm" and self.calibration is not None and self.options.select in self.calibration.regrets:
            found["regret"] = self.calibration.settled(self.options.select)
        return found

    def _scorer(self, name: str) -> Scorer:
        if name == "prm":
            model = QwenLatentPRM.from_pretrained(self.options.checkpoint, device=find_device(self.options.device))
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
        with screen.bar(total=total, desc="Steering", unit=" trees") as bar:
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
        """The pool with this scorer's scores. What answers and scores cost rises evenly from one path to all."""
        ends, billed, costs = [tree.offered() for tree in trees], [], costs.copy()
        for some in ([each[:1] for each in ends], ends):
            before = scorer.cost
            scores = score_ends(scorer, trees, some)
            billed.append((scorer.cost - before) / len(trees))
        answers = [[tree.paths[i].answers[0] for i in each] for tree, each in zip(trees, ends, strict=True)]
        first = costs / np.array([[len(each)] for each in ends])
        first[:, -1], costs[:, -1] = billed
        n = self.pool_growth.num_paths
        spent = first + (costs - first) * np.arange(n)[:, None, None] / max(1, n - 1)
        spent[:, :, :2] = self._shared
        pool = Pool(
            values=[[answer.value for answer in each] for each in answers],
            correct=[np.array([answer.correct for answer in each]) for each in answers],
            scores=scores,
        )
        return Unsteered(scorer.name, pool, spent, self.options.select)

    @cached_property
    def _shared(self) -> Float[np.ndarray, "N Q 2"]:
        """The prompt tokens and latents of 1, 2, … and all paths: those that share an ancestor pay for it once."""
        growth = self.pool_growth
        prompts = np.array([self.reasoner.prompt_lengths(question, growth) for question in self.questions])
        found = np.empty((growth.num_paths, len(self.questions), 2))
        for k in range(1, growth.num_paths + 1):
            thinking = ancestors(growth, k)
            reading = [rows for run, rows in zip(growth.runs, [1.0, *thinking], strict=False) if run.prompt is not None]
            reading += [thinking[-1]] if growth.judger is not None else []
            found[k - 1, :, 0] = prompts @ reading
            found[k - 1, :, 1] = sum(run.latent_steps * rows for run, rows in zip(growth.runs, thinking, strict=True))
        return found

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
        return Tried(name, scorer.name, np.array(chosen, dtype=float), costs, paths, growth.num_paths)

    def _guide(self, name: str, scorer: Scorer) -> Guide:
        if name == "anytime":
            *_, settled = self.settled(scorer.name).values()
            return from_name(name, scorer, confidence=self.options.confidence or CONFIDENCE, settled=settled)
        return from_name(name, scorer, after=self.options.latents())

    def compare(self, tried: Sequence[Tried], unsteered: Sequence[Unsteered]) -> dict[str, Report]:
        """A report per task, and of all."""
        mean = partial(bootstrap_interval, num_bootstrap=self.options.num_bootstrap, seed=self.options.seed)
        tasks = [question.task for question in self.questions]
        return compare(tried, unsteered, tasks, self.growth.num_paths, self.settled, mean)


def ancestors(growth: Growth, k: int) -> list[float]:
    """How many paths of each run k leaves stand on, on average over all sets of k."""
    leaves, counts = growth.num_paths, accumulate((run.branches for run in growth.runs), mul)
    sets = comb(leaves, k)  # in some of them no leaf stands on a given path
    return [count * (sets - comb(leaves - leaves // count, k)) / sets for count in counts]


def _names(typed: str, known: Sequence[str], option: str) -> list[str]:
    found = typed.replace(" ", "").split(",")
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"--{option} names {unknown[0]!r}, which is none of {', '.join(known)}.")
    return list(dict.fromkeys(found))


# --- saving -----------------------------------------------------------------------------------------------------------


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
    print(f"Next: latent-prm report {shlex.quote(str(folder / 'steering.json'))}")
