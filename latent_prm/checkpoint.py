"""What a checkpoint holds: hides its files, how they appear all at once, how equal checkpoints share bytes, and how a
damaged one is told from a whole one.

A folder is complete or not there, and needs no other: ``QwenLatentPRM.from_pretrained(folder)`` scores with it, and
``load_checkpoint`` goes on from it, for manifest.json names every file with its size and sha256.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from latent_prm import files
from latent_prm.model import QwenLatentPRM

FORMAT = "latent-prm-checkpoint/1"


@dataclass(kw_only=True)
class TrainingState:
    """How far a run is, as training_state.json says it."""

    step: int = 0
    epoch: int = 0
    """The one in progress, or the last one; the first is 1."""
    epoch_steps: int = 0
    """Optimizer steps done of it."""
    squares: float = 0.0
    """The sum of the losses of its labelled paths so far."""
    paths: int = 0
    """How many those were."""
    seed: int
    epoch_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    """One per finished epoch; none without validation."""
    best: dict[str, Any] | None = None
    """The lowest loss, what loss it is (by), and the epoch and step it was reached in."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of the gradient scaler; empty when there is none."""

    def begin(self, epoch: int) -> None:
        """Nothing of this epoch is done yet."""
        self.epoch, self.epoch_steps, self.squares, self.paths = epoch, 0, 0.0, 0


def save_checkpoint(
    folder: str | Path,
    model: QwenLatentPRM,
    optimizer: Optimizer | None,
    scheduler: LRScheduler,
    state: TrainingState,
    questions: Mapping[str, Sequence[str]],
    history: Sequence[Mapping[str, Any]] = (),
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Commit a checkpoint folder: the guide's five files, the tokenizer's, questions.json, metrics.jsonl, and, last,
    manifest.json.

    ``questions`` names what the model has seen by ``grading.question_digest``: ``{"train": [...], "validation": ...}``;
    ``history`` are the lines of metrics.jsonl so far; ``origin`` says in the manifest what the run was made of.
    Without an ``optimizer`` there is no optimizer.pt, and no run goes on from here.
    Equal weights give a pytorch_model.bin of equal bytes.

    Raises:
        ValueError: a weight is NaN or infinite, so this is no model worth keeping.
        OSError: the disk refused; whatever ``folder`` was before, it still is.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        named = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise ValueError(f"{folder} was not written: NaN or infinite weights ({named}). Type a lower --learning_rate.")

    def write(temp: Path) -> None:
        hashed = {"pytorch_model.bin": files.save_tensors(weights, temp / "pytorch_model.bin")}
        if optimizer is not None:
            hashed["optimizer.pt"] = files.save_tensors(optimizer.state_dict(), temp / "optimizer.pt")
        files.save_tensors(scheduler.state_dict(), temp / "scheduler.pt")
        files.save_json(asdict(state), temp / "training_state.json")
        files.save_json({side: list(digests) for side, digests in questions.items()}, temp / "questions.json")
        save_history(history, temp / "metrics.jsonl")
        model.save_description(temp)
        # The large files were hashed on their way to the disk, the small ones are read again.
        hashed |= {path.name: files.digest(path) for path in temp.iterdir() if path.name not in hashed}
        listed = {name: {"size": (temp / name).stat().st_size, "sha256": hashed[name]} for name in sorted(hashed)}
        files.save_json({"format": FORMAT, "files": listed, **(origin or {})}, temp / "manifest.json")

    files.commit_folder(folder, write)


def save_history(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write metrics.jsonl: one line per entry."""
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    files.atomic_write(path, lambda file: file.write(text.encode()))


def link_checkpoint(source: str | Path, target: str | Path, without: Collection[str] = ()) -> None:
    """Make ``target`` the same checkpoint as ``source``, all at once, replacing what it was; bytes are shared where
    the filesystem has hard links, else copied. The files ``without`` names are left out."""

    def write(temp: Path) -> None:
        left = shutil.ignore_patterns(*without)
        shutil.copytree(source, temp, copy_function=_link_or_copy, ignore=left, dirs_exist_ok=True)
        if without:
            manifest = files.load_json(temp / "manifest.json")
            manifest["files"] = {name: file for name, file in manifest["files"].items() if name not in without}
            files.save_json(manifest, temp / "manifest.json")  # a new file: the one at the source stays as it is

    files.commit_folder(target, write)


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every one of whose files is there with the bytes that were written.

    Raises ``files.BadFile``, naming the first file that is missing or has changed.
    """
    folder = Path(folder)
    manifest = files.load_json(folder / "manifest.json")
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or manifest.get("format") != FORMAT or "training_state.json" not in listed:
        raise files.BadFile(f"{folder / 'manifest.json'}: not the manifest of a checkpoint.")
    for name, file in listed.items():
        if Path(name).name != name or not isinstance(file, dict) or set(file) != {"size", "sha256"}:
            raise files.BadFile(f"{folder / 'manifest.json'}: {name!r} is not described as a file of this folder.")
        files.verify(folder / name, file["sha256"])
    return manifest


def load_checkpoint(
    folder: str | Path, model: QwenLatentPRM, optimizer: Optimizer, scheduler: LRScheduler
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Put a verified checkpoint into model, optimizer and scheduler; returns how far it is, and its metrics.jsonl.

    Raises ``files.BadFile`` when a piece is missing or is not that of this model.
    """
    folder = Path(folder)
    parts = {"pytorch_model.bin": model, "optimizer.pt": optimizer, "scheduler.pt": scheduler}
    for name, part in parts.items():
        try:
            part.load_state_dict(files.load_tensors(folder / name))
        except files.BadFile:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise files.BadFile(f"{folder / name}: does not fit this model ({error}).") from error
    try:
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    except OSError as error:
        raise files.BadFile(f"{folder / 'metrics.jsonl'}: cannot be read ({error.strerror}).") from error
    return load_state(folder), [json.loads(line) for line in lines]


def load_state(folder: str | Path) -> TrainingState:
    """How far a checkpoint is. Raises ``files.BadFile`` when training_state.json lacks a piece, or has one too many."""
    path = Path(folder, "training_state.json")
    said, known = files.load_json(path), {field.name for field in fields(TrainingState)}
    if not isinstance(said, dict) or set(said) != known or not isinstance(said["step"], int):
        odd = ", ".join(sorted(known ^ set(said))) if isinstance(said, dict) else type(said).__name__
        raise files.BadFile(f"{path}: not the state of a run of this version ({odd or 'step'}).")
    return TrainingState(**said)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here: FAT, some network filesystems
        shutil.copyfile(source, target)
