"""How one answer is chosen from a question's paths.

This room hides the rules, which are all of one kind: every path votes for its answer with a weight (`weights`), and the
answer with the most weight wins. Only best is none: it takes the one path with the highest score. `metrics` measures
the same rules over all subsets of a pool, `confidence` says how likely what was chosen is right. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor

    from latent_prm.tree import ReasoningTree

How = Literal["best", "vote", "weighted_vote", "logit_vote", "rank_vote", "tie_break", "conservative", "agreement"]
HOWS: tuple[How, ...] = get_args(How)
NEEDS_LOWER: frozenset[How] = frozenset({"conservative"})
"""The rules that need a lower bound of every score."""

_TIE = 1e-9  # as in metrics: two sums of the same weights in another order differ by rounding
_SUREST = 1 - 1e-4  # No one path may outvote any number of others.


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
    """The value's share of all weight under the rule: of the paths for a vote, of their predicted scores for best."""
    index: int
    """The best-scored of the paths that gave it (the first of equals): its place in what was chosen from."""
    probability: float | None = None
    """How likely it is right, calibrated on other questions (`confidence.Confidence`); None: nobody has asked."""


def candidates(tree: ReasoningTree, scores: Float[Tensor, " P"]) -> Candidates:
    """What the tree offers, with the predicted scores of these paths."""
    return candidates_of(tree, tree.offered(), scores.tolist())


def candidates_of(tree: ReasoningTree, paths: list[int], scores: Sequence[float]) -> Candidates:
    """These paths of a tree, with their scores among those of all its paths. Where one decoded several answers the
    first counts.
    """
    answers = [tree.paths[i].answers[0] for i in paths]
    return Candidates(paths, [a.value for a in answers], [a.correct for a in answers], [scores[i] for i in paths])


def shares(values: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Each value's share of all weight, in order of first appearance; all zero where there is no weight."""
    total = sum(weights) or 1.0
    found = dict.fromkeys(values, 0.0)
    for value, weight in zip(values, weights, strict=True):
        found[value] += weight / total
    return found


@runtime_checkable
class Scorer(Protocol):
    """Whatever says what each path of a tree is worth: a `model.QwenLatentPRM`."""

    def score(self, trees: ReasoningTree, /) -> Float[Tensor, " P"]:
        """The predicted score of every path."""
        ...


def choose(
    tree: ReasoningTree,
    scores: Float[Tensor, " P"] | Scorer,
    how: How = "weighted_vote",
    lower: Float[Tensor, " P"] | Float[np.ndarray, " P"] | None = None,
) -> Choice:
    """The answer that a tree's noisy paths give together, by the predicted scores of all its paths, or by the PRM.

    >>> from latent_prm import choose
    >>> choose(tree, prm).value
    '10 20'
    >>> choose(tree, prm.score(tree), how="best").index in tree.offered()
    True

    ``lower`` holds a lower bound of each score, as `doubt.lower_bounds` returns them for several trees.
    Raises ValueError when no noisy path decoded an answer, when there is not a score for every path, and for an unknown
    rule or one that lacks its ``lower``.
    """
    by_path = scores.score(tree) if isinstance(scores, Scorer) else scores
    if len(by_path) != len(tree.paths):
        raise ValueError(f"{len(by_path)} scores for {len(tree.paths)} paths: give one for each, as prm.score(tree).")
    found = candidates(tree, by_path)
    bounds = None if lower is None else np.array([lower.tolist()[i] for i in found.paths])
    choice = choose_among(found.values, found.scores, how, bounds)
    return choice._replace(index=found.paths[choice.index])


def choose_among(
    values: Sequence[str],
    scores: Sequence[float] | Float[np.ndarray, " N"],
    how: How,
    lower: Sequence[float] | Float[np.ndarray, " N"] | None = None,
) -> Choice:
    """The answer that one question's paths give together.

    ``values`` are answers in canonical form and ``scores`` predicted probabilities, one of each per path. ``""`` (no
    answer) is only chosen when there is nothing else; of equals the value that appeared first.
    Raises ValueError when there is no path, and as `weights`.
    """
    if not len(values):
        raise ValueError("There is no path to choose from: grow at least one, with --num_paths 1 or more.")
    p = np.asarray(scores, dtype=float)
    if np.isnan(p).any():
        raise ValueError("A predicted score is nan, by which nothing can be chosen: look at the latents, or the PRM.")
    by_value = shares(values, weights(how, values, p, None if lower is None else np.asarray(lower)).tolist())
    standing = [i for i, value in enumerate(values) if value != ""] or list(range(len(values)))
    if how == "best":
        index = max(standing, key=lambda i: p[i])
        return Choice(values[index], by_value[values[index]], index)
    most = max(by_value[values[i]] for i in standing)
    first = next(i for i in standing if by_value[values[i]] >= most - _TIE)  # as metrics: rounding breaks no tie
    index = max((i for i in standing if values[i] == values[first]), key=lambda i: p[i])
    return Choice(values[index], by_value[values[index]], index)


# --- the rules ------------------------------------------------------------------------------------------------------


def weights(
    how: How,
    values: Sequence[str],
    scores: Float[np.ndarray, " N"],
    lower: Float[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " N"]:
    """What the vote of each of a question's N paths weighs under a rule; never negative.

    ``scores`` are probabilities, except for vote and rank_vote, which take any numbers. best, which is no vote, weighs
    as weighted_vote where a share is to be shown.
    Raises ValueError for an unknown rule, and when conservative has no ``lower``.
    """
    if how not in _RULES:
        raise ValueError(f"There is no rule {how!r} to choose by: type one of {', '.join(HOWS)}.")
    if how == "conservative":
        if lower is None:
            raise ValueError(
                "The rule conservative needs a lower bound of every score: pass lower=, from "
                "latent_prm.doubt.lower_bounds(model, trees), or choose by another rule."
            )
        return _conservative(lower)
    return _RULES[how](values, scores)


def _vote(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1: majority, or self-consistency (arXiv 2203.11171).

    Assumes that wrong paths scatter over many answers while right ones agree; listens to no PRM.
    """
    return np.ones(len(values))


def _weighted_vote(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """p: an answer's weight is the number of right paths expected among those that gave it (arXiv 2206.02336).

    Assumes that scores are on one scale within a question. It bears correlated paths and scores that are off by a
    factor.
    """
    return scores.astype(float)


def _logit_vote(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """-log(1 - p), the softplus of the log-odds: a noisy OR, which ranks answers by the chance that some path is right.

    The weight of naive Bayes (Nitzan and Paroush 1982) is the log-odds log(p / (1 - p)) itself. That is negative below
    1/2, so that a second vote would speak against an answer, and shifting it by a constant would be adding so many
    majority votes. The softplus is the log-odds for a sure path, p for a doubtful one, and never negative. Assumes
    independent errors and calibrated scores more than any other rule: one sure path outweighs many doubtful ones.
    """
    return -np.log1p(-np.clip(scores, 0.0, _SUREST))


def _rank_vote(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The rank of p within the question / N, equals sharing their mean rank: 1 for the best of all (Borda 1781).

    Assumes that the order of the scores means something and nothing of their size: the rule for uncalibrated scores,
    and for those that are no probabilities.
    """
    below = (scores[None, :] < scores[:, None]).sum(1)
    equal = (scores[None, :] == scores[:, None]).sum(1)  # itself included
    return (below + (equal + 1) / 2) / len(scores)


def _tie_break(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1 + p / (N + 1): majority; the scores, which together never outweigh one path, decide between equals.

    Assumes that the count knows better than the PRM: for a PRM that is hardly better than chance.
    """
    return 1 + np.clip(scores, 0.0, 1.0) / (len(scores) + 1)


def _conservative(lower: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """A lower bound of p: a score that the PRM is not sure of counts for less (pessimism, as arXiv 2012.15085).

    Assumes that doubt about a score (MC-dropout, arXiv 1506.02142, or several PRMs, arXiv 1612.01474) is greatest
    where the score is wrong, as with latents unlike any seen in training.
    """
    return np.clip(lower, 0.0, None).astype(float)


def _agreement(values: Sequence[str], scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """p times the share of paths with the same answer: the majority and the PRM's vote, pooled half and half.

    An answer's weight is its share of paths times its sum of p, the geometric mean of the two up to a square: a
    logarithmic opinion pool (Genest and Zidek 1986). With n paths of mean score p, vote ranks answers by n,
    weighted_vote by n p, and this one by n sqrt(p): half as deaf to the PRM as majority. Assumes that agreement is
    evidence which the scores, each made by looking at one path, have not counted yet.
    """
    same = shares(values, [1.0] * len(values))
    return scores * np.array([same[value] for value in values])


_RULES: dict[How, Callable[..., Float[np.ndarray, " N"]]] = {
    "best": _weighted_vote,
    "vote": _vote,
    "weighted_vote": _weighted_vote,
    "logit_vote": _logit_vote,
    "rank_vote": _rank_vote,
    "tie_break": _tie_break,
    "conservative": _conservative,
    "agreement": _agreement,
}
