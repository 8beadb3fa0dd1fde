"""How far down a predicted score may be: what several opinions on the same path make of it.

This room hides where the opinions come from: MC-dropout of one PRM, read off its states in a single pass. The rule
`conservative` of `selector` chooses by the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from latent_prm.model import QwenLatentPRM
from latent_prm.tree import ReasoningTree


def lower_bound(scores: Float[np.ndarray, "M N"], z: float = 1.0) -> Float[np.ndarray, " N"]:
    """Mean - z x standard deviation of M opinions on each of N paths, not below 0.

    The opinions may be draws of MC-dropout, or the scores of several checkpoints, seeds or heads.
    Raises ValueError when there are fewer than two.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} opinion on each path: doubt takes two or more, as several PRMs' scores.")
    return np.clip(scores.mean(0) - z * scores.std(0, ddof=1), 0.0, None)


def lower_bounds(
    model: QwenLatentPRM, trees: Sequence[ReasoningTree], samples: int = 64, seed: int = 0, z: float = 1.0
) -> list[Float[np.ndarray, " P"]]:
    """The `lower_bound` of every path of every tree under MC-dropout, as `scores_and_bounds` has it."""
    return scores_and_bounds(model, trees, samples, seed, z)[1]


@torch.no_grad()
def scores_and_bounds(
    model: QwenLatentPRM,
    trees: Sequence[ReasoningTree],
    samples: int = 64,
    seed: int = 0,
    z: float = 1.0,
    pack_tokens: int = 16384,
) -> tuple[list[Float[torch.Tensor, " P"]], list[Float[np.ndarray, " P"]]]:
    """`QwenLatentPRM.score_trees`, and of every path its `lower_bound` under MC-dropout (arXiv 1506.02142).

    The PRM's only dropout stands before its linear head, so that a draw is a thinned head. The seed fixes all of them;
    each reads every path, whatever it is packed with, from states that are computed once.
    Raises ValueError when the model has no dropout, and as `QwenLatentPRM.score_trees`.
    """
    if not model.dropout.p:
        raise ValueError("This PRM has no dropout, so it shows no doubt: pass several PRMs' scores to lower_bound.")
    head = model.head.weight.detach().float().cpu()
    drawn = torch.rand(samples, head.shape[1], generator=torch.Generator().manual_seed(seed))
    heads = head * (drawn >= model.dropout.p) / (1 - model.dropout.p)  # [samples, H]
    found = [np.zeros(len(tree.paths)) for tree in trees]
    pooled: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[torch.Tensor]) -> None:
        pooled.append(args[0].float().cpu())

    def judge(_: Any, args: tuple[Any, ...], __: Any) -> None:
        opinions = (heads @ pooled.pop().T).sigmoid().double().numpy()  # [samples, K]
        for (tree, path), bound in zip(args[0].paths, lower_bound(opinions, z), strict=True):
            found[tree][path] = bound

    hooks = [model.dropout.register_forward_pre_hook(keep), model.register_forward_hook(judge)]
    try:
        return model.score_trees(trees, pack_tokens=pack_tokens), found
    finally:
        for hook in hooks:
            hook.remove()
