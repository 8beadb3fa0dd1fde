"""trainer.py: what a run learns from, that its steps are exact, what it says, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from latent_prm import feeding, optimizers, shards, trainer
from latent_prm.grading import question_digest
from latent_prm.lessons import Lesson, epoch_steps, split
from latent_prm.losses import Held
from latent_prm.model import Logits, QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.run import new_run_folder
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

ROOT = Path(__file__).parent.parent
Train = Callable[..., Path]
MakeTree = Callable[..., ReasoningTree]


@pytest.fixture
def train(tmp_path: Path, tiny_lm: Path) -> Train:
    """Writes trees as a shard, trains on them (one epoch, float32 unless asked otherwise); returns the run folder."""

    def run(trees: Sequence[ReasoningTree], name: str = "run", **changes: Any) -> Path:
        data = tmp_path / f"data_of_{name}"
        shards.write_shard(list(trees), data, "trees", {})
        plain = {"num_epochs": 1, "mixed_precision": False, "device": "cpu", "report_to": "none"}
        places = {"model_path": str(tiny_lm), "data_dir": str(data), "output_dir": str(tmp_path / name)}
        return trainer.main(TrainOptions(**{**plain, **places, **changes}))

    return run


@pytest.fixture
def trees(make_tree: MakeTree) -> list[ReasoningTree]:
    """Six questions; each has a noise-free path and six noisy ones (two roots, two children each)."""
    return [make_tree(seed, branches=(2, 2), question=f"What is {seed} + {seed} ?") for seed in range(6)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint / "pytorch_model.bin", weights_only=True)


def digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "pytorch_model.bin").read_bytes()).hexdigest()


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def wide(tree: ReasoningTree, targets: Sequence[float]) -> Lesson:
    return Lesson(tree, dict(enumerate(targets)))


# --- exactness --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(
    train: Train, trees: list[ReasoningTree]
) -> None:
    runs = [train(trees, name, seed=seed, num_epochs=2) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = (digest(run / "final") for run in runs)
    assert a == b != c


def test_a_step_does_not_depend_on_how_it_is_cut_into_packs(train: Train, make_tree: MakeTree) -> None:
    # Questions of unlike sizes, so that another cut also means another order of paths, and dropout is on.
    trees = [make_tree(i, branches=(n,), question=f"What is {i} ?") for i, n in enumerate([1, 7, 2, 6, 3, 5, 4, 2])]
    step = {"batch_size": 30, "gradient_accumulation_steps": 1, "val_size": 0, "learning_rate": 1e-3, "num_epochs": 2}
    once, *others = (
        weights(train(trees, f"{n}", pack_tokens=n, dropout_prob=0.3, **step) / "final") for n in (16384, 8, 40, 70)
    )
    for other in others:
        for name, value in once.items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0)


LOSSES = ["mse", "bce", "listwise", "pairwise", "order", "bce+0.5*listwise+0.3*order"]


@pytest.mark.parametrize("supervise", ["paths", "steps"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shares", [True, False])
def test_no_loss_depends_on_packs(
    loss: str, supervise: str, shares: bool, train: Train, make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One step of plain descent (rate 1) without clipping: weights tell the gradient. Some trees branch twice.
    sizes = [(1,), (5,), (2, 2), (6,), (3,), (2, 3)]
    trees = [make_tree(i, branches=n, question=f"What is {i} ?") for i, n in enumerate(sizes)]
    if not shares:
        monkeypatch.setattr(QwenLatentPRM, "_packs_exactly", lambda self: False)
    monkeypatch.setattr(optimizers, "make_optimizer", lambda model, _: torch.optim.SGD(model.parameters(), lr=1.0))
    one = {"batch_size": 64, "gradient_accumulation_steps": 1, "val_size": 0, "warmup_ratio": 0, "max_grad_norm": 0}
    found = []
    for tokens in (16384, 8, 40):
        run = train(trees, f"{tokens}", pack_tokens=tokens, loss=loss, supervise=supervise, **one)
        found.append((read(run / "training_stats.json")["epoch_losses"], weights(run / "final")))
    for losses, other in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-6)
        for name, value in found[0][1].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-5)
    assert found[0][0][0] > 0


def test_mse_is_to_the_bit_what_it_always_was(
    train: Train, trees: list[ReasoningTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(self: Any, logits: Logits, held: Any) -> torch.Tensor:
        batch = held.terms["batch"]
        rows = {row: k for k, row in enumerate((i, p) for i, paths in enumerate(self.wanted) for p in paths)}
        at = torch.tensor([rows[row] for row in batch.paths])
        targets = torch.tensor([self.trees[i].paths[p].prm_score for i, p in rows])
        return (logits.value.float().sigmoid() - targets[at]).square().mean() * (len(at) / len(rows))

    small = {"num_epochs": 2, "pack_tokens": 40, "learning_rate": 1e-3, "reads": "fed", "loss": "mse"}
    now = digest(train(trees, "now", **small) / "final")
    monkeypatch.setattr(feeding.StepLoss, "prepare", lambda self, batch: Held(torch.empty(0), {"batch": batch}))
    monkeypatch.setattr(feeding.StepLoss, "share", old)
    assert digest(train(trees, "then", **small) / "final") == now


@pytest.mark.parametrize("supervise", ["paths", "steps"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_can_be_learned(loss: str, supervise: str, train: Train, trees: list[ReasoningTree]) -> None:
    steady = {"learning_rate": 3e-3, "dropout_prob": 0.0, "val_size": 0, "context_dropout": 0.0, "warmup_ratio": 0.0}
    run = train(trees, num_epochs=6, loss=loss, supervise=supervise, batch_size=36, **steady)
    losses = read(run / "training_stats.json")["epoch_losses"]
    assert losses[-1] < losses[0]


def test_a_step_depends_on_the_product_of_batch_and_accumulation_only(train: Train, trees: list[ReasoningTree]) -> None:
    cuts = [(1, 12), (4, 3), (12, 1)]
    runs = [train(trees, f"{b}x{a}", batch_size=b, gradient_accumulation_steps=a) for b, a in cuts]
    assert len({digest(run / "final") for run in runs}) == 1


def test_the_mean_loss_of_an_epoch_does_not_depend_on_the_size_of_a_step(
    train: Train, trees: list[ReasoningTree], tiny_lm: Path
) -> None:
    still = {
        "learning_rate": 0.0,
        "dropout_prob": 0.0,
        "context_dropout": 0.0,
        "val_size": 0,
        "reads": "fed",
        "loss": "mse",
    }
    sizes = [(1, 6), (4, 4), (7, 1), (9, 9)]  # 1, 2, 1 and 13 questions to a step: some of the last steps are smaller
    runs = [
        train(trees, f"{b}x{a}", batch_size=b, gradient_accumulation_steps=a, num_epochs=2, **still) for b, a in sizes
    ]
    model = QwenLatentPRM.from_pretrained(runs[0] / "final")
    scores = model.score_trees(trees)
    squares = [
        (float(scores[i][p]) - target) ** 2
        for i, tree in enumerate(trees)
        for p, target in Lesson.of(tree).targets.items()
    ]
    assert len(squares) == 36
    for run in runs:
        assert read(run / "training_stats.json")["epoch_losses"] == pytest.approx([sum(squares) / 36] * 2, abs=1e-6)


def test_paths_without_a_label_change_nothing(train: Train, make_tree: MakeTree) -> None:
    def grow(scale: float) -> list[ReasoningTree]:
        trees = [make_tree(seed, branches=(6,), unexpanded=0.5, question=f"{seed} ?") for seed in range(4)]
        for tree in trees:
            for path in tree.paths:
                if path.prm_score is None or path.noise_free:
                    path.latents = path.latents * scale
        return trees

    unlabelled = [path for tree in grow(1.0) for path in tree.paths if path.prm_score is None]
    assert unlabelled
    assert digest(train(grow(1.0), "a", val_size=0) / "final") == digest(train(grow(7.0), "b", val_size=0) / "final")


# --- what is learned from, and in which order -------------------------------------------------------------------------


def test_trees_of_one_question_stay_on_one_side_of_the_split(make_tree: MakeTree) -> None:
    twice = [make_tree(seed, question=f"What is {seed // 2} + 1 ?") for seed in range(40)]  # each question in two trees
    train, validation = split([Lesson.of(tree) for tree in twice], 0.25, 42)
    sides = [{question_digest(lesson.tree.question) for lesson in side} for side in (train, validation)]
    assert [len(side) for side in sides] == [15, 5] and not sides[0] & sides[1]
    assert [len(train), len(validation)] == [30, 10]
    assert split([Lesson.of(tree) for tree in twice], 0.25, 43) != (train, validation)


def test_a_checkpoint_names_the_questions_of_both_sides(train: Train, trees: list[ReasoningTree]) -> None:
    run = train(trees, val_size=0.34)
    questions = read(run / "best" / "questions.json")
    assert len(questions["train"]) == 4 and len(questions["validation"]) == 2
    assert set(questions["train"] + questions["validation"]) == {question_digest(tree.question) for tree in trees}


def test_a_step_holds_whole_questions_and_an_epoch_every_path_once(make_tree: MakeTree) -> None:
    lessons = [wide(make_tree(seed, branches=(n,)), [0.5] * n) for seed, n in enumerate([3, 5, 2, 7, 1, 4, 4, 6])]
    options = TrainOptions(batch_size=4, gradient_accumulation_steps=2)
    first, second = (epoch_steps(lessons, epoch, options) for epoch in (1, 2))
    order = []
    for steps in (first, second):
        assert all(0 < sum(len(lesson.targets) for lesson in step) <= 8 for step in steps)
        order.append([lesson.tree.question_id for step in steps for lesson in step])
        assert Counter(order[-1]) == {lesson.tree.question_id: 1 for lesson in lessons}
        targets = {lesson.tree.question_id: lesson.targets for step in steps for lesson in step}
        assert targets == {lesson.tree.question_id: lesson.targets for lesson in lessons}
    assert order[0] != order[1]


def test_a_question_with_more_paths_than_a_step_gives_them_in_turns(make_tree: MakeTree) -> None:
    big, small = wide(make_tree(0, branches=(10,)), [0.1 * i for i in range(10)]), wide(make_tree(1), [1.0])
    options = TrainOptions(batch_size=4, gradient_accumulation_steps=1)
    seen: Counter[int] = Counter()
    for epoch in range(5):
        steps = epoch_steps([big, small], epoch, options)
        (part,) = [lesson for step in steps for lesson in step if lesson.tree is big.tree]
        assert len(part.targets) == 4 and part.targets.items() <= big.targets.items()
        seen.update(list(part.targets))
    assert seen == dict.fromkeys(range(10), 2)  # 5 epochs of 4 are each of the ten twice


def test_some_questions_lose_their_context_others_in_the_next_epoch(make_tree: MakeTree) -> None:
    lessons = [wide(make_tree(seed, branches=(1,)), [1.0])._replace(context=[7]) for seed in range(200)]

    def bare(epoch: int, share: float) -> set[str]:
        steps = epoch_steps(lessons, epoch, TrainOptions(context_dropout=share))
        return {lesson.tree.question_id for step in steps for lesson in step if not lesson.context}

    assert 25 <= len(bare(1, 0.2)) <= 55  # 40 expected, standard deviation 5.7
    assert bare(1, 0.2) == bare(1, 0.2) != bare(2, 0.2)
    assert bare(1, 0.0) == set()


def test_the_learning_rate_rises_and_then_falls_along_a_cosine() -> None:
    factors = [optimizers.learning_rate_factor(step, warmup=2, total=6) for step in range(7)]
    expected = [0.5, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]
    assert factors == pytest.approx(expected)
    assert optimizers.learning_rate_factor(0, warmup=0, total=1) == 1


def test_use_prm_score_chooses_the_target(train: Train, make_tree: MakeTree) -> None:
    still = {"learning_rate": 0.0, "dropout_prob": 0.0, "context": "none"}
    tree = make_tree(3, branches=(5,))
    losses = [
        read(train([tree], f"{use}", use_prm_score=use, **still) / "training_stats.json")["epoch_losses"][0]
        for use in (True, False)
    ]
    assert losses[0] != losses[1]


# --- what it leaves behind --------------------------------------------------------------------------------------------


def test_every_file_of_the_guide_is_there_and_the_statistics_are_true(
    train: Train, trees: list[ReasoningTree], capsys: pytest.CaptureFixture[str]
) -> None:
    # Four questions train (6 paths each, 12 to a step): 2 steps an epoch, 6 in all.
    steps = {"batch_size": 3, "gradient_accumulation_steps": 4, "save_steps": 4, "logging_steps": 3}
    run = train(trees, num_epochs=3, val_size=0.34, max_seq_length=3, report_to="auto", **steps)
    kept = ["checkpoint-4", "epoch_1", "epoch_2", "epoch_3", "best", "final"]
    written = ["training.log", "training_stats.json", "metrics.jsonl", "config.json", "loss_curve.png", "tensorboard"]
    assert sorted(path.name for path in run.iterdir()) == sorted([*kept, *written, ".lock"])
    for name in kept:
        five = {"pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_state.json", "config.json"}
        assert five <= {path.name for path in (run / name).iterdir()}

    stats = read(run / "training_stats.json")
    chains = [len(tree.chain_latents(p)) for tree in trees for p in Lesson.of(tree).targets]
    assert stats["total_steps"] == 6
    assert stats["samples"] == {"train": 24, "validation": 12}
    assert stats["questions"] == {"train": 4, "validation": 2}
    assert stats["truncated_chains"] == sum(length > 3 for length in chains) > 0
    assert len(stats["epoch_losses"]) == len(stats["val_losses"]) == 3
    assert stats["best_loss"] == stats["best"]["loss"] == min(stats["val_losses"])
    assert stats["best"]["epoch"] == stats["val_losses"].index(stats["best_loss"]) + 1
    assert stats["best"]["step"] == 2 * stats["best"]["epoch"] and stats["best"]["by"] == "validation"
    assert stats["training_time"] > 0 and stats["skipped_files"] == []

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6]
    assert [line["val_loss"] for line in lines if "val_loss" in line] == stats["val_losses"]
    assert [sorted(line) for line in lines if "loss" in line] == [
        ["avg_loss", "epoch", "grad_norm", "loss", "lr", "step"]
    ] * 2
    said = capsys.readouterr().out.splitlines()
    logged = [line.split(" ", 3)[3] for line in (run / "training.log").read_text("utf-8").splitlines()]
    step_3 = next(line for line in lines if line["step"] == 3)
    for line in (
        "Epoch 1/3",
        "Epoch 3/3",
        f"[Trainer] Step 3: loss={step_3['loss']:.4f}, avg_loss={step_3['avg_loss']:.4f}, lr={step_3['lr']:.2e}",
        f"[Trainer] Checkpoint saved to: {run}/checkpoint-4",
        f"[Trainer] Best checkpoint: {run}/best (validation loss {stats['best_loss']:.4f})",
    ):
        assert line in said and line in logged
    assert read(run / "config.json")["options"]["save_steps"] == 4
    assert read(run / "best" / "training_state.json")["seed"] == 42


def test_best_is_the_epoch_with_the_lowest_validation_loss(train: Train, trees: list[ReasoningTree]) -> None:
    # So high a rate on random labels that the last epoch is not the best one.
    run = train(trees, num_epochs=5, val_size=0.34, learning_rate=0.03, warmup_ratio=0.0, loss="mse")
    losses = read(run / "training_stats.json")["val_losses"]
    best = losses.index(min(losses)) + 1
    assert best < 5
    assert (run / "best" / "pytorch_model.bin").samefile(run / f"epoch_{best}" / "pytorch_model.bin")
    model = QwenLatentPRM.from_pretrained(run / "best")
    held_out = set(read(run / "best" / "questions.json")["validation"])
    judges = [tree for tree in trees if question_digest(tree.question) in held_out]
    squares = [
        (float(scores[p]) - target) ** 2
        for tree, scores in zip(judges, model.score_trees(judges), strict=True)
        for p, target in Lesson.of(tree).targets.items()
    ]
    assert sum(squares) / len(squares) == pytest.approx(min(losses), abs=1e-6)


def test_checkpoints_of_one_moment_share_their_bytes(train: Train, trees: list[ReasoningTree]) -> None:
    run = train(trees, save_steps=1, batch_size=3, val_size=0)  # 12 paths to a step: 3 steps
    for name in ("epoch_1", "best", "final"):
        for path in (run / "checkpoint-3").iterdir():
            assert path.samefile(run / name / path.name)
    assert digest(run / "checkpoint-2") != digest(run / "final")


def test_without_validation_best_is_by_training_loss_and_it_says_so(
    train: Train, trees: list[ReasoningTree], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(trees[:4], num_epochs=2)  # a tenth of four questions is none
    stats = read(run / "training_stats.json")
    assert stats["val_losses"] == []
    assert stats["best"]["by"] == "training" and stats["best_loss"] == min(stats["epoch_losses"])
    said = capsys.readouterr().err
    assert "No validation: --val_size 0.1 of 4 question(s) is none. The best checkpoint is chosen by training" in said


def test_a_run_is_never_written_over(train: Train, trees: list[ReasoningTree]) -> None:
    run = train(trees)
    before = digest(run / "best")
    with pytest.raises(ValueError, match=r"run already holds a run .* Choose another --output_dir"):
        trainer.main(TrainOptions(data_dir=str(run), output_dir=str(run)))
    assert digest(run / "best") == before


def test_the_run_folder_is_named_by_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = new_run_folder(None)
    assert folder.parent == Path("checkpoints") and len(folder.name) == len("qwen_prm_20251226_120000")
    assert not folder.exists()


def test_damaged_shards_are_skipped_only_when_asked_and_then_named(
    train: Train, trees: list[ReasoningTree], tmp_path: Path
) -> None:
    bad = shards.write_shard(trees[:1], tmp_path / "data_of_run", "bad", {})
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"bad\.pt"):
        train(trees[1:], name="run")
    (tmp_path / "data_of_run" / "trees.pt").unlink()
    run = train(trees[1:], name="run", skip_bad_files=True)
    (skipped,) = read(run / "training_stats.json")["skipped_files"]
    assert "bad.pt" in skipped


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_loss_falls_where_there_is_something_to_learn(train: Train, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def path() -> LatentPath:
        latents = torch.randn(3, 16, generator=generator)
        right = bool(latents[:, 0].mean() > 0)
        return LatentPath(latents=latents, tip=None, answers=[Answer(text="", value=f"{right}", correct=right)])

    trees = [
        ReasoningTree(question_id=f"q{i}", question=f"{i} ?", gold="", task="", paths=[path() for _ in range(8)])
        for i in range(24)
    ]
    for tree in trees:
        tree.back_up()
    run = train(trees, num_epochs=6, learning_rate=5e-3, context="none", val_size=0.25, loss="mse")
    stats = read(run / "training_stats.json")
    assert stats["epoch_losses"][0] > 0.2 > 0.16 > stats["epoch_losses"][-1]
    assert stats["best_loss"] < 0.2


def test_a_wide_latent_gets_a_projection_and_it_is_said(
    train: Train, make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train([make_tree(seed, width=40) for seed in range(2)])
    assert "Latents are 40 wide, the backbone 16: a projection stands in front." in capsys.readouterr().out
    assert QwenLatentPRM.from_pretrained(run / "best").latent_dim == 40


def test_mixed_precision_keeps_the_weights_in_float32_and_is_repeatable(
    train: Train, trees: list[ReasoningTree]
) -> None:
    a, b = (train(trees, name, mixed_precision=True, num_epochs=2) for name in "ab")
    assert digest(a / "final") == digest(b / "final")
    assert {value.dtype for value in weights(a / "final").values() if value.is_floating_point()} == {torch.float32}
    assert read(a / "config.json")["resolved"]["precision"] in {"bfloat16", "float32"}  # what the CPU can do


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_equal_scores_and_few_samples_are_said_and_trained_on(
    train: Train, make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(0, branches=(1,))
    run = train([tree])
    said = capsys.readouterr().err
    score = tree.paths[1].prm_score
    assert f"There is nothing to learn from: all 1 scores are {score:g}." in said
    assert "Samples: 1, where 100 or more are advised." in said
    assert "No validation: --val_size 0.1 of 1 question(s) is none." in said
    assert read(run / "training_stats.json")["samples"] == {"train": 1, "validation": 0}


def test_a_loss_that_did_not_fall_is_said_with_the_guides_remedies(
    train: Train, trees: list[ReasoningTree], capsys: pytest.CaptureFixture[str]
) -> None:
    train(trees, num_epochs=2, learning_rate=0.0, dropout_prob=0.0, context_dropout=0.0)
    said = capsys.readouterr().err
    for remedy in ("The loss did not fall", "--learning_rate (1e-5 or 5e-5)", "_metadata.json", "last or max"):
        assert remedy in said


def test_without_a_single_label_there_is_nothing_to_learn(train: Train, make_tree: MakeTree) -> None:
    with pytest.raises(ValueError, match=r"nothing to learn from: no noisy path in .* has a prm_score. Collect again"):
        train([make_tree(0, unexpanded=1.0)])


def test_a_loss_that_is_not_a_number_stops_before_the_step_and_names_the_questions(
    train: Train, trees: list[ReasoningTree], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"infinite in step \d, so the run stopped before it. Questions: q\d") as error:
        train(trees, learning_rate=1e25, save_steps=1, val_size=0)
    assert "--learning_rate (now 1e+25)" in str(error.value)
    assert str(error.value) in (tmp_path / "run" / "training.log").read_text("utf-8")
    for file in tmp_path.glob("run/*/pytorch_model.bin"):
        assert all(value.isfinite().all() for value in weights(file.parent).values())
    assert not (tmp_path / "run" / "best").exists()


def test_the_bar_of_the_last_epoch_fills_too(
    train: Train, trees: list[ReasoningTree], capsys: pytest.CaptureFixture[str]
) -> None:
    train(trees, num_epochs=1, val_size=0)
    shown = re.findall(r"(\d+)/(\d+) \[", capsys.readouterr().err)
    assert shown[-1][0] == shown[-1][1] != "0"


def test_out_of_memory_says_which_options_to_lower(
    train: Train, trees: list[ReasoningTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(feeding, "StepLoss", full)
    with pytest.raises(ValueError, match=r"Out of memory\. Lower") as error:
        train(trees)
    for option in (
        "--pack_tokens (now ",
        "--batch_size (now ",
        "--gradient_checkpointing",
        "--optimizer adamw8bit",
        "--max_seq_length (now 512)",
    ):
        assert option in str(error.value)


def test_without_matplotlib_it_says_how_to_install_it_and_goes_on(
    train: Train, trees: list[ReasoningTree], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = train(trees)
    assert "No loss_curve.png: Pictures need matplotlib. Type: pip install" in capsys.readouterr().err
    assert (run / "best").is_dir() and not (run / "loss_curve.png").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_commits_a_checkpoint_between_two_steps(
    number: signal.Signals, code: int, trees: list[ReasoningTree], tmp_path: Path, tiny_lm: Path
) -> None:
    shards.write_shard(trees, tmp_path / "data", "trees", {})
    typed = [sys.executable, "-u", "-m", "latent_prm", "train", "--num_epochs", "1000", "--save_steps", "1000000"]
    typed += ["--model_path", str(tiny_lm), "--data_dir", "data", "--output_dir", "run", "--val_size", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Where tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pipe, also = subprocess.PIPE, subprocess.STDOUT
        with subprocess.Popen(typed, cwd=tmp_path, env=env, stdout=pipe, stderr=also, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if "Checkpoint saved to: run/best" in line:  # it is under way
                    break
            running.send_signal(number)
            said = running.stdout.read()
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.returncode == code, said
    (checkpoint,) = tmp_path.glob("run/checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"{number.name}: stopped after step {step}, kept in run/checkpoint-{step}" in said
    assert "--resume auto goes on from there" in said and "Traceback" not in said
    assert read(checkpoint / "training_state.json")["step"] == step
    QwenLatentPRM.from_pretrained(checkpoint)
    assert [path.name for path in tmp_path.glob("run/.*")] == [".lock"]  # nothing half-written is left
