"""Who grew the trees that a PRM learnt from, and whether it is asked about latents of somebody else.

This room hides what tells one reasoner from another. Two of them can think in latents of one width that mean nothing to
each other, and no error would say so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from latent_prm import shards
from latent_prm.confidence import Confidence
from latent_prm.files import BadFile
from latent_prm.model import QwenLatentPRM
from latent_prm.reasoner import Reasoner

log = logging.getLogger(__name__)

Grower = dict[str, str]
"""A reasoner: "model", its name, and "weights", their digest, which alone tells it from others."""
UNSURE = "float16"
"""Weights rounded to it have another digest than the same ones in any other arithmetic."""


def facts(folder: str | Path) -> list[dict[str, Any]]:
    """What the metadata of a folder's finished shards say; what is damaged was refused before, or is left out."""
    found = []
    for path in shards.scan(folder)[0]:
        with suppress(BadFile):
            found.append(shards.read_metadata(path))
    return found


def growers(folder: str | Path) -> tuple[Grower, ...]:
    """Who grew the trees of a folder, each once and sorted; nobody where one shard does not say."""
    said = [(one.get("model"), one.get("weights"), one.get("dtype")) for one in facts(folder)]
    if any(type(model) is not str or type(weights) is not str or dtype == UNSURE for model, weights, dtype in said):
        return ()
    known = sorted({(_named(str(model)), str(weights)) for model, weights, _ in said})
    return tuple({"model": model, "weights": weights} for model, weights in known)


def grower(reasoner: Reasoner) -> tuple[Grower, ...]:
    """This one, as `growers` would say it of its trees."""
    if reasoner.dtype == UNSURE:
        return ()
    return ({"model": _named(reasoner.name), "weights": reasoner.digest()},)


def apart(known: Collection[Grower], here: Collection[Grower]) -> bool:
    """Whether one of those here is surely none of the known."""
    return bool(known) and not {one["weights"] for one in here} <= {one["weights"] for one in known}


def believed(
    checkpoint: str,
    model: QwenLatentPRM,
    calibration: Confidence | None,
    here: Collection[Grower],
    warn: Callable[[str], object] = log.warning,
) -> Confidence | None:
    """The calibration, unless it is of other latents than those of the reasoners here.

    Warns where the PRM itself did not learn from these.
    """
    fits = calibration is not None and not apart(calibration.reasoners or model.reasoners, here)
    if apart(model.reasoners, here):
        worth = "its scores were not trained" if fits else "its scores and probabilities are not calibrated"
        warn(
            f"The PRM in {checkpoint} learnt from latents of {_in_words(model.reasoners)}, but these are of "
            f"{_in_words(here)}: {worth} for them. Take that reasoner, or train a PRM on trees of this one."
        )
    return calibration if fits else None


def _named(model: str) -> str:
    """A hub's name as it is, of a folder only the last part: where it lay is no part of what it is."""
    return model if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model) else Path(model).name


def _in_words(some: Collection[Grower]) -> str:
    return " and ".join(f"{one['model']} (weights {one['weights']})" for one in some)
