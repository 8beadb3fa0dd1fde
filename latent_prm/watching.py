"""Where the numbers of a run go and what is said of them: hides what becomes a line of metrics.jsonl, the trackers of
``--report_to``, how speed and memory are taken, and when a curve is worth a warning.

metrics.jsonl holds what follows from the data, options and seed alone, so that a run that was resumed has the same
lines as one that never stopped. Speed and memory are another thing each time: they go to the trackers and the log.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latent_prm import files
from latent_prm.checkpoint import save_history
from latent_prm.lessons import Lesson
from latent_prm.memory import held
from latent_prm.metrics import auroc
from latent_prm.options import TrainOptions
from latent_prm.predictions import calibration, calibration_error

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "latent-prm"
"""Under which W&B and trackio show the runs together."""
WAY_OUT = {
    "tensorboard": "pip install --upgrade tensorboard",
    "wandb": "wandb login (or put WANDB_MODE=offline in front)",
    "trackio": "pip install --upgrade trackio",
}
"""What to type when one does not start."""

ALIKE = 1e-4
"""Predicted scores that spread less than this tell no path from another."""
LONG = 40
"""Log lines of the first epoch from which on its curve is looked at, and again whenever they have doubled."""


# --- where the numbers go ---------------------------------------------------------------------------------------------


def check(report_to: str) -> list[str]:
    """The trackers that ``--report_to`` means.

    Raises ValueError, saying what to type, when one is unknown or not installed. "auto" never does.
    """
    if report_to == "none":
        return []
    if report_to == "auto":
        return [] if _missing("tensorboard") else ["tensorboard"]
    names = list(dict.fromkeys(report_to.replace(" ", "").split(",")))
    for name in names:
        if name not in TRACKERS:
            close = get_close_matches(name.lower(), TRACKERS, n=1)
            meant = f"Did you mean {close[0]}?" if close else "Type some of them with commas, or auto or none alone."
            raise ValueError(f"--report_to is {report_to!r}, but {name!r} is none of {', '.join(TRACKERS)}. {meant}")
        if missing := _missing(name):
            typed = f"Type: pip install {' '.join(missing)}"
            raise ValueError(f"--report_to is {report_to!r}, but {' and '.join(missing)} must be installed. {typed}")
    return names


def _missing(tracker: str) -> list[str]:
    """What has to be installed for it. Asked of what pip knows: W&B itself leaves a folder ``wandb`` behind."""
    lacking = []
    for package in ("accelerate", tracker):
        try:
            version(package)
        except PackageNotFoundError:
            lacking.append(package)
    return lacking


class Watch:
    """The numbers of a run on their way to metrics.jsonl and to the trackers. Only one process of a run makes one.

    ``entries`` are the lines of metrics.jsonl so far: none, or those of the checkpoint that the run goes on from. What
    file and TensorBoard have of later steps is dropped, for these come again. ``config`` is shown beside the curves.
    Raises ValueError as `check`, and when a tracker that was asked for does not start.
    """

    def __init__(
        self, folder: Path, entries: list[dict[str, Any]], report_to: str = "auto", config: Mapping[str, Any] = {}
    ) -> None:
        self.entries, self.file = entries, folder / "metrics.jsonl"
        self.trackers: dict[str, GeneralTracker] = {}
        names = check(report_to)
        save_history(entries, self.file)
        for name in names:
            try:
                self.trackers[name] = _start(name, folder, entries, config)
            except Exception as error:  # each of them raises what it likes
                self.close()
                said = f"{name} did not start ({type(error).__name__}: {error})"
                if report_to != "auto":
                    raise ValueError(f"{said}. Type {WAY_OUT[name]}, or --report_to none.") from error
                log.warning(f"[Trainer] {said}: there will be no curves but loss_curve.png.")

    def record(
        self, step: int, epoch: int, aside: Mapping[str, float | None] | None = None, **values: float | None
    ) -> None:
        """Add an entry; the trackers get ``aside`` too. What is not finite becomes null, as JSON has no NaN.

        A tracker that fails is left out from there on, with a warning: what watches a run must not end it.
        """
        entry = {"step": step, "epoch": epoch, **{name: _finite(value) for name, value in values.items()}}
        self.entries.append(entry)
        files.append(self.file, json.dumps(entry, allow_nan=False) + "\n")
        shown = {**entry, **{name: _finite(value) for name, value in (aside or {}).items()}}
        del shown["step"]
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.log({key: value for key, value in shown.items() if value is not None}, step=step)
            except Exception as error:
                del self.trackers[name]
                log.warning(f"[Trainer] {name} gets nothing from step {step} on, for it failed: {error}")

    def close(self) -> None:
        """Let the trackers finish. May be called twice."""
        while self.trackers:
            name, tracker = self.trackers.popitem()
            try:
                tracker.finish()
            except Exception as error:
                log.warning(f"[Trainer] {name} did not finish: {error}")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _start(name: str, folder: Path, entries: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> GeneralTracker:
    """A tracker at work, behind the last entry."""
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
    from accelerate.utils import patch_environment

    # These classes ask which process this is. To them it is the only one: else they would open a group of processes of
    # their own under torchrun. NCCL_… spare RTX 40 cards an error that is about such groups.
    with patch_environment(local_rank=-1, world_size=1, nccl_p2p_disable=1, nccl_ib_disable=1):
        PartialState()
    tracker: GeneralTracker
    if name == "tensorboard":
        behind = entries[-1]["step"] + 1 if entries else 0
        tracker = TensorBoardTracker("tensorboard", folder, purge_step=behind)
    elif name == "wandb":
        number = _wandb_run(folder) if entries else None
        again = {"id": number, "resume": "allow"} if number else {}
        tracker = WandBTracker(PROJECT, name=folder.name, dir=str(folder), config=dict(config), **again)
    else:
        again = {"resume": "allow" if entries else "never"}
        tracker = TrackioTracker(PROJECT, name=folder.name, config=dict(config), **again)
    tracker.start()
    if name == "tensorboard":
        tracker.log({"options": "".join(f"    {key}: {value}\n" for key, value in config.items())}, step=behind)
    return tracker


def _wandb_run(folder: Path) -> str | None:
    """W&B's name for the newest run of this folder, which stands in ``wandb/run-<time>-<name>``; None: none is."""
    runs = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.split("-")[-2])
    return runs[-1].name.split("-")[-1] if runs else None


# --- speed and memory -------------------------------------------------------------------------------------------------


class Pace:
    """How fast the steps since the last log line were, how much of them was padding, and what memory they take."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._begin()

    def _begin(self) -> None:
        self.tokens, self.columns, self.seconds = 0, 0, 0.0

    def add(self, tokens: int, columns: int, seconds: float) -> None:
        """A step has computed so many columns, of which so many were ``tokens``: latents or a question's text."""
        self.tokens, self.columns, self.seconds = self.tokens + tokens, self.columns + columns, self.seconds + seconds

    def figures(self) -> dict[str, float]:
        """tokens_per_second and useful_share of the steps since the last call, and memory_gib.

        That is the most that was allocated on a GPU; elsewhere what the process holds now.
        """
        on_gpu = self.device.type == "cuda"
        size = torch.cuda.max_memory_allocated(self.device) if on_gpu else held()
        found = {"memory_gib": round(size / 2**30, 3)}
        if self.columns and self.seconds:
            share = round(self.tokens / self.columns, 4)
            found = {"tokens_per_second": round(self.tokens / self.seconds, 1), "useful_share": share, **found}
        self._begin()
        return found

    @staticmethod
    def say(figures: Mapping[str, float]) -> str:
        """As a log line has them: "12,345 tokens/s, 97 % useful, 2.1 GiB"."""
        words = {"tokens_per_second": "{:,.0f} tokens/s", "useful_share": "{:.0%} useful", "memory_gib": "{:.1f} GiB"}
        said = (words[name].format(value) for name, value in figures.items() if name in words)
        return ", ".join(said).replace("%", " %")


# --- validation -------------------------------------------------------------------------------------------------------


def validation_figures(lessons: Sequence[Lesson], scores: Sequence[Mapping[int, float]]) -> dict[str, float]:
    """What predicted scores (one per labelled path of every lesson) are worth.

    Of all labelled paths, against their targets: val_loss, the mean squared error (so this is the Brier score too);
    val_ece, the expected calibration error; val_spread, the predicted scores' standard deviation. Of the noisy leaves:
    val_auroc, within questions, as ``latent-prm evaluate`` has it; it is missing where no question has right and wrong
    ones. A val_loss that is not finite stands alone.
    """
    pairs = [(float(own[i]), t) for item, own in zip(lessons, scores, strict=True) for i, t in item.targets.items()]
    loss = math.fsum((score - target) ** 2 for score, target in pairs) / len(pairs)
    if not math.isfinite(loss):
        return {"val_loss": loss}
    areas = [_auroc(item, own) for item, own in zip(lessons, scores, strict=True)]
    mixed = [area for area in areas if area is not None]
    predicted, targets = np.array(pairs, dtype=float).T
    return {
        "val_loss": loss,
        **({"val_auroc": math.fsum(mixed) / len(mixed)} if mixed else {}),
        "val_ece": calibration_error(calibration(predicted, targets)),
        "val_spread": float(predicted.std()),
    }


def _auroc(lesson: Lesson, scores: Mapping[int, float]) -> float | None:
    """Of a question's noisy leaves. Right is whose first answer is; where none came with the data, a target above ½."""
    tree, right = lesson.tree, {}
    for i in tree.leaves():
        if i in lesson.targets:  # the noise-free path has none
            answers = tree.paths[i].answers
            right[i] = answers[0].correct if answers else lesson.targets[i] > 0.5
    return auroc(np.array([float(scores[i]) for i in right]), np.array(list(right.values()), dtype=bool))


# --- what is said of them ---------------------------------------------------------------------------------------------


def remarks(entries: Sequence[Mapping[str, Any]], options: TrainOptions) -> list[str]:
    """What the newest entry gives reason to warn of, with what to type: the guide's troubleshooting.

    Call it after every entry: what goes on being so is said when it begins, not each time.
    """
    newest = entries[-1] if entries else {}
    said = []
    if newest.get("loss") is not None and newest["epoch"] == 1:
        said.append(_early(entries))
    if newest.get("train_loss") is not None:
        losses = [entry["train_loss"] for entry in entries if entry.get("train_loss") is not None]
        fallen = [loss < (1 - 1e-6) * losses[0] for loss in losses]  # less is rounding
        if len(losses) > 1 and not fallen[-1] and (len(losses) == 2 or fallen[-2]):
            said.append(f"{losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in epoch {newest['epoch']}")
    found = [f"The loss did not fall: {figures}. {_remedies(options)}" for figures in said if figures]
    if newest.get("val_spread") is not None:
        spreads = [entry["val_spread"] for entry in entries if entry.get("val_spread") is not None]
        if spreads[-1] < ALIKE and not (len(spreads) > 1 and spreads[-2] < ALIKE):
            alike = f"The predicted scores are all alike (their standard deviation is {spreads[-1]:.1e})"
            found.append(f"{alike}, so no path can be told from another. {_remedies(options)}")
    return found


def _early(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """The first epoch's first and last quarter, where the fall between them is no more than chance would make of it.

    Looked at with 40 log lines, 80, 160, …, and not while the learning rate still rises.
    """
    logged = [entry for entry in entries if entry["epoch"] == 1 and entry.get("loss") is not None]
    doublings, rest = divmod(len(logged), LONG)
    rates = [entry.get("lr") or 0.0 for entry in logged]
    if rest or doublings.bit_count() != 1 or rates[-1] >= max(rates):
        return None
    quarter = len(logged) // 4
    first, last = (np.array([entry["loss"] for entry in part]) for part in (logged[:quarter], logged[-quarter:]))
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / quarter)  # of the difference of the means
    if first.mean() - last.mean() > error:
        return None
    return f"{first.mean():.4f} in the first {quarter} log lines, {last.mean():.4f} in the newest {quarter}"


def _remedies(o: TrainOptions) -> str:
    peak = o.learning_rate or 2e-5
    rates = " or ".join(f"{factor * peak:g}".replace("e-0", "e-") for factor in (0.5, 2.5))  # the guide's, of its 2e-5
    look = f"look at the data (cat {o.data_dir}/*_metadata.json: 100 samples or more, scores that differ)"
    others = " or ".join(name for name in ("last", "max", "mean") if name != o.pooling_strategy)
    return f"Try another --learning_rate ({rates}), {look}, or try --pooling_strategy {others}."
