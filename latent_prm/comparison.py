"""Everything that is found out about one set of questions: PRMs, the ways of choosing by them, and their rivals.

This room puts the numbers of `metrics` and `predictions` together. Where several PRMs differ by their training's seed
alone, a figure is the mean over them: question by question, so that its interval still is over questions, with their
standard deviation beside it. Nothing here knows trees, models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from latent_prm.metrics import (
    CHOSEN,
    MOST_SUBSETS,
    RIVALS,
    Interval,
    Method,
    Pool,
    auroc,
    bootstrap_interval,
    expected_accuracies,
    gap_recovered,
    gap_share,
    num_pairs,
    paired_difference,
    question_aurocs,
    resampled_means,
)
from latent_prm.predictions import Coverage, Errors, Forecast, forecast
from latent_prm.selector import How, weights

TABLE_SIZES = (1, 4, 16)
Table = dict[tuple[Method, int], Float[np.ndarray, "S Q"]]
"""By method and number of paths: the expected accuracy on each question, for each of S PRMs (1 where none is asked)."""
Measure = Literal["best", "vote", "auroc"]
Scores = Sequence[Float[np.ndarray, " _"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrimination:
    """How well scores tell right from wrong paths of the same question."""

    auroc: Interval | None
    """Mean over the mixed questions, those with both right and wrong paths; None: there is none."""
    pairwise: Interval | None
    """Share of all pairs of a right and a wrong path of the same question that are in order; ties count half."""
    pooled: float | None
    """The AUROC over the paths of all questions together: mostly how hard questions are."""
    num_mixed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Another scorer of the same paths (or a PRM on spoilt evidence, a control), and what the PRM has over it."""

    control: bool
    best: Interval
    """Accuracy of its best path, of N."""
    vote: Interval
    """Accuracy of the vote that it weighs: with its scores where they are probabilities, else with their ranks."""
    auroc: Interval | None
    gains: dict[Measure, Interval]
    """Paired, question by question: the PRM's figure minus its."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All numbers of one set of questions. Accuracies, differences and areas are shares (0..1), not per cent."""

    num_questions: int
    num_paths: int
    """N: paths that every question has."""
    num_scored: int
    """Paths in all, which is more than Q * N where some questions have more."""
    num_prms: int
    """Over so many PRMs, alike but for the seed of their training, figures are means."""
    accuracy: dict[Method, dict[int, Interval]]
    """Per method, per number of paths. What could not be measured (as without noise-free paths) is missing, and at most
    numbers of paths what a PRM chooses that scores them beside each other."""
    sampled: list[int]
    """Numbers of paths whose votes were counted in a seeded sample of the subsets, not in all."""
    differences: dict[Method, dict[Method, Interval]]
    """Paired, at N: ``["best"]["vote"]`` is how much more often best is right than vote, question by question."""
    gap_recovered: dict[Method, dict[int, Interval]]
    """Of the way from the better of vote and noise-free to the oracle; missing where the oracle is no better."""
    gap_from_vote: dict[Method, dict[int, Interval]]
    """Of the way from vote to the oracle."""
    discrimination: Discrimination
    """Of the scores of whole paths."""
    forecasts: dict[str, list[Forecast]]
    """What predicted probabilities are worth, by what they are about, one per PRM."""
    steps: list[Discrimination] = field(default_factory=list)
    """Of the scores after each latent, first to last; a path counts as far as it goes."""
    errors: dict[str, list[Errors]] = field(default_factory=dict)
    """How far scores are from known values, by the kind of path, one per PRM."""
    rivals: dict[str, Rival] = field(default_factory=dict)
    over_question: float | None = None
    """Brier skill over a model that reads the question only; None: none was trained."""
    rules: list[How] = field(default_factory=list)
    """What auto stands for."""
    coverage: dict[str, list[Coverage]] = field(default_factory=dict)
    """What comes out where only the surest answers are given, by how sureness is told; of the first PRM."""
    abstaining: list[Coverage] = field(default_factory=list)
    """What comes out where answers below one of the `predictions.THRESHOLDS` of calibrated probability are not; of the
    first PRM. Both are of all the paths of each question."""

    @property
    def table_sizes(self) -> list[int]:
        """1, 4 and 16 as far as there are paths, and N itself."""
        return table_sizes(self.num_paths)

    @property
    def auroc(self) -> Interval | None:
        """Within questions; None when no question has both right and wrong paths."""
        return self.discrimination.auroc


# --- choice among paths ---------------------------------------------------------------------------------------------


def accuracy_table(
    pools: Sequence[Pool], sizes: Sequence[int], seed: int, fewer: Mapping[int, Sequence[Pool]] | None = None
) -> Table:
    """Every method at every number of paths; ``pools`` hold the same paths, each with another PRM's scores.

    Where a score depends on the paths beside it, ``fewer`` holds by k pools of k paths, scored without the others: a
    choice by such scores is measured on these, and on ``pools`` only where nobody has more than k, or k is 1.
    """
    table: Table = {}
    most = max(map(len, pools[0].values))
    for method in pools[0].methods:
        for k in sizes:
            asked = pools if method in CHOSEN else pools[:1]
            if fewer is not None and method in CHOSEN and 1 < k < most:
                asked = fewer.get(k, [])
            if asked:
                table[method, k] = np.stack([expected_accuracies(p, method, k, seed).per_question for p in asked])
    return table


def compare(
    pools: Pool | Sequence[Pool], num_bootstrap: int = 2000, seed: int = 42, table: Table | None = None
) -> Comparison:
    """Every method at every number of paths, against each other, and how well the scores tell and predict.

    ``pools`` hold the same paths, each with another PRM's scores. ``table`` is their `accuracy_table`, where it is
    known already.
    """
    pools = [pools] if isinstance(pools, Pool) else list(pools)
    pool, n = pools[0], pools[0].num_paths
    sizes = curve_sizes(n)
    table = accuracy_table(pools, sizes, seed) if table is None else table
    methods = pool.methods
    columns: list[tuple[Method, int]] = [(method, k) for method in methods for k in sizes if (method, k) in table]
    draws = resampled_means(np.stack([table[key].mean(0) for key in columns]), num_bootstrap, seed)
    resampled = dict(zip(columns, draws.T, strict=True))
    accuracy: dict[Method, dict[int, Interval]] = {method: {} for method in methods}
    for method, k in columns:
        rows = table[method, k]
        accuracy[method][k] = Interval.of(rows.mean(), resampled[method, k], _spread(rows))
    bases: list[Method] = [rival for rival in RIVALS if rival in methods]
    chosen: list[Method] = [method for method in CHOSEN if method in methods]
    most = max(map(len, pool.values))
    return Comparison(
        num_questions=len(pool),
        num_paths=n,
        num_scored=sum(map(len, pool.values)),
        num_prms=len(pools),
        accuracy=accuracy,
        sampled=[k for k in sizes if comb(most, k) > MOST_SUBSETS],
        differences={
            one: {other: _difference(table, resampled, one, other, n) for other in methods if other != one}
            for one in methods
        },
        gap_recovered=_gaps(table, chosen, bases, table_sizes(n), num_bootstrap, seed),
        gap_from_vote=_gaps(table, chosen, ["vote"], table_sizes(n), num_bootstrap, seed),
        discrimination=discriminate([own.scores for own in pools], pool.correct, num_bootstrap, seed),
        forecasts={"paths": [forecast(np.concatenate(p.scores), np.concatenate(p.correct)) for p in pools]},
    )


def _difference(
    table: Table, resampled: dict[tuple[Method, int], Float[np.ndarray, " b"]], one: Method, other: Method, n: int
) -> Interval:
    apart = table[one, n].mean(1) - table[other, n].mean(1)
    return Interval.of(apart.mean(), resampled[one, n] - resampled[other, n], _deviation(apart))


def _gaps(
    table: Table, chosen: list[Method], bases: list[Method], sizes: list[int], num_bootstrap: int, seed: int
) -> dict[Method, dict[int, Interval]]:
    found: dict[Method, dict[int, Interval]] = {method: {} for method in chosen}
    for k in sizes:
        oracle, starts = table["oracle", k][0], [table[base, k][0] for base in bases]
        for method in chosen:
            whole = gap_recovered(table[method, k].mean(0), oracle, starts, num_bootstrap, seed)
            if whole is not None:
                spread = _deviation(
                    np.array([gap_share(np.stack([own, oracle, *starts]).mean(1)) for own in table[method, k]])
                )
                found[method][k] = Interval(whole.mean, whole.low, whole.high, spread)
    return found


def _spread(rows: Float[np.ndarray, "S Q"]) -> float | None:
    return _deviation(rows.mean(1))


def _deviation(values: Float[np.ndarray, " S"]) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def table_sizes(n: int) -> list[int]:
    """The numbers of paths that a table has a column for: 1, 4 and 16 as far as there are paths, and N itself."""
    return sorted({size for size in TABLE_SIZES if size < n} | {n})


def curve_sizes(n: int) -> list[int]:
    """Where the curve is drawn: every number of paths up to 16, then doubling, and N."""
    doubling = [32 << step for step in range(n.bit_length()) if 32 << step < n]
    return sorted({*range(1, min(n, 16) + 1), *doubling, n})


# --- telling right from wrong ---------------------------------------------------------------------------------------


def discriminate(
    scores: Sequence[Scores], correct: Sequence[Bool[np.ndarray, " _"]], num_bootstrap: int, seed: int
) -> Discrimination:
    """How well each PRM's scores (per question, per path) tell right from wrong paths, on average over the PRMs."""
    areas = np.stack([question_aurocs(own, correct) for own in scores])
    mixed, pairs = ~np.isnan(areas[0]), num_pairs(correct)
    together = [auroc(np.concatenate(own), np.concatenate(correct)) for own in scores]
    known = [area for area in together if area is not None]
    within = pairwise = None
    if mixed.any():
        areas, pairs = areas[:, mixed], pairs[mixed]
        within = bootstrap_interval(areas.mean(0), num_bootstrap, seed)
        within = Interval(within.mean, within.low, within.high, _spread(areas))
        draws = resampled_means(np.stack([areas.mean(0) * pairs, pairs]), num_bootstrap, seed)
        each = areas @ pairs / pairs.sum()
        pairwise = Interval.of(each.mean(), draws[:, 0] / draws[:, 1], _deviation(each))
    return Discrimination(
        auroc=within,
        pairwise=pairwise,
        pooled=sum(known) / len(known) if known else None,
        num_mixed=int(mixed.sum()),
    )


def discriminate_steps(
    steps: Sequence[Sequence[Sequence[Float[np.ndarray, " _"]]]],
    correct: Sequence[Bool[np.ndarray, " _"]],
    num_bootstrap: int,
    seed: int,
) -> list[Discrimination]:
    """The same after each latent: ``steps`` holds, per PRM, question and path, the scores after the chain's latents.

    After the t-th latent those paths count that have one.
    """
    longest = max(len(path) for question in steps[0] for path in question)
    found = []
    for t in range(longest):
        alive = [np.array([len(path) > t for path in question]) for question in steps[0]]
        scores = [[np.array([path[t] for path in question if len(path) > t]) for question in own] for own in steps]
        right = [own[there] for own, there in zip(correct, alive, strict=True)]
        found.append(discriminate(scores, right, num_bootstrap, seed))
    return found


# --- rivals ---------------------------------------------------------------------------------------------------------


def against(pools: Sequence[Pool], others: Sequence[Pool], control: bool, num_bootstrap: int, seed: int) -> Rival:
    """What the PRMs of ``pools`` have over another scorer of the same paths (one, or one per PRM) at all paths."""
    n = pools[0].num_paths

    def accuracy(those: Sequence[Pool], method: Method) -> Float[np.ndarray, "S Q"]:
        return np.stack([expected_accuracies(pool, method, n, seed).per_question for pool in those])

    def areas(those: Sequence[Pool]) -> Float[np.ndarray, "S Q"]:
        found = np.stack([question_aurocs(pool.scores, pool.correct) for pool in those])
        return found[:, ~np.isnan(found[0])]

    ours: dict[Measure, Float[np.ndarray, "S _"]] = {
        "best": accuracy(pools, "best"),
        "vote": accuracy(pools, "weighted_vote"),
        "auroc": areas(pools),
    }
    theirs: dict[Measure, Float[np.ndarray, "S _"]] = {
        "best": accuracy(others, "best"),
        "vote": accuracy(others, "weighted_vote"),
        "auroc": areas(others),
    }
    known: list[Measure] = [name for name, rows in theirs.items() if rows.shape[1]]
    own = {name: bootstrap_interval(theirs[name].mean(0), num_bootstrap, seed) for name in known}
    gains: dict[Measure, Interval] = {}
    for name in known:
        gains[name] = paired_difference(ours[name].mean(0), theirs[name].mean(0), num_bootstrap, seed)
    return Rival(
        control=control,
        best=own["best"],
        vote=own["vote"],
        auroc=own.get("auroc"),
        gains=gains,
    )


def as_probabilities(scores: Scores, ordinal: bool = False) -> list[Float[np.ndarray, " _"]]:
    """The scores themselves where all lie in 0..1, else each one's rank within its question / N (equals share theirs).

    A rank is no probability, but it keeps the order, and is the weight that a vote by such scores can be given.
    ``ordinal`` scores, whose size means nothing wherever they lie, become ranks too.
    """
    if not ordinal and all(((own >= 0) & (own <= 1)).all() for own in scores):
        return list(scores)
    return [weights("rank_vote", [""] * len(own), own) for own in scores]
