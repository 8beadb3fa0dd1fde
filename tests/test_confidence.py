"""Calibrated probabilities: a known law is found again, a file keeps every number, and a foreign one is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latent_prm import confidence as calibrations
from latent_prm.confidence import Confidence, Isotonic, Platt, abstains, features, fit
from latent_prm.files import BadFile
from latent_prm.metrics import Pool
from latent_prm.odds import Odds
from latent_prm.predictions import brier, calibration, calibration_error
from latent_prm.selector import Choice, How


def overconfident(questions: int, seed: int, paths: int = 8) -> Pool:
    """Paths that are right with the probability p of their question's ease, scored with twice the log-odds of p."""
    rng = np.random.default_rng(seed)
    values, correct, scores = [], [], []
    for _ in range(questions):
        odds = rng.normal() + 0.7 * rng.normal(size=paths)
        right = rng.random(paths) < sigmoid(odds)
        values.append([("7" if one else str(rng.integers(100, 104))) for one in right])
        correct.append(right)
        scores.append(sigmoid(2 * odds))
    return Pool(values, correct, scores)


def sigmoid(odds):
    return 1 / (1 + np.exp(-odds))


def outcomes(confidence: Confidence, pool: Pool, how: How) -> tuple[np.ndarray, np.ndarray]:
    """Of every question, the probability of the answer that is chosen, and whether it is right."""
    chosen = [confidence.choose(*each, how) for each in zip(pool.values, pool.scores, strict=True)]
    right = [bool(correct[choice.index]) for correct, choice in zip(pool.correct, chosen, strict=True)]
    return np.array([choice.probability for choice in chosen]), np.array(right)


@pytest.fixture(scope="module")
def fitted() -> Confidence:
    return fit(overconfident(800, seed=0))


def test_overconfident_path_scores_are_put_right(fitted: Confidence):
    pool = overconfident(400, seed=1)
    scores, right = np.concatenate(pool.scores), np.concatenate(pool.correct)
    assert calibration_error(calibration(scores, right)) > 0.08
    assert calibration_error(calibration(fitted.path(scores), right)) < 0.04
    assert brier(fitted.path(scores), right) < brier(scores, right) - 0.005


def test_with_few_questions_two_numbers_are_fitted_and_they_are_the_law_s():
    found = calibrations.fit_paths(overconfident(99, seed=2, paths=64))
    assert isinstance(found, Platt)
    assert (found.slope, found.intercept) == (pytest.approx(0.5, abs=0.05), pytest.approx(0, abs=0.1))


def test_a_law_that_no_sigmoid_follows_is_fitted_by_a_rising_line():
    rng = np.random.default_rng(0)
    scores = rng.random((200, 8))
    right = rng.random((200, 8)) < np.where(scores < 0.5, 0.2, 0.7)  # a step
    pool = Pool([["7"] * 8] * 200, list(right), list(scores))
    found = calibrations.fit_paths(pool)
    assert isinstance(found, Isotonic)
    assert found(np.array([0.1, 0.4, 0.6, 0.9])) == pytest.approx([0.2, 0.2, 0.7, 0.7], abs=0.1)
    assert 0 < found.rates[0] < found.rates[-1] < 1, "nothing is certain"


def test_features_are_as_worked_by_hand():
    """Of three paths two say 7, with 0.2 and 0.6; the third has 0.8."""
    found = features(["7", "9", "7"], [0.2, 0.8, 0.6], "7")
    size, best, mean = math.log(3), math.log(0.6 / 0.4), math.log(0.4 / 0.6)
    assert found == pytest.approx([0.8 / 1.6, 2 / 3, best, mean, size, size * 2 / 3, size * mean])
    assert np.isfinite(features(["7", "9"], [0.0, 0.0], "7")).all()


def test_an_answer_s_odds_are_a_standardised_sum():
    odds = Odds(means=(1.0,) * 7, scales=(2.0,) * 7, weights=(1.0, 0, 0, 0, 0, 0, 0.5), intercept=-1.0)
    assert odds(np.array([3.0, 9, 9, 9, 9, 9, 5.0])) == pytest.approx(sigmoid(1 + 1 - 1))


@pytest.mark.parametrize("how", ["best", "vote", "weighted_vote", "rank_vote"])
def test_the_probability_of_an_answer_holds_on_questions_apart(fitted: Confidence, how):
    probability, right = outcomes(fitted, overconfident(1500, seed=3), how)
    assert calibration_error(calibration(probability, right)) < 0.05
    assert brier(probability, right) < right.var() - 0.01  # better than always saying how often it is right


def test_fewer_paths_are_worth_less(fitted: Confidence):
    probability, right = outcomes(fitted, overconfident(1500, seed=4, paths=2), "weighted_vote")
    assert probability.mean() == pytest.approx(right.mean(), abs=0.05)
    many = outcomes(fitted, overconfident(1500, seed=4), "weighted_vote")[0]
    assert probability.mean() < many.mean() - 0.1


def test_the_rule_that_is_right_most_often_is_picked_and_the_doubt_is_said():
    """In half of the questions the one right path has the best score, but two agree on what is wrong."""
    hard, easy = (["7", "9", "9"], [0.5, 0.3, 0.3]), (["7", "7", "9"], [0.5, 0.4, 0.3])
    values, scores = zip(*[hard, easy] * 10, strict=True)
    right = [np.array([value == "7" for value in each]) for each in values]
    found = calibrations.compare_rules(Pool([*values], right, [np.array(each) for each in scores]))
    assert (found.how, found.accuracy["best"], found.accuracy["vote"], found.gain.mean) == ("best", 1.0, 0.5, 0.5)
    assert str(found).startswith("best, which was right in 100.0 % of the calibration questions, 50.0 points [")
    assert "chance" not in str(found)
    level = calibrations.compare_rules(Pool([*values][1:2], right[1:2], [np.array(scores[1])]))
    assert level.how == "weighted_vote", "of equals the one to choose by where nothing is known"
    assert str(level).endswith("as often as any other rule or more")
    misled = Pool([["1", "2", "2"]], [np.array([False, True, True])], [np.array([0.9, 0.3, 0.3])])
    assert calibrations.compare_rules(misled).how == "vote", "of other equals the first"


def test_one_question_with_few_paths_does_not_decide_the_rule():
    pool = overconfident(200, seed=7)
    found = calibrations.compare_rules(pool)
    lone = Pool([["7"], *pool.values], [np.array([True]), *pool.correct], [np.array([0.5]), *pool.scores])
    picked = calibrations.compare_rules(lone)
    assert found.how == picked.how and len(set(picked.accuracy.values())) > 1
    for how, accuracy in picked.accuracy.items():
        assert accuracy == pytest.approx((200 * found.accuracy[how] + 1) / 201)


def test_no_answer_is_never_right_and_no_path_too_few(fitted: Confidence):
    assert fitted.choose(["", ""], [0.9, 0.9]).probability == 0
    assert 0 < (fitted.choose(["7"], [0.5]).probability or 0) < 1
    value, _, _, probability = fitted.choose(["7", "9"], [0.9, 0.1])
    assert (value, probability) == ("7", fitted.choose(["7", "9"], [0.9, 0.1]).probability)


def test_conservative_has_a_probability_where_the_bounds_were_known(fitted: Confidence):
    assert fitted.choose(["7"], [0.5], "conservative", [0.4]).probability is None
    pool = overconfident(30, seed=5)
    bounded = Pool(pool.values, pool.correct, pool.scores, lower=[0.9 * each for each in pool.scores])
    assert fit(bounded).choose(["7"], [0.5], "conservative", [0.4]).probability is not None


@pytest.mark.parametrize(("right", "expected"), [(True, 11 / 12), (False, 1 / 12)])
def test_where_all_came_out_alike_the_rule_of_succession_speaks(right, expected):
    pool = Pool([["7"]] * 10, [np.array([right])] * 10, [np.array([0.5])] * 10)
    found = fit(pool)
    assert found.choose(["7"], [0.5]).probability == pytest.approx(expected)
    assert found.path(np.array([0.2, 0.9])) == pytest.approx([expected] * 2)
    silent = Pool([[""]] * 10, [np.array([False])] * 10, [np.array([0.5])] * 10)
    assert fit(silent).choose(["7"], [0.5]).probability is not None


def test_one_abstains_below_the_threshold_only():
    assert abstains(Choice("7", 1.0, 0, 0.49), 0.5)
    assert not abstains(Choice("7", 1.0, 0, 0.5), 0.5)
    with pytest.raises(ValueError, match="calibrated probability"):
        abstains(Choice("7", 1.0, 0), 0.5)


# --- on disk ---


@pytest.mark.parametrize("questions", [40, 400])
def test_a_file_keeps_every_number(tmp_path: Path, fitted: Confidence, questions):
    found = fit(overconfident(questions, seed=6))
    found = replace(found, tasks=("maths", "search"))
    path = calibrations.save(found, tmp_path)
    assert path == tmp_path / "calibration.json"
    assert calibrations.load(tmp_path) == found
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in said.items() if name != "tasks"}))
    assert calibrations.load(tmp_path).tasks == ()
    assert (said["num_questions"], said["num_paths"], set(said["answers"])) == (questions, 8, set(found.answers))
    assert {"latent-prm", "scikit-learn", "numpy"} <= set(said["versions"])


@pytest.mark.parametrize(
    ("where", "wrong", "complaint"),
    [
        (("format",), "something else", "not a calibration of this project"),
        (("answers",), None, "not a whole calibration"),
        (("answers", "vote", "scales"), [1, 1, 1, 1, 1, 1, 0], "scales above 0"),
        (("answers", "vote", "weights"), [1, 1], "not 7 means"),
        (("answers", "vote", "weights"), "12345", "no list of numbers"),
        (("answers", "vote", "intercept"), True, "True is no number"),
        (("answers", "vote", "intercept"), 10**400, "not a whole calibration"),
        (("answers", "bset"), {}, "there is no rule 'bset'"),
        (("picked", "how"), "conservative", "was picked, but has no numbers"),
        (("picked", "gain"), [0, 0, 0], "not a whole calibration"),
        (("picked", "accuracy", "vote"), 1.5, "1.5 does not lie in 0..1"),
        (("paths", "method"), "spline", "neither platt nor isotonic"),
        (("paths",), {"method": "isotonic", "scores": [0.5, 0.1], "rates": [0.1, 0.5]}, "not as many rising numbers"),
        (("paths",), {"method": "isotonic", "scores": [], "rates": []}, "not as many rising numbers"),
        (("paths",), {"method": "platt", "slope": 1}, "it has no 'intercept'"),
        (("num_questions",), 0, "0 does not lie in 1..inf"),
        (("versions",), 5, "not a whole calibration"),
        (("tasks",), "search", "'search' is no list of tasks"),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_words(tmp_path: Path, fitted: Confidence, where, wrong, complaint):
    path = calibrations.save(fitted, tmp_path)
    whole = inner = json.loads(path.read_text())
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = wrong
    path.write_text(json.dumps(whole))
    with pytest.raises(BadFile, match=complaint) as refused:
        calibrations.load(tmp_path)
    assert str(path) in str(refused.value)


def test_what_is_no_json_or_missing_or_a_list_is_refused(tmp_path: Path):
    with pytest.raises(BadFile, match=r"calibration\.json"):
        calibrations.load(tmp_path)
    for text in ("[]", "{", '{"format": Infinity}', "null"):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(BadFile, match=r"calibration\.json"):
            calibrations.load(tmp_path)
