"""What lies in a folder and whether it is what was written: hides by which names each stage's files are known, and what
vouches for them. Nothing is changed here.

Shards are held against their metadata, checkpoints against their manifest; of other files of ours it is only known
whether they can be read, and of pictures and logs not even that. Links are not followed.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mode
from typing import Any, Literal, NamedTuple

from latent_prm import columns, confidence, files, shards
from latent_prm.checkpoint import FORMAT as CHECKPOINT_FORMAT
from latent_prm.checkpoint import load_state, verify_checkpoint
from latent_prm.files import BadFile
from latent_prm.seals import MANIFEST

Kind = Literal["shards", "training run", "checkpoint", "experiment", "results", "folder"]

CHECKPOINT = re.compile(r"checkpoint-\d+|epoch_\d+|best|final")
ASIDE = re.compile(r"damaged(-\d+)?")
"""Where a repair puts what is damaged."""
UNFINISHED = "shard, unfinished"
SHARDS = ("shard", UNFINISHED, "metadata")
"""What the parts of a collection are called."""
SEARCHED = 3
"""Folders of folders that are opened to find one of ours."""

_UNCHECKED = {
    "training run": r"training\.log|loss_curve\.png|report\.html|tensorboard|wandb|trackio",
    "experiment": r"experiment\.yaml|results\.(csv|md|png)|starts",
    "results": r"(accuracy|calibration|coverage|steps|noise|steering)\.png|report\.html",
    "checkpoint": r"report\.html",
}
"""What a kind of folder holds that nothing vouches for."""
_RESULTS = ("evaluation.json", "noise.json", "steering.json")
_STATE = ("optimizer.pt", "scheduler.pt", "adapter.pt")
"""What of a checkpoint is called as shards are."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something of ours that is sound or damaged as a whole."""

    path: Path
    what: str
    check: Callable[[], str] | None
    """Returns what it is, in words; raises BadFile when it is damaged. None: nothing vouches for it."""
    together: tuple[Path, ...]
    """The files, or the folder, that are one without the other of no use."""
    size: int
    """Bytes to be read."""


@dataclass(kw_only=True)
class Folder:
    """What lies in a folder; of what it holds, folders of ours by themselves."""

    path: Path
    kind: Kind
    parts: list[Part] = field(default_factory=list)
    torn: list[Path] = field(default_factory=list)
    """Left by killed writes; where a stage is ``at_work``, perhaps being written."""
    aside: list[Path] = field(default_factory=list)
    """Set aside by earlier repairs, and not looked at."""
    others: list[Path] = field(default_factory=list)
    """Not ours."""
    inner: list[Folder] = field(default_factory=list)

    def walk(self) -> Iterator[Folder]:
        """This one and all in it, outermost first."""
        yield self
        for folder in self.inner:
            yield from folder.walk()


class Verdict(NamedTuple):
    """What was found out about a part."""

    part: Part
    sound: bool
    said: str
    """What it is; of a damaged one, which file and why."""


def look(path: Path, depth: int = 0, run: bool = False) -> Folder | None:
    """What is in a folder, by names and metadata, with no large file read; None when nothing of it is ours.

    ``depth``: how many folders of folders stand around it; ``run``: a training run does, so that its name tells.
    """
    entries = sorted(path.iterdir())
    kind = _kind(path, entries, run)
    data = _shards([entry for entry in entries if kind != "checkpoint" or entry.name not in _STATE])
    if any(data) and kind in (None, "results"):
        kind = "shards"
    found = Folder(path=path, kind=kind or "folder", parts=_shard_parts(data) + _parts(path, entries, kind))
    ours = {file for part in found.parts for file in part.together}
    found.torn = files.cut_off(path) + [one for one in entries if is_old(one) and kind == "training run"]
    for entry in entries:
        if entry in ours or entry in found.torn or (kind and re.fullmatch(r"\.lock(-\d+of\d+|-commit)?", entry.name)):
            continue
        folder = entry.is_dir() and not entry.is_symlink()
        if folder and ASIDE.fullmatch(entry.name):
            found.aside.append(entry)
        elif folder and (kind or depth < SEARCHED) and (inner := look(entry, depth + 1, kind == "training run")):
            found.inner.append(inner)
        else:
            found.others.append(entry)
    return found if kind or found.inner or found.aside else None


def refuse_strangers(folder: Path) -> None:
    """Nothing, if shards may be written into a folder. Raises ValueError where a run lies in it, or a part of one."""
    kind = _kind(folder, sorted(folder.iterdir()), run=False) if folder.is_dir() else None
    if kind not in (None, "results"):
        raise ValueError(
            f"--output_dir is {folder}, which holds something else ({kind}). Type a folder that is not there yet: "
            "shards stand by themselves."
        )


def judge(part: Part) -> Verdict:
    """Whether a part is sound. Reads all its bytes."""
    if part.check is None:
        return Verdict(part, True, "nothing vouches for it")
    try:
        return Verdict(part, True, part.check())
    except BadFile as error:
        return Verdict(part, False, str(error))


def at_work(folder: Path) -> str | None:
    """Who holds a lock of a folder ("pid on host"), if anybody does."""
    locks = [*sorted(folder.glob(".lock-*of*")), folder / ".lock"]  # jobs share .lock and each have one of their own
    return next(filter(None, map(holder, locks)), None)


def holder(lock: Path) -> str | None:
    """Who alone holds a lock ("pid on host"), if anybody does."""
    with suppress(OSError), open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return None


def is_old(path: Path) -> bool:
    """Whether it is a checkpoint that a killed replacement left under the name that only ``commit_folder`` gives."""
    return bool(re.fullmatch(rf"\.({CHECKPOINT.pattern})\.old", path.name)) and path.is_dir()


# --- whose it is ------------------------------------------------------------------------------------------------------


def _kind(path: Path, entries: list[Path], run: bool) -> Kind | None:
    names = {entry.name for entry in entries}
    if run and CHECKPOINT.fullmatch(path.name):
        return "checkpoint"
    if "training_state.json" in names or _says(path / MANIFEST, "format") == CHECKPOINT_FORMAT:
        return "checkpoint"
    if "experiment.yaml" in names and names & {"runs", "results.csv"}:
        return "experiment"
    inside = [entry for entry in entries if CHECKPOINT.fullmatch(entry.name) and entry.is_dir()]
    begun = any((entry / name).is_file() for entry in inside for name in ("training_state.json", MANIFEST))
    if begun or "training.log" in names or _says(path / "config.json", "resolved") is not None:
        return "training run"
    return "results" if names & {*_RESULTS, confidence.FILE} else None


def _parts(path: Path, entries: list[Path], kind: Kind | None) -> list[Part]:
    found = _results(path)
    if kind == "checkpoint":
        found.append(_checkpoint(path, entries, {part.path for part in found}))
    if kind == "training run":
        for name, key in (("config.json", "options"), ("training_stats.json", "total_steps")):
            found += [_json(path / name, "facts of the run", key)] * (path / name).is_file()
        found += [_json(entry, "measurement", "measured") for entry in path.glob("measured-*.json")]
        if (lines := path / "metrics.jsonl").is_file():
            found.append(_part(lines, "curves", lambda: _check_lines(lines)))
        if (path / "training_stats.json").is_file() and not (path / "best").exists():
            found.append(_part(path / "best", "checkpoint", lambda: _gone(path / "best")))
    claimed = {file for part in found for file in part.together}
    known = _UNCHECKED.get(kind or "", "")
    for entry in entries:
        if known and re.fullmatch(known, entry.name) and entry not in claimed:
            found.append(_part(entry, "log" if entry.suffix == ".log" else "", None))
    return found


def _part(path: Path, what: str, check: Callable[[], str] | None, *together: Path) -> Part:
    own = together or (path,)
    inside = [file for one in own for file in (one.iterdir() if one.is_dir() else [one]) if file.is_file()]
    size = sum(file.stat().st_size for file in inside) if check else 0
    return Part(path=path, what=what, check=check, together=own, size=size)


def _says(path: Path, key: str) -> Any:
    """What a JSON file says of something; None when it says nothing, or cannot be read."""
    with suppress(BadFile):
        said = files.load_json(path)
        return said.get(key) if isinstance(said, dict) else None
    return None


# --- checkpoints and runs ---------------------------------------------------------------------------------------------


def _checkpoint(path: Path, entries: list[Path], beside: set[Path]) -> Part:
    """Its files are those that the manifest names: others may be anyone's."""
    listed = _says(path / MANIFEST, "files")
    names = {MANIFEST, *(listed if isinstance(listed, dict) else (entry.name for entry in entries))}
    own = [entry for entry in entries if entry.name in names and entry.is_file() and entry not in beside]

    def check() -> str:
        manifest = verify_checkpoint(path)
        state = load_state(path)
        without = "" if "optimizer.pt" in manifest["files"] else ", without optimizer.pt"
        return f"step {state.step}, epoch {state.epoch}{without}"

    return Part(path=path, what="checkpoint", check=check, together=tuple(own), size=sum(f.stat().st_size for f in own))


def _gone(path: Path) -> str:
    raise BadFile(f"{path}: the run is finished, but this is gone.")


def _json(path: Path, what: str, key: str | None = None) -> Part:
    def check() -> str:
        said = files.load_json(path)
        if not isinstance(said, dict) or (key is not None and key not in said):
            raise BadFile(f"{path}: it can be read, but says nothing of {key}." if key else f"{path}: no JSON object.")
        return "can be read"

    return _part(path, what, check)


def _check_lines(path: Path) -> str:
    """Of metrics.jsonl; a last line that was cut off is written again when the run goes on."""
    try:
        *whole, _ = path.read_text("utf-8").split("\n")
        for line in whole:
            json.loads(line)
    except ValueError as error:
        raise BadFile(f"{path}: a line of it is no JSON ({error}).") from error
    return f"{len(whole)} lines"


def _results(path: Path) -> list[Part]:
    found = [_json(path / name, "result") for name in _RESULTS if (path / name).is_file()]
    if (calibration := path / confidence.FILE).is_file():

        def check() -> str:
            confidence.load(path)
            return "can be read"

        found.append(_part(calibration, "calibration", check))
    return found


# --- shards -----------------------------------------------------------------------------------------------------------


class _Shards(NamedTuple):
    """The files of a folder by what they are of."""

    whole: list[Path]
    """With metadata beside them."""
    unfinished: list[Path]
    orphans: list[Path]
    """Metadata whose .pt is gone."""


def _shards(entries: list[Path]) -> _Shards:
    data = [path for path in entries if path.suffix == ".pt"]
    marks = [path for path in entries if path.name.endswith("_metadata.json") and _is_mark(path)]
    beside = {shards.metadata_path(path) for path in data}
    return _Shards(
        [path for path in data if shards.metadata_path(path) in marks],
        [path for path in data if not shards.metadata_path(path).exists() and _is_shard(path)],
        [path for path in marks if path not in beside],
    )


def _is_mark(path: Path) -> bool:
    """Whether metadata are ours, or too damaged to tell."""
    try:
        said = files.load_json(path)
    except BadFile:
        return path.is_file()
    return isinstance(said, dict) and str(said.get("format", "")).startswith(columns.FORMAT.partition("/")[0])


def _is_shard(path: Path) -> bool:
    """Whether a .pt that nothing vouches for holds what a shard holds."""
    try:
        columns.check(path, columns.completed(files.load_tensors(path, mmap=True)))
    except BadFile:
        return False
    return True


def _shard_parts(found: _Shards) -> list[Part]:
    home: dict[str, Path] = {}
    widths = [width for path in found.whole if (width := _says(shards.metadata_path(path), "latent_dim"))]
    usual = mode(widths) if widths else None

    def check(path: Path) -> str:
        trees = shards.read_shard(path)
        if (width := trees[0].paths[0].latents.shape[1]) != usual:
            raise BadFile(f"{path}: its latents are {width} wide, but those of most shards here are {usual}.")
        for tree in trees:
            if (other := home.get(tree.question_id, path)) != path:
                raise BadFile(f"{path}: question {tree.question_id!r} is also in {other}.")
        home.update({tree.question_id: path for tree in trees})
        return f"{len(trees):,} questions, {sum(len(tree.paths) for tree in trees):,} paths"

    def unfinished(path: Path) -> str:
        beside = shards.metadata_path(path).name
        raise BadFile(f"{path}: it has no {beside} beside it: it was never finished, or that is lost.")

    def orphan(path: Path) -> str:
        raise BadFile(f"{path}: the shard that it vouches for is gone.")

    return [
        *(_part(p, "shard", lambda p=p: check(p), p, shards.metadata_path(p)) for p in found.whole),
        *(_part(p, UNFINISHED, lambda p=p: unfinished(p)) for p in found.unfinished),
        *(_part(p, "metadata", lambda p=p: orphan(p)) for p in found.orphans),
    ]
