"""losses.py: what is learned of a tree, and the number to lower, by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from latent_prm.lessons import Lesson, lessons_of, num_targets
from latent_prm.losses import (
    MARGINS,
    StepLoss,
    bce,
    groups_of,
    listwise,
    mse,
    order,
    pairwise,
    reliability,
    shuffled,
)
from latent_prm.model import Logits
from latent_prm.options import Supervise, TrainOptions
from latent_prm.packing import PackedBatch, pack
from latent_prm.tree import Answer, Path, ReasoningTree


def path(*values: str, parent: int | None = None, noise_free: bool = False) -> Path:
    answers = [Answer(text=value, value=value, correct=value == "5") for value in values]
    return Path(latents=torch.ones(2, 4), tip=None, parent=parent, noise_free=noise_free, answers=answers)


def grown(*paths: Path) -> ReasoningTree:
    tree = ReasoningTree(question_id="q", question="How many?", gold="5", task="text", paths=list(paths))
    tree.back_up()
    return tree


def test_mse_compares_the_predicted_score_with_its_target() -> None:
    # sigmoid: 0 → 1/2, ln 3 → 3/4, -ln 3 → 1/4. Squares: 1/4, 0, 1/16.
    logits = torch.tensor([0.0, math.log(3), -math.log(3)])
    assert math.isclose(mse(logits, torch.tensor([1.0, 0.75, 0.0])).item(), (1 / 4 + 0 + 1 / 16) / 3, rel_tol=1e-6)


def test_the_gradient_of_mse_is_that_of_the_formula() -> None:
    # 2 (s − t) s (1 − s) / K: s = 1/2, t = 1 → −1/4 / 2; s = 3/4, t = 1/4 → 2 · 1/2 · 3/16 / 2.
    logits = torch.tensor([0.0, math.log(3)], requires_grad=True)
    mse(logits, torch.tensor([1.0, 0.25])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1 / 8, 3 / 32]))


def test_mse_of_half_precision_logits_is_a_float32() -> None:
    loss = mse(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([0.0, 1.0]))
    assert loss.dtype == torch.float32


def test_noisy_paths_with_a_score_are_learned_from_and_no_others() -> None:
    tree = grown(
        path("5", noise_free=True),  # 0: says nothing of noisy paths
        path(),  # 1: its children's mean
        path("5", "7", parent=1),  # 2: one of two is right
        path("5", parent=1),  # 3: right
        path(),  # 4: never expanded: unknown, not zero
    )
    assert Lesson.of(tree).targets == {1: 0.75, 2: 0.5, 3: 1.0}
    assert num_targets([Lesson.of(tree), Lesson.of(tree)]) == 6


def test_without_prm_score_the_label_free_agreement_is_learned() -> None:
    tree = grown(path("7"), path("7"), path("5"))  # two of three say 7, one of three says 5
    assert Lesson.of(tree, use_prm_score=True).targets == {0: 0.0, 1: 0.0, 2: 1.0}
    assert Lesson.of(tree, use_prm_score=False).targets == {0: 2 / 3, 1: 2 / 3, 2: 1 / 3}


# --- the other losses -------------------------------------------------------------------------------------------------


def test_bce_is_the_likelihood_of_k_right_of_m_answers() -> None:
    # s = 1/2 with 1 of 1 right, s = 3/4 with 1 of 3: −[log 1/2 + log 3/4 + 2 log 1/4] / 4.
    logits, chances = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 1 / 3])
    likelihood = math.log(1 / 2) + math.log(3 / 4) + 2 * math.log(1 / 4)
    assert math.isclose(bce(logits, chances, torch.tensor([1.0, 3.0])).item(), -likelihood / 4, rel_tol=1e-6)


def test_the_gradient_of_bce_is_score_less_chance_by_weight() -> None:
    logits = torch.tensor([0.0, math.log(3)], requires_grad=True)
    bce(logits, torch.tensor([1.0, 1 / 3]), torch.tensor([1.0, 3.0])).backward()
    # (1/2 − 1) · 1/4 and (3/4 − 1/3) · 3/4
    torch.testing.assert_close(logits.grad, torch.tensor([-1 / 8, 5 / 16]))


def test_listwise_is_the_cross_entropy_within_a_question() -> None:
    # Question 0: softmax (1/4, 3/4), targets (1, 1/2) → (2/3, 1/3). Question 1: softmax (1/2, 1/2) against (0, 1).
    # Question 2: all targets equal.
    logits = torch.tensor([0.0, 1.0, math.log(3), 1.0, 9.0, 5.0], requires_grad=True)
    targets, questions = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.3, 0.3]), torch.tensor([0, 1, 0, 1, 2, 2])
    loss = listwise(logits, groups_of(targets, questions))
    first = -(2 / 3 * math.log(1 / 4) + 1 / 3 * math.log(3 / 4))
    assert math.isclose(loss.item(), (first + math.log(2)) / 2, rel_tol=1e-6)
    loss.backward()
    # (softmax − target) / 2 questions
    expected = torch.tensor([1 / 4 - 2 / 3, 1 / 2, 3 / 4 - 1 / 3, -1 / 2, 0.0, 0.0]) / 2
    torch.testing.assert_close(logits.grad, expected)


def test_pairwise_asks_for_the_difference_of_the_targets() -> None:
    # Question 0: 1 against 1/4 wants 3/4, has −1: 7/4.
    # 1 against 0 wants 1, has 2: 0; 1/4 against 0 wants 1/4, has 3: 0.
    # Question 1: 1 against 0 wants 1, has 1/2: 1/2. Question 2: no pair.
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, 0.0, 7.0, 8.0], requires_grad=True)
    targets, questions = torch.tensor([1.0, 0.25, 0.0, 1.0, 0.0, 0.5, 0.5]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    loss = pairwise(logits, groups_of(targets, questions))
    assert math.isclose(loss.item(), (7 / 4 / 3 + 1 / 2) / 2, rel_tol=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1 / 6, 1 / 6, 0, -1 / 2, 1 / 2, 0, 0]))


def test_questions_stand_beside_those_with_equally_many_paths() -> None:
    # Questions 4 and 7 have two paths, 5 has three, 6 has two whose targets are equal.
    questions = torch.tensor([7, 5, 4, 5, 6, 4, 7, 6, 5])
    targets = torch.tensor([1.0, 0.2, 0.3, 0.2, 0.5, 0.4, 0.0, 0.5, 0.9])
    two, three = groups_of(targets, questions)
    assert two.rows.tolist() == [[2, 5], [0, 6]] and three.rows.tolist() == [[1, 3, 8]]
    assert two.targets.tolist() == targets[two.rows].tolist() and two.weights.tolist() == [1, 1]


@pytest.mark.parametrize(("loss", "first"), [(listwise, math.log(2)), (pairwise, 1.0)])
def test_a_comparison_weighs_what_its_least_reliable_label_does(
    loss: Callable[..., torch.Tensor], first: float
) -> None:
    # Question 0: equal logits against targets 1, 0: log 2, or a margin of 1 that lacks 1. Its weights are 1/2 and 1/4.
    # Question 1: logits 0 and 20 against 0, 1: nearly 0. Its weights are 3/4 and 1. So (1/4 · first + 3/4 · 0) / 1.
    logits, targets = torch.tensor([0.0, 0.0, 0.0, 20.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    groups = groups_of(targets, torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 0.25, 0.75, 1.0]))
    assert loss(logits, groups).item() == pytest.approx(first / 4, abs=1e-6)


def test_a_label_is_the_more_reliable_the_more_answers_it_comes_from() -> None:
    # Var(p) = 1/12; 1/12 over 1/12 + 1/6, + 1/12, + 1/24
    assert reliability(torch.tensor([1.0, 2.0, 4.0])).tolist() == pytest.approx([1 / 3, 1 / 2, 2 / 3])


def test_reliability_is_the_share_of_variance_that_is_the_true_chances() -> None:
    # k is uniform on 0..M when p is uniform on 0..1: Var(k/M) = ((M + 1)² − 1) / 12 / M² = (M + 2) / (12 M).
    for answers in (1, 3, 8):
        labels = torch.arange(answers + 1.0, dtype=torch.float64) / answers
        share = (1 / 12) / labels.var(unbiased=False)
        assert reliability(torch.tensor([float(answers)])).item() == pytest.approx(share.item())


def test_order_asks_the_disordered_chain_to_score_lower_by_its_margin() -> None:
    logits = torch.tensor([2.0, 0.0, 7.0, 0.0, 0.25], requires_grad=True)
    # 0 − 3: 2 is more than 1; 1 − 4: −1/4 lacks 3/4 of 1/2
    loss = order(logits, torch.tensor([0, 1]), torch.tensor([3, 4]), torch.tensor([1.0, 0.5]))
    assert loss.item() == 0.75 / 2
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -0.5, 0.0, 0.0, 0.5]))


@pytest.mark.parametrize("loss", [listwise, pairwise])
def test_without_a_mixed_question_nothing_is_lowered(loss: Callable[..., torch.Tensor]) -> None:
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = loss(logits, groups_of(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0, 0, 1])))
    found.backward()
    assert found.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_latents_are_put_in_another_order_of_a_kind_that_their_number_allows() -> None:
    def drawn(total: int) -> dict[str, set[tuple[float, ...]]]:
        found: dict[str, set[tuple[float, ...]]] = {}
        for seed in range(300):
            kind, other = shuffled(torch.arange(float(total))[:, None], Random(seed))
            found.setdefault(kind, set()).add(tuple(other[:, 0].tolist()))
        return found

    assert drawn(2) == {"adjacent swap": {(1, 0)}}
    assert drawn(3) == {"adjacent swap": {(1, 0, 2), (0, 2, 1)}, "reversal": {(2, 1, 0)}}
    assert drawn(5) == {
        "adjacent swap": {(1, 0, 2, 3, 4), (0, 2, 1, 3, 4), (0, 1, 3, 2, 4), (0, 1, 2, 4, 3)},
        "segment swap": {(2, 3, 0, 1, 4), (0, 3, 4, 1, 2)},
        "reversal": {(4, 3, 2, 1, 0)},
    }
    assert MARGINS["adjacent swap"] < MARGINS["segment swap"] < MARGINS["reversal"]


def test_counts_come_with_prm_scores_only() -> None:
    tree = grown(path("5", "7", "7"), path())
    assert Lesson.of(tree).counts == {0: (1, 3)}
    assert Lesson.of(tree, use_prm_score=False).counts == {}


# --- a step -----------------------------------------------------------------------------------------------------------


def step_of(tree: ReasoningTree, logits: list[Any], correctness: list[Any] | None = None, **options: Any) -> float:
    """The step's loss of one tree whose every labelled path got these logits."""
    read = TrainOptions(**options)
    objective = StepLoss([Lesson.of(tree)], read, lambda *_: Random(0))
    (batch,) = pack(objective.trees, [[]], wanted=objective.wanted, max_seq_length=read.max_seq_length)
    found = Logits(torch.tensor(logits), None if correctness is None else torch.tensor(correctness))
    return objective.share(found, objective.prepare(batch)).item()


def test_a_step_takes_the_binomial_counts_where_they_are_known() -> None:
    # Path 0: 1 of 1; path 1: 1 of 2; all scores 1/2, so log 2 whatever the weights; then score 3/4 for path 1 of M = 2.
    tree = grown(path("5"), path("5", "7"))
    assert math.isclose(step_of(tree, [0.0, 0.0], loss="bce"), math.log(2), rel_tol=1e-6)
    expected = (math.log(2) - math.log(3 / 4) - math.log(1 / 4)) / 3
    assert math.isclose(step_of(tree, [0.0, math.log(3)], loss="bce"), expected, rel_tol=1e-6)


def test_a_weighted_sum_adds_its_terms() -> None:
    tree, logits = grown(path("5"), path("7"), path("5", "7")), [0.3, -0.2, 1.0]
    terms = [step_of(tree, logits, loss=name) for name in ("bce", "listwise", "pairwise")]
    both = step_of(tree, logits, loss="bce + 0.5*listwise+2*pairwise")
    assert math.isclose(both, terms[0] + 0.5 * terms[1] + 2 * terms[2], rel_tol=1e-6)


def test_every_path_weighs_the_same_however_many_latents_are_supervised() -> None:
    # Chain of 4 latents (right) and one of 2 (wrong). Scores 1/2, 3/4, 1/4, 1/2 → squares 1/4, 1/16, 9/16, 1/4.
    tree = grown(path(), path("5", parent=0), path("7"))
    tree.paths[0].prm_score = None
    three = math.log(3)
    logits = [[0.0, three, -three, 0.0], [-three, three, 99.0, 99.0]]  # 1/16, 9/16; what is beyond the end is not read
    expected = ((1 / 4 + 1 / 16 + 9 / 16 + 1 / 4) / 4 + (1 / 16 + 9 / 16) / 2) / 2
    assert math.isclose(step_of(tree, logits, loss="mse", supervise="steps"), expected, rel_tol=1e-6)


def test_paths_are_compared_at_the_same_depth() -> None:
    tree = grown(path(), path("5", parent=0), path("7"))
    tree.paths[0].prm_score = None
    logits = [[0.0, 5.0, -5.0, 0.0], [0.0, 5.0 + math.log(3), 99.0, 99.0]]
    expected = (math.log(2) + math.log(4)) / 2  # beyond the second latent there is nobody to compare with
    assert math.isclose(step_of(tree, logits, supervise="steps", loss="listwise"), expected, rel_tol=1e-6)


def test_order_plants_a_disordered_chain_for_every_right_path() -> None:
    tree = grown(path("5"), path("7"))
    tree.paths[0].latents = torch.arange(8.0).reshape(2, 4)
    objective = StepLoss([Lesson.of(tree)], TrainOptions(loss="mse+order"), lambda *_: Random(0))
    (planted,) = objective.trees[0].paths[2:]
    assert torch.equal(planted.latents, tree.paths[0].latents.flip(0)) and len(tree.paths) == 2
    (batch,) = pack(objective.trees, [[]], wanted=objective.wanted)
    assert objective.rows(batch).tolist() == [0, 1, 0]
    # mse: (1/2 − 1)², (1/2)²; order: an adjacent swap has the margin 1/2, and 0 − 1/4 lacks 3/4 of it
    loss = objective.share(Logits(torch.tensor([0.0, 0.0, 0.25]), None), objective.prepare(batch)).item()
    assert math.isclose(loss, 1 / 4 + 3 / 4, rel_tol=1e-6)


def test_labels_weigh_by_their_answers_when_asked_to() -> None:
    # 1 of 1 weighs 1/3, 1 of 2 weighs 1/2. Scores 1/2 and 3/4: squares 1/4 and 1/16.
    tree, logits = grown(path("5"), path("5", "7")), [0.0, math.log(3)]
    expected = (1 / 4 / 3 + 1 / 16 / 2) / (1 / 3 + 1 / 2)
    assert step_of(tree, logits, loss="mse", weigh_labels=True) == pytest.approx(expected)
    assert step_of(tree, logits, loss="mse") == pytest.approx((1 / 4 + 1 / 16) / 2)
    assert step_of(tree, logits, loss="bce", weigh_labels=True) == step_of(tree, logits, loss="bce")  # M weighs already


def test_labels_of_more_answers_weigh_more_at_each_latent_too() -> None:
    # Four latents, 1 of 1 right: 1/3 together; two latents, 0 of 4 right: 2/3. Scores 1/2 and 3/4.
    tree = grown(path(), path("5", parent=0), path(*"7777"))
    tree.paths[0].prm_score = None
    logits = [[0.0] * 4, [math.log(3)] * 4]
    expected = 1 / 3 * 1 / 4 + 2 / 3 * 9 / 16
    assert step_of(tree, logits, loss="mse", supervise="steps", weigh_labels=True) == pytest.approx(expected)


def test_a_question_weighs_by_its_least_reliable_label_when_asked_to() -> None:
    # Question 0: 1 of 1 and 0 of 4, so 1/3, and log 2. Question 1: 1 of 2 and 0 of 4, so 1/2; softmax (3/4, 1/4).
    trees = [grown(path("5"), path(*"7777")), grown(path("5", "7"), path(*"7777"))]
    options = TrainOptions(loss="listwise", weigh_labels=True)
    objective = StepLoss([Lesson.of(tree) for tree in trees], options, lambda *_: Random(0))
    (batch,) = pack(objective.trees, [[], []], wanted=objective.wanted, pack_tokens=100)
    logits = torch.tensor([0.0, 0.0, math.log(3), 0.0])[objective.rows(batch)]
    loss = objective.share(Logits(logits, None), objective.prepare(batch)).item()
    assert loss == pytest.approx((math.log(2) / 3 - math.log(3 / 4) / 2) / (1 / 3 + 1 / 2))
    assert objective.units == {"listwise": pytest.approx(1 / 3 + 1 / 2)}


def test_labels_of_unknown_counts_all_weigh_the_same() -> None:
    tree, logits = grown(path("5"), path("7"), path("5", "7")), [0.3, -0.2, 1.0]
    lesson = Lesson.of(tree, use_prm_score=False)
    found = []
    for weigh_labels in (True, False):
        objective = StepLoss([lesson], TrainOptions(weigh_labels=weigh_labels), lambda *_: Random(0))
        (batch,) = pack(objective.trees, [[]], wanted=objective.wanted)
        found.append(objective.share(Logits(torch.tensor(logits), None), objective.prepare(batch)).item())
    assert found[0] == pytest.approx(found[1])


def test_the_second_head_learns_whether_any_answer_below_was_right() -> None:
    # 1 of 4 and 1 of 1 are right so far, 0 of 1 is not. Scores 1/2, 3/4, 1/4: −[log 1/2 + log 3/4 + log 3/4] / 3.
    tree, three = grown(path(*"5777"), path("5"), path("7")), math.log(3)
    expected = -(math.log(1 / 2) + 2 * math.log(3 / 4)) / 3
    squares = ((1 / 2 - 1 / 4) ** 2 + (1 / 2 - 1) ** 2 + (1 / 2) ** 2) / 3
    loss = step_of(tree, [0.0, 0.0, 0.0], [0.0, three, -three], loss="mse", correctness_weight=2.0)
    assert loss == pytest.approx(squares + 2 * expected)


def test_a_latent_is_right_so_far_where_any_path_from_it_ended_right() -> None:
    # Paths of two latents: 0 is the parent of 1 (right) and 2 (wrong), so 0's latents are right in 2's chain too.
    # All scores are 3/4 → right: −log 3/4, wrong: −log 1/4. Chain 0: 2 right; 1: 4 right; 2: 2 right, 2 wrong.
    tree = grown(path(), path("5", parent=0), path("7", parent=0))
    right, wrong = -math.log(3 / 4), -math.log(1 / 4)
    logits = [[math.log(3)] * 4] * 3
    mse = (((3 / 4 - 1 / 2) ** 2) + (1 / 4) ** 2 + (3 / 4) ** 2) / 3
    loss = step_of(tree, logits, logits, loss="mse", supervise="steps", correctness_weight=1.0)
    assert loss == pytest.approx(mse + (right + right + (right + wrong) / 2) / 3)
    # The last three latents of each chain: 2's has one of its parent's now.
    cut = [[math.log(3)] * 3] * 3
    loss = step_of(tree, cut, cut, loss="mse", supervise="steps", correctness_weight=1.0, max_seq_length=3)
    assert loss == pytest.approx(mse + (right + right + (right + 2 * wrong) / 3) / 3)


@pytest.mark.parametrize("read", [True, False])
def test_whichever_answer_is_read_a_path_can_end_right_where_any_answer_below_it_did(read: bool) -> None:
    tree = grown(path(*"7555"), path(*"7777"), path(), path(*"75", parent=2))
    lesson = Lesson.of(tree, answer=read)
    objective = StepLoss([lesson], TrainOptions(correctness_weight=1.0), lambda *_: Random(0))
    assert {i: objective.sound[objective.row_of[0, i]].tolist() for i in lesson.targets} == {
        0: [1, 1, 0, 0],
        1: [0, 0, 0, 0],
        2: [1, 1, 0, 0],
        3: [1, 1, 1, 1],
    }


def test_right_and_wrong_answers_cannot_be_both_learned_and_left_out() -> None:
    with pytest.raises(ValueError, match=r"--correctness_weight is 0\.5: .*--no-use_prm_score .*Leave one of the two"):
        TrainOptions(correctness_weight=0.5, use_prm_score=False)


def test_without_counts_a_path_is_right_so_far_where_its_label_is_above_0() -> None:
    tree = grown(path("5"), path("7"), path(""))
    for own, label in zip(tree.paths, (1 / 3, 1 / 3, 0.0), strict=True):  # as another program's labels come
        own.prm_score, own.num_correct, own.num_answers = label, None, None
    lesson = Lesson.of(tree)
    assert lesson.targets == {0: 1 / 3, 1: 1 / 3, 2: 0.0} and not lesson.counts
    objective = StepLoss([lesson], TrainOptions(correctness_weight=1.0), lambda *_: Random(0))
    (batch,) = pack(objective.trees, [[]], wanted=objective.wanted)
    _, units = objective.share(Logits(torch.zeros(3), torch.tensor([20.0, 20.0, -20.0])), objective.prepare(batch)), 3
    assert objective.units["correctness"] == units
    assert dict(zip(objective.terms, objective.sums.tolist(), strict=True))["correctness"] == pytest.approx(0, abs=1e-6)


ALL = "mse+0.5*bce+2*listwise+pairwise+order"


def forest(make_tree: Callable[..., ReasoningTree]) -> list[Lesson]:
    """Questions of one to six paths, two of them in two rounds, with one or three answers to a leaf."""
    sizes = [(1,), (5,), (2, 2), (6,), (3,), (2, 3)]
    return [Lesson.of(make_tree(i, branches=n, width=4, answers=1 + 2 * (i % 2))) for i, n in enumerate(sizes)]


def predicted(objective: StepLoss, batch: PackedBatch) -> Logits:
    """Logits that depend on the path, or path and latent, alone; NaN where nobody should look."""
    number = torch.tensor([100 * i + p for i, p in batch.paths])[:, None] * 31 + torch.arange(batch.chains.shape[1])
    within = torch.arange(batch.chains.shape[1]) < batch.lengths[:, None]
    logits = (number.double().sin() * 2).float().masked_fill(~within, torch.nan)
    logits = logits if objective.by_latent else logits[:, 0]
    return Logits(logits, -logits)


@pytest.mark.parametrize("weigh_labels", [True, False])
@pytest.mark.parametrize("supervise", ["paths", "steps"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_shares_of_many_packs_are_that_of_one(
    supervise: Supervise, weigh_labels: bool, shared: bool, make_tree: Callable[..., ReasoningTree]
) -> None:
    lessons = forest(make_tree)
    options = TrainOptions(loss=ALL, supervise=supervise, weigh_labels=weigh_labels, correctness_weight=0.7)
    found = []
    for pack_tokens in (10_000, 1, 30):
        objective = StepLoss(lessons, options, lambda *where: Random(str(where)))
        cut = {"max_seq_length": options.max_seq_length, "pack_tokens": pack_tokens, "shared": shared, "whole": True}
        batches = list(pack(objective.trees, [[]] * len(lessons), wanted=objective.wanted, **cut))
        total = sum(objective.share(predicted(objective, b), objective.prepare(b)).item() for b in batches)
        found.append([len(batches), total, *objective.sums.tolist()])
        # What is said of a step is the weighted sum of the means of its terms.
        means = [value / objective.units[name] for name, value in zip(objective.terms, objective.sums, strict=True)]
        weighed = sum(weight * float(mean) for weight, mean in zip(objective.terms.values(), means, strict=True))
        assert total == pytest.approx(weighed, abs=1e-6)
    assert min(value for line in found for value in line) > 0
    assert found[1][0] > 1 and math.isfinite(found[0][1])
    for line in found[1:]:
        assert line[1:] == pytest.approx(found[0][1:], rel=1e-5)


@pytest.mark.parametrize("supervise", ["paths", "steps"])
def test_means_over_an_epoch_do_not_depend_on_its_steps(
    supervise: Supervise, make_tree: Callable[..., ReasoningTree]
) -> None:
    # Steps of 1, 2 and all 6 questions, the same predictions in each; orders are left out, for they are drawn by step.
    lessons = forest(make_tree)
    options = TrainOptions(loss=ALL.removesuffix("+order"), supervise=supervise, correctness_weight=1.0)
    found = []
    for size in (1, 2, 6):
        sums, units = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for at in range(0, 6, size):
            objective = StepLoss(lessons[at : at + size], options, lambda *_: Random(0))
            for batch in pack(objective.trees, [[]] * size, wanted=objective.wanted, whole=True):
                numbered = replace(batch, paths=tuple((at + i, p) for i, p in batch.paths))
                objective.share(predicted(objective, numbered), objective.prepare(batch))
            sums, units = sums + objective.sums, units + torch.tensor(list(objective.units.values()))
        found.append((sums / units).tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_step_without_a_mixed_question_says_so_and_teaches_nothing() -> None:
    tree = grown(path("5"), path("5"))
    objective = StepLoss([Lesson.of(tree)], TrainOptions(loss="listwise+order"), lambda *_: Random(0))
    assert objective.units == {"listwise": 0.0, "order": 2.0}
    objective = StepLoss([Lesson.of(grown(path("7")))], TrainOptions(loss="listwise+order"), lambda *_: Random(0))
    (batch,) = pack(objective.trees, [[]], wanted=objective.wanted)
    logits = torch.tensor([1.0], requires_grad=True)
    share = objective.share(Logits(logits, None), objective.prepare(batch))
    share.backward()
    assert share.item() == 0 and logits.grad is not None and logits.grad.tolist() == [0]
    assert objective.units == {"listwise": 0.0, "order": 0.0} and objective.sums.tolist() == [0, 0]


@pytest.mark.parametrize("supervise", ["paths", "steps"])
def test_a_share_never_asks_its_device_for_a_number(
    supervise: Supervise, make_tree: Callable[..., ReasoningTree]
) -> None:
    # Whatever would wait for a GPU (a shape that depends on numbers, a number read) fails on a device without numbers.
    lessons = forest(make_tree)
    options = TrainOptions(loss=ALL, supervise=supervise, weigh_labels=True, correctness_weight=1.0)
    objective = StepLoss(lessons, options, lambda *where: Random(str(where)))
    for batch in pack(objective.trees, [[]] * len(lessons), wanted=objective.wanted, pack_tokens=30):
        shape = batch.chains.shape if objective.by_latent else batch.lengths.shape
        value, correctness = (torch.zeros(shape, device="meta", requires_grad=True) for _ in range(2))
        share = objective.share(Logits(value, correctness), objective.prepare(batch).to("meta"))
        share.backward()
        assert share.device.type == objective.sums.device.type == "meta"
        assert value.grad is not None and correctness.grad is not None


def test_questions_that_teach_nothing_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    trees = [grown(path("5"), path("7")), grown(path("5"), path("5")), grown(path())]
    with caplog.at_level("INFO", "latent_prm"):
        assert len(lessons_of(trees, TrainOptions(loss="bce"))) == 2
        assert not caplog.messages
        lessons_of(trees, TrainOptions(loss="bce+listwise"))
    said = "[Trainer] 1 of 2 questions teach nothing to listwise: their paths' targets are all equal."
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("mes", "'mes' is none of mse, bce, listwise, pairwise, order. Did you mean mse?"),
        ("bce+0.5*listwse", "Did you mean listwise?"),
        ("", "Type one, or a sum as bce"),
        ("0*mse", "'0' must be a number above 0, as in 0.5*mse"),
        ("-1*mse", "'-1' must be a number above 0"),
        ("nan*mse", "'nan' must be a number above 0"),
        ("1e-999*mse", "'1e-999' must be a number above 0"),
        ("1e*mse", "'1e' must be a number above 0"),
        ("mse+2*mse", "names mse twice"),
        ("mse++bce", "'' is none of"),
    ],
)
def test_a_loss_that_is_none_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        TrainOptions(loss=typed)


def test_a_loss_is_read_as_weights() -> None:
    assert TrainOptions().loss_terms() == {"bce": 1.0, "listwise": 0.5}
    assert TrainOptions(loss="mse", correctness_weight=0.5).loss_terms() == {"mse": 1.0, "correctness": 0.5}
    assert TrainOptions(loss="bce + .5*listwise+2*order").loss_terms() == {"bce": 1.0, "listwise": 0.5, "order": 2.0}
    assert TrainOptions(loss="1e-3*mse+2.5E1*bce").loss_terms() == {"mse": 0.001, "bce": 25.0}
