"""losses.py: what is learned of a tree, and the number to lower, by hand."""

from __future__ import annotations

import math

import torch

from latent_prm.losses import Lesson, mse, num_targets
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
