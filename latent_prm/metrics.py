"""How good a choice among paths is, measured honestly: exact best-of-k, within-question AUROC, calibration.

This room hides the counting of subsets and the resampling of questions. It knows nothing of trees, models or files:
a `Pool` of plain arrays goes in, numbers come out. Why these numbers and no others: a pooled AUROC mostly measures how
hard a question is, one drawn subset of k paths is a coin toss, and the paths of a question are no independent samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Method = Literal["noise_free", "random", "vote", "best", "weighted_vote", "oracle"]
METHODS: tuple[Method, ...] = ("noise_free", "random", "vote", "best", "weighted_vote", "oracle")
CHOSEN: tuple[Method, ...] = ("best", "weighted_vote")
"""The two methods that listen to the PRM."""
RIVALS: tuple[Method, ...] = ("vote", "noise_free")
"""What a PRM must beat to be worth its cost."""

MOST_SUBSETS = 5_000
"""Votes over k of N paths are taken over every subset up to so many, and over a seeded sample of so many beyond."""

TABLE_SIZES = (1, 4, 16)
_TIE = 1e-9  # Two sums of the same weights in another order differ by rounding: closer than this is a tie.


@dataclass(frozen=True, slots=True)
class Pool:
    """What is chosen from: for each of Q questions the values, correctness and predicted scores of its paths.

    A value is an answer in canonical form, ``""`` for none. Scores are predicted probabilities. ``noise_free`` holds
    1 where the question's noise-free path is right, else 0; None where there are no such paths.
    Raises ValueError when there is no question, a question has no path, or a score is not in 0..1.
    """

    values: list[list[str]]
    correct: list[Bool[np.ndarray, " _"]]
    scores: list[Float[np.ndarray, " _"]]
    noise_free: Float[np.ndarray, " Q"] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("There is no question to measure on. Collect some: latent-prm collect --split test")
        for number, (values, correct, scores) in enumerate(zip(self.values, self.correct, self.scores, strict=True)):
            if not len(values) == len(correct) == len(scores) > 0:
                sizes = f"{len(values)} values, {len(correct)} gradings and {len(scores)} scores"
                raise ValueError(f"Question {number} has {sizes}: there must be one of each per path, and a path.")
            if not ((scores >= 0) & (scores <= 1)).all():
                raise ValueError(f"Question {number} has the scores {scores}, but a probability lies in 0..1.")

    def __len__(self) -> int:
        """Q."""
        return len(self.values)

    @property
    def num_paths(self) -> int:
        """N: the paths that every question has, that is the fewest of any."""
        return min(len(values) for values in self.values)


class Accuracies(NamedTuple):
    """The expected accuracy of a choice among k of a question's paths."""

    per_question: Float[np.ndarray, " Q"]
    exact: bool
    """True: over every subset. False: over a seeded sample of `MOST_SUBSETS` of them."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions and the percentile bootstrap's 95 % interval around it."""

    mean: float
    low: float
    high: float


# --- expected accuracy of a choice among k of N ---------------------------------------------------------------------


def expected_accuracies(pool: Pool, method: Method, k: int, seed: int = 0) -> Accuracies:
    """How often ``method`` is right with k of a question's paths, on average over its subsets of k.

    random, best and oracle are closed forms. Votes are counted in every subset, or in a seeded sample that all
    questions and both votes share. Ties are split evenly. No answer (``""``) is never chosen while there is another.
    Raises ValueError when a question has fewer than k paths, or noise-free paths are asked for and there are none.
    """
    if not 1 <= k <= pool.num_paths:
        raise ValueError(f"k is {k}, but every question has {pool.num_paths} paths: type a number from 1 to that.")
    if method == "noise_free":
        if pool.noise_free is None:
            raise ValueError("Some questions have no noise-free path, so there is no noise_free accuracy.")
        return Accuracies(pool.noise_free, True)
    found = np.empty(len(pool))
    exact = True
    for number, (values, correct, scores) in enumerate(zip(pool.values, pool.correct, pool.scores, strict=True)):
        right, paths = int(correct.sum()), len(correct)
        if method == "random" or right in (0, paths):  # Alike paths: no choice can change anything.
            found[number] = right / paths
        elif method == "oracle":
            found[number] = 1 - comb(paths - right, k) / comb(paths, k)
        elif method == "best":
            found[number] = _best_of_k(values, correct, scores, k)
        else:
            weights = scores if method == "weighted_vote" else np.ones(paths)
            found[number] = _vote_of_k(values, correct, weights, _subsets(paths, k, seed))
            exact &= comb(paths, k) <= MOST_SUBSETS
    return Accuracies(found, exact)


def _best_of_k(values: list[str], correct: Bool[np.ndarray, " N"], scores: Float[np.ndarray, " N"], k: int) -> float:
    """Chance that the best-scored of k paths is right: over the score's levels, best first."""
    _, level = np.unique(np.where(np.array(values) == "", -1.0, scores), return_inverse=True)
    sizes, rights = np.bincount(level).tolist(), np.bincount(level, correct).tolist()
    left, subsets, chance = len(scores), comb(len(scores), k), 0.0
    for size, right in zip(reversed(sizes), reversed(rights), strict=True):
        on_top = comb(left, k) - comb(left - size, k)  # subsets with nothing above and something at this level
        chance += on_top / subsets * (right / size)
        left -= size
    return chance


def _vote_of_k(
    values: list[str],
    correct: Bool[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    members: Float[np.ndarray, "N M"],
) -> float:
    """Chance that a weighted vote is right in one of the M subsets; ``members`` holds 1 where a path takes part."""
    names = sorted(set(values))
    gave = np.array([[name == value for value in values] for name in names], dtype=float)  # [values, N]
    right = gave @ correct / gave.sum(1)
    tally = np.where(gave @ members > 0, (gave * weights) @ members, -2.0)  # what is absent: below all
    if names[0] == "":
        tally[0] = np.minimum(tally[0], -1.0)  # no answer: below every answer, above what is absent
    winners = tally >= tally.max(0) - _TIE
    return float((right @ winners / winners.sum(0)).mean())


@lru_cache(maxsize=128)
def _subsets(paths: int, k: int, seed: int) -> Float[np.ndarray, "N M"]:
    """Which of the paths take part in each subset of k: all subsets when they are few, else a seeded sample."""
    if comb(paths, k) <= MOST_SUBSETS:
        chosen = np.array(list(combinations(range(paths), k)))
    else:
        order = np.random.default_rng((seed, paths, k)).random((MOST_SUBSETS, paths))
        chosen = order.argpartition(k - 1, axis=1)[:, :k]
    members = np.zeros((paths, len(chosen)))
    np.put_along_axis(members, chosen.T, 1.0, axis=0)
    members.setflags(write=False)  # it is cached
    return members


# --- telling right from wrong ---------------------------------------------------------------------------------------


def auroc(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float | None:
    """The chance that a right path is scored above a wrong one, ties counted half; None when there are not both."""
    right, wrong = scores[correct], np.sort(scores[~correct])
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


def within_question_auroc(pool: Pool) -> Float[np.ndarray, " mixed"]:
    """The AUROC of every question with right and wrong paths; the others have none and are left out."""
    each = (auroc(scores, correct) for scores, correct in zip(pool.scores, pool.correct, strict=True))
    return np.array([area for area in each if area is not None], dtype=float)


def pooled_auroc(pool: Pool) -> float | None:
    """The AUROC over the paths of all questions together, which mostly tells easy questions from hard ones."""
    return auroc(np.concatenate(pool.scores), np.concatenate(pool.correct))


def brier(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float:
    """Mean squared distance of prediction and outcome: 0 is perfect, 0.25 is what always saying 1/2 costs."""
    return float(np.mean((scores - correct) ** 2))


@dataclass(frozen=True, slots=True)
class Bin:
    """The paths whose predicted probability falls into one tenth: their mean prediction, share right, and number."""

    predicted: float
    right: float
    count: int


def calibration(
    scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"] | Float[np.ndarray, " N"], bins: int = 10
) -> list[Bin]:
    """The non-empty ones of equally wide bins of the predicted probability, lowest first.

    ``correct`` says of every path whether it is right, or which share of its answers is.
    """
    which = np.minimum((scores * bins).astype(int), bins - 1)
    groups = [which == number for number in range(bins)]
    return [Bin(float(scores[g].mean()), float(correct[g].mean()), int(g.sum())) for g in groups if g.any()]


def calibration_error(bins: list[Bin]) -> float:
    """ECE: the distance of mean prediction and share right, averaged over the bins by their number of paths."""
    return sum(b.count * abs(b.predicted - b.right) for b in bins) / sum(b.count for b in bins)


# --- intervals over questions ---------------------------------------------------------------------------------------


def bootstrap_interval(per_question: Float[np.ndarray, " Q"], num_bootstrap: int, seed: int) -> Interval:
    """The mean over questions and its 95 % interval. For a paired difference, pass the difference per question."""
    return bootstrap_intervals(per_question[None], num_bootstrap, seed)[0]


def bootstrap_intervals(rows: Float[np.ndarray, "M Q"], num_bootstrap: int, seed: int) -> list[Interval]:
    """One interval per row, all from the same seeded resamplings of the questions."""
    means = np.concatenate([share @ rows.T for share in _resamplings(rows.shape[1], num_bootstrap, seed)])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return [Interval(*map(float, triple)) for triple in zip(rows.mean(1), low, high, strict=True)]


def _resamplings(questions: int, num_bootstrap: int, seed: int) -> Iterator[Float[np.ndarray, "b Q"]]:
    """The share that each question has in a resampling, in chunks that stay small in memory."""
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // questions)
    for start in range(0, num_bootstrap, chunk):
        size = min(chunk, num_bootstrap - start)
        drawn = rng.integers(questions, size=(size, questions)) + questions * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * questions).reshape(size, questions) / questions


# --- everything about one pool --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All numbers of one pool. Accuracies, differences and areas are shares (0..1), not per cent."""

    num_questions: int
    num_paths: int
    """N: paths that every question has."""
    num_scored: int
    """Paths in all, which is more than Q * N where some questions have more."""
    accuracy: dict[Method, dict[int, Interval]]
    """Per method, per number of paths. Without noise-free paths their row is missing."""
    sampled: list[int]
    """Numbers of paths whose votes were counted in a seeded sample of the subsets, not in all."""
    differences: dict[Method, dict[Method, Interval]]
    """Paired, at N: ``["best"]["vote"]`` is how much more often best is right than vote, question by question."""
    gap_recovered: dict[Method, float | None]
    """Of the way from the better of vote and noise-free to the oracle, at N; None where the oracle is no better."""
    auroc: Interval | None
    """Within questions; None when no question has both right and wrong paths."""
    num_mixed: int
    """Questions with both."""
    pooled_auroc: float | None
    brier: float
    calibration_error: float
    bins: list[Bin]

    @property
    def table_sizes(self) -> list[int]:
        """1, 4 and 16 as far as there are paths, and N itself."""
        return sorted({size for size in TABLE_SIZES if size < self.num_paths} | {self.num_paths})


def compare(pool: Pool, num_bootstrap: int = 2000, seed: int = 42) -> Comparison:
    """Every method at every number of paths, the PRM's against its rivals, and how well its scores tell and predict."""
    n = pool.num_paths
    methods: list[Method] = [method for method in METHODS if method != "noise_free" or pool.noise_free is not None]
    sizes = _curve_sizes(n)
    found = {(method, k): expected_accuracies(pool, method, k, seed) for method in methods for k in sizes}
    rows = np.stack([accuracies.per_question for accuracies in found.values()])
    intervals = dict(zip(found, bootstrap_intervals(rows, num_bootstrap, seed), strict=True))
    at_n: dict[Method, Float[np.ndarray, " Q"]] = {method: found[method, n].per_question for method in methods}
    rivals: list[Method] = [method for method in RIVALS if method in at_n]
    areas = within_question_auroc(pool)
    scores, correct = np.concatenate(pool.scores), np.concatenate(pool.correct)
    bins = calibration(scores, correct)
    return Comparison(
        num_questions=len(pool),
        num_paths=n,
        num_scored=len(scores),
        accuracy={method: {k: intervals[method, k] for k in sizes} for method in methods},
        sampled=[k for k in sizes if not all(found[method, k].exact for method in ("vote", "weighted_vote"))],
        differences={
            chosen: {rival: bootstrap_interval(at_n[chosen] - at_n[rival], num_bootstrap, seed) for rival in rivals}
            for chosen in CHOSEN
        },
        gap_recovered={method: gap_recovered(at_n, method) for method in CHOSEN},
        auroc=bootstrap_interval(areas, num_bootstrap, seed) if len(areas) else None,
        num_mixed=len(areas),
        pooled_auroc=pooled_auroc(pool),
        brier=brier(scores, correct),
        calibration_error=calibration_error(bins),
        bins=bins,
    )


def gap_recovered(at_n: dict[Method, Float[np.ndarray, " Q"]], method: Method) -> float | None:
    """(method - b) / (oracle - b), b the better of vote and noise-free; None where the oracle is no better than b."""
    accuracy = {name: float(per_question.mean()) for name, per_question in at_n.items()}
    base = max(accuracy["vote"], accuracy.get("noise_free", 0.0))
    room = accuracy["oracle"] - base
    return (accuracy[method] - base) / room if room > _TIE else None


def _curve_sizes(n: int) -> list[int]:
    """Where the curve is drawn: every number of paths up to 16, then doubling, and N."""
    doubling = [32 << step for step in range(n.bit_length()) if 32 << step < n]
    return sorted({*range(1, min(n, 16) + 1), *doubling, n})
