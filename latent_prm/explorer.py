"""Trees to walk through, as data for the page: hides which are shown, what a PRM says of them, and what was chosen.

The data are for eyes: numbers are rounded, long texts cut, and keys short, for there may be hundreds of trees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from latent_prm.confidence import BASE, Confidence
from latent_prm.model import QwenLatentPRM
from latent_prm.selector import NEEDS_LOWER, How, choose_among
from latent_prm.tree import Path, ReasoningTree
from latent_prm.truth import step_scores

LONGEST_QUESTION, LONGEST_ANSWER = 4000, 120
"""Characters that are shown."""

Each = Float[np.ndarray, " _"]


def pick_trees(trees: Sequence[ReasoningTree], count: int, seed: int) -> list[ReasoningTree]:
    """So many of the trees: those with right and wrong paths before others, and among equals by lot."""
    draw = random.Random(seed)
    ranked = sorted((not tree.mixed, draw.random(), i) for i, tree in enumerate(trees) if tree.paths)
    return [trees[i] for _, _, i in sorted(ranked[:count])]


def explorer_data(
    trees: Sequence[ReasoningTree],
    of: int,
    model: QwenLatentPRM | None,
    confidence: Confidence | None = None,
    context: bool | None = None,
    pack_tokens: int = 16384,
) -> dict[str, Any]:
    """The trees as the page takes them, out of ``of`` that there are; without a ``model`` no path has a value."""
    how: How = confidence.picked.how if confidence else BASE
    if how in NEEDS_LOWER:
        how = BASE  # no bounds are asked for here
    if model is not None:
        scores: Sequence[Any] = model.score_trees(trees, context=context, pack_tokens=pack_tokens)
        steps: Sequence[Any] = step_scores(model, trees, context=context, pack_tokens=pack_tokens)
    else:
        scores = steps = [None] * len(trees)
    agents = list(dict.fromkeys(path.agent for tree in trees for path in tree.paths))
    return {
        "of": of,
        "valued": model is not None,
        "rule": how.replace("_", " "),
        "agents": agents,
        "questions": [
            _question(tree, own, each, agents, how, confidence)
            for tree, own, each in zip(trees, scores, steps, strict=True)
        ],
    }


def _question(
    tree: ReasoningTree, scores: Any, steps: Any, agents: list[str], how: How, confidence: Confidence | None
) -> dict[str, Any]:
    offered = tree.offered()
    first = [tree.paths[i].answers[0] for i in offered]
    found: dict[str, Any] = {
        "id": tree.question_id,
        "task": tree.task,
        "text": _cut(tree.question, LONGEST_QUESTION),
        "gold": _cut(tree.gold, LONGEST_ANSWER),
        "mixed": tree.mixed,
        "paths": [
            _path(path, agents, None if scores is None else float(scores[i]), None if steps is None else steps[i])
            for i, path in enumerate(tree.paths)
        ],
    }
    free = [tree.paths[i] for i in tree.leaves() if tree.paths[i].noise_free and tree.paths[i].answers]
    if free:
        found["free"] = free[0].answers[0].correct
    if not offered:
        return found
    values = [answer.value for answer in first]
    vote = choose_among(values, [0.5] * len(values), "vote")
    found["vote"] = {"value": _cut(vote.value, LONGEST_ANSWER), "right": first[vote.index].correct,
                     "share": round(values.count(vote.value) / len(values), 4)}  # fmt: skip
    if scores is not None:
        own = np.array([float(scores[i]) for i in offered])
        choice = confidence.choose(values, own, how) if confidence else choose_among(values, own, how)
        found["choice"] = {
            "value": _cut(choice.value, LONGEST_ANSWER),
            "right": first[choice.index].correct,
            "share": round(choice.share, 4),
            "path": offered[choice.index],
        }
        if choice.probability is not None:
            found["choice"]["probability"] = round(choice.probability, 4)
    return found


def _path(path: Path, agents: list[str], score: float | None, chain: Each | None) -> dict[str, Any]:
    """Of a chain's values after each latent those of the path's own."""
    found: dict[str, Any] = {"n": len(path.latents)}
    if path.parent is not None:
        found["p"] = path.parent
    if len(agents) > 1:
        found["a"] = agents.index(path.agent)
    if path.noise_free:
        found["f"] = 1
    if score is not None:
        found["s"] = round(score, 3)
    if chain is not None:
        found["v"] = [round(float(value), 3) for value in chain[-len(path.latents) :]]
    if path.prm_score is not None:
        found["r"] = round(path.prm_score, 4)
    if path.num_answers is not None:
        found["k"] = [path.num_correct, path.num_answers]
    if path.answers:
        values = dict.fromkeys(answer.value or ("cut off" if answer.truncated else "") for answer in path.answers)
        found["y"] = _cut(" / ".join(values), LONGEST_ANSWER)
    return found


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
