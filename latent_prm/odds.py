"""A probability told from a few numbers: logistic regression, fitted by scikit-learn, kept and applied as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """A logistic regression on standardised features."""

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    def __call__(self, features: Float[np.ndarray, " F"]) -> float:
        """The probability of what was fitted."""
        standard = (features - np.array(self.means)) / np.array(self.scales)
        return float(sigmoid(standard @ np.array(self.weights) + self.intercept))


def fit_odds(
    rows: Sequence[Float[np.ndarray, " F"]], true: Sequence[bool], weight: Sequence[float], num_features: int
) -> Odds:
    """The regression that rows, each counting with its weight, teach. Without any row nothing is ever likely."""
    from sklearn.preprocessing import StandardScaler

    table = np.array(rows).reshape(-1, num_features)
    if not len(table):
        table, true, weight = np.zeros((1, num_features)), [False], [1.0]
    scaler = StandardScaler().fit(table)
    weights, intercept = logistic(np.asarray(scaler.transform(table)), np.array(true), np.array(weight))
    means, scales = np.asarray(scaler.mean_).tolist(), np.asarray(scaler.scale_).tolist()
    return Odds(means=tuple(means), scales=tuple(scales), weights=weights, intercept=intercept)


def logistic(
    table: Float[np.ndarray, "M F"], true: Bool[np.ndarray, " M"], weight: Float[np.ndarray, " M"]
) -> tuple[tuple[float, ...], float]:
    """Weights and intercept. Where all rows came out alike: no weights, and Laplace's rule of succession."""
    if len(set(true.tolist())) < 2:
        return (0.0,) * table.shape[1], math.log((true.sum() + 1) / ((~true).sum() + 1))
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(max_iter=1000).fit(table, true, sample_weight=weight)
    return tuple(found.coef_[0].tolist()), float(found.intercept_[0])


def log_odds(scores: Float[np.ndarray, "*shape"], least: float) -> Float[np.ndarray, "*shape"]:
    """log(p / (1 - p)); what is nearer to 0 or 1 than ``least`` counts as that near."""
    p = np.clip(np.asarray(scores, dtype=float), least, 1 - least)
    return np.log(p) - np.log1p(-p)


def sigmoid(odds: Any) -> Any:
    """1 / (1 + exp(-odds)), which never overflows."""
    return 0.5 * (1 + np.tanh(odds / 2))
