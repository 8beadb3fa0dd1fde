"""Back to what is sound: hides what falls back on what.

A damaged shard is set aside, so that collect grows its questions again. A damaged checkpoint is, so that a run goes on
from an older one; best, final and epoch_N are made anew of a sound checkpoint of the same step. All this happens under
the folder's lock, and nothing is deleted but what killed writes left behind.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from latent_prm import files, seals, shards
from latent_prm.checkpoint import TrainingState, link_checkpoint, load_state, verify_checkpoint
from latent_prm.files import BadFile
from latent_prm.inventory import ASIDE, CHECKPOINT, SHARDS, Folder, Verdict, at_work, is_old, judge, look
from latent_prm.options import CollectOptions, TrainOptions
from latent_prm.resuming import FINISHED

LOCKED = ("shards", "training run", "experiment")
"""Folders that a stage locks while it is at work. Without a lock a killed write is like one that goes on."""
_READERS = {
    "noise": ("noise", "hybrid"),
    "soft_temperature": ("temperature", "hybrid"),
    "dropout": ("dropout", "hybrid"),
}
"""Which --diversity_strategy reads an option of collect; others refuse it."""
_COPY = re.compile(r"(train|validation|test)-[0-9a-f]{12}-first\d+")
"""What ``stock`` calls a folder that holds a part of a pool."""


def repair(folder: Folder, wanting: Collection[Path]) -> Iterator[str]:
    """Fall back to what is sound in those folders that are ``wanting``, in this one and all inside.

    Says what was done and what to type next, sentence by sentence. A folder in which a stage is at work is left alone.
    """
    if not any(one.path in wanting for one in folder.walk()):
        return
    if who := at_work(folder.path):
        yield f"{folder.path} is left as it is: a stage is at work there (pid {who}). Repair it when that is through."
        return
    with ExitStack() as held:
        if folder.kind in LOCKED:
            held.enter_context(files.lock(folder.path / ".lock", "process", "Repair it when that is through."))
            yield from _swept(folder)
        now = look(folder.path)
        assert now is not None
        damaged = _damaged(now, inside=False)
        if lost := [verdict for verdict in damaged if verdict.part.what in SHARDS]:
            yield from _mend_shards(now, lost)
        if now.kind == "training run":  # with its checkpoints
            yield from _mend_run(now)
            return
        if rest := [verdict for verdict in damaged if verdict not in lost and verdict.part.path.exists()]:
            yield from _mend_results(now, rest)
        for inner in now.inner:
            yield from repair(inner, wanting)


def _damaged(folder: Folder, inside: bool) -> list[Verdict]:
    """What is not sound; looked for again, now that nobody else can write."""
    among = folder.walk() if inside else [folder]
    return [verdict for one in among for verdict in map(judge, one.parts) if not verdict.sound]


def _swept(folder: Folder) -> Iterator[str]:
    """Remove what killed writes left; a checkpoint whose replacement was never written comes back."""
    for torn in folder.torn:
        final = torn.with_name(torn.name[1 : -len(".old")])
        if is_old(torn) and not final.exists():
            torn.rename(final)
            yield f"Put back {final}: what was to replace it was never written."
        else:
            files.remove_folder(torn) if torn.is_dir() else torn.unlink()
            yield f"Removed {torn}: a write that was cut off."


def _set_aside(folder: Path, what: Sequence[Path]) -> str:
    """Move files and folders into a folder beside them in which none of their names is taken; says where to."""
    moved = [path for path in what if path.exists()]
    places = (folder / name for name in ("damaged", *(f"damaged-{n}" for n in range(2, 10_000))))
    place = next(one for one in places if not any((one / path.name).exists() for path in moved))
    place.mkdir(exist_ok=True)
    for path in moved:
        path.rename(place / path.name)
    return f"Set aside in {place}: {', '.join(path.name for path in moved)}"


def _mend_results(folder: Folder, damaged: Sequence[Verdict]) -> Iterator[str]:
    if folder.kind == "checkpoint":
        around = look(folder.path.absolute().parent)
        run = around.path if around and around.kind == "training run" else None
        way_out = (
            f"Type: latent-prm verify {shlex.quote(str(run))} --repair" if run else "Copy it again, or train again."
        )
        yield f"{folder.path} is left as it is: alone it has nothing to fall back on. {way_out}"
        return
    yield f"{_set_aside(folder.path, [verdict.part.path for verdict in damaged])}. Next: what wrote it, again."


# --- shards -----------------------------------------------------------------------------------------------------------


def _mend_shards(folder: Folder, damaged: Sequence[Verdict]) -> Iterator[str]:
    if _COPY.fullmatch(folder.path.name):  # an experiment takes it for whole as long as it is there
        again = "the experiment again, which copies it from its pool"
        yield f"{_set_aside(folder.path.parent, [folder.path])}. Next: {again}."
        return
    facts = _facts(folder)
    yield _set_aside(folder.path, [path for verdict in damaged for path in verdict.part.together])
    back = list(_whole_under_another_name(folder.path))
    yield from (f"Put back {name}: its bytes were whole, under another name." for name in back)
    home = folder.path
    if folder.kind != "shards":  # collect refuses such a mixture
        home = Path(f"{home}-shards")
        yield f"Shards stand by themselves: move these, with their metadata, into {home}."
    lost = _ids(facts.values()) - shards.finished_questions(folder.path, skip_bad_files=True)
    if lost or any(verdict.part.path not in facts for verdict in damaged):  # of those nobody knows what they held
        yield f"Next, to grow again what is lost and nothing else: {_collect_again(home, list(facts.values()), lost)}"


def _facts(folder: Folder) -> dict[Path, dict[str, Any]]:
    """What the metadata of a folder's shards say, as far as they can be read, by what the inventory calls each."""
    found: dict[Path, dict[str, Any]] = {}
    for part in (part for part in folder.parts if part.what in SHARDS):
        for path in (path for path in part.together if path.suffix == ".json" and path.exists()):
            with suppress(BadFile):
                if isinstance(said := files.load_json(path), dict):
                    found[part.path] = said
    return found


def _ids(facts: Iterable[Mapping[str, Any]]) -> set[str]:
    """The questions that metadata name, each once: a damaged shard may have been grown again beside it."""
    named = (said.get("question_ids") for said in facts)
    return {str(name) for names in named if isinstance(names, list) for name in names}


def _whole_under_another_name(folder: Path) -> Iterator[str]:
    """Bring back every shard that was set aside, but whose bytes are there, and whose questions are nowhere else."""
    places = [path for path in sorted(folder.iterdir()) if ASIDE.fullmatch(path.name) and path.is_dir()]
    there = shards.finished_questions(folder, skip_bad_files=True)
    for mark in [path for place in places for path in sorted(place.glob("*_metadata.json"))]:
        target = folder / f"{mark.name.removesuffix('_metadata.json')}.pt"
        try:
            said = seals.load_sealed(mark)
            ids, size, sha256 = set(said["question_ids"]), said["size"], said["sha256"]
        except (BadFile, KeyError, TypeError):
            continue
        data = (path for place in places for path in place.glob("*.pt") if path.stat().st_size == size)
        same = next((path for path in data if files.digest(path) == sha256), None)
        if same and same != mark.with_name(target.name) and not target.exists() and not there & ids:
            same.rename(target)
            mark.rename(shards.metadata_path(target))
            there |= ids
            yield target.name


def _collect_again(folder: Path, facts: Sequence[Mapping[str, Any]], lost: set[str]) -> str:
    """The command that grows what is no longer there; of jobs that had a --shard, the one of each that lacks some."""
    said = facts[0] if facts else {}
    settings = said.get("settings")
    if not isinstance(settings, dict):
        return f"the collect command that filled it, with --output_dir {shlex.quote(str(folder))}"
    if "layout" in settings:
        return f"the convert command that filled it, with --output_dir {shlex.quote(str(folder))}"
    typed = settings | {name: said.get(name) for name in ("task", "split", "seed", "dtype")}
    for name, strategies in _READERS.items():
        if settings.get("diversity_strategy") not in strategies:
            typed.pop(name, None)
    odd = {"branches": "," not in str(typed.get("branches")), "latent_steps": "," in str(typed.get("latent_steps"))}
    typed = {name: value for name, value in typed.items() if not odd.get(name)}
    typed |= {"model_path": said.get("model")} | _typed(said) | {"dtype": said.get("dtype"), "output_dir": str(folder)}
    jobs: dict[str | None, list[Mapping[str, Any]]] = {}
    for one in facts:
        jobs.setdefault(_job(one), []).append(one)
    if None in jobs:  # all questions were asked by one, which goes on where jobs had begun
        jobs = {None: list(facts)}
    return " && ".join(
        _command("collect", CollectOptions, typed | {"shard": shard, "max_samples": _reach(shard, len(_ids(own)))})
        for shard, own in jobs.items()
        if _ids(own) & lost or not lost
    )


def _typed(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed for a shard's growth; nothing where its metadata are older than that they say so."""
    typed = said.get("typed")
    return typed if isinstance(typed, dict) else {}


def _job(said: Mapping[str, Any]) -> str | None:
    """The --shard of the job that grew it; None where one asked all questions, or what is said cannot be."""
    with suppress(TypeError, ValueError):
        CollectOptions(shard=_typed(said).get("shard")).share()
        return _typed(said).get("shard")
    return None


def _reach(shard: str | None, count: int) -> int:
    """The --max_samples with which a job asks so many questions."""
    number, jobs = CollectOptions(shard=shard).share()
    return number + (count - 1) * jobs


# --- runs -------------------------------------------------------------------------------------------------------------


def _mend_run(run: Folder) -> Iterator[str]:
    damaged = [one.part.path for one in _damaged(run, inside=True) if one.part.what not in SHARDS]
    for place in dict.fromkeys(path.parent for path in damaged):
        if own := [path for path in damaged if path.parent == place and path.exists()]:
            yield _set_aside(place, own)
    whole = {
        one.path: load_state(one.path) for one in run.inner if one.kind == "checkpoint" and one.path not in damaged
    }
    missing = yield from _refill(run.path, whole)
    if not damaged and not missing:
        return
    finished = run.path / FINISHED
    if missing and finished.exists():
        yield f"{_set_aside(run.path, [finished])}, so that the run can go on"
    if not finished.exists():
        yield f"Next: {_train_again(run.path, whole, missing)}"


def _refill(run: Path, whole: dict[Path, TrainingState]) -> Generator[str, None, dict[str, int | None]]:
    """Make best, and whatever was set aside of final and epoch_N, anew, each of a whole checkpoint of the same moment.

    Returns, at its end, the steps of those of which nothing is left; None where even that is unknown.
    """
    missing: dict[str, int | None] = {}
    newest = max(whole.values(), key=lambda state: state.step, default=None)
    once = {path.name for place in run.iterdir() if ASIDE.fullmatch(place.name) for path in place.iterdir()}
    for name in sorted({"best"} | {name for name in once if CHECKPOINT.fullmatch(name)}):
        if (run / name).exists() or name.startswith("checkpoint-"):
            continue
        best = newest.best if newest else None
        wanted = best["step"] if best and name == "best" else None
        same = [path for path, state in whole.items() if state.step == wanted or _is_of(name, state)]
        if same:
            source = max(same, key=lambda path: (path / "optimizer.pt").exists())
            light = name != "final" and (_options(run, whole).get("save_optimizer") is False)
            link_checkpoint(source, run / name, ["optimizer.pt"] * (light and (source / "optimizer.pt").exists()))
            whole[run / name] = whole[source]
            yield f"Made {run / name} anew of {source.name}, the same step ({whole[source].step})."
        elif name in once or wanted is not None:
            missing[name] = wanted
            what = "the best model so far" if name == "best" else f"what {name} held"
            yield f"Nothing is left of {what}{'' if wanted is None else f' (step {wanted})'}."
    return missing


def _is_of(name: str, state: TrainingState) -> bool:
    """Whether final or epoch_N is the checkpoint of this moment."""
    at_end = len(state.epoch_losses) == state.epoch
    return (name == "final" and state.finished) or (name == f"epoch_{state.epoch}" and at_end)


def _train_again(run: Path, whole: Mapping[Path, TrainingState], missing: Mapping[str, int | None]) -> str:
    """The command that takes the run up, from before what is missing."""
    options = {name: value for name, value in _options(run, whole).items() if name not in ("resume", "plan")}
    before = min((step for step in missing.values() if step is not None), default=math.inf)
    able = {path: state.step for path, state in whole.items() if (path / "optimizer.pt").is_file()}
    earlier = [path for path, step in able.items() if step < before]
    if able and not earlier:
        return _command("train", TrainOptions, options | {"output_dir": f"{run}-again"})
    source = run if len(earlier) == len(able) else max(earlier, key=lambda path: able[path])
    return _command("train", TrainOptions, options | {"output_dir": None, "resume": str(source)})


def _options(run: Path, whole: Mapping[Path, TrainingState]) -> dict[str, Any]:
    """What was typed for a run, as its checkpoints say, else its config.json; nothing where neither can be read."""
    for path in whole:
        return verify_checkpoint(path).get("options") or {}
    with suppress(BadFile):
        said = files.load_json(run / "config.json")
        return said.get("options", {}) if isinstance(said, dict) else {}
    return {}


def _command(name: str, kind: type, typed: Mapping[str, Any]) -> str:
    """A command with those of a stage's options that are not as when they are left out."""
    words = ["latent-prm", name]
    for field in fields(kind):
        value = typed.get(field.name)
        if value is None or value == field.default or not isinstance(value, (str, int, float)):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{field.name}")
        else:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)
