"""Before anything expensive: what would fail at the end is refused at once, by every stage, in the same words."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_lm

from latent_prm import model, ranks, reasoner, shards, sizing
from latent_prm.__main__ import main
from latent_prm.memory import spell
from latent_prm.options import TrainOptions
from latent_prm.preflight import can_write, free_space, taken, width_read, width_there
from latent_prm.pretrained import find_device
from latent_prm.sizing import Disk, disk, need, shape_of, skeleton
from latent_prm.tree import ReasoningTree

MakeTree = Callable[..., ReasoningTree]


class Loaded(Exception):
    """Weights were loaded: too late."""


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails the test."""

    def load(*args: Any, **settings: Any) -> None:
        raise Loaded

    monkeypatch.setattr(reasoner.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(model.AutoModel, "from_pretrained", load)
    monkeypatch.setattr(model.weights, "load", load)


@pytest.fixture
def data(tmp_path: Path, make_tree: MakeTree) -> Path:
    """Ten questions of four labelled paths, and a noise-free one each; the built-in models do not read their width."""
    trees = [make_tree(i, branches=(4,), question=f"What is {i} + {i} ?") for i in range(10)]
    shards.write_shard(trees, tmp_path / "data", "trees", {})
    return tmp_path / "data"


def stages(data: Path, out: Path) -> dict[str, list[str]]:
    """A command of every stage that writes into a folder."""
    yaml = data.parent / "grid.yaml"
    yaml.write_text(
        "pools: {train: {task: arithmetic, max_samples: 4}, test: {task: arithmetic, split: test, max_samples: 4}}\n"
        "base: {pool: train}\narms: {other: {loss: bce}}\nseeds: [1]\nevaluate: [test]\nfigures: [best]\n"
    )
    return {
        "collect": f"--max_samples 4 --output_dir {out}".split(),
        "train": f"--data_dir {data} --output_dir {out}".split(),
        "evaluate": f"--checkpoint builtin --data_dir {data} --output_dir {out}".split(),
        "tune-noise": f"--max_samples 4 --output_dir {out}".split(),
        "steer": f"--max_samples 4 --output_dir {out}".split(),
        "experiment": f"{yaml} --output_dir {out}".split(),
        "convert": f"{data} --output_dir {out}".split(),
    }


WRITERS = ("collect", "train", "evaluate", "tune-noise", "steer", "experiment", "convert")


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", WRITERS)
def test_a_folder_that_cannot_be_written_is_told_before_weights_are_loaded(
    stage: str, data: Path, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").write_text("")
    out = tmp_path / "a_file" / "out"
    assert main([stage, *stages(data, out)[stage]]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"{out}\S* cannot be written to \({tmp_path / 'a_file'} is a file\)\. Type another", said), said


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which not even root may write")
def test_whether_a_folder_can_be_written_is_found_out_by_writing() -> None:
    assert os.access("/proc", os.W_OK) or os.geteuid() != 0  # asking alone would not have told
    with pytest.raises(OSError, match=r"^/proc/out cannot be written to \(.+\)\. Type another --output_dir\.$"):
        can_write("/proc/out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"cannot be written to \(Permission denied\)"):
        can_write(tmp_path / "out")


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    can_write(tmp_path / "a" / "b")
    can_write(tmp_path)
    assert not list(tmp_path.iterdir())


# --- room -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 100 KiB left."""
    usage = shutil.disk_usage("/")._replace(free=100 * 2**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_collection_that_does_not_fit_is_told_before_weights_are_loaded(
    tmp_path: Path, tiny_lm: Path, full: None, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"collect --model_path {tiny_lm} --task arithmetic --num_paths 4 --latent_steps 3 --device cpu"
    out = tmp_path / "prm_data"
    assert main([*typed.split(), "--max_samples", "1000", "--output_dir", str(out)]) == 1
    needed = 4 * 16 * (4 + 1) * (3 + 1) * 1000  # float32, width, paths, latents and the tip, questions
    said = f"{out} needs {spell(needed)} for the trees of 1,000 questions, but only 100.0 KiB are free. Type a lower"
    assert said in capsys.readouterr().err
    with pytest.raises(Loaded):  # a smaller one fits
        main([*typed.split(), "--max_samples", "10", "--output_dir", str(out)])


def test_what_is_grown_already_needs_no_room_any_more(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    typed = f"collect --model_path {tiny_lm} --task arithmetic --num_paths 2 --latent_steps 2 --max_new_tokens 3"
    for count, left in ((4, 4), (10, 6), (10, 0)):
        caplog.clear()
        assert main([*typed.split(), "--max_samples", str(count), "--output_dir", str(tmp_path / "data")]) == 0
        assert f"for the trees of {left} questions" in caplog.text


@pytest.mark.parametrize("resumed", [False, True])
def test_a_training_that_does_not_fit_is_told_before_weights_are_loaded(
    resumed: bool, data: Path, tiny_lm: Path, tmp_path: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    planned = planned_for(tiny_lm, num_epochs=5, save_steps=2)
    usage = shutil.disk_usage("/")._replace(free=planned.total - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run = tmp_path / "run"
    typed = (
        f"train --model_path {tiny_lm} --data_dir {data} --output_dir {run} --save_steps 2 --device cpu --val_size 0"
    )
    if resumed:  # what is there already is not needed again
        (run / "checkpoint-2").mkdir(parents=True)
        (run / "checkpoint-2" / "pytorch_model.bin").write_bytes(b"0" * 10)
        assert main([*typed.split(), "--resume", "auto"]) == 1
        assert "none of its 1 checkpoints is whole" in capsys.readouterr().err
        return
    assert main(typed.split()) == 1
    said = capsys.readouterr().err
    assert f"{run} needs {spell(planned.total)} for {planned}, but only {spell(planned.total - 1)} are free." in said
    assert "Type --save_total_limit 1 or --no-save_optimizer" in said


def planned_for(model_path: Path, **changes: Any) -> Disk:
    """Ten questions of four labelled paths make an epoch of ceil(10 / 4) = 3 steps of 16 paths."""
    options = TrainOptions(model_path=str(model_path), **changes)
    return disk(options, shape_of(skeleton(str(model_path)), 16), 3 * options.num_epochs)


def test_what_is_planned_is_counted_by_moments() -> None:
    folder = str(Path(sizing.reader_folder()))
    shape = shape_of(skeleton(folder))
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({"save_steps": 100}, 3, 0),  # 300 steps: 100 and 200 are epochs' ends too
        ({"save_steps": 50}, 6, 0),  # and 50, 150, 250
        ({"save_steps": 50, "save_total_limit": 1}, 5, 0),  # one, and the next before it goes
        ({"save_steps": 50, "save_total_limit": 1, "val_steps": 10}, 6, 0),  # and the best so far
        ({"save_steps": 100, "save_optimizer": False}, 1, 2),  # final has all
        ({"save_steps": 1000}, 3, 0),
    ]
    for settings, num_whole, num_light in cases:
        options = TrainOptions(num_epochs=3, **settings)
        found = disk(options, shape, 300)
        assert (found.num_whole, found.num_light) == (num_whole, num_light), settings
        assert found.whole == need(shape, options, torch.float32, sizing.Load(1, 1)).held
        assert found.total == num_whole * found.whole + num_light * found.light


def test_what_is_planned_is_what_a_run_takes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = save_lm(tmp_path / "lm", hidden_size=128), tmp_path / "run"  # so that weights outweigh their names
    typed = f"train --model_path {folder} --data_dir {data} --output_dir {run} --save_steps 2 --num_epochs 2"
    small = "--device cpu --val_size 0 --report_to none --no-mixed_precision"
    assert main([*typed.split(), *small.split(), "--plan"]) == 0
    planned = planned_for(folder, num_epochs=2, save_steps=2)
    said = capsys.readouterr().out
    assert f"Disk: about {planned}: {spell(planned.total)}; " in said and not run.exists()
    assert main([*typed.split(), *small.split()]) == 0
    assert f"Disk: {spell(planned.total)} for {planned}; " in capsys.readouterr().out
    assert planned.num_whole == 4 and taken(run) == pytest.approx(planned.total, rel=0.05)


def test_free_space_is_that_of_where_a_folder_would_be_made(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


# --- widths -----------------------------------------------------------------------------------------------------------


def test_a_prm_that_reads_other_latents_is_told_before_weights_are_loaded(
    data: Path, tiny_lm: Path, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = width_read("builtin")
    out = f"--output_dir {tmp_path / 'out'}"
    assert (wide, width_there(data), width_there(tmp_path)) == (128, 16, None)
    for typed, said in (
        (f"evaluate --checkpoint builtin --data_dir {data} {out}", f"The latents in {data} are 16 wide"),
        (f"solve 1+1 --model_path {tiny_lm}", f"The latents of the reasoner {tiny_lm} are 16 wide"),
        (f"steer --model_path {tiny_lm} {out}", f"The latents of the reasoner {tiny_lm} are 16 wide"),
    ):
        assert main(typed.split()) == 1
        assert f"{said}, but the PRM in builtin reads latents {wide} wide. Type the --" in capsys.readouterr().err


def test_a_reasoner_that_thinks_otherwise_than_what_is_in_a_folder_is_told(
    data: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "--max_samples", "4", "--output_dir", str(data)]) == 1
    assert f"The latents in {data} are 16 wide, but those of builtin are 128." in capsys.readouterr().err


# --- devices ----------------------------------------------------------------------------------------------------------

TORCH = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


@pytest.mark.skipif(TORCH is not None, reason="there is a device here")
@pytest.mark.parametrize("stage", [*WRITERS, "solve"])
def test_a_device_that_is_not_there_ends_every_stage_at_once(
    stage: str, data: Path, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = stages(data, tmp_path / "out").get(stage, ["1+1"])
    if stage == "convert":
        pytest.skip("it computes nothing")
    if stage == "experiment":
        path = Path(typed[0])
        path.write_text(path.read_text().replace("base: {", "base: {device: mps, "))
    else:
        typed = [*typed, "--device", "mps"]
    assert main([stage, *typed]) == 1
    said = capsys.readouterr().err
    assert "--device is mps, but no MPS device was found. Type --device cpu, or auto." in said
    assert not (tmp_path / "out").exists()


def test_a_gpu_beyond_those_that_are_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1") and find_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match="--device is cuda:7, but 2 CUDA devices were found"):
        find_device("cuda:7")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="Process 2 of this machine has no GPU of its own: there are 2"):
        ranks.local_device(torch.device("cuda"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_torch_without_cuda_says_so() -> None:
    with pytest.raises(ValueError, match=r"no CUDA device was found\. .* This torch \(.*\) is built without CUDA"):
        find_device("cuda")


@pytest.mark.parametrize("device", ["meta", "hpu", "gpu", "cuda:x"])
def test_a_device_of_no_kind_is_told(device: str) -> None:
    with pytest.raises(ValueError, match=f"--device is {device}, but there is no such kind. Type cuda, cpu or auto"):
        find_device(device)
