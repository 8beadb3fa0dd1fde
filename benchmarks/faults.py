"""Rows A1, A2, A4, A5 and B1 of the torture: what is left when training and collection are killed, stopped or refused.

    python benchmarks/torture.py --rows A1,A2,A4,A5,B1

The commands are the real ones, each in a process of its own, forked from one that has torch imported already. `Points`
stands between them and the disk: at every write, fsync, rename and link below a folder it may end the process with
SIGKILL, or refuse as a disk does. The model is a real Qwen3 of one layer, with its tokenizer.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path as File
from random import Random
from typing import Any, TypeVar

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from latent_prm import files, shards
from latent_prm.checkpoint import load_state, verify_checkpoint
from latent_prm.tree import Answer, Path, ReasoningTree

T = TypeVar("T")
ROOT = File(__file__).parent.parent
PRELOAD = ["latent_prm.__main__", "latent_prm.trainer", "latent_prm.collector", "tyro._backends._tyro_backend"]
PRELOAD += ["transformers.models.qwen3.modeling_qwen3", "torch.utils.serialization"]
FOUR_STEPS: dict[str, Any] = {"batch_size": 16, "num_epochs": 2, "val_size": 0, "logging_steps": 100}
"""Two to an epoch. It learns, so the second epoch's is the best; nothing is logged while a checkpoint is written."""
KEPT = ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_state.json", "metrics.jsonl")
"""Of a checkpoint: what must be the same, bit for bit. Chance follows from the seed and the step in its state."""
LONGEST = 120.0
"""Seconds after which a process is taken to hang."""
COMMITTED = 30.0
"""Seconds from SIGTERM to a committed checkpoint, at the most."""
REFUSALS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
LASTING = ("ENOSPC", "EACCES")
"""A disk stays full and a folder forbidden; an I/O error comes once."""
NAMELESS = "a nameless file"
"""The name of one without a name, which the system numbers."""
POLLING = threading.Lock()
"""Starting a process asks all others whether they have ended; of two that ask at once, one is told exit code 255."""
SMALL_DISK = 'mount -t tmpfs -o size=8m none "$0" && exec "$@"'


# --- between a process and its disk -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What befalls a process."""

    at: int
    """At the so-manieth of its points, the first being 1."""
    what: str = "kill"
    """Or one of `REFUSALS`, or "full": the disk is filled up with a file of its own, and refuses by itself; or "stay":
    it stops where it first writes what has a name, until it is sent SIGCONT."""
    after: str = ""
    """Counted from the point on whose name ends so; "": from the start."""


class Points:
    """Every write, fsync, rename and link of this process below ``root``: counted, noted in a file, one struck."""

    def __init__(self, root: File, notes: File, fault: Fault | None) -> None:
        self.root, self.fault, self.count, self.begun = root, fault, 0, fault is not None and not fault.after
        self.notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def install(self) -> None:
        """For the rest of this process's life."""
        points = self

        class Watched(io.FileIO):
            def write(self, data: Any, /) -> int:
                half = partial(super().write, memoryview(data)[: len(data) // 2])
                points.meet("write", File(str(self.name)), half=half)
                return super().write(data)

        io.FileIO = Watched  # type: ignore[misc]  # what `files` writes through
        for kind in ("rename", "replace", "link"):
            watching = self._watched(kind, getattr(os, kind))
            setattr(os, kind, watching)
            if kept := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10's pathlib has them of its own
                setattr(kept, kind, staticmethod(watching))
        fsync = os.fsync

        def watched(number: int) -> None:
            points.meet("fsync", File(os.readlink(f"/proc/self/fd/{number}")))
            fsync(number)

        os.fsync = watched

    def _watched(self, kind: str, does: Callable[..., None]) -> Callable[..., None]:
        def watched(source: Any, target: Any, **more: Any) -> None:
            self.meet(kind, File(target), str(source), None, str(target))
            does(source, target, **more)

        return watched

    def meet(self, kind: str, path: File, *named: str | None, half: Callable[[], Any] = lambda: None) -> None:
        """A point is come to: what is about to be done to ``path``. ``half`` does the half of it.

        ``named`` is what the system says of the files when it refuses this: nothing of a write and an fsync.
        """
        if self.root not in path.parents and path != self.root:
            return
        said = re.sub(r"\.tmp-\d+-[0-9a-f]{8}", ".tmp", f"{kind} {path.relative_to(self.root)}")
        said = re.sub(r"#\d+ \(deleted\)", NAMELESS, said)
        os.write(self.notes, f"{said}\n".encode())
        fault = self.fault
        if fault is None:
            return
        self.count += self.begun
        self.begun = self.begun or (bool(fault.after) and said.endswith(fault.after))
        if self.count == fault.at and fault.what == "kill":
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == fault.at and fault.what == "full":
            fill(self.root)
        if fault.what == "stay" and NAMELESS not in said:
            self.fault = None
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault.what in REFUSALS and (self.count == fault.at or (fault.what in LASTING and self.count > fault.at)):
            code = REFUSALS[fault.what]
            raise OSError(code, os.strerror(code), *named)


def fill(root: File) -> None:
    """Leave no block of this disk free."""
    with open(root / "ballast", "ab", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def process(typed: list[str], root: File, notes: File, said: File, fault: Fault | None) -> None:
    """A command from its beginning to its end, whatever that is."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is one for several processes, which a killed one would leave behind
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # drawing the curve takes longer than all else
    Points(root, notes, fault).install()
    from latent_prm.__main__ import main

    sys.exit(main(typed))


class Going:
    """A command under way."""

    def __init__(self, typed: list[str], root: File, beside: File, fault: Fault | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.root, self.notes, self.said = root, beside / f"{root.name}.points", beside / f"{root.name}.said"
        for old in (self.notes, self.said):
            old.unlink(missing_ok=True)
        self.process = context.Process(target=process, args=(typed, root, self.notes, self.said, fault))
        with POLLING:
            self.process.start()

    @property
    def points(self) -> list[str]:
        """Those it has come to."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    @property
    def alive(self) -> bool:
        """Whether it still goes."""
        with POLLING:
            return self.process.is_alive()

    def reach(self, points: int) -> None:
        """Wait until it has come to so many, or has ended."""
        while self.alive and len(self.points) < points:
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if self.alive and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> Ended:
        """Wait for it."""
        hung = not wait([self.process.sentinel], LONGEST)
        if hung:
            self.process.kill()
        with POLLING:
            self.process.join()
            code = self.process.exitcode
            self.process.close()
        words = self.said.read_text(errors="replace") if self.said.exists() else ""
        assert not hung, f"it hung for {LONGEST:.0f} s. It said:\n{words}"
        assert code is not None
        return Ended(code, words, self.points)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; -9: killed."""
    said: str
    points: list[str]

    def well(self) -> Ended:
        """Itself, if it ended as it should."""
        assert self.code == 0, f"exit code {self.code}: {self.said}"
        return self


# --- the stages, small ------------------------------------------------------------------------------------------------


class Lab:
    """Where a model and data for it lie, and the stages run, each ``name`` a folder; what they say goes ``beside``."""

    def __init__(self, folder: File, beside: File | None = None) -> None:
        self.folder, self.model, self.data = folder, folder / "model", folder / "data"
        self.beside = beside or folder
        if not self.model.exists():
            make_model(self.model)
            shards.write_shard(make_trees(), self.data, "trees", {})

    def begin(self, name: str, fault: Fault | None = None, **options: Any) -> Going:
        """Train, going on where a run of this name was cut off."""
        typed: dict[str, Any] = {"model_path": self.model, "data_dir": self.data, "output_dir": self.folder / name}
        typed |= {"resume": "auto", "num_epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 1}
        typed |= {"learning_rate": 0.01, "val_size": 0.2, "save_steps": 1, "logging_steps": 1}
        return self._begin("train", name, fault, {**typed, "mixed_precision": False, "report_to": "none", **options})

    def collect(self, name: str, fault: Fault | None = None, **options: Any) -> Going:
        """Collect, going on where a collection into this folder was cut off."""
        typed: dict[str, Any] = {"model_path": self.model, "task": "arithmetic", "output_dir": self.folder / name}
        typed |= {"num_paths": 2, "latent_steps": 2, "max_new_tokens": 2, "batch_size": 2, "shard_size": 2}
        return self._begin("collect", name, fault, {**typed, **options})

    def _begin(self, command: str, name: str, fault: Fault | None, options: dict[str, Any]) -> Going:
        words = [
            (f"--{'' if value else 'no-'}{key}",) if isinstance(value, bool) else (f"--{key}", str(value))
            for key, value in {"device": "cpu", **options}.items()
        ]
        return Going([command, *chain.from_iterable(words)], self.folder / name, self.beside, fault)

    def marks(self, name: str, of: str = "epoch_*,best,final") -> dict[str, str]:
        """The sha256 of everything in a run that must be the same, bit for bit."""
        run = self.folder / name
        folders = [path for pattern in of.split(",") for path in run.glob(pattern)]
        return sums(run, [*(path / kept for path in folders for kept in KEPT), run / "metrics.jsonl"])

    def assert_same(self, name: str, whole: str) -> None:
        """Raises AssertionError, naming what differs, unless the two runs are."""
        one, other = self.marks(name), self.marks(whole)
        differ = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        assert not differ, f"not as in the run that never stopped: {', '.join(differ)}"
        assert any(key.startswith("final/") for key in one)
        torn = [path.name for path in (self.folder / name).glob(".*") if path.name != ".lock"]
        assert not torn, f"left behind: {', '.join(torn)}"


def make_model(folder: File) -> None:
    """Save a Qwen3 of one layer with random weights, and a tokenizer that knows a few words."""
    words = ["<pad>", "<eos>", "<unk>", "What", "is", "\\boxed{", *"?.,=+-*}", *map(str, range(20))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(r"\\boxed\{|\d+|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = split  # type: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special).save_pretrained(folder)
    shape = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "max_position_embeddings": 512}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**shape, **heads, **ends, initializer_range=0.3)).save_pretrained(folder)


def make_trees() -> list[ReasoningTree]:
    """Nine questions of 1 to 5 answered paths, 29 in all: no size of a step divides them."""
    chance, noise = Random(0), torch.Generator().manual_seed(0)
    trees = []
    for number, count in enumerate((4, 1, 3, 5, 2, 4, 1, 5, 4)):
        paths = []
        for _ in range(count):
            answer = Answer(text="\\boxed{5}", value="5", correct=chance.random() < 0.5)
            latents = torch.randn(chance.randint(1, 4), 16, generator=noise)
            paths.append(Path(latents=latents, tip=torch.randn(16, generator=noise), parent=None, answers=[answer]))
        asked = f"What is {number} + {number} ?"
        tree = ReasoningTree(question_id=f"q{number}", question=asked, gold="5", task="arithmetic", paths=paths)
        tree.back_up()
        trees.append(tree)
    return trees


def sums(root: File, paths: Iterable[File]) -> dict[str, str]:
    """The sha256 of these files, by their paths below ``root``."""
    found = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def verified(run: File) -> dict[str, int]:
    """The checkpoints of a run that are whole, and the step of each."""
    found = {}
    for path in filter(File.is_dir, run.glob("[!.]*")):
        try:
            verify_checkpoint(path)
            found[path.name] = load_state(path).step
        except files.BadFile:
            continue
    return found


def logged(run: File) -> dict[str, Any]:
    """The last whole line of metrics.jsonl."""
    path = run / "metrics.jsonl"
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            return json.loads(line)
        except ValueError:  # cut short
            continue
    return {"step": 0, "epoch": 0}


def mid_save(run: File) -> bool:
    """Whether a folder is being written, or was when the process was killed."""
    return bool(files.cut_off(run)) or any(run.glob(".*.old"))


def shown(items: Iterable[T], name: str, total: int | None = None) -> tqdm[T]:
    """The items, with a bar that goes away when they are through."""
    return tqdm(items, desc=name, total=total, leave=False)


def each(name: str, test: Callable[[T], None], cases: list[T]) -> None:
    """Run a test on every case, some at a time. Raises AssertionError: how many failed, and why the first did."""
    missed: list[tuple[T, AssertionError]] = []

    def one(case: T) -> None:
        try:
            test(case)
        except AssertionError as error:
            missed.append((case, error))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(shown(pool.map(one, cases), name, len(cases)))
    failed = "; ".join(str(case) for case, _ in missed[:20])
    assert not missed, f"{len(missed)} of {len(cases)} failed ({failed}). The first: {missed[0][1]}"


# --- the rows ---------------------------------------------------------------------------------------------------------


def killed(folder: File, seed: int, count: int = 30) -> str:
    """A1: kill -9 at random moments from outside and at random points from inside; gone on with to the end.

    A run that comes to its end before all kills have come is compared, and killing goes on with another.
    """
    lab, chance = Lab(folder), Random(f"A1 {seed}")
    options: dict[str, Any] = {"num_epochs": 2 + count // 2, "save_steps": 2, "save_total_limit": 3}
    points = len(lab.begin("whole", **options).end().well().points)
    quota = {"inside a save": min(5, -(-count // 4)), "at an epoch's end": min(3, -(-count // 8))}
    found, runs = dict.fromkeys(quota, 0), [list[int]()]
    with shown(range(count), "A1") as bar:
        while sum(map(len, runs)) < count or any(found[name] < quota[name] for name in quota):
            name, epochs = f"cut-{len(runs)}", runs[-1]
            assert len(runs) <= 10 + count, f"after {sum(map(len, runs))} kills only {found}"
            point, outside = chance.randint(0, max(2, int(1.5 * points / count))), chance.random() < 0.5
            going = lab.begin(name, None if outside or not point else Fault(point), **options)
            if outside or not point:
                going.reach(point)
                time.sleep(chance.uniform(0, 0.1 if point else 1.0))
                going.send(signal.SIGKILL)
            ended = going.end()
            if ended.code == 0:  # it was quicker
                lab.assert_same(name, "whole")
                runs.append([])
                continue
            assert ended.code == -signal.SIGKILL, f"exit code {ended.code} after {len(epochs)} kills: {ended.said}"
            found["inside a save"] += mid_save(folder / name)
            found["at an epoch's end"] += "train_loss" in logged(folder / name)
            epochs.append(logged(folder / name)["epoch"])
            bar.update()
    lab.begin(name := f"cut-{len(runs)}", **options).end().well()
    lab.assert_same(name, "whole")
    most_in_one = max(epochs.count(epoch) for epochs in runs for epoch in epochs)
    assert most_in_one > 1 or count < 5, "no two kills in one epoch"
    told = ", ".join(f"{number} {name}" for name, number in found.items())
    return (
        f"{sum(map(len, runs))} kills ({told}, up to {most_in_one} in one epoch) of {len(runs)} runs of "
        f"{load_state(folder / name / 'final').step} steps: weights, optimizer, scheduler, seed and step, loss log: "
        f"{len(lab.marks(name))} files of each identical"
    )


def struck(folder: File, seed: int, count: int | None = None) -> str:
    """A2: killed and refused at every point of a commit, of a checkpoint and of shards; ``count``: at so many."""
    lab, tidy = Lab(folder), {**FOUR_STEPS, "save_total_limit": 1}
    lab.begin("whole", **tidy).end().well()
    lab.begin("before", Fault(1, after="checkpoint-3"), **tidy).end()
    shutil.copytree(folder / "before", folder / "clean")
    points = lab.begin("clean", **tidy).end().well().points
    lab.assert_same("clean", "whole")
    assert {"rename checkpoint-4", "rename final", "rename .best.old", "rename best"} <= set(points), points

    lab.collect("shards-before", max_samples=2).end().well()
    shutil.copytree(folder / "shards-before", folder / "shards-whole")
    pairs = lab.collect("shards-whole", max_samples=4).end().well().points

    def train(case: tuple[int, str]) -> None:
        at, what = case
        name = f"train-{at}-{what}"
        shutil.copytree(folder / "before", folder / name)
        ended = lab.begin(name, Fault(at, what), **tidy).end()
        _as_struck(ended, points, at, what, folder / name)
        whole = verified(folder / name)
        assert whole, "no checkpoint is whole"
        assert max(whole.values()) >= 3 and "epoch_1" in whole, f"only {whole} are whole"
        lab.begin(name, **tidy).end().well()
        lab.assert_same(name, "whole")
        shutil.rmtree(folder / name)

    def collect(case: tuple[int, str]) -> None:
        at, what = case
        name = f"shards-{at}-{what}"
        shutil.copytree(folder / "shards-before", folder / name)
        before = sums(folder / name, (folder / name).glob("arithmetic*"))
        _as_struck(lab.collect(name, Fault(at, what), max_samples=4).end(), pairs, at, what, folder / name)
        assert before.items() <= sums(folder / name, (folder / name).glob("arithmetic*")).items(), "a shard was touched"
        held = [tree.question_id for path in shards.scan(folder / name)[0] for tree in shards.read_shard(path)]
        assert len(held) in (2, 4) and len(set(held)) == len(held), f"it holds {held}"
        lab.collect(name, max_samples=4).end().well()
        one, other = (sums(folder / each, (folder / each).glob("*.pt")) for each in (name, "shards-whole"))
        assert one == other, f"shards differ: {one} {other}"
        assert not files.cut_off(folder / name)
        shutil.rmtree(folder / name)

    whats = ["kill", *REFUSALS]
    trained, collected = (
        [(at, what) for at in _spread(len(all_), count) for what in whats] for all_ in (points, pairs)
    )
    each("A2 checkpoints", train, trained)
    each("A2 shards", collect, collected)
    return (
        f"at {len(trained) // len(whats)} of the {len(points)} points of a checkpoint's commit, links and exchanges "
        f"and {len(collected) // len(whats)} of the {len(pairs)} of a shard's: killed, ENOSPC and EACCES from there "
        f"on, EIO once; {len(trained) + len(collected)} resumed, identical"
    )


def _spread(total: int, count: int | None) -> list[int]:
    """So many of 1 … total, evenly, first and last among them."""
    if count is None or count >= total:
        return list(range(1, total + 1))
    return sorted({1 + round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def _as_struck(ended: Ended, points: list[str], at: int, what: str, root: File) -> None:
    """Raises AssertionError unless it came to the points of the clean pass, and ended there as it should."""
    assert ended.points[:at] == points[:at], f"struck at {ended.points[at - 1 : at]}, not {points[at - 1]}"
    if what == "kill":
        assert ended.code == -signal.SIGKILL, f"exit code {ended.code}, not killed: {ended.said}"
        return
    if what not in LASTING and points[at - 1].startswith("link ") and ended.code == 0:
        return  # what cannot be linked is copied
    where = f"{points[at - 1]}: exit code {ended.code}: {ended.said}"
    assert ended.code == 1 and "Traceback" not in ended.said, where
    error = ended.said.partition("✗ ERROR: ")[2]
    assert str(root) in error and os.strerror(REFUSALS[what]) in error and ".tmp-" not in error, where


def accumulated(folder: File, seed: int, count: int = 20) -> str:
    """A4: cut off after each of the first steps, at each accumulation."""
    lab, done = Lab(folder), []
    with shown(range(3 * count), "A4") as bar:
        for size, batch, epochs in ((1, 3, 2 + count // 10), (4, 1, 2 + count // 10), (7, 1, 2 + count // 5)):
            whole, cut = f"whole-{size}", f"cut-{size}"
            options: dict[str, Any] = {
                "gradient_accumulation_steps": size,
                "batch_size": batch,
                "num_epochs": epochs,
                "seed": seed,
            }
            lab.begin(whole, **options).end().well()
            steps = load_state(folder / whole / "final").step
            assert steps > count, f"there are only {steps} steps"
            for step in range(1, count + 1):
                ended = lab.begin(cut, Fault(1, after=f"checkpoint-{step}"), **options).end()
                assert ended.code == -signal.SIGKILL, f"step {step}: exit code {ended.code}: {ended.said}"
                assert step == 1 or f"checkpoint-{step - 1}: step {step - 1}" in ended.said, ended.said
                name = f"checkpoint-{step}"
                assert _of(lab, cut, name) == _of(lab, whole, name), f"accumulation {size}: {name} differs"
                bar.update()
            lab.begin(cut, **options).end().well()
            lab.assert_same(cut, whole)
            done.append(f"{size} ({steps} steps)")
    return (
        f"accumulation {', '.join(done)}: resumed from each of the first {count} steps, identical there and at the end"
    )


def _of(lab: Lab, run: str, checkpoint: str) -> dict[str, str]:
    return {name: found for name, found in lab.marks(run, checkpoint).items() if "/" in name}


def stopped(folder: File, seed: int, count: int = 10) -> str:
    """A5: SIGTERM at random moments of the steps, every other time a second one while it saves."""
    lab, chance = Lab(folder), Random(f"A5 {seed}")
    options: dict[str, Any] = {"num_epochs": 3 + 2 * count, "save_steps": 7}
    points = len(lab.begin("whole", **options).end().well().points)
    run, slowest, twice = folder / "cut", 0.0, 0
    for number in shown(range(count), "A5"):
        going = lab.begin("cut", **options)
        going.reach(chance.randint(10, max(11, points // (count + 3))))
        time.sleep(chance.uniform(0, 0.05))
        assert going.alive, f"it was through after {number} signals: {going.end().said}"
        sent = time.monotonic()
        going.send(signal.SIGTERM)
        begun = len(going.points)
        while number % 2 and going.alive and not (mid_save(run) and len(going.points) > begun + 5):
            time.sleep(0.001)
        if number % 2 and going.alive:
            twice += 1
            going.send(signal.SIGTERM)
        ended = going.end()
        slowest = max(slowest, time.monotonic() - sent)
        assert ended.code == 143, f"exit code {ended.code}: {ended.said}"
        kept, last = max(verified(run).values()), logged(run)["step"]
        assert kept == last, f"step {last} was done, but only {kept} kept"
        assert not mid_save(run), "something half written is left"
    assert slowest < COMMITTED, f"one took {slowest:.0f} s to end"
    assert twice >= count // 2, f"only {twice} second signals came during a save"
    lab.begin("cut", **options).end().well()
    lab.assert_same("cut", "whole")
    return (
        f"{count} times SIGTERM, {twice} times a second one inside the save: exit code 143, all steps committed within "
        f"{slowest:.1f} s; resumed, identical"
    )


def full(folder: File, seed: int, count: int = 25) -> str:
    """B1: on a small disk of its own where a process may mount one, else with injected refusals."""
    disk = folder / "disk"
    disk.mkdir()
    small = ["unshare", "-Urm", "sh", "-c", SMALL_DISK, str(disk)]
    try:
        able = subprocess.run([*small, "true"], capture_output=True).returncode == 0
    except OSError:
        able = False
    if not able:
        return fill_up(disk, seed, count, "ENOSPC")
    here, env = [sys.executable, __file__, str(disk), str(seed), str(count)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*small, *here], stdout=subprocess.PIPE, text=True, env=env)  # its bar is seen
    assert done.returncode == 0, done.stdout or f"exit code {done.returncode}"
    return done.stdout


def fill_up(disk: File, seed: int, count: int, what: str) -> str:
    """Have the disk full at so many points of a run, its writes first, and go on each time when there is room again."""
    lab = Lab(disk, beside=disk.parent)
    lab.begin("whole", **FOUR_STEPS).end().well()
    lab.begin("before", Fault(1, after="checkpoint-3"), **FOUR_STEPS).end()
    shutil.copytree(disk / "before", disk / "clean")
    points = lab.begin("clean", **FOUR_STEPS).end().well().points
    writes = [number for number, point in enumerate(points, 1) if point.startswith("write ")]
    others = sorted(set(range(1, writes[-1])) - set(writes))  # nothing needs room after the last write
    left = [writes[i - 1] for i in _spread(len(writes), count)]
    left += Random(f"B1 {seed}").sample(others, len(others))
    run, refused, through = disk / "run", 0, 0
    with shown(range(count), "B1") as bar:
        while refused < count:
            assert left, f"only at {refused} of the {len(points)} points of this run a full disk stops it"
            at = left.pop(0)
            shutil.copytree(disk / "before", run)
            before = {name: sums(run, (run / name).iterdir()) for name in ("checkpoint-3", "epoch_1")}
            ended = lab.begin("run", Fault(at, what), **FOUR_STEPS).end()
            (run / "ballast").unlink(missing_ok=True)
            where = f"{points[at - 1]}: exit code {ended.code}: {ended.said}"
            assert all(sums(run, (run / name).iterdir()) == before[name] for name in before), f"{where}: changed"
            if ended.code == 0:  # what it removed later was room enough
                through += 1
            else:
                _told(ended.said, run, where)
                refused += 1
                bar.update()
                lab.begin("run", **FOUR_STEPS).end().well()
            lab.assert_same("run", "whole")
            shutil.rmtree(run)
    how = "a real disk of 8 MiB filled up" if what == "full" else "ENOSPC injected: no disk could be mounted"
    return (
        f"full at {refused} points ({how}): earlier checkpoints' hashes unchanged; path, needed and free named; "
        f"resumed, identical; at {through} more what the run itself removed was room enough"
    )


def _told(said: str, run: File, where: str) -> None:
    """Raises AssertionError unless the last words name the path, what is needed and what is free."""
    error = said.partition("✗ ERROR: ")[2]
    assert error and "Traceback" not in said and str(run) in error and ".tmp-" not in error, where
    assert re.search(r"needs [\d.,]+ .*[\d.,]+ (\w+ )?are free", error), where


ROWS: dict[str, Callable[[File, int], str]] = {
    "A1": killed,
    "A2": struck,
    "A4": accumulated,
    "A5": stopped,
    "B1": full,
}

if __name__ == "__main__":  # inside the small disk's walls
    try:
        print(fill_up(File(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "full"))
    except AssertionError as missed:
        print(missed)
        sys.exit(1)
