"""How good predicted probabilities are: Brier and its parts, calibration, distance to known values, abstaining.

This room hides the binning and the noise of labels. It knows nothing of trees, models or files: plain arrays go in,
numbers come out. Which path a prediction would make one choose is measured in `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities below which one may want no answer."""


def brier(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float:
    """Mean squared distance of prediction and outcome: 0 is perfect, 0.25 is what always saying 1/2 costs."""
    return float(np.mean((scores - correct) ** 2))


def skill(loss: float, reference: float) -> float | None:
    """What share of the reference prediction's loss is saved: 1 is perfect, below 0 worse; None where it has none."""
    return 1 - loss / reference if reference > 0 else None


# --- calibration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """What was predicted within one tenth of probability: the mean prediction, the share right, and how many."""

    predicted: float
    right: float
    count: int


def calibration(
    scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"] | Float[np.ndarray, " N"], bins: int = 10
) -> list[Bin]:
    """The reliability curve: the non-empty ones of equally wide bins of the predicted probability, lowest first.

    ``correct`` says of every path whether it is right, or which share of its answers is.
    """
    which = np.minimum((scores * bins).astype(int), bins - 1)
    groups = [which == number for number in range(bins)]
    return [Bin(float(scores[g].mean()), float(correct[g].mean()), int(g.sum())) for g in groups if g.any()]


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the distance of mean prediction and share right, averaged over the bins by their number of paths."""
    return sum(b.count * abs(b.predicted - b.right) for b in bins) / sum(b.count for b in bins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How good N predicted probabilities of being right are. brier = reliability - resolution + uncertainty + within.

    Murphy's parts (1973), over the bins.
    """

    count: int
    brier: float
    reliability: float
    """Mean squared distance of prediction and share right: what calibration would save."""
    resolution: float
    """How far the shares right of the bins lie apart: what the predictions know."""
    uncertainty: float
    """The Brier score of always saying the share right of all."""
    within: float
    """What is left, because predictions differ within a bin."""
    skill: float | None
    """Share of ``uncertainty`` that is saved; None where all or none were right."""
    calibration_error: float
    bins: list[Bin]


def forecast(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], bins: int = 10) -> Forecast:
    """What predicted probabilities are worth, given what came out."""
    found = calibration(scores, correct, bins)
    share = np.array([b.count for b in found]) / len(scores)
    predicted, right = (np.array([getattr(b, name) for b in found]) for name in ("predicted", "right"))
    rate, whole = float(correct.mean()), brier(scores, correct)
    reliability, resolution = float(share @ (predicted - right) ** 2), float(share @ (right - rate) ** 2)
    uncertainty = rate * (1 - rate)
    return Forecast(
        count=len(scores),
        brier=whole,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within=whole - (reliability - resolution + uncertainty),
        skill=skill(whole, uncertainty),
        calibration_error=calibration_error(found),
        bins=found,
    )


# --- distance to known values -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far predicted scores are from values, each known from k right ones of M answers."""

    count: int
    answers: float
    """M, the mean over the paths."""
    mse: float
    mae: float
    noise_floor: float | None
    """What a perfect prediction's mse would be, v (1 - v) / M on average; None where a value has only one answer."""
    spearman: float | None
    """Rank correlation over all paths, which mostly tells easy questions from hard ones; None: one of them is constant.
    """
    spearman_within: float | None
    """Its mean over the questions where neither predictions nor values are constant."""


def errors(
    predicted: Float[np.ndarray, " P"],
    value: Float[np.ndarray, " P"],
    answers: Int[np.ndarray, " P"],
    question: Int[np.ndarray, " P"],
) -> Errors:
    """Of P paths: their predicted scores, their values (k / M), the number M of answers behind each, and the question
    that each belongs to.

    As v is not known, v (1 - v) / M is estimated without bias by k/M (1 - k/M) / (M - 1), for independent answers.
    """
    own = [question == number for number in np.unique(question)]
    within = [found for which in own if (found := _spearman(predicted[which], value[which])) is not None]
    return Errors(
        count=len(predicted),
        answers=float(answers.mean()),
        mse=float(np.mean((predicted - value) ** 2)),
        mae=float(np.mean(abs(predicted - value))),
        noise_floor=float(np.mean(value * (1 - value) / (answers - 1))) if (answers > 1).all() else None,
        spearman=_spearman(predicted, value),
        spearman_within=float(np.mean(within)) if within else None,
    )


def _spearman(one: Float[np.ndarray, " P"], other: Float[np.ndarray, " P"]) -> float | None:
    from scipy.stats import spearmanr  # half a second, for those who ask

    if len(one) < 2 or not np.ptp(one) > 0 or not np.ptp(other) > 0:
        return None
    return float(np.asarray(spearmanr(one, other))[0])


# --- abstaining -----------------------------------------------------------------------------------------------------


class Coverage(NamedTuple):
    """What comes out where only answers at least so probable are given."""

    threshold: float
    coverage: float
    """Share of the questions that are answered."""
    accuracy: float | None
    """Share of the answers given that are right; None where none is given."""


def coverage_curve(
    probability: Float[np.ndarray, " Q"], right: Bool[np.ndarray, " Q"], points: int = 100
) -> list[Coverage]:
    """Accuracy against coverage, from about 1 / ``points`` of the questions to all, the surest first.

    Equally probable answers are given or withheld together. Without any answer there is no curve.
    """
    order = np.sort(probability[~np.isnan(probability)])[::-1]
    wanted = np.unique(np.ceil(np.arange(1, points + 1) / points * len(order)).astype(int)) if len(order) else []
    thresholds = sorted({float(order[count - 1]) for count in wanted}, reverse=True)
    return [abstaining(probability, right, threshold) for threshold in thresholds]


def abstaining(probability: Float[np.ndarray, " Q"], right: Bool[np.ndarray, " Q"], threshold: float) -> Coverage:
    """What comes out where an answer less probable than ``threshold`` is withheld; nan: there is none to give."""
    given = probability >= threshold
    return Coverage(threshold, float(given.mean()), float(right[given].mean()) if given.any() else None)
