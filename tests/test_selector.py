"""The rules by which one answer is chosen from a question's paths."""

from __future__ import annotations

import inspect
import math
from typing import get_args

import numpy as np
import pytest
import torch

from latent_prm.metrics import Pool, expected_accuracies
from latent_prm.options import Select
from latent_prm.selector import HOWS, candidates, choose, choose_among, shares, weights
from latent_prm.tree import Answer, Path, ReasoningTree


def test_best_takes_the_highest_score():
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "best")[:3] == ("9", pytest.approx(0.9 / 1.4), 1)


def test_vote_counts_paths_and_shows_the_best_scored_of_them():
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "vote")[:3] == ("7", pytest.approx(2 / 3), 2)


def test_weighted_vote_adds_the_scores():
    assert choose_among(["7", "9", "7"], [0.4, 0.6, 0.3], "weighted_vote")[:3] == ("7", pytest.approx(0.7 / 1.3), 0)
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "weighted_vote").value == "9"


def test_of_equals_the_first_value_is_chosen_whatever_the_rounding():
    assert choose_among(["7", "9", "9"], [0.3, 0.1, 0.2], "weighted_vote").value == "7"
    assert choose_among(["9", "9", "7"], [0.1, 0.2, 0.3], "weighted_vote").value == "9"
    assert choose_among(["9", "7"], [0.1, 0.3], "vote").value == "9"
    assert choose_among(["9", "7"], [0.0, 0.0], "weighted_vote")[:3] == ("9", 0.0, 0)


@pytest.mark.parametrize("how", HOWS)
def test_no_answer_is_chosen_only_when_there_is_no_other(how):
    assert choose_among(["", "", "7"], [0.9, 0.9, 0.1], how, [0.9, 0.9, 0.1]).value == "7"
    assert choose_among(["", ""], [0.1, 0.2], how, [0.1, 0.2])[:3] == ("", pytest.approx(1.0), 1)


def test_choosing_from_nothing_is_an_error():
    with pytest.raises(ValueError, match="no path"):
        choose_among([], [], "vote")


@pytest.mark.parametrize("how", ["best", "weighted_vote"])
def test_nothing_is_chosen_by_a_score_that_is_no_number(how):
    with pytest.raises(ValueError, match="score is nan"):
        choose_among(["7", "8"], [0.5, float("nan")], how)


def test_shares_keep_the_order_and_add_up():
    assert list(shares(["b", "a", "b"], [1.0, 2.0, 1.0]).items()) == [("b", 0.5), ("a", 0.5)]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("best", [0.5, 0.8, 0.5, 0.2]),
        ("vote", [1, 1, 1, 1]),
        ("weighted_vote", [0.5, 0.8, 0.5, 0.2]),
        ("logit_vote", [math.log(2), math.log(5), math.log(2), math.log(5 / 4)]),  # -log of 1/2, 1/5, 1/2, 4/5
        ("rank_vote", [2.5 / 4, 4 / 4, 2.5 / 4, 1 / 4]),  # second and third share their ranks
        ("tie_break", [1.1, 1.16, 1.1, 1.04]),  # 1 + p / 5
        ("conservative", [0.1, 0.2, 0.3, 0.0]),
        ("agreement", [0.5 * 3 / 4, 0.8 / 4, 0.5 * 3 / 4, 0.2 * 3 / 4]),
    ],
)
def test_a_path_s_vote_weighs_what_its_rule_says(how, expected):
    found = weights(how, ["7", "9", "7", "7"], np.array([0.5, 0.8, 0.5, 0.2]), np.array([0.1, 0.2, 0.3, -0.1]))
    assert found == pytest.approx(expected)


def test_the_rules_disagree_where_they_should():
    """Two doubtful paths say 7, one good one says 9, and three hopeless ones say 4."""
    values, scores, lower = ["7", "7", "9", "4", "4", "4"], [0.4, 0.4, 0.7, 0.01, 0.01, 0.01], [0.3, 0.3, 0.1, 0, 0, 0]
    chosen = {how: choose_among(values, scores, how, lower).value for how in HOWS}
    assert chosen == {
        "best": "9",
        "vote": "4",
        "weighted_vote": "7",  # 0.8 against 0.7
        "logit_vote": "9",  # 1.20 against 1.02: one is likelier right than at least one of the two
        "rank_vote": "7",  # 4.5 + 4.5 against 6 and 2 + 2 + 2
        "tie_break": "4",
        "conservative": "7",
        "agreement": "7",
    }


def test_a_tie_is_broken_by_the_scores_but_never_a_majority():
    assert choose_among(["7", "9"], [0.3, 0.4], "tie_break").value == "9"
    assert choose_among(["7", "7", "7", "9", "9"], [0.0, 0.0, 0.0, 1.0, 1.0], "tie_break").value == "7"


def test_agreement_is_majority_and_prm_vote_multiplied():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, scores = rng.integers(3, size=7).astype(str).tolist(), rng.random(7)
        votes, weighted = shares(values, [1.0] * 7), shares(values, scores.tolist())
        agreed = shares(values, weights("agreement", values, scores).tolist())
        product = {value: votes[value] * weighted[value] for value in votes}
        assert agreed == pytest.approx({value: share / sum(product.values()) for value, share in product.items()})


def test_no_single_path_outvotes_any_number_of_others():
    assert np.isfinite(weights("logit_vote", ["7"], np.array([1.0]))).all()
    assert choose_among(["9", *["7"] * 40], [1.0, *[0.5] * 40], "logit_vote").value == "7"


def test_a_rule_that_is_unknown_or_lacks_its_bounds_says_what_to_type():
    unchecked = inspect.unwrap(weights)  # test runs would refuse it before it can speak
    with pytest.raises(ValueError, match="no rule 'bset' to choose by: type one of best, vote"):
        unchecked("bset", ["7"], np.array([0.5]))
    with pytest.raises(ValueError, match="pass lower=, from latent_prm"):
        choose_among(["7"], [0.5], "conservative")


def test_every_rule_can_be_typed():
    assert get_args(Select) == ("auto", *HOWS)


@pytest.mark.parametrize("how", HOWS)
def test_metrics_over_all_paths_measure_the_rule_that_chooses(how):
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        values = [str(v) if v else "" for v in rng.integers(4, size=5)]
        scores, lower = rng.random(5), rng.random(5)
        correct = np.array([value == "2" for value in values])
        pool = Pool([values], [correct], [scores], lower=[lower])
        measured = expected_accuracies(pool, how, 5).per_question[0]
        if measured in (0, 1):  # else a tie, which metrics split evenly
            choice = choose_among(values, scores, how, lower)
            assert values[choice.index] == choice.value
            assert (choice.value == "2") == measured
            compared += 1
    assert compared > 100


def test_candidates_are_the_noisy_leaves_that_answered():
    def path(parent: int | None = None, noise_free: bool = False, answer: str | None = None) -> Path:
        answers = [] if answer is None else [Answer(text=answer, value=answer, correct=answer == "7")]
        return Path(latents=torch.ones(1, 2), tip=None, parent=parent, noise_free=noise_free, answers=answers)

    paths = [path(noise_free=True, answer="7"), path(), path(parent=1, answer="9"), path(parent=1, answer="7"), path()]
    tree = ReasoningTree(question_id="q", question="?", gold="7", task="text", paths=paths)
    found = candidates(tree, torch.tensor([0.5, 0.25, 0.125, 0.75, 1.0]))
    assert found == ([2, 3], ["9", "7"], [False, True], [0.125, 0.75])


def test_a_tree_is_chosen_from_by_its_noisy_leaves_and_the_index_is_the_tree_s() -> None:
    def path(value: str, noise_free: bool = False) -> Path:
        answer = Answer(text=value, value=value, correct=value == "7")
        return Path(latents=torch.ones(1, 2), tip=None, noise_free=noise_free, answers=[answer])

    paths = [path("9", noise_free=True), path("9"), path("7"), path("7")]
    tree = ReasoningTree(question_id="q", question="?", gold="7", task="text", paths=paths)
    scores = torch.tensor([0.9, 0.5, 0.2, 0.4])
    assert choose(tree, scores)[:3] == ("7", pytest.approx(0.6 / 1.1), 3)
    assert choose(tree, scores, "best").index == 1
    lower = torch.tensor([0.9, 0.1, 0.2, 0.1])
    assert choose(tree, scores, "conservative", lower)[:3] == ("7", pytest.approx(0.3 / 0.4), 3)
