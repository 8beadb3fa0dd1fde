"""STAGE 1: questions → trees of latent paths → a folder of shards.

latent-prm collect --task arithmetic,search --num_paths 16

This room hides how a collection is cut into batches and shards, how it is stopped, and how it carries on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn, TypeVar

import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from latent_prm import __version__, shards
from latent_prm.files import BadFile
from latent_prm.options import CollectOptions
from latent_prm.reasoner import Growth, Reasoner
from latent_prm.tasks import Question, Task, load_task
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

CACHE_BYTES = 2 * 2**30
"""KV cache that a batch may take when no --batch_size is typed."""
MOST_TOGETHER = 64
"""Questions in such a batch: where more fit, the model is so small that more are no faster."""
FEW = 100
"""Labelled paths. With fewer there is hardly anything to learn from."""
ROWS = {
    "noise_free": "the noise-free path is right",
    "random_path": "one noisy path is right",
    "majority": "the majority of the noisy paths is right",
    "any_path": "any noisy path is right",
    "mixed": "questions with both right and wrong noisy paths",
}
"""Of the final table: a shard's accuracies and mixed_share."""
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

_T = TypeVar("_T")


def main(options: CollectOptions) -> None:
    """Run the stage: draw, load, leave out what is there, grow, report. What has been grown is kept, however it ends.

    Raises ValueError (or one of its kin) in plain words, KeyboardInterrupt on Ctrl-C and SystemExit(143) on SIGTERM.
    """
    logging.basicConfig(format="[Collector] %(message)s")
    logging.getLogger("latent_prm").setLevel(logging.INFO)
    with _handling({signal.SIGTERM: _end}):
        task = load_task(options.task)
        questions = draw(options, task)
        reasoner = Reasoner.from_pretrained(options.model_path, device=options.device, dtype=options.dtype)
        growth = reasoner.growth(**{field.name: getattr(options, field.name) for field in fields(Growth)})
        with only_collector(Path(options.output_dir)) as folder:
            writer = ShardWriter(folder, reasoner, describe(options, task, reasoner, growth))
            done = finished(writer, options.skip_bad_files)
            grow(questions, done, task, growth, writer, options)
            report(folder, options)


def draw(options: CollectOptions, task: Task) -> list[Question]:
    """The questions to ask, those already asked included. Raises ValueError when there are none."""
    if options.split == "test":
        log.warning("These questions are from the test split: do not train on them.")
    questions = task.questions(options.split, options.seed, options.max_samples)
    if not questions:
        raise ValueError(
            f"{options.task} has no questions. Type --task arithmetic, search or the path of a .jsonl file."
        )
    return questions


def describe(options: CollectOptions, task: Task, reasoner: Reasoner, growth: Growth) -> dict[str, Any]:
    """What the metadata of every shard of this collection says alike."""
    settings = {name: value for name, value in asdict(growth).items() if name != "seed"}
    return {
        "task": task.name,
        "model": options.model_path,
        "split": options.split,
        "seed": options.seed,
        "settings": settings | {"dtype": reasoner.dtype, "weights": reasoner.digest()},
    }


# --- what is there already ------------------------------------------------------------------------------------------


@contextmanager
def only_collector(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, with this process as its only collector. Raises ValueError naming another one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock.read().strip() or "unknown"
            way_out = "Wait until it is through, or type another --output_dir."
            raise ValueError(f"Another collector (pid {owner}) is writing into {folder}. {way_out}") from None
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        for torn in folder.glob(".tmp-*"):  # of a collector that was killed: there is no other one
            if re.fullmatch(r"\.tmp-\d+-[0-9a-f]{8}", torn.name) and torn.is_file():
                log.warning("%s: removed: a write that was cut off.", torn)
                torn.unlink()
        yield folder


def finished(writer: ShardWriter, skip_bad_files: bool) -> set[str]:
    """The ids of the questions in the folder's finished shards; unfinished and skipped ones are named in the log.

    Raises:
        ValueError: a shard was grown with other settings; it says which.
        BadFile: a shard is damaged, and not to be skipped.
    """
    done = shards.finished_questions(writer.folder, skip_bad_files)
    now = _typed(writer.facts)
    for path, metadata in _readable(writer.folder):
        then = _typed(metadata)
        if changed := [f"--{name} {then.get(name)}, not {now[name]}" for name in now if then.get(name) != now[name]]:
            way_out = "Type that to carry on there, or another --output_dir for a collection of its own."
            raise ValueError(f"{path} was grown with {'; '.join(changed)}. {way_out}")
    return done


def _readable(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished shards with their metadata, but for damaged ones: those stop `finished`, or are named there."""
    for path in shards.scan(folder)[0]:
        try:
            yield path, shards.read_metadata(path)
        except BadFile:
            continue


def _typed(facts: dict[str, Any]) -> dict[str, Any]:
    """What must be alike in all shards of a folder, by the options' names."""
    settings = dict(facts.get("settings") or {})
    model = f"{facts.get('model')} (weights {settings.pop('weights', None)})"
    return {"model_path": model, **{name: facts.get(name) for name in ("task", "split", "seed")}, **settings}


# --- growing --------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Holds the trees grown since the last shard, and commits them as the folder's next one."""

    def __init__(self, folder: Path, reasoner: Reasoner, facts: dict[str, Any]) -> None:
        self.folder, self.reasoner, self.facts = folder, reasoner, facts
        self._start()

    def _start(self) -> None:
        self.trees: list[ReasoningTree] = []
        self.began, self.spent_before = time.monotonic(), Counter(self.reasoner.spent)

    def commit(self) -> None:
        """Write what is held, if anything. Ctrl-C and SIGTERM wait until it is written and no longer held."""
        with _undisturbed():
            if self.trees:
                shards.write_shard(self.trees, self.folder, self._name(), self.facts | self._counted())
            self._start()

    def _name(self) -> str:
        """The first name that no finished shard has; an unfinished one of that name is overwritten."""
        task = re.sub(r"[^A-Za-z0-9.]+", "-", self.facts["task"]).strip("-.")[:100] or "task"
        taken = {path.stem for path in shards.scan(self.folder)[0]}
        names = (f"{task}_{self.facts['split']}_seed{self.facts['seed']}_{i:05d}" for i in count())
        return next(name for name in names if name not in taken)

    def _counted(self) -> dict[str, Any]:
        spent = self.reasoner.spent - self.spent_before
        return {
            "truncated_answers": sum(a.truncated for tree in self.trees for path in tree.paths for a in path.answers),
            **{name: spent[name] for name in ("prompt_tokens", "latents", "answer_tokens")},
            "seconds": round(time.monotonic() - self.began, 3),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "latent-prm": __version__,
            },
        }


def grow(
    questions: list[Question],
    done: set[str],
    task: Task,
    growth: Growth,
    writer: ShardWriter,
    options: CollectOptions,
) -> None:
    """Grow the questions that are not done, batch by batch, and commit shard by shard.

    However it ends, the trees of all whole batches are committed. Raises ValueError when the device's memory is full.
    """
    together = options.batch_size or batch_size(writer.reasoner, questions, growth)
    todo = [question for question in questions if question.id not in done]
    if kept := len(questions) - len(todo):
        log.info("%d of %d questions are already in %s.", kept, len(questions), writer.folder)
    shares: dict[str, list[float]] = {"noise-free": [], "one noisy path": [], "mixed": []}
    try:
        with tqdm(total=len(questions), initial=kept, desc="Growing", unit=" questions", bar_format=BAR) as bar:
            for part in _pieces(todo, options.shard_size):
                for batch in _pieces(part, together):  # never across shards: after a kill the same batches come again
                    trees = writer.reasoner.grow(batch, task, growth)
                    writer.trees += trees
                    kept += len(trees)
                    bar.update(len(trees))
                    bar.set_postfix_str(_shares(trees, shares))
                writer.commit()
    except BaseException as error:
        writer.commit()
        log.warning("Stopped: %d of %d questions are kept in %s.", kept, len(questions), writer.folder)
        if isinstance(error, torch.OutOfMemoryError):
            way_out = f"--batch_size {together // 2}" if together > 1 else "a lower --num_paths or --max_new_tokens"
            raise ValueError(f"The memory is too small for {together} questions at once. Type {way_out}.") from error
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            log.warning("Type the same command again to carry on.")
        raise


def batch_size(reasoner: Reasoner, questions: list[Question], growth: Growth) -> int:
    """How many questions to grow together. It depends on all of them, done or not, so that batches come out alike."""
    longest = max(questions, key=lambda question: len(question.text))
    return max(1, min(MOST_TOGETHER, CACHE_BYTES // reasoner.cache_bytes(longest, growth)))


def _shares(trees: list[ReasoningTree], shares: dict[str, list[float]]) -> str:
    """Adds these trees to the shares (right noise-free paths, right noisy ones, mixed questions) and spells them."""
    for tree in trees:
        for path in tree.paths:
            shares["noise-free" if path.noise_free else "one noisy path"].append(path.prm_score or 0.0)
        shares["mixed"].append(tree.mixed)
    return ", ".join(f"{name} {fmean(values):.2f}" for name, values in shares.items())


def _pieces(items: list[_T], size: int) -> Iterator[list[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# --- being stopped --------------------------------------------------------------------------------------------------


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait; after it the first of them is taken up."""
    waiting: list[int] = []
    with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, frame: waiting.append(number))):
        yield
    if waiting:
        signal.raise_signal(waiting[0])


@contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, Any], Any]]) -> Iterator[None]:
    """Inside, these handle the signals. Only the main thread may set handlers: in another one nothing changes."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if main_thread}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- reporting ------------------------------------------------------------------------------------------------------


def report(folder: Path, options: CollectOptions) -> None:
    """Print what the folder holds now, warn in words of what cannot be learned from, and say what to type next."""
    parts = [metadata for _, metadata in _readable(folder)]
    sizes = [part["num_questions"] for part in parts]
    labelled = sum(part["num_labelled"] for part in parts)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"{sum(sizes):,} questions, {labelled:,} labelled paths in {folder}")
    table.add_column("share", justify="right")
    for name, title in ROWS.items():
        values = [part["mixed_share"] if name == "mixed" else part["accuracy"].get(name) for part in parts]
        known = [(value, size) for value, size in zip(values, sizes, strict=True) if value is not None]
        mean = sum(value * size for value, size in known) / sum(size for _, size in known) if known else None
        table.add_row(title, "-" if mean is None else f"{mean:.3f}")
    truncated = sum(part.get("truncated_answers", 0) for part in parts)
    table.add_row("answers cut off at --max_new_tokens", f"{truncated / max(1, labelled):.3f}")
    console = Console(highlight=False, markup=False)
    console.print()
    console.print(table)
    _warn([sum(column) for column in zip(*(part["score_histogram"] for part in parts), strict=True)])
    console.print(f"\nNext: {next_command(options)}", soft_wrap=True)


def _warn(histogram: list[int]) -> None:
    filled = [i for i, paths in enumerate(histogram) if paths]
    if len(filled) == 1:
        outcome = {0: "wrong", len(histogram) - 1: "right"}.get(filled[0], "equally good")
        kind = "harder" if outcome == "right" else "easier"
        log.warning("All paths are %s: a PRM cannot learn from these alone. Collect %s questions too.", outcome, kind)
    if sum(histogram) < FEW:
        log.warning("Only %d labelled paths: too few to learn from. Type a larger --max_samples.", sum(histogram))


def next_command(options: CollectOptions) -> str:
    """What to type after this collection."""
    script, folder = ("train", "prm_data") if options.split == "train" else ("evaluate", "prm_data_test")
    where = "" if options.output_dir == folder else f"DATA_DIR={shlex.quote(options.output_dir)} "
    return f"{where}bash {script}_latent_prm.sh"
