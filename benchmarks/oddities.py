"""Rows C3 to C5 of the torture: files that cannot be, that are somewhere else, and folders with hardly anything.

python benchmarks/torture.py --rows C3,C4,C5
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_prm import files, foreign, seals, shards
from latent_prm.checkpoint import load_progress, load_weights, verify_checkpoint
from latent_prm.model import QwenLatentPRM

hostile, trials = (import_module(f"{__package__}.{name}" if __package__ else name) for name in ("hostile", "trials"))

MEMORY = 300 * 2**20
"""Bytes that refusing all impossible files may take: each of them asks for more."""


# --- C3: what cannot be ---------------------------------------------------------------------------------------------


def impossible(folder: Path, seed: int, *, count: int | None = None) -> str:
    """C3: bombs, odd tensors, numbers that are none, and broken rules: refused with a reason, in little memory."""
    found = trials.try_all(trials.some, _impossible, folder, seed, count)
    assert found.memory <= MEMORY, f"refusing them took {found.memory / 2**20:.0f} MiB"
    said = ", ".join(trials.told(number, outcome) for outcome, number in found.outcomes.items())
    return f"{said}, each with its reason; slowest {found.slowest:.2f} s, {found.memory / 2**20:.0f} MiB at most"


def _quantized(good: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will not make them for much longer
        return torch.quantize_per_tensor(good, 0.1, 0, torch.qint8)


_ODD: dict[str, Callable[[Tensor], Any]] = {
    "stride 0, 1e6 × 1e6": lambda good: torch.zeros(1).expand(10**6, 10**6),
    "sparse": lambda good: good.to_sparse(),
    "sparse, indices outside": lambda good: torch.sparse_coo_tensor(
        torch.full((good.ndim, 1), 10**9), torch.ones(1), good.shape, check_invariants=False
    ),
    "quantized": _quantized,
    "complex": lambda good: good.to(torch.complex64),
    "NaN": lambda good: good.index_fill(0, torch.tensor([len(good) - 1]), math.nan),
    "infinite": lambda good: good.index_fill(0, torch.tensor([len(good) - 1]), math.inf),
    "text": lambda good: "many",
    "list of None": lambda good: [None] * len(good),
}
"""What may stand in the place of a tensor of numbers."""


def _impossible(folder: Path) -> Iterator[trials.Case]:
    for name, odd in _ODD.items():
        words = ("latents",) if name not in ("NaN", "infinite") else ("question 'b', path 1", "latents")
        yield _column(folder, f"{name} latents", "latents", odd, *words)
        where = "question 0, path 1"
        yield _odd_nested(folder, f"{name} latents", where, latent_history=odd(torch.ones(3, trials.WIDTH)))
        yield _odd_state(folder, f"{name} weight", "pytorch_model.bin", "backbone.norm.weight", odd)
        if name not in ("text", "list of None"):
            yield _odd_state(folder, f"{name} moment", "optimizer.pt", "state.0.exp_avg", odd)
    numbers = {"1.1": 1.1, "-0.1": -0.1, "NaN": math.nan}
    for name, number in numbers.items():
        sample = "question 'a', path 1: its (prm_)?score is"
        for column in ("prm_scores", "scores"):
            put = partial(torch.Tensor.index_fill, dim=0, index=torch.tensor([1]), value=number)
            yield _column(folder, f"{column} {name}", column, lambda good, put=put: put(good), sample)
        yield _odd_nested(folder, f"score {name}", "question 0, path 1: its prm_score is", prm_score=number)
    yield _odd_nested(folder, 'score "0.5"', "question 0, path 1: its prm_score is '0.5'", prm_score="0.5")
    yield _odd_nested(folder, "two paths of one id", "question 0, path 1: its path_id is 0", path_id=0)
    yield _column(folder, 'scores "0.5"', "prm_scores", lambda good: ["0.5"] * len(good), "prm_scores is not a plain")
    yield _column(folder, "T = 0", "latent_offsets", _moved, "question 'a', path 1: it has T = 0 latents")
    yield _column(folder, "duplicate ids", "question_ids", lambda good: ["a", "a"], "question 'a' stands there 2 times")
    for place in ("a deflated shard", "a deflated nested file", "deflated weights", "a deflated optimizer"):
        yield trials.Case(place, partial(_deflated, folder / "deflated", place))
    others = (_another_width, _bad_json, _none_is_no_label, _no_latents, _too_large_a_model, _odd_json_of_a_checkpoint)
    for case in (*others, _bad_questions):
        yield trials.Case(case.__name__.strip("_").replace("_", " "), partial(case, folder / case.__name__))


def _train(data: Path, *words: str) -> None:
    """All ways in which shards are loaded refuse this folder with these words."""
    trials.refused(lambda: shards.load_trees(data), *words)
    for command in (
        ("train", "--data_dir", data, "--output_dir", data.parent / "run", "--device", "cpu"),
        ("evaluate", "--checkpoint", "builtin", "--data_dir", data, "--output_dir", data.parent / "report"),
    ):
        code, said = trials.typed(*command)
        assert code == 1 and all(re.search(word, said) for word in words), f"{command[0]} said ({code}): {said[-300:]}"
    assert not (data.parent / "run").exists(), "a run was begun"


def _column(folder: Path, name: str, column: str, odd: Callable[[Any], Any], *words: str) -> trials.Case:
    """A shard, vouched for, with something else in a column."""

    def attempt() -> str:
        shutil.rmtree(folder / "shard", ignore_errors=True)
        path = trials.shard(
            folder / "shard" / "data", "one", trials.grown("a", "7", "8"), trials.grown("b", "7", seed=1)
        )
        data = files.load_tensors(path)
        torch.save(data | {column: odd(data[column])}, path)
        trials.vouch_shard(path)
        _train(path.parent, re.escape(str(path)), *words)
        return "shards refused"

    return trials.Case(f"{name} in a shard", attempt)


def _moved(offsets: Tensor) -> Tensor:
    return offsets.index_copy(0, torch.tensor([2]), offsets[1:2])


def _odd_nested(folder: Path, name: str, where: str, **changes: Any) -> trials.Case:
    """A nested file with something else in a path."""

    def attempt() -> str:
        shutil.rmtree(folder / "nested", ignore_errors=True)
        path = trials.nested(folder / "nested" / "data", "batch", "3 + 4?", **changes)
        words = (re.escape(str(path)), where)
        _train(path.parent, *words)
        output = folder / "nested" / "converted"
        code, said = trials.typed("convert", path.parent, "--output_dir", output)
        assert code == 1 and all(re.search(word, said) for word in words), f"convert said ({code}): {said[-300:]}"
        assert not output.exists(), "something was converted"
        return "nested files refused"

    return trials.Case(f"{name} in a nested file", attempt)


def _odd_state(folder: Path, name: str, file: str, key: str, odd: Callable[[Tensor], Any]) -> trials.Case:
    """A checkpoint, vouched for, with something else for a tensor."""

    def attempt() -> str:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        path = trials.checkpoint(folder / "checkpoint") / file
        held = files.load_tensors(path)
        if file == "optimizer.pt":
            held["state"][0]["exp_avg"] = odd(held["state"][0]["exp_avg"])
        else:
            held[key] = odd(held[key])
        torch.save(held, path)
        trials.vouch(path.parent)
        return _refuse_checkpoint(path, "" if isinstance(held.get(key), (str, list)) else re.escape(key))

    return trials.Case(f"{name} in {file}", attempt)


def _refuse_checkpoint(path: Path, *words: str) -> str:
    """Scoring and going on with training, as far as they read this file, refuse it with these words."""
    folder = path.parent
    words = (re.escape(str(folder if path.name == "config.json" else path)), *words)
    if path.name in ("pytorch_model.bin", "config.json"):
        trials.refused(lambda: QwenLatentPRM.from_pretrained(folder), *words)
        code, said = trials.typed("solve", "3 + 4?", "--checkpoint", folder, "--device", "cpu")
        assert code == 1 and all(re.search(word, said) for word in words), f"solve said ({code}): {said[-300:]}"
    if path.name == "pytorch_model.bin":
        trials.refused(lambda: load_weights(folder, trials.tiny_prm()), *words)
    elif path.name != "config.json":
        trials.refused(lambda: load_progress(folder, *trials.training(trials.tiny_prm())), *words)
    return "checkpoints refused"


def _deflated(folder: Path, place: str) -> str:
    """A gigabyte of zeros in a megabyte."""
    shutil.rmtree(folder, ignore_errors=True)
    if place == "a deflated shard":
        path = trials.shard(folder / "data", "one", trials.grown("a", "7"))
    elif place == "a deflated nested file":
        path = trials.nested(folder / "data", "batch", "3 + 4?")
        trials.nested(folder / "data", "other", "4 + 4?")  # else the folder might as well be one of unfinished shards
    else:
        path = trials.checkpoint(folder / "data") / ("optimizer.pt" if "optimizer" in place else "pytorch_model.bin")
    whole = path.with_name("whole")
    path.rename(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for entry in source.infolist():
            with target.open(entry.filename, "w") as out:
                if entry.filename.endswith("/data/0"):
                    for _ in range(1024):
                        out.write(bytes(2**20))
                else:
                    out.write(source.read(entry))
    whole.unlink()
    assert path.stat().st_size < 2**23
    if path.name == "one.pt":
        trials.vouch_shard(path)
    elif path.name != "batch.pt":
        trials.vouch(path.parent)
        return _refuse_checkpoint(path, "compressed")
    _train(path.parent, re.escape(str(path)), "compressed")
    return "shards refused" if path.name == "one.pt" else "nested files refused"


def _another_width(folder: Path) -> str:
    trials.shard(folder / "data", "one", trials.grown("a", "7"))
    path = trials.shard(folder / "data", "two", trials.grown("b", "7", width=5))
    _train(path.parent, re.escape(f"{path}: its latents are 5 wide"))
    return "shards refused"


def _bad_json(folder: Path) -> str:
    for k, content in enumerate((b"", b"{", b'{"x": NaN}', b"\xff", b"[" * 10**5, b"null", b"[1]", b'{"format": 3}')):
        beside = shards.metadata_path(trials.shard(folder / str(k) / "data", "one", trials.grown("a", "7")))
        beside.write_bytes(content)
        _train(beside.parent, re.escape(str(beside)))
        other = trials.nested(folder / str(k) / "nested", "batch", "3 + 4?")
        shards.metadata_path(trials.nested(other.parent, "bad", "4 + 4?")).write_bytes(content)
        if not content.startswith((b"null", b"[1]", b'{"f')):  # these are JSON, though not that program's
            code, said = trials.typed("convert", other.parent, "--output_dir", folder / "out")
            assert code == 1 and "bad_metadata.json: " in said, f"convert said ({code}): {said[-300:]}"
    return "shards refused"


def _none_is_no_label(folder: Path) -> str:
    path = trials.nested(folder, "batch", "3 + 4?", prm_score=None)
    (tree,) = shards.load_trees(path.parent)
    assert [each.prm_score for each in tree.paths] == [0.0, None]
    return "score None of a nested file taken as no label"


def _no_latents(folder: Path) -> str:
    path = trials.nested(folder, "batch", "3 + 4?", latent_history=torch.zeros(0, 1, trials.WIDTH))
    harvest = foreign.read([path])
    assert len(harvest.trees[0].paths) == 1 and harvest.left_out == {"no latents": [f"{path}: question 0, path 1"]}
    return "path with T = 0 of a nested file left out by name"


def _too_large_a_model(folder: Path) -> str:
    """A config.json, or a width, that asks for more than there are weights for."""
    for change in ({"num_hidden_layers": 10**7}, {"hidden_size": 10**6}, {"vocab_size": 10**10}, {"head_dim": 10**7}):
        path = trials.checkpoint(folder / f"{next(iter(change))}") / "config.json"
        files.save_json(files.load_json(path) | change, path)
        trials.vouch(path.parent)
        trials.refused(lambda path=path: QwenLatentPRM.from_pretrained(path.parent), re.escape(str(path.parent)))
    path = trials.checkpoint(folder / "wide") / "pytorch_model.bin"
    torch.save(files.load_tensors(path) | {"latent_width": torch.tensor(10**9)}, path)
    trials.vouch(path.parent)
    trials.refused(
        lambda: QwenLatentPRM.from_pretrained(path.parent), re.escape(str(path.parent)), "latent_width is 1000000000"
    )
    return "checkpoints refused"


def _odd_json_of_a_checkpoint(folder: Path) -> str:
    odd = {
        "config.json": [b"{", b"[]", b'{"latent_prm": {}}', b'{"latent_prm": {"reads": ["all"]}}', b"NaN"],
        "training_state.json": [b"{", b"{}", b"[]"],
        "metrics.jsonl": [b"{", b"3\n", b"\xff"],
        "manifest.json": [b"{", b"{}", b'{"files": 3}', b'{"files": {"config.json": 3}}'],
    }
    for name, contents in odd.items():
        for k, content in enumerate(contents):
            path = trials.checkpoint(folder / f"{name}{k}") / name
            path.write_bytes(content)
            if name == "manifest.json":
                trials.refused(lambda path=path: verify_checkpoint(path.parent), re.escape(str(path)))
                trials.refused(lambda path=path: QwenLatentPRM.from_pretrained(path.parent), re.escape(str(path)))
            else:
                trials.vouch(path.parent)
                _refuse_checkpoint(path)
    path = trials.checkpoint(folder / "state") / "training_state.json"
    files.save_json(files.load_json(path) | {"epoch": "1"}, path)
    trials.vouch(path.parent)
    _refuse_checkpoint(path, "epoch is '1'")
    return "checkpoints refused"


def _bad_questions(folder: Path) -> str:
    folder.mkdir(parents=True)
    path, good = folder / "questions.jsonl", json.dumps({"question": "3 + 4?", "answer": "7"})
    for bad in ("{", "[1]", '{"question": 3}', '{"answer": "7"}', "[" * 10**5):
        path.write_text(f"{good}\n{bad}\n")
        code, said = trials.typed("collect", "--task", path, "--output_dir", folder / "out", "--device", "cpu")
        assert code == 1 and f"{path}, line 2" in said, f"collect said ({code}): {said[-300:]}"
    assert not (folder / "out").exists()
    return "question files refused"


# --- C4: somewhere else ---------------------------------------------------------------------------------------------


def elsewhere(folder: Path, seed: int, *, count: int | None = None) -> str:
    """C4: names and links that lead out of a folder, and what is no file: nothing outside is touched, nothing hangs."""
    found = trials.try_all(trials.some, _elsewhere, folder, seed, count)
    said = ", ".join(trials.told(number, outcome) for outcome, number in found.outcomes.items())
    return f"{said}; nothing outside was touched; slowest {found.slowest:.2f} s"


def _elsewhere(folder: Path) -> Iterator[trials.Case]:
    def guarded(attempt: Callable[[Path, Path], str], inside: Path, outside: Path) -> str:
        inside.mkdir(parents=True)
        (outside / "kept").mkdir(parents=True)
        for path in (outside / "victim", outside / "kept" / "victim"):
            path.write_text("never touched")
        before = _snapshot(outside)
        outcome = attempt(inside, outside)
        assert _snapshot(outside) == before, f"something outside was touched: {_snapshot(outside)}"
        return outcome

    numbers = count()

    def case(name: str, attempt: Callable[[Path, Path], str]) -> trials.Case:
        own = folder / str(next(numbers))
        return trials.Case(name, partial(guarded, attempt, own / "inside", own / "outside"))

    for name in ("../up", "/etc/up", "a/../../up", "..\\up"):
        yield case(f"a zip entry {name}", partial(_zip_entry, name))
    for name in ("../../outside/victim", "..", "", ".", "a/b", "absolute"):
        yield case(f"a manifest that lists {name!r}", partial(_manifest_entry, name))
    for name in ("../outside/new", "/absolute", "a/b", "", "x" * 300):
        yield case(f"a shard named {name[:20]!r}", partial(_shard_named, name))
    yield case("metadata that names another file", _data_file)
    yield case("a task named ../../outside", _task_elsewhere)
    for name in (".lock", "training.log", "metrics.jsonl", "config.json", "training_stats.json", "loss_curve.png"):
        yield case(f"a run with a link for {name}", partial(_run_with, name, _link))
    for name in ("best", "checkpoint-1", ".tmp-1-0123abcd", ".best.old"):
        yield case(f"a run with a link for {name}", partial(_run_with, name, _link_folder))
    for name in (".lock", "training.log", "metrics.jsonl", "config.json"):
        yield case(f"a run with a pipe for {name}", partial(_run_with, name, _pipe))
    for name in (".lock", "arithmetic_train_seed42_00000.pt", "arithmetic_train_seed42_00000_metadata.json"):
        yield case(f"a collection with a link for {name}", partial(_collection_with, name, _link))
    yield case("a collection with a link for .tmp-1-0123abcd", partial(_collection_with, ".tmp-1-0123abcd", _link))
    yield case("a collection with a pipe for .lock", partial(_collection_with, ".lock", _pipe))
    for name in ("one.pt", "one_metadata.json"):
        yield case(f"a pipe for {name}", partial(_no_file_shard, name, _pipe))
        yield case(f"a folder for {name}", partial(_no_file_shard, name, _folder))
    for name in ("manifest.json", "config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"):
        yield case(f"a pipe for {name}", partial(_no_file_checkpoint, name, _pipe))
        yield case(f"a folder for {name}", partial(_no_file_checkpoint, name, _folder))
    for kind in (_pipe, _folder):
        yield case(f"{kind.__name__.strip('_')} for questions", partial(_no_file_questions, kind))
        yield case(f"{kind.__name__.strip('_')} for a nested file", partial(_no_file_nested, kind))
    yield case("names of 255 bytes", _long_names)


def _snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    paths = sorted(folder.rglob("*"))
    return {
        str(path): ((info := path.lstat()).st_mode, info.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in paths
    }


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "victim")


def _link_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "kept")


def _pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


def _zip_entry(name: str, inside: Path, outside: Path) -> str:
    content = hostile.zipped(hostile.saved({"x": torch.zeros(3)}), {name: b"out of it"})
    for prepare in hostile.PLACES.values():
        path, read = prepare(inside / "place", content)
        trials.refused(read, re.escape(str(path)), "leads out of it")
        shutil.rmtree(inside / "place")
    assert not list(inside.rglob("up"))
    return "names refused"


def _manifest_entry(name: str, inside: Path, outside: Path) -> str:
    manifest = trials.checkpoint(inside / "checkpoint") / seals.MANIFEST
    said, listed = seals.listed(manifest)
    victim = outside / "victim"
    name = str(victim) if name == "absolute" else name
    listed[name] = {"size": victim.stat().st_size, "sha256": files.digest(victim)}
    seals.save_sealed(said | {"files": listed}, manifest)
    for read in (verify_checkpoint, QwenLatentPRM.from_pretrained):
        trials.refused(lambda read=read: read(manifest.parent), re.escape(str(manifest.parent)))
    return "names refused"


def _shard_named(name: str, inside: Path, outside: Path) -> str:
    trials.refused(lambda: trials.shard(inside, name, trials.grown("a", "7")), "cannot be named")
    assert not list(inside.iterdir())
    return "names refused"


def _data_file(inside: Path, outside: Path) -> str:
    beside = shards.metadata_path(trials.shard(inside, "one", trials.grown("a", "7")))
    seals.save_sealed(seals.load_sealed(beside) | {"data_file": "../outside/victim"}, beside)
    assert len(shards.load_trees(inside)) == 1  # a name that nobody follows
    return "names not followed"


def _task_elsewhere(inside: Path, outside: Path) -> str:
    path = trials.nested(inside / "nested", "batch", "3 + 4?")
    files.save_json({"batch_name": "batch", "task": "../../outside/victim"}, shards.metadata_path(path))
    code, said = trials.typed("convert", path.parent, "--output_dir", inside / "out")
    assert code == 0, said
    assert {path.name for path in (inside / "out").iterdir()} <= {"converted_0000.pt", "converted_0000_metadata.json"}
    return "names not followed"


def _run_with(name: str, plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    """A run of a step or two where something is in its way: it goes around it, or says so."""
    trials.shard(inside / "data", "one", *(trials.grown(f"q{k}", "7", "8", seed=k) for k in range(3)))
    (inside / "run").mkdir()
    plant(inside / "run" / name, outside)
    options = ("--num_epochs", 1, "--val_size", 0, "--report_to", "none", "--device", "cpu", "--save_steps", 1)
    code, said = trials.typed("train", "--data_dir", inside / "data", "--output_dir", inside / "run", *options)
    assert code == 0 or (code == 1 and str(inside / "run") in said), f"({code}) {said[-300:]}"
    if code == 0:
        verify_checkpoint(inside / "run" / "final")
    return "runs unharmed" if code == 0 else "runs refused"


def _collection_with(name: str, plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    plant(inside / name, outside)
    options = ("--max_samples", 2, "--num_paths", 2, "--latent_steps", 1, "--max_new_tokens", 2, "--device", "cpu")
    code, said = trials.typed("collect", "--task", "arithmetic", "--output_dir", inside, *options)
    assert code == 0 or (code == 1 and str(inside) in said), f"({code}) {said[-300:]}"
    if code == 0:
        assert len(shards.load_trees(inside)) == 2
    return "collections unharmed" if code == 0 else "collections refused"


def _no_file_shard(name: str, plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    path = trials.shard(inside, "one", trials.grown("a", "7")).with_name(name)
    trials.shard(inside, "two", trials.grown("b", "7"))
    path.unlink()
    plant(path, outside)
    trials.refused(lambda: shards.load_trees(inside), re.escape(str(path)), "regular file|bytes")
    code, said = trials.typed("inspect", inside)
    assert code == 1 and str(path) in said
    return "no files refused"


def _no_file_checkpoint(name: str, plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    for vouched in (True, False):
        path = trials.checkpoint(inside / f"checkpoint-{vouched:d}") / name
        path.unlink()
        plant(path, outside)
        manifest = path.with_name(seals.MANIFEST)
        if not vouched and manifest.is_file():
            manifest.unlink()
        trials.refused(lambda path=path: verify_checkpoint(path.parent), re.escape(str(path.parent)))
        trials.refused(lambda path=path: QwenLatentPRM.from_pretrained(path.parent), re.escape(str(path.parent)))
    return "no files refused"


def _no_file_questions(plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    path = inside / "questions.jsonl"
    plant(path, outside)
    code, said = trials.typed("collect", "--task", path, "--output_dir", inside / "out", "--device", "cpu")
    assert code == 1 and str(path) in said, said
    return "no files refused"


def _no_file_nested(plant: Callable[[Path, Path], None], inside: Path, outside: Path) -> str:
    plant(inside / "batch.pt", outside)
    trials.nested(inside, "other", "3 + 4?")
    code, said = trials.typed("convert", inside, "--output_dir", inside / "out")
    assert code == 1 and f"{inside / 'batch.pt'}: not a regular file" in said, said
    return "no files refused"


def _long_names(inside: Path, outside: Path) -> str:
    """As long as a name can be: an output folder works; a shard, whose metadata has a longer name, is refused."""
    trials.nested(inside / "nested", "batch", "3 + 4?")
    long = inside / ("o" * 255)
    code, said = trials.typed("convert", inside / "nested", "--output_dir", long)
    assert code == 0 and len(shards.load_trees(long)) == 1, said
    for length in (252, 242, 241):
        name = "n" * length
        if length > 241:
            trials.refused(
                lambda name=name: trials.shard(inside / "shards", name, trials.grown("a", "7")), "cannot be named"
            )
            assert not list((inside / "shards").glob("*")), "a file without its metadata was left"
        else:
            trials.shard(inside / "shards", name, trials.grown("a", "7"))
    assert len(shards.load_trees(inside / "shards")) == 1
    return "long names taken or refused"


# --- C5: too few ----------------------------------------------------------------------------------------------------


def too_few(folder: Path, seed: int, *, count: int | None = None) -> str:
    """C5: hardly anything to learn from: every stage does what it says, in words."""
    found = trials.try_all(trials.some, _too_few, folder, seed, count)
    return f"as they say: {', '.join(found.outcomes)}; slowest {found.slowest:.2f} s"


NOTHING, NO_RUN = "No .pt files found in .*\\nRun .*collect", "best does not exist"
LEARNT = "Samples: \\d, where 100 or more are advised(.|\\n)*No validation(.|\\n)*Best checkpoint: "
UNLEARNT = "There is nothing to learn from: "
MEASURED, UNSURE = "There are too few questions to calibrate on(.|\\n)*Saved ", "This probability is not calibrated"
_FEW: dict[str, tuple[list[tuple[str, ...]], dict[str, tuple[int, str]]]] = {
    "empty folder": (
        [],
        {"inspect": (1, NOTHING), "train": (1, NOTHING), "rank": (1, NOTHING), "evaluate": (1, NOTHING)},
    ),
    "noise-free path alone": (
        [()],
        {
            "inspect": (0, "total: 1 +1 +1 +1"),
            "train": (1, f"{UNLEARNT}no noisy path in"),
            "rank": (1, f"{UNLEARNT}no noisy path in"),
            "evaluate": (1, "There is no question to measure on. Collect some: "),
        },
    ),
    "one sample": (
        [("7",)],
        {
            "inspect": (0, "total: 1 +1 +2 +2"),
            "train": (0, LEARNT),
            "rank": (0, f"teach nothing to pairwise(.|\\n)*{UNLEARNT}"),
            "evaluate": (0, MEASURED),
            "solve": (0, UNSURE),
        },
    ),
    "all scores equal": (
        [("7", "7"), ("7", "7", "7"), ("7",)],
        {
            "inspect": (0, "total: 1 +3"),
            "train": (0, f"{UNLEARNT}all 6 scores are 1(.|\\n)*{LEARNT}"),
            "rank": (0, f"teach nothing to pairwise(.|\\n)*{UNLEARNT}"),
            "evaluate": (0, MEASURED),
            "solve": (0, UNSURE),
        },
    ),
    "one question": (
        [("7", "8", "7", "8")],
        {
            "inspect": (0, "total: 1 +1 +5 +5"),
            "train": (0, LEARNT),
            "rank": (0, LEARNT),
            "evaluate": (0, MEASURED),
            "solve": (0, UNSURE),
        },
    ),
}
"""What the noisy paths of each question answer; and of each command, which exit code and words are to come of it."""


def _too_few(folder: Path) -> Iterator[trials.Case]:
    for name, (answers, expected) in _FEW.items():
        yield trials.Case(name, partial(_few, name, folder / name.replace(" ", "_"), answers, expected))


def _few(name: str, folder: Path, answers: list[tuple[str, ...]], expected: dict[str, tuple[int, str]]) -> str:
    """Inspect, train (also to rank), evaluate, and solve with the PRM that came of it."""
    data, run = folder / "data", folder / "run"
    data.mkdir(parents=True)
    if answers:
        trials.shard(data, "one", *(trials.grown(f"q{k}", *each, seed=k) for k, each in enumerate(answers)))
    train = ("train", "--data_dir", data, "--num_epochs", 1, "--device", "cpu", "--report_to", "none")
    rank = ("--loss", "pairwise", "--output_dir", folder / "ranking")
    prm = run / "best" if expected["train"][0] == 0 else "builtin"
    measure = ("--num_bootstrap", 50, "--output_dir", folder / "report", "--device", "cpu")
    commands: dict[str, tuple[object, ...]] = {
        "inspect": ("inspect", data),
        "train": (*train, "--output_dir", run),
        "rank": (*train, *rank),
        "evaluate": ("evaluate", "--checkpoint", "builtin", "--data_dir", data, *measure),
        "solve": ("solve", "3 + 4?", "--checkpoint", prm, "--num_paths", 2, "--device", "cpu"),
    }
    for command, (code, words) in expected.items():
        found, said = trials.typed(*commands[command])
        assert found == code and re.search(words, said), f"{command} said ({found}): {said[-500:]}"
        if code == 0 and command in ("train", "rank"):
            verify_checkpoint((run if command == "train" else folder / "ranking") / "best")
    return f"{len(expected)} commands on {name}"


ROWS: dict[str, Callable[[Path, int], str]] = {"C3": impossible, "C4": elsewhere, "C5": too_few}
"""By its name in the table: an empty folder and a seed → what came of it, in words; raises AssertionError."""
