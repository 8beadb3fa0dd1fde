"""The numbers of predictions.py, worked by hand or held against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from latent_prm.predictions import (
    Bin,
    abstaining,
    brier,
    calibration,
    calibration_error,
    coverage_curve,
    errors,
    forecast,
    skill,
)


def test_brier_and_calibration_are_as_worked_by_hand() -> None:
    scores, correct = np.array([0.1, 0.15, 0.95, 1.0]), np.array([False, True, True, True])
    assert brier(scores, correct) == pytest.approx((0.01 + 0.7225 + 0.0025 + 0) / 4)
    bins = calibration(scores, correct)
    assert [(b.right, b.count) for b in bins] == [(0.5, 2), (1.0, 2)]
    assert [b.predicted for b in bins] == pytest.approx([0.125, 0.975])
    assert calibration_error(bins) == pytest.approx((2 * 0.375 + 2 * 0.025) / 4)


def test_calibration_takes_shares_of_right_answers_too() -> None:
    (low, high) = calibration(np.array([0.2, 0.25, 0.9]), np.array([0.0, 0.5, 0.75]))
    assert (low.predicted, low.right, low.count) == (pytest.approx(0.225), 0.25, 2)
    assert calibration_error([low, high]) == pytest.approx((2 * 0.025 + 0.15) / 3)


def test_the_parts_of_brier_are_as_worked_by_hand() -> None:
    # Two bins: 0.2 said of four paths of which one is right, 0.8 of four of which all are. Overall 5/8 are right.
    found = forecast(np.array([0.2] * 4 + [0.8] * 4), np.array([True] + [False] * 3 + [True] * 4))
    assert found.reliability == pytest.approx((0.05**2 + 0.2**2) / 2)
    assert found.resolution == pytest.approx((0.375**2 + 0.375**2) / 2)
    assert found.uncertainty == pytest.approx(5 / 8 * 3 / 8)
    assert found.brier == pytest.approx((0.8**2 + 3 * 0.2**2 + 4 * 0.2**2) / 8)
    assert found.within == pytest.approx(0)  # within a bin all predictions are alike
    assert found.skill == pytest.approx(1 - found.brier / (15 / 64))
    assert found.calibration_error == pytest.approx((0.05 + 0.2) / 2)


def test_the_parts_add_up_to_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    correct = rng.random(500) < scores**2
    found = forecast(scores, correct)
    assert found.brier == pytest.approx(brier_score_loss(correct, scores))
    assert found.reliability - found.resolution + found.uncertainty + found.within == pytest.approx(found.brier)
    assert abs(found.within) < 0.005
    right, predicted = calibration_curve(correct, scores, n_bins=10)
    assert [b.right for b in found.bins] == pytest.approx(right.tolist())
    assert [b.predicted for b in found.bins] == pytest.approx(predicted.tolist())
    assert sum(b.count for b in found.bins) == found.count == 500


def test_skill_is_the_share_of_a_reference_s_loss_that_is_saved() -> None:
    assert skill(0.1, 0.2) == pytest.approx(0.5)
    assert skill(0.3, 0.2) == pytest.approx(-0.5)
    assert skill(0.1, 0.0) is None
    assert forecast(np.array([0.9, 0.8]), np.array([True, True])).skill is None


def test_errors_are_as_worked_by_hand() -> None:
    predicted, value = np.array([0.5, 0.25, 1.0, 0.0]), np.array([0.5, 0.75, 0.75, 0.0])
    found = errors(predicted, value, np.array([4, 4, 4, 4]), np.array([7, 7, 9, 9]))
    assert (found.count, found.answers) == (4, 4)
    assert found.mse == pytest.approx((0 + 0.25 + 0.0625 + 0) / 4)
    assert found.mae == pytest.approx((0 + 0.5 + 0.25 + 0) / 4)
    # v (1 - v) / M, without bias by k/M (1 - k/M) / (M - 1)
    assert found.noise_floor == pytest.approx((0.25 + 0.1875 + 0.1875 + 0) / 3 / 4)
    assert found.spearman == pytest.approx(spearmanr(predicted, value)[0])
    assert found.spearman_within == pytest.approx((-1 + 1) / 2)  # the first question's order is wrong


def test_the_noise_floor_is_the_error_of_a_perfect_prediction() -> None:
    rng = np.random.default_rng(1)
    true = rng.random(40_000)
    value = rng.binomial(3, true) / 3
    found = errors(true, value, np.full(40_000, 3), np.zeros(40_000, dtype=int))
    assert found.noise_floor == pytest.approx(float((true * (1 - true) / 3).mean()), abs=0.001)
    assert found.mse == pytest.approx(found.noise_floor, abs=0.001)


def test_what_cannot_be_known_of_values_is_none() -> None:
    found = errors(np.array([0.4, 0.6]), np.array([1.0, 0.0]), np.array([1, 4]), np.array([0, 1]))
    assert found.noise_floor is None  # of a single answer
    assert found.spearman == pytest.approx(-1) and found.spearman_within is None
    assert errors(np.full(3, 0.5), np.array([0.0, 0.5, 1.0]), np.full(3, 2), np.zeros(3, int)).spearman is None


def test_abstaining_is_as_worked_by_hand() -> None:
    probability, right = np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, True, False, False])
    assert abstaining(probability, right, 0.85) == (0.85, 0.25, 1.0)
    assert abstaining(probability, right, 0.8) == (0.8, 0.75, pytest.approx(2 / 3))
    assert abstaining(probability, right, 0.0) == (0.0, 1.0, 0.5)
    assert abstaining(probability, right, 0.95) == (0.95, 0.0, None)
    curve = coverage_curve(probability, right)
    assert [(point.coverage, point.accuracy) for point in curve] == [
        (0.25, 1.0),
        (0.75, pytest.approx(2 / 3)),  # equals are answered together
        (1.0, 0.5),
    ]
    assert len(coverage_curve(np.linspace(0, 1, 5000), np.ones(5000, dtype=bool), points=50)) == 50


def test_where_there_is_no_answer_none_is_given() -> None:
    sure, right = np.array([np.nan, 0.9, 0.0, np.nan]), np.array([False, True, False, False])
    assert abstaining(sure, right, 0.0) == (0.0, 0.5, 0.5)
    assert [(point.coverage, point.accuracy) for point in coverage_curve(sure, right)] == [(0.25, 1.0), (0.5, 0.5)]
    assert coverage_curve(sure[[0, 3]], right[[0, 3]]) == []


def test_a_bin_s_error_weighs_as_many_paths_as_it_holds() -> None:
    assert calibration_error([Bin(0.1, 0.2, 3), Bin(0.9, 0.5, 1)]) == pytest.approx((3 * 0.1 + 0.4) / 4)
