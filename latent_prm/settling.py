"""When a question has paths enough: how settled the answer of those so far is.

This room hides two accounts of that. `surety` needs nothing but votes: how likely the leader still leads when all paths
are there. What `fit_regret` learns from other questions asks what matters more: how likely those to come mend the
answer, which they do neither where it is right nor where nobody will ever find it. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from latent_prm.metrics import Pool
from latent_prm.odds import Odds, fit_odds, log_odds
from latent_prm.selector import How, choose_among, shares

Settled = Callable[[Sequence[str], Any, int], float]
"""(answers of the paths so far, their scores [N], paths to come) → how settled the answer is, 0..1."""
FEATURES = (
    "share of the paths",
    "log-odds of its best score",
    "log-odds of its mean score",
    "log of the number of paths",
    "log of those to come for each of these",
    "log-odds of the best score of another answer",
    "mean score of all paths",
)
"""What regret is told from, with their squares and products: a lead means little among few, much among many."""
NUM_FEATURES = len(FEATURES) * (len(FEATURES) + 3) // 2
CONFIDENCE = 0.98
"""From which on an answer counts as settled, unless told otherwise."""
_TIE = 1e-9


# --- two accounts ---------------------------------------------------------------------------------------------------


def by_agreement(values: Sequence[str], scores: Float[np.ndarray, " N"], left: int) -> float:
    """`surety` where every path votes alike."""
    return surety(values, np.ones(len(values)), left)


def by_prm(values: Sequence[str], scores: Float[np.ndarray, " N"], left: int) -> float:
    """`surety` where each votes with its score, so that what nobody believes in settles nothing."""
    return surety(values, scores, left)


def surety(values: Sequence[str], weights: Float[np.ndarray, " N"], left: int | None = None) -> float:
    """How likely the answer that leads now leads the runner-up when ``left`` more paths have voted; None: for ever.

    By the weights of their votes the shares of the two have a Beta(1 + lead, 1 + second) posterior, and each path to
    come votes for one of them, with the mean weight: a beta-binomial. For ever, it is the chance of a share above 1/2,
    as in adaptive consistency (arXiv 2305.11860). No answer is no candidate; a tie is half a lead.
    """
    from scipy.special import betainc, betaln, gammaln

    cast = shares(values, weights.tolist())
    most = sorted([share for value, share in cast.items() if value != ""] + [0.0, 0.0], reverse=True)[:2]
    first, second = (share * float(weights.sum()) for share in most)
    if left is None:
        return float(betainc(1 + second, 1 + first, 0.5))
    turned = np.arange(left + 1)  # of the paths to come, those that vote for the runner-up
    ways = gammaln(left + 1) - gammaln(turned + 1) - gammaln(left - turned + 1)
    chance = np.exp(ways + betaln(1 + second + turned, 1 + first + left - turned) - betaln(1 + second, 1 + first))
    lead = first - second + weights.mean() * (left - 2 * turned)
    return float(chance @ ((lead > _TIE) + 0.5 * (abs(lead) <= _TIE)))


def by_regret(odds: Odds, how: How) -> Settled:
    """1 - the chance that the paths to come mend what ``how`` chooses now, as `fit_regret` has learnt it."""

    def settled(values: Sequence[str], scores: Float[np.ndarray, " N"], left: int) -> float:
        choice = choose_among(values, scores, how)
        if left == 0 or choice.value == "":  # no answer at all settles nothing
            return float(left == 0)
        return 1 - odds(features(values, scores, choice.value, left))

    return settled


# --- learning regret ------------------------------------------------------------------------------------------------


def fit_regret(pool: Pool, how: How, seed: int) -> Odds:
    """How likely an answer chosen early is wrong where the one chosen from all paths is right.

    Learnt from a seeded order of every question's paths, stopped at each of 1, 2, 3, 4, 6, 8, 12, … of all and of half
    of them, so that it knows what it means that many or few are to come.
    """
    rng, rows, mended = np.random.default_rng(seed), [], []
    for values, correct, scores in zip(pool.values, pool.correct, pool.scores, strict=True):
        order = rng.permutation(len(values))
        own, right, p = [values[i] for i in order], correct[order], scores[order]
        for most in sorted({len(own) // 2, len(own)} - {0}):
            in_the_end = right[choose_among(own[:most], p[:most], how).index]
            for used in _sizes(most):
                now = choose_among(own[:used], p[:used], how)
                if now.value != "":
                    rows.append(features(own[:used], p[:used], now.value, most - used))
                    mended.append(bool(in_the_end and not right[now.index]))
    return fit_odds(rows, mended, [1.0] * len(rows), NUM_FEATURES)


def features(values: Sequence[str], scores: Float[np.ndarray, " N"], value: str, left: int) -> Float[np.ndarray, " F"]:
    """The `FEATURES` of one of the answers that the paths so far gave, their squares and their products."""
    own = np.array([other == value for other in values])
    p = np.asarray(scores, dtype=float)
    others = float(p[~own].max()) if not own.all() else 0.0
    best, mean, other = log_odds(np.array([p[own].max(), p[own].mean(), others]), 1e-3)
    size = len(p)
    plain = np.array([own.mean(), best, mean, math.log(size), math.log(left / size), other, p.mean()])
    rows, columns = np.triu_indices(len(plain))
    return np.concatenate([plain, plain[rows] * plain[columns]])


def _sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, … below."""
    return sorted(size for size in {m << i for m in (1, 3) for i in range(most.bit_length())} if size < most)


# --- stopping -------------------------------------------------------------------------------------------------------


def rounds(num_paths: int, first: int, more: int) -> list[int]:
    """How many paths there are after each round: ``first``, then ``more`` each time, up to all."""
    return [*range(min(first, num_paths), num_paths, more), num_paths]


def paths_used(
    values: Sequence[str],
    scores: Float[np.ndarray, " N"],
    confidence: float,
    settled: Settled,
    first: int = 2,
    more: int = 1,
) -> int:
    """After how many of these paths, in their order, `steering.Anytime` would have stopped."""
    for used in (sizes := rounds(len(values), first, more)):
        if settled(values[:used], scores[:used], len(values) - used) >= confidence:
            return used
    return sizes[-1]
