"""What travels to the server: paths as JSON or as raw safetensors, and questions.

This room hides how bytes that anybody may have sent become a tree: they are data, never code, and any doubt about them
is an ``Unreadable``, whose short text may be sent back. Needs the extra ``[serve]``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError
from torch import Tensor

from latent_prm.tree import Answer, Path, ReasoningTree

LONGEST_QUESTION, LONGEST_ANSWER = 20_000, 1_000
MOST_PATHS, MOST_GROWN = 4096, 64
HEADER = 2**20
"""Bytes of a safetensors header, at most: the format itself would allow a hundred times as many."""
PARTS = ("latents", "hidden", "tip")
"""The tensors a path may have."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_M = TypeVar("_M", bound=BaseModel)


class _One(FailFast):
    """A body may be wrong in a million places: one is enough to say so."""

    __hash__ = object.__hash__  # type: ignore  # pydantic's has none, and could not stand beside None


Row = Annotated[list[FiniteFloat], _One()]
Rows = Annotated[list[Row], _One()]


class Unreadable(ValueError):
    """A body that is not what it should be."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PathHead(_Strict):
    """What is said of a path beside its numbers."""

    parent: int | None = Field(None, ge=0, description="Index of the path it carries on from, which stands before it")
    answer: str | None = Field(None, max_length=LONGEST_ANSWER, description="What was decoded, in canonical form")
    noise_free: bool = False


class PathBody(PathHead):
    """A run of latents, as they were fed."""

    latents: Rows = Field(description="T rows of D numbers, T at least 1")
    tip: Row | None = Field(None, description="The hidden state after the last latent, where the PRM reads it")
    hidden: Rows | None = Field(None, description="The hidden states before noise, where the PRM reads them")


class ScoreBody(_Strict):
    """A question, and paths of thinking about it."""

    question: str = Field(max_length=LONGEST_QUESTION)
    paths: Annotated[list[PathBody], _One()] = Field(min_length=1, max_length=MOST_PATHS)


def _spoken(question: str) -> str:
    if not question.strip():
        raise PydanticCustomError("blank", "the question is empty: send its text")
    return question


class SolveBody(_Strict):
    """A question to answer; what is left out is as the server was started."""

    question: Annotated[str, AfterValidator(_spoken)] = Field(min_length=1, max_length=LONGEST_QUESTION)
    task: Literal["arithmetic", "search", "maths", "choice", "text"] | None = None
    num_paths: int | None = Field(None, ge=1, le=MOST_GROWN)
    seed: int | None = Field(None, ge=0, lt=2**63)


class PathScore(BaseModel):
    """What a path is worth."""

    score: float = Field(description="The PRM's: the chance of ending right, 0..1")
    probability: float | None = Field(description="The same, calibrated; null: the checkpoint has no calibration")
    steps: list[float] = Field(description="The score after each latent of the path's whole chain, root to tip")


class ScoreReply(BaseModel):
    """The scores of the paths, in their order."""

    paths: list[PathScore]


def parsed(model: type[_M], body: bytes) -> _M:
    """The JSON of a body. Raises `Unreadable`, which names the first thing that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise Unreadable(_where(error)) from None


def from_json(body: bytes) -> ReasoningTree:
    """The paths of a JSON body as a tree. Raises `Unreadable`."""
    said = parsed(ScoreBody, body)
    tensors: dict[str, Tensor] = {}
    for i, path in enumerate(said.paths):
        for part in PARTS:
            if (numbers := getattr(path, part)) is not None:
                tensors[f"{i}.{part}"] = _tensor(numbers, f"paths.{i}.{part}")
    return _tree(said.question, said.paths, tensors)


def from_safetensors(body: bytes) -> ReasoningTree:
    """The paths of a raw safetensors body as a tree: ``0.latents``, ``0.tip`` and ``0.hidden`` of the first, and so on.

    Its metadata holds the question, and as JSON the list of the paths, each as `PathHead` has it. Raises `Unreadable`.
    """
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > min(HEADER, len(body) - 8):
        raise Unreadable(f"Not a safetensors body, or one whose header is longer than {HEADER} bytes.")
    try:
        header = json.loads(body[8 : 8 + size])
        tensors = safetensors.torch.load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise Unreadable(f"Not a safetensors body: {_short(error)}") from None  # RecursionError is a RuntimeError
    said = header.get("__metadata__") if isinstance(header, dict) else None
    if (
        not isinstance(said, dict)
        or not isinstance(said.get("paths"), str)
        or not isinstance(said.get("question"), str)
    ):
        raise Unreadable('The metadata of the safetensors body needs "question" and "paths", a JSON list.')
    if len(said["question"]) > LONGEST_QUESTION:
        raise Unreadable(f"The question has more than {LONGEST_QUESTION} characters.")
    try:
        heads = _HEADS.validate_json(said["paths"])
    except ValidationError as error:
        raise Unreadable(f"paths: {_where(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise Unreadable(f"{name[:40]!r} is of {tensor.dtype}: send float32, float16, bfloat16 or float64.")
    return _tree(said["question"], heads, tensors)


def check_parts(tree: ReasoningTree, reads: Collection[str]) -> None:
    """Nothing, if the tree has all that a PRM reads. Raises `Unreadable`."""
    for i, path in enumerate(tree.paths):
        if "hidden" in reads and path.hidden is None:
            raise Unreadable(f"Path {i} has no hidden states, which this PRM reads: send them as hidden.")
    for i in tree.leaves() if "tip" in reads else ():
        if tree.paths[i].tip is None:
            raise Unreadable(f"Path {i} ends here, but has no tip, which this PRM reads: send it as tip.")


_HEADS = TypeAdapter(Annotated[list[PathHead], _One(), Field(min_length=1, max_length=MOST_PATHS)])


def _tree(question: str, heads: Sequence[PathHead], tensors: Mapping[str, Tensor]) -> ReasoningTree:
    """Raises `Unreadable` for tensors that are missing, not asked for, misshapen or not finite in float32."""
    left, paths = dict(tensors), []
    for i, head in enumerate(heads):
        if (latents := left.pop(f"{i}.latents", None)) is None:
            raise Unreadable(f"Path {i} has no latents: send them as {i}.latents.")
        if head.parent is not None and head.parent >= i:
            raise Unreadable(f"Path {i} carries on from path {head.parent}, but parents stand before their children.")
        shape = latents.shape
        hidden, tip = left.pop(f"{i}.hidden", None), left.pop(f"{i}.tip", None)
        answers = [] if head.answer is None else [Answer(text=head.answer, value=head.answer, correct=False)]
        paths.append(
            Path(
                latents=_checked(f"Path {i}: its latents", latents, shape, 2),
                tip=None if tip is None else _checked(f"Path {i}: its tip", tip, shape[-1:], 1),
                hidden=None if hidden is None else _checked(f"Path {i}: its hidden states", hidden, shape, 2),
                parent=head.parent,
                noise_free=head.noise_free,
                answers=answers,
            )
        )
    if left:
        raise Unreadable(
            f"No path has a {min(left)[:40]!r}: there are {len(heads)} paths, each with {', '.join(PARTS)}."
        )
    return ReasoningTree(question_id="", question=question, gold="", task="", paths=paths)


def _checked(what: str, tensor: Tensor, shape: Sequence[int], axes: int) -> Tensor:
    """In float32. Raises `Unreadable`."""
    if tensor.ndim != axes or 0 in tensor.shape or list(tensor.shape) != list(shape):
        wanted = "[T, D], T and D at least 1, as the latents" if axes == 2 else "[D], as a latent"
        raise Unreadable(f"{what}: the shape is {list(tensor.shape)[:4]}, but must be {wanted}.")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise Unreadable(f"{what}: not all are finite numbers in float32.")
    return tensor


def _tensor(numbers: list[Any], where: str) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float64)
    except ValueError:  # rows of different lengths
        raise Unreadable(f"{where}: its rows differ in length.") from None


def _where(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"]))[:80]
    return f"{where + ': ' if where else ''}{_short(found['msg'])}"


def _short(error: object) -> str:
    return (str(error).splitlines() or [""])[0][:200]
