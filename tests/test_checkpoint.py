"""checkpoint.py: what a folder holds, that it loads as the guide says, and how equal ones share bytes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from latent_prm.checkpoint import Keeper, Moment, TrainingState, link_checkpoint, save_checkpoint
from latent_prm.model import QwenLatentPRM
from latent_prm.tree import ReasoningTree

FIVE = {"pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_state.json", "config.json"}
OURS = {"questions.json", "metrics.jsonl", "manifest.json"}
QUESTIONS = {"train": ["a" * 16, "b" * 16], "validation": []}


@pytest.fixture
def model(tiny_lm: Path) -> QwenLatentPRM:
    torch.manual_seed(0)
    return QwenLatentPRM(tiny_lm, latent_dim=6, pooling_strategy="last")


def save(folder: Path, model: QwenLatentPRM) -> None:
    optimizer = AdamW(model.parameters(), lr=1e-3)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    state = TrainingState(step=3, epoch=1, seed=42)
    save_checkpoint(folder, Moment.of(model, optimizer, scheduler, state, QUESTIONS))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_holds_the_guides_five_files_the_tokenizer_and_the_questions(
    tmp_path: Path, model: QwenLatentPRM
) -> None:
    save(tmp_path / "best", model)
    assert names(tmp_path / "best") - {"tokenizer.json", "tokenizer_config.json"} == FIVE | OURS
    assert names(tmp_path) == {"best"}  # nothing temporary is left
    state = json.loads((tmp_path / "best" / "training_state.json").read_text())
    progress = {"step": 3, "epoch": 1, "epoch_steps": 0, "sums": {}, "units": {}, "stale": 0, "finished": False}
    assert state == progress | {"seed": 42, "epoch_losses": [], "val_losses": [], "best": None, "scaler": {}}
    assert json.loads((tmp_path / "best" / "questions.json").read_text()) == QUESTIONS


def test_it_loads_with_the_guides_snippet_and_without_the_original_model(
    tmp_path: Path, model: QwenLatentPRM, tiny_lm: Path, make_tree: Callable[..., ReasoningTree]
) -> None:
    tree = make_tree(width=6)
    expected = model.score_trees([tree])[0]
    save(tmp_path / "best", model)
    by_guide = QwenLatentPRM(model_path=str(tiny_lm))
    by_guide.load_state_dict(torch.load(tmp_path / "best" / "pytorch_model.bin", weights_only=True))
    by_folder = QwenLatentPRM.from_pretrained(tmp_path / "best")
    for loaded in (by_guide, by_folder):
        assert (loaded.latent_dim, loaded.pooling) == (6, "last")
        assert torch.equal(loaded.score_trees([tree])[0], expected)


def test_optimizer_and_scheduler_load_as_plain_data(tmp_path: Path, model: QwenLatentPRM) -> None:
    save(tmp_path / "c", model)
    optimizer = torch.load(tmp_path / "c" / "optimizer.pt", weights_only=True)
    scheduler = torch.load(tmp_path / "c" / "scheduler.pt", weights_only=True)
    assert optimizer["param_groups"][0]["lr"] == 1e-3
    assert scheduler["last_epoch"] == 0


def test_equal_weights_are_equal_bytes_whatever_the_folder_is_called(tmp_path: Path, model: QwenLatentPRM) -> None:
    save(tmp_path / "a", model)
    save(tmp_path / "another-name", model)
    for name in sorted(names(tmp_path / "a")):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "another-name" / name).read_bytes(), name


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path, model: QwenLatentPRM) -> None:
    save(tmp_path / "best", model)
    before = (tmp_path / "best" / "pytorch_model.bin").read_bytes()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"best was not written: NaN or infinite weights \(head.weight\)"):
        save(tmp_path / "best", model)
    assert (tmp_path / "best" / "pytorch_model.bin").read_bytes() == before


def test_a_linked_checkpoint_shares_the_bytes_and_replaces_what_was_there(tmp_path: Path, model: QwenLatentPRM) -> None:
    save(tmp_path / "epoch_2", model)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "of_an_earlier_epoch").touch()
    link_checkpoint(tmp_path / "epoch_2", tmp_path / "best")
    assert names(tmp_path / "best") == names(tmp_path / "epoch_2")
    assert names(tmp_path) == {"best", "epoch_2"}
    for path in (tmp_path / "epoch_2").iterdir():
        assert path.samefile(tmp_path / "best" / path.name)


def test_where_there_are_no_hard_links_a_checkpoint_is_copied(
    tmp_path: Path, model: QwenLatentPRM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> NoReturn:
        raise OSError(95, "Operation not supported")

    save(tmp_path / "final", model)
    monkeypatch.setattr(os, "link", refuse)
    link_checkpoint(tmp_path / "final", tmp_path / "best")
    for path in (tmp_path / "final").iterdir():
        copy = tmp_path / "best" / path.name
        assert copy.read_bytes() == path.read_bytes() and not copy.samefile(path)


def test_what_is_written_later_is_what_was_true_when_it_was_kept(tmp_path: Path, model: QwenLatentPRM) -> None:
    optimizer = AdamW(model.parameters(), lr=1e-3)
    state = TrainingState(step=3, epoch=1, seed=42, epoch_losses=[0.5])
    moment = Moment.of(model, optimizer, LambdaLR(optimizer, lambda step: 1.0), state, QUESTIONS)
    before = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1
    state.epoch_losses.append(0.4)
    save_checkpoint(tmp_path / "c", moment)
    assert torch.equal(torch.load(tmp_path / "c" / "pytorch_model.bin", weights_only=True)["head.weight"], before)
    assert json.loads((tmp_path / "c" / "training_state.json").read_text())["epoch_losses"] == [0.5]


def test_the_keeper_does_one_job_at_a_time_in_order_and_says_what_failed() -> None:
    keeper, begun, go, done = Keeper(), threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        go.wait(10)
        done.append("slow")

    def fail() -> None:
        raise OSError(28, "No space left on device", "best")

    keeper.keep(slow)
    assert begun.wait(10) and not done  # it is written while we are here
    threading.Timer(0.05, go.set).start()
    keeper.keep(lambda: done.append("next"))  # waits for the first
    assert done[0] == "slow"
    keeper.wait()
    assert done == ["slow", "next"]
    keeper.keep(fail)
    with pytest.raises(OSError, match="No space left"):
        keeper.wait()
    keeper.wait()  # it was said
