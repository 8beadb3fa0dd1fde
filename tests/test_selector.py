"""The rules by which one answer is chosen from a question's paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latent_prm.metrics import Pool, expected_accuracies
from latent_prm.selector import candidates, choose, choose_among, shares
from latent_prm.tree import Answer, Path, ReasoningTree


def test_best_takes_the_highest_score():
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "best") == ("9", pytest.approx(0.9 / 1.4), 1)


def test_vote_counts_paths_and_shows_the_best_scored_of_them():
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "vote") == ("7", pytest.approx(2 / 3), 2)


def test_weighted_vote_adds_the_scores():
    assert choose_among(["7", "9", "7"], [0.4, 0.6, 0.3], "weighted_vote") == ("7", pytest.approx(0.7 / 1.3), 0)
    assert choose_among(["7", "9", "7"], [0.2, 0.9, 0.3], "weighted_vote").value == "9"


def test_of_equals_the_first_value_is_chosen_whatever_the_rounding():
    assert choose_among(["7", "9", "9"], [0.3, 0.1, 0.2], "weighted_vote").value == "7"
    assert choose_among(["9", "9", "7"], [0.1, 0.2, 0.3], "weighted_vote").value == "9"
    assert choose_among(["9", "7"], [0.1, 0.3], "vote").value == "9"
    assert choose_among(["9", "7"], [0.0, 0.0], "weighted_vote") == ("9", 0.0, 0)


@pytest.mark.parametrize("how", ["best", "vote", "weighted_vote"])
def test_no_answer_is_chosen_only_when_there_is_no_other(how):
    assert choose_among(["", "", "7"], [0.9, 0.9, 0.1], how).value == "7"
    assert choose_among(["", ""], [0.1, 0.2], how) == ("", pytest.approx(1.0), 1)


def test_choosing_from_nothing_is_an_error():
    with pytest.raises(ValueError, match="no path"):
        choose_among([], [], "vote")


def test_shares_keep_the_order_and_add_up():
    assert list(shares(["b", "a", "b"], [1.0, 2.0, 1.0]).items()) == [("b", 0.5), ("a", 0.5)]


@pytest.mark.parametrize("how", ["best", "vote", "weighted_vote"])
def test_metrics_over_all_paths_measure_the_rule_that_chooses(how):
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        values = [str(v) if v else "" for v in rng.integers(4, size=5)]
        scores = rng.random(5)
        correct = np.array([value == "2" for value in values])
        measured = expected_accuracies(Pool([values], [correct], [scores]), how, 5).per_question[0]
        if measured in (0, 1):  # else a tie, which metrics split evenly
            choice = choose_among(values, scores.tolist(), how)
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
    assert choose(tree, scores) == ("7", pytest.approx(0.6 / 1.1), 3)
    assert choose(tree, scores, "best").index == 1
