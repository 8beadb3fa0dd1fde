"""What the model is trained to do: hides which paths teach what, and how predictions become one number to lower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from latent_prm.tree import ReasoningTree


class Lesson(NamedTuple):
    """A question's tree and what is learned of it."""

    tree: ReasoningTree
    targets: dict[int, float]
    """By path; 0..1."""
    context: Sequence[int] = ()
    """The tokens read before its latents."""

    @classmethod
    def of(cls, tree: ReasoningTree, use_prm_score: bool = True) -> Lesson:
        """A tree with the target of each of its noisy paths: its prm_score, or its label-free score.

        A path that was never expanded has no score and so no target: it is unknown, not zero.
        """
        scores = {i: path.prm_score if use_prm_score else path.score for i, path in enumerate(tree.paths)}
        noisy = {i: score for i, score in scores.items() if not tree.paths[i].noise_free}
        return cls(tree, {i: score for i, score in noisy.items() if score is not None})


def num_targets(lessons: Iterable[Lesson]) -> int:
    """Labelled paths of all lessons: the guide's samples."""
    return sum(len(lesson.targets) for lesson in lessons)


def mse(logits: Float[Tensor, " K"], targets: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Mean of (sigmoid(logit) − target)² over K paths, in float32 whatever the logits are in; targets are in 0..1.

    It is lowest where the predicted score is the chance of ending right (the Brier score of that chance).
    """
    return (logits.float().sigmoid() - targets.float()).square().mean()
