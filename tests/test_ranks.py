"""ranks.py, and the trainer with it: several processes take the steps that one would, and leave what it would leave.

Real processes, started as users start them, that talk through gloo on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import save_lm

from latent_prm import files, shards, trainer
from latent_prm.checkpoint import verify_checkpoint
from latent_prm.model import QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.ranks import Ranks
from latent_prm.tree import ReasoningTree
from latent_prm.watching import Pace

ROOT = Path(__file__).parent.parent
ALONE = Ranks(torch.device("cpu"))

# What a program of one's own would do; it says what the parameters are.
SPREAD = """
import os, sys
from torch.distributed.tensor import DTensor
from latent_prm import options, trainer
def say(*words):  # in one piece: two processes write into one pipe
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
built = trainer.Run.__init__
def looked_at(run, *given):
    built(run, *given)
    kinds = {isinstance(p, DTensor) for p in run.module.parameters()}
    local = sum(getattr(p, '_local_tensor', p).numel() for p in run.module.parameters())
    add = trainer.Pace.add
    trainer.Pace.add = lambda pace, *sizes: say("Step", run.ranks.rank, *sizes[:2]) or add(pace, *sizes)
    say("DTensors", kinds, "of", sum(p.numel() for p in run.module.parameters()), "here", local)
trainer.Run.__init__ = looked_at
import latent_prm.__main__ as door
sys.exit(door.main(sys.argv[1:]))
"""


@pytest.fixture
def data(tmp_path: Path, make_tree: Callable[..., ReasoningTree]) -> Path:
    """Seven questions of unlike sizes: the shares differ, and so do the numbers of packs."""
    sizes = [(2,), (5,), (2, 2), (6,), (3,), (1,), (2, 3)]
    trees = [make_tree(i, branches=n, question=f"What is {i} + {i} ?") for i, n in enumerate(sizes)]
    shards.write_shard(trees, tmp_path / "data", "trees", {})
    return tmp_path / "data"


def typed(data: Path, model: Path, folder: Path, **changes: object) -> list[str]:
    options = {"model_path": model, "data_dir": data, "output_dir": folder, "num_epochs": 3, "batch_size": 16}
    options |= {"gradient_accumulation_steps": 1, "learning_rate": 1e-3, "val_size": 0.3, "dropout_prob": 0.0}
    options |= {"logging_steps": 1, "pack_tokens": 48, "device": "cpu", "log_level": "INFO", "save_steps": 2, **changes}
    return ["train", "--no-mixed_precision", *(f"--{name}={value}" for name, value in options.items())]


def launch(words: Sequence[str], *program: str, processes: int = 2, launcher: str = "torchrun") -> str:
    """What several processes of ours said."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if launcher == "accelerate":
        how = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
        how += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    done = subprocess.run([sys.executable, *how, *program, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def alike(run: Path, other: Path) -> None:
    """The same loss curve to 1e-5, and the same weights but for rounding."""
    one, two = losses(run), losses(other)
    assert len(one) == len(two) >= 9
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    weights, others = (torch.load(r / "final" / "pytorch_model.bin", weights_only=True) for r in (run, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(
    parallel: str, data: Path, tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"loss": "bce+0.5*listwise", "correctness_weight": 0.5}
    tokens: list[int] = []
    monkeypatch.setattr(Pace, "add", lambda pace, *sizes: tokens.append(sizes[0]))
    one = trainer.main(options_of(typed(data, tiny_lm, tmp_path / "one", **extra)))
    (tmp_path / "program.py").write_text(SPREAD)
    words = typed(data, tiny_lm, tmp_path / "two", parallel=parallel, **extra)
    said = launch(words, str(tmp_path / "program.py"))
    assert f"2 processes ({parallel})" in said
    assert said.count("Epoch 1/3") == 1  # only one of them speaks
    for rank in (0, 1):  # each knows the pace of the whole, not of its part
        assert [int(found) for found in re.findall(rf"Step {rank} (\d+) \d", said)] == tokens
    alike(tmp_path / "two", one)
    whole = sum(p.numel() for p in QwenLatentPRM.from_pretrained(one / "final").parameters())
    halves = [
        int(line.split()[-1]) for line in said.splitlines() if line.startswith(f"DTensors {{{parallel == 'fsdp'}}}")
    ]
    assert len(halves) == 2 if parallel == "fsdp" else len(halves) == 0 or set(halves) == {whole}
    if parallel == "fsdp":
        assert sum(halves) == whole and max(halves) < 0.6 * whole
    for name in ("best", "final", "epoch_1", "epoch_2", "epoch_3"):
        assert verify_checkpoint(tmp_path / "two" / name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_of_two_processes_goes_on_in_one_and_the_other_way_round(
    parallel: str, data: Path, tiny_lm: Path, tmp_path: Path
) -> None:
    one = trainer.main(options_of(typed(data, tiny_lm, tmp_path / "one")))
    launch(typed(data, tiny_lm, tmp_path / "two", parallel=parallel), "-m", "latent_prm")
    for begun, other in (("one", "onwards"), ("two", "back")):
        cut_short(tmp_path / begun, tmp_path / other)
    said = launch(typed(data, tiny_lm, tmp_path / "onwards", parallel=parallel, resume="auto"), "-m", "latent_prm")
    assert "processes was 1 and is 2" in said
    trainer.main(options_of(typed(data, tiny_lm, tmp_path / "back", resume="auto")))
    for run in ("onwards", "back", "two"):
        alike(tmp_path / run, one)


def test_small_matrices_that_two_processes_trained_go_on_beside_the_same_base_alone(
    data: Path, tiny_lm: Path, tmp_path: Path
) -> None:
    lm, lora = tmp_path / "lm", {"tuning": "lora", "parallel": "fsdp"}
    shutil.copytree(tiny_lm, lm)
    launch(typed(data, lm, tmp_path / "two", **lora), "-m", "latent_prm")
    cut_short(tmp_path / "two", tmp_path / "back")
    again = options_of(typed(data, lm, tmp_path / "back", resume="auto", **lora))
    save_lm(lm, 16, seed=5)
    with pytest.raises(files.BadFile, match="of its weights are others in --model_path now"):
        trainer.main(again)
    shutil.copytree(tiny_lm, lm, dirs_exist_ok=True)
    trainer.main(again)
    alike(tmp_path / "back", tmp_path / "two")


def test_accelerate_launches_the_guides_module(data: Path, tiny_lm: Path, tmp_path: Path) -> None:
    one = trainer.main(options_of(typed(data, tiny_lm, tmp_path / "one")))
    words = typed(data, tiny_lm, tmp_path / "two")[1:]
    launch(words, "-m", "methods.latent_prm.trainer", launcher="accelerate")
    alike(tmp_path / "two", one)


def cut_short(run: Path, to: Path) -> None:
    """A copy of a run as it was after its second step."""
    shutil.copytree(run, to, ignore=lambda _, names: {n for n in names if n.startswith(("epoch", "best", "final"))})
    (to / "training_stats.json").unlink()
    for path in to.glob("checkpoint-*"):
        if path.name != "checkpoint-2":
            shutil.rmtree(path)
    assert (to / "checkpoint-2").is_dir()


def options_of(words: Sequence[str]) -> TrainOptions:
    import tyro

    return tyro.cli(TrainOptions, args=list(words[1:]), use_underscores=True)


def test_shares_are_whole_disjoint_and_about_equal() -> None:
    sizes = [7, 3, 3, 5, 2, 8]
    shares = []
    for rank in range(2):
        ranks = Ranks(torch.device("cpu"))
        ranks.rank, ranks.world = rank, 2
        shares.append(ranks.share(sizes))
    # 8 | 7; 5 to the second; 3 to the first, 3 to the first; 2 to the second (12 against 14)
    assert shares == [[1, 2, 5], [0, 3, 4]]
    assert ALONE.share(sizes) == list(range(6))


def test_alone_everything_is_the_plain_thing() -> None:
    assert ALONE.same("a") == "a" and ALONE.most(3) == 3 and ALONE.gather([1, 2]) == [1, 2]
    assert list(ALONE.abreast([1, 2], idle=0)) == [(1, True), (2, True)]
    model = torch.nn.Linear(2, 2)
    assert ALONE.spread(model, [], "fsdp") is model
