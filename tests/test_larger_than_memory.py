"""Training on more data than the process may hold: latents stay in the mapped shards, only the index is in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import random_tree, save_lm

from latent_prm import shards

WIDTH, QUESTIONS, PATHS, STEPS = 8192, 12, 8, 12
"""Questions per shard, paths per question, latents per path: 39 MiB in a shard."""
SHARDS = 12
ALLOWED = 96 * 2**20
"""Bytes of private memory that the run may have at any moment, beside what a run on next to no data has left."""

PROGRAM = """
import ctypes, mmap, resource, sys
import torch
from latent_prm import trainer
from latent_prm.options import TrainOptions

few, many, output, model, reads, size, allowed = *sys.argv[1:6], *map(int, sys.argv[6:])
load, mprotect = torch.load, ctypes.CDLL(None).mprotect

def load_and_protect(*args, **settings):
    # A mapping by torch may be written to, in memory only, and so Linux counts all of it as held, though it is not.
    # Made read-only it counts for nothing, and whoever wrote to it would die of it.
    loaded = load(*args, **settings)
    for line in open("/proc/self/maps"):
        addresses, rights, *_, name = line.split()
        if name.startswith(many) and "w" in rights:
            start, end = (int(address, 16) for address in addresses.split("-"))
            assert not mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.PROT_READ)
    return loaded

def train(data, output):
    trainer.main(TrainOptions(
        data_dir=data, output_dir=output, model_path=model, device="cpu", num_epochs=2, val_size=0.2, pack_tokens=512,
        reads=reads,
        mixed_precision=False,  # oneDNN keeps a kernel for every shape of bfloat16
    ))

train(few, f"{output}/first")  # for its imports
torch.load = load_and_protect
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + allowed,) * 2)
try:
    torch.empty(size, dtype=torch.uint8)
except RuntimeError as error:
    assert "can't allocate memory" in str(error), error
else:
    sys.exit("All of the data would fit: the limit limits nothing.")
train(many, f"{output}/many")
"""


def write(folder: Path, number: int, questions: int) -> None:
    """A shard of wide latents."""
    trees = [
        random_tree(
            seed, width=WIDTH, branches=(PATHS - 1,), latent_steps=(STEPS, STEPS), question=f"What is {seed} + 2 ?"
        )
        for seed in range(number * questions, (number + 1) * questions)
    ]
    shards.write_shard(trees, folder, f"train_{number:02}", {})


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder of shards, gone after the test: pytest would keep it for three runs."""
    with TemporaryDirectory(dir=tmp_path) as folder:
        for number in range(SHARDS):
            write(Path(folder), number, QUESTIONS)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process holds against a limit")
@pytest.mark.parametrize("reads", ["fed,answer", "fed,tip,answer"])
def test_a_run_finishes_on_several_times_the_data_that_it_may_hold(reads: str, data: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in data.glob("*.pt"))
    assert size > 4 * ALLOWED
    write(tmp_path / "few", 0, questions=2)
    given = [tmp_path / "few", data, tmp_path, save_lm(tmp_path / "lm", hidden_size=16), reads, size, ALLOWED]
    # Freed memory goes back to the system at once, so that what is held is what is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    typed = [sys.executable, "-c", PROGRAM, *map(str, given)]
    done = subprocess.run(typed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stats = json.loads((tmp_path / "many" / "training_stats.json").read_text())
    assert sum(stats["questions"].values()) == SHARDS * QUESTIONS
    assert sum(stats["samples"].values()) == SHARDS * QUESTIONS * (PATHS - 1)
    assert len(stats["val_losses"]) == 2
