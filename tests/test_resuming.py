"""resuming.py, and the trainer with it: a run that was cut off anywhere becomes the one that never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import save_lm
from transformers import AutoModel

from latent_prm import files, resuming, shards, trainer
from latent_prm import run as run_room
from latent_prm.checkpoint import load_state, verify_checkpoint
from latent_prm.feeding import Work
from latent_prm.options import TrainOptions
from latent_prm.run import Run
from latent_prm.tree import ReasoningTree

ROOT = Path(__file__).parent.parent
Train = Callable[..., Path]
EVERY_STEP = {"save_steps": 1, "logging_steps": 1}


class Killed(BaseException):
    """Ends a run at once, as kill -9 does: nothing is saved on the way out."""


@pytest.fixture
def data(tmp_path: Path, make_tree: Callable[..., ReasoningTree]) -> Path:
    """Seven questions of 1 to 6 labelled paths, 22 in all: no size of a step divides them."""
    shapes = [(2, 2), (1,), (3,), (5,), (2,), (4,), (1,)]
    trees = [make_tree(i, branches=shape, question=f"What is {i} + {i} ?") for i, shape in enumerate(shapes)]
    shards.write_shard(trees, tmp_path / "data", "trees", {})
    return tmp_path / "data"


@pytest.fixture
def train(tmp_path: Path, tiny_lm: Path, data: Path) -> Train:
    """Trains (two epochs, float32 unless asked otherwise) into a folder of this name; returns it."""

    def run(name: str, **changes: Any) -> Path:
        plain = {"num_epochs": 2, "mixed_precision": False, "device": "cpu", "report_to": "none"}
        plain |= {
            "model_path": str(tiny_lm),
            "val_size": 0.2,
            "learning_rate": 1e-3,
            "log_level": "WARNING",
            "data_dir": str(data),
        }
        return trainer.main(TrainOptions(**{**plain, "output_dir": str(tmp_path / name), **changes}))

    return run


@pytest.fixture
def killed(train: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """As ``train``, but cut off in the step after so many, or in the middle of the save of a folder of this name."""
    step, fill = trainer.optimizer_step, run_room.save_checkpoint

    def run(name: str, steps: int = -1, save: str = "", **changes: Any) -> Path:
        def one(run: Run, work: Work) -> trainer.Taught:
            return end(run) if run.state.step == steps else step(run, work)

        def saving(folder: Path, *rest: Any) -> None:
            fill(folder, *rest)
            if folder.name == save:
                (folder / "optimizer.pt").unlink()  # torn apart, and the rest of what was to be kept never came
                (folder / "manifest.json").unlink()
                folder.rename(folder.with_name(".tmp-1-0123abcd"))
                raise Killed

        def end(run: Run) -> NoReturn:
            run.keeper.wait()  # what was begun is written: the saves that are cut off are below
            torch.manual_seed(random.getrandbits(30))  # the common generators are elsewhere in the next process too
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "optimizer_step", one)
            patch.setattr(run_room, "save_checkpoint", saving)
            with pytest.raises(Killed):
                train(name, **changes)
        return Path(changes.get("output_dir", name))

    return run


def marks(run: Path, names: Sequence[str] = ("epoch_1", "epoch_2", "best", "final")) -> dict[str, str]:
    """The sha256 of all that must be the same, bit for bit."""
    kept = ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_state.json", "metrics.jsonl"]
    paths = [run / "metrics.jsonl", *(path for name in names for path in (run / name).iterdir() if path.name in kept)]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4, 7])
def test_a_run_cut_off_after_every_single_step_is_the_one_that_never_stopped(
    accumulation: int, train: Train, killed: Train, tmp_path: Path
) -> None:
    size = {"batch_size": 2 if accumulation < 7 else 1, "gradient_accumulation_steps": accumulation, **EVERY_STEP}
    whole = train("whole", **size)
    last = load_state(whole / "final").step
    for step in range(min(last, 9)):
        killed("cut", steps=step, resume="auto", **size)
        assert step == 0 or load_state(tmp_path / "cut" / f"checkpoint-{step}").step == step
    assert marks(train("cut", resume="auto", **size)) == marks(whole)
    assert last >= 6 and len(marks(whole)) == 21


@pytest.mark.parametrize("save_steps", [1, 2, 1000])
def test_a_run_cut_off_inside_any_save_is_the_one_that_never_stopped(
    save_steps: int, train: Train, killed: Train, tmp_path: Path
) -> None:
    size = {"batch_size": 2, "save_steps": save_steps, "logging_steps": 2}
    whole = train("whole", **size)
    saved = {1: ["checkpoint-1", "checkpoint-4"], 2: ["checkpoint-2", "epoch_1"], 1000: ["epoch_1", "epoch_2"]}
    for name in saved[save_steps]:
        killed("cut", save=name, resume="auto", **size)
        assert (tmp_path / "cut" / ".tmp-1-0123abcd").is_dir()
    cut = train("cut", resume="auto", **size)
    assert marks(cut) == marks(whole)
    assert [path.name for path in cut.glob(".*")] == [".lock"]


def test_a_run_cut_off_between_the_folders_of_an_epochs_end_gets_them_all(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole", save_optimizer=False)

    def never(*_: Any) -> NoReturn:
        raise Killed

    for _ in range(2):  # each time nothing but the first folder of an epoch's end was committed
        with monkeypatch.context() as patch:
            patch.setattr(run_room, "link_checkpoint", never)
            with pytest.raises(Killed):
                train("cut", save_optimizer=False, resume="auto", save_steps=1000)
    cut = train("cut", save_optimizer=False, resume="auto", save_steps=1000)
    assert marks(cut) == marks(whole)
    assert {path.parent.name for path in cut.glob("*/optimizer.pt")} == {"final"}
    assert all(verify_checkpoint(cut / name) for name in ("epoch_1", "epoch_2", "best", "final"))


def test_nothing_that_was_logged_after_the_checkpoint_stays(train: Train, killed: Train, tmp_path: Path) -> None:
    size = {"batch_size": 1, "gradient_accumulation_steps": 4, "logging_steps": 1, "save_steps": 3}
    whole = train("whole", **size)
    killed("cut", steps=5, resume="auto", **size)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 5  # but the newest checkpoint is of step 3
    assert marks(train("cut", resume="auto", **size)) == marks(whole)


def test_going_back_to_an_older_checkpoint_brings_the_older_best_back(
    train: Train, killed: Train, tmp_path: Path
) -> None:
    size = {"batch_size": 2, "num_epochs": 3, **EVERY_STEP}
    names = ("epoch_1", "epoch_2", "epoch_3", "best", "final")
    whole = train("whole", **size)
    steps = load_state(whole / "epoch_1").step
    killed("cut", steps=2 * steps + 1, resume="auto", **size)
    older = tmp_path / "cut" / f"checkpoint-{steps + 1}"
    killed("cut", steps=steps + 1, **size | {"resume": str(older)})
    assert load_state(tmp_path / "cut" / "best").step == steps
    assert marks(train("cut", **size | {"resume": str(older)}), names) == marks(whole, names)


# --- which run, which checkpoint --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["optimizer.pt", "manifest.json", "training_state.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_next_older_one_taken(
    file: str, train: Train, killed: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole", batch_size=2, **EVERY_STEP)
    killed("cut", steps=2, batch_size=2, **EVERY_STEP)
    damaged = tmp_path / "cut" / "checkpoint-2" / file
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    other = tmp_path / "cut" / "checkpoint-notes"  # not ours
    other.mkdir()
    with pytest.raises(ValueError, match=rf"checkpoint-2/{file}: .*Type --resume .*cut, which takes the newest whole"):
        train("cut", resume=str(damaged.parent), batch_size=2, **EVERY_STEP)
    cut = train("cut", resume="auto", batch_size=2, log_level="INFO", **EVERY_STEP)
    said = capsys.readouterr()
    assert f"checkpoint-2 is not whole, so an older one is looked for. {damaged}:" in said.err
    assert f"Resumed from {cut / 'checkpoint-1'}: step 1" in said.out
    assert marks(cut) == marks(whole) and other.is_dir()


def test_where_no_checkpoint_is_whole_nothing_is_begun_over_them(train: Train, killed: Train, tmp_path: Path) -> None:
    killed("cut", steps=1, batch_size=2, **EVERY_STEP)
    (tmp_path / "cut" / "checkpoint-1" / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"none of its 1 checkpoints is whole"):
        train("cut", resume="auto", batch_size=2, **EVERY_STEP)


def test_auto_finds_the_newest_unfinished_run_and_a_finished_one_is_left_as_it_is(
    train: Train, killed: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    killed("_", output_dir="checkpoints/cut", steps=1, **EVERY_STEP)
    train("_", output_dir="checkpoints/whole", **EVERY_STEP)
    assert train("_", output_dir=None, resume="auto", **EVERY_STEP) == Path("checkpoints/cut")
    assert marks(Path("checkpoints/cut")) == marks(Path("checkpoints/whole"))
    before = marks(tmp_path / "checkpoints/whole")
    for typed in ({"output_dir": None, "resume": "auto"}, {"output_dir": None, "resume": "checkpoints/whole"}):
        train("_", **typed, **EVERY_STEP)
        assert "is finished (there is training_stats.json): there is nothing to resume" in capsys.readouterr().out
    assert marks(tmp_path / "checkpoints/whole") == before


def test_without_a_checkpoint_it_starts_afresh_and_says_so(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert marks(train("new", resume="auto")) == marks(train("plain"))
    assert f"there is no checkpoint in {tmp_path / 'new'} yet, so the run starts afresh" in capsys.readouterr().err


def test_a_path_that_is_no_run_is_refused(train: Train, killed: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere, but there is no such folder"):
        train("a", resume=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"data, which is no run"):
        train("a", resume=str(tmp_path / "data"))
    killed("cut", steps=1, **EVERY_STEP)
    with pytest.raises(
        ValueError, match=r"--resume goes on in .*cut, but --output_dir is .*a\. Leave --output_dir out"
    ):
        train("a", resume=str(tmp_path / "cut"))
    with pytest.raises(ValueError, match=r"already holds a run .* or add --resume auto"):
        train("cut")


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("kept", ["config.json", "model.safetensors"])
def test_a_run_does_not_land_on_a_model(
    train: Train, tmp_path: Path, tiny_lm: Path, resume: str | None, kept: str
) -> None:
    lm = tmp_path / "lm"
    shutil.copytree(tiny_lm, lm)
    (lm / ({"config.json", "model.safetensors"} - {kept}).pop()).unlink()
    before = {path.name: path.read_bytes() for path in lm.iterdir()}
    with pytest.raises(ValueError, match=rf"lm, which holds something else: {kept}\. Type a folder that is not"):
        train("lm", resume=resume)
    assert {path.name: path.read_bytes() for path in lm.iterdir()} == before


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_does_not_land_on_a_checkpoint(train: Train, killed: Train, tmp_path: Path, resume: str | None) -> None:
    killed("cut", steps=1, **EVERY_STEP)
    with pytest.raises(ValueError, match=r"checkpoint-1, which holds something else: config\.json"):
        train("cut/checkpoint-1", resume=resume, **EVERY_STEP)
    assert verify_checkpoint(tmp_path / "cut" / "checkpoint-1")


@pytest.mark.parametrize("here", ["checkpoint-2", "checkpoint-2/below"])
def test_the_checkpoint_that_one_stands_in_belongs_to_its_run(
    here: str, train: Train, killed: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole", **EVERY_STEP, batch_size=2)
    killed("cut", steps=2, **EVERY_STEP, batch_size=2)
    (tmp_path / "cut" / here).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cut" / here)
    resumed = train("_", output_dir=None, resume="." if here == "checkpoint-2" else "..", **EVERY_STEP, batch_size=2)
    assert resumed.resolve() == tmp_path / "cut"
    assert marks(resumed) == marks(whole)


def test_a_damaged_config_of_a_run_is_named(train: Train, killed: Train, tmp_path: Path) -> None:
    (killed("cut", steps=1, output_dir=str(tmp_path / "cut"), **EVERY_STEP) / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cut/config\.json: not valid JSON"):
        train("cut", resume="auto", **EVERY_STEP)


# --- what may differ --------------------------------------------------------------------------------------------------


def test_every_difference_that_makes_it_another_run_is_named(train: Train, killed: Train, tmp_path: Path) -> None:
    killed("cut", steps=1, **EVERY_STEP)
    differences = {
        "batch_size": (3, "--batch_size 4"),
        "gradient_accumulation_steps": (2, "--gradient_accumulation_steps 4"),
        "seed": (7, "--seed 42"),
        "pooling_strategy": ("last", "--pooling_strategy mean"),
        "learning_rate": (1e-4, "--learning_rate 0.001"),
        "num_epochs": (3, "--num_epochs 2"),
        "use_prm_score": (False, "--use_prm_score"),
        "mixed_precision": (True, "--no-mixed_precision"),
    }
    for name, (value, again) in differences.items():
        with pytest.raises(ValueError, match=rf"--{name} is {value}, but was .*\. Type {again}, or begin anew"):
            train("cut", resume="auto", **{**EVERY_STEP, name: value})
    with pytest.raises(ValueError, match=r"--batch_size is 3, but was 4; --seed is 7, but was 42"):
        train("cut", resume="auto", batch_size=3, seed=7, **EVERY_STEP)


LORA: dict[str, Any] = {"tuning": "lora", "lora_rank": 2, **EVERY_STEP}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16_sr"])
@pytest.mark.parametrize("place", ["layers.0.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight"])
def test_small_matrices_go_on_beside_no_other_base(
    optimizer: str, place: str, train: Train, killed: Train, tmp_path: Path, tiny_lm: Path
) -> None:
    lm, lora = tmp_path / "lm", {**LORA, "optimizer": optimizer, "model_path": str(tmp_path / "lm")}
    shutil.copytree(tiny_lm, lm)
    killed("cut", steps=1, **lora)
    backbone = AutoModel.from_pretrained(lm, dtype=torch.float32)
    with torch.no_grad():
        backbone.get_parameter(place).view(-1)[0] += 0.01
    backbone.save_pretrained(lm)
    with pytest.raises(
        files.BadFile, match=rf"1 of its weights are others in --model_path now, as backbone\.{place}\. Type the"
    ):
        train("cut", resume="auto", **lora)
    shutil.rmtree(lm)
    shutil.copytree(tiny_lm, lm)
    assert load_state(train("cut", resume="auto", **lora) / "final").finished


@pytest.mark.parametrize("tuning", ["full", "head"])
def test_plain_weights_come_from_the_checkpoint_whatever_the_base_is_now(
    tuning: str, train: Train, killed: Train, tmp_path: Path, tiny_lm: Path
) -> None:
    lm, every = tmp_path / "lm", {"tuning": tuning, "model_path": str(tmp_path / "lm"), **EVERY_STEP}
    shutil.copytree(tiny_lm, lm)
    whole = train("whole", **every)
    killed("cut", steps=1, **every)
    shutil.rmtree(lm)
    save_lm(lm, 16, seed=5)
    assert marks(train("cut", resume="auto", **every)) == marks(whole)


def test_other_data_are_refused_and_moved_data_are_not(train: Train, killed: Train, tmp_path: Path, data: Path) -> None:
    killed("cut", steps=1, **EVERY_STEP)
    trees = shards.load_trees(data)
    trees[0].paths[1].latents = trees[0].paths[1].latents + 1e-6
    shards.write_shard(trees, tmp_path / "other", "trees", {})
    with pytest.raises(
        ValueError, match=r"was trained on other data than those in .*other \(digest \w{12}, now \w{12}"
    ):
        train("cut", resume="auto", data_dir=str(tmp_path / "other"), **EVERY_STEP)
    shutil.copytree(data, tmp_path / "moved")
    train("cut", resume="auto", data_dir=str(tmp_path / "moved"), **EVERY_STEP)


def test_how_often_it_saves_and_speaks_may_differ_and_how_it_packs_is_said(
    train: Train, killed: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole", **EVERY_STEP)
    killed("cut", steps=1, **EVERY_STEP)
    killed("packed", steps=1, **EVERY_STEP)
    cut = train("cut", resume="auto", save_steps=50, logging_steps=50, save_total_limit=1, log_level="ERROR")
    for name in ("pytorch_model.bin", "optimizer.pt"):
        assert (cut / "final" / name).read_bytes() == (whole / "final" / name).read_bytes()
    assert "last bits" not in capsys.readouterr().err
    train("packed", resume="auto", pack_tokens=64, **EVERY_STEP)
    assert "--pack_tokens was 4096 and is 64: the run goes on, but not to the same last bits" in capsys.readouterr().err


def test_every_option_that_may_differ_is_an_option() -> None:
    assert set(TrainOptions.__dataclass_fields__) > resuming.FREE | resuming.ROUNDING


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_only_the_newest_checkpoints_stay_and_nothing_else_is_removed(train: Train, killed: Train) -> None:
    run = train("run", batch_size=2, save_total_limit=2, **EVERY_STEP)
    last = load_state(run / "final").step
    kept = {f"checkpoint-{last - 1}", f"checkpoint-{last}", "epoch_1", "epoch_2", "best", "final"}
    assert {path.name for path in run.iterdir() if path.is_dir()} == kept
    assert verify_checkpoint(run / f"checkpoint-{last}")


def test_a_damaged_later_checkpoint_never_costs_the_one_that_was_just_saved(
    train: Train, killed: Train, tmp_path: Path
) -> None:
    killed("cut", steps=3, batch_size=2, **EVERY_STEP)
    for name in ("checkpoint-2", "checkpoint-3"):
        (tmp_path / "cut" / name / "pytorch_model.bin").write_bytes(b"")
    foreign = tmp_path / "cut" / "checkpoint-0"
    foreign.mkdir()  # no manifest: it is not ours
    killed("cut", steps=2, resume="auto", batch_size=2, save_total_limit=1, **EVERY_STEP)
    names = {path.name for path in (tmp_path / "cut").glob("checkpoint-*")}
    assert names == {"checkpoint-0", "checkpoint-2", "checkpoint-3"}
    assert verify_checkpoint(tmp_path / "cut" / "checkpoint-2")


# --- real processes ---------------------------------------------------------------------------------------------------


def typed(tiny_lm: Path, data: Path, *more: str) -> list[str]:
    words = [sys.executable, "-u", "-m", "latent_prm", "train", "--model_path", str(tiny_lm), "--data_dir", str(data)]
    return [*words, "--device", "cpu", "--logging_steps", "1", "--batch_size", "1", *more]


def test_a_second_writer_stops_at_once_and_names_the_first(train: Train, tmp_path: Path) -> None:
    with files.lock(tmp_path / "run" / ".lock", "training", ""):
        for resume in (None, "auto"):
            with pytest.raises(
                ValueError, match=rf"Another training \(pid {os.getpid()} on .*\) is writing into .*run\."
            ):
                train("run", resume=resume)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    train("run")  # whoever held it is gone, the file is not


@pytest.mark.slow
def test_of_two_processes_in_one_folder_exactly_one_wins(tmp_path: Path, tiny_lm: Path, data: Path) -> None:
    line = typed(tiny_lm, data, "--output_dir", "run", "--resume", "auto", "--num_epochs", "40", "--save_steps", "1000")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    both = [subprocess.Popen(line, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 1], said
    winner = next(one for one in both if one.returncode == 0)
    loser = said[next(i for i, one in enumerate(both) if one.returncode == 1)]
    assert f"Another training (pid {winner.pid} on " in loser and "is writing into run. Wait until it is" in loser


@pytest.mark.slow
def test_killed_eight_times_at_random_and_once_asked_to_stop_it_ends_at_the_same_bits(
    tmp_path: Path, tiny_lm: Path, data: Path
) -> None:
    env, draw = {**os.environ, "PYTHONPATH": str(ROOT)}, random.Random(0)
    line = typed(
        tiny_lm, data, "--num_epochs", "150", "--save_steps", "3", "--resume", "auto", "--save_total_limit", "3"
    )
    subprocess.run([*line, "--output_dir", "whole"], cwd=tmp_path, env=env, check=True, capture_output=True)
    kills = [signal.SIGKILL] * 8 + [signal.SIGTERM]
    for number in kills:
        with subprocess.Popen(
            [*line, "--output_dir", "cut"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as run:
            assert run.stdout is not None
            for said in run.stdout:
                if b"[Trainer] Step" in said:  # it is under way
                    break
            time.sleep(draw.uniform(0, 0.5))
            run.send_signal(number)
            run.stdout.read()
        assert run.returncode in (-signal.SIGKILL, 143), "it was through before it was killed"
    subprocess.run([*line, "--output_dir", "cut"], cwd=tmp_path, env=env, check=True, capture_output=True)
    names = [path.name for path in (tmp_path / "whole").glob("epoch_*")] + ["best", "final"]
    assert len(names) == 152
    assert marks(tmp_path / "cut", names) == marks(tmp_path / "whole", names)
