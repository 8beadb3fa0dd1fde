"""Trees on disk: ``<name>.pt`` and, written after it as the mark that it is whole, ``<name>_metadata.json``.

This room hides the folder: what is finished, what is damaged, what the metadata vouches for, and that another program's
files may stand there instead of ours.
"""

from __future__ import annotations

import logging
import os
import pathlib
import platform
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import chain
from statistics import fmean
from typing import Any, TypeVar

import torch

from latent_prm import columns, files, foreign, seals
from latent_prm.columns import FORMAT
from latent_prm.files import BadFile
from latent_prm.grading import halved
from latent_prm.options import CollectOptions, EvaluateOptions, TrainOptions
from latent_prm.tree import ReasoningTree

BINS = 10
"""Of the score histogram, over 0..1."""
LONGEST = 255
"""Bytes of a file's name, on the usual filesystems."""
TEST_DATA = "prm_data_test"
"""The folder of the trees that a PRM is measured on, where no other is typed."""

_METADATA = {
    str: "format data_file sha256",
    int: "size latent_dim num_questions num_paths num_labelled",
    float: "mixed_share",
    bool: "stores_hidden",
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
    path = pathlib.Path(folder, f"{name}.pt")
    if not name or pathlib.PurePath(name).name != name or len(os.fsencode(metadata_path(path).name)) > LONGEST:
        plain = "a plain file name, without a folder and without .pt"
        raise ValueError(f"A shard cannot be named {name!r}: type {plain}, of at most 241 bytes.")
    if path.exists() and metadata_path(path).exists():
        raise FileExistsError(f"{path} is a finished shard. Choose another name.")
    data = columns.pack(trees)
    columns.check(path, data)
    if odd := [tree for tree in trees if halved(tree.question_id + tree.question + tree.gold)]:
        half = "half of a character (a lone surrogate) is in its id, text or gold"
        raise ValueError(f"question {odd[0].question_id!r}: {half}. Leave the question out.")
    metadata_path(path).unlink(missing_ok=True)  # a mark whose .pt was deleted must not vouch for the new one
    sha256 = files.save_tensors(data, path)
    mark = {"format": FORMAT, "data_file": path.name, "sha256": sha256, "size": path.stat().st_size}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    counted = mark | _counts(data) | outcomes(trees)  # nothing that a caller says may contradict it
    seals.save_sealed(mark | {"created": now, "versions": versions} | facts | counted, metadata_path(path))
    return path


def read_shard(path: str | pathlib.Path) -> list[ReasoningTree]:
    """The trees of a finished shard; latents and tips are views of the memory-mapped file.

    Raises:
        BadFile: unfinished, damaged, or not a shard; it names the file, and the sample where there is one.
    """
    metadata = read_metadata(path)
    data = columns.completed(files.load_tensors(path, sha256=metadata["sha256"], mmap=True))
    columns.check(path, data)
    if wrong := [key for key, value in _counts(data).items() if metadata[key] != value]:
        raise BadFile(f"{metadata_path(path)}: what it says of {', '.join(wrong)} is not what {path} holds.")
    return columns.unpack(data)


def read_metadata(path: str | pathlib.Path) -> dict[str, Any]:
    """What the metadata beside a ``.pt`` says of it; of the ``.pt`` itself only the size is compared.

    Raises:
        BadFile: there is no metadata (the shard is unfinished), it is damaged, or it is not of a shard.
    """
    beside = metadata_path(path)
    if not beside.exists():
        raise BadFile(f"{path}: it has no {beside.name} beside it, so it was never finished, or is not a shard.")
    metadata = seals.load_sealed(beside)
    if type(metadata) is not dict or metadata.get("format") != FORMAT:
        nested = type(metadata) is dict and "batch_name" in metadata
        hint = f"\nType: latent-prm convert {beside.parent} --output_dir FOLDER" if nested else ""
        raise BadFile(f"{beside}: not the metadata of a shard: its format is not {FORMAT!r}.{hint}")
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
        _log.warning("%s: left out: %s", path, why_left_out(path))
    return finished


def why_left_out(path: pathlib.Path) -> str:
    """Why a ``.pt`` without metadata is not read."""
    lacks = f"it has no {metadata_path(path).name}"
    if foreign.looks_foreign(path):
        folder = shlex.quote(str(path.parent))
        return f"{lacks}, and looks like another program's. Type: latent-prm convert {folder} --output_dir FOLDER"
    reason = foreign.unreadable(path)
    return f"{lacks}, and cannot be read: {reason}" if reason else f"{lacks}, so it is unfinished."


def load_trees(
    folder: str | pathlib.Path, skip_bad_files: bool = False, left_out: list[str] | None = None
) -> list[ReasoningTree]:
    """The trees of all finished shards of a folder, shards by name, or of all nested files where no shard is.

    With ``skip_bad_files`` damaged files are named and counted in the log, and in ``left_out`` when it is given.

    Raises:
        NoData: there is no shard to read.
        BadFile: a shard is damaged, has another latent width than the ones before, or a question that they have.
    """
    if harvest := nested_files(folder):
        return _harvested(folder, harvest, skip_bad_files, left_out)
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


def nested_files(folder: str | pathlib.Path) -> foreign.Harvest | None:
    """What another program's files in a folder hold; None where a shard of ours is, or no file of theirs."""
    paths = sorted(pathlib.Path(folder).glob("*.pt"))
    said = [foreign.beside(path) for path in paths]
    if None in said or not ((harvest := foreign.read(paths)).num_nested or any(said)):
        return None
    return harvest


def _harvested(
    folder: str | pathlib.Path, harvest: foreign.Harvest, skip_bad_files: bool, left_out: list[str] | None
) -> list[ReasoningTree]:
    """Their trees, said aloud."""
    if harvest.bad and not skip_bad_files:
        raise BadFile(f"{harvest.bad[0]}\nMove it elsewhere, or pass --skip_bad_files to carry on without it.")
    for sentence in [*harvest.say(), *(f"Left out (--skip_bad_files): {error}" for error in harvest.bad)]:
        _log.warning("%s: %s", folder, sentence)
    if left_out is not None:
        left_out += harvest.bad
    if not harvest.trees:
        raise no_data(folder)
    return harvest.trees


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
                way_out = "or pass --skip_bad_files to carry on without it."
                raise BadFile(f"{error}\n{to_repair(folder)}, {way_out}") from error
            bad.append(str(error))
            _log.warning("Left out (--skip_bad_files): %s", error)
    if bad:
        _log.warning("Left out %d of %d shards in %s.", len(bad), len(paths), folder)
    if left_out is not None:
        left_out += bad


def no_data(folder: str | pathlib.Path, way_out: str = "pass --data_dir", **collected: str) -> NoData:
    """The error to raise when a folder has no shard to read: what is there instead, and what to type.

    ``collected`` are options of the collection that would fill it.
    """
    if pathlib.Path(folder).is_file():
        return NoData(f"{folder} is a file. Type its folder: {pathlib.Path(folder).parent}")
    finished, unfinished = scan(folder)
    names = ", ".join(path.name for path in chain(finished, unfinished))
    which = "No intact and finished .pt files found" if names else "No .pt files found"
    there = f" (there are {names})" if names else ""
    there += "".join(f"\n{reason}" for path in unfinished if (reason := foreign.unreadable(path)))
    return NoData(f'{which} in {folder}{there}\nRun "{command("collect", **collected)}" first, or {way_out}.')


def to_repair(folder: str | pathlib.Path) -> str:
    """What to type where a shard of a folder is damaged."""
    return f"Type: latent-prm verify {shlex.quote(str(folder))} --repair"


_STAGES = {
    "collect": ("collect_training_data.sh", CollectOptions),
    "train": ("train_latent_prm.sh", TrainOptions),
    "evaluate": ("evaluate_latent_prm.sh", EvaluateOptions),
}


def command(stage: str, **typed: str) -> str:
    """What to type for a stage: its script where that is in the working folder, else its command, without defaults."""
    script, options = _STAGES[stage]
    if pathlib.Path(script).is_file():
        own = TEST_DATA if stage == "evaluate" else "prm_data"
        given = [f"{name.upper()}={shlex.quote(value)}" for name, value in typed.items() if value != own]
        return " ".join([*given, f"bash {script}"])
    given = [f"--{name} {shlex.quote(value)}" for name, value in typed.items() if value != getattr(options, name, None)]
    return " ".join([f"latent-prm {stage}", *given])


def _width(trees: list[ReasoningTree]) -> int:
    return trees[0].paths[0].latents.shape[1]


def _counts(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "latent_dim": data["latents"].shape[1],
        "num_questions": len(data["question_ids"]),
        "num_paths": len(data["parents"]),
        "num_labelled": int(data["has_prm_score"].sum()),
        "stores_hidden": len(data["hidden"]) > 0,
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
