"""An optimizer step's work, made ready while the one before it is computed: hides packs, dropout masks and the thread.

What a step is made of follows from its lessons, the seed and its number alone, so nothing is changed by being early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latent_prm.lessons import Lesson, chance
from latent_prm.losses import Held, StepLoss
from latent_prm.options import TrainOptions
from latent_prm.packing import PackedBatch, pack
from latent_prm.reading import visible

S = TypeVar("S")
T = TypeVar("T")


class PathDropout(nn.Dropout):
    """Dropout whose mask belongs to the path, not to its place in a pack, so that packing never changes a step."""

    keep: Tensor
    """[K, H], or [K, 1, H] where every latent is scored: 0 or 1 / (1 − p), for the K paths that come next."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Dropout."""
        return input * self.keep if self.training and self.p else input


@dataclass(frozen=True)
class Work:
    """One optimizer step, as one process has it before it."""

    items: Sequence[Lesson]
    """The whole step's."""
    objective: StepLoss
    packs: list[tuple[PackedBatch, Held, Tensor]]
    """Of this process's share: the batch, what its logits are held against, and the mask of its paths' dropout."""
    idle: bool
    """Whether that share is empty, and the pack only there to keep the others company."""

    @property
    def num_tokens(self) -> int:
        """Columns with a token or a latent."""
        return 0 if self.idle else sum(batch.num_tokens for batch, *_ in self.packs)

    @property
    def num_columns(self) -> int:
        """All columns, padding too."""
        return 0 if self.idle else sum(batch.positions.numel() for batch, *_ in self.packs)


def prepare(
    items: Sequence[Lesson],
    step: int,
    options: TrainOptions,
    *,
    hidden_size: int,
    dropout: float,
    shared: bool,
    share: Callable[[Sequence[int]], list[int]],
    multiple: int = 1,
) -> Work:
    """The work of the ``step``-th step (0: the first); ``share`` picks this process's part by the lessons' sizes."""
    seed, reads = options.seed, options.read_parts()
    items = [item._replace(tree=visible(item.tree, reads)) for item in items]
    objective = StepLoss(items, options, lambda *path: chance(seed, "disorder", step, *path))
    keep = dropout_mask(objective.num_paths, hidden_size, dropout, chance(seed, "dropout", step).getrandbits(63))
    own = share([item.num_tokens for item in items])
    wanted = [paths if i in set(own or [0]) else [] for i, paths in enumerate(objective.wanted)]
    packs = []
    for batch in pack(
        objective.trees,
        [item.context for item in items],
        wanted=wanted,
        max_seq_length=options.max_seq_length,
        pack_tokens=options.at_once,
        tails=objective.tails,
        siblings=options.sees == "tree",
        shared=shared,
        whole=objective.compares,
        multiple=multiple,
    ):
        mask = keep[objective.rows(batch)]
        packs.append((batch, objective.prepare(batch), mask[:, None] if objective.by_latent else mask))
    return Work(items, objective, packs, idle=not own)


def dropout_mask(rows: int, width: int, dropout: float, seed: int) -> Float[Tensor, "K H"]:
    """0 with the chance ``dropout``, else 1 / (1 − dropout)."""
    kept = 1 - dropout
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((rows, width), kept), generator=generator) / kept


def ahead(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """``make`` of each item, in order, each made in the background while the one before it is in use."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = None
        for item in items:
            coming, ready = thread.submit(make, item), coming
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
