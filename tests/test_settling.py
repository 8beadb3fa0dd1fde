"""When a question has paths enough: by its lead, worked by hand, and by what other questions have taught."""

from __future__ import annotations

import numpy as np
import pytest

from latent_prm.metrics import Pool
from latent_prm.odds import Odds
from latent_prm.selector import choose_among
from latent_prm.settling import (
    NUM_FEATURES,
    by_agreement,
    by_prm,
    by_regret,
    features,
    fit_regret,
    paths_used,
    rounds,
    surety,
)


def test_an_answer_that_leads_for_ever_is_as_sure_as_its_lead() -> None:
    assert surety(["7"] * 4, np.ones(4)) == pytest.approx(1 - 0.5**5)  # Beta(5, 1) above 1/2
    assert surety(["7", "8"], np.ones(2)) == pytest.approx(0.5)
    assert surety(["7", "7", "7", "8"], np.ones(4)) == pytest.approx(1 - 6 / 32)  # Beta(4, 2) above 1/2
    assert surety(["7", "7", "7", "8", "9"], np.ones(5)) == pytest.approx(1 - 6 / 32)  # against the runner-up only
    assert surety(["", "", ""], np.ones(3)) == pytest.approx(0.5)  # no answer settles nothing
    assert surety(["7"] * 4, np.zeros(4)) == pytest.approx(0.5)  # nor does what nobody believes in


def test_of_few_paths_to_come_fewer_can_turn_the_lead() -> None:
    assert surety(["7", "7"], np.ones(2), 1) == pytest.approx(1.0)  # one path cannot
    assert surety(["7"], np.ones(1), 1) == pytest.approx(2 / 3 + 1 / 6)  # Beta(2, 1): a third of a chance of a tie
    # 2 : 1 and two to come: both against it turn it, one each does not; Beta(3, 2): 2 * 3 / (5 * 6)
    assert surety(["7", "7", "8"], np.ones(3), 2) == pytest.approx(1 - 6 / 30)
    assert surety(["7", "7", "8"], np.full(3, 0.5), 0) == 1.0 and surety(["7", "8"], np.ones(2), 0) == 0.5
    assert surety(["7", "7", "8"], np.ones(3), 4000) == pytest.approx(surety(["7", "7", "8"], np.ones(3)), abs=1e-3)
    assert surety(["", ""], np.ones(2), 5) == pytest.approx(0.5)


def test_rounds_end_with_all() -> None:
    assert rounds(16, 4, 4) == [4, 8, 12, 16] and rounds(7, 4, 2) == [4, 6, 7] and rounds(3, 4, 2) == [3]


def test_paths_are_used_until_the_answer_is_settled() -> None:
    assert paths_used(["7"] * 8, np.ones(8), 0.95, by_agreement, first=4) == 4  # four to come at most tie
    assert paths_used(["7"] * 8, np.full(8, 0.1), 0.99, by_agreement, first=1) == 4
    assert paths_used(["7", "8"] * 4, np.ones(8), 0.95, by_agreement) == 8
    assert paths_used(["7", "8"] * 4, np.array([1.0, 0.1] * 4), 0.9, by_prm) < 8
    assert paths_used(["7", "8", "7", "7", "7", "7", "8", "8"], np.ones(8), 1.0, by_agreement, 4, 2) == 6  # 5 : 1


# --- regret ---------------------------------------------------------------------------------------------------------


def three_kinds(questions: int, seed: int, paths: int = 16) -> Pool:
    """Easy questions (every path right, scored high), hopeless ones (none, low), and late ones: one path in eight is
    right, and is scored 0.9 where the others have 0.3.
    """
    rng = np.random.default_rng(seed)
    values, correct, scores = [], [], []
    for number in range(questions):
        kind = number % 3
        right = np.ones(paths, bool) if kind == 0 else rng.random(paths) < (0.0, 0.0, 0.125)[kind]
        low = 0.05 if kind == 1 else 0.3
        values.append(["7" if one else str(100 + int(rng.integers(50))) for one in right])
        correct.append(right)
        scores.append(np.where(right, 0.9, low) + 0.02 * rng.random(paths))
    return Pool(values, correct, scores)


@pytest.fixture(scope="module")
def learnt() -> Odds:
    return fit_regret(three_kinds(600, seed=0), "logit_vote", seed=0)


def test_paths_go_on_only_where_they_may_mend_the_answer(learnt: Odds) -> None:
    settled = by_regret(learnt, "logit_vote")
    pool = three_kinds(300, seed=1)
    used = np.array([paths_used(v, s, 0.95, settled) for v, s in zip(pool.values, pool.scores, strict=True)])
    easy, hopeless, late = used[0::3], used[1::3], used[2::3]
    assert easy.max() == 2 and hopeless.mean() < 4  # the one is right, the other will never be
    found = np.array([right[:k].any() for right, k in zip(pool.correct[2::3], late, strict=True)])
    ever = np.array([right.any() for right in pool.correct[2::3]])
    assert (ever & ~found).mean() < 0.06 and late.mean() > 6
    by_lead = np.array([paths_used(v, s, 0.95, by_prm) for v, s in zip(pool.values, pool.scores, strict=True)])
    assert used.mean() < 0.75 * by_lead.mean()  # a lead alone cannot tell hopeless from late


def test_what_is_told_of_an_answer_is_worked_by_hand() -> None:
    told = features(["7", "8", "7", ""], np.array([0.5, 0.9, 0.1, 0.2]), "7", left=8)
    plain = [0.5, 0.0, np.log(0.3 / 0.7), np.log(4), np.log(2), np.log(9), 0.425]
    assert told[:7].tolist() == pytest.approx(plain) and len(told) == NUM_FEATURES == 35
    assert told[7] == pytest.approx(0.25) and told[-1] == pytest.approx(0.425**2)
    alone = features(["7"], np.array([0.5]), "7", left=1)
    assert alone[5] == pytest.approx(np.log(0.001 / 0.999))  # no other answer


def test_nothing_is_settled_by_no_answer_and_everything_by_no_more_paths(learnt: Odds) -> None:
    settled = by_regret(learnt, "logit_vote")
    assert settled(["", ""], np.array([0.9, 0.9]), 3) == 0.0
    assert settled(["", ""], np.array([0.9, 0.9]), 0) == 1.0


def test_regret_is_of_the_rule_that_chooses() -> None:
    pool = three_kinds(60, seed=2)
    first, second = fit_regret(pool, "vote", seed=0), fit_regret(pool, "best", seed=0)
    assert first != second and fit_regret(pool, "vote", seed=0) == first
    early = [choose_among(v[:4], s[:4], "vote") for v, s in zip(pool.values, pool.scores, strict=True)]
    assert all(0 <= first(features(v[:4], s[:4], c.value, 12)) <= 1
               for v, s, c in zip(pool.values, pool.scores, early, strict=True))  # fmt: skip


def test_a_pool_of_single_paths_teaches_nothing() -> None:
    single = Pool([["7"], ["8"]], [np.array([True]), np.array([False])], [np.array([0.9]), np.array([0.1])])
    assert fit_regret(single, "vote", seed=0)(features(["7"], np.array([0.9]), "7", 1)) < 0.5
