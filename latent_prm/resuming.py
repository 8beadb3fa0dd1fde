"""What a run must have to go on: hides which run and which checkpoint are meant, and what may not have changed since.

All chance of training follows from the seed and from what it is for, so a run goes on exactly from weights, optimizer,
scheduler, scaler, the counters of ``TrainingState`` and the same data: there is no state of a random generator to keep.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from latent_prm import files
from latent_prm.checkpoint import load_state, verify_checkpoint
from latent_prm.lessons import Lesson
from latent_prm.options import TrainOptions

log = logging.getLogger(__name__)

FREE = {"data_dir", "output_dir", "skip_bad_files", "resume", "device", "log_level", "logging_steps", "save_steps"}
FREE |= {"save_total_limit", "save_optimizer", "early_stopping_patience", "report_to", "plan"}
"""Options that change nothing of what is learned. That the data are the same is told by their digest."""
ROUNDING = {"pack_tokens", "gradient_checkpointing", "compile", "parallel", "deterministic"}
"""Options that change the last bits only, as another device or torch does: allowed, and said aloud."""
FINISHED = "training_stats.json"
"""The last file of a run."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def run_folder(options: TrainOptions) -> Path | None:
    """The folder of the run that ``--resume`` means; None when there is none, so that a new one begins.

    Raises ValueError when PATH is no run, or not the one that ``--output_dir`` names.
    """
    if options.resume == "auto":
        return Path(options.output_dir) if options.output_dir else _newest_run(Path("checkpoints"))
    path = Path(options.resume or "")
    # Of "." the parent is "." to pathlib; and a checkpoint that is a link belongs to the run that it is linked in.
    folder = Path(os.path.normpath(path / "..")) if (path / "training_state.json").exists() else path
    if not folder.is_dir():
        raise ValueError(f"--resume is {path}, but there is no such folder. Type a run folder, a checkpoint or auto.")
    if not (is_run(folder) or _checkpoints(folder)):
        raise ValueError(f"--resume is {path}, which is no run. Type a folder as checkpoints/qwen_prm_…, or auto.")
    if options.output_dir and Path(options.output_dir).resolve() != folder.resolve():
        raise ValueError(
            f"--resume goes on in {folder}, but --output_dir is {options.output_dir}. Leave --output_dir out."
        )
    return folder


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder: its config.json is a run's, not a model's. Raises BadFile for damage."""
    path = folder / "config.json"
    said = files.load_json(path) if path.is_file() else None
    return isinstance(said, dict) and {"options", "resolved"} <= said.keys()


def _newest_run(root: Path) -> Path | None:
    """The newest unfinished run, else the newest finished one."""
    runs = [path.parent for path in root.glob("*/config.json") if (path.parent / "training.log").is_file()]
    begun = sorted(runs, key=lambda run: ((run / "config.json").stat().st_mtime_ns, run.name))
    unfinished = [run for run in begun if not (run / FINISHED).exists()]
    return next(reversed(unfinished or begun), None)


def find_checkpoint(options: TrainOptions, folder: Path, origin: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from: the one that ``--resume`` names, else the newest whole one of the run.

    None when the run has none yet. A damaged one is named aloud, and the next older one taken.

    Raises:
        BadFile: the one named is damaged or has no optimizer.pt, or none of several is whole.
        ValueError: the run was begun with other data or other options; it says which.
    """
    if options.resume != "auto" and Path(options.resume or "").resolve() != folder.resolve():
        path = Path(options.resume or "")
        way_out = f"Type --resume {folder}, which takes the newest whole one."
        try:
            manifest = verify_checkpoint(path)
        except files.BadFile as error:
            raise files.BadFile(f"{error} {way_out}") from error
        if "optimizer.pt" not in manifest["files"]:
            raise files.BadFile(f"{path} has no optimizer.pt (--no-save_optimizer): no run goes on from it. {way_out}")
        _refuse_differences(path, manifest, origin)
        return path
    damaged = whole = 0
    for path in _checkpoints(folder):
        try:
            manifest = verify_checkpoint(path)
            load_state(path)
        except files.BadFile as error:
            damaged += 1
            log.warning(f"[Trainer] {path.name} is not whole, so an older one is looked for. {error}")
            continue
        whole += 1
        _refuse_differences(path, manifest, origin)
        if "optimizer.pt" in manifest["files"]:
            return path
    if damaged and not whole:
        raise files.BadFile(f"{folder}: none of its {damaged} checkpoints is whole. Begin in another --output_dir.")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; those whose step cannot be told before all others, to be named."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        if path.is_dir() and (_CHECKPOINT.fullmatch(path.name) or re.fullmatch(r"epoch_\d+|final|best", path.name)):
            try:
                step = float(load_state(path).step)
            except files.BadFile:
                named = _CHECKPOINT.fullmatch(path.name)
                step = float(named[1]) if named else float("inf")
            found.append((step, path.name.startswith("checkpoint-"), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _refuse_differences(checkpoint: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError naming every difference that would make it another run; lesser ones are said aloud."""
    if missing := [key for key in now if not isinstance(then.get(key), type(now[key]))]:
        raise files.BadFile(f"{checkpoint / 'manifest.json'}: it lacks {', '.join(missing)}: no run goes on from it.")
    before, typed = then["options"], now["options"]
    differ = [name for name in typed if before.get(name) != typed[name]]
    hard = [name for name in differ if name not in FREE | ROUNDING]
    if hard:
        said = "; ".join(f"--{name} is {typed[name]}, but was {before.get(name, 'not known then')}" for name in hard)
        again = " ".join(_as_typed(name, before[name]) for name in hard if name in before)
        way_out = f"Type {again}, or begin anew in another --output_dir." if again else "Begin anew."
        raise ValueError(f"{checkpoint} is of another run: {said}. {way_out}")
    if then["data"] != now["data"]:
        digests = f"digest {then['data'][:12]}, now {now['data'][:12]}"
        raise ValueError(
            f"{checkpoint} was trained on other data than those in {typed['data_dir']} ({digests}). Type the "
            f"--data_dir with what it had (it was {before.get('data_dir')}), or begin anew in another --output_dir."
        )
    changes = {f"--{name}": (before.get(name), typed[name]) for name in differ if name in ROUNDING}
    changes |= {key: (then["machine"].get(key), value) for key, value in now["machine"].items()}
    if changed := [f"{key} was {was} and is {is_now}" for key, (was, is_now) in changes.items() if was != is_now]:
        log.warning(f"[Trainer] {', '.join(changed)}: the run goes on, but not to the same last bits.")


def _as_typed(name: str, value: Any) -> str:
    """An option as it is typed; one that was left out says so."""
    if value is None:
        return f"no --{name}"
    return f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"


def origin(options: TrainOptions, lessons: Iterable[Lesson], machine: Mapping[str, str]) -> dict[str, Any]:
    """What a run is made of, for the manifests of its checkpoints: options, digest of the data, device and versions."""
    digest = hashlib.sha256()
    for lesson in lessons:
        tree = lesson.tree
        taught = sorted(lesson.targets.items()), sorted(lesson.counts.items())
        digest.update(repr((tree.question_id, tree.question, *taught)).encode())
        for path in tree.paths:
            latents = path.latents.contiguous()
            digest.update(repr((path.parent, path.noise_free, latents.dtype, tuple(latents.shape))).encode())
            digest.update(latents.view(torch.uint8).numpy().data)
    asked = asdict(options) | {"pack_tokens": options.at_once}
    return {"options": asked, "data": digest.hexdigest(), "machine": dict(machine)}


def holds(checkpoint: Path, step: int) -> bool:
    """Whether a folder is a whole checkpoint of this step."""
    try:
        return bool(verify_checkpoint(checkpoint)) and load_state(checkpoint).step == step
    except files.BadFile:
        return False


def rotate(folder: Path, newest: Path, limit: int, spare: str | None = None) -> None:
    """Remove the oldest ``checkpoint-N`` so that ``limit`` of them up to ``newest`` remain; never any other folder.

    The one named ``spare``, the best so far, stays and is not counted: a run that goes on may need it as best again.

    ``newest`` is verified first: when it is not whole, nothing is removed. Later ones, which a run that went on from an
    older one has not reached again, are left to it.
    """
    steps = {int(found[1]): path for path in folder.iterdir() if (found := _CHECKPOINT.fullmatch(path.name))}
    last = int(newest.name.removeprefix("checkpoint-"))
    ours = [steps[n] for n in sorted(steps) if n <= last and (steps[n] / "manifest.json").is_file()]
    ours = [path for path in ours if path.name != spare]
    if len(ours) <= limit:
        return
    try:
        verify_checkpoint(newest)
    except files.BadFile as error:
        log.warning(f"[Trainer] No older checkpoint is removed, for the newest is not whole. {error}")
        return
    for path in ours[:-limit]:
        if not path.is_symlink():
            files.remove_folder(path)
