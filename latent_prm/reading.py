"""What a PRM reads of a tree: hides which tensors stand for a latent, where the tip goes, and which answer is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch

from latent_prm.tree import Path, ReasoningTree

T = TypeVar("T")

COPIED = {"hidden", "tip"}
"""What is not read from where it is: data may be larger than memory, copies of all of them are not."""
HANDFUL = 8
"""Trees of which there is a copy at a time."""


class Read(NamedTuple):
    """What is read of a tree; `packing.pack` lays it out."""

    tree: ReasoningTree
    """Its latents are those that are read."""
    context: Sequence[int]
    """The tokens that stand before them."""
    tails: Mapping[int, Sequence[int]]
    """By path, the tokens that follow."""


def read_trees(
    trees: Sequence[ReasoningTree],
    reads: Collection[str],
    tokens: Callable[[Sequence[str]], list[list[int]]],
    context: bool = True,
) -> list[Read]:
    """What there is of ``reads`` (some of `options.READABLE`) in each tree; ``tokens`` makes token ids of texts.

    Latents as fed and hidden states stand side by side (2 D wide). A leaf's tip follows its latents, as wide as they
    are; behind it stand the tokens of its first answer, in canonical form. ``context``: the question stands in front.
    Raises ValueError when hidden states are asked for and a path has none.
    """
    contexts = tokens([tree.question for tree in trees]) if context else [[]] * len(trees)
    seen = [visible(tree, reads) for tree in trees]
    tails = [_answers(tree, tokens) if "answer" in reads else {} for tree in trees]
    return [Read(*parts) for parts in zip(seen, contexts, tails, strict=True)]


def visible(tree: ReasoningTree, reads: Collection[str]) -> ReasoningTree:
    """The tree with what is read for latents in their place: of tips and hidden states, a copy.

    Raises ValueError as `read_trees`.
    """
    if not COPIED & set(reads):
        return tree
    leaves = set(tree.leaves()) if "tip" in reads else set()
    paths: list[Path] = []
    for i, path in enumerate(tree.paths):
        parts = [path.latents] if "fed" in reads else []
        if "hidden" in reads:
            if path.hidden is None:
                raise ValueError(
                    f"question {tree.question_id}, path {i}: it has no hidden states, which this PRM reads. "
                    "Collect with --keep_hidden, or train with --reads fed."
                )
            parts.append(path.hidden)
        if i in leaves and path.tip is not None:
            parts = [torch.cat([part, path.tip[None]]) for part in parts]
        paths.append(replace(path, latents=torch.cat(parts, 1), tip=None, hidden=None))
    return replace(tree, paths=paths)


def handfuls(items: Sequence[T], reads: Collection[str], hands: int = 1) -> Iterator[Sequence[T]]:
    """The items, in order: all at once, or a few for each of so many hands where what is read of them is a copy."""
    size = HANDFUL * hands if COPIED & set(reads) else max(1, len(items))
    return (items[at : at + size] for at in range(0, len(items), size))


def _answers(tree: ReasoningTree, tokens: Callable[[Sequence[str]], list[list[int]]]) -> dict[int, list[int]]:
    """The tokens of the first answer of each leaf that gave one."""
    values = {i: tree.paths[i].answers[0].value for i in tree.leaves() if tree.paths[i].answers}
    values = {i: value for i, value in values.items() if value}
    return dict(zip(values, tokens(list(values.values())), strict=True))
