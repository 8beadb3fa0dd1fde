"""What an unfinished path is worth: those who say it, and what it costs them.

This room hides how a tree that is still growing is shown to somebody who scores it. A scorer is called with trees and
gives a value from 0 to 1 for the leaves of each. Its cost is counted in latent steps of the reasoner: a position read
costs what a latent step costs, times the parameters it goes through relative to the reasoner's (embeddings, which are
only looked up, not counted). What is computed again at every look is paid for again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float

from latent_prm.feedback import logits_of
from latent_prm.growth import Growth
from latent_prm.model import QwenLatentPRM
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question, Task
from latent_prm.tree import ReasoningTree

ScorerName = Literal["prm", "heuristic", "random", "oracle"]
SCORERS: tuple[ScorerName, ...] = get_args(ScorerName)


class Scorer(Protocol):
    """Who says what paths are worth."""

    name: str
    cost: float
    """What it has computed so far, in latent steps of the reasoner."""
    reads_hidden: bool
    """Whether it reads the hidden states before noise, so that the growth has to keep them."""
    apart: bool
    """Whether what it says of a path does not depend on the others."""

    def __call__(self, trees: Sequence[ReasoningTree]) -> list[Float[np.ndarray, " _"]]:
        """A number per path of each tree, of which only those of the leaves are meant: values from 0 to 1."""
        ...


class PrmScorer:
    """The trained value model. It reads question and living paths anew at every look."""

    name = "prm"

    def __init__(self, model: QwenLatentPRM, reasoner: Reasoner, pack_tokens: int = 16384) -> None:
        self.model, self.pack_tokens, self.cost = model, pack_tokens, 0.0
        self.reads_hidden, self.apart = "hidden" in model.reads, model.sees == "chain"
        size = parameters(model.backbone) + _size(model.projection)
        self.each = size / parameters(reasoner.model.base_model)

    def __call__(self, trees: Sequence[ReasoningTree]) -> list[Float[np.ndarray, " _"]]:
        read = 0

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            nonlocal read
            read += inputs[0].num_tokens

        counting = self.model.register_forward_pre_hook(count)
        try:
            found = self.model.score_trees(trees, pack_tokens=self.pack_tokens)
        finally:
            counting.remove()
        self.cost += read * self.each
        return [scores.double().numpy() for scores in found]


class HeuristicScorer:
    """Free of training: how sure the reasoner is of its next word, 1 - entropy / log(words), read off a path's tip.

    Where the latent map is more than a factor, it is the word that the next input is nearest to.
    """

    name, reads_hidden, apart = "heuristic", False, True

    def __init__(self, reasoner: Reasoner) -> None:
        self.reasoner, self.cost = reasoner, 0.0
        self.head = reasoner.model.get_output_embeddings()
        self.each = self.head.weight.numel() / parameters(reasoner.model.base_model)

    @torch.no_grad()
    def __call__(self, trees: Sequence[ReasoningTree]) -> list[Float[np.ndarray, " _"]]:
        found = []
        for tree in trees:
            values, leaves = np.zeros(len(tree.paths)), tree.leaves()
            tips = torch.stack([tip for i in leaves if (tip := tree.paths[i].tip) is not None])
            hidden = tips.to(self.reasoner.device, self.head.weight.dtype) / self.reasoner.latent_map.factor
            logs = logits_of(self.reasoner.model, hidden).double().log_softmax(-1)
            entropy = -(logs.exp() * logs).sum(-1) / np.log(logs.shape[-1])
            values[leaves] = (1 - entropy).clamp(0, 1).cpu().numpy()
            self.cost += len(leaves) * self.each
            found.append(values)
        return found


class RandomScorer:
    """Lots, drawn from the seed, the question and the number of its paths so far. The control that must be beaten."""

    name, reads_hidden, apart = "random", False, True

    def __init__(self, seed: int = 42) -> None:
        self.seed, self.cost = seed, 0.0

    def __call__(self, trees: Sequence[ReasoningTree]) -> list[Float[np.ndarray, " _"]]:
        return [lots(f"{self.seed}/{tree.question_id}/{len(tree.paths)}", len(tree.paths)) for tree in trees]


class OracleScorer:
    """Knows the truth: 1 where a path, carried on without noise, ends right, else 0. The most that steering can give.

    It re-reads and finishes every path by the reasoner itself, which is what its cost is, and grades by the gold.
    """

    name, reads_hidden, apart = "oracle", False, True

    def __init__(self, reasoner: Reasoner, task: Task, growth: Growth, questions: Sequence[Question]) -> None:
        self.reasoner, self.task, self.growth = reasoner, task, growth
        self.questions = {question.id: question for question in questions}
        self.cost = 0.0

    def __call__(self, trees: Sequence[ReasoningTree]) -> list[Float[np.ndarray, " _"]]:
        questions, leaves = [self.questions[tree.question_id] for tree in trees], [tree.leaves() for tree in trees]
        right, read = self.reasoner.foresee(questions, self.task, self.growth, trees, leaves)
        self.cost += read
        found = []
        for tree, ends, ended in zip(trees, leaves, right, strict=True):
            values = np.zeros(len(tree.paths))
            values[ends] = ended
            found.append(values)
        return found


def parameters(model: Any) -> int:
    """Those that every position goes through: all but the input embedding, of which a position takes a row."""
    return _size(model) - model.get_input_embeddings().weight.numel()


def _size(module: Any) -> int:
    return 0 if module is None else sum(weights.numel() for weights in module.parameters())


def lots(name: str, count: int) -> Float[np.ndarray, " _"]:
    """Numbers in [0, 1) that follow from the name alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")).random(count)


def score_ends(
    scorer: Scorer, trees: Sequence[ReasoningTree], ends: Sequence[Sequence[int]]
) -> list[Float[np.ndarray, " _"]]:
    """What these paths of each tree are worth, in the order named; nothing but their chains is shown and paid for."""
    asked = [at for at, some in enumerate(ends) if some]
    shown = [trees[at].chains(ends[at]) for at in asked]
    values = scorer([tree for tree, _ in shown]) if shown else []
    found = [np.zeros(0) for _ in trees]
    for at, (_, places), each in zip(asked, shown, values, strict=True):
        found[at] = each[places]
    return found
