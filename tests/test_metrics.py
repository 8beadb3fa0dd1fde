"""The numbers of metrics.py, worked by hand or by trying out every subset."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from latent_prm.metrics import (
    CHOSEN,
    METHODS,
    Interval,
    Pool,
    auroc,
    bootstrap_interval,
    bootstrap_intervals,
    expected_accuracies,
    gap_recovered,
    num_pairs,
    of_rules,
    paired_difference,
    question_aurocs,
    rounded,
)
from latent_prm.selector import HOWS, choose_among, weights

# Four paths: "7" is right. 0.1 + 0.2 ties with 0.3, though not in floating point; the best-scored path has no answer.
FOUR = Pool(
    values=[["7", "7", "9", ""]],
    correct=[np.array([True, True, False, False])],
    scores=[np.array([0.1, 0.2, 0.3, 0.9])],
    noise_free=np.array([1.0]),
)


def random_pool(questions: int, paths: int, seed: int = 0) -> Pool:
    """Values 0..4 and "", of which 1 and 3 are right; scores in tenths, so that ties are frequent."""
    rng = np.random.default_rng(seed)
    values = [[str(v) if v < 5 else "" for v in rng.integers(6, size=paths)] for _ in range(questions)]
    return Pool(
        values=values,
        correct=[np.array([v in ("1", "3") for v in row]) for row in values],
        scores=[rng.integers(1, 10, size=paths) / 10 for _ in range(questions)],
        noise_free=rng.integers(2, size=questions).astype(float),
        lower=[rng.integers(1, 10, size=paths) / 20 for _ in range(questions)],
    )


def by_trying(pool: Pool, method: str, k: int, question: int = 0) -> float:
    """The expected accuracy the long way: every subset, one after the other."""
    values, correct, scores = pool.values[question], pool.correct[question], pool.scores[question]
    lower = pool.lower[question] if pool.lower else scores
    chances = []
    for subset in combinations(range(len(values)), k):
        answered = [i for i in subset if values[i]] or list(subset)
        if method == "random":
            winners = list(subset)
        elif method == "oracle":
            winners = [max(subset, key=lambda i: correct[i])]
        elif method == "best":
            winners = [i for i in answered if scores[i] == max(scores[answered])]
        else:
            there = list(subset)
            own = weights(method, [values[i] for i in there], scores[there], lower[there])  # type: ignore[arg-type]
            weight = dict(zip(there, own.tolist(), strict=True))
            tally = {i: round(sum(weight[j] for j in answered if values[j] == values[i]), 6) for i in answered}
            first = {values[i]: i for i in answered if tally[i] == max(tally.values())}
            winners = list(first.values())
        chances.append(np.mean(correct[winners]))
    return float(np.mean(chances))


@pytest.mark.parametrize(
    ("method", "k", "chance"),
    [
        ("random", 2, 1 / 2),
        ("oracle", 2, 5 / 6),
        ("oracle", 3, 1),
        # pairs 01 02 03 12 13 23
        ("vote", 2, (1 + 0.5 + 1 + 0.5 + 1 + 0) / 6),
        ("weighted_vote", 2, (1 + 0 + 1 + 0 + 1 + 0) / 6),
        ("best", 2, (1 + 0 + 1 + 0 + 1 + 0) / 6),
        # triples 012 013 023 123
        ("vote", 3, (1 + 1 + 0.5 + 0.5) / 4),
        ("weighted_vote", 3, (0.5 + 1 + 0 + 0) / 4),
        ("best", 3, (0 + 1 + 0 + 0) / 4),
        ("vote", 4, 1),
        ("weighted_vote", 4, 0.5),
        ("best", 4, 0),
        ("noise_free", 2, 1),
    ],
)
def test_accuracy_of_k_of_four_paths_is_as_worked_by_hand(method, k, chance):
    found = expected_accuracies(FOUR, method, k)
    assert found.exact
    assert found.per_question == pytest.approx([chance])


@pytest.mark.parametrize("method", ["random", *HOWS, "oracle"])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_accuracy_equals_trying_every_subset(method, k):
    pool = random_pool(questions=6, paths=7)
    expected = [by_trying(pool, method, k, question) for question in range(6)]
    assert expected_accuracies(pool, method, k).per_question == pytest.approx(expected)


def test_with_one_path_every_choice_is_the_random_path():
    pool = random_pool(questions=5, paths=6)
    random = expected_accuracies(pool, "random", 1).per_question
    for method in (*HOWS, "oracle"):
        assert expected_accuracies(pool, method, 1).per_question == pytest.approx(random)


def test_weights_of_zero_are_a_tie_among_the_values_that_are_there():
    pool = Pool([["1", "2", "", "3"]], [np.array([True, False, False, False])], [np.zeros(4)])
    assert expected_accuracies(pool, "weighted_vote", 4).per_question == pytest.approx([1 / 3])


def test_of_sixteen_paths_every_subset_counts_and_of_more_a_seeded_sample_does_and_is_said_to():
    pool = random_pool(questions=1, paths=16, seed=3)
    found = expected_accuracies(pool, "vote", 8)  # 12,870 subsets
    assert found.exact and found.per_question == pytest.approx([by_trying(pool, "vote", 8)])
    more = random_pool(questions=1, paths=18, seed=3)
    found = expected_accuracies(more, "vote", 5)  # 8,568
    assert found.exact
    found = expected_accuracies(more, "vote", 6)  # 18,564
    assert not found.exact
    assert found.per_question == pytest.approx([by_trying(more, "vote", 6)], abs=0.015)
    assert (found.per_question == expected_accuracies(more, "vote", 6).per_question).all()
    assert (found.per_question != expected_accuracies(more, "vote", 6, seed=1).per_question).any()
    assert expected_accuracies(more, "best", 9).exact


def test_ranks_and_agreement_are_those_within_the_subset():
    # Of the pair (0, 2) the first is better; among all three its rank is the middle one, which would change no pair,
    # but two of its kind would outweigh: 2/3 + 1/3 against 1.
    pool = Pool([["7", "7", "9"]], [np.array([True, True, False])], [np.array([0.5, 0.2, 0.9])])
    assert expected_accuracies(pool, "rank_vote", 3).per_question == pytest.approx([0.5])  # 2/3 + 1/3 = 1: a tie
    assert expected_accuracies(pool, "rank_vote", 2).per_question == pytest.approx([1 / 3])  # 01 right, 02 and 12 not
    assert expected_accuracies(pool, "agreement", 3).per_question == pytest.approx([1])  # 2/3 (0.5 + 0.2) > 1/3 0.9
    assert expected_accuracies(pool, "weighted_vote", 3).per_question == pytest.approx([0])


def test_what_a_pool_lacks_cannot_be_measured_on_it():
    pool = Pool([["1", "2"]], [np.array([True, False])], [np.array([0.9, 0.1])])
    assert set(METHODS) - set(pool.methods) == {"noise_free", "conservative", "auto"}
    for method in ("noise_free", "conservative", "auto"):
        with pytest.raises(ValueError, match=f"no {method} accuracy"):
            expected_accuracies(pool, method, 2)
    assert not {"noise_free", "random", "vote", "oracle"} & set(CHOSEN)


def test_auto_is_the_rule_that_was_recommended_for_each_question():
    pool = random_pool(questions=8, paths=6)
    pool = replace(pool, auto=["best"] * 4 + ["tie_break"] * 4)
    auto, best, tie_break = (
        expected_accuracies(pool, method, 4).per_question for method in ("auto", "best", "tie_break")
    )
    assert auto.tolist() == [*best[:4], *tie_break[4:]]


def test_rules_are_tried_with_all_the_paths_of_each_question_be_they_few():
    mixed, lone = random_pool(questions=6, paths=7), random_pool(questions=1, paths=1)
    assert mixed.lower is not None and lone.lower is not None
    both = Pool(
        [*lone.values, *mixed.values],
        [*lone.correct, *mixed.correct],
        [*lone.scores, *mixed.scores],
        lower=[*lone.lower, *mixed.lower],
    )
    found = of_rules(both)
    assert list(found) == [*HOWS]
    for how, right in found.items():
        assert right[1:] == pytest.approx(expected_accuracies(mixed, how, 7).per_question)
        assert right[0] == float(lone.correct[0][0])


def test_a_tie_is_a_tie_however_small_the_scores():
    small = Pool([["a", "b", "c"]], [np.array([True, False, False])], [np.array([8e-10, 1e-10, 1e-10])])
    for how in ("weighted_vote", "logit_vote", "agreement"):
        assert choose_among(small.values[0], small.scores[0], how).value == "a"
        assert expected_accuracies(small, how, 3).per_question == pytest.approx([1.0])


def test_a_noise_free_path_that_is_not_known_is_missed_by_its_own_questions_only():
    pool = replace(random_pool(questions=3, paths=2), noise_free=np.array([1.0, np.nan, 0.0]))
    assert "noise_free" not in pool.methods and "noise_free" in pool.take([2, 0]).methods
    assert expected_accuracies(pool.take([2, 0]), "noise_free", 1).per_question.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no noise_free accuracy"):
        expected_accuracies(pool, "noise_free", 1)


def test_some_questions_of_a_pool_are_a_pool():
    pool = replace(random_pool(questions=5, paths=3), auto=["best", "vote", "best", "vote", "best"])
    part = pool.take([3, 1])
    assert part.values == [pool.values[3], pool.values[1]] and part.auto == ["vote", "vote"]
    for method in pool.methods:
        whole, own = (expected_accuracies(one, method, 2).per_question for one in (pool, part))
        assert own.tolist() == [whole[3], whole[1]]
    other = pool.scored([1 - scores for scores in pool.scores])
    assert other.lower is None and other.auto is None and other.values == pool.values


def test_auroc_counts_ties_half():
    scores, correct = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert auroc(scores, correct) == 3.5 / 4
    assert auroc(scores, ~correct) == 0.5 / 4
    assert auroc(scores, np.ones(4, dtype=bool)) is None


def test_auroc_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, correct = rng.integers(6, size=12) / 6, rng.random(12) < 0.4
        if 0 < correct.sum() < 12:
            assert auroc(scores, correct) == pytest.approx(roc_auc_score(correct, scores))


def test_pairs_are_counted_within_questions():
    correct = [np.array([True, True, False]), np.array([True, True, True]), np.array([True, False])]
    assert num_pairs(correct).tolist() == [2, 0, 1]
    scores = [np.array([0.9, 0.1, 0.5]), np.full(3, 0.5), np.array([0.2, 0.8])]
    areas = question_aurocs(scores, correct)
    assert areas[[0, 2]].tolist() == [0.5, 0] and np.isnan(areas[1])


def test_within_question_auroc_sees_no_difficulty_and_the_pooled_one_does():
    hard, easy = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    mixed = np.array([True, False])  # in both, the wrong path is scored higher
    pool = Pool(
        values=[["1", "2"]] * 4,
        correct=[mixed, mixed, np.array([False, False]), np.array([True, True])],
        scores=[hard, easy, hard, easy],
    )
    areas = question_aurocs(pool.scores, pool.correct)
    assert areas[:2].tolist() == [0.0, 0.0] and np.isnan(areas[2:]).all()  # which have no right and wrong to tell apart
    assert (
        auroc(np.concatenate(pool.scores), np.concatenate(pool.correct)) == (0.5 + 3 + 3 + 3.5) / 16
    )  # 0.1, 0.8, 0.8, 0.9 against 0.2, 0.9, 0.1, 0.2


def test_the_bootstrap_interval_of_a_coin_is_its_standard_error():
    coin = np.array([0.0, 1.0] * 200)
    interval = bootstrap_interval(coin, 4000, seed=1)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.006)
    assert interval == bootstrap_interval(coin, 4000, seed=1)
    assert interval != bootstrap_interval(coin, 4000, seed=2)


def test_a_paired_difference_is_as_sure_as_its_questions_agree():
    rng = np.random.default_rng(0)
    a = rng.integers(2, size=300).astype(float)
    both = bootstrap_intervals(np.stack([a, a - 0.1]), 500, seed=0)
    assert both[0].high > both[1].low and both[0].low < both[1].high  # apart, nothing can be told
    difference = bootstrap_interval(a - (a - 0.1), 500, seed=0)
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)


def test_any_two_methods_are_compared_question_by_question():
    one, other = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    found = paired_difference(one, other, 4000, seed=0)
    assert found == bootstrap_interval(one - other, 4000, seed=0)
    assert found.mean == 0.5 and (found.low, found.high) == (0.0, 1.0)
    assert paired_difference(one, one).high == 0


def test_the_gap_recovered_is_as_worked_by_hand():
    oracle = np.array([1.0, 1.0, 1.0, 0.0] * 50)  # 0.75
    vote = np.array([1.0, 0.0, 0.0, 0.0] * 50)  # 0.25
    noise_free = np.array([0.0, 0.0, 1.0, 0.0] * 50)  # 0.25
    method = np.array([1.0, 1.0, 0.0, 0.0] * 50)  # 0.5
    found = gap_recovered(method, oracle, [vote], 4000, seed=0)
    assert found is not None and found.mean == pytest.approx(0.5)
    # By the delta method, for questions drawn one by one: the ratio R = X / Y has the variance var(X - R Y) / Q / Y^2.
    error = np.sqrt(((method - vote) - 0.5 * (oracle - vote)).var() / 200) / 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * error, abs=0.015)
    assert found.high == pytest.approx(0.5 + 1.96 * error, abs=0.015)
    both = gap_recovered(method, oracle, [vote, noise_free], 4000, seed=0)
    assert both is not None and both.mean == pytest.approx(0.5)
    assert both.high < found.high  # in each resampling the better base counts
    assert gap_recovered(method, vote, [vote], 100, seed=0) is None
    assert gap_recovered(vote, oracle, [vote, noise_free], 100, seed=0).mean == 0  # type: ignore[union-attr]


def test_an_interval_passes_over_resamplings_in_which_there_is_nothing():
    found = Interval.of(0.4, np.array([np.nan, *np.linspace(0, 1, 41)]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.025, 0.975))


def test_many_resamplings_in_chunks_are_the_same_as_few():
    wide = np.random.default_rng(0).random(300_000)  # six resamplings a chunk
    interval = bootstrap_interval(wide, 20, seed=0)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low < 4 * 0.29 / np.sqrt(300_000) * 1.5


@pytest.mark.parametrize("wrong", [1.1, -0.1, float("nan")])
def test_a_score_that_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Pool([["1"]], [np.array([True])], [np.array([wrong])])


def test_a_pool_without_questions_or_paths_is_refused():
    with pytest.raises(ValueError, match="no question"):
        Pool([], [], [])
    with pytest.raises(ValueError, match="0 values"):
        Pool([[]], [np.array([], dtype=bool)], [np.array([])])


def test_equal_shares_are_read_alike_whatever_way_they_were_added_up() -> None:
    assert rounded(36.25 + 1e-13) == rounded(36.25) == rounded(36.25 - 1e-13)
