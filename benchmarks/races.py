"""Rows A3 and A6 of the torture: collections that are killed and go on, and two processes that want one folder.

python benchmarks/torture.py --rows A3,A6
"""

from __future__ import annotations

import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from latent_prm import seals, shards
from latent_prm.checkpoint import verify_checkpoint
from latent_prm.tasks import load_task

faults = import_module(f"{__package__}.faults" if __package__ else "faults")

QUESTIONS, SHARD = 24, 3
"""Of a collection, and of each of its shards."""
KILLS = 5
"""Of one collection, until it may come to its end."""
AT_ONCE = 30.0
"""Seconds that the second of two may take to find out, start and imports included."""
TIMES = dict.fromkeys(("created", "seconds"))
"""What two collections of the same questions may differ in."""


def collected(folder: Path, seed: int, *, count: int = 30) -> str:
    """A3: collections killed at random moments from outside and at random points from inside, and gone on with."""
    lab, chance = faults.Lab(folder), Random(f"A3 {seed}")
    options = {"max_samples": QUESTIONS, "shard_size": SHARD}
    lab.collect("whole", **options).end().well()
    whole, said = _shards(folder / "whole"), _said(folder / "whole")
    assert len(whole) == QUESTIONS // SHARD
    found = Counter[str]()
    quota = {"within a write": count // 6, "between a .pt and its metadata": count // 6}
    kills = rounds = 0
    with faults.shown(range(count), "A3") as bar:
        while kills < count or any(found[kind] < number for kind, number in quota.items()):
            assert rounds <= count, f"after {kills} kills only {dict(found)}"
            rounds += 1
            name, before, inside = f"cut-{rounds}", {}, rounds
            for _ in range(KILLS):
                inside += 1
                point = chance.randint(1, 20)
                going = lab.collect(name, faults.Fault(point) if inside % 2 else None, **options)
                if not inside % 2:
                    going.reach(point)
                    time.sleep(chance.uniform(0, 0.05))
                    going.send(signal.SIGKILL)
                ended = going.end()
                if ended.code == 0:  # it was quicker
                    break
                assert ended.code == -signal.SIGKILL, f"exit code {ended.code}: {ended.said}"
                kills += 1
                found["within a write"] += bool(inside % 2) and ended.points[-1].startswith("write")
                found["between a .pt and its metadata"] += _unmarked(folder / name, ended.points)
                before = _check_untouched(folder / name, before, whole)
                bar.update()
            lab.collect(name, **options).end().well()
            _check_untouched(folder / name, before, whole)
            _check_same(folder / name, whole, said)
    told = ", ".join(f"{number} {kind}" for kind, number in found.items())
    return (
        f"{kills} kills ({told}) of {rounds} collections: the same {QUESTIONS} questions, none twice; finished shards "
        f"untouched; {len(whole)} shards each, identical to those of one that never stopped"
    )


def _unmarked(folder: Path, points: list[str]) -> bool:
    """Whether a process that came to these points left a ``.pt`` without its metadata."""
    return any(f"replace {path.name}" in points for path in shards.scan(folder)[1])


def _shards(folder: Path) -> dict[str, str]:
    """The sha256 of every ``.pt`` that is finished."""
    return faults.sums(folder, shards.scan(folder)[0])


def _said(folder: Path) -> list[dict[str, Any]]:
    return [seals.load_sealed(path) | TIMES for path in sorted(folder.glob("*_metadata.json"))]


def _check_untouched(folder: Path, before: dict[str, str], whole: dict[str, str]) -> dict[str, str]:
    """The finished shards with their metadata now. Raises AssertionError when one of ``before`` is another."""
    now = faults.sums(folder, folder.glob("*_metadata.json")) | _shards(folder)
    assert before.items() <= now.items(), "a finished shard was touched"
    assert _shards(folder).items() <= whole.items(), "a finished shard is not that of a collection that never stopped"
    for path in shards.scan(folder)[0]:
        shards.read_shard(path)
    return now


def _check_same(folder: Path, whole: dict[str, str], said: list[dict[str, Any]]) -> None:
    wanted = [question.id for question in load_task("arithmetic").questions("train", 42, QUESTIONS)]
    assert [tree.question_id for tree in shards.load_trees(folder)] == wanted, "questions were lost, or came twice"
    assert _shards(folder) == whole and _said(folder) == said, "it is not the collection that never stopped"
    left = [path.name for path in folder.iterdir() if not path.name.startswith("arithmetic") and path.name != ".lock"]
    assert not left and not shards.scan(folder)[1], f"left behind: {left}"


def raced(folder: Path, seed: int, *, count: int = 20) -> str:
    """A6: two processes that begin at once on one run folder, and two on the same shard of one data folder."""
    labs, chance = [faults.Lab(folder / "lab", folder / one) for one in ("one", "two")], Random(f"A6 {seed}")
    for lab in labs:
        lab.beside.mkdir(exist_ok=True)
    asked = [question.id for question in load_task("arithmetic").questions("train", 42, QUESTIONS)]
    train = {"num_epochs": 4, "save_steps": 100, "logging_steps": 100}
    collect = {"max_samples": QUESTIONS, "shard_size": SHARD}
    labs[0].collect("first", max_samples=SHARD).end().well()  # so that what all are forked from stands ready
    slowest, won = 0.0, Counter[str]()
    for number in faults.shown(range(count), "A6"):
        run, data = folder / "lab" / f"run-{number}", folder / "lab" / f"data-{number}"
        own = collect | ({"shard": "1/2"} if number % 2 else {})
        for who, place, begin, options in (("training", run, "begin", train), ("collector", data, "collect", own)):
            _stale(place, number)
            first, seconds = _race([partial(getattr(lab, begin), place.name, **options) for lab in labs], who, chance)
            won[f"{who} {first}"] += 1
            slowest = max(slowest, seconds)
        for name in ("best", "final"):
            verify_checkpoint(run / name)
        held = [tree.question_id for tree in shards.load_trees(data)]
        assert held == (asked[::2] if "shard" in own else asked), "questions were lost, or came twice"
    return (
        f"{count} races for a run folder and {count} for a shard of a data folder: one winner each ("
        + ", ".join(f"{name}: {number}" for name, number in sorted(won.items()))
        + f"), the other named its pid and host, {slowest:.1f} s after its start at the latest"
    )


def _stale(folder: Path, number: int) -> None:
    """In every other race the lock is that of a process that died long ago: it holds nothing, and is not named."""
    if number % 4 < 2:
        folder.mkdir(parents=True)
        for name in (".lock", ".lock-1of2"):
            (folder / name).write_text("4194305 on another-host\n")


def _race(begin: list[Callable[[], Any]], who: str, chance: Random) -> tuple[str, float]:
    """Which of the two won, and how long the other took to say so. Raises AssertionError unless just one did.

    Who won stays at its first write until the other is through: else it might be, before the other begins.
    """
    began = time.monotonic()
    stay = faults.Fault(1, "stay")
    going = [start(fault=stay) for start in (begin if chance.random() < 0.5 else begin[::-1])]
    pids = [each.process.pid for each in going]
    while all(each.alive for each in going) and time.monotonic() < began + AT_ONCE:
        time.sleep(0.002)
    seconds = time.monotonic() - began
    while any(each.alive for each in going):
        for each in going:
            each.send(signal.SIGCONT)
        time.sleep(0.01)
    ended = [each.end() for each in going]
    codes = [each.code for each in ended]
    assert sorted(codes) == [0, 1], f"exit codes {codes}: {ended[0].said}\n{ended[1].said}"
    winner, loser = codes.index(0), codes.index(1)
    named = rf"Another {who} \(pid {pids[winner]} on {re.escape(socket.gethostname())}\) is writing into "
    assert re.search(named, ended[loser].said), f"{pids[winner]} won, but the other said: {ended[loser].said}"
    assert seconds <= AT_ONCE, f"the second one took {seconds:.1f} s"
    return ("by the first", "by the second")[winner], seconds


ROWS: dict[str, Callable[[Path, int], str]] = {"A3": collected, "A6": raced}
"""By its name in the table: an empty folder and a seed → what came of it, in words; raises AssertionError."""
