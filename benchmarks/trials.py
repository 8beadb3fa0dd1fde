"""What the rows C1 to C5 are tried with: sound files to be spoilt, and a process of its own for what is tried.

One that crashes or hangs is a finding there, and not the end.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModel, AutoTokenizer

from latent_prm import files, seals, shards
from latent_prm.__main__ import main
from latent_prm.checkpoint import Moment, TrainingState, save_checkpoint
from latent_prm.demo import reader_folder
from latent_prm.model import QwenLatentPRM
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

faults = import_module(f"{__package__}.faults" if __package__ else "faults")

LIMIT = 10.0
"""Seconds of computing that a file may take to be refused."""
HANGS = 60.0
"""Seconds of any kind after which it is taken to wait forever."""
START = 120.0
"""Seconds that a process may take to begin, the first one's imports included, and to end."""
WIDTH = 128
"""Of latents, as of the built-in reasoner's."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([*faults.PRELOAD, "latent_prm.converter", "latent_prm.evaluator", "latent_prm.solver"])


class Case(NamedTuple):
    """Something that is tried."""

    name: str
    attempt: Callable[[], str]
    """Returns what came of it, in a word or two; raises when that should not be."""


class Found(NamedTuple):
    """What came of some cases."""

    outcomes: Counter[str]
    slowest: float
    memory: int
    """Bytes that the process had more at its peak than before the first case."""


def try_all(cases: Callable[..., Iterator[Case]], *given: Any) -> Found:
    """Try the cases in a process of their own. Raises AssertionError naming those that went wrong."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_work, args=(theirs, cases, given), daemon=True)
    process.start()
    theirs.close()
    outcomes, missed, slowest, name = Counter[str](), list[str](), 0.0, ""
    try:
        while True:
            if not ours.poll(HANGS if name else START):
                raise AssertionError(f"{name or 'the process'}: no end after {HANGS if name else START:g} s")
            match ours.recv():
                case str(name):
                    pass
                case int(memory):
                    process.join(START)
                    break
                case outcome, wrong, seconds:
                    outcomes[outcome] += 1
                    slowest = max(slowest, seconds)
                    missed += [f"{name}: {wrong}"] * bool(wrong)
    except EOFError:
        process.join()
        missed.append(f"{name}: the process died (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()
    assert not missed, f"{len(missed)} went wrong: " + "; ".join(missed[:5])
    assert slowest <= LIMIT, f"the slowest took {slowest:.1f} s"
    return Found(outcomes, slowest, memory)


def _work(pipe: Connection, cases: Callable[..., Iterator[Case]], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    for stream in (1, 2):  # progress bars and warnings are not what is looked at
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    before = _peak()
    for case in cases(*given):
        pipe.send(case.name)
        began, outcome, wrong = time.process_time(), "", ""
        try:
            outcome = case.attempt()
        except BaseException as error:
            wrong = f"{type(error).__name__}: {error}"[:300]
        pipe.send((outcome, wrong, time.process_time() - began))
    pipe.send(_peak() - before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(read: Callable[[], object], *words: str) -> str:
    """ "refused", when reading raises a ValueError or OSError in which all these words stand (as patterns)."""
    try:
        read()
    except (ValueError, OSError) as error:
        said = str(error)
        assert all(re.search(word, said) for word in words), f"refused, but with these words: {said[:300]}"
        assert "weights_only=False" not in said and "weights_only to" not in said, "it recommends the unsafe way"
        return "refused"
    raise AssertionError("it was taken for sound")


def typed(*words: object) -> tuple[int, str]:
    """Exit code and all that is said when this is typed after ``latent-prm``."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    return code, said.getvalue()


def told(number: int, what: str) -> str:
    return f"{number:,} {what}"


# --- what is sound --------------------------------------------------------------------------------------------------


def grown(name: str, *values: str, width: int = WIDTH, seed: int = 0) -> ReasoningTree:
    """A noise-free path that answers "8", and one noisy path per value; "7" is right. Path k has k + 1 latents."""
    generator = torch.Generator().manual_seed(seed)
    paths = [
        LatentPath(
            latents=torch.randn(k + 1, width, generator=generator),
            tip=torch.randn(width, generator=generator),
            noise_free=k == 0,
            answers=[Answer(text=f"So {value}.", value=value, correct=value == "7")],
        )
        for k, value in enumerate(["8", *values])
    ]
    tree = ReasoningTree(question_id=name, question=f"3 + 4? ({name})", gold="7", task="arithmetic", paths=paths)
    tree.back_up()
    return tree


def shard(folder: Path, name: str, *trees: ReasoningTree) -> Path:
    """A finished shard of these trees."""
    facts = {"task": "arithmetic", "model": "builtin", "split": "train", "seed": 42, "settings": {"noise": 2e-05}}
    return shards.write_shard(list(trees), folder, name, facts)


def nested(folder: Path, name: str, text: str, **changes: Any) -> Path:
    """A nested file of another program: one question of two paths, of which the second has these changes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    paths = [
        {
            "path_id": k,
            "agent_name": "Planner",
            "agent_idx": 0,
            "parent_path_id": None,
            "score": 0.5,
            "prm_score": k / 2,
        }
        | {"latent_history": torch.randn(3, 1, WIDTH, generator=generator), "metadata": {}}
        for k in range(2)
    ]
    paths[1] |= changes
    torch.save({"questions": [{"question": text, "gold_answer": "7", "paths": paths}]}, folder / f"{name}.pt")
    return folder / f"{name}.pt"


def tiny_prm(seed: int = 0) -> QwenLatentPRM:
    """A PRM of two layers."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256, "vocab_size": 164}
    tokenizer = AutoTokenizer.from_pretrained(reader_folder(), trust_remote_code=False)
    backbone = AutoModel.from_config(AutoConfig.for_model("qwen3", **shape), trust_remote_code=False)
    return QwenLatentPRM(backbone=backbone, tokenizer=tokenizer, latent_dim=WIDTH)


def training(model: QwenLatentPRM) -> tuple[AdamW, LambdaLR]:
    """An optimizer that has made a step, and its schedule."""
    optimizer = AdamW(model.head.parameters(), lr=1e-5)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    optimizer.step()
    return optimizer, LambdaLR(optimizer, lambda step: 1.0)


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """A checkpoint that a run would have left."""
    model = tiny_prm(seed)
    state = TrainingState(step=3 + seed, epoch=1, seed=42, epoch_losses=[0.5, 1e-05])
    seen, history = {"train": ["a" * 16], "validation": []}, [{"step": 1 + seed, "loss": 2e-05}]
    origin = {"options": {"learning_rate": 2e-05, "seed": 42}, "data": "0" * 64, "machine": {"device": "cpu"}}
    save_checkpoint(folder, Moment.of(model, *training(model), state, seen, history, origin))
    return folder


def vouch(folder: Path) -> None:
    """Have the manifest of a checkpoint say what its files are now: what somebody who means harm would do."""
    manifest, listed = seals.listed(folder / seals.MANIFEST)
    for name in listed:
        if (folder / name).is_file():
            listed[name] = {"size": (folder / name).stat().st_size, "sha256": files.digest(folder / name)}
    seals.save_sealed(manifest, folder / seals.MANIFEST)


def vouch_shard(path: Path) -> None:
    """The same for a shard's metadata."""
    facts = seals.load_sealed(shards.metadata_path(path))
    seals.save_sealed(facts | {"sha256": files.digest(path), "size": path.stat().st_size}, shards.metadata_path(path))


def some(cases: Callable[[Path], Iterator[Case]], folder: Path, seed: int, count: int | None) -> Iterator[Case]:
    """All cases, or ``count`` of them by lot."""
    found = list(cases(folder))
    yield from found if count is None else random.Random(seed).sample(found, min(count, len(found)))
