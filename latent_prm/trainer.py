"""STAGE 2: shards → checkpoints. Hides the training loop and what a run leaves behind in its folder.

latent-prm train --data_dir prm_data    (or: python -m methods.latent_prm.trainer --data_dir prm_data)

Every choice of chance (split, order, dropped contexts, dropout) follows from the seed and from what it is chosen for,
never from what was drawn before: so a run that goes on from a checkpoint (``resuming``) is the one that never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from latent_prm import __version__, files, plots, resuming
from latent_prm.checkpoint import (
    TrainingState,
    link_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_history,
)
from latent_prm.grading import question_digest
from latent_prm.lessons import Lesson, chance, epoch_steps, lessons_of, look_at, num_targets, split
from latent_prm.logbook import log_lines
from latent_prm.losses import StepLoss
from latent_prm.model import QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.packing import pack
from latent_prm.pretrained import pick_device
from latent_prm.shards import load_trees
from latent_prm.stopping import gathered
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

VERSIONS = {"latent_prm": __version__, "python": platform.python_version(), "torch": torch.__version__}
VERSIONS["transformers"] = transformers.__version__
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class PathDropout(nn.Dropout):
    """Dropout whose mask belongs to the path, not to its place in a pack, so that packing never changes a step."""

    keep: Tensor
    """[K, H]: 0 or 1 / (1 − p), for the K paths that come next."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Dropout."""
        return input * self.keep if self.training and self.p else input


def main(options: TrainOptions) -> Path:
    """Run the stage: load, prepare, fit, report. Returns the run folder.

    Raises:
        ValueError, OSError: in plain words: no data, no model, a loss that is not a number, no memory, a full disk,
            another writer of the run folder, a run to resume that is not this one.
        KeyboardInterrupt, SystemExit(143): Ctrl-C or SIGTERM, after the step in hand was saved as checkpoint-N.
    """
    resumed = resuming.run_folder(options) if options.resume else None
    folder = resumed or new_run_folder(options.output_dir)
    if resumed and (folder / resuming.FINISHED).exists():
        print(f"{folder} is finished (there is {resuming.FINISHED}): there is nothing to resume.")
        return folder
    skipped_files: list[str] = []
    trees = load_trees(options.data_dir, options.skip_bad_files, skipped_files)
    way_out = "Wait until it is through, or type another --output_dir."
    with files.lock(folder / ".lock", "training", way_out), log_lines(folder / "training.log", options.log_level):
        for torn in files.sweep(folder):
            log.warning(f"[Trainer] {torn.name} removed: a write that was cut off.")
        try:
            run = Run(options, folder if resumed else new_run_folder(str(folder)), trees, skipped_files)
            with gathered() as stop:
                for epoch in range(max(1, run.state.epoch), options.num_epochs + 1):
                    train_epoch(run, epoch, stop)
        except torch.OutOfMemoryError as error:
            raise ValueError(out_of_memory(options)) from error
        report(run)
    return folder


# --- before -----------------------------------------------------------------------------------------------------------


def new_run_folder(output_dir: str | None) -> Path:
    """The run folder, not yet made. Raises ValueError when there is a run in it."""
    folder = Path(output_dir or time.strftime("checkpoints/qwen_prm_%Y%m%d_%H%M%S"))
    for pattern in ("training_stats.json", "checkpoint-*", "epoch_*", "best", "final"):
        if found := next(folder.glob(pattern), None):
            way_out = "Choose another --output_dir, or add --resume auto to go on with it."
            raise ValueError(f"{folder} already holds a run (there is {found.name}). {way_out}")
    return folder


class Run:
    """Everything that a step needs and changes, ready for the first or the next one; config.json is written."""

    def __init__(self, options: TrainOptions, folder: Path, trees: Sequence[ReasoningTree], skipped: list[str]) -> None:
        self.options, self.folder, self.skipped_files = options, folder, skipped
        self.state, self.started = TrainingState(seed=options.seed), time.monotonic()
        self.entries: list[dict[str, Any]] = []  # the lines of metrics.jsonl
        lessons = lessons_of(trees, options)
        self.truncated = look_at(lessons, options)
        self.train, self.validation = split(lessons, options.val_size, options.seed)
        sides = {"train": self.train, "validation": self.validation}
        self.samples = {side: num_targets(items) for side, items in sides.items()}
        self.questions = {
            side: sorted({question_digest(item.tree.question) for item in items}) for side, items in sides.items()
        }

        self.device = pick_device(options.device)
        self.precision = autocast_dtype(self.device) if options.mixed_precision else torch.float32
        self.origin = resuming.origin(options, lessons, machine(self.device, self.precision))
        checkpoint = resuming.find_checkpoint(options, folder, self.origin) if options.resume else None
        torch.manual_seed(options.seed)
        width = trees[0].paths[0].latents.shape[1]
        self.model = QwenLatentPRM(options.model_path, width, options.pooling_strategy)
        self.model.max_seq_length, self.model.context = options.max_seq_length, options.context
        self.model.dropout = self.dropout = PathDropout(options.dropout_prob)
        self.model.to(self.device).train()
        if options.context == "question":
            contexts = self.model.read_questions([item.tree.question for item in self.train])
            self.train = [item._replace(context=c) for item, c in zip(self.train, contexts, strict=True)]

        epochs = range(1, options.num_epochs + 1)
        self.total_steps = sum(len(epoch_steps(self.train, epoch, options)) for epoch in epochs)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.num_trained = sum(p.numel() for p in trained)
        norms = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}  # not to be pulled to zero
        groups = [{"params": [p for p in trained if p.ndim > 1]}, norms]
        self.optimizer = AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
        warmup, total = int(options.warmup_ratio * self.total_steps), self.total_steps
        self.scheduler = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, warmup, total))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        if checkpoint:
            go_on(self, checkpoint)
        elif options.resume:
            log.warning(f"[Trainer] --resume: there is no checkpoint in {folder} yet, so the run starts afresh.")
        introduce(self)

    def autocast(self) -> torch.autocast:
        """The arithmetic of the forward pass."""
        half = self.precision is not torch.float32
        return torch.autocast(self.device.type, self.precision if half else None, enabled=half)


def autocast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes with it, else float16 on CUDA and float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """The share of the peak learning rate in a step (0: the first): up in ``warmup`` steps, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def introduce(run: Run) -> None:
    """Say what is going to happen, and write it down as config.json."""
    wide, hidden, precision = run.model.latent_dim, run.model.hidden_size, str(run.precision).removeprefix("torch.")
    for side, questions in run.questions.items():
        log.info(f"[Trainer] {side.capitalize()}: {run.samples[side]} labelled paths, {len(questions)} questions")
    if run.model.projection is not None:
        log.info(f"[Trainer] Latents are {wide} wide, the backbone {hidden}: a projection stands in front.")
    log.info(f"[Trainer] {run.total_steps} steps, {run.num_trained:,} parameters, {precision} on {run.device}")
    resolved = {"device": str(run.device), "precision": precision, "latent_dim": wide, "hidden_size": hidden}
    resolved |= {"trained_parameters": run.num_trained, "total_steps": run.total_steps}
    versions = {name: run.origin["machine"][name] for name in VERSIONS}
    config = {"options": asdict(run.options), "resolved": resolved, "versions": versions}
    files.save_json(config, run.folder / "config.json")


def machine(device: torch.device, precision: torch.dtype) -> dict[str, str]:
    """What the arithmetic depends on beside the options."""
    return {"device": str(device), "precision": str(precision).removeprefix("torch."), **VERSIONS}


def go_on(run: Run, checkpoint: Path) -> None:
    """Take the run up where a checkpoint left it, and bring its folder back to that moment."""
    run.state, run.entries = load_checkpoint(checkpoint, run.model, run.optimizer, run.scheduler)
    if run.scaler.is_enabled() and run.state.scaler:  # none was kept where another device trained
        run.scaler.load_state_dict(run.state.scaler)
    state, best = run.state, run.folder / "best"
    save_history(run.entries, run.folder / "metrics.jsonl")
    log.info(f"[Trainer] Resumed from {checkpoint}: step {state.step}, {state.epoch_steps} of epoch {state.epoch}")
    if len(state.epoch_losses) == state.epoch:  # the folders of an epoch's end may have been cut off
        link(run, checkpoint, [name for name in names_of_epoch(run) if name != checkpoint.name])
    if state.best and not resuming.holds(best, state.best["step"]):  # it is of a later epoch
        link_checkpoint(run.folder / f"epoch_{state.best['epoch']}", best)


# --- the loop ---------------------------------------------------------------------------------------------------------


def train_epoch(run: Run, epoch: int, stop: Sequence[signal.Signals]) -> None:
    """One pass over the training questions, with its log lines, validation and checkpoints."""
    options, state, steps = run.options, run.state, epoch_steps(run.train, epoch, run.options)
    if state.epoch != epoch:
        state.begin(epoch)
    left, silent = steps[state.epoch_steps :], not log.isEnabledFor(logging.INFO)
    if not left:
        return
    log.info(f"Epoch {epoch}/{options.num_epochs}")
    with tqdm(left, bar_format=BAR, disable=silent, initial=state.epoch_steps, total=len(steps)) as bar:
        for items in bar:
            lr = float(run.scheduler.get_last_lr()[0])
            loss = optimizer_step(run, items)
            state.step, state.epoch_steps = state.step + 1, state.epoch_steps + 1
            state.squares, state.paths = state.squares + loss * num_targets(items), state.paths + num_targets(items)
            average = state.squares / state.paths
            bar.set_postfix_str(f"loss={loss:.4f}, lr={lr:.2e}", refresh=False)
            if state.step % options.logging_steps == 0:
                log.info(f"[Trainer] Step {state.step}: loss={loss:.4f}, avg_loss={average:.4f}, lr={lr:.2e}")
                record(run, loss=loss, avg_loss=average, lr=lr)
            came = stop[:1]  # looked at once: one that comes while saving is for the next step
            names = [f"checkpoint-{state.step}"] if state.step % options.save_steps == 0 or came else []
            if items is steps[-1]:
                names += end_epoch(run, average)
            save(run, names)
            if came:
                obey(came[0], run, names[0])


def optimizer_step(run: Run, items: Sequence[Lesson]) -> float:
    """Learn from the labelled paths of some questions; returns their loss before that.

    The loss is divided by what the whole step has, so that packs are a matter of memory only.
    Raises ValueError, with the weights untouched, when a prediction or the gradient is not finite.
    """
    seed, step = run.options.seed, run.state.step
    objective = StepLoss(items, run.options, lambda *path: chance(seed, "disorder", step, *path))
    torch.manual_seed(chance(seed, "dropout", step).getrandbits(63))
    shape, kept = (objective.num_paths, run.model.hidden_size), 1 - run.dropout.p
    keep = torch.bernoulli(torch.full(shape, kept)) / kept
    loss = 0.0
    for batch in pack(
        objective.trees,
        [item.context for item in items],
        wanted=objective.wanted,
        max_seq_length=run.options.max_seq_length,
        pack_tokens=run.options.pack_tokens,
        shared=run.model.shares,
        whole=objective.compares,
    ):
        mask = keep[objective.rows(batch)].to(run.device)
        run.dropout.keep = mask[:, None] if objective.by_latent else mask
        with run.autocast():
            logits = (run.model.step_logits if objective.by_latent else run.model)(batch.to(run.device))
        if not logits.isfinite().all():
            raise ValueError(not_finite("prediction", run, [items[i] for i, _ in batch.paths]))
        share = objective.share(logits, batch)
        run.scaler.scale(share).backward()
        loss += share.item()
    run.scaler.unscale_(run.optimizer)
    norm = clip_grad_norm_(run.model.parameters(), run.options.max_grad_norm or math.inf)  # 0: not clipped
    if not norm.isfinite() and not run.scaler.is_enabled():  # a scaler skips such a step and lowers its scale
        raise ValueError(not_finite("gradient", run, items))
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return loss


def end_epoch(run: Run, loss: float) -> list[str]:
    """Validate and remember; returns the names, beside a checkpoint-N, under which the model of this moment is kept."""
    state, by, watched = run.state, "training", loss
    state.epoch_losses.append(loss)
    if run.validation:
        by, watched = "validation", validate(run)
        state.val_losses.append(watched)
    record(run, train_loss=loss, **({"val_loss": watched} if run.validation else {}))
    said = f", validation loss {watched:.4f}" if run.validation else ""
    log.info(f"[Trainer] Epoch {state.epoch}: training loss {loss:.4f}{said}")
    if state.best is None or watched < state.best["loss"]:
        state.best = {"loss": watched, "by": by, "epoch": state.epoch, "step": state.step}
    return names_of_epoch(run)


def names_of_epoch(run: Run) -> list[str]:
    """Under which the model of an epoch's end is kept."""
    state, best = run.state, run.state.best or {}
    best_now, last = best.get("step") == state.step, state.epoch == run.options.num_epochs
    return [f"epoch_{state.epoch}"] + ["best"] * best_now + ["final"] * last


def validate(run: Run) -> float:
    """Mean squared error of path ends on the validation questions, whatever --loss is, so that runs compare.

    Raises ValueError when it is not finite.
    """
    trees, o = [item.tree for item in run.validation], run.options
    with run.autocast():
        scores = run.model.score_trees(trees, pack_tokens=o.pack_tokens)
    pairs = [(scores[i][p], target) for i, item in enumerate(run.validation) for p, target in item.targets.items()]
    loss = math.fsum((float(score) - target) ** 2 for score, target in pairs) / len(pairs)
    if not math.isfinite(loss):
        raise ValueError(not_finite("validation loss", run, run.validation))
    return loss


def save(run: Run, names: Sequence[str]) -> None:
    """Keep the model of this moment under every one of ``names``, its bytes once."""
    if not names:
        return
    first, *others = sorted(names, key=lambda name: is_light(run, name))  # what is linked takes from what has all
    run.state.scaler, optimizer = run.scaler.state_dict(), None if is_light(run, first) else run.optimizer
    path, kept = run.folder / first, (run.questions, run.entries, run.origin)
    save_checkpoint(path, run.model, optimizer, run.scheduler, run.state, *kept)
    log.info(f"[Trainer] Checkpoint saved to: {path}")
    link(run, path, others)
    if run.options.save_total_limit and first.startswith("checkpoint-"):
        resuming.rotate(run.folder, path, run.options.save_total_limit)


def link(run: Run, source: Path, names: Sequence[str]) -> None:
    """Show a checkpoint under other names too."""
    for name in names:
        link_checkpoint(source, run.folder / name, ["optimizer.pt"] * is_light(run, name))
        log.info(f"[Trainer] Checkpoint saved to: {run.folder / name}")


def is_light(run: Run, name: str) -> bool:
    """Whether a checkpoint of this name goes without optimizer.pt."""
    return not run.options.save_optimizer and (name == "best" or name.startswith("epoch_"))


def record(run: Run, **values: float) -> None:
    """Add a line to metrics.jsonl."""
    run.entries.append({"step": run.state.step, "epoch": run.state.epoch, **values})
    with open(run.folder / "metrics.jsonl", "a" if run.entries[1:] else "w", encoding="utf-8") as file:
        file.write(json.dumps(run.entries[-1], allow_nan=False) + "\n")


def obey(came: signal.Signals, run: Run, name: str) -> None:
    """Leave as the signal asks: exit code 130 for Ctrl-C, 143 for SIGTERM."""
    log.warning(f"[Trainer] {came.name}: stopped after step {run.state.step}, kept in {run.folder / name}")
    if came is signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + came)


# --- after ------------------------------------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Write training_stats.json and loss_curve.png, say what was found and what to type next."""
    state, best = run.state, run.folder / "best"
    assert state.best is not None
    stats = {
        "total_steps": state.step,
        "epoch_losses": state.epoch_losses,
        "val_losses": state.val_losses,
        "best_loss": state.best["loss"],
        "best": {**state.best, "checkpoint": str(best)},
        "training_time": round(time.monotonic() - run.started, 3),
        "samples": run.samples,
        "questions": {side: len(questions) for side, questions in run.questions.items()},
        "truncated_chains": run.truncated,
        "skipped_files": run.skipped_files,
    }
    # A run shorter than --logging_steps has logged no step: its curve is that of the epochs.
    logged = any("loss" in entry for entry in run.entries)
    curve = run.entries if logged else [{**entry, "loss": entry["train_loss"]} for entry in run.entries]
    try:
        plots.loss_curve(curve, run.folder / "loss_curve.png")
    except plots.NoMatplotlib as missing:
        log.warning(f"[Trainer] No loss_curve.png: {missing}")
    files.save_json(stats, run.folder / resuming.FINISHED)  # last: with it the run is finished
    first, last = state.epoch_losses[0], state.epoch_losses[-1]
    if len(state.epoch_losses) > 1 and last >= first:
        look = f"look at the data (cat {run.options.data_dir}/*_metadata.json: 100 samples or more, scores that differ)"
        tries = f"Try another --learning_rate (1e-5 or 5e-5), {look}, or try --pooling_strategy last or max."
        log.warning(f"[Trainer] The loss did not fall: {first:.4f} in the first epoch, {last:.4f} in the last. {tries}")
    log.info(f"[Trainer] Best checkpoint: {best} ({state.best['by']} loss {state.best['loss']:.4f})")
    log.info(f"[Trainer] Next: latent-prm evaluate --checkpoint {best} --data_dir prm_data_test")


def out_of_memory(o: TrainOptions) -> str:
    """What to type: packs first, for they change nothing, then the guide's three remedies."""
    return (
        f"Out of memory. Lower --pack_tokens (now {o.pack_tokens}), which never changes the result. If that is not "
        f"enough: lower --batch_size (now {o.batch_size}), raise --gradient_accumulation_steps (now "
        f"{o.gradient_accumulation_steps}) so that their product stays, and lower --max_seq_length (now "
        f"{o.max_seq_length})."
    )


def not_finite(what: str, run: Run, items: Sequence[Lesson]) -> str:
    """Where a number was lost, and what to type."""
    names = list(dict.fromkeys(item.tree.question_id for item in items))
    named = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    when = f"NaN or infinite in step {run.state.step + 1}, so the run stopped before it"
    way_out = f"Type a lower --learning_rate (now {run.options.learning_rate:g}), or look at their latents."
    return f"The {what} is {when}. Questions: {named}. {way_out}"
