"""Requests that wait are scored together, as many as fit into a pack of so many tokens.

This room hides the queue: it is bounded, nobody waits for others to come, and what one request does wrong its
batch-mates do not feel. A score does not depend on what it is computed with.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latent_prm.model import QwenLatentPRM
from latent_prm.reading import Read

log = logging.getLogger(__name__)

READ_OUTS = 8
"""Scores read off per token of a batch, at most: a deep tree has one for every latent above every path."""


class Full(Exception):
    """Nobody else may wait."""


class Scored(NamedTuple):
    """What a path is worth."""

    score: float
    steps: list[float]
    """The score after each latent of the path's chain, root to tip."""


class Size(NamedTuple):
    """What a request takes."""

    tokens: int
    paths: int
    longest: int
    """Latents, and tokens after them, of its longest chain."""


ScoreAll = Callable[[Sequence[Read]], list[list[Scored]]]


@dataclass(eq=False)
class _Job:
    read: Read
    size: Size
    done: asyncio.Future[list[Scored]]


def size_of(model: QwenLatentPRM, read: Read, batch_tokens: int) -> Size:
    """What scoring these paths takes.

    Raises ValueError for latents of another width than the model reads, for a chain, or a question and a chain, longer
    than it can read, and for more than fits into a batch.
    """
    depth: list[int] = []
    for i, path in enumerate(read.tree.paths):
        if path.latents.shape[1] != model.latent_dim:
            width = path.latents.shape[1] // (model.latent_dim // model.thought_dim)
            raise ValueError(
                f"Path {i}: its latents are {width} wide, but this PRM reads latents {model.thought_dim} wide."
            )
        depth.append(len(path.latents) + (0 if path.parent is None else depth[path.parent]))
    if max(depth) > model.max_seq_length:
        raise ValueError(f"A chain has {max(depth)} latents, but this PRM reads {model.max_seq_length} at most.")
    chains = [length + len(read.tails.get(i, ())) for i, length in enumerate(depth)]
    positions = model.num_positions
    if positions and len(read.context) + max(chains) > positions:
        raise ValueError(
            f"The question and a chain take {len(read.context) + max(chains)} positions, but this PRM has {positions}."
        )
    if model.shares:
        tokens = len(read.context) + sum(len(p.latents) for p in read.tree.paths) + sum(map(len, read.tails.values()))
    else:
        tokens = sum(len(read.context) + chain for chain in chains)
    size = Size(tokens, len(chains), max(chains))
    if not _fits([size], batch_tokens):
        raise ValueError(
            f"{size.paths} paths with chains of up to {size.longest} take {tokens} tokens, too many for one request "
            f"(--batch_tokens {batch_tokens}): send them in several."
        )
    return size


def _fits(sizes: Sequence[Size], batch_tokens: int) -> bool:
    read_outs = sum(size.paths for size in sizes) * max(size.longest for size in sizes)
    return sum(size.tokens for size in sizes) <= batch_tokens and read_outs <= READ_OUTS * batch_tokens


@torch.no_grad()
def score(model: QwenLatentPRM, reads: Sequence[Read], batch_tokens: int) -> list[list[Scored]]:
    """The score of every path of each tree, and after each latent. Raises ValueError when one is no number."""
    found: list[list[Scored | None]] = [[None] * len(read.tree.paths) for read in reads]
    with model.evaluating():
        for batch in model.packs(reads, max_seq_length=model.max_seq_length, pack_tokens=batch_tokens):
            values = model(batch.to(model.device), by_latent=True).value.sigmoid().cpu()
            for row, length, (tree, path) in zip(values.tolist(), batch.lengths.tolist(), batch.paths, strict=True):
                said = Scored(row[length - 1], row[: reads[tree].tree.chain_length(path)])
                if not all(0 <= step <= 1 for step in (said.score, *said.steps)):  # as NaN is not
                    raise ValueError(f"Path {path}: its score is not a number: its latents are out of all proportion.")
                found[tree][path] = said
    return [[one for one in own if one is not None] for own in found]


def apart(score: ScoreAll, reads: Sequence[Read]) -> list[list[Scored] | Exception]:
    """Scored together, or where that fails one by one: what is no number for one may become none for its mates."""
    try:
        return [*score(reads)]
    except Exception as error:
        if len(reads) == 1:
            if not isinstance(error, ValueError):
                log.exception("Scoring failed.")
            return [error]
    return [outcome for read in reads for outcome in apart(score, [read])]


class Batcher:
    """Scores what is asked of it, batch by batch, in a thread of its own while :meth:`run` runs."""

    def __init__(
        self,
        score: ScoreAll,
        batch_tokens: int,
        queue_size: int,
        tell: Callable[[int, int], None] = lambda requests, tokens: None,
    ) -> None:
        self._score, self.batch_tokens, self.queue_size, self._tell = score, batch_tokens, queue_size, tell
        self._waiting: deque[_Job] = deque()
        self._woken = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        self._forget()
        return len(self._waiting) >= self.queue_size

    async def submit(self, read: Read, size: Size) -> list[Scored]:
        """The scores of a tree's paths; cancelled, it is forgotten. Raises `Full`, and whatever the scoring raises."""
        if self.full:
            raise Full
        job = _Job(read, size, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._woken.set()
        return await job.done

    async def run(self) -> None:
        """Score until cancelled."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                while jobs := self._next():
                    self._tell(len(jobs), sum(job.size.tokens for job in jobs))
                    reads = [job.read for job in jobs]
                    outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, apart, self._score, reads)
                    for job, outcome in zip(jobs, outcomes, strict=True):
                        if job.done.done():  # who asked has gone
                            continue
                        if isinstance(outcome, Exception):
                            job.done.set_exception(outcome)
                        else:
                            job.done.set_result(outcome)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        if any(job.done.done() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.done.done())

    def _next(self) -> list[_Job]:
        """Those that have waited longest, as many as fit together."""
        self._forget()
        jobs: list[_Job] = []
        while self._waiting and _fits([*(job.size for job in jobs), self._waiting[0].size], self.batch_tokens):
            jobs.append(self._waiting.popleft())
        return jobs
