"""The nested ``.pt`` files of the multi-path extension of LatentMAS: hides how one is read as data, and checked.

A file is one question, or a batch ``{"questions": […]}``; a question has a list of paths that name their parent; a
Judger is a path without latents whose metadata holds one graded answer. Of all that a file may ask Python to make, only
tensors, plain values and numpy's numbers are made; whatever else is odd is refused, by file and sample.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.serialization import safe_globals

from latent_prm import files
from latent_prm.files import BadFile
from latent_prm.grading import canonical, halved
from latent_prm.tree import Answer

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(slots=True, kw_only=True)
class Node:
    """A path as it stands in the file."""

    where: str
    """File, question and path, in words."""
    parent: int | str | None
    agent: str
    agent_idx: int
    latents: Float[Tensor, "T D"] | None
    """float32, T >= 1; None: it has none."""
    prm_score: float | None
    guess: Any
    """Its heuristic score, unchecked: `share` looks at it when it is asked for."""
    answer: Answer | None
    """None: none was decoded there, or it was not graded."""

    @property
    def judger(self) -> bool:
        """Whether it decodes an answer of the path above it."""
        return self.agent.lower() == "judger"


@dataclass(slots=True, kw_only=True)
class Entry:
    """A question as it stands in the file."""

    where: str
    """File and question, in words."""
    question: str
    gold: str
    nodes: dict[int | str, Node] = field(default_factory=dict)
    """By path_id."""
    batch_indices: set[int] = field(default_factory=set)
    """More than one: paths of several questions were recorded under the name of this one."""


def load(path: Path) -> list[Any] | None:
    """The questions of a nested file, yet to be checked; None when it is a torch file of another kind.

    Raises:
        BadFile: it cannot be read as data.
    """
    with safe_globals(_NUMPY):
        data = files.load_tensors(path)
    if type(data) is not dict or "format" in data:
        return None
    if type(data.get("questions")) is list:
        return data["questions"]
    return [data] if type(data.get("paths")) is list and "question" in data else None


def check(path: Path, questions: list[Any]) -> list[Entry]:
    """What `load` found, checked down to the last number.

    Raises:
        BadFile: a rule of the layout is broken; it names the file and the sample.
    """
    room = [path.stat().st_size]
    return [_entry(f"{path}: question {k}", item, room) for k, item in enumerate(questions)]


def share(where: str, name: str, value: Any) -> float | None:
    """A score as a number in 0..1; None for None. Raises BadFile for anything else."""
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise BadFile(f"{where}: its {name} is {value!r}, but must be a number in 0..1.")
    return float(value)


def _entry(where: str, item: Any, room: list[int]) -> Entry:
    """``room``: how many bytes of latents the file can still have."""
    if type(item) is not dict or type(item.get("paths")) is not list:
        raise BadFile(f"{where} is not a dict with a list of paths.")
    text, gold = item.get("question"), item.get("gold_answer")
    if type(text) is not str or not text.strip() or type(gold) not in (str, int, float, type(None)):
        raise BadFile(f"{where}: its text or its gold answer is none: {str(text)[:80]!r}, {str(gold)[:80]!r}.")
    if halved(text + str(gold)):
        raise BadFile(f"{where}: half of a character (a lone surrogate) is in its text or gold answer: {text[:80]!r}.")
    entry = Entry(where=where, question=text, gold="" if gold is None else str(gold))
    for k, path in enumerate(item["paths"]):
        name: Any = path.get("path_id") if type(path) is dict else None
        if type(name) not in (int, str) or name in entry.nodes:
            raise BadFile(f"{where}, path {k}: its path_id is {name!r}, which is none, or that of another path.")
        entry.nodes[name] = _node(f"{where}, path {name}", path, room)
        if type(batch_idx := _metadata(path).get("batch_idx")) is int:
            entry.batch_indices.add(batch_idx)
    return entry


def _node(where: str, path: dict[Any, Any], room: list[int]) -> Node:
    agent, agent_idx, parent = path.get("agent_name", ""), path.get("agent_idx", 0), path.get("parent_path_id")
    if type(agent) is not str or type(agent_idx) is not int or type(parent) not in (int, str, type(None)):
        raise BadFile(f"{where}: its agent or its parent is none: {agent!r}, {agent_idx!r}, {parent!r}.")
    metadata, guess = _metadata(path), path.get("score")
    return Node(
        where=where,
        parent=parent,
        agent=agent or "unknown",
        agent_idx=agent_idx,
        latents=_latents(where, path.get("latent_history"), room),
        prm_score=share(where, "prm_score", path.get("prm_score")),
        guess=metadata.get("base_score") if guess is None else guess,
        answer=_answer(metadata),
    )


def _metadata(path: dict[Any, Any]) -> dict[Any, Any]:
    found = path.get("metadata")
    return found if type(found) is dict else {}


def _answer(metadata: dict[Any, Any]) -> Answer | None:
    if type(metadata.get("is_correct")) is not bool:
        return None
    text, value = metadata.get("decoded_answer"), metadata.get("extracted_answer")
    return Answer(
        text=text if type(text) is str else "",
        value=canonical(str(value)) if type(value) in (str, int, float) else "",
        correct=metadata["is_correct"],
    )


def _latents(where: str, value: Any, room: list[int]) -> Float[Tensor, "T D"] | None:
    """Of [T, 1, D], [T, D], or a list of [1, D] or [D]."""
    parts = value if type(value) is list else [value]
    if value is None or not parts:
        return None
    for part in parts:
        if type(part) is not Tensor or part.layout is not torch.strided or part.dtype not in _FLOATS:
            raise BadFile(f"{where}: its latent_history is not a tensor of real numbers, nor a list of such.")
        room[0] -= part.numel() * part.itemsize  # a kilobyte can declare terabytes, all one and the same number
    if room[0] < 0:
        raise BadFile(f"{where}: its latent_history declares more numbers than the file has bytes for.")
    if type(value) is list:
        shapes = sorted({str(list(part.shape)) for part in parts})
        if len(shapes) > 1 or parts[0].ndim not in (1, 2):
            raise BadFile(f"{where}: its latent_history is a list of {', '.join(shapes)}, but must be one of [1, H].")
        found = torch.stack(parts)
    else:
        found = parts[0]
    if found.ndim == 3 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 2 or found.shape[1] == 0:
        raise BadFile(f"{where}: its latent_history is {list(found.shape)}, but must be [T, 1, H] or [T, H].")
    # A copy, not a view: the rest of the file need not stay. Some save them with the graph that they came from.
    found = torch.empty(found.shape).copy_(found.detach())
    if not found.isfinite().all():
        raise BadFile(f"{where}: its latent_history has NaN or infinite elements.")
    return found if len(found) else None


# --- numpy's numbers, without numpy ---------------------------------------------------------------------------------


_CODES = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}
"""numpy's names of numbers, and those of struct."""


class _Dtype:
    """Made where a file asks for ``numpy.dtype``; it knows plain numbers only."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in _CODES:
            raise ValueError(f"numpy's {code!r} is no plain number")
        self.code, self.order = _CODES[code], "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: Any, content: Any) -> float | int | bool:
    """Made where a file asks for a numpy scalar: the plain number that its bytes are."""
    if type(dtype) is not _Dtype or type(content) is not bytes:
        raise ValueError("a numpy scalar without a type or without bytes")
    return struct.unpack(dtype.order + dtype.code, content)[0]


# numpy's own constructors are never called: these stand in under their names (of numpy 2 and of numpy 1).
_NUMPY = [(_Dtype, "numpy.dtype"), *((_number, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core"))]
