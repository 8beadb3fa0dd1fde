"""run.py, and the trainer with it: what is trained and kept, whatever the tuning, optimizer and losses; and its end."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import random_tree, save_family, save_tokenizer
from transformers import AutoConfig, AutoModel

from latent_prm import run as run_room
from latent_prm import shards, trainer
from latent_prm.checkpoint import Moment, load_state
from latent_prm.feeding import Work
from latent_prm.model import QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.run import Run
from latent_prm.tree import ReasoningTree

Train = Callable[..., Path]


class Killed(BaseException):
    """Ends a run at once, as kill -9 does: nothing is saved on the way out."""


@pytest.fixture
def trees(make_tree: Callable[..., ReasoningTree]) -> list[ReasoningTree]:
    """Eight questions with six labelled paths each, of one and two answers."""
    return [make_tree(i, branches=(2, 2), answers=1 + i % 2, question=f"What is {i} + {i} ?") for i in range(8)]


@pytest.fixture
def train(tmp_path: Path, tiny_lm: Path, trees: list[ReasoningTree]) -> Train:
    """Trains (two epochs of 3 steps, float32 unless asked otherwise) into a folder of this name; returns it."""
    shards.write_shard(trees, tmp_path / "data", "trees", {})

    def run(name: str, **changes: Any) -> Path:
        plain = {"num_epochs": 2, "mixed_precision": False, "device": "cpu", "report_to": "none", "batch_size": 12}
        plain |= {"gradient_accumulation_steps": 1, "val_size": 2, "learning_rate": 1e-3, "log_level": "WARNING"}
        places = {"model_path": str(tiny_lm), "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / name)}
        return trainer.main(TrainOptions(**{**plain, **places, **changes}))

    return run


def cut(train: Train, monkeypatch: pytest.MonkeyPatch, name: str, steps: int, **changes: Any) -> None:
    """As ``train``, but killed in the step after so many."""
    step = trainer.optimizer_step

    def one(run: Run, work: Work) -> trainer.Taught:
        return end(run) if run.state.step == steps else step(run, work)

    def end(run: Run) -> NoReturn:
        run.keeper.wait()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer, "optimizer_step", one)
        train(name, **changes)


def marks(run: Path) -> dict[str, str]:
    """The sha256 of all that must be the same, bit for bit."""
    kept = ["pytorch_model.bin", "optimizer.pt", "adapter.pt", "scheduler.pt", "training_state.json"]
    paths = [run / "metrics.jsonl", *(path for path in run.glob("*/*") if path.name in kept)]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if not path.parent.name.startswith("checkpoint")
    }


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"tuning": "lora", "lora_rank": 2},
    "head": {"tuning": "head"},
    "embeddings": {"train_embeddings": True},
    "second head": {"correctness_weight": 0.5, "loss": "bce+0.5*listwise+0.2*order", "supervise": "steps"},
    "weighed labels": {"weigh_labels": True, "loss": "mse+pairwise"},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "adamw_bf16_sr": {"optimizer": "adamw_bf16_sr"},
    "checkpointed": {"gradient_checkpointing": True},
    "early stopping": {"learning_rate": 0.0, "early_stopping_patience": 3, "val_steps": 2, "num_epochs": 9},
    "bfloat16": {"mixed_precision": True},
}


def test_a_run_that_never_began_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, kept in (("run", False), ("mine", True)):
        with pytest.raises(ValueError, match="--val_size is 8, but there are 8 questions"):
            train(name, val_size=8)
        assert (tmp_path / name).exists() is kept


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_run_that_is_stopped_while_it_loads_leaves_no_folder(
    number: signal.Signals, end: type[BaseException], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_room, "lessons_of", lambda *given: signal.raise_signal(number))
    with pytest.raises(end):
        train("run")
    assert not (tmp_path / "run").exists()


def test_the_end_of_a_run_says_how_test_questions_are_grown_where_there_are_none(
    train: Train, trees: list[ReasoningTree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, best = tmp_path / "data", tmp_path / "run" / "best"
    shutil.rmtree(data)
    shards.write_shard(trees, data, "trees", {"task": "gsm8k", "model": "me/it"})
    train("run", log_level="INFO", num_epochs=1)
    said = (tmp_path / "run" / "training.log").read_text("utf-8")
    collect = "latent-prm collect --model_path me/it --task gsm8k --split test --output_dir prm_data_test"
    score = f"latent-prm evaluate --checkpoint {best} --data_dir prm_data_test"
    assert f"Next: {collect}\n" in said and f"Then: {score}\n" in said
    shards.write_shard(trees, tmp_path / "prm_data_test", "trees", {})
    assert trainer.next_commands(str(data), best) == [score]
    (tmp_path / "evaluate_latent_prm.sh").touch()
    assert trainer.next_commands(str(data), best) == [f"CHECKPOINT={best} bash evaluate_latent_prm.sh"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_that_was_killed_is_the_one_that_never_stopped(
    kind: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"save_steps": 1, "logging_steps": 1, **KINDS[kind]}
    whole = train("whole", **every)
    for steps in (2, 4):
        cut(train, monkeypatch, "cut", steps, resume="auto", **every)
    assert marks(train("cut", resume="auto", **every)) == marks(whole)
    assert len(marks(whole)) > 12


@pytest.mark.parametrize("kind", ["lora", "head", "second head", "adamw_bf16_sr"])
def test_what_is_kept_loads_as_the_guide_says_and_differs_from_where_it_began(
    kind: str, train: Train, tiny_lm: Path, trees: list[ReasoningTree]
) -> None:
    run = train("run", **KINDS[kind])
    by_guide = QwenLatentPRM(model_path=str(tiny_lm))
    by_guide.load_state_dict(torch.load(run / "best" / "pytorch_model.bin", weights_only=True))
    by_folder = QwenLatentPRM.from_pretrained(run / "best")
    heads = ["value", "correctness"] if kind == "second head" else ["value"]
    for head in heads:
        for one, other in zip(
            by_guide.score_trees(trees, head=head), by_folder.score_trees(trees, head=head), strict=True
        ):
            assert torch.equal(one, other)
    start, found = QwenLatentPRM(str(tiny_lm)).state_dict(), by_folder.state_dict()
    moved = {name for name, value in start.items() if not torch.allclose(value, found[name], atol=1e-4)}
    inner = {name for name in moved if name.startswith("backbone.layers.")}
    assert bool(inner) == (kind != "head") and "head.weight" in moved
    beside = {"adapter.pt", "adapter_model.safetensors", "adapter_config.json"}
    assert beside <= {path.name for path in (run / "best").iterdir()} or kind != "lora"


def test_a_state_space_backbone_learns_and_loads_again(
    train: Train, trees: list[ReasoningTree], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"vocab_size": save_tokenizer(tmp_path / "lm"), "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    start = AutoModel.from_config(AutoConfig.for_model("mamba", **shape))
    start.save_pretrained(tmp_path / "lm")
    run = train("run", model_path=str(tmp_path / "lm"), num_epochs=1)
    loaded = QwenLatentPRM.from_pretrained(run / "best")
    layer = "layers.0.mixer.in_proj.weight"
    assert not torch.equal(loaded.backbone.state_dict()[layer], start.state_dict()[layer])
    by_guide = QwenLatentPRM(model_path=str(tmp_path / "lm"))
    by_guide.load_state_dict(torch.load(run / "best" / "pytorch_model.bin", weights_only=True))
    for one, other in zip(loaded.score_trees(trees), by_guide.score_trees(trees), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"MambaModel has 0 heads and cannot\. Type --sees chain"):
        loaded.see("tree")


def test_gradient_checkpointing_changes_nothing_of_what_is_learned(train: Train) -> None:
    plain, checkpointed = (train(f"{on}", gradient_checkpointing=on, logging_steps=1) for on in (False, True))
    for one, other in zip(lines(plain), lines(checkpointed), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's compiler warns of itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_layers_learn_the_same(train: Train) -> None:
    plain, compiled = (train(on, compile=on, logging_steps=1) for on in ("off", "on"))
    for one, other in zip(lines(plain), lines(compiled), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert "not compiled" not in (compiled / "training.log").read_text()


def test_layers_that_cannot_be_compiled_learn_all_the_same_and_it_is_said(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("No working C++ compiler found\nand many more lines")

    plain = train("plain", compile="off")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    run = train("run", compile="on")
    assert "The layers are not compiled, which is slower: No working C++ compiler found" in capsys.readouterr().err
    assert marks(run) == marks(plain)


def test_a_small_gradient_is_left_as_it_is_and_a_large_one_scaled(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[float, float]] = []
    clip = trainer.clip

    def look(run: Run, length: torch.Tensor, norm: float) -> None:
        clip(run, length, norm)
        left = torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()
        found.append((norm, float(left)))

    monkeypatch.setattr(trainer, "clip", look)
    train("loose", max_grad_norm=1e6, num_epochs=1)
    train("tight", max_grad_norm=0.01, num_epochs=1)
    assert all(after == pytest.approx(before) and before > 0.01 for before, after in found[:3])
    assert all(after == pytest.approx(0.01, rel=1e-3) for _, after in found[3:])
    assert found[0][0] == found[3][0]  # what is reported is the norm before


def test_the_token_embedding_learns_only_when_it_is_asked_to(train: Train, tiny_lm: Path) -> None:
    start = QwenLatentPRM(str(tiny_lm)).state_dict()["backbone.embed_tokens.weight"]
    for on in (False, True):
        run = train(f"{on}", train_embeddings=on)
        found = torch.load(run / "final" / "pytorch_model.bin", weights_only=True)["backbone.embed_tokens.weight"]
        assert torch.equal(start, found) is not on


# --- validation -------------------------------------------------------------------------------------------------------


def test_val_size_is_a_share_or_a_number_of_questions(train: Train) -> None:
    for size, count in ((2, 2), (0.25, 2), (3, 3)):
        stats = json.loads((train(f"{size}", val_size=size) / "training_stats.json").read_text())
        assert stats["questions"] == {"train": 8 - count, "validation": count}


def test_it_validates_every_so_many_steps_and_at_each_epochs_end(train: Train) -> None:
    run = train("run", val_steps=2, num_epochs=3)  # 3 steps an epoch
    assert [line["step"] for line in lines(run) if "val_loss" in line] == [2, 3, 4, 6, 8, 9]
    last = lines(run)[-1]
    assert {"val_loss", "val_ece", "val_spread", "train_loss"} <= last.keys()


def test_a_best_within_an_epoch_is_kept_and_comes_back(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.4, 0.6, 0.3, 0.7, 0.8] * 3)
    monkeypatch.setattr(trainer, "validate", lambda run: {"val_loss": next(losses)})
    every = {"val_steps": 1, "save_steps": 100, "save_total_limit": 1, "num_epochs": 2}
    run = train("run", **every)
    assert load_state(run / "best").step == 4
    assert json.loads((run / "training_stats.json").read_text())["best"]["kept_as"] == "checkpoint-4"
    # It goes on from the end of the first epoch, where the best was that of step 2.
    (run / "training_stats.json").unlink()
    losses = iter([0.9, 0.9, 0.9])
    began: list[int] = []
    step = trainer.optimizer_step

    def look(run: Run, work: Work) -> trainer.Taught:
        began.append(load_state(run.folder / "best").step)
        return step(run, work)

    monkeypatch.setattr(trainer, "optimizer_step", look)
    train("run", resume=str(run / "epoch_1"), **every)
    assert began[0] == 2 == load_state(run / "best").step


def test_it_stops_early_after_so_many_validations_without_a_lower_loss(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.4, 0.1])
    monkeypatch.setattr(trainer, "validate", lambda run: {"val_loss": next(losses)})
    run = train("run", val_steps=2, num_epochs=9, early_stopping_patience=2, log_level="INFO")
    stats = json.loads((run / "training_stats.json").read_text())
    assert stats["val_losses"] == [0.5, 0.4, 0.45, 0.4]  # steps 2, 3, 4, 6: two after the best
    assert stats["total_steps"] == 6 and stats["best"]["step"] == 3
    assert "Stopped early: 2 validations without a lower loss" in capsys.readouterr().out
    assert {"epoch_1", "epoch_2", "best", "final"} <= {path.name for path in run.iterdir()}
    assert load_state(run / "final").finished


def test_without_validation_the_best_is_that_of_the_lowest_training_loss(train: Train) -> None:
    run = train("run", val_size=0)
    best = json.loads((run / "training_stats.json").read_text())["best"]
    assert best["by"] == "training" and best["epoch"] == 2 and load_state(run / "best").step == best["step"]


# --- in the background ------------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    writing, going = threading.Event(), threading.Event()
    save, step = run_room.save_checkpoint, trainer.optimizer_step

    def slow(folder: Path, moment: Moment) -> None:
        if folder.name == "checkpoint-1":
            writing.set()
            assert going.wait(20), "no step was taken while the checkpoint was being written"
        save(folder, moment)
        seen.append((folder.name, moment.state.step))

    def one(run: Run, work: Work) -> trainer.Taught:
        if run.state.step == 1:
            assert writing.wait(20)
            going.set()
        return step(run, work)

    monkeypatch.setattr(run_room, "save_checkpoint", slow)
    monkeypatch.setattr(trainer, "optimizer_step", one)
    train("run", num_epochs=1, save_steps=1)
    assert seen == [("checkpoint-1", 1), ("checkpoint-2", 2), ("checkpoint-3", 3)]


def test_what_fails_in_the_background_ends_the_run_and_is_said(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, moment: Moment) -> NoReturn:
        time.sleep(0.1)
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(run_room, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train("run", num_epochs=1, save_steps=1)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"val_size": 2.5}, "--val_size is 2.5: type a share below 1, or a whole number"),
        ({"early_stopping_patience": 2, "val_size": 0}, "--early_stopping_patience needs validation"),
        ({"val_steps": 2, "val_size": 0}, "--val_steps needs validation"),
        ({"tuning": "lora", "train_embeddings": True}, "--train_embeddings trains a part of the backbone"),
        ({"report_to": "nothing"}, "'nothing' is none of tensorboard, wandb, trackio"),
    ],
)
def test_what_does_not_go_together_is_refused(typed: dict[str, Any], said: str, train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        train("run", **typed)
    assert not (tmp_path / "run").exists() or not any(path.is_dir() for path in (tmp_path / "run").iterdir())


def test_more_validation_questions_than_there_are_is_refused(train: Train) -> None:
    with pytest.raises(ValueError, match="--val_size is 500, but there are 8 questions"):
        train("run", val_size=500)


def test_a_loss_that_only_ranks_is_judged_by_its_ranking(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([{"val_loss": 0.2, "val_auroc": 0.6}, {"val_loss": 0.3, "val_auroc": 0.7}] * 2)
    monkeypatch.setattr(trainer, "validate", lambda run: next(figures))
    for loss, best in (("listwise", 2), ("listwise+0.1*mse", 1)):
        stats = json.loads((train(loss, loss=loss) / "training_stats.json").read_text())
        assert stats["best"]["epoch"] == best
        assert stats["best"]["loss"] == pytest.approx(0.3 if best == 2 else 0.2)


SHORT = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "gptj": {"rotary_dim": 4}}


@pytest.mark.parametrize(
    ("family", "reads"), [("gpt2", "fed,answer"), ("gpt2", "fed,tip,answer"), ("opt", "fed,answer"), ("gptj", "fed")]
)
def test_chains_beyond_the_last_position_are_refused_before_anything_is_written(
    family: str, reads: str, train: Train, trees: list[ReasoningTree], tmp_path: Path
) -> None:
    longest = max(tree.chain_length(path) for tree in trees for path in range(len(tree.paths))) + ("tip" in reads)
    taken = 6 + longest + ("answer" in reads)  # a question has six tokens, and an answer one
    table = taken - 2
    size = {"n_positions": table} if family == "gpt2" else {"max_position_embeddings": table}
    folder = str(save_family(tmp_path / "lm", family, **size, **SHORT.get(family, {})))
    with pytest.raises(
        ValueError, match=rf"take {taken} positions, but .* has {table}\. Type --max_seq_length {longest - 2}, or"
    ):
        train("run", model_path=folder, reads=reads)
    assert not (tmp_path / "run").exists()
    assert (train("run", model_path=folder, reads=reads, max_seq_length=longest - 2) / "final").is_dir()


def test_positions_that_are_computed_have_no_last_one(train: Train, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "lm", "qwen3", max_position_embeddings=8)
    assert (train("run", model_path=str(folder)) / "final").is_dir()


def test_a_question_that_leaves_no_position_for_a_latent_is_refused(train: Train, tmp_path: Path) -> None:
    shards.write_shard([random_tree(9, question="What is 1 + 1 + 1 + 1 ?")], tmp_path / "data", "long", {})
    folder = str(save_family(tmp_path / "lm", "gpt2", n_positions=10))
    with pytest.raises(ValueError, match=r"but GPT2Model has 10\. Type --context none, or another --model_path"):
        train("run", model_path=folder)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs .* but only .* are free. Type --save_total_limit 1"):
        train("run")
    assert not (tmp_path / "run").exists()


def test_a_backbones_own_dropout_is_off_so_that_packs_change_nothing(
    train: Train, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_family(tmp_path_factory.mktemp("gpt2"), "gpt2")
    runs = [train(f"{n}", model_path=str(folder), pack_tokens=n, dropout_prob=0.3, logging_steps=1) for n in (4096, 30)]
    for one, other in zip(*map(lines, runs), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
