"""The full Qwen3-0.6B shape on this machine: collect, train two optimizer steps, print times and peak memory.

    python benchmarks/full_shape.py --questions path/to/gsm8k/train.jsonl

The weights are random (nothing is downloaded), so every answer is wrong and every score equal: what is measured is that
the shape works and what it costs. The warning that there is nothing to learn from is expected.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    questions: Path
    """A .jsonl file with "question" and "answer", such as GSM8K's."""
    model_dir: Path | None = None
    """Where the random model is made (2.4 GB), or was made before. Left out: a temporary folder."""
    max_samples: int = 20
    num_paths: int = 4
    latent_steps: int = 5
    max_new_tokens: int = 16
    """Random weights never stop by themselves: short answers keep the time to what matters."""


def make_model(folder: Path, layers: int = 28, texts: Sequence[str] = ()) -> None:
    """A folder with Qwen3-0.6B's shape (596 M parameters with all layers) and random weights in bfloat16.

    The tokenizer is byte-level; with ``texts`` it learns their words, so that they are about as long as in life.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, *special])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if texts:
        learner = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special, show_progress=False)  # type: ignore[reportCallIssue]
        tokenizer.train_from_iterator(texts, learner)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2], additional_special_tokens=special
    )
    wrapped.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        tie_word_embeddings=True,
        rope_theta=1_000_000,
        max_position_embeddings=40_960,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters → {folder}", flush=True)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)


def timed(name: str, command: list[str]) -> None:
    """Run a stage as a user would, and print how long it took and the most memory it held."""
    began = time.time()
    subprocess.run([sys.executable, "-m", "latent_prm", *command], check=True)
    # ru_maxrss is the largest child so far, in KiB on Linux; the stages are run in the order of their size.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"── {name}: {time.time() - began:.0f} s, peak memory so far {peak:.1f} GiB", flush=True)


def main(options: Options) -> None:
    """Make the model if need be, collect, train, inspect."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model_dir or Path(scratch) / "qwen3-0.6b-random"
        if not (folder / "config.json").is_file():
            make_model(folder)
        data, run = f"{scratch}/prm_data", f"{scratch}/run"
        collect = ["collect", "--model_path", str(folder), "--task", str(options.questions), "--output_dir", data]
        for name in ("max_samples", "num_paths", "latent_steps", "max_new_tokens"):
            collect += [f"--{name}", str(getattr(options, name))]
        timed("collect", collect)
        # 40 labelled paths to a step, no validation: 20 questions × 4 paths make exactly two steps.
        train = ["train", "--model_path", str(folder), "--data_dir", data, "--output_dir", run, "--num_epochs", "1"]
        steps = str(options.max_samples * options.num_paths // 8)
        timed("train", [*train, "--batch_size", "4", "--gradient_accumulation_steps", steps, "--val_size", "0"])


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True))
