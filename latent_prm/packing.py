"""Trees → rows of tokens and latents in which each latent attends to its own ancestors only.

A question's text and the latents that paths share are computed once; the result is exactly that of each path alone.
On request half of the attention heads see the whole tree instead: a path is then judged beside its siblings' thoughts.
This room hides which column of which row a latent stands in; what leaves it is a :class:`PackedBatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latent_prm.tree import ReasoningTree


@dataclass(frozen=True)
class PackedBatch:
    """Some trees in R rows of S columns, and where the K wanted paths' chains (at most C latents) stand in them."""

    token_ids: Int[Tensor, "R S"]
    """The question's tokens and those that follow a path's latents; 0 where a latent or padding stands."""
    latents: Float[Tensor, "L D"]
    """All latents, in the order in which ``is_latent`` meets them row by row."""
    is_latent: Bool[Tensor, "R S"]
    positions: Int[Tensor, "R S"]
    """How deep in its own chain a column stands, the question's tokens counted."""
    mask: Bool[Tensor, "R G S S"]
    """Whether the column (second to last) may see another (last), for each of G equal groups of attention heads: 1, or
    2 where the second one sees the whole tree. Padding sees itself, so that no softmax is empty."""
    chains: Int[Tensor, "K C"]
    """Flat columns (row * S + column) of each wanted path's latents, root to tip, and of the tokens that follow them; 0
    beyond its end."""
    lengths: Int[Tensor, " K"]
    """Columns in each chain, at least one."""
    paths: tuple[tuple[int, int], ...]
    """K pairs (index of the tree in what was packed, index of the path in the tree), in the order of ``chains``."""

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device, but for ``token_ids``: these are looked up wherever the embedding is."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "token_ids"}
        moved = {name: value.to(device, non_blocking=True) for name, value in own.items()}
        return replace(self, **moved)

    @property
    def num_tokens(self) -> int:
        """Columns that are not padding."""
        return int((self.positions >= 0).sum())


@dataclass
class _Block:
    """One tree's share of a row: question tokens, then runs of latents, each after its parent run, with its tail."""

    tree: int
    context: Sequence[int]
    runs: list[Float[Tensor, "T D"]]
    tails: list[Sequence[int]]
    """Of each run, the tokens that follow it."""
    parents: list[int]
    apart: list[bool]
    """Of each run, whether the other paths never see it: that of a noise-free path."""
    wanted: list[tuple[int, int, int]]
    """(path, its run, columns in its chain)"""

    @property
    def lengths(self) -> list[int]:
        return [len(run) + len(tail) for run, tail in zip(self.runs, self.tails, strict=True)]

    @property
    def size(self) -> int:
        return len(self.context) + sum(self.lengths)

    def add(self, run: Float[Tensor, "T D"], tail: Sequence[int], parent: int, apart: bool) -> int:
        self.runs.append(run)
        self.tails.append(tail)
        self.parents.append(parent)
        self.apart.append(apart)
        return len(self.runs) - 1

    def chain(self, run: int) -> list[int]:
        out = []
        while run >= 0:
            out.append(run)
            run = self.parents[run]
        return out[::-1]


def pack(
    trees: Sequence[ReasoningTree],
    contexts: Sequence[Sequence[int]],
    *,
    wanted: Sequence[Iterable[int]] | None = None,
    tails: Sequence[Mapping[int, Sequence[int]]] | None = None,
    siblings: bool = False,
    max_seq_length: int = 512,
    pack_tokens: int = 2048,
    shared: bool = True,
    whole: bool = False,
    multiple: int = 1,
) -> Iterator[PackedBatch]:
    """Cut trees into batches of about ``pack_tokens`` columns; a tree is never cut: a large one makes a larger batch.

    ``contexts`` are the token ids that stand before each tree's latents (none: an empty list), ``wanted`` the paths of
    each tree whose scores are to be read (all), and ``tails`` the token ids that follow the latents of a leaf (none).
    With ``siblings`` half of the attention heads see, beside a column's own chain, whatever stands at its depth or
    before in the tree's other noisy paths: what these have thought by then. A chain of more than ``max_seq_length``
    latents loses those at the root end, and is then computed by itself. ``shared=False`` computes every path by itself,
    for backbones that cannot be packed; that may cut a tree, but with ``whole`` it never does: each tree is then a
    batch of its own. Rows are made a ``multiple`` of so many columns wide: a GPU's kernels like few and even widths.
    """
    blocks: list[_Block] = []
    for number, tree in enumerate(trees):
        paths = list(range(len(tree.paths)) if wanted is None else wanted[number])
        groups = [paths] if shared else [[path] for path in paths]
        tail = tails[number] if tails is not None else {}
        blocks += [_block(number, tree, contexts[number], tail, g, max_seq_length, shared) for g in groups if g]
    if whole and not shared:
        for _, own in groupby(blocks, key=lambda block: block.tree):
            rows = [[block] for block in own]
            yield _lay_out(rows, _rounded_up(max(block.size for (block,) in rows), multiple), siblings)
        return
    blocks.sort(key=lambda block: -block.size)  # stable: the layout depends on the trees alone
    while blocks:
        width = _rounded_up(blocks[0].size, multiple)
        rows: list[list[_Block]] = [[] for _ in range(max(1, pack_tokens // width))]
        room, left = [width] * len(rows), []
        for block in blocks:
            row = next((r for r, free in enumerate(room) if block.size <= free and (shared or not rows[r])), None)
            if row is None:
                left.append(block)
            else:
                rows[row].append(block)
                room[row] -= block.size
        yield _lay_out([row for row in rows if row], width, siblings)
        blocks = left


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _block(
    number: int,
    tree: ReasoningTree,
    context: Sequence[int],
    tails: Mapping[int, Sequence[int]],
    paths: list[int],
    longest: int,
    shared: bool,
) -> _Block:
    block, run_of = _Block(number, context, [], [], [], [], []), {}
    for path in sorted(paths):
        chain, tail = tree.chain(path), tails.get(path, ())
        length = tree.chain_length(path)
        if shared and length <= longest:
            for p in chain:
                if p not in run_of:
                    own, parent = tree.paths[p], tree.paths[p].parent
                    above = -1 if parent is None else run_of[parent]
                    run_of[p] = block.add(own.latents, tails.get(p, ()), above, own.noise_free)
            run = run_of[path]
        else:
            run = block.add(tree.chain_latents(path)[-longest:], tail, -1, tree.paths[path].noise_free)
        block.wanted.append((path, run, min(length, longest) + len(tail)))
    return block


def _lay_out(rows: list[list[_Block]], width: int, siblings: bool) -> PackedBatch:
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    is_latent = torch.zeros(len(rows), width, dtype=torch.bool)
    positions = torch.full((len(rows), width), -1)
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1 + siblings, 1, 1)
    latents: list[Tensor] = []
    chains: list[Tensor] = []
    paths: list[tuple[int, int]] = []
    for r, row in enumerate(rows):
        at = 0
        for block in row:
            end, begin = at + block.size, at + len(block.context)
            token_ids[r, at:begin] = torch.tensor(block.context, dtype=torch.long)
            positions[r, at:begin] = torch.arange(len(block.context))
            latents += block.runs
            columns: list[Tensor] = []
            for run, tail, length, parent in zip(block.runs, block.tails, block.lengths, block.parents, strict=True):
                depth = len(block.context) if parent < 0 else int(positions[r, columns[parent][-1]]) + 1
                columns.append(torch.arange(begin, begin + length))
                positions[r, columns[-1]] = torch.arange(depth, depth + length)
                is_latent[r, begin : begin + len(run)] = True
                begin += length
                token_ids[r, begin - len(tail) : begin] = torch.tensor(tail, dtype=torch.long)
            own = _ancestry(block)
            mask[r, 0, at:end, at:end] = own
            if siblings:
                mask[r, 1, at:end, at:end] = own | _beside(block, positions[r, at:end])
            for path, run, length in block.wanted:
                chains.append(torch.cat([columns[c] for c in block.chain(run)])[-length:] + r * width)
                paths.append((block.tree, path))
            at = end
    lengths = torch.tensor([len(chain) for chain in chains])
    padded = torch.nn.utils.rnn.pad_sequence(chains, batch_first=True)
    return PackedBatch(token_ids, torch.cat(latents), is_latent, positions, mask, padded, lengths, tuple(paths))


def _ancestry(block: _Block) -> Bool[Tensor, "S S"]:
    """Who sees whom within a block: all see the question, a run sees the runs of its chain, nobody looks ahead."""
    runs = len(block.runs)
    above = torch.zeros(runs + 1, runs + 1, dtype=torch.bool)
    above[:, 0] = True
    for run in range(runs):
        above[run + 1, [c + 1 for c in block.chain(run)]] = True
    lengths = torch.tensor([len(block.context), *block.lengths])
    owner = torch.arange(runs + 1).repeat_interleave(lengths)
    return above[owner][:, owner] & torch.ones(block.size, block.size, dtype=torch.bool).tril()


def _beside(block: _Block, positions: Int[Tensor, " S"]) -> Bool[Tensor, "S S"]:
    """Who sees whom across a block's paths: what stands no deeper, unless its path is kept apart."""
    lengths = torch.tensor([len(block.context), *block.lengths])
    apart = torch.tensor([False, *block.apart]).repeat_interleave(lengths)
    return (positions[None] <= positions[:, None]) & ~apart[None]
