"""comparison.py: the numbers of one set of questions, of one PRM or several, and of its rivals."""

from __future__ import annotations

import numpy as np
import pytest
from test_metrics import random_pool

from latent_prm.comparison import (
    accuracy_table,
    against,
    as_probabilities,
    compare,
    curve_sizes,
    discriminate,
    discriminate_steps,
    table_sizes,
)
from latent_prm.metrics import CHOSEN, Pool, expected_accuracies, paired_difference, question_aurocs


def test_comparison_of_a_perfect_prm_closes_the_gap() -> None:
    pool = random_pool(questions=40, paths=5)
    perfect = pool.scored([c.astype(float) for c in pool.correct])
    found = compare(perfect, num_bootstrap=200)
    for method in ("best", "weighted_vote"):
        assert found.gap_recovered[method][5].mean == found.gap_from_vote[method][5].low == pytest.approx(1.0)
    assert found.auroc is not None and found.discrimination.pairwise is not None
    assert found.auroc.mean == found.discrimination.pairwise.mean == found.discrimination.pooled == 1.0
    (paths,) = found.forecasts["paths"]
    assert paths.brier == paths.calibration_error == 0 and paths.skill == 1
    assert found.accuracy["best"][5] == found.accuracy["oracle"][5]
    assert found.differences["best"]["vote"].low > 0
    assert found.table_sizes == [1, 4, 5]
    assert found.discrimination.num_mixed == sum(0 < c.sum() < 5 for c in pool.correct)
    assert found.accuracy["vote"][5].spread is None


def test_any_two_methods_are_held_against_each_other_in_pairs() -> None:
    pool = random_pool(questions=30, paths=5)
    found = compare(pool, num_bootstrap=300, seed=7)
    at_five = {method: expected_accuracies(pool, method, 5).per_question for method in pool.methods}
    for one, others in found.differences.items():
        assert set(others) == set(pool.methods) - {one}
        for other, interval in others.items():
            expected = paired_difference(at_five[one], at_five[other], 300, seed=7)
            assert (interval.mean, interval.low, interval.high) == pytest.approx(
                (expected.mean, expected.low, expected.high), abs=1e-12
            )


def test_comparison_without_noise_free_paths_or_mixed_questions_says_none() -> None:
    pool = Pool([["1", "1"], ["2", "3"]], [np.array([True, True]), np.array([False, False])], [np.full(2, 0.5)] * 2)
    found = compare(pool, num_bootstrap=50)
    assert {"noise_free", "conservative", "auto"}.isdisjoint(found.accuracy)
    assert found.auroc is None and found.discrimination.pairwise is None and found.discrimination.num_mixed == 0
    assert found.gap_recovered == {method: {} for method in CHOSEN if method in pool.methods}
    assert found.table_sizes == [1, 2]


def test_the_fewest_paths_of_any_question_bound_the_curve() -> None:
    pool = Pool([["1"] * 3, ["2"] * 2], [np.ones(3, bool), np.ones(2, bool)], [np.ones(3), np.ones(2)])
    found = compare(pool, num_bootstrap=10)
    assert (found.num_paths, found.num_scored) == (2, 5)
    with pytest.raises(ValueError, match="k is 3"):
        expected_accuracies(pool, "vote", 3)


def test_a_curve_over_many_paths_is_drawn_at_few_sizes() -> None:
    assert curve_sizes(70) == [*range(1, 17), 32, 64, 70] and curve_sizes(3) == [1, 2, 3]
    assert table_sizes(70) == [1, 4, 16, 70] and table_sizes(16) == [1, 4, 16]
    found = compare(random_pool(questions=2, paths=20), num_bootstrap=10)
    assert list(found.accuracy["vote"]) == [*range(1, 17), 20]
    assert found.sampled == list(range(5, 16))  # 15,504 subsets of 5 and of 15, 4,845 of 4 and of 16


def test_of_several_prms_a_figure_is_the_mean_and_the_spread_is_between_them() -> None:
    pool = random_pool(questions=30, paths=6)
    turned = pool.scored([1 - scores for scores in pool.scores])
    other = Pool(pool.values, pool.correct, turned.scores, pool.noise_free, pool.lower)
    found, one, two = compare([pool, other], 100), compare(pool, 100), compare(other, 100)
    for method in ("best", "weighted_vote", "logit_vote"):
        means = [alone.accuracy[method][6].mean for alone in (one, two)]
        both = found.accuracy[method][6]
        assert both.mean == pytest.approx(np.mean(means)) and both.spread == pytest.approx(np.std(means, ddof=1))
        gains = [alone.differences[method]["vote"].mean for alone in (one, two)]
        assert found.differences[method]["vote"].spread == pytest.approx(np.std(gains, ddof=1))
        gaps = [alone.gap_from_vote[method][6].mean for alone in (one, two)]
        assert found.gap_from_vote[method][6].mean == pytest.approx(np.mean(gaps))
        assert found.gap_from_vote[method][6].spread == pytest.approx(np.std(gaps, ddof=1))
    assert found.accuracy["vote"][6] == one.accuracy["vote"][6]
    assert found.auroc is not None and one.auroc is not None
    assert found.auroc.mean == pytest.approx(0.5)  # turned round, the AUROC is one minus the other
    assert found.auroc.spread == pytest.approx(abs(2 * one.auroc.mean - 1) / np.sqrt(2))
    assert found.num_prms == len(found.forecasts["paths"]) == 2


def test_a_table_that_is_known_already_is_not_made_again() -> None:
    pool = random_pool(questions=10, paths=4)
    table = accuracy_table([pool], curve_sizes(4), seed=42)
    assert compare(pool, 50, table=table) == compare(pool, 50)
    table["vote", 4] = np.ones((1, 10))
    assert compare(pool, 50, table=table).accuracy["vote"][4].mean == 1


def test_pairs_weigh_alike_and_mixed_questions_do() -> None:
    # 3 pairs, all in order; 1 pair, out of order; no pair.
    correct = [np.array([True, True, True, False]), np.array([True, False]), np.array([True])]
    scores = [np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.2, 0.3]), np.array([0.0])]
    found = discriminate([scores], correct, 100, seed=0)
    assert found.auroc is not None and found.auroc.mean == 0.5 and found.num_mixed == 2
    assert found.pairwise is not None and found.pairwise.mean == 0.75
    assert found.pairwise.low == 0 and found.pairwise.high == 1
    # The wrong ones, 0.1 and 0.3, against 0.9 0.8 0.7 0.2 0.0
    assert found.pooled == pytest.approx((3 + 1 + 0 + 3 + 0 + 0) / 10)


def test_after_each_latent_the_paths_that_have_one_count() -> None:
    correct = [np.array([True, False, False])]
    steps = [[[np.array([0.1, 0.9, 0.9]), np.array([0.2, 0.3]), np.array([0.0, 0.1, 0.95])]]]
    first, second, third = discriminate_steps(steps, correct, 50, seed=0)
    assert [step.auroc.mean for step in (first, second, third) if step.auroc] == [0.5, 1, 0]
    alone = discriminate_steps([[[np.array([0.5]), np.array([0.1, 0.9])]]], [np.array([True, False])], 50, seed=0)
    assert alone[1].auroc is None and alone[1].pooled is None  # the right path has no second latent


def test_a_rival_is_held_against_the_prm_question_by_question() -> None:
    pool = random_pool(questions=40, paths=6)
    perfect = pool.scored([c.astype(float) for c in pool.correct])
    found = against([perfect], [pool], control=False, num_bootstrap=100, seed=3)
    best = [expected_accuracies(one, "best", 6).per_question for one in (perfect, pool)]
    assert found.best.mean == pytest.approx(best[1].mean())
    assert found.gains["best"] == paired_difference(best[0], best[1], 100, seed=3)
    vote = [expected_accuracies(one, "weighted_vote", 6).per_question for one in (perfect, pool)]
    assert found.gains["vote"].mean == pytest.approx((vote[0] - vote[1]).mean())
    areas = question_aurocs(pool.scores, pool.correct)
    areas = areas[~np.isnan(areas)]
    assert found.auroc is not None and found.auroc.mean == pytest.approx(areas.mean())
    assert found.gains["auroc"] == paired_difference(np.ones(len(areas)), areas, 100, seed=3)
    itself = against([pool, perfect], [pool, perfect], control=True, num_bootstrap=50, seed=0)
    assert itself.control and all(gain.mean == gain.low == gain.high == 0 for gain in itself.gains.values())


def test_scores_that_are_no_probabilities_become_ranks_within_the_question() -> None:
    kept = [np.array([0.0, 1.0]), np.array([0.3])]
    assert all(own is was for own, was in zip(as_probabilities(kept), kept, strict=True))
    found = as_probabilities([np.array([-7.0, 30.0, -7.0, 5.0]), np.array([0.5, 0.4])])
    assert [own.tolist() for own in found] == [[1.5 / 4, 1, 1.5 / 4, 3 / 4], [1, 1 / 2]]
    assert [own.tolist() for own in as_probabilities(kept, ordinal=True)] == [[1 / 2, 1], [1]]


def test_a_choice_among_fewer_paths_is_measured_on_scores_made_without_the_others() -> None:
    pool = random_pool(questions=10, paths=6)
    alone = random_pool(questions=10, paths=4, seed=4)
    table = accuracy_table([pool], curve_sizes(6), seed=0, fewer={4: [alone]})
    assert sorted(k for method, k in table if method == "best") == [1, 4, 6]
    assert sorted(k for method, k in table if method == "vote") == [1, 2, 3, 4, 5, 6]
    assert table["best", 4].tolist() == [expected_accuracies(alone, "best", 4).per_question.tolist()]
    assert table["best", 6].tolist() == [expected_accuracies(pool, "best", 6).per_question.tolist()]
    found = compare(pool, 50, table=table)
    assert list(found.accuracy["weighted_vote"]) == found.table_sizes == [1, 4, 6]
