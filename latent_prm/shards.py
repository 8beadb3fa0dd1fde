"""Trees on disk: ``<name>.pt`` and, written after it as the mark that it is whole, ``<name>_metadata.json``.

This room hides the columns: trees go in, trees come out, and thousands of paths are one memory map. What a shard must
be stands in the tables and rules below; whatever breaks one is refused, by file and sample.
"""

from __future__ import annotations

import logging
import pathlib
import platform
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import accumulate, chain, pairwise
from operator import attrgetter
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor

from latent_prm import files
from latent_prm.files import BadFile
from latent_prm.tree import Answer, Path, ReasoningTree

FORMAT = "latent-prm/1"
BINS = 10
"""Of the score histogram, over 0..1."""

# Each column: its dtype, its axes, and how it is read off a tree (Q), a path (P) or an answer (A). Other axes: latents
# (T) of width D, agent names (G). The first column with an axis sets its size.
_COLUMNS: dict[str, tuple[Any, str, Callable[[Any], Any] | None]] = {
    "question_ids": (str, "Q", attrgetter("question_id")),
    "questions": (str, "Q", attrgetter("question")),
    "golds": (str, "Q", attrgetter("gold")),
    "tasks": (str, "Q", attrgetter("task")),
    "agent_names": (str, "G", None),
    "answer_texts": (str, "A", attrgetter("text")),
    "answer_values": (str, "A", attrgetter("value")),
    "answer_correct": (torch.bool, "A", attrgetter("correct")),
    "answer_truncated": (torch.bool, "A", attrgetter("truncated")),
    "parents": (torch.int64, "P", lambda path: -1 if path.parent is None else path.parent),
    "agents": (torch.int64, "P", None),
    "noise_free": (torch.bool, "P", attrgetter("noise_free")),
    "scored": (torch.bool, "P", lambda path: path.prm_score is not None),  # False: censored, and both scores are 0
    "prm_scores": (torch.float32, "P", lambda path: path.prm_score or 0.0),
    "scores": (torch.float32, "P", lambda path: path.score or 0.0),
    "has_tip": (torch.bool, "P", lambda path: path.tip is not None),
    "latents": (torch.float32, "T D", None),
    "tips": (torch.float32, "P D", None),
    "path_offsets": (torch.int64, "Q+1", None),
    "latent_offsets": (torch.int64, "P+1", None),
    "answer_offsets": (torch.int64, "P+1", None),
}
_METADATA = {
    str: "format data_file sha256",
    int: "size latent_dim num_questions num_paths num_labelled",
    float: "mixed_share",
    list: "score_histogram question_ids",
    dict: "accuracy",
}
ACCURACIES = ("noise_free", "random_path", "majority", "any_path")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NoData(FileNotFoundError):
    """A folder without a single shard that can be read."""


def write_shard(
    trees: list[ReasoningTree], folder: str | pathlib.Path, name: str, facts: dict[str, Any]
) -> pathlib.Path:
    """Write ``name.pt``, then ``name_metadata.json``, and return the path of the first.

    ``facts`` (task, model, split, seed, settings, seconds, …) go into the metadata beside what is counted here.
    The ``.pt`` has the same bytes for the same trees, whatever it is called.

    Raises:
        ValueError: a tree breaks a rule of the format, or was not backed up.
        FileExistsError: there is a finished shard of this name.
    """
    if not name or pathlib.PurePath(name).name != name:
        raise ValueError(f"A shard cannot be named {name!r}: type a plain file name, without a folder and without .pt.")
    path = pathlib.Path(folder, f"{name}.pt")
    if path.exists() and metadata_path(path).exists():
        raise FileExistsError(f"{path} is a finished shard. Choose another name.")
    columns = _pack(trees)
    _check(path, columns)
    metadata_path(path).unlink(missing_ok=True)  # a mark whose .pt was deleted must not vouch for the new one
    sha256 = files.save_tensors(columns, path)
    mark = {"format": FORMAT, "data_file": path.name, "sha256": sha256, "size": path.stat().st_size}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    counted = mark | _counts(columns) | outcomes(trees)  # nothing that a caller says may contradict it
    files.save_json(mark | {"created": now, "versions": versions} | facts | counted, metadata_path(path))
    return path


def read_shard(path: str | pathlib.Path) -> list[ReasoningTree]:
    """The trees of a finished shard; latents and tips are views of the memory-mapped file.

    Raises:
        BadFile: unfinished, damaged, or not a shard; it names the file, and the sample where there is one.
    """
    metadata = read_metadata(path)
    data = files.load_tensors(path, sha256=metadata["sha256"], mmap=True)
    _check(path, data)
    if wrong := [key for key, value in _counts(data).items() if metadata[key] != value]:
        raise BadFile(f"{metadata_path(path)}: what it says of {', '.join(wrong)} is not what {path} holds.")
    return _unpack(data)


def read_metadata(path: str | pathlib.Path) -> dict[str, Any]:
    """What the metadata beside a ``.pt`` says of it; of the ``.pt`` itself only the size is compared.

    Raises:
        BadFile: there is no metadata (the shard is unfinished), it is damaged, or it is not of a shard.
    """
    beside = metadata_path(path)
    if not beside.exists():
        raise BadFile(f"{path}: it has no {beside.name} beside it, so it was never finished, or is not a shard.")
    metadata = files.load_json(beside)
    if type(metadata) is not dict or metadata.get("format") != FORMAT:
        raise BadFile(f"{beside}: not the metadata of a shard: its format is not {FORMAT!r}.")
    keys = [(key, kind) for kind, names in _METADATA.items() for key in names.split()]
    if wrong := [key for key, kind in keys if type(metadata.get(key)) is not kind]:
        raise BadFile(f"{beside}: lacks {', '.join(wrong)}, or holds something else there.")
    sound = {
        "sha256": re.fullmatch("[0-9a-f]{64}", metadata["sha256"]),
        "question_ids": all(type(name) is str for name in metadata["question_ids"]),
        "score_histogram": [type(count) for count in metadata["score_histogram"]] == [int] * BINS,
        "accuracy": all(type(metadata["accuracy"].get(key, "")) in (float, type(None)) for key in ACCURACIES),
    }
    if wrong := [key for key in sound if not sound[key]]:
        raise BadFile(f"{beside}: what it says of {', '.join(wrong)} is malformed.")
    size = pathlib.Path(path).stat().st_size
    if size != metadata["size"]:
        raise BadFile(f"{path}: cut short or replaced: it has {size} bytes, but {metadata['size']} were written.")
    return metadata


def metadata_path(path: str | pathlib.Path) -> pathlib.Path:
    """Where the metadata of a ``.pt`` stands."""
    return pathlib.Path(path).with_name(f"{pathlib.Path(path).stem}_metadata.json")


def scan(folder: str | pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The ``.pt`` files of a folder by name: the finished ones, and those without metadata."""
    paths = sorted(pathlib.Path(folder).glob("*.pt"))
    finished = [path for path in paths if metadata_path(path).exists()]
    return finished, [path for path in paths if path not in set(finished)]


def list_shards(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The finished shards of a folder by name; each unfinished ``.pt`` is named in the log, and not among them."""
    finished, unfinished = scan(folder)
    for path in unfinished:
        _log.warning("%s: left out: it has no %s, so it is unfinished.", path, metadata_path(path).name)
    return finished


def load_trees(
    folder: str | pathlib.Path, skip_bad_files: bool = False, left_out: list[str] | None = None
) -> list[ReasoningTree]:
    """The trees of all finished shards of a folder, shards by name.

    With ``skip_bad_files`` damaged shards are named and counted in the log, and in ``left_out`` when it is given.

    Raises:
        NoData: there is no shard to read.
        BadFile: a shard is damaged, has another latent width than the ones before, or a question that they have.
    """
    trees: list[ReasoningTree] = []
    home: dict[str, pathlib.Path] = {}
    for path, shard in _each(folder, read_shard, skip_bad_files, left_out):
        if trees and (width := _width(shard)) != _width(trees):
            first = home[trees[0].question_id]
            raise BadFile(
                f"{path}: its latents are {width} wide, but those of {first} are {_width(trees)}. "
                "Keep the shards of one reasoner in one folder: move one of the two."
            )
        for tree in shard:
            if tree.question_id in home:
                twice = f"question {tree.question_id!r} is also in {home[tree.question_id]}"
                raise BadFile(f"{path}: {twice}. A question may stand in one shard only: move one of the two.")
            home[tree.question_id] = path
        trees += shard
    if not trees:
        raise no_data(folder)
    return trees


def finished_questions(folder: str | pathlib.Path, skip_bad_files: bool = False) -> set[str]:
    """The ids of the questions in finished shards whose bytes are intact; nothing for a new or empty folder.

    Raises:
        BadFile: a shard is damaged. With ``skip_bad_files`` it is named in the log, and its questions are not finished.
    """

    def intact(path: pathlib.Path) -> list[str]:
        metadata = read_metadata(path)
        files.verify(path, metadata["sha256"])
        return metadata["question_ids"]

    return set(chain.from_iterable(ids for _, ids in _each(folder, intact, skip_bad_files, None)))


def _each(
    folder: str | pathlib.Path, read: Callable[[pathlib.Path], _T], skip_bad_files: bool, left_out: list[str] | None
) -> Iterator[tuple[pathlib.Path, _T]]:
    paths, bad = list_shards(folder), []
    for path in paths:
        try:
            yield path, read(path)
        except BadFile as error:
            if not skip_bad_files:
                way_out = "Delete it and collect again, or pass --skip_bad_files to carry on without it."
                raise BadFile(f"{error}\n{way_out}") from error
            bad.append(str(error))
            _log.warning("Left out (--skip_bad_files): %s", error)
    if bad:
        _log.warning("Left out %d of %d shards in %s.", len(bad), len(paths), folder)
    if left_out is not None:
        left_out += bad


def no_data(folder: str | pathlib.Path) -> NoData:
    """The error to raise when a folder has no shard to read: what is there instead, and what to type."""
    names = ", ".join(path.name for path in chain(*scan(folder)))
    which = "No intact and finished .pt files found" if names else "No .pt files found"
    there = f" (there are {names})" if names else ""
    return NoData(f'{which} in {folder}{there}\nRun "bash collect_training_data.sh" first, or pass --data_dir.')


def _width(trees: list[ReasoningTree]) -> int:
    return trees[0].paths[0].latents.shape[1]


# --- trees to columns and back --------------------------------------------------------------------------------------


def _pack(trees: list[ReasoningTree]) -> dict[str, Any]:
    paths = [path for tree in trees for path in tree.paths]
    if not paths:
        raise ValueError("There is no tree with a path to write.")
    answers, width = [answer for path in paths for answer in path.answers], paths[0].latents.shape[-1]
    for tree in trees:
        for i, path in enumerate(tree.paths):
            where, shape = f"question {tree.question_id!r}, path {i}", list(path.latents.shape)
            if shape[1:] != [width]:
                raise ValueError(
                    f"{where}: its latents are {shape}, but must be [T, {width}] as those of the first path."
                )
            if (path.prm_score is None) != (path.score is None):
                raise ValueError(f"{where}: it has only one of prm_score and score. Call tree.back_up() first.")
    sources = {"Q": trees, "P": paths, "A": answers}
    columns = {name: [read(item) for item in sources[axes]] for name, (_, axes, read) in _COLUMNS.items() if read}
    columns["agent_names"] = sorted({path.agent for path in paths})
    columns["agents"] = [columns["agent_names"].index(path.agent) for path in paths]
    columns["path_offsets"] = list(accumulate((len(tree.paths) for tree in trees), initial=0))
    columns["latent_offsets"] = list(accumulate((len(path.latents) for path in paths), initial=0))
    columns["answer_offsets"] = list(accumulate((len(path.answers) for path in paths), initial=0))
    # Pickle writes one object once, however often it stands: equal texts must be one, or chance is in the bytes.
    packed: dict[str, Any] = {
        name: [sys.intern(str(text)) for text in values]
        if _COLUMNS[name][0] is str
        else torch.tensor(values, dtype=_COLUMNS[name][0])
        for name, values in columns.items()
    }
    packed["latents"] = torch.cat([_plain(path.latents) for path in paths])
    packed["tips"] = torch.stack([torch.zeros(width) if path.tip is None else _plain(path.tip) for path in paths])
    return {"format": FORMAT} | {name: packed[name] for name in _COLUMNS}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _unpack(data: dict[str, Any]) -> list[ReasoningTree]:
    small = [name for name, (_, axes, _) in _COLUMNS.items() if "D" not in axes]
    column = {name: data[name] if type(data[name]) is list else data[name].tolist() for name in small}
    answers = [
        Answer(text=text, value=value, correct=correct, truncated=truncated)
        for text, value, correct, truncated in zip(
            *(column[f"answer_{field}"] for field in ("texts", "values", "correct", "truncated")), strict=True
        )
    ]
    latents = data["latents"].split(data["latent_offsets"].diff().tolist())
    paths = [
        Path(
            latents=latents[i],
            tip=data["tips"][i] if column["has_tip"][i] else None,
            parent=None if parent == -1 else parent,
            agent=column["agent_names"][column["agents"][i]],
            noise_free=column["noise_free"][i],
            answers=answers[column["answer_offsets"][i] : column["answer_offsets"][i + 1]],
            prm_score=column["prm_scores"][i] if column["scored"][i] else None,
            score=column["scores"][i] if column["scored"][i] else None,
        )
        for i, parent in enumerate(column["parents"])
    ]
    return [
        ReasoningTree(question_id=name, question=question, gold=gold, task=task, paths=paths[start:end])
        for name, question, gold, task, (start, end) in zip(
            *(column[name] for name in ("question_ids", "questions", "golds", "tasks")),
            pairwise(column["path_offsets"]),
            strict=True,
        )
    ]


def _counts(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "latent_dim": data["latents"].shape[1],
        "num_questions": len(data["question_ids"]),
        "num_paths": len(data["parents"]),
        "num_labelled": int(data["scored"].sum()),
        "question_ids": data["question_ids"],
    }


def outcomes(trees: list[ReasoningTree]) -> dict[str, Any]:
    """How a set of trees came out, as in a shard's metadata: score_histogram, mixed_share and accuracy."""
    scores = [path.prm_score for tree in trees for path in tree.paths if path.prm_score is not None]
    bins = Counter(min(int(score * BINS), BINS - 1) for score in scores)
    per_tree = [_accuracy(tree) for tree in trees]
    known = {key: [one[key] for one in per_tree if key in one] for key in ACCURACIES}
    return {
        "score_histogram": [bins[i] for i in range(BINS)],
        "mixed_share": fmean(tree.mixed for tree in trees),
        "accuracy": {key: fmean(values) if values else None for key, values in known.items()},
    }


def _accuracy(tree: ReasoningTree) -> dict[str, float]:
    """How often the noise-free path, a random noisy one, their majority (ties: by lot) and any of them is right."""
    leaves = [tree.paths[i] for i in tree.leaves() if tree.paths[i].answers]
    right = {
        free: [fmean(a.correct for a in p.answers) for p in leaves if p.noise_free is free] for free in (True, False)
    }
    found = {"noise_free": fmean(right[True])} if right[True] else {}
    votes: dict[str, list[bool]] = defaultdict(list)
    for answer in chain.from_iterable(leaf.answers for leaf in leaves if not leaf.noise_free):
        votes[answer.value].append(answer.correct)
    if votes:
        named = [correct for value, correct in votes.items() if value] or list(votes.values())
        winners = [fmean(correct) for correct in named if len(correct) == max(map(len, named))]
        found["random_path"], found["majority"] = fmean(right[False]), fmean(winners)
        found["any_path"] = float(any(map(any, votes.values())))
    return found


# --- what a shard must be -------------------------------------------------------------------------------------------


def _check(path: str | pathlib.Path, data: Any) -> None:
    """Raise BadFile unless ``data`` is a shard down to its last sample."""
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
    for name, total in (("path_offsets", sizes["P"]), ("latent_offsets", sizes["T"]), ("answer_offsets", sizes["A"])):
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
    rows = torch.cat([block.isfinite().all(1) for block in data["latents"].split(4096)])  # never all of it at once
    finite = torch.ones(len(index), dtype=torch.bool)
    finite[torch.arange(len(index)).repeat_interleave(lengths)[~rows]] = False
    yield "it has NaN or infinite latents", index, finite
    yield "its tip is NaN or infinite", index, data["tips"].isfinite().all(1)
