"""STAGE 1: questions → trees of latent paths → a folder of shards.

latent-prm collect --task arithmetic,search --num_paths 16

This room hides how a collection is cut into batches and shards, how it is stopped, and how it carries on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from itertools import chain, count, islice
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any, Protocol, TypeVar

import torch
from rich import box
from rich.table import Table

from latent_prm import files, inventory, preflight, screen, shards
from latent_prm.files import BadFile
from latent_prm.growth import Growth
from latent_prm.memory import budget, stored
from latent_prm.options import BUILTIN, CollectOptions
from latent_prm.pretrained import find_device, versions
from latent_prm.preview import preview
from latent_prm.reasoner import Reasoner, batch_size
from latent_prm.stopping import ending_on_sigterm, undisturbed
from latent_prm.tasks import Question, Task, find_repeats, load_task
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
"""A shard that holds so many bytes of latents is closed, however few its questions: it bounds the memory."""
SHARD_SECONDS = 600
"""A shard that was begun so long ago is closed too: what a power cut can cost."""
RUNS_ONLY = {"output_dir", "max_samples", "device", "compile", "engine", "num_workers", "dry_run", "skip_bad_files"}
"""Options of a run, not of what it grows: all others stand in the metadata as they were typed."""
MANY = 200
"""Questions from which on compiling is worth its time."""
FEW = 100
"""Labelled paths. With fewer there is hardly anything to learn from."""
FIXED = Question("text-0", "?", "")
"""Its prompts tell templates apart: wording, chat template and thinking mode."""
ROWS = {
    "noise_free": "the noise-free path is right",
    "random_path": "one noisy path is right",
    "majority": "the majority of the noisy paths is right",
    "any_path": "any noisy path is right",
    "mixed": "questions with both right and wrong noisy paths",
}
"""Of the final table: a shard's accuracies and mixed_share."""
BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"
"""Short, for 80 columns; where nobody knows how many questions come:"""
ENDLESS = "{n_fmt} questions {elapsed}{postfix}"
COUNTED = ("truncated_answers", "num_answers", "num_leaves", "leaves_in_mixed_questions", "stopped_early", "went_on")
SPENT = ("prompt_tokens", "latents", "answer_tokens")

_T = TypeVar("_T")


class Engine(Protocol):
    """What grows batches: this process, or the workers of a cluster."""

    @property
    def room(self) -> int:
        """Bytes that a batch may take where it is grown."""
        ...

    def grow(self, batches: Iterable[list[Question]]) -> Iterator[tuple[list[ReasoningTree], Counter[str]]]:
        """The trees of each batch, in the order of the batches, and what they cost, as in ``Reasoner.spent``."""
        ...


class LocalEngine:
    """Grows batch after batch in this process."""

    def __init__(self, reasoner: Reasoner, task: Task, growth: Growth) -> None:
        self.reasoner, self.task, self.growth = reasoner, task, growth

    @property
    def room(self) -> int:
        return budget(self.reasoner.device)

    def grow(self, batches: Iterable[list[Question]]) -> Iterator[tuple[list[ReasoningTree], Counter[str]]]:
        for batch in batches:
            before = Counter(self.reasoner.spent)
            trees = self.reasoner.grow(batch, self.task, self.growth)
            yield trees, self.reasoner.spent - before


def main(options: CollectOptions, alone: bool = True) -> None:
    """Run the stage: draw, load, leave out what is there, grow, report. What has been grown is kept, as `grow` says.

    ``alone``: say what to type next, for it is no part of something larger.
    Raises ValueError (or one of its kin) in plain words, KeyboardInterrupt on Ctrl-C and SystemExit(143) on SIGTERM.
    """
    logging.basicConfig(format="[Collector] %(message)s")
    logging.getLogger("latent_prm").setLevel(logging.INFO)
    with ending_on_sigterm():
        inventory.refuse_strangers(Path(options.output_dir))
        preflight.can_write(options.output_dir)
        if options.engine == "local":
            find_device(options.device)
        task = load_task(options.task)
        questions, total = draw(options, task)
        reasoner = load(options, total, weights=False)
        growth = reasoner.growth(**options.growth())
        if total is not None:
            questions = [*questions]
            for question in questions:  # all of them, and before any is grown: characters do not tell tokens
                reasoner.check_length(question, growth)
        if options.dry_run:
            preview(questions, total, reasoner, growth, options)
            return
        check_room(options, total, reasoner, growth)
        if options.engine == "local":
            reasoner = load(options, total)
        with only_collector(options) as folder, running(options, total, reasoner, task, growth) as (engine, facts):
            facts = describe(options, task, reasoner, growth) | facts
            writer = ShardWriter(folder, name_of(options, task), facts, others=options.shard is not None)
            done = finished(writer, options.skip_bad_files)
            if done:
                log.info("%d questions are already in %s.", len(done), folder)
            grow(questions, total, done, engine, Batches(reasoner, growth, options, engine), writer)
            report(folder, options)
            if alone:
                screen.console().print(f"\nNext: {next_command(options)}", soft_wrap=True)


def draw(options: CollectOptions, task: Task) -> tuple[Iterable[Question], int | None]:
    """This job's questions, those already asked included, and how many they are (None: without end).

    Raises ValueError when there are none.
    """
    if options.split == "test":
        log.warning("These questions are from the test split: do not train on them.")
        if options.until_mixed:
            log.warning(
                "With --until_mixed, questions have unlike numbers of paths: majority and any are not comparable."
            )
    for repeats in find_repeats(task, options.split):
        log.warning("%s", repeats)
    if options.max_samples == -1:
        questions = task.stream(options.split, options.seed)
        total = None if task.endless else sum(1 for _ in task.stream(options.split, options.seed))
    else:
        drawn = task.questions(options.split, options.seed, options.max_samples)
        questions, total = iter(drawn), len(drawn)
    number, jobs = options.share()
    if total is not None:
        total = len(range(number - 1, total, jobs))
        if not total:
            raise ValueError(f"{options.task} has no questions in the split {options.split} for this job.")
    return islice(questions, number - 1, None, jobs), total


def load(options: CollectOptions, total: int | None, weights: bool = True) -> Reasoner:
    """The reasoner; without its weights it plans, for others who grow and may have the GPU that this machine lacks."""
    given = loading(options, total)
    if not weights and not options.dry_run and (options.engine == "local" or not torch.cuda.is_available()):
        given["device"] = "cpu"
    return Reasoner.from_pretrained(**given, weights=weights)


def check_room(options: CollectOptions, total: int | None, reasoner: Reasoner, growth: Growth) -> None:
    """Raises OSError or ValueError where the disk, or the width of what is there, would stop the collection later."""
    folder, wide = options.output_dir, reasoner.latent_dim
    if (there := preflight.width_there(folder)) not in (None, wide):
        raise ValueError(
            f"The latents in {folder} are {there} wide, but those of {options.model_path} are {wide}. Type another "
            "--output_dir: shards of one reasoner stand by themselves."
        )
    done = sum(metadata["num_questions"] for _, metadata in _readable(Path(folder), options.skip_bad_files))
    left = options.shard_size if total is None else total if options.shard else max(0, total - done)
    needed, way_out = stored(growth, wide) * left, "Type a lower --max_samples or --num_paths, or another --output_dir."
    log.info("disk: %s", preflight.has_room(folder, needed, f"the trees of {left:,} questions", way_out))


def loading(options: CollectOptions, total: int | None) -> dict[str, Any]:
    """What ``Reasoner.from_pretrained`` takes. Steps are compiled where that pays for the minute it takes."""
    many = total is None or total >= MANY
    compiled = {"on": True, "off": False, "auto": None if many else False}[options.compile]
    return options.reasoner() | {"compiled": compiled}


@contextmanager
def running(
    options: CollectOptions, total: int | None, reasoner: Reasoner, task: Task, growth: Growth
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """The engine, and what the weights it grows with say of themselves."""
    if options.engine == "local":
        yield LocalEngine(reasoner, task, growth), reasoner.describe()
        return
    from latent_prm.cluster import RayEngine  # Ray is an extra

    with RayEngine(loading(options, total), options.task, growth, options.num_workers) as engine:
        yield engine, engine.describe()


def describe(options: CollectOptions, task: Task, reasoner: Reasoner, growth: Growth) -> dict[str, Any]:
    """What the metadata of every shard of this collection says alike."""
    settings = {name: value for name, value in asdict(growth).items() if name not in ("seed", "runs", "judger")}
    prompts = [run.prompt for run in growth.runs] + [growth.judger]
    rendered = [reasoner.prompt(FIXED, growth, i) for i, prompt in enumerate(prompts) if prompt is not None]
    settings |= {
        "num_paths": growth.num_paths,
        "branches": ",".join(str(run.branches) for run in growth.runs),
        "latent_steps": ",".join(str(run.latent_steps) for run in growth.runs),
        "prompts": hashlib.sha256(json.dumps(rendered).encode()).hexdigest()[:16],
    }
    return {
        "typed": {
            field.name: getattr(options, field.name)
            for field in fields(options)
            if field.name not in RUNS_ONLY and getattr(options, field.name) != field.default
        },
        "task": task.name,
        "model": options.model_path,
        "split": options.split,
        "seed": options.seed,
        "settings": settings,
        "agents": [run.agent for run in growth.runs],
        "prompts": prompts,
    }


# --- what is there already ------------------------------------------------------------------------------------------


@contextmanager
def only_collector(options: CollectOptions) -> Iterator[Path]:
    """The folder, made if need be, with this process as the only collector of its questions.

    Jobs with a --shard of their own may write beside each other, but not beside one that asks all questions, or one of
    another number of jobs, for their questions overlap. Raises ValueError naming the other one.
    """
    folder, (number, jobs) = Path(options.output_dir), options.share()
    folder.mkdir(parents=True, exist_ok=True)
    way_out = "Wait until it is through, or type another --output_dir or --shard."
    with files.lock(folder / ".lock", "collector", way_out, shared=jobs > 1):
        if jobs == 1:
            for torn in filter(Path.is_file, files.cut_off(folder)):  # of a killed collector: there is no other one
                log.warning("%s: removed: a write that was cut off.", torn)
                torn.unlink()
            yield folder
        else:
            with files.lock(folder / f".lock-{number}of{jobs}", "collector", way_out):
                for lock in folder.glob(".lock-*of*"):  # only now: of two that begin together, one sees the other
                    other = lock.name.rpartition("of")[2]
                    if other != str(jobs) and (who := inventory.holder(lock)):
                        raise ValueError(
                            f"--shard is {options.shard}, but a collector (pid {who}) is writing into {folder} as one "
                            f"of {other} jobs: questions would be asked twice. {way_out}"
                        )
                yield folder


def finished(writer: ShardWriter, skip_bad_files: bool) -> set[str]:
    """The ids of the questions in the folder's finished shards; unfinished and skipped ones are named in the log.

    Raises:
        ValueError: a shard was grown with other settings; it says which.
        BadFile: a shard is damaged, and not to be skipped.
    """
    done = shards.finished_questions(writer.folder, skip_bad_files)
    writer.compare()
    return done


def _brief(value: Any) -> str:
    return shorten(str(value), 100)


def _readable(folder: Path, intact: bool = False, but: Collection[Path] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished shards with their metadata, but for damaged ones: those stop `finished`, or are named there.

    ``intact``: all bytes are read to find those, not the metadata alone.
    """
    for path in (path for path in shards.scan(folder)[0] if path not in but):
        try:
            metadata = shards.read_metadata(path)
            if intact:
                files.verify(path, metadata["sha256"])
        except BadFile:
            continue
        yield path, metadata


def _typed(facts: dict[str, Any]) -> dict[str, Any]:
    """What must be alike in all shards of a folder, by the options' names."""
    model = f"{facts.get('model')} (weights {facts.get('weights')})"
    own = {name: facts.get(name) for name in ("task", "split", "seed", "dtype")}
    return {"model_path": model, **own, **dict(facts.get("settings") or {})}


# --- growing --------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Holds the trees grown since the last shard, and commits them as the folder's next one."""

    def __init__(self, folder: Path, name: str, facts: dict[str, Any], others: bool = False) -> None:
        self.folder, self.name, self.facts = folder, name, facts
        self.others = others  # whether other jobs may write into the folder too
        self.compared: set[Path] = set()
        self._start()

    def _start(self) -> None:
        self.trees: list[ReasoningTree] = []
        self.spent: Counter[str] = Counter()
        self.bytes, self.began = 0, time.monotonic()

    def add(self, trees: list[ReasoningTree], spent: Counter[str]) -> None:
        """Hold a batch's trees and what they cost."""
        self.trees += trees
        self.spent += spent
        held = chain.from_iterable((path.latents, path.hidden) for tree in trees for path in tree.paths)
        self.bytes += sum(tensor.nbytes for tensor in held if tensor is not None)

    def full(self, shard_size: int) -> bool:
        """Whether it is time to commit."""
        old = time.monotonic() - self.began >= SHARD_SECONDS
        return len(self.trees) >= shard_size or self.bytes >= SHARD_BYTES or old

    def compare(self) -> None:
        """Raises ValueError where a shard that came into the folder was grown with other settings; it says which."""
        now = _typed(self.facts)
        for path, metadata in _readable(self.folder, but=self.compared):
            then = _typed(metadata)
            if metadata.get("weights") is not None and metadata["weights"] == self.facts.get("weights"):
                then["model_path"] = now["model_path"]  # the same, however it is called
            differ = [name for name in now if then.get(name) != now[name]]
            if changed := [f"--{name} {_brief(then.get(name))}, not {_brief(now[name])}" for name in differ]:
                way_out = "Type that to carry on there, or another --output_dir for a collection of its own."
                raise ValueError(f"{path} was grown with {'; '.join(changed)}. {way_out}")
            self.compared.add(path)

    def commit(self) -> None:
        """Write what is held, if anything. Ctrl-C and SIGTERM wait until it is written and no longer held.

        Raises OSError as the disk does, and ValueError as `compare`: other jobs may have begun together with this one,
        when the folder was empty. What is held stays held then.
        """
        with undisturbed():
            if self.trees:
                turn = files.turn(self.folder / ".lock-commit") if self.others else nullcontext()
                with turn:  # nobody commits between the comparison and the writing
                    self.compare()
                    self._write()
            self._start()

    def _write(self) -> None:
        name = self._free_name()
        try:
            shards.write_shard(self.trees, self.folder, name, self.facts | self._counted())
        except OSError:
            if shards.metadata_path(self.folder / f"{name}.pt").exists():  # all was there when the disk failed
                self._start()
            raise

    def _free_name(self) -> str:
        """The first name that no finished shard has; an unfinished one of that name is overwritten."""
        taken = {path.stem for path in shards.scan(self.folder)[0]}
        return next(name for i in count() if (name := f"{self.name}_{i:05d}") not in taken)

    def _counted(self) -> dict[str, Any]:
        leaves = [sum(not tree.paths[i].noise_free for i in tree.leaves()) for tree in self.trees]
        asked = self.facts["settings"]["num_paths"]
        return {
            "truncated_answers": sum(a.truncated for tree in self.trees for path in tree.paths for a in path.answers),
            "num_answers": sum(len(path.answers) for tree in self.trees for path in tree.paths),
            **{name: self.spent[name] for name in SPENT},
            "num_leaves": sum(leaves),
            "leaves_in_mixed_questions": sum(n for n, tree in zip(leaves, self.trees, strict=True) if tree.mixed),
            "stopped_early": sum(n < asked for n in leaves),
            "went_on": sum(n > asked for n in leaves),
            "seconds": round(time.monotonic() - self.began, 3),
            "versions": versions(),
        }


def name_of(options: CollectOptions, task: Task) -> str:
    """What this job's shards are called, but for their number."""
    named = re.sub(r"[^A-Za-z0-9.]+", "-", task.name).strip("-.")[:100] or "task"
    number, jobs = options.share()
    job = f"_job{number}of{jobs}" if jobs > 1 else ""
    return f"{named}_{options.split}_seed{options.seed}{job}"


class Batches:
    """Cuts questions into batches that fit into memory, and never across shards: after a kill the same ones come."""

    def __init__(self, reasoner: Reasoner, growth: Growth, options: CollectOptions, engine: Engine) -> None:
        self.reasoner, self.growth, self.engine = reasoner, growth, engine
        self.batch_size, self.shard_size = options.batch_size, options.shard_size

    def of(self, questions: Iterable[Question]) -> Iterator[list[Question]]:
        """The batches, cut when they are asked for."""
        for part in pieces(questions, self.shard_size):
            size = self.batch_size or batch_size(self.reasoner, part, self.growth, self.engine.room)
            yield from pieces(part, size)


def grow(
    questions: Iterable[Question],
    total: int | None,
    done: set[str],
    engine: Engine,
    batches: Batches,
    writer: ShardWriter,
) -> None:
    """Grow the questions that are not done, batch by batch, and commit shard by shard.

    However it ends, the trees of all whole batches are committed, but for those that cannot be: the disk is full, or
    another job's shards, of other settings, came first. How many are kept is said in any case.
    """
    kept, leaves, began = 0, 0, time.monotonic()
    shares: dict[str, list[float]] = {"noise-free": [], "noisy": [], "mixed": []}

    def todo() -> Iterator[Question]:
        nonlocal kept
        for question in questions:
            if question.id in done:
                kept += 1
                bar.initial += 1  # not counted as speed
                bar.n = bar.last_print_n = bar.n + 1
            else:
                yield question

    with screen.bar(total=total, bar_format=BAR if total else ENDLESS) as bar:
        try:
            for trees, spent in engine.grow(batches.of(todo())):
                writer.add(trees, spent)
                kept += len(trees)
                leaves += sum(len(tree.leaves()) for tree in trees)
                bar.set_postfix_str(_told(trees, shares, leaves, time.monotonic() - began), refresh=False)
                bar.update(len(trees))
                if writer.full(batches.shard_size):
                    writer.commit()
            writer.commit()
        except BaseException as error:
            try:
                writer.commit()
            finally:
                of, lost = "" if total is None else f" of {total}", len(writer.trees)
                log.warning("Stopped: %d%s questions are kept in %s.", kept - lost, of, writer.folder)
                if lost:
                    log.warning("%d more were grown, but could not be kept.", lost)
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    log.warning("Type the same command again to carry on.")
            raise


def _told(trees: list[ReasoningTree], shares: dict[str, list[float]], leaves: int, seconds: float) -> str:
    """Adds these trees to the shares (right noise-free paths, right noisy ones, mixed questions) and spells them."""
    for tree in trees:
        right: dict[bool, list[float]] = {True: [], False: []}
        for i in tree.leaves():
            right[tree.paths[i].noise_free].append(tree.paths[i].prm_score or 0.0)
        for name, found in (("noise-free", right[True]), ("noisy", right[False])):
            shares[name] += [fmean(found)] if found else []
        shares["mixed"].append(tree.mixed)
    paths = leaves / max(seconds, 1e-9)
    told = ", ".join(f"{name} {100 * fmean(values):.0f}" for name, values in shares.items() if values)
    return f"{paths:.0f} paths/s, {told} %"


def pieces(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of ``size`` items each; the last may be shorter."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


# --- reporting ------------------------------------------------------------------------------------------------------


def report(folder: Path, options: CollectOptions) -> None:
    """Print what the folder holds now, and warn in words of what cannot be learned from."""
    parts = [metadata for _, metadata in _readable(folder, options.skip_bad_files)]
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
    told = Counter({name: sum(part.get(name, 0) for part in parts) for name in COUNTED})
    table.add_row(
        "answers cut off at --max_new_tokens", f"{told['truncated_answers'] / max(1, told['num_answers']):.3f}"
    )
    if options.until_mixed:
        table.add_row(
            "paths that are in such questions", f"{told['leaves_in_mixed_questions'] / told['num_leaves']:.3f}"
        )
    console = screen.console()
    console.print()
    console.print(table)
    if options.until_mixed:
        asked = sum(sizes) * parts[0]["settings"]["num_paths"]
        console.print(
            f"until_mixed: {told['stopped_early']:,} questions stopped early, {told['went_on']:,} went on: "
            f"{told['num_leaves']:,} paths grown instead of {asked:,}",
            soft_wrap=True,
        )
    _warn([sum(column) for column in zip(*(part["score_histogram"] for part in parts), strict=True)])


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
    if options.split == "train":
        return shards.command("train", data_dir=options.output_dir)
    newest = max(Path("checkpoints").glob("qwen_prm_*/best"), default=BUILTIN)  # named by time
    return shards.command("evaluate", checkpoint=str(newest), data_dir=options.output_dir)
