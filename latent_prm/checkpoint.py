"""What a checkpoint holds: hides its files, how they appear all at once, how equal checkpoints share bytes, and how a
damaged one is told from a whole one.

A folder is complete or not there, and needs no other: ``QwenLatentPRM.from_pretrained(folder)`` scores with it, and
``load_weights`` and ``load_progress`` go on from it, for manifest.json names every file with its size and sha256.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from latent_prm import files, seals, tuning
from latent_prm.memory import spell
from latent_prm.model import QwenLatentPRM
from latent_prm.ranks import spread_moments, whole
from latent_prm.seals import MANIFEST
from latent_prm.weights import check_tensors

FORMAT = "latent-prm-checkpoint/1"
_STATE = {int: "step epoch epoch_steps seed stale", bool: "finished", dict: "sums units scaler"}
_STATE |= {list: "epoch_losses val_losses"}


@dataclass(kw_only=True)
class TrainingState:
    """How far a run is, as training_state.json says it."""

    step: int = 0
    epoch: int = 0
    """The one in progress, or the last one; the first is 1."""
    epoch_steps: int = 0
    """Optimizer steps done of it."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of every term of the loss over this epoch so far: the sum of what it is the mean of."""
    units: dict[str, float] = field(default_factory=dict)
    """And of how many."""
    seed: int
    epoch_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    """One per validation, at least one per finished epoch; none without validation."""
    best: dict[str, Any] | None = None
    """The lowest loss, what loss it is (by), and the epoch and step it was reached in."""
    stale: int = 0
    """Validations since then."""
    finished: bool = False
    """Whether nothing is left to learn: the last epoch is over, or --early_stopping_patience was."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of the gradient scaler; empty when there is none."""

    def begin(self, epoch: int) -> None:
        """Nothing of this epoch is done yet."""
        self.epoch, self.epoch_steps, self.sums, self.units = epoch, 0, {}, {}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """All that is kept of one moment of a run, with storage of its own: training goes on while it is written."""

    model: QwenLatentPRM
    """For what does not change: its configuration and tokenizer."""
    weights: dict[str, Tensor]
    """As the guide's snippet loads them: small matrices merged in."""
    adapter: dict[str, Tensor] | None
    """The small matrices themselves, where there are any."""
    optimizer: dict[str, Any] | None
    """Left out: there is no optimizer.pt, and no run goes on from here."""
    scheduler: dict[str, Any]
    state: TrainingState
    questions: Mapping[str, Sequence[str]]
    """What the model has seen, by ``grading.question_digest``: ``{"train": [...], "validation": [...]}``."""
    history: Sequence[Mapping[str, Any]] = ()
    """The lines of metrics.jsonl so far."""
    origin: Mapping[str, Any] | None = None
    """What the run was made of, for the manifest."""

    @classmethod
    def of(
        cls,
        model: QwenLatentPRM,
        optimizer: Optimizer | None,
        scheduler: LRScheduler,
        state: TrainingState,
        questions: Mapping[str, Sequence[str]],
        history: Sequence[Mapping[str, Any]] = (),
        origin: Mapping[str, Any] | None = None,
        keep: bool = True,
    ) -> Moment:
        """Copied from where it is, and put together where it is spread over processes, all of which must call this.

        Those that do not ``keep`` it have only taken part.
        """
        adapter = tuning.adapter_state(model)
        return cls(
            model=model,
            weights=whole(tuning.merged_state(model), keep),
            adapter=None if adapter is None else whole(adapter, keep),
            optimizer=None if optimizer is None else whole(optimizer.state_dict(), keep),
            scheduler=copy.deepcopy(scheduler.state_dict()),
            state=copy.deepcopy(state),
            questions=questions,
            history=list(history),
            origin=origin,
        )


class Keeper:
    """Writes in the background, one job at a time: the next one waits until the last one is through."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "keeper")
        self.job: Future[None] | None = None

    def keep(self, job: Callable[[], None]) -> None:
        """Do this next. Raises what the job before it raised."""
        self.wait()
        self.job = self.thread.submit(job)

    def wait(self) -> None:
        """Until all is written. Raises what went wrong, once."""
        job, self.job = self.job, None
        if job is not None:
            job.result()


def save_checkpoint(folder: str | Path, moment: Moment) -> None:
    """Commit a checkpoint folder: the guide's five files, the tokenizer's, questions.json, metrics.jsonl, the adapter's
    where there is one, and, last, manifest.json. Equal weights give a pytorch_model.bin of equal bytes.

    Raises:
        ValueError: a weight is NaN or infinite, so this is no model worth keeping.
        OSError: the disk refused; whatever ``folder`` was before, it still is.
    """
    if broken := [name for name, value in moment.weights.items() if not value.isfinite().all()]:
        named = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise ValueError(f"{folder} was not written: NaN or infinite weights ({named}). Type a lower --learning_rate.")

    needed = sum(tensor.nbytes for tensor in _tensors([moment.weights, moment.optimizer, moment.adapter]))
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(Path(folder).parent).free) < needed:
        way_out = "Type --save_total_limit 1 or --no-save_optimizer, or another --output_dir."
        raise OSError(f"{folder} needs {spell(needed)}, but only {spell(free)} are free. {way_out}")

    def write(temp: Path) -> None:
        tensors = {"pytorch_model.bin": moment.weights, "optimizer.pt": moment.optimizer, "adapter.pt": moment.adapter}
        hashed = {name: files.save_tensors(held, temp / name) for name, held in tensors.items() if held is not None}
        if moment.adapter is not None:
            made_of = (moment.origin or {}).get("options", {})
            tuning.save_adapter(moment.model, temp, made_of.get("model_path"), moment.adapter)
        files.save_tensors(moment.scheduler, temp / "scheduler.pt")
        files.save_json(asdict(moment.state), temp / "training_state.json")
        files.save_json({side: list(digests) for side, digests in moment.questions.items()}, temp / "questions.json")
        save_history(moment.history, temp / "metrics.jsonl")
        moment.model.save_description(temp)
        # The large files were hashed on their way to the disk, the small ones are read again.
        hashed |= {path.name: files.digest(path) for path in temp.iterdir() if path.name not in hashed}
        listed = {name: {"size": (temp / name).stat().st_size, "sha256": hashed[name]} for name in sorted(hashed)}
        seals.save_sealed({"format": FORMAT, "files": listed, **(moment.origin or {})}, temp / MANIFEST)

    files.commit_folder(folder, write)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (Mapping, list, tuple)):
        for item in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(item)


def save_history(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write metrics.jsonl: one line per entry."""
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    files.atomic_write(path, lambda file: file.write(text.encode()))


def link_checkpoint(source: str | Path, target: str | Path, without: Collection[str] = ()) -> None:
    """Make ``target`` the same checkpoint as ``source``, all at once, replacing what it was; bytes are shared where
    the filesystem has hard links, else copied. The files ``without`` names are left out."""

    def write(temp: Path) -> None:
        for path in sorted(Path(source).iterdir()):
            if path.is_file() and path.name not in without:
                _link_or_copy(path, temp / path.name)
        if without:
            manifest, listed = seals.listed(temp / MANIFEST)
            manifest["files"] = {name: file for name, file in listed.items() if name not in without}
            seals.save_sealed(manifest, temp / MANIFEST)  # a new file: the one at the source stays as it is

    files.commit_folder(target, write)


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every one of whose files is there with the bytes that were written.

    Raises ``files.BadFile``, naming the first file that is missing or has changed.
    """
    path = Path(folder, MANIFEST)
    manifest, listed = seals.listed(path)
    if manifest.get("format") != FORMAT or "training_state.json" not in listed:
        raise files.BadFile(f"{path}: not the manifest of a checkpoint.")
    seals.check_files(folder, listed)
    return manifest


def load_weights(folder: str | Path, model: QwenLatentPRM) -> None:
    """Put a verified checkpoint's weights into a model that was adapted as the run's was.

    Raises ``files.BadFile`` when they are not those of this model.
    """
    adapter, merged = Path(folder, "adapter.pt"), Path(folder, "pytorch_model.bin")
    if adapter.exists():
        _load(adapter, lambda held: tuning.load_adapter(model, held))
        _load(merged, lambda held: _check_base(model, held))
    else:
        _load(merged, model.load_state_dict)


def _check_base(model: QwenLatentPRM, merged: Mapping[str, Tensor]) -> None:
    """Raises ValueError where what comes from ``--model_path`` is not what the small matrices have learnt beside."""
    now = tuning.merged_state(model).items()
    # Another machine may round their product otherwise.
    odd = [name for name, own in now if not torch.allclose(own.float(), merged[name].float(), rtol=1e-4, atol=1e-5)]
    if odd:
        raise ValueError(
            f"{len(odd)} of its weights are others in --model_path now, as {odd[0]}. "
            "Type the --model_path that it was trained with, or begin anew in another --output_dir"
        )


def load_progress(
    folder: str | Path, optimizer: Optimizer, scheduler: LRScheduler
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Put the rest of a verified checkpoint in place; returns how far it is, and its metrics.jsonl.

    Raises ``files.BadFile`` when a piece is missing or is not that of this run.
    """
    folder = Path(folder)
    _load(folder / "optimizer.pt", lambda held: optimizer.load_state_dict(spread_moments(held, optimizer)))
    _load(folder / "scheduler.pt", scheduler.load_state_dict)
    return load_state(folder), _history(folder / "metrics.jsonl")


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise files.BadFile(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if odd := [number for number, line in enumerate(lines, 1) if not isinstance(line, dict)]:
        raise files.BadFile(f"{path}, line {odd[0]}: not an entry of a run.")
    return lines


def _load(path: Path, put: Callable[[Any], object]) -> None:
    held = files.load_tensors(path)
    check_tensors(path, held)
    try:
        put(held)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise files.BadFile(f"{path}: does not fit this model ({error}).") from error


def load_state(folder: str | Path) -> TrainingState:
    """How far a checkpoint is. Raises ``files.BadFile`` when training_state.json lacks a piece, or has one too many."""
    path = Path(folder, "training_state.json")
    said, known = files.load_json(path), {field.name for field in fields(TrainingState)}
    if not isinstance(said, dict) or set(said) != known:
        odd = ", ".join(sorted(known ^ set(said))) if isinstance(said, dict) else type(said).__name__
        raise files.BadFile(f"{path}: not the state of a run of this version ({odd}).")
    kinds = [(name, kind) for kind, names in _STATE.items() for name in names.split()]
    kinds.append(("best", type(None) if said["best"] is None else dict))
    if odd := [name for name, kind in kinds if type(said[name]) is not kind]:
        raise files.BadFile(f"{path}: not the state of a run: {odd[0]} is {said[odd[0]]!r}.")
    return TrainingState(**said)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here: FAT, some network filesystems
        files.copy(source, target)
