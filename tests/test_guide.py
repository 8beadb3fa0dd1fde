"""The training guide's own session, as a user types it, with small numbers in front."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latent_prm import shards
from latent_prm.tree import ReasoningTree

ROOT = Path(__file__).parent.parent

# Small numbers; and no Qwen3-0.6B where there is CUDA.
COLLECT = {"TASK": "arithmetic", "DEVICE": "cpu", "MAX_SAMPLES": "12", "NUM_PATHS": "4"}
TRAIN = {"DEVICE": "cpu", "NUM_EPOCHS": "2", "SAVE_STEPS": "2", "LOGGING_STEPS": "2"}
# The guide's remedy for too little memory.
SMALLER = {"BATCH_SIZE": "2", "GRADIENT_ACCUMULATION_STEPS": "8", "MAX_SEQ_LENGTH": "256"}
PARAMETERS = """num_epochs batch_size learning_rate weight_decay warmup_ratio gradient_accumulation_steps max_grad_norm
    pooling_strategy dropout_prob max_seq_length use_prm_score save_steps logging_steps log_level device mixed_precision
    seed model_path data_dir output_dir"""


def typed(line: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a line does in a folder: ``python`` is this one, scripts are the project's."""
    words = line.replace("bash ", f"bash {ROOT}/").split()
    if words[0] == "python":
        words[0] = sys.executable
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_collect_look_train_load_and_predict(tmp_path: Path) -> None:
    collected = typed("bash collect_training_data.sh", tmp_path, MODEL_PATH="builtin", **COLLECT)
    assert collected.returncode == 0, collected.stderr
    listed = typed("ls prm_data/", tmp_path).stdout.split()
    data = [name for name in listed if name.endswith(".pt")]
    assert data and [name for name in listed if name.endswith("_metadata.json")] == [
        name.replace(".pt", "_metadata.json") for name in data
    ]

    trained = typed("bash train_latent_prm.sh", tmp_path, MODEL_PATH="builtin", **TRAIN, **SMALLER)
    assert trained.returncode == 0, trained.stderr
    (run,) = tmp_path.glob("checkpoints/qwen_prm_*")
    assert re.fullmatch(r"qwen_prm_\d{8}_\d{6}", run.name)
    where = run.relative_to(tmp_path)
    lines = trained.stdout.splitlines()
    assert "Epoch 1/2" in lines and f"[Trainer] Checkpoint saved to: {where}/checkpoint-2" in lines
    step = r"\[Trainer\] Step 2: loss=\d\.\d{4}, avg_loss=\d\.\d{4}, lr=\d\.\d\de-\d\d"
    assert [line for line in lines if re.fullmatch(step, line)]
    bar = r"\d+%\|.*\| \d+/\d+ \[\d\d:\d\d<\d\d:\d\d, loss=\d\.\d{4}, lr=\d\.\d\de-\d\d\]"
    assert re.search(bar, trained.stderr)
    for name in ("checkpoint-2", "epoch_1", "epoch_2", "best", "final"):
        for file in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_state.json", "config.json"):
            assert (run / name / file).is_file()
    assert (run / "training.log").is_file() and (run / "training_stats.json").is_file()

    from methods.latent_prm import QwenLatentPRM

    checkpoint_path = f"{run}/best"
    model = QwenLatentPRM(model_path="builtin")
    model.load_state_dict(torch.load(f"{checkpoint_path}/pytorch_model.bin"))
    model.eval()
    model.to("cpu")
    (tree, *_) = shards.load_trees(tmp_path / "prm_data")
    latent_sequence = tree.paths[1].latents[None]
    with torch.no_grad():
        scores = model.predict_scores(latent_sequence, torch.ones(latent_sequence.shape[:2]))
    assert re.fullmatch(r"0\.\d{4}", f"{scores[0]:.4f}")


def test_the_direct_command_line_and_its_latents_of_width_896(
    tmp_path: Path, tiny_backbone_24: Path, make_tree: Callable[..., ReasoningTree]
) -> None:
    trees = [make_tree(seed, width=896, branches=(3,), question=f"What is {seed} ?") for seed in range(4)]
    shards.write_shard(trees, tmp_path / "prm_data", "trees", {})
    done = typed(
        f"""python -m methods.latent_prm.trainer
          --model_path {tiny_backbone_24}
          --data_dir prm_data
          --output_dir checkpoints/my_experiment
          --num_epochs 10
          --batch_size 8
          --learning_rate 3e-5
          --save_steps 50
          --logging_steps 5""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "[Trainer] Step 5: loss=" in done.stdout  # 12 paths are one step of at most 8 × 4: ten in all
    assert "Latents are 896 wide, the backbone 24" in done.stdout

    from methods.latent_prm import QwenLatentPRM

    model = QwenLatentPRM(model_path=tiny_backbone_24)
    model.load_state_dict(torch.load(tmp_path / "checkpoints" / "my_experiment" / "best" / "pytorch_model.bin"))
    model.eval()
    latent_sequence = torch.randn(1, 10, 896)  # [batch, seq_len, hidden_dim]
    attention_mask = torch.ones(1, 10)
    with torch.no_grad():
        scores = model.predict_scores(latent_sequence, attention_mask)
    assert scores.shape == (1,) and 0 < scores[0] < 1
    for other in (attention_mask.bool(), attention_mask.long(), None):
        assert torch.equal(model.predict_scores(latent_sequence, other), scores)


def test_help_lists_every_parameter_of_the_guide(tmp_path: Path) -> None:
    done = typed("python -m methods.latent_prm.trainer --help", tmp_path)
    assert done.returncode == 0
    assert [name for name in PARAMETERS.split() if not re.search(rf"--{name}\b", done.stdout)] == []


@pytest.mark.parametrize("line", ["bash train_latent_prm.sh", "python -m methods.latent_prm.trainer"])
@pytest.mark.parametrize("empty", [True, False], ids=["empty folder", "no folder"])
def test_without_data_the_error_is_the_guides(line: str, empty: bool, tmp_path: Path) -> None:
    if empty:
        (tmp_path / "prm_data").mkdir()
    (tmp_path / "collect_training_data.sh").touch()
    done = typed(line, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data"
    assert "bash collect_training_data.sh" in done.stderr
    assert not (tmp_path / "checkpoints").exists()
