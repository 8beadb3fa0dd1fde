"""Rows C1 and C2 of the torture: files that are damaged, and files that would run code. C3 to C5 are in oddities.py.

python benchmarks/torture.py --rows C1,C2,C3,C4,C5
"""

from __future__ import annotations

import io
import operator
import os
import pickle
import random
import re
import runpy
import shutil
import subprocess
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from latent_prm import foreign, shards
from latent_prm.checkpoint import load_progress, load_weights, verify_checkpoint
from latent_prm.model import QwenLatentPRM

trials = import_module(f"{__package__}.trials" if __package__ else "trials")

# --- C1: damage -----------------------------------------------------------------------------------------------------


def damage(folder: Path, seed: int, *, count: int = 2000) -> str:
    """C1: flipped bits, cut-off and random files, and files in each other's place: all are refused by name."""
    found = trials.try_all(damaged, folder, seed, count)
    said = ", ".join(trials.told(number, kind) for kind, number in found.outcomes.items())
    return f"{said}; slowest {found.slowest:.3f} s"


def damaged(folder: Path, seed: int, flips: int) -> Iterator[trials.Case]:
    """``flips``, a quarter as many cuts and a tenth as many random files over all files; and all swaps."""
    draw, data, run = random.Random(seed), folder / "data", folder / "run"
    one = trials.shard(data, "one", trials.grown("a", "7", "8"), trials.grown("b", "7", seed=1))
    two = trials.shard(data, "two", trials.grown("c", "8", "7", seed=2), trials.grown("d", "8", seed=3))
    first, second = trials.checkpoint(run / "checkpoint-1"), trials.checkpoint(run / "checkpoint-2", 1)
    ours = [one, shards.metadata_path(one), *sorted(first.iterdir())]
    pairs = [(one, two), (shards.metadata_path(one), shards.metadata_path(two))]
    pairs += [(path, second / path.name) for path in sorted(first.iterdir())]
    whole = {path: path.read_bytes() for pair in pairs for path in pair}

    def read(path: Path, *words: str) -> None:
        if path.parent == data:
            trials.refused(lambda: shards.load_trees(data), *words)
            trials.refused(lambda: shards.finished_questions(data), *words)
            return
        trials.refused(lambda: verify_checkpoint(path.parent), *words)
        if path.name != "optimizer.pt":  # which scoring does not read
            trials.refused(lambda: QwenLatentPRM.from_pretrained(path.parent), *words)

    kinds = ["flipped bits"] * flips + ["truncations"] * (flips // 4) + ["random files"] * (flips // 10)
    for number, kind in enumerate(kinds):
        path = ours[number % len(ours)]
        content = _DAMAGE[kind](whole[path], draw)
        if content != whole[path]:
            yield trials.Case(f"{kind}, {path}", partial(_damage_one, path, content, whole[path], kind, read, number))
    for number, (path, other) in enumerate(pairs, len(kinds)):
        if whole[path] != whole[other]:
            yield trials.Case(f"swapped, {path}", partial(_swap, path, other, whole, read, number))
    yield from _nested_damage(folder / "nested", draw, flips // 10)


def _damage_one(path: Path, content: bytes, before: bytes, kind: str, read: Callable[..., None], number: int) -> str:
    _put(path, content, number)
    try:
        read(path, re.escape(str(path)))
    finally:
        _put(path, before, -number - 1)
    return kind


def _swap(path: Path, other: Path, whole: dict[Path, bytes], read: Callable[..., None], number: int) -> str:
    _put(path, whole[other], number)
    _put(other, whole[path], number)
    try:
        for each in (path, other):
            folder = re.escape(str(each.parent))
            if each.parent.name != "data" or each == path:  # a folder of shards is read from its first on
                read(each, folder)
    finally:
        for each in (path, other):
            _put(each, whole[each], -number - 1)
    return "swapped files"


def _put(path: Path, content: bytes, number: int) -> None:
    """Write in place, at a time of its own: within a tick of the clock, a process takes a file for unchanged."""
    path.write_bytes(content)
    os.utime(path, ns=(0, 10**18 + number))


def _flip(content: bytes, draw: random.Random) -> bytes:
    """Half of the flips of a large file are in the first and last two kilobytes: zip and pickle, not numbers."""
    size = len(content)
    edge = draw.random() < 0.5 and size > 4096
    at = draw.choice([draw.randrange(2048), size - 1 - draw.randrange(2048)]) if edge else draw.randrange(size)
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice([0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(5))])]


def _noise(content: bytes, draw: random.Random) -> bytes:
    """As long as before, or not; some begin as a zip, a pickle or a JSON file does."""
    begin = draw.choice([b"", b"PK\x03\x04", b"\x80\x04", b"{"])
    return begin + draw.randbytes(draw.choice([len(content), draw.randrange(4096)]))


_DAMAGE = {"flipped bits": _flip, "truncations": _cut, "random files": _noise}


def _nested_damage(folder: Path, draw: random.Random, flips: int) -> Iterator[trials.Case]:
    """Another program's files have no digest: what zip's checksums let through must be read as if nothing had been."""
    path = trials.nested(folder, "batch", "3 + 4?")
    whole, before = path.read_bytes(), _content(path)
    for _ in range(flips):
        yield trials.Case(f"nested, {path}", partial(_nested_one, path, _flip(whole, draw), before))


def _nested_one(path: Path, content: bytes, before: str) -> str:
    path.write_bytes(content)
    try:
        found = _content(path)
    except ValueError as error:
        assert str(path) in str(error)
        return "flipped bits of nested files"
    assert found == before, "other numbers were read"
    return "flipped bits of nested files that change nothing"


def _content(path: Path) -> str:
    harvest = foreign.read([path])
    if harvest.bad or not harvest.trees:
        raise ValueError(f"{path}: {harvest.bad or harvest.left_out}")
    told = [
        (tree.question, tree.gold, [(p.prm_score, p.latents.tolist()) for p in tree.paths]) for tree in harvest.trees
    ]
    return repr(told)


# --- C2: malice -----------------------------------------------------------------------------------------------------


class Call:
    """Its pickle calls a function when it is loaded as code."""

    def __init__(self, function: Callable[..., Any], *given: Any, state: Any = None) -> None:
        self.made = (function, given) if state is None else (function, given, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def malice(folder: Path, seed: int, *, count: int | None = None) -> str:
    """C2: pickles that would run code, wherever a file is read: none runs."""
    canary = folder / "canary"
    found = trials.try_all(malicious, folder, canary, seed, count)
    assert not canary.exists(), "a payload ran"
    number = found.outcomes["refused"]
    assert count or number >= 20 * len(PLACES), f"there were only {number} files"
    return f"{number // len(PLACES)} malicious pickles in {len(PLACES)} places: {number:,} refused, none ran"


def malicious(folder: Path, canary: Path, seed: int, number: int | None) -> Iterator[trials.Case]:
    """Each payload in each place where a file is unpickled, vouched for by whoever made it."""
    folder.mkdir(parents=True, exist_ok=True)
    payloads = list(_payloads(folder, canary))
    random.Random(seed).shuffle(payloads)
    for name, content in payloads[:number]:
        for place, prepare in PLACES.items():
            yield trials.Case(f"{name} as {place}", partial(_malice_one, folder / "place", canary, content, prepare))


def _malice_one(folder: Path, canary: Path, content: bytes, prepare: Callable[..., Any]) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    path, read = prepare(folder, content)
    outcome = trials.refused(read, re.escape(str(path)))
    time.sleep(0.01)  # what would run beside us
    assert not canary.exists(), "a payload ran"
    return outcome


def _payloads(folder: Path, canary: Path) -> Iterator[tuple[str, bytes]]:
    """Files, by what is odd about them."""
    there, script, second = str(canary), folder / "evil.py", folder / "second.pt"
    script.write_text(f"open({there!r}, 'w')")
    torch.save(Call(open, there, "w"), second)
    touch, code = f"touch {there}", f"open({there!r}, 'w')"
    calls = {
        "open": Call(open, there, "w"),
        "os.system": Call(os.system, touch),
        "subprocess": Call(subprocess.Popen, ["touch", there]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "runpy": Call(runpy.run_path, str(script)),
        "torch.load": Call(partial(torch.load, **{"weights_only": False}), str(second)),
        "methodcaller": Call(operator.methodcaller("touch"), canary),
        "copyfile": Call(shutil.copyfile, str(script), there),
        "getattr": Call(list, Call(map, Call(getattr, Call(__import__, "os"), "system"), [touch])),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(open, there, "w"))),
        "a set state": Call(Setter, there, state={"path": there}),
    }
    for name, call in calls.items():
        yield name, saved({"latents": torch.zeros(3), "x": call})
    yield "legacy format", saved({"x": calls["open"]}, _use_new_zipfile_serialization=False)
    yield "bare pickle", pickle.dumps(calls["os.system"])
    yield "bare pickle, protocol 0", f"cos\nsystem\n(S'{touch}'\ntR.".encode()
    yield "bare pickle, INST", f"(S'{touch}'\nios\nsystem\n.".encode()
    yield "tar", _tar(pickle.dumps(calls["os.system"]))
    good = saved({"latents": torch.zeros(3)})
    evil = pickle.dumps(calls["open"])
    yield "duplicate data.pkl", zipped(good, {"archive/data.pkl": evil})
    yield "a second data.pkl", zipped(good, {"other/data.pkl": evil})
    yield "data.pkl replaced", zipped(good, {}, {"archive/data.pkl": evil})
    yield "deflated", zipped(saved({"x": calls["open"]}), {}, compression=zipfile.ZIP_DEFLATED)
    yield "a pickle before a zip", evil + good
    yield "TorchScript", zipped(good, {"archive/constants.pkl": evil, "archive/code/a.py": code.encode()})


class Setter:
    """Its state creates the file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


def saved(obj: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, **how)
    return file.getvalue()


def zipped(
    content: bytes, more: dict[str, bytes], instead: Mapping[str, bytes] = {}, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A file of torch's, packed once more."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(content)) as source:
        warnings.simplefilter("ignore")  # zipfile's, about the double name
        with zipfile.ZipFile(out, "w", compression) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, instead.get(entry.filename, source.read(entry)))
            for name, held in more.items():
                target.writestr(name, held)
    return out.getvalue()


def _tar(evil: bytes) -> bytes:
    """As torch 0.1 wrote."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(evil)
            archive.addfile(entry, io.BytesIO(evil))
    return out.getvalue()


def _as_shard(folder: Path, content: bytes) -> tuple[Path, Callable[[], object]]:
    path = trials.shard(folder, "one", trials.grown("a", "7"))
    path.write_bytes(content)
    trials.vouch_shard(path)
    return path, lambda: shards.load_trees(folder)


def _as_nested(folder: Path, content: bytes) -> tuple[Path, Callable[[], object]]:
    path = trials.nested(folder, "batch", "3 + 4?")
    trials.nested(folder, "other", "4 + 4?")  # so that the folder is one of nested files, whatever the first is
    path.write_bytes(content)
    return path, lambda: shards.load_trees(folder)


def _as_weights(folder: Path, content: bytes) -> tuple[Path, Callable[[], object]]:
    path = trials.checkpoint(folder) / "pytorch_model.bin"
    path.write_bytes(content)
    trials.vouch(folder)
    return path, lambda: QwenLatentPRM.from_pretrained(folder)


def _as_progress(name: str, folder: Path, content: bytes) -> tuple[Path, Callable[[], object]]:
    path = trials.checkpoint(folder) / name
    path.write_bytes(content)
    trials.vouch(folder)
    verify_checkpoint(folder)
    return path, lambda: load_progress(folder, *trials.training(trials.tiny_prm()))


def _as_adapter(folder: Path, content: bytes) -> tuple[Path, Callable[[], object]]:
    path = trials.checkpoint(folder) / "adapter.pt"
    path.write_bytes(content)
    return path, lambda: load_weights(folder, trials.tiny_prm())


PLACES: dict[str, Callable[[Path, bytes], tuple[Path, Callable[[], object]]]] = {
    "a shard": _as_shard,
    "a nested file": _as_nested,
    "pytorch_model.bin": _as_weights,
    "optimizer.pt": partial(_as_progress, "optimizer.pt"),
    "scheduler.pt": partial(_as_progress, "scheduler.pt"),
    "adapter.pt": _as_adapter,
}


ROWS: dict[str, Callable[[Path, int], str]] = {"C1": damage, "C2": malice}
"""By its name in the table: an empty folder and a seed → what came of it, in words; raises AssertionError."""
