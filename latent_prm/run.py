"""A training run between two steps: hides its folder, how it comes to be ready, what is kept of it, and how it goes on.

``trainer`` takes the steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from latent_prm import files, kinship, optimizers, preflight, resuming, sizing, tuning
from latent_prm.checkpoint import (
    Keeper,
    Moment,
    TrainingState,
    link_checkpoint,
    load_progress,
    load_weights,
    save_checkpoint,
)
from latent_prm.feeding import PathDropout, Work, prepare
from latent_prm.grading import question_digest
from latent_prm.lessons import Lesson, chance, epoch_steps, lessons_of, look_at, num_targets, split
from latent_prm.logbook import log_lines
from latent_prm.model import QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.pretrained import versions
from latent_prm.ranks import Ranks
from latent_prm.reading import handfuls
from latent_prm.shards import scan
from latent_prm.stopping import ending_on_sigterm
from latent_prm.tree import ReasoningTree
from latent_prm.watching import Watch, remarks

log = logging.getLogger(__name__)

LONG = 1000
"""Optimizer steps from which on compiling wins back the minute it takes on a GPU."""
MODEL = ("config.json", "model.safetensors", "pytorch_model.bin", "training_state.json")
"""Files by which a model, or a checkpoint, is known."""


class Place(NamedTuple):
    """Where a run is."""

    folder: Path
    resumed: bool
    finished: bool


def place(options: TrainOptions) -> Place:
    """The run's folder, new or to be gone on in. Raises ValueError where it would land on a run, a model or data."""
    resumed = resuming.run_folder(options) if options.resume else None
    folder = resumed or new_run_folder(options.output_dir)
    if not resuming.is_run(folder):
        found = next((name for name in MODEL if (folder / name).exists()), None)
        if scan(folder)[0] or folder.resolve() == Path(options.data_dir).resolve():
            found = "shards"
        if found:
            way_out = "Type a folder that is not there yet: a run stands by itself."
            raise ValueError(f"--output_dir is {folder}, which holds something else: {found}. {way_out}")
    return Place(folder, resumed is not None, (folder / resuming.FINISHED).exists())


def new_run_folder(output_dir: str | None) -> Path:
    """The run folder, not yet made. Raises ValueError when there is a run in it."""
    folder = Path(output_dir or time.strftime("checkpoints/qwen_prm_%Y%m%d_%H%M%S"))
    for pattern in (resuming.FINISHED, "checkpoint-*", "epoch_*", "best", "final"):
        if found := next(folder.glob(pattern), None):
            way_out = "Choose another --output_dir, or add --resume auto to go on with it."
            raise ValueError(f"{folder} already holds a run (there is {found.name}). {way_out}")
    return folder


@contextmanager
def opened(where: Place, ranks: Ranks, level: str) -> Iterator[None]:
    """The folder is this run's alone, swept, and what is said goes into training.log; only the first process speaks.

    A new folder goes again where a run fails, or is stopped, before anything else stands in it.
    """
    if not ranks.first:
        logging.getLogger("latent_prm").setLevel(logging.ERROR)
        yield
        return
    way_out = "Wait until it is through, or type another --output_dir."
    folder, fresh = where.folder, not where.folder.exists()
    with (
        ending_on_sigterm(),
        files.lock(folder / ".lock", "training", way_out),
        log_lines(folder / "training.log", level),
    ):
        for torn in files.sweep(folder):
            log.warning(f"[Trainer] {torn.name} removed: a write that was cut off.")
        if not where.resumed:
            new_run_folder(str(folder))  # nobody was quicker
        try:
            yield
        except BaseException:
            if fresh and {path.name for path in folder.iterdir()} <= {".lock", "training.log"}:
                files.remove_folder(folder)
            raise


class Run:
    """Everything that a step needs and changes, ready for the first or the next one; config.json is written."""

    def __init__(
        self, options: TrainOptions, folder: Path, trees: Sequence[ReasoningTree], skipped: list[str], ranks: Ranks
    ) -> None:
        self.options, self.folder, self.skipped_files, self.ranks = options, folder, skipped, ranks
        self.state, self.started = TrainingState(seed=options.seed), time.monotonic()
        self.entries: list[dict[str, Any]] = []  # the lines of metrics.jsonl
        self.keeper, self.device = Keeper(), ranks.device
        self.loss_terms = options.loss_terms()
        lessons = lessons_of(trees, options)
        self.truncated = look_at(lessons, options)
        self.train, self.validation = split(lessons, options.val_size, options.seed)
        sides = {"train": self.train, "validation": self.validation}
        self.samples = {side: num_targets(items) for side, items in sides.items()}
        self.questions = {
            side: sorted({question_digest(item.tree.question) for item in items}) for side, items in sides.items()
        }
        epochs = range(1, options.num_epochs + 1)
        self.total_steps = sum(len(epoch_steps(self.train, epoch, options)) for epoch in epochs)

        self.precision = optimizers.precision(self.device, options)
        wide = trees[0].paths[0].latents.shape[1]
        if ranks.first:
            self._check_room(wide)
        self.origin, checkpoint = ranks.same(self._origin(lessons) if ranks.first else ({}, None))
        self.model = self._build(wide, checkpoint)
        self.train, self.validation = self._as_read(self.train), self._as_read(self.validation)
        check_positions(self.model, [*self.train, *self.validation])
        layers = decoder_layers(self.model.backbone)
        self.module = ranks.spread(self.model, layers, options.parallel)
        if options.compile == "on" or (
            options.compile == "auto" and self.device.type == "cuda" and self.total_steps >= LONG
        ):
            self._compile(layers)
        self.optimizer = optimizers.make_optimizer(self.model, options)
        self.scheduler = optimizers.make_schedule(self.optimizer, options, self.total_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        if checkpoint:
            go_on(self, checkpoint)
        elif options.resume:
            log.warning(f"[Trainer] --resume: there is no checkpoint in {folder} yet, so the run starts afresh.")
        introduce(self)
        self.watch = Watch(folder, self.entries, options.report_to, asdict(options)) if ranks.first else None

    def _origin(self, lessons: Sequence[Lesson]) -> tuple[dict[str, Any], Path | None]:
        """What the run is made of, and the checkpoint it goes on from."""
        options = self.options
        machine = {"device": str(self.device), "precision": str(self.precision).removeprefix("torch."), **versions()}
        machine["processes"] = f"{self.ranks.world} ({options.parallel})" if self.ranks.world > 1 else "1"
        made_of = resuming.origin(options, lessons, machine)
        return made_of, resuming.find_checkpoint(options, self.folder, made_of) if options.resume else None

    def _check_room(self, width: int) -> None:
        """Raises OSError where the disk has no room for the planned checkpoints, those that are there not counted."""
        options = self.options
        read = width * len({"fed", "hidden"} & set(options.read_parts()))
        planned = sizing.disk(options, sizing.shape_of(sizing.skeleton(options.model_path), read), self.total_steps)
        needed = max(planned.whole, planned.total - preflight.taken(self.folder))
        way_out = "Type --save_total_limit 1 or --no-save_optimizer, or another --output_dir."
        log.info(f"[Trainer] Disk: {preflight.has_room(self.folder, needed, str(planned), way_out)}")

    def _build(self, width: int, checkpoint: Path | None) -> QwenLatentPRM:
        """The model, with the weights of a checkpoint where there is one."""
        options = self.options
        torch.manual_seed(options.seed)
        second = options.correctness_weight > 0
        model = QwenLatentPRM(
            options.model_path, width, options.pooling_strategy, second_head=second, reads=options.read_parts()
        )
        model.max_seq_length, model.context = options.max_seq_length, options.context
        model.reasoners = kinship.growers(options.data_dir)
        model.see(options.sees)
        model.dropout = self.dropout = PathDropout(options.dropout_prob)
        tuning.adapt(model, options)
        optimizers.shrink_weights(model, options)
        if checkpoint:
            load_weights(checkpoint, model)
        self.num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if options.gradient_checkpointing and (options.tuning != "head" or model.projection is not None):
            turn_on = getattr(model.backbone, "activation_checkpointing_enable", None)
            (turn_on or model.backbone.gradient_checkpointing_enable)({"use_reentrant": False})
        for part in model.backbone.modules():  # masks of their own would depend on how a step is packed
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            elif isinstance(getattr(part, "attention_dropout", None), float):
                part.attention_dropout = 0.0
        model.train()
        if self.ranks.world == 1 or options.parallel == "ddp":  # FSDP moves it layer by layer
            model.to(self.device)
        if self.ranks.world == 1 and not options.train_embeddings:
            model.backbone.get_input_embeddings().cpu()  # it is only looked up: that much less on a GPU
        return model

    def _compile(self, layers: Sequence[nn.Module]) -> None:
        """Once for all layers, and for packs of all sizes; where that fails the run goes on without, and says so."""
        torch.compiler.reset()  # what was compiled for a run before in this process counts against a limit
        for layer in layers:
            layer.compile(dynamic=True)
        work = self.prepare(0, epoch_steps(self.train, 1, self.options)[0])
        batch, _, keep = work.packs[0]
        self.dropout.keep = keep.to(self.device)
        try:
            with self.autocast():
                # Not through DDP, which counts its calls.
                logits = self.model(batch.to(self.device), work.objective.by_latent)
            logits.total().backward()
        except Exception as error:  # whatever compiler, driver or model cannot do: uncompiled, it still can
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(f"[Trainer] The layers are not compiled, which is slower: {reason}")
            for layer in layers:
                layer._compiled_call_impl = None
        else:  # one row or many, learning or not: some kinds of packs are compiled later, or not if that fails
            torch._dynamo.config.suppress_errors = True
        self.model.zero_grad()

    def _as_read(self, items: Sequence[Lesson]) -> list[Lesson]:
        """With what is read beside latents; these stay in the mapped shards until a step or validation wants them."""
        few = handfuls(items, self.model.reads)
        read = (own for some in few for own in self.model.as_read([item.tree for item in some]))
        beside = [(context, tails) for _, context, tails in read]
        return [item._replace(context=own[0], tails=own[1]) for item, own in zip(items, beside, strict=True)]

    def autocast(self) -> torch.autocast:
        """The arithmetic of the forward pass."""
        half = self.precision is not torch.float32
        return torch.autocast(self.device.type, self.precision if half else None, enabled=half)

    def prepare(self, step: int, items: Sequence[Lesson]) -> Work:
        """This process's part of the ``step``-th step (0: the first)."""
        return prepare(
            items,
            step,
            self.options,
            hidden_size=self.model.hidden_size,
            dropout=self.dropout.p,
            shared=self.model.shares,
            share=self.ranks.share,
            multiple=64 if self.device.type == "cuda" else 1,
        )

    def throw(self, what: str) -> None:
        """Seed what torch itself draws of a kind in this step: the same in every process."""
        torch.manual_seed(chance(self.options.seed, what, self.state.step).getrandbits(63))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever happens inside, what was begun is written to its end."""
        try:
            yield
            self.keeper.wait()
        except BaseException:
            try:
                self.keeper.wait()
            except Exception as error:  # not instead of what happened first
                log.error(f"[Trainer] {error}")
            raise
        finally:
            if self.watch:
                self.watch.close()

    def record(self, **values: Any) -> None:
        """Add a line to metrics.jsonl, and to wherever --report_to says; warn where it gives reason to."""
        if self.watch:
            self.watch.record(self.state.step, self.state.epoch, **values)
            for remark in remarks(self.entries, self.options):
                log.warning(f"[Trainer] {remark}")


def check_positions(model: QwenLatentPRM, items: Sequence[Lesson]) -> None:
    """Raises ValueError where a chain, with what stands before and behind it, reaches beyond the last position."""
    last = model.num_positions
    if last is None or not model.has_position_table:
        return
    chains: list[tuple[int, int]] = []
    for item in items:
        leaves = set(item.tree.leaves()) if "tip" in model.reads else set()
        for path in item.targets:
            tip = path in leaves and item.tree.paths[path].tip is not None
            latents = min(item.tree.chain_length(path) + tip, model.max_seq_length)
            chains.append((latents, len(item.context) + len(item.tails.get(path, ()))))
    if (taken := max(latents + around for latents, around in chains)) > last:
        left = last - max(around for _, around in chains)
        way_out = f"--max_seq_length {left}" if left > 0 else "--context none"
        raise ValueError(
            f"A question and a chain take {taken} positions, but {type(model.backbone).__name__} has {last}. "
            f"Type {way_out}, or another --model_path."
        )


def decoder_layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers that the backbone's config counts."""
    count = backbone.config.get_text_config().num_hidden_layers  # type: ignore[reportCallIssue]
    found = (m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return list(next(found, []))


def introduce(run: Run) -> None:
    """Say what is going to happen, and write it down as config.json."""
    wide, hidden, precision = run.model.latent_dim, run.model.hidden_size, str(run.precision).removeprefix("torch.")
    for side, questions in run.questions.items():
        log.info(f"[Trainer] {side.capitalize()}: {run.samples[side]} labelled paths, {len(questions)} questions")
    if run.model.projection is not None:
        log.info(f"[Trainer] Latents are {wide} wide, the backbone {hidden}: a projection stands in front.")
    together = f", {run.ranks.world} processes ({run.options.parallel})" if run.ranks.world > 1 else ""
    log.info(
        f"[Trainer] {run.total_steps} steps, {run.num_trained:,} parameters, {precision} on {run.device}{together}"
    )
    resolved = {"device": str(run.device), "precision": precision, "latent_dim": wide, "hidden_size": hidden}
    resolved |= {"trained_parameters": run.num_trained, "total_steps": run.total_steps, "processes": run.ranks.world}
    config = {"options": asdict(run.options), "resolved": resolved, "versions": versions()}
    if run.ranks.first:
        files.save_json(config, run.folder / "config.json")


# --- what is kept -----------------------------------------------------------------------------------------------------


def save(run: Run, names: Sequence[str]) -> None:
    """Keep the model of this moment under every one of ``names``, its bytes once; it is written in the background."""
    if not names:
        return
    first, *others = sorted(names, key=lambda name: is_light(run, name))  # what is linked takes from what has all
    run.state.scaler = run.scaler.state_dict()
    optimizer = None if is_light(run, first) else run.optimizer
    kept = (run.questions, run.entries, run.origin)
    run.keeper.wait()  # before another copy is made
    if run.ranks.world > 1 and run.options.parallel == "ddp" and not run.ranks.first:
        return  # what the others have is the same
    moment = Moment.of(run.model, optimizer, run.scheduler, run.state, *kept, keep=run.ranks.first)
    if run.ranks.first:
        run.keeper.keep(lambda: write(run, moment, first, others))


def write(run: Run, moment: Moment, first: str, others: Sequence[str]) -> None:
    """Commit a checkpoint, show it under other names too, and remove what is too old."""
    path, limit, best = run.folder / first, run.options.save_total_limit, moment.state.best or {}
    save_checkpoint(path, moment)
    log.info(f"[Trainer] Checkpoint saved to: {path}")
    link(run, path, others)
    if limit and first.startswith("checkpoint-"):
        resuming.rotate(run.folder, path, limit, spare=best.get("kept_as"))


def link(run: Run, source: Path, names: Sequence[str]) -> None:
    """Show a checkpoint under other names too."""
    for name in names:
        link_checkpoint(source, run.folder / name, ["optimizer.pt"] * is_light(run, name))
        log.info(f"[Trainer] Checkpoint saved to: {run.folder / name}")


def is_light(run: Run, name: str) -> bool:
    """Whether a checkpoint of this name goes without optimizer.pt."""
    return not run.options.save_optimizer and (name == "best" or name.startswith("epoch_"))


def names_of_epoch(state: TrainingState) -> list[str]:
    """Under which the model of an epoch's end is kept."""
    best_now = (state.best or {}).get("step") == state.step
    return [f"epoch_{state.epoch}"] + ["best"] * best_now + ["final"] * state.finished


def go_on(run: Run, checkpoint: Path) -> None:
    """Take the run up where a checkpoint left it, and bring its folder back to that moment."""
    run.state, run.entries = load_progress(checkpoint, run.optimizer, run.scheduler)
    if run.scaler.is_enabled() and run.state.scaler:  # none was kept where another device trained
        run.scaler.load_state_dict(run.state.scaler)
    state = run.state
    log.info(f"[Trainer] Resumed from {checkpoint}: step {state.step}, {state.epoch_steps} of epoch {state.epoch}")
    if not run.ranks.first:
        return
    if len(state.epoch_losses) == state.epoch:  # the folders of an epoch's end may have been cut off
        link(run, checkpoint, [name for name in names_of_epoch(state) if name != checkpoint.name])
    if state.best and not resuming.holds(run.folder / "best", state.best["step"]):  # it is of a later moment
        same = run.folder / state.best["kept_as"]
        if resuming.holds(same, state.best["step"]):
            link_checkpoint(same, run.folder / "best", ["optimizer.pt"] * is_light(run, "best"))
        else:
            log.warning(f"[Trainer] {same} is gone, the best model so far: {run.folder / 'best'} is another.")
