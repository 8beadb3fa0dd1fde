"""How good a choice among paths is, measured honestly: exact best-of-k and vote@k, within-question AUROC, intervals.

This room hides the counting of subsets and the resampling of questions. It knows nothing of trees, models or files:
a `Pool` of plain arrays goes in, numbers come out. Why these numbers and no others: a pooled AUROC mostly measures how
hard a question is, one drawn subset of k paths is a coin toss, and the paths of a question are no independent samples.
Predicted probabilities as such are measured in `predictions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from latent_prm.selector import HOWS, How, weights

Method = How | Literal["noise_free", "random", "auto", "oracle"]
_LISTENING: tuple[How, ...] = tuple(how for how in HOWS if how != "vote")
METHODS: tuple[Method, ...] = ("noise_free", "random", "vote", *_LISTENING, "auto", "oracle")
CHOSEN: tuple[Method, ...] = (*_LISTENING, "auto")
"""The methods that listen to the PRM. auto is whichever rule was best on other questions."""
RIVALS: tuple[Method, ...] = ("vote", "noise_free")
"""What a PRM must beat to be worth its cost."""

MOST_SUBSETS = 13_000
"""Votes over k of N paths are taken over every subset up to so many (all there are of 16), else a seeded sample."""

_TIE = 1e-9  # Two sums of the same weights in another order differ by rounding: closer than this is a tie.


@dataclass(frozen=True, slots=True)
class Pool:
    """What is chosen from: for each of Q questions the values, correctness and predicted scores of its paths.

    A value is an answer in canonical form, ``""`` for none. Scores are predicted probabilities. ``noise_free`` holds
    1 where the question's noise-free path is right, else 0, and nan where it is not known; None: of no question it is.
    ``lower`` holds a lower bound of every score, and ``auto`` the rule that other questions recommend for each; None:
    not known.
    Raises ValueError when there is no question, a question has no path, or a score is not in 0..1.
    """

    values: list[list[str]]
    correct: list[Bool[np.ndarray, " _"]]
    scores: list[Float[np.ndarray, " _"]]
    noise_free: Float[np.ndarray, " Q"] | None = None
    lower: list[Float[np.ndarray, " _"]] | None = None
    auto: list[How] | None = None

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

    @property
    def methods(self) -> list[Method]:
        """The methods that can be measured on it."""
        known = self.noise_free is not None and not np.isnan(self.noise_free).any()
        missing: dict[Method, object] = {"noise_free": known or None, "conservative": self.lower, "auto": self.auto}
        return [method for method in METHODS if method not in missing or missing[method] is not None]

    def take(self, questions: Sequence[int]) -> Pool:
        """Some of the questions."""
        return Pool(
            values=[self.values[q] for q in questions],
            correct=[self.correct[q] for q in questions],
            scores=[self.scores[q] for q in questions],
            noise_free=None if self.noise_free is None else self.noise_free[list(questions)],
            lower=None if self.lower is None else [self.lower[q] for q in questions],
            auto=None if self.auto is None else [self.auto[q] for q in questions],
        )

    def scored(self, scores: list[Float[np.ndarray, " _"]]) -> Pool:
        """The same paths with other scores, of which neither a lower bound nor the best rule is known."""
        return replace(self, scores=scores, lower=None, auto=None)


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
    spread: float | None = None
    """Standard deviation over PRMs that were trained alike but for the seed, whose mean this is; None: there is one."""

    @classmethod
    def of(cls, mean: float, resampled: Float[np.ndarray, " b"], spread: float | None = None) -> Interval:
        """Around ``mean``, from what was found in each resampling; where that is nan it is passed over."""
        known = resampled[~np.isnan(resampled)]
        low, high = np.quantile(known if len(known) else [mean], (0.025, 0.975))
        return cls(float(mean), float(low), float(high), spread)

    def per_cent(self, sign: str = "", digits: int = 1) -> str:
        """``43.1 [40.0, 46.2]``, with the spread behind it where there is one."""
        spread = "" if self.spread is None else f" ±{rounded(100 * self.spread, digits)}"
        mean, low, high = (rounded(100 * share, digits, sign) for share in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]{spread}"


def rounded(value: float, digits: int = 1, sign: str = "") -> str:
    """A number as it is read: rounded, and never "-0.0". Equal ones are read alike, whatever way they were added up."""
    return format(round(round(value, 9), digits) + 0.0, f"{sign}.{digits}f")


# --- expected accuracy of a choice among k of N ---------------------------------------------------------------------


def expected_accuracies(pool: Pool, method: Method, k: int, seed: int = 0) -> Accuracies:
    """How often ``method`` is right with k of a question's paths, on average over its subsets of k.

    random, best and oracle are closed forms. Votes are counted in every subset, or in a seeded sample that all
    questions and all votes share; what a vote weighs is known from the subset alone. Ties are split evenly. No answer
    (``""``) is never chosen while there is another.
    Raises ValueError when a question has fewer than k paths, or the pool lacks what the method needs.
    """
    if not 1 <= k <= pool.num_paths:
        raise ValueError(f"k is {k}, but every question has {pool.num_paths} paths: type a number from 1 to that.")
    if method == "noise_free":
        if pool.noise_free is None or np.isnan(pool.noise_free).any():
            raise ValueError("Some questions have no noise-free path, so there is no noise_free accuracy.")
        return Accuracies(pool.noise_free, True)
    if method not in pool.methods:
        lacks = {"auto": "the rule that other questions recommend", "conservative": "a lower bound of every score"}
        raise ValueError(f"The pool lacks {lacks.get(method, 'what it takes')}, so there is no {method} accuracy.")
    found = np.empty(len(pool))
    exact = True
    for number, (values, correct, scores) in enumerate(zip(pool.values, pool.correct, pool.scores, strict=True)):
        right, paths = int(correct.sum()), len(correct)
        rule = pool.auto[number] if method == "auto" and pool.auto else method
        if rule == "random" or right in (0, paths):  # Alike paths: no choice can change anything.
            found[number] = right / paths
        elif rule == "oracle":
            found[number] = 1 - comb(paths - right, k) / comb(paths, k)
        elif rule == "best":
            found[number] = _best_of_k(values, correct, scores, k)
        else:
            assert rule != "auto"  # it was looked up
            lower = pool.lower[number] if pool.lower else None
            found[number] = _vote_of_k(rule, values, correct, scores, lower, _subsets(paths, k, seed))
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
    how: How,
    values: list[str],
    correct: Bool[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    lower: Float[np.ndarray, " N"] | None,
    members: Float[np.ndarray, "N M"],
) -> float:
    """Chance that a vote is right in one of the M subsets; ``members`` holds 1 where a path takes part."""
    names = sorted(set(values))
    gave = np.array([[name == value for value in values] for name in names], dtype=float)  # [values, N]
    right = gave @ correct / gave.sum(1)
    votes = gave @ members
    if how == "agreement":  # p times the share of the subset's paths with the same value
        tally = votes * ((gave * scores) @ members)
    elif how == "rank_vote":  # ranks in the subset: those below, half of one's equals, and 1/2
        not_above = (scores[None] < scores[:, None]) + (scores[None] == scores[:, None]) / 2
        tally = gave @ ((not_above @ members + 0.5) * members)
    else:
        tally = (gave * weights(how, values, scores, lower)) @ members
    whole = tally.sum(0)
    tally = tally / np.where(whole > 0, whole, 1.0)  # as shares, so that a tie is one for the selector too
    tally = np.where(votes > 0, tally, -2.0)  # what is absent: below all
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


def of_rules(pool: Pool) -> dict[How, Float[np.ndarray, " Q"]]:
    """How often each rule that can be measured is right with all the paths of each question, few or many."""
    found: dict[How, Float[np.ndarray, " Q"]] = {how: np.empty(len(pool)) for how in HOWS if how in pool.methods}
    counts = [len(values) for values in pool.values]
    for count in set(counts):
        which = [q for q, own in enumerate(counts) if own == count]
        alike = pool.take(which)
        for how, right in found.items():
            right[which] = expected_accuracies(alike, how, count).per_question
    return found


# --- telling right from wrong ---------------------------------------------------------------------------------------


def auroc(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float | None:
    """The chance that a right path is scored above a wrong one, ties counted half; None when there are not both.

    As scikit-learn's ``roc_auc_score``, a thousand times as fast on a question's few paths.
    """
    right, wrong = scores[correct], np.sort(scores[~correct])
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


def question_aurocs(
    scores: Sequence[Float[np.ndarray, " _"]], correct: Sequence[Bool[np.ndarray, " _"]]
) -> Float[np.ndarray, " Q"]:
    """The AUROC of every question; nan where it has not both right and wrong paths."""
    each = (auroc(own, right) for own, right in zip(scores, correct, strict=True))
    return np.array([np.nan if area is None else area for area in each], dtype=float)


def num_pairs(correct: Sequence[Bool[np.ndarray, " _"]]) -> Float[np.ndarray, " Q"]:
    """Of each question, how many pairs of a right and a wrong path it has.

    The pairwise accuracy is the mean of the questions' AUROCs where every one weighs as many pairs as it has.
    """
    return np.array([right.sum() * (~right).sum() for right in correct], dtype=float)


# --- intervals over questions ---------------------------------------------------------------------------------------


def bootstrap_interval(per_question: Float[np.ndarray, " Q"], num_bootstrap: int, seed: int) -> Interval:
    """The mean over questions and its 95 % interval."""
    return bootstrap_intervals(per_question[None], num_bootstrap, seed)[0]


def bootstrap_intervals(rows: Float[np.ndarray, "M Q"], num_bootstrap: int, seed: int) -> list[Interval]:
    """One interval per row, all from the same seeded resamplings of the questions."""
    means = resampled_means(rows, num_bootstrap, seed)
    return [Interval.of(mean, draws) for mean, draws in zip(rows.mean(1).tolist(), means.T, strict=True)]


def paired_difference(
    one: Float[np.ndarray, " Q"], other: Float[np.ndarray, " Q"], num_bootstrap: int = 2000, seed: int = 42
) -> Interval:
    """How much higher ``one`` is than ``other``, question by question: any two methods on the same questions."""
    return bootstrap_interval(one - other, num_bootstrap, seed)


def gap_recovered(
    method: Float[np.ndarray, " Q"],
    oracle: Float[np.ndarray, " Q"],
    bases: Sequence[Float[np.ndarray, " Q"]],
    num_bootstrap: int = 2000,
    seed: int = 42,
) -> Interval | None:
    """Of the way from the best of ``bases`` to the oracle, the share that ``method`` goes; all as right per question.

    A ratio of means, both resampled over questions, the base being in each resampling whichever is best there (a
    resampling without a way to go is passed over). None where the oracle is no better than the base.
    """
    rows = np.stack([method, oracle, *bases])
    share = float(gap_share(rows.mean(1)))
    return None if np.isnan(share) else Interval.of(share, gap_share(resampled_means(rows, num_bootstrap, seed)))


def gap_share(means: Float[np.ndarray, "*b M"]) -> Float[np.ndarray, "*b"]:
    """The share of the gap that `gap_recovered` is about, from the means of method, oracle and bases; nan: no gap."""
    base = means[..., 2:].max(-1)
    room = means[..., 1] - base
    return np.where(room > _TIE, (means[..., 0] - base) / np.where(room > _TIE, room, 1.0), np.nan)


def resampled_means(rows: Float[np.ndarray, "M Q"], num_bootstrap: int, seed: int) -> Float[np.ndarray, "b M"]:
    """The mean of every row in each of the seeded resamplings of the questions."""
    return np.concatenate([share @ rows.T for share in _resamplings(rows.shape[1], num_bootstrap, seed)])


def _resamplings(questions: int, num_bootstrap: int, seed: int) -> Iterator[Float[np.ndarray, "b Q"]]:
    """The share that each question has in a resampling, in chunks that stay small in memory."""
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // questions)
    for start in range(0, num_bootstrap, chunk):
        size = min(chunk, num_bootstrap - start)
        drawn = rng.integers(questions, size=(size, questions)) + questions * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * questions).reshape(size, questions) / questions
