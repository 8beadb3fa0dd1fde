"""How one answer is chosen from a question's paths.

This room hides the rules: best (the path with the highest predicted score), vote (majority by value) and weighted vote
(each path votes with its predicted score). `metrics` measures the same rules over all subsets of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from latent_prm.tree import ReasoningTree

How = Literal["best", "vote", "weighted_vote"]


class Candidates(NamedTuple):
    """What a tree offers for choosing, one entry per candidate."""

    paths: list[int]
    """Indices into tree.paths."""
    values: list[str]
    correct: list[bool]
    scores: list[float]


class Choice(NamedTuple):
    """A chosen answer."""

    value: str
    share: float
    """The value's share of all weight: of the paths for a vote, else of their predicted scores."""
    index: int
    """The best-scored of the paths that gave it (the first of equals): its place in what was chosen from."""


def candidates(tree: ReasoningTree, scores: Float[Tensor, " P"]) -> Candidates:
    """The noisy leaves that decoded an answer, with the predicted scores of these paths.

    Where a leaf decoded several answers the first counts. The noise-free path is a rival, not a candidate.
    """
    paths = [i for i in tree.leaves() if tree.paths[i].answers and not tree.paths[i].noise_free]
    answers = [tree.paths[i].answers[0] for i in paths]
    each = scores.tolist()
    return Candidates(paths, [a.value for a in answers], [a.correct for a in answers], [each[i] for i in paths])


def shares(values: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Each value's share of all weight, in order of first appearance; all zero where there is no weight."""
    total = sum(weights) or 1.0
    found = dict.fromkeys(values, 0.0)
    for value, weight in zip(values, weights, strict=True):
        found[value] += weight / total
    return found


def choose(tree: ReasoningTree, scores: Float[Tensor, " P"], how: How = "weighted_vote") -> Choice:
    """The answer that a tree's noisy paths give together, by the predicted scores of all its paths.

    Raises ValueError when no noisy path decoded an answer.
    """
    found = candidates(tree, scores)
    choice = choose_among(found.values, found.scores, how)
    return choice._replace(index=found.paths[choice.index])


def choose_among(values: Sequence[str], scores: Sequence[float], how: How) -> Choice:
    """The answer that one question's paths give together.

    ``values`` are answers in canonical form and ``scores`` predicted probabilities, one of each per path. ``""`` (no
    answer) is only chosen when there is nothing else; of equals the value that appeared first.
    Raises ValueError when there is no path.
    """
    if not values:
        raise ValueError("There is no path to choose from: grow at least one, with --num_paths 1 or more.")
    by_value = shares(values, [1.0] * len(values) if how == "vote" else scores)
    standing = [i for i, value in enumerate(values) if value != ""] or list(range(len(values)))
    if how == "best":
        index = max(standing, key=lambda i: scores[i])
        return Choice(values[index], by_value[values[index]], index)
    most = max(by_value[values[i]] for i in standing)
    first = next(i for i in standing if by_value[values[i]] >= most - 1e-9)  # as metrics: rounding breaks no tie
    index = max((i for i in standing if values[i] == values[first]), key=lambda i: scores[i])
    return Choice(values[index], by_value[values[index]], index)
