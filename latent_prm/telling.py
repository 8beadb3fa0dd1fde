"""A growing tree as events, each a line of JSON: what is told when, to whoever watches a question being answered.

This room hides which paths are news. Numbers are rounded: they are to be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from latent_prm.confidence import Confidence
from latent_prm.selector import Choice
from latent_prm.steering import Grown
from latent_prm.tree import ReasoningTree

LONGEST = 300
"""Characters of an answer's text that are told."""

Event = dict[str, Any]


class Teller:
    """Tells one tree: every step with its new paths, then the answers, then the choice.

    ``tell`` gets each event; what it raises ends the growth.
    """

    def __init__(self, tell: Callable[[Event], None], confidence: Confidence | None) -> None:
        self._tell, self._confidence = tell, confidence
        self._step = self._told = 0

    def watch(self, tree: ReasoningTree, scores: Float[np.ndarray, " P"]) -> None:
        """A step: the paths that carry on from those before, with what each is worth so far."""
        self._step += 1
        self._tell({"event": "step", "step": self._step, "paths": self._news(tree, scores)})

    def answers(self, grown: Grown) -> None:
        """The last step: the leaves, with their answers and how likely each path is right."""
        self._told = len(grown.tree.paths)
        paths = [self._path(grown.tree, grown.scores, i) for i in grown.tree.leaves()]
        for path in paths:
            answers = grown.tree.paths[path["id"]].answers
            path["answers"] = [{"value": one.value[:LONGEST], "text": one.text[:LONGEST]} for one in answers]
            path["votes"] = int(grown.votes[path["id"]])
            if self._confidence is not None:
                path["probability"] = _rounded(self._confidence.path(grown.scores[[path["id"]]])[0])
        self._tell({"event": "answers", "step": self._step + 1, "paths": paths})

    def chosen(self, choice: Choice, said: str, remarks: list[str], seconds: float) -> None:
        """The answer that the paths give together."""
        probability = None if choice.probability is None else _rounded(choice.probability)
        self._tell(
            {
                "event": "chosen",
                "answer": choice.value[:LONGEST],
                "probability": probability,
                "share": _rounded(choice.share),
                "path": choice.index,
                "said": said,
                "remarks": remarks,
                "seconds": round(seconds, 3),
            }
        )

    def _news(self, tree: ReasoningTree, scores: Float[np.ndarray, " P"]) -> list[Event]:
        new = range(self._told, len(tree.paths))
        self._told = len(tree.paths)
        return [self._path(tree, scores, i) for i in new]

    def _path(self, tree: ReasoningTree, scores: Float[np.ndarray, " P"], i: int) -> Event:
        path = tree.paths[i]
        return {
            "id": i,
            "parent": path.parent,
            "agent": path.agent,
            "latents": len(path.latents),
            "noise_free": path.noise_free,
            "score": _rounded(scores[i]),
        }


def line(event: Event) -> bytes:
    """An event as it is sent."""
    return (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _rounded(number: float | np.floating[Any]) -> float | None:
    return round(float(number), 4) if np.isfinite(number) else None
