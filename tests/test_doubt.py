"""Lower bounds of scores: as worked by hand, and as dropout would have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_prm.doubt import lower_bound, lower_bounds
from latent_prm.model import QwenLatentPRM
from latent_prm.selector import choose
from latent_prm.tree import ReasoningTree

MakeTree = Callable[..., ReasoningTree]


@pytest.fixture
def model(tiny_lm: Path) -> QwenLatentPRM:
    torch.manual_seed(0)
    made = QwenLatentPRM(model_path=tiny_lm, dropout_prob=0.5).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def test_a_bound_is_the_mean_less_so_many_standard_deviations_and_never_below_nothing():
    opinions = np.array([[0.5, 0.1], [0.7, 0.1], [0.9, 0.4]])
    assert lower_bound(opinions) == pytest.approx([0.7 - 0.2, 0.2 - 0.03**0.5])
    assert lower_bound(opinions, z=2) == pytest.approx([0.3, 0.0])
    with pytest.raises(ValueError, match="1 opinion on each path: doubt takes two or more"):
        lower_bound(opinions[:1])


def test_the_bounds_are_those_of_a_model_that_goes_on_dropping_units(model: QwenLatentPRM, make_tree: MakeTree):
    tree = make_tree(1, branches=(4,))
    found = lower_bounds(model, [tree], samples=4000)[0]
    dropping, opinions = torch.nn.Dropout(0.5), []
    states: list[torch.Tensor] = []
    hook = model.dropout.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    scores = model.score_trees([tree])[0]
    hook.remove()
    with torch.no_grad():
        assert (states[0] @ model.head.weight.T).sigmoid()[:, 0].tolist() == pytest.approx(scores.tolist())
        torch.manual_seed(1)
        opinions = [(dropping(states[0]) @ model.head.weight.T).sigmoid()[:, 0].numpy() for _ in range(4000)]
    assert found == pytest.approx(lower_bound(np.stack(opinions)), abs=0.03)
    assert (found < scores.numpy() - 0.01).any()


def test_the_bounds_depend_on_the_seed_and_not_on_what_is_scored_beside(model: QwenLatentPRM, make_tree: MakeTree):
    trees = [make_tree(seed, branches=(2, 2)) for seed in range(3)]
    together = lower_bounds(model, trees)
    for tree, bounds in zip(trees, together, strict=True):
        assert len(bounds) == len(tree.paths)
        assert lower_bounds(model, [tree])[0] == pytest.approx(bounds, abs=1e-5)
    assert lower_bounds(model, trees, seed=1)[0] != pytest.approx(together[0], abs=1e-3)
    assert not model.dropout._forward_pre_hooks and not model._forward_hooks
    assert choose(trees[0], model.score_trees(trees[:1])[0], "conservative", together[0]).value in {"5", "6", "7"}


def test_a_model_without_dropout_shows_no_doubt(tiny_lm: Path, make_tree: MakeTree):
    with pytest.raises(ValueError, match="no dropout"):
        lower_bounds(QwenLatentPRM(model_path=tiny_lm, dropout_prob=0.0), [make_tree(0)])
