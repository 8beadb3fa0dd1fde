"""Which paths of a growing tree go on: small functions of one question's frontier.

A rule takes the scores [F] of the frontier's paths, their thoughts [F, D] (the next latents, before noise) and the
turn, and says how often each path goes on: 0 is pruned, 2 and more are copies that chance makes differ; never all 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, " F"]
Thoughts = Float[np.ndarray, "F D"]
Counts = Int[np.ndarray, " F"]


class Turn(NamedTuple):
    """What a rule is told beside the frontier."""

    width: int
    """Paths that there would be by now if nothing were steered."""
    progress: float
    """0 at the first turn, 1 at the last."""
    spent: int
    """Latents thought so far, those of pruned paths too."""
    left: int
    """Latents that it takes to carry one path on to the end."""
    whole: int
    """Latents that the growth takes if nothing is steered."""
    lot: float
    """A number in [0, 1), fixed by seed, question and turn."""


Rule = Callable[[Scores, Thoughts, Turn], Counts]


def none(scores: Scores, thoughts: Thoughts, turn: Turn) -> Counts:
    """All go on."""
    return np.ones(len(scores), dtype=int)


def topk(scores: Scores, thoughts: Thoughts, turn: Turn, keep: float = 0.25) -> Counts:
    """The best go on, this share of the width."""
    return _best(scores, round(keep * turn.width))


def adaptive(scores: Scores, thoughts: Thoughts, turn: Turn, first: float = 0.3, last: float = 0.8) -> Counts:
    """The best go on: of those that are left 30 % at the first turn, when most can be saved, 80 % at the last."""
    return _best(scores, round((first + (last - first) * turn.progress) * len(scores)))


def diversity(scores: Scores, thoughts: Thoughts, turn: Turn, keep: float = 0.25, weight: float = 0.5) -> Counts:
    """One by one, those go on whose score (``weight``) and cosine distance to the nearest chosen (the rest) are best.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).
    """
    counts, distance = np.zeros(len(scores), dtype=int), np.ones(len(scores))
    near = cosines(thoughts)
    for _ in range(_some(round(keep * turn.width), scores)):
        worth = np.where(counts == 0, weight * scores + (1 - weight) * distance, -np.inf)
        counts[worth.argmax()] = 1
        distance = np.minimum(distance, 1 - near[worth.argmax()])
    return counts


def budget(scores: Scores, thoughts: Thoughts, turn: Turn, share: float = 0.5) -> Counts:
    """As many of the best go on as can be carried to the end with this ``share`` of what an unsteered growth thinks."""
    return _best(scores, int((share * turn.whole - turn.spent) / turn.left))


def beam(scores: Scores, thoughts: Thoughts, turn: Turn, keep: float = 0.25) -> Counts:
    """The best go on, this share of the width, each as often as the width stays; what is left over goes to the best."""
    chosen = _best(scores, round(keep * turn.width)).astype(bool)
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    return np.where(chosen, turn.width // chosen.sum() + (rank < turn.width % chosen.sum()), 0)


def particles(scores: Scores, thoughts: Thoughts, turn: Turn, temperature: float = 1.0) -> Counts:
    """As many go on as the width, drawn in proportion to score^(1 / temperature) by systematic resampling.

    A particle filter (Rollout Roulette, arXiv 2502.01618): a path of low score may survive, one of high score is not
    all that does.
    """
    weights = np.clip(scores, 1e-9, None) ** (1 / temperature)
    edges = np.cumsum(weights) / weights.sum()
    places = (turn.lot + np.arange(turn.width)) / turn.width
    return np.bincount(np.searchsorted(edges[:-1], places, side="right"), minlength=len(scores))


def uncertain(scores: Scores, thoughts: Thoughts, turn: Turn, band: float = 0.25, times: int = 4) -> Counts:
    """All go on; twice those whose score lies within ``band`` of 1/2, the nearest first, up to ``times`` the width."""
    doubt = np.abs(scores - 0.5)
    wanted = min(int((doubt <= band).sum()), max(0, times * turn.width - len(scores)))
    counts = np.ones(len(scores), dtype=int)
    counts[np.argsort(doubt, kind="stable")[:wanted]] += 1
    return counts


def _some(wanted: int, scores: Scores) -> int:
    return min(max(1, wanted), len(scores))


def _best(scores: Scores, wanted: int) -> Counts:
    counts = np.zeros(len(scores), dtype=int)
    counts[np.argsort(-scores, kind="stable")[: _some(wanted, scores)]] = 1
    return counts


def cosines(thoughts: Thoughts) -> Float[np.ndarray, "F F"]:
    """Of every pair."""
    unit = thoughts / np.linalg.norm(thoughts, axis=1, keepdims=True).clip(1e-12)
    return unit @ unit.T


def merged(scores: Scores, thoughts: Thoughts, cosine: float) -> list[int]:
    """The path that each path is one with: the best-scored (the first of equals) at least so near to it, or itself."""
    near, owner = cosines(thoughts), list(range(len(scores)))
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        owner[i] = next((k for k in chosen if near[i, k] >= cosine), i)
        chosen += [i] if owner[i] == i else []
    return owner
