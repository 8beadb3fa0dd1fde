"""STAGE 2: shards → checkpoints. Hides the training loop: steps, validation, and what is said of them.

latent-prm train --data_dir prm_data    (or: python -m methods.latent_prm.trainer --data_dir prm_data)

Every choice of chance (split, order, dropped contexts, dropout) follows from the seed and from what it is chosen for,
never from what was drawn before: so a run that goes on from a checkpoint (``resuming``) is the one that never stopped,
and several processes (``ranks``) take the steps that one would.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from latent_prm import files, kinship, optimizers, plots, preflight, resuming, screen, shards, sizing
from latent_prm.feeding import Work, ahead
from latent_prm.foreign import UNKNOWN
from latent_prm.lessons import Lesson, epoch_steps
from latent_prm.memory import is_full
from latent_prm.options import TrainOptions
from latent_prm.pretrained import pick_device
from latent_prm.ranks import Ranks
from latent_prm.reading import Read, handfuls, visible
from latent_prm.run import Run, names_of_epoch, opened, place, save
from latent_prm.shards import load_trees
from latent_prm.stopping import gathered
from latent_prm.tasks import load_task
from latent_prm.watching import Pace, check, validation_figures

log = logging.getLogger(__name__)

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def main(options: TrainOptions) -> Path:
    """Run the stage: load, prepare, fit, report. Returns the run folder, which ``--plan`` does not make.

    Raises:
        ValueError, OSError: in plain words: no data, no model, a loss that is not a number, no memory, a full disk,
            another writer of the run folder, a run to resume that is not this one.
        KeyboardInterrupt, SystemExit(143): Ctrl-C or SIGTERM, after the step in hand was saved as checkpoint-N.
    """
    if options.plan:
        sizing.plan(options)
        return Path(options.output_dir or "checkpoints")
    check(options.report_to)
    ranks = Ranks(pick_device(options.device))
    where = ranks.same(place(options) if ranks.first else None)
    assert where is not None
    if where.finished:
        if ranks.first:
            done = f"{where.folder} is finished (there is {resuming.FINISHED}): there is nothing to resume."
            print(f"{done} Type another --output_dir to begin anew.")
        return where.folder
    if ranks.first:
        preflight.can_write(where.folder)
    skipped_files: list[str] = []
    trees = load_trees(options.data_dir, options.skip_bad_files, skipped_files)
    with opened(where, ranks, options.log_level), optimizers.arithmetic(ranks.device, options):
        try:
            run = Run(options, where.folder, trees, skipped_files, ranks)
            with gathered() as stop, run.writing():
                for epoch in range(max(1, run.state.epoch), options.num_epochs + 1):
                    train_epoch(run, epoch, stop)
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            raise ValueError(out_of_memory(options)) from error
        report(run)
    return where.folder


# --- the loop ---------------------------------------------------------------------------------------------------------


def train_epoch(run: Run, epoch: int, stop: Sequence[signal.Signals]) -> None:
    """One pass over the training questions, with its log lines, validations and checkpoints."""
    options, state, steps = run.options, run.state, epoch_steps(run.train, epoch, run.options)
    if state.epoch != epoch and not state.finished:
        state.begin(epoch)
    left, silent = steps[state.epoch_steps :], not log.isEnabledFor(logging.INFO)
    if not left or state.finished:
        return
    log.info(f"Epoch {epoch}/{options.num_epochs}")
    works = ahead(lambda numbered: run.prepare(*numbered), enumerate(left, state.step))
    pace, whole = Pace(run.device), Pace(run.device)
    with screen.bar(works, bar_format=BAR, disable=silent, initial=state.epoch_steps, total=len(steps)) as bar:
        for work in bar:
            lr, began = float(run.scheduler.get_last_lr()[0]), time.perf_counter()
            taught = optimizer_step(run, work)
            state.step, state.epoch_steps = state.step + 1, state.epoch_steps + 1
            for each in (pace, whole):
                each.add(taught.tokens, taught.columns, time.perf_counter() - began)
            bar.set_postfix_str(f"loss={taught.loss:.4f}, lr={lr:.2e}", refresh=False)
            if state.step % options.logging_steps == 0:
                tell(run, taught, lr, pace)
            # Whoever was told. Looked at once: a signal that comes while saving is for the next step.
            came = run.ranks.gather(stop[:1])[:1]
            names = after_step(run, last=state.epoch_steps == len(steps))
            if (state.step % options.save_steps == 0 or came) and f"checkpoint-{state.step}" not in names:
                names = [f"checkpoint-{state.step}", *names]
            save(run, names)
            if came:
                obey(came[0], run, names[0])
            if state.finished and state.epoch_steps < len(steps):  # leaving after the last would leave the bar short
                break
    log.info(f"[Trainer] Epoch {epoch}: {whole.say(whole.figures())}")


class Taught(NamedTuple):
    """What an optimizer step found."""

    loss: float
    """Of the step's labelled paths, before it."""
    grad_norm: float
    """Before it was clipped."""
    tokens: int
    """Columns with a token or a latent, in all processes."""
    columns: int
    """All of them, padding too."""


def optimizer_step(run: Run, work: Work) -> Taught:
    """Learn from the labelled paths of some questions.

    The loss is divided by what the whole step has, so that packs and processes are a matter of memory and time only.
    Raises ValueError, with the weights untouched, when a prediction or the gradient is not finite.
    """
    objective, ranks = work.objective, run.ranks
    finite: list[Tensor] = []
    rounds = ranks.most(len(work.packs))
    for number in range(rounds):
        batch, held, keep = work.packs[min(number, len(work.packs) - 1)]
        if isinstance(run.module, DistributedDataParallel):
            run.module.require_backward_grad_sync = number == rounds - 1  # gradients meet once
        run.dropout.keep = keep.to(run.device, non_blocking=True)
        with run.autocast():
            logits = run.module(batch.to(run.device), objective.by_latent)
        if work.idle or number >= len(work.packs):  # the others have more, and what is spread computes together
            share = logits.total() * 0
        else:
            finite.append(torch.stack([each.isfinite().all() for each in logits if each is not None]).all())
            share = objective.share(logits, held.to(run.device))
        run.scaler.scale(share * ranks.world).backward()  # gradients come out as the mean over the processes
    run.scaler.unscale_(run.optimizer)
    length = gradient_norm(run)
    sizes = torch.tensor([work.num_tokens, work.num_columns]).to(objective.sums, non_blocking=True)
    summed = ranks.total(torch.cat([sizes, objective.sums]))
    told = [length[None], summed.to(length.device), *(each[None] for each in finite)]
    norm, tokens, columns, *found = torch.cat([one.double() for one in told]).tolist()  # here alone a GPU is waited for
    sums = dict(zip(objective.terms, found, strict=False))
    for fine, (batch, *_) in zip(found[len(sums) :], work.packs, strict=False):
        if not fine:
            raise ValueError(not_finite("prediction", run, [work.items[i] for i, _ in batch.paths]))
    # A scaler skips such a step and lowers its scale; one that is low already has not helped.
    if not math.isfinite(norm) and (not run.scaler.is_enabled() or run.scaler.get_scale() < 1):
        raise ValueError(not_finite("gradient", run, work.items))
    clip(run, length, norm)
    run.throw("rounding")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    run.optimizer.zero_grad()
    for name, units in objective.units.items():
        run.state.sums[name] = run.state.sums.get(name, 0.0) + sums[name]
        run.state.units[name] = run.state.units.get(name, 0.0) + units
    return Taught(mean(objective.terms, sums, objective.units), norm, int(tokens), int(columns))


def gradient_norm(run: Run) -> Tensor:
    """Of all gradients together, on the device."""
    norm = get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip(run: Run, length: Tensor, norm: float) -> None:
    """Scale the gradient to ``--max_grad_norm`` (0: no limit) where it is larger; ``norm`` is what ``length`` holds."""
    if 0 < run.options.max_grad_norm < norm:  # else not touched: it is as large as the model
        learnt = [p for p in run.model.parameters() if p.grad is not None]
        clip_grads_with_norm_(learnt, run.options.max_grad_norm, length)


def mean(terms: dict[str, float], sums: dict[str, float], units: dict[str, float]) -> float:
    """The weighted sum of each term's mean; a term that nothing taught counts as 0."""
    return sum(weight * sums[name] / units[name] for name, weight in terms.items() if units.get(name))


def tell(run: Run, taught: Taught, lr: float, pace: Pace) -> None:
    """The log line of a step, and its entry."""
    average = epoch_loss(run)
    log.info(f"[Trainer] Step {run.state.step}: loss={taught.loss:.4f}, avg_loss={average:.4f}, lr={lr:.2e}")
    run.record(loss=taught.loss, avg_loss=average, lr=lr, grad_norm=taught.grad_norm, aside=pace.figures())


def epoch_loss(run: Run) -> float:
    """The mean loss of the epoch so far, whatever the size of its steps."""
    return mean(run.loss_terms, run.state.sums, run.state.units)


# --- validation -------------------------------------------------------------------------------------------------------


def after_step(run: Run, last: bool) -> list[str]:
    """Validate where it is time to; returns the names under which the model of this moment is kept.

    ``last``: the step was the epoch's last.
    """
    options, state, figures, better = run.options, run.state, {}, False
    due = options.val_steps is not None and state.step % options.val_steps == 0
    if run.validation and (last or due):
        figures = validate(run)
        state.val_losses.append(figures["val_loss"])
        by, watched = "validation", figures["val_loss"]
        if not {"mse", "bce"} & run.loss_terms.keys() and "val_auroc" in figures:
            by, watched = "validation ranking", 1 - figures["val_auroc"]  # such logits are free up to a shift
        better = compare(run, watched, by, last)
        if options.early_stopping_patience and state.stale >= options.early_stopping_patience:
            log.info(f"[Trainer] Stopped early: {state.stale} validations without a lower loss.")
            state.finished = True
    found = ", ".join(f"{name}={value:.4f}" for name, value in figures.items())
    if not (last or state.finished):
        if figures:
            log.info(f"[Trainer] Step {state.step}: {found}")
            run.record(**figures)
        return [f"checkpoint-{state.step}", "best"] * better
    loss = epoch_loss(run)
    state.epoch_losses.append(loss)
    if not run.validation:
        compare(run, loss, "training", last)
    state.finished = state.finished or state.epoch == options.num_epochs
    run.record(train_loss=loss, **figures)
    log.info(f"[Trainer] Epoch {state.epoch}: training loss {loss:.4f}{', ' if found else ''}{found}")
    return names_of_epoch(state)


def compare(run: Run, loss: float, by: str, last: bool) -> bool:
    """Remember the lowest loss; returns whether this is it."""
    state = run.state
    name = f"epoch_{state.epoch}" if last else f"checkpoint-{state.step}"
    better = state.best is None or loss < state.best["loss"]
    if better:
        state.best = {"loss": loss, "by": by, "epoch": state.epoch, "step": state.step, "kept_as": name}
    state.stale = 0 if better else state.stale + 1
    return better


@torch.no_grad()
def validate(run: Run) -> dict[str, float]:
    """What the model is worth on the validation questions: ``watching.validation_figures``.

    Raises ValueError when the loss is not finite.
    """
    run.model.eval()
    few = handfuls(run.validation, run.model.reads, run.ranks.world)
    scores = [each for some in few for each in predicted(run, some)]
    run.model.train()
    figures = validation_figures(run.validation, scores)
    if not math.isfinite(figures["val_loss"]):
        raise ValueError(not_finite("validation loss", run, run.validation))
    return figures


def predicted(run: Run, items: Sequence[Lesson]) -> list[dict[int, float]]:
    """The predicted score of each labelled path of every lesson, whichever process computed it."""
    options, found = run.options, []
    own = set(run.ranks.share([item.num_tokens for item in items]))
    size = {"max_seq_length": options.max_seq_length, "pack_tokens": options.at_once}
    wanted = [list(item.targets) if i in own else [] for i, item in enumerate(items)]
    read = [Read(item.tree, item.context, item.tails) for item in items]
    for i in own | {0}:  # what others compute is not copied
        read[i] = read[i]._replace(tree=visible(read[i].tree, options.read_parts()))
    idle = next(run.model.packs(read[:1], wanted=[list(items[0].targets)[:1]], **size))
    for batch, real in run.ranks.abreast(run.model.packs(read, wanted=wanted, **size), idle):
        with run.autocast():
            scores = run.model(batch.to(run.device)).value.sigmoid().tolist()
        found += zip(batch.paths, scores, strict=True) if real else []
    score_of = dict(run.ranks.gather(found))
    return [{path: score_of[i, path] for path in item.targets} for i, item in enumerate(items)]


# --- after ------------------------------------------------------------------------------------------------------------


def obey(came: signal.Signals, run: Run, name: str) -> None:
    """Leave as the signal asks, with all written: exit code 130 for Ctrl-C, 143 for SIGTERM."""
    run.keeper.wait()
    run.ranks.same(None)  # a launcher kills the others when one has left
    log.warning(f"[Trainer] {came.name}: stopped after step {run.state.step}, kept in {run.folder / name}")
    log.info("[Trainer] The same command with --resume auto goes on from there.")  # an experiment needs no option
    if came is signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + came)


def report(run: Run) -> None:
    """Write training_stats.json and loss_curve.png, say what was found and what to type next."""
    state, best = run.state, run.folder / "best"
    if not run.ranks.first:
        return
    assert state.best is not None
    stats = {
        "total_steps": state.step,
        "epoch_losses": state.epoch_losses,
        "val_losses": state.val_losses,
        "best_loss": state.best["loss"],
        "best": {**state.best, "checkpoint": str(best)},
        "training_time": round(time.monotonic() - run.started, 3),
        "resumed": run.options.resume is not None,
        "samples": run.samples,
        "questions": {side: len(questions) for side, questions in run.questions.items()},
        "truncated_chains": run.truncated,
        "skipped_files": run.skipped_files,
    }
    try:
        plots.loss_curve(run.entries, run.folder / "loss_curve.png")
    except plots.NoMatplotlib as missing:
        log.warning(f"[Trainer] No loss_curve.png: {missing}")
    files.save_json(stats, run.folder / resuming.FINISHED)  # last: with it the run is finished
    log.info(f"[Trainer] Best checkpoint: {best} ({state.best['by']} loss {state.best['loss']:.4f})")
    for word, command in zip(("Next", "Then"), next_commands(run.options.data_dir, best), strict=False):
        log.info(f"[Trainer] {word}: {command}")


def next_commands(data_dir: str, best: Path) -> list[str]:
    """What to type after a training: how test questions are grown, unless they are there, and how they are scored."""
    score = shards.command("evaluate", checkpoint=str(best), data_dir=shards.TEST_DATA)
    if shards.scan(shards.TEST_DATA)[0]:
        return [score]
    known, same = next(iter(kinship.facts(data_dir)), {}), {}
    if known.get("model", UNKNOWN) != UNKNOWN:
        same["model_path"] = str(known["model"])
    with suppress(ValueError, KeyError):  # a file's name is not its path
        same["task"] = load_task(str(known["task"])).name
    return [shards.command("collect", **same, split="test", output_dir=shards.TEST_DATA), score]


def out_of_memory(o: TrainOptions) -> str:
    """What to type: packs first, for they change nothing."""
    return (
        f"Out of memory. Lower --pack_tokens (now {o.at_once}), which never changes the result, or --batch_size (now "
        f"{o.batch_size}) with as much more --gradient_accumulation_steps, which lowers it too; or add "
        "--gradient_checkpointing. If that is not enough: type --optimizer adamw8bit, or a lower --max_seq_length "
        f"(now {o.max_seq_length}). --plan says what fits."
    )


def not_finite(what: str, run: Run, items: Sequence[Lesson]) -> str:
    """Where a number was lost, and what to type."""
    names = list(dict.fromkeys(item.tree.question_id for item in items))
    named = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    when = f"NaN or infinite in step {run.state.step + 1}, so the run stopped before it"
    way_out = f"Type a lower --learning_rate (now {run.options.learning_rate:g}), or look at their latents."
    return f"The {what} is {when}. Questions: {named}. {way_out}"
