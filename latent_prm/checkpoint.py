"""What a checkpoint holds: hides its files, how they appear all at once, and how equal checkpoints share bytes.

A folder is complete or not there, and needs no other: ``QwenLatentPRM.from_pretrained(folder)`` scores with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from latent_prm import files
from latent_prm.model import QwenLatentPRM


@dataclass(kw_only=True)
class TrainingState:
    """How far a run is, as training_state.json says it."""

    step: int = 0
    epoch: int = 0
    """The one in progress, or the last one; the first is 1."""
    seed: int
    epoch_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    """One per finished epoch; none without validation."""
    best: dict[str, Any] | None = None
    """The lowest loss, what loss it is (by), and the epoch and step it was reached in."""


def save_checkpoint(
    folder: str | Path,
    model: QwenLatentPRM,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    state: TrainingState,
    questions: Mapping[str, Sequence[str]],
) -> None:
    """Commit a checkpoint folder: the guide's five files, the tokenizer's, and questions.json.

    ``questions`` names what the model has seen by ``grading.question_digest``: ``{"train": [...], "validation": ...}``.
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
        files.save_tensors(weights, temp / "pytorch_model.bin")
        files.save_tensors(optimizer.state_dict(), temp / "optimizer.pt")
        files.save_tensors(scheduler.state_dict(), temp / "scheduler.pt")
        files.save_json(asdict(state), temp / "training_state.json")
        files.save_json({side: list(digests) for side, digests in questions.items()}, temp / "questions.json")
        model.save_description(temp)

    files.commit_folder(folder, write)


def link_checkpoint(source: str | Path, target: str | Path) -> None:
    """Make ``target`` the same checkpoint as ``source``, all at once, replacing what it was; bytes are shared where
    the filesystem has hard links, else copied."""
    files.commit_folder(
        target, lambda temp: shutil.copytree(source, temp, copy_function=_link_or_copy, dirs_exist_ok=True)
    )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here: FAT, some network filesystems
        shutil.copyfile(source, target)
