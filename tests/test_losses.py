"""losses.py: what is learned of a tree, and the number to lower, by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

from latent_prm.lessons import Lesson, lessons_of, num_targets
from latent_prm.losses import (
    MARGINS,
    StepLoss,
    bce,
    listwise,
    mse,
    order,
    pairwise,
    shuffled,
)
from latent_prm.options import TrainOptions
from latent_prm.packing import pack
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
    loss = listwise(logits, targets, questions)
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
    loss = pairwise(logits, targets, questions)
    assert math.isclose(loss.item(), (7 / 4 / 3 + 1 / 2) / 2, rel_tol=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-1 / 6, 1 / 6, 0, -1 / 2, 1 / 2, 0, 0]))


def test_order_asks_the_disordered_chain_to_score_lower_by_its_margin() -> None:
    logits, other = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([0.0, 0.25], requires_grad=True)
    loss = order(logits, other, torch.tensor([1.0, 0.5]))  # 2 is more than 1; −1/4 lacks 3/4 of 1/2
    assert loss.item() == 0.75 / 2
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(other.grad, torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("loss", [listwise, pairwise])
def test_without_a_mixed_question_nothing_is_lowered(loss: Callable[..., torch.Tensor]) -> None:
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = loss(logits, torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0, 0, 1]))
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


def step_of(tree: ReasoningTree, logits: list[Any], **options: Any) -> float:
    """The step's loss of one tree whose every labelled path got these logits."""
    objective = StepLoss([Lesson.of(tree)], TrainOptions(**options), lambda *_: Random(0))
    (batch,) = pack(objective.trees, [[]], wanted=objective.wanted)
    return objective.share(torch.tensor(logits), batch).item()


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
    assert math.isclose(step_of(tree, logits, supervise="steps"), expected, rel_tol=1e-6)


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
    loss = objective.share(torch.tensor([0.0, 0.0, 0.25]), batch).item()
    assert math.isclose(loss, 1 / 4 + 3 / 4, rel_tol=1e-6)


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
        ("mse+2*mse", "names mse twice"),
        ("mse++bce", "'' is none of"),
    ],
)
def test_a_loss_that_is_none_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        TrainOptions(loss=typed)


def test_a_loss_is_read_as_weights() -> None:
    assert TrainOptions().loss_terms() == {"mse": 1.0}
    assert TrainOptions(loss="bce + .5*listwise+2*order").loss_terms() == {"bce": 1.0, "listwise": 0.5, "order": 2.0}
