"""What is inside a shard: hides the columns that trees are kept in, so that thousands of paths are one memory map.

What a shard must be stands in the table and the rules below; whatever breaks one is refused, by file and sample.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from latent_prm import files
from latent_prm.files import BadFile
from latent_prm.tree import Answer, Path, ReasoningTree

FORMAT = "latent-prm/1"

# Each column: its dtype, its axes, and how it is read off a tree (Q), a path (P) or an answer (A). Other axes: latents
# (T) of width D, hidden states (R; a path has one per latent, or none), agent names (G). The first column with an axis
# sets its size.
_COLUMNS: dict[str, tuple[Any, str, Callable[[Any], Any] | None]] = {
    "question_ids": (str, "Q", attrgetter("question_id")),
    "questions": (str, "Q", attrgetter("question")),
    "golds": (str, "Q", attrgetter("gold")),
    "tasks": (str, "Q", attrgetter("task")),
    "steps": (str, "Q", lambda tree: "\n".join(tree.steps)),
    "agent_names": (str, "G", None),
    "answer_texts": (str, "A", attrgetter("text")),
    "answer_values": (str, "A", attrgetter("value")),
    "answer_correct": (torch.bool, "A", attrgetter("correct")),
    "answer_truncated": (torch.bool, "A", attrgetter("truncated")),
    "answer_log_probabilities": (torch.float32, "A", lambda answer: _known(answer.log_probability)),
    "parents": (torch.int64, "P", lambda path: -1 if path.parent is None else path.parent),
    "agents": (torch.int64, "P", None),
    "noise_free": (torch.bool, "P", attrgetter("noise_free")),
    "has_prm_score": (torch.bool, "P", lambda path: path.prm_score is not None),  # False: censored, and 0 stands there
    "prm_scores": (torch.float32, "P", lambda path: path.prm_score or 0.0),
    "has_score": (torch.bool, "P", lambda path: path.score is not None),
    "scores": (torch.float32, "P", lambda path: path.score or 0.0),
    "num_correct": (torch.int64, "P", lambda path: path.num_correct or 0),
    "num_answers": (torch.int64, "P", lambda path: path.num_answers or 0),  # 0: both counts are unknown
    "has_tip": (torch.bool, "P", lambda path: path.tip is not None),
    "latents": (torch.float32, "T D", None),
    "hidden": (torch.float32, "R D", None),
    "tips": (torch.float32, "P D", None),
    "path_offsets": (torch.int64, "Q+1", None),
    "latent_offsets": (torch.int64, "P+1", None),
    "hidden_offsets": (torch.int64, "P+1", None),
    "answer_offsets": (torch.int64, "P+1", None),
}


_LATER: dict[str, tuple[str, Any]] = {"steps": ("Q", ""), "answer_log_probabilities": ("A", math.nan)}
"""Columns that the first shards lack: the axis of each, and what stands there when nothing is known."""


def completed(data: Any) -> Any:
    """A shard's data with the columns that it lacks only because it was written before there were any."""
    if type(data) is not dict or not {"questions", "answer_texts"} <= data.keys():
        return data  # no shard: `check` says so
    sizes = {"Q": len(data["questions"]), "A": len(data["answer_texts"])}
    later = {
        name: [empty] * sizes[axis] if type(empty) is str else torch.full((sizes[axis],), empty)
        for name, (axis, empty) in _LATER.items()
        if name not in data
    }
    return data | later


def _known(number: float | None) -> float:
    return math.nan if number is None else number


def pack(trees: list[ReasoningTree]) -> dict[str, Any]:
    """The columns of these trees; the same trees give the same bytes.

    Raises:
        ValueError: there is no path, or one that cannot be put into a column. What else is wrong, `check` finds.
    """
    paths = [path for tree in trees for path in tree.paths]
    if not paths:
        raise ValueError("There is no tree with a path to write.")
    answers, width = [answer for path in paths for answer in path.answers], paths[0].latents.shape[-1]
    for tree in trees:
        for i, path in enumerate(tree.paths):
            _check_path(f"question {tree.question_id!r}, path {i}", path, width)
    sources = {"Q": trees, "P": paths, "A": answers}
    columns = {name: [read(item) for item in sources[axes]] for name, (_, axes, read) in _COLUMNS.items() if read}
    columns["agent_names"] = sorted({path.agent for path in paths})
    columns["agents"] = [columns["agent_names"].index(path.agent) for path in paths]
    columns["path_offsets"] = list(accumulate((len(tree.paths) for tree in trees), initial=0))
    columns["latent_offsets"] = list(accumulate((len(path.latents) for path in paths), initial=0))
    hidden = [path.hidden for path in paths if path.hidden is not None]
    rows = (0 if path.hidden is None else len(path.hidden) for path in paths)
    columns["hidden_offsets"] = list(accumulate(rows, initial=0))
    columns["answer_offsets"] = list(accumulate((len(path.answers) for path in paths), initial=0))
    # Pickle writes one object once, however often it stands: equal texts must be one, or chance is in the bytes.
    packed: dict[str, Any] = {
        name: [sys.intern(str(text)) for text in values]
        if _COLUMNS[name][0] is str
        else torch.tensor(values, dtype=_COLUMNS[name][0])
        for name, values in columns.items()
    }
    packed["latents"] = torch.cat([_plain(path.latents) for path in paths])
    packed["hidden"] = torch.cat([_plain(states) for states in hidden]) if hidden else torch.zeros(0, width)
    packed["tips"] = torch.stack([torch.zeros(width) if path.tip is None else _plain(path.tip) for path in paths])
    return {"format": FORMAT} | {name: packed[name] for name in _COLUMNS}


def _check_path(where: str, path: Path, width: int) -> None:
    shape = list(path.latents.shape)
    if shape[1:] != [width]:
        raise ValueError(f"{where}: its latents are {shape}, but must be [T, {width}] as those of the first path.")
    if path.hidden is not None and list(path.hidden.shape) != shape:
        raise ValueError(
            f"{where}: its hidden states are {list(path.hidden.shape)}, but must be {shape} as its latents."
        )
    counted = path.num_answers is not None
    if counted != (path.num_correct is not None) or (counted and None in (path.prm_score, path.score)):
        raise ValueError(f"{where}: it has some of prm_score, score and counts only. Call tree.back_up() first.")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def unpack(data: dict[str, Any]) -> list[ReasoningTree]:
    """The trees in checked columns; their tensors are views of the columns."""
    small = [name for name, (_, axes, _) in _COLUMNS.items() if "D" not in axes]
    column = {name: data[name] if type(data[name]) is list else data[name].tolist() for name in small}
    fields = ("texts", "values", "correct", "truncated", "log_probabilities")
    answers = [
        Answer(
            text=text, value=value, correct=correct, truncated=cut, log_probability=None if math.isnan(sure) else sure
        )
        for text, value, correct, cut, sure in zip(*(column[f"answer_{field}"] for field in fields), strict=True)
    ]
    latents, hidden = _runs(data["latents"], column["latent_offsets"]), _runs(data["hidden"], column["hidden_offsets"])
    paths = [
        Path(
            latents=fed,
            tip=data["tips"][i].detach() if column["has_tip"][i] else None,
            parent=None if parent == -1 else parent,
            agent=column["agent_names"][column["agents"][i]],
            noise_free=column["noise_free"][i],
            answers=answers[column["answer_offsets"][i] : column["answer_offsets"][i + 1]],
            prm_score=column["prm_scores"][i] if column["has_prm_score"][i] else None,
            score=column["scores"][i] if column["has_score"][i] else None,
            num_correct=column["num_correct"][i] if column["num_answers"][i] else None,
            num_answers=column["num_answers"][i] or None,
            hidden=meant if len(meant) else None,
        )
        for i, (parent, fed, meant) in enumerate(zip(column["parents"], latents, hidden, strict=True))
    ]
    return [
        ReasoningTree(
            question_id=name,
            question=question,
            gold=gold,
            task=task,
            paths=paths[start:end],
            steps=tuple(steps.split("\n")) if steps else (),
        )
        for name, question, gold, task, steps, (start, end) in zip(
            *(column[name] for name in ("question_ids", "questions", "golds", "tasks", "steps")),
            pairwise(column["path_offsets"]),
            strict=True,
        )
    ]


def _runs(column: Tensor, offsets: list[int]) -> Iterator[Tensor]:
    """Each path's rows. Detached, a view takes half the memory: millions of them are the index of a data set."""
    return (column[start:end].detach() for start, end in pairwise(offsets))


# --- what a shard must be -------------------------------------------------------------------------------------------


def check(path: str | pathlib.Path, data: Any) -> None:
    """Nothing, if ``data`` is a shard down to its last sample; ``path`` is only named.

    Raises:
        BadFile: it is not; the message says what is wrong, and of which sample.
    """
    names = ["format", *_COLUMNS]
    if type(data) is not dict:
        raise BadFile(f"{path}: not a shard: it holds a {type(data).__name__}, but a shard is a dict of columns.")
    if lacks := [name for name in names if name not in data]:
        more = f" and {len(lacks) - 4} more columns" if len(lacks) > 4 else ""
        raise BadFile(f"{path}: not a shard: it lacks {', '.join(lacks[:4])}{more}.")
    if unknown := [str(name) for name in data if name not in names]:
        raise BadFile(f"{path}: not a shard: it has the unknown columns {', '.join(unknown[:4])}.")
    if type(data["format"]) is not str or data["format"] != FORMAT:
        raise BadFile(f"{path}: its format is {data['format']!r}, but must be {FORMAT!r}.")
    sizes: dict[str, int] = {}
    for name, (dtype, axes, _) in _COLUMNS.items():
        shape = tuple(sizes.get(axis) for axis in axes.split())
        if dtype is not str:  # the rules below look at the numbers, for they can name the sample
            found = files.check_tensor(path, name, data[name], dtype, shape, finite=False).shape
        elif type(data[name]) is list and all(type(text) is str for text in data[name]):
            found = (len(data[name]),)
        else:
            raise BadFile(f"{path}: {name} is not a list of texts.")
        if shape[0] not in (None, found[0]):
            raise BadFile(f"{path}: {name} has {found[0]} texts, but must have {shape[0]}.")
        for axis, size in zip(axes.split(), found, strict=True):
            sizes |= {axis: size, f"{axis}+1": size + 1}
    totals = {"path_offsets": "P", "latent_offsets": "T", "hidden_offsets": "R", "answer_offsets": "A"}
    for name, total in ((name, sizes[axis]) for name, axis in totals.items()):
        first, last = int(data[name][0]), int(data[name][-1])
        if (first, last) != (0, total) or not ((data[name] >= 0) & (data[name] <= total)).all():
            raise BadFile(f"{path}: {name} must run from 0 to {total}.")
    if not sizes["Q"] or not sizes["D"]:
        raise BadFile(f"{path}: it holds {sizes['Q']} questions with latents {sizes['D']} wide.")
    _check_samples(path, data)


def _check_samples(path: str | pathlib.Path, data: dict[str, Any]) -> None:
    ids, counts = data["question_ids"], data["path_offsets"].diff()
    for name, count in zip(ids, counts.tolist(), strict=True):
        if count < 1:
            raise BadFile(f"{path}: question {name!r} has {count} paths, but needs at least one.")
    if (twice := Counter(ids).most_common(1)[0])[1] > 1:
        raise BadFile(f"{path}: question {twice[0]!r} stands there {twice[1]} times.")
    question = torch.arange(len(ids)).repeat_interleave(counts)
    index = torch.arange(len(question)) - data["path_offsets"][question]
    for sentence, values, good in _path_rules(data, index):
        if not good.all():
            i = int(good.logical_not().nonzero()[0])
            where = f"question {ids[question[i]]!r}, path {int(index[i])}"
            raise BadFile(f"{path}: {where}: {sentence.format(f'{values[i].item():g}')}.")


def _path_rules(data: dict[str, Any], index: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is said of a path that breaks the rule, the value to say, and who keeps it; each relies on those before."""
    lengths, answers = data["latent_offsets"].diff(), data["answer_offsets"].diff()
    parents, agents = data["parents"], data["agents"]
    yield "it has T = {} latents, but needs at least one", lengths, lengths >= 1
    yield "it has {} answers", answers, answers >= 0
    yield "its parent is {}, but parents must stand before their children", parents, (parents >= -1) & (parents < index)
    yield "its agent {} is not in agent_names", agents, (agents >= 0) & (agents < len(data["agent_names"]))
    for name in ("prm_scores", "scores"):
        yield f"its {name[:-1]} is {{}}, but must lie in 0..1", data[name], (data[name] >= 0) & (data[name] <= 1)
    rows = data["hidden_offsets"].diff()
    yield "it has {} hidden states, but needs one per latent, or none", rows, (rows == 0) | (rows == lengths)
    for name, runs in (("latents", lengths), ("hidden states", rows)):
        good = torch.ones(len(runs), dtype=torch.bool)
        good[torch.arange(len(runs)).repeat_interleave(runs)[~_finite(data[name.split()[0]])]] = False
        yield f"it has NaN or infinite {name}", index, good
    yield "its tip is NaN or infinite", index, _finite(data["tips"])
    yield from _count_rules(data, index)


def _finite(column: Tensor) -> Tensor:
    """Which rows have only finite elements. NaN is its own maximum; in blocks, so that a file is gone through once."""
    return torch.cat([(rows.amax(1) < math.inf) & (rows.amin(1) > -math.inf) for rows in column.split(256)])


def _count_rules(data: dict[str, Any], index: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """As `_path_rules`: the k of M answers that count for a path are its own, or the sums of its children's."""
    known, free, parents = data["has_prm_score"], data["noise_free"], data["parents"]
    correct, total = data["num_correct"], data["num_answers"]
    yield "its num_answers is {}, but cannot be below 0", total, total >= 0
    yield "its num_correct is {}, but must lie in 0..num_answers", correct, (correct >= 0) & (correct <= total)
    counted = total > 0
    yield "it has {} answers below it, but lacks a score", total, ~counted | known & data["has_score"]
    children = (parents >= 0).nonzero().squeeze(1)
    above = (parents + torch.arange(len(index)) - index)[children]  # where the parent stands among all paths
    inner = torch.zeros_like(known).index_fill(0, above, True)
    counts_there = free[above] | ~free[children]
    right = torch.cat([torch.zeros(1, dtype=torch.int64), data["answer_correct"].cumsum(0)])[data["answer_offsets"]]
    own = {"num_correct": right.diff(), "num_answers": data["answer_offsets"].diff()}
    for name, values in own.items():
        below = torch.zeros_like(values).index_add(0, above, data[name][children] * counts_there)
        expected = torch.where(inner, below, values * known)
        yield (
            f"its {name} is {{}}, but that is not what its answers or children add up to",
            data[name],
            (data[name] == expected),
        )
    share = correct / total.clamp(min=1)
    fits = inner | ~counted | ((data["prm_scores"] - share).abs() < 1e-6)
    yield "its prm_score is {}, but that is not its right answers / its answers", data["prm_scores"], fits
