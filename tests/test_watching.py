"""watching.py: numbers reach metrics.jsonl and the trackers as they are, and curves that are wrong are said."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_prm.evaluator import evaluate
from latent_prm.lessons import Lesson
from latent_prm.options import TrainOptions
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath
from latent_prm.watching import ALIKE, LONG, Pace, Watch, check, remarks, validation_figures

ROOT = Path(__file__).parent.parent
OPTIONS = TrainOptions()


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, which has no NaN."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_entries_become_lines_and_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    watch = Watch(tmp_path, entries, "none")
    assert lines(tmp_path) == []
    watch.record(10, 1, loss=0.5, grad_norm=math.inf, aside={"tokens_per_second": 3.0})
    assert lines(tmp_path) == entries  # at once, not when it is closed
    watch.record(12, 2, val_loss=math.nan, val_auroc=None)
    watch.close()
    assert entries == [
        {"step": 10, "epoch": 1, "loss": 0.5, "grad_norm": None},
        {"step": 12, "epoch": 2, "val_loss": None, "val_auroc": None},
    ]
    assert lines(tmp_path) == entries
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_of_steps_that_come_again_are_dropped(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    for step in (1, 2, 3):
        Watch(tmp_path, entries, "none").record(step, 1, loss=float(step))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "ep')  # cut off
    kept = entries[:2]
    watch = Watch(tmp_path, kept, "none")
    assert lines(tmp_path) == kept
    watch.record(3, 1, loss=3.0)
    assert lines(tmp_path) == kept == entries


# --- trackers ---------------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: by name, the value of each step, none of them twice."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in found.values()), "a step stands there twice"
    return {name: dict(pairs) for name, pairs in found.items()}


def test_tensorboard_gets_every_number_and_those_aside_too(tmp_path: Path) -> None:
    watch = Watch(tmp_path, [], "tensorboard", {"learning_rate": 2e-5, "resume": None})
    watch.record(1, 1, loss=0.5, grad_norm=math.nan, aside={"memory_gib": 1.5})
    watch.record(2, 1, loss=0.25)
    assert curves(tmp_path) == {"epoch": {1: 1, 2: 1}, "loss": {1: 0.5, 2: 0.25}, "memory_gib": {1: 1.5}}
    watch.close()
    watch.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"learning_rate: 2e-05" in events


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_after_a_resume_tensorboard_has_no_step_twice_and_none_of_another_past(tmp_path: Path, kept: int) -> None:
    entries: list[dict[str, Any]] = []
    first = Watch(tmp_path, entries, "tensorboard")
    for step in (2, 4, 6, 8):
        first.record(step, 1, loss=float(step))
    first.close()
    second = Watch(tmp_path, entries[:kept], "tensorboard")
    for step in (5, 7) if kept < 3 else (7, 9):  # with another --logging_steps
        second.record(step, 1, loss=step / 2)
    second.close()
    expected = {2.0 * step: 2.0 * step for step in range(1, kept + 1)}
    expected |= {5: 2.5, 7: 3.5} if kept < 3 else {7: 3.5, 9: 4.5}
    assert curves(tmp_path)["loss"] == expected


def test_auto_is_tensorboard_where_it_is_installed_and_nothing_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    Watch(tmp_path, [], "auto").close()
    assert (tmp_path / "tensorboard").is_dir()
    assert check("auto") == ["tensorboard"] and check("none") == []
    monkeypatch.setattr(sys, "path", [])  # nothing is installed any more
    assert check("auto") == []
    with pytest.raises(ValueError, match=r"accelerate and tensorboard must .* pip install accelerate tensorboard"):
        check("tensorboard")
    with pytest.raises(ValueError, match=r"'wandb,tensorboard', but .* pip install accelerate wandb"):
        Watch(tmp_path, [], "wandb,tensorboard")


def test_several_trackers_are_named_with_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("accelerate", "tensorboard", "wandb", "trackio"):  # as pip leaves it behind
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert check("wandb, tensorboard,wandb") == ["wandb", "tensorboard"]
    assert check("trackio") == ["trackio"]


@pytest.mark.parametrize(
    ("report_to", "said"),
    [
        ("WandB", "'WandB' is none of tensorboard, wandb, trackio. Did you mean wandb?"),
        ("tensorbord", "Did you mean tensorboard?"),
        ("mlflow", "Type some of them with commas, or auto or none alone."),
        ("none,mlflow", "'none' is none of"),
        ("", "--report_to is ''"),
    ],
)
def test_an_unknown_tracker_is_refused_with_what_to_type(report_to: str, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        check(report_to)
    assert said in str(refused.value)


def test_a_tracker_that_does_not_start_ends_the_run_only_when_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(ValueError, match=r"tensorboard did not start \(FileExistsError.*or --report_to none"):
        Watch(tmp_path, [], "tensorboard")
    Watch(tmp_path, [], "auto").record(1, 1, loss=0.5)
    assert "tensorboard did not start" in caplog.text
    assert lines(tmp_path) == [{"step": 1, "epoch": 1, "loss": 0.5}]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    watch = Watch(tmp_path, [], "tensorboard")
    with largest_file(1500):
        for step in range(1, 31):
            watch.record(step, 1, loss=0.5)
        for thread in set(threading.enumerate()) - {threading.current_thread()}:
            thread.join(0.2)  # the one that failed says so in this test, not in the next
    watch.close()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "tensorboard gets nothing from step" in warned[0]


def test_under_torchrun_the_trackers_open_no_group_of_processes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    code = f"""
import os, torch
from pathlib import Path
from latent_prm.watching import Watch
watch = Watch(Path({str(tmp_path)!r}), [], "tensorboard")
watch.record(1, 1, loss=0.5)
watch.close()
assert not torch.distributed.is_initialized()
assert os.environ["LOCAL_RANK"] == "0" and "NCCL_IB_DISABLE" not in os.environ
"""
    launched = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | launched, check=True, timeout=90)
    assert curves(tmp_path)["loss"] == {1: 0.5}


def running(watch: Watch, name: str) -> Any:
    """A tracker's own run."""
    tracker: Any = watch.trackers[name]
    return tracker.tracker


@pytest.mark.filterwarnings("default")  # they are not ours
def test_wandb_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb.sdk", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    entries: list[dict[str, Any]] = []
    for step in (1, 2):
        watch = Watch(tmp_path, entries, "wandb", {"learning_rate": 2e-5})
        run = running(watch, "wandb")
        assert run.project == "latent-prm" and run.name == tmp_path.name and run.config["learning_rate"] == 2e-5
        watch.record(step, 1, loss=0.5, aside={"memory_gib": 1.5})
        watch.close()
        said = capfd.readouterr().err  # its own summary of the run
        assert re.search(r" loss 0\.5\s", said) and re.search(r" memory_gib 1\.5\s", said)
    names = {path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(names) == 1
    fresh = Watch(tmp_path, [], "wandb")
    assert running(fresh, "wandb").id not in names
    fresh.close()


def test_trackio_goes_on_in_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = f"""
from pathlib import Path
from latent_prm.watching import Watch
entries = []
for step in (1, 2):
    watch = Watch(Path({str(tmp_path)!r}), entries, "trackio", {{"learning_rate": 2e-5}})
    watch.record(step, 1, loss=step / 4)
    watch.close()
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("latent-prm")
print([(log["step"], log["loss"]) for log in SQLiteStorage.get_logs("latent-prm", run)])
"""
    told = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=told, capture_output=True, text=True, check=True, timeout=120
    )
    assert "[(1, 0.25), (2, 0.5)]" in done.stdout


# --- speed and memory -------------------------------------------------------------------------------------------------


def test_pace_is_that_of_the_steps_since_the_last_log_line() -> None:
    pace = Pace(torch.device("cpu"))
    pace.add(600, 1000, 0.5)
    pace.add(900, 1000, 1.0)
    figures = pace.figures()
    assert figures["tokens_per_second"] == 1000.0 and figures["useful_share"] == 0.75
    assert 0.05 < figures["memory_gib"] < 64
    assert pace.say({**figures, "memory_gib": 2.06}) == "1,000 tokens/s, 75 % useful, 2.1 GiB"
    assert list(pace.figures()) == ["memory_gib"]  # no step since
    pace.add(30, 40, 0.1)
    assert pace.figures()["useful_share"] == 0.75 and pace.figures().keys() == {"memory_gib"}


# --- validation -------------------------------------------------------------------------------------------------------


def lesson(outcomes: Sequence[bool | None], targets: Sequence[float], inner: float | None = None) -> Lesson:
    """A question with a right noise-free path, leaves of these outcomes (None: no answer came), and maybe a parent."""

    def path(correct: bool | None, **what: Any) -> LatentPath:
        answers = [] if correct is None else [Answer(text="", value="5" if correct else "6", correct=correct)]
        return LatentPath(latents=torch.ones(1, 4), tip=None, answers=answers, **what)

    paths = [path(True, noise_free=True)] + [path(None)] * (inner is not None)
    given = {} if inner is None else {1: inner}
    for correct, target in zip(outcomes, targets, strict=True):
        given[len(paths)] = target
        paths.append(path(correct, parent=None if inner is None else 1))
    tree = ReasoningTree(question_id="q", question="?", gold="5", task="arithmetic", paths=paths)
    return Lesson(tree, given)


def test_validation_figures_are_as_worked_by_hand() -> None:
    lessons = [lesson([True, False, False], [1.0, 0.0, 0.0]), lesson([True, True], [1.0, 0.5], inner=0.75)]
    scores = [{1: 0.6, 2: 0.62, 3: 0.2}, {1: 0.7, 2: 0.9, 3: 0.3}]
    found = validation_figures(lessons, scores)
    squares = 0.4**2 + 0.62**2 + 0.2**2 + 0.05**2 + 0.1**2 + 0.2**2
    assert found["val_loss"] == pytest.approx(squares / 6)
    assert found["val_auroc"] == 0.5  # above one of the two wrong ones; the other question has no wrong one
    tenths = abs(0.61 - 0.5) * 2 + 0.2 + 0.05 + 0.1 + 0.2  # 0.6 and 0.62 fall into one
    assert found["val_ece"] == pytest.approx(tenths / 6)
    values = [score for own in scores for score in own.values()]
    assert found["val_spread"] == pytest.approx(np.std(values))
    assert list(found) == ["val_loss", "val_auroc", "val_ece", "val_spread"]


def test_validation_auroc_is_that_of_evaluate(make_tree: Callable[..., ReasoningTree]) -> None:
    trees = [make_tree(seed, branches=(3, 2), answers=1 + seed % 3) for seed in range(8)]
    scores = [torch.rand(len(tree.paths), generator=torch.Generator().manual_seed(i)) for i, tree in enumerate(trees)]
    auroc = evaluate(trees, scores, num_bootstrap=10).overall.auroc
    found = validation_figures([Lesson.of(tree) for tree in trees], [dict(enumerate(own.tolist())) for own in scores])
    assert auroc is not None and found["val_auroc"] == pytest.approx(auroc.mean, abs=1e-12)


def test_where_data_came_without_answers_a_target_above_one_half_is_right() -> None:
    scores = [{1: 0.9, 2: 0.1, 3: 0.5}]
    assert validation_figures([lesson([None] * 3, [0.6, 0.5, 0.2])], scores)["val_auroc"] == 1.0


def test_without_a_question_that_has_both_there_is_no_auroc_and_a_loss_that_is_no_number_stands_alone() -> None:
    alike = [lesson([True, True], [1.0, 1.0])]
    assert validation_figures(alike, [{1: 0.5, 2: 1.0}]).keys() == {"val_loss", "val_ece", "val_spread"}
    lost = validation_figures(alike, [{1: math.nan, 2: 1.0}])
    assert list(lost) == ["val_loss"] and math.isnan(lost["val_loss"])


# --- warnings ---------------------------------------------------------------------------------------------------------


def said_of(entries: list[dict[str, Any]], options: TrainOptions = OPTIONS) -> list[tuple[int, str]]:
    """What is said when, entry by entry."""
    return [(i, remark) for i in range(1, len(entries) + 1) for remark in remarks(entries[:i], options)]


def first_epoch(count: int, fall: float, warmup: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """So many log lines, whose loss falls from 0.3 by so much and scatters by 0.02."""
    draw = random.Random(seed)
    rates = [(i + 1) / warmup if i < warmup else 1 - i / (10 * count) for i in range(count)]
    losses = [0.3 - fall * i / count + draw.gauss(0, 0.02) for i in range(count)]
    return [{"step": 10 * i, "epoch": 1, "loss": losses[i], "lr": 2e-5 * rates[i]} for i in range(count)]


def test_a_loss_that_falls_is_not_warned_of() -> None:
    for seed in range(20):
        entries = first_epoch(4 * LONG, fall=0.2, seed=seed)
        entries += [{"step": 2000 * epoch, "epoch": epoch, "train_loss": 0.3 / epoch} for epoch in (1, 2, 3)]
        entries += [{"step": 6000, "epoch": 3, "val_loss": 0.1, "val_spread": 0.2}]
        assert said_of(entries) == []
    assert remarks([], OPTIONS) == []


def test_a_long_first_epoch_without_a_fall_is_warned_of_before_it_ends() -> None:
    warned = [when for seed in range(40) for when, _ in said_of(first_epoch(4 * LONG + 7, fall=0.0, seed=seed))]
    assert {LONG, 2 * LONG, 4 * LONG} == set(warned)  # and at no other line
    assert len(warned) > 80  # of 120
    assert said_of(first_epoch(LONG - 1, fall=0.0)) == []  # too short to tell
    assert said_of(first_epoch(LONG, fall=0.0, warmup=LONG)) == []  # the learning rate still rises
    still = [{**entry, "epoch": 2} for entry in first_epoch(LONG, fall=0.0)]
    assert said_of(still) == []  # a later epoch may have learnt all there is
    ((_, remark),) = said_of([{**entry, "loss": 0.25} for entry in first_epoch(LONG, fall=0.0)])
    assert remark.startswith("The loss did not fall: 0.2500 in the first 10 log lines, 0.2500 in the newest 10. Try")


def test_a_loss_that_does_not_fall_over_epochs_is_said_with_the_guides_remedies_and_not_every_time() -> None:
    losses = [0.2, 0.2, 0.3, 0.1, 0.25]
    entries = [{"step": i, "epoch": i, "train_loss": loss} for i, loss in enumerate(losses, 1)]
    (second, remark), (fifth, _) = said_of(entries)
    assert (second, fifth) == (2, 5)
    assert remark == (
        "The loss did not fall: 0.2000 in the first epoch, 0.2000 in epoch 2. Try another --learning_rate (1e-5 or "
        "5e-5), look at the data (cat prm_data/*_metadata.json: 100 samples or more, scores that differ), or try "
        "--pooling_strategy last or max."
    )
    typed = TrainOptions(learning_rate=1e-3, pooling_strategy="last", data_dir="mine")
    (_, other), _ = said_of(entries, typed)
    assert "--learning_rate (0.0005 or 0.0025)" in other and "max or mean" in other and "mine/*_meta" in other


def test_predicted_scores_that_are_all_alike_are_said_when_it_begins() -> None:
    spreads = [0.2, ALIKE / 2, ALIKE / 3, 0.1, 0.0]
    entries: list[dict[str, Any]] = [{"step": i, "epoch": 1, "val_spread": s} for i, s in enumerate(spreads)]
    found = said_of(entries)
    assert [when for when, _ in found] == [2, 5]
    assert "The predicted scores are all alike (their standard deviation is 5.0e-05)" in found[0][1]
    assert "--learning_rate (1e-5 or 5e-5)" in found[0][1]
