"""A question's tree of latent paths: who descends from whom, and how outcomes flow back to every path.

This room hides the arithmetic of the back-up. It knows nothing of files, models or tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Answer:
    """One decoded text, graded."""

    text: str
    value: str
    """The answer in canonical form, by which votes are counted; "" when the text holds none."""
    correct: bool
    truncated: bool = False
    """The text was cut at the longest length allowed."""


@dataclass(slots=True, kw_only=True, eq=False)
class Path:
    """A run of consecutive latents by one agent. Its index in ``tree.paths`` is its id."""

    latents: Float[Tensor, "T D"]
    """As they were fed to the reasoner (after alignment and noise), float32, T >= 1."""
    tip: Float[Tensor, " D"] | None
    """The aligned hidden state after the last latent, without noise."""
    parent: int | None = None
    """Index of the path this one carries on from. Parents stand before their children."""
    agent: str = "solo"
    noise_free: bool = False
    answers: list[Answer] = field(default_factory=list)
    """What was decoded at the tip. Only a leaf's answers count."""
    prm_score: float | None = None
    """Chance of ending right, 0..1. None: never expanded, so unknown (censored), which is not zero."""
    score: float | None = None
    """Label-free: how far the tree's noisy answers agree with this path's, 0..1. None as for ``prm_score``."""


@dataclass(slots=True, kw_only=True, eq=False)
class ReasoningTree:
    """A question and every path that was grown for it."""

    question_id: str
    question: str
    gold: str
    task: str
    paths: list[Path]

    def children(self, i: int) -> list[int]:
        """The paths that carry on from path ``i``, in order."""
        return [k for k, path in enumerate(self.paths) if path.parent == i]

    def leaves(self) -> list[int]:
        """The paths that nothing carries on from, in order."""
        parents = {path.parent for path in self.paths}
        return [i for i in range(len(self.paths)) if i not in parents]

    def chain(self, i: int) -> list[int]:
        """The paths from the root to path ``i``, both included.

        Raises:
            ValueError: a parent stands at or after its child.
        """
        chain = [i]
        while (parent := self.paths[chain[-1]].parent) is not None:
            self._check_parent(chain[-1], parent)
            chain.append(parent)
        return chain[::-1]

    def chain_latents(self, i: int) -> Float[Tensor, "T D"]:
        """The latents of path ``i``'s chain, root to tip, in one tensor."""
        return torch.cat([self.paths[k].latents for k in self.chain(i)])

    @property
    def mixed(self) -> bool:
        """Whether the noisy leaves' answers are neither all right nor all wrong."""
        outcomes = {answer.correct for answer in self._noisy_answers()}
        return len(outcomes) == 2

    def back_up(self) -> None:
        """Fill ``prm_score`` and ``score`` of every path from the answers of the leaves.

        A leaf's ``prm_score`` is its correct answers / its answers. Its ``score`` is the mean agreement of its answers:
        the share of all the tree's noisy leaf answers (its own included, when it is noisy) with the same value; ""
        agrees with nothing, yet is counted among all. An inner path's are the means of its scored children's; a
        noise-free child does not count for a noisy parent. Both are None where nothing was decoded below.

        Raises:
            ValueError: a parent stands at or after its child.
        """
        votes = Counter(answer.value for answer in self._noisy_answers())
        total = max(1, sum(votes.values()))  # only noise-free answers: there is nobody to agree with, so 0
        votes[""] = 0
        children: list[list[Path]] = [[] for _ in self.paths]
        for i, path in reversed(list(enumerate(self.paths))):  # children stand after parents: they are done first
            if children[i]:
                counted = [child for child in children[i] if path.noise_free or not child.noise_free]
                path.prm_score = _mean(child.prm_score for child in counted)
                path.score = _mean(child.score for child in counted)
            else:
                path.prm_score = _mean(answer.correct for answer in path.answers)
                path.score = _mean(votes[answer.value] / total for answer in path.answers)
            if path.parent is not None:
                self._check_parent(i, path.parent)
                children[path.parent].insert(0, path)

    def _noisy_answers(self) -> list[Answer]:
        leaves = [self.paths[i] for i in self.leaves()]
        return [answer for leaf in leaves if not leaf.noise_free for answer in leaf.answers]

    def _check_parent(self, i: int, parent: int) -> None:
        if not 0 <= parent < i:
            where = f"question {self.question_id!r}, path {i}"
            raise ValueError(f"{where}: its parent is {parent}, but parents must stand before their children.")


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
