"""Trees and what was predicted about their paths → an `Evaluation`: per task, and for all questions together.

This room hides what of a tree is chosen from and judged, and how probabilities are calibrated on other questions than
they are judged on: on questions apart where there are such, else each half of the questions on the other. Nothing is
read or written here, and no model is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from latent_prm.comparison import (
    Comparison,
    Table,
    accuracy_table,
    against,
    as_probabilities,
    compare,
    curve_sizes,
    discriminate_steps,
    table_sizes,
)
from latent_prm.confidence import Confidence, fit
from latent_prm.metrics import Pool
from latent_prm.predictions import THRESHOLDS, Errors, abstaining, coverage_curve, errors, forecast, skill
from latent_prm.step_truth import StepTruth
from latent_prm.tree import ReasoningTree

ALL = "all tasks"
QUESTION_ONLY = "question only"
"""The rival that never looks at a path."""
FEW = 40
"""Questions. With fewer, a half is too small to calibrate the other half on."""

Scores = Sequence[Any]
"""Of every tree, one number per path (array or tensor)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What was said of the paths of some trees."""

    prms: Sequence[Scores]
    """Of each PRM (alike but for their training's seed) the predicted probabilities."""
    lower: Sequence[Scores] | None = None
    """Lower bounds of them."""
    steps: Sequence[Sequence[Sequence[Float[np.ndarray, " _"]]]] | None = None
    """Of each PRM, per tree and path, the probability after each latent of the chain."""
    fewer: dict[int, Scored] | None = None
    """Of PRMs that score a path beside its siblings, and by k as in `fewer_paths`: what they say of every tree's
    `first` k paths alone. None: they score each path by itself."""
    rivals: dict[str, Scores] = field(default_factory=dict)
    """By name, what others say: any numbers, higher is likelier right."""
    ordinal: frozenset[str] = frozenset()
    """The rivals of whose scores only the order means anything."""
    controls: dict[str, Sequence[Scores]] = field(default_factory=dict)
    """By name, what each PRM says of spoilt evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate` found."""

    comparisons: dict[str, Comparison]
    """One per task; where there are several, also one of all together, which stands last."""
    skipped: dict[str, int]
    """Why questions were left out, and how many."""
    calibrated_on: int | None
    """Questions apart that probabilities were calibrated on. 0: each half was on the other; None: nothing was."""
    confidences: list[Confidence] = field(default_factory=list)
    """What was learnt from the questions apart, one per PRM."""
    beside_siblings: bool = False
    """The PRMs score a path beside its siblings: with fewer paths than all, a choice by them was measured on each
    question's first paths alone, at the tables' numbers only."""
    step_truth: dict[str, StepTruth] = field(default_factory=dict)
    """By task, whether the PRMs see where paths first go wrong, as far as that is known."""

    @property
    def overall(self) -> Comparison:
        """All questions together."""
        return list(self.comparisons.values())[-1]


class _Answers(NamedTuple):
    """Of each question, the answer chosen by the rule that other questions recommend."""

    share: Float[np.ndarray, " Q"]
    """Its share of all weight, which is what there is before calibration."""
    probability: Float[np.ndarray, " Q"]
    right: Bool[np.ndarray, " Q"]
    given: Bool[np.ndarray, " Q"]
    """Whether there is one: it has no share and no probability where no path answered."""

    def sureness(self, by: Literal["share", "probability"], which: Sequence[int]) -> Float[np.ndarray, " q"]:
        """Of some questions, as `predictions.abstaining` takes it."""
        known: Float[np.ndarray, " Q"] = getattr(self, by)
        return np.where(self.given, known, np.nan)[list(which)]


def evaluate(
    trees: Sequence[ReasoningTree],
    scores: Scored | Scores,
    *,
    confidences: Sequence[Confidence] | None = None,
    num_bootstrap: int = 2000,
    seed: int = 42,
    skipped: dict[str, int] | None = None,
) -> Evaluation:
    """Compare the ways of choosing, per task and over all tasks.

    ``scores`` holds one predicted score per path of every tree, as `QwenLatentPRM.score_trees` returns them, or more
    than that. ``confidences`` (one per PRM) were fitted on other questions. Trees without a graded noisy path are left
    out and counted, on top of what was ``skipped`` before.
    Raises ValueError when no tree is left.
    """
    scored = scores if isinstance(scores, Scored) else Scored(prms=[scores])
    names = sorted({tree.task for tree in trees})
    order = [i for name in names for i, tree in enumerate(trees) if tree.task == name and judged(tree)]
    material = _Material(trees, scored, order, confidences, seed)
    groups = {name: [q for q, i in enumerate(order) if trees[i].task == name] for name in names}
    groups = {name: questions for name, questions in groups.items() if questions}
    pools = {name: [pool.take(questions) for pool in material.pools] for name, questions in groups.items()}
    tables = _tables(groups, material, seed)
    if len(groups) > 1:
        groups[ALL], pools[ALL] = list(range(len(order))), material.pools
        shared = set.intersection(*(set(table) for table in tables.values()))
        tables[ALL] = {key: np.concatenate([tables[name][key] for name in groups if name != ALL], 1) for key in shared}
    comparisons = {}
    for name, questions in groups.items():
        core = compare(pools[name], num_bootstrap, seed, tables[name])
        comparisons[name] = replace(core, **material.more(core, pools[name], questions, num_bootstrap, seed))
    return Evaluation(
        comparisons=comparisons,
        skipped={**(skipped or {}), "no graded path": len(trees) - len(order)},
        calibrated_on=None if not material.judges else confidences[0].num_questions if confidences else 0,
        confidences=list(confidences or []),
        beside_siblings=material.beside_siblings,
    )


def judged(tree: ReasoningTree) -> bool:
    """Whether a choice among its noisy paths can be right, and is known to be."""
    return tree.graded and bool(tree.offered())


def _tables(groups: dict[str, list[int]], material: _Material, seed: int) -> dict[str, Table]:
    """The accuracies of every task, at the sizes that it or all tasks together are looked at."""
    found: dict[str, Table] = {}
    for name, questions in groups.items():
        own = [pool.take(questions) for pool in material.pools]
        sizes = sorted({*curve_sizes(own[0].num_paths), *curve_sizes(material.pools[0].num_paths)})
        few = {k: [p.take(questions) for p in pools] for k, pools in material.fewer.items() if k <= own[0].num_paths}
        found[name] = accuracy_table(own, sizes, seed, few if material.beside_siblings else None)
    return found


# --- what of a tree counts --------------------------------------------------------------------------------------------


def first(tree: ReasoningTree, k: int) -> ReasoningTree:
    """The tree with only the first k of what it offers; itself where it has no more, or offers nothing."""
    paths = tree.offered()
    return tree if len(paths) <= k else tree.chains(paths[:k])[0]


def fewer_paths(trees: Iterable[ReasoningTree]) -> list[int]:
    """The numbers of paths, more than one, that tables have a column for and some question has more than."""
    counts: dict[str, list[int]] = {}
    for tree in trees:
        if paths := tree.offered():
            counts.setdefault(tree.task, []).append(len(paths))
    sizes = {size for own in counts.values() for size in table_sizes(min(own))}
    sizes |= set(table_sizes(min(map(min, counts.values())))) if counts else set()
    return sorted(size for size in sizes if 1 < size < max(map(max, counts.values())))


def pool_of(trees: Sequence[ReasoningTree], scores: Scores, lower: Scores | None = None) -> Pool:
    """What is chosen from in these trees, each of which has something to offer. Raises ValueError as `Pool`."""
    paths = [tree.offered() for tree in trees]
    answers = [[tree.paths[i].answers[0] for i in own] for tree, own in zip(trees, paths, strict=True)]
    return Pool(
        values=[[answer.value for answer in own] for own in answers],
        correct=[np.array([answer.correct for answer in own], dtype=bool) for own in answers],
        scores=_only(scores, paths),
        noise_free=_noise_free(trees),
        lower=None if lower is None else _only(lower, paths),
    )


def _only(scores: Scores, paths: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " _"]]:
    return [np.asarray(own, dtype=float)[list(kept)] for own, kept in zip(scores, paths, strict=True)]


def _noise_free(trees: Sequence[ReasoningTree]) -> Float[np.ndarray, " Q"] | None:
    """Whether each tree's noise-free path is right, nan where it has none that was graded; None where no tree has."""
    leaves = [[tree.paths[i] for i in tree.leaves() if tree.paths[i].noise_free] for tree in trees]
    found = [float(paths[0].answers[0].correct) if paths and paths[0].answers else np.nan for paths in leaves]
    return None if np.isnan(found).all() else np.array(found)


def _known(tree: ReasoningTree, leaf: bool) -> list[tuple[int, float, int]]:
    """(path, value, answers behind it) of the noisy leaves, or of the noisy inner paths, whose value is known."""
    leaves = set(tree.leaves())
    return [
        (i, path.prm_score, path.num_answers)
        for i, path in enumerate(tree.paths)
        if (i in leaves) == leaf and not path.noise_free and path.prm_score is not None and path.num_answers
    ]


# --- everything about the questions -----------------------------------------------------------------------------------


class _Material:
    """What is known of the questions that can be measured, in the order of ``order``."""

    def __init__(
        self,
        trees: Sequence[ReasoningTree],
        scored: Scored,
        order: Sequence[int],
        confidences: Sequence[Confidence] | None,
        seed: int,
    ) -> None:
        self.trees = [trees[i] for i in order]

        def ordered(scores: Scores) -> list[Any]:
            return [scores[i] for i in order]

        def pools(trees: Sequence[ReasoningTree], said: Scored) -> list[Pool]:
            bounds = [None] * len(said.prms) if said.lower is None else [ordered(low) for low in said.lower]
            return [pool_of(trees, ordered(own), low) for own, low in zip(said.prms, bounds, strict=True)]

        self.prms = [ordered(own) for own in scored.prms]
        self.steps = None if scored.steps is None else [ordered(own) for own in scored.steps]
        self.pools = pools(self.trees, scored)
        self.beside_siblings, fewer = scored.fewer is not None, scored.fewer or {}
        self.fewer = {k: pools([first(tree, k) for tree in self.trees], said) for k, said in fewer.items()}
        """Of every question the first k paths, scored alone."""
        self.judges = _judges(self.pools, confidences, seed)
        """Per PRM and question, what was learnt from other questions."""
        self.answers = [_answers(pool, own) for pool, own in zip(self.pools, self.judges, strict=False)]
        if self.judges:
            rules = [[judge.picked.how for judge in own] for own in self.judges]
            self.pools = [replace(pool, auto=own) for pool, own in zip(self.pools, rules, strict=True)]
            for k, few in self.fewer.items():
                self.fewer[k] = [replace(pool, auto=own) for pool, own in zip(few, rules, strict=True)]
        paths = [tree.offered() for tree in self.trees]
        self.others = {
            name: [as_probabilities(_only(ordered(own), paths), name in scored.ordinal)]
            for name, own in scored.rivals.items()
        }
        self.controls = {name: [_only(ordered(o), paths) for o in own] for name, own in scored.controls.items()}

    def more(
        self, core: Comparison, pools: list[Pool], questions: Sequence[int], num_bootstrap: int, seed: int
    ) -> dict[str, Any]:
        """What else there is to say of some of the questions, by the `Comparison`'s fields."""
        found: dict[str, Any] = {"rivals": {}, "errors": self._errors(questions)}
        for name, each in (*self.others.items(), *self.controls.items()):
            others = [pools[0].scored([own[q] for q in questions]) for own in each]
            found["rivals"][name] = against(pools, others, name in self.controls, num_bootstrap, seed)
        if self.steps is not None:
            paths = [self.trees[q].offered() for q in questions]
            own = [[[prm[q][i] for i in ps] for q, ps in zip(questions, paths, strict=True)] for prm in self.steps]
            found["steps"] = discriminate_steps(own, pools[0].correct, num_bootstrap, seed)
        if QUESTION_ONLY in self.others:
            right = np.concatenate(pools[0].correct)
            blind = forecast(np.concatenate([self.others[QUESTION_ONLY][0][q] for q in questions]), right)
            found["over_question"] = skill(float(np.mean([own.brier for own in core.forecasts["paths"]])), blind.brier)
        if self.judges:
            found |= self._calibrated(core, questions)
        return found

    def _calibrated(self, core: Comparison, questions: Sequence[int]) -> dict[str, Any]:
        """Paths' and answers' probabilities after calibration (for answers also before), and abstaining by them."""
        which = list(questions)
        paths = []
        for pool, judges in zip(self.pools, self.judges, strict=True):
            scores = np.concatenate([judges[q].path(pool.scores[q]) for q in which])
            paths.append(forecast(scores, np.concatenate([pool.correct[q] for q in which])))
        shares = [forecast(own.share[which], own.right[which]) for own in self.answers]
        answers = [forecast(own.probability[which], own.right[which]) for own in self.answers]
        first, votes = self.answers[0], _answers(self.pools[0], self.judges[0], majority=True)
        sure, agreed = first.sureness("probability", which), votes.sureness("share", which)
        return {
            "forecasts": {
                **core.forecasts,
                "paths, calibrated": paths,
                "answers, by share": shares,
                "answers, calibrated": answers,
            },
            "coverage": {
                "calibrated probability": coverage_curve(sure, first.right[which]),
                "share of the paths (majority)": coverage_curve(agreed, votes.right[which]),
            },
            "abstaining": [abstaining(sure, first.right[which], least) for least in THRESHOLDS],
            "rules": sorted({judges[q].picked.how for judges in self.judges for q in which}),
        }

    def _errors(self, questions: Iterable[int]) -> dict[str, list[Errors]]:
        """Distance to known values, of leaves and of inner paths, as far as there are such."""
        found = {}
        for kind, leaf in (("leaves", True), ("inner paths", False)):
            known = [(q, *row) for q in questions for row in _known(self.trees[q], leaf)]
            if known:
                number, path, value, count = (list(column) for column in zip(*known, strict=True))
                values, counts, asked = np.array(value, dtype=float), np.array(count), np.array(number)
                each = [np.array([float(own[q][i]) for q, i in zip(number, path, strict=True)]) for own in self.prms]
                found[kind] = [errors(predicted, values, counts, asked) for predicted in each]
        return found


def _judges(pools: Sequence[Pool], confidences: Sequence[Confidence] | None, seed: int) -> list[list[Confidence]]:
    """Per PRM and question, what other questions teach; nothing where there are too few to learn from."""
    size = len(pools[0])
    if confidences is not None:
        return [[one] * size for one in confidences]
    if size < FEW:
        return []
    half = np.random.default_rng(seed).permutation(size) < size // 2
    found = []
    for pool in pools:
        first, second = (fit(pool.take(np.flatnonzero(half == side).tolist()), seed) for side in (True, False))
        found.append([second if inside else first for inside in half.tolist()])
    return found


def _answers(pool: Pool, judges: Sequence[Confidence], majority: bool = False) -> _Answers:
    """What is chosen in every question; with ``majority`` by count, whatever was learnt."""
    rows = []
    for q, (values, correct, scores, judge) in enumerate(
        zip(pool.values, pool.correct, pool.scores, judges, strict=True)
    ):
        lower = pool.lower[q] if pool.lower else None
        choice = judge.choose(values, scores, "vote" if majority else None, lower)
        given = choice.value != ""
        rows.append((choice.share if given else 0.0, choice.probability or 0.0, bool(correct[choice.index]), given))
    return _Answers(*(np.array(column) for column in zip(*rows, strict=True)))
