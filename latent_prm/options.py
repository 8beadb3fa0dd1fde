"""The options of every stage: one frozen dataclass each, whose field docstrings are the ``--help``.

Nothing here imports torch, so that ``--help`` is instant and a mistyped option costs nothing.
A ``ValueError`` raised here names the value that is wrong and what to type instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

Device = str
Split = Literal["train", "validation", "test"]
Pooling = Literal["mean", "last", "max"]
Context = Literal["question", "none"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

BUILTIN = "builtin"
"""The name of the reasoner that comes with the package, wherever a model folder is asked for."""


def _at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}, but it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Grow trees of latent paths and write them as shards."""

    model_path: str = BUILTIN
    """The reasoner: a Hugging Face folder or hub name, or "builtin"."""
    task: str = "arithmetic,search"
    """Where questions come from: arithmetic, search, several with commas, or the path of a .jsonl file."""
    split: Split = "train"
    """Which part of the task to draw from. A .jsonl file is its own split."""
    output_dir: str = "prm_data"
    """The folder the shards go to. The same command in the same folder carries on where it stopped."""
    max_samples: int = 1000
    """How many questions to ask. -1: all that a .jsonl file has."""
    num_paths: int = 16
    """Noisy paths per question. Each tree also carries its noise-free path, which is not counted here."""
    latent_steps: int | None = None
    """Latents per path. Left out: what the reasoner's config names, else 10."""
    noise: float | None = None
    """Gaussian noise on every latent, relative to its root mean square. Left out: the reasoner's own, else 0.1."""
    temperature: float = 0.0
    """Temperature of the decoded answer. 0: always the likeliest token."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens. Left out: what the reasoner's config names, else 256."""
    batch_size: int | None = None
    """Questions grown together. Left out: as many as fit about 2 GiB of KV cache, at most 64."""
    shard_size: int = 500
    """Questions per shard file."""
    seed: int = 42
    """Fixes the questions and every path's noise."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the reasoner. auto: bfloat16 on CUDA, float32 on the CPU."""
    skip_bad_files: bool = False
    """Carry on when a shard already in the folder is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        _at_least(1, num_paths=self.num_paths, latent_steps=self.latent_steps, batch_size=self.batch_size)
        _at_least(1, shard_size=self.shard_size, max_new_tokens=self.max_new_tokens)
        _at_least(0, noise=self.noise, temperature=self.temperature)
        if self.max_samples != -1:
            _at_least(1, max_samples=self.max_samples)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a latent process reward model (all parameters) on the trees of a folder."""

    model_path: str = BUILTIN
    """The backbone to start from: a Hugging Face folder or hub name, or "builtin"."""
    data_dir: str = "prm_data"
    """The folder with the shards."""
    output_dir: str | None = None
    """The run folder. Left out: checkpoints/qwen_prm_<timestamp>."""
    num_epochs: int = 5
    """Passes over the training questions."""
    batch_size: int = 4
    """Labelled paths per batch; times the accumulation, the number of labelled paths in an optimizer step."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises; then it falls along a cosine."""
    gradient_accumulation_steps: int = 4
    """Batches per optimizer step."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped here."""
    pooling_strategy: Pooling = "mean"
    """How the latents of a chain become one state: mean, last or max."""
    dropout_prob: float = 0.1
    """Dropout before the score head."""
    max_seq_length: int = 512
    """Latents of a chain that are read; longer chains lose latents at the root end."""
    use_prm_score: bool = True
    """Learn prm_score (from right and wrong answers). --no-use_prm_score: learn the label-free score."""
    context: Context = "question"
    """What the model reads before the latents: the question's text, or nothing."""
    context_dropout: float = 0.1
    """Share of questions read without their text while training, so that scoring works without it too."""
    val_size: float = 0.1
    """Share of the questions kept for validation, whole questions. 0: none."""
    save_steps: int = 100
    """A checkpoint every so many optimizer steps."""
    logging_steps: int = 10
    """A log line every so many optimizer steps."""
    log_level: LogLevel = "INFO"
    """How much is said."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    mixed_precision: bool = True
    """Autocast: bfloat16 where the device has it, else float16 on CUDA, else none. Parameters stay float32."""
    seed: int = 42
    """Fixes the split, the order, the dropout and every weight."""
    pack_tokens: int = 16384
    """Question tokens and latents computed at once; lower it when memory is short. Never changes the result."""
    skip_bad_files: bool = False
    """Carry on when a shard is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        _at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size)
        _at_least(1, gradient_accumulation_steps=self.gradient_accumulation_steps)
        _at_least(1, max_seq_length=self.max_seq_length, save_steps=self.save_steps)
        _at_least(1, logging_steps=self.logging_steps, pack_tokens=self.pack_tokens)
        _at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)
        for name in ("warmup_ratio", "dropout_prob", "context_dropout", "val_size"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(
                    f"--{name} is {value}, but it is a share: type a number from 0 up to (not including) 1."
                )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure, on questions the model never saw, how much a PRM improves the choice among paths."""

    checkpoint: str
    """A checkpoint folder (…/best), or "builtin" for the PRM that comes with the package."""
    data_dir: str
    """A folder of shards with questions that the PRM was not trained on."""
    output_dir: str | None = None
    """Where evaluation.json and the pictures go. Left out: <checkpoint>/evaluation, or reports for the built-in PRM."""
    num_bootstrap: int = 2000
    """Resamplings of the questions behind each interval."""
    context: Context | None = None
    """What the model reads before the latents: the question's text, or nothing. Left out: as it was trained."""
    seed: int = 42
    """Fixes the bootstrap."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    pack_tokens: int = 16384
    """Question tokens and latents computed at once; lower it when memory is short. Never changes the result."""
    skip_bad_files: bool = False
    """Carry on when a shard is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        _at_least(1, num_bootstrap=self.num_bootstrap, pack_tokens=self.pack_tokens)


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Answer one question: grow paths, score them, vote."""

    question: tyro.conf.Positional[str]
    """The question, in quotes."""
    checkpoint: str = BUILTIN
    """A checkpoint folder (…/best), or "builtin" for the PRM that comes with the package."""
    model_path: str = BUILTIN
    """The reasoner: a Hugging Face folder or hub name, or "builtin"."""
    task: str = "arithmetic"
    """How the question is put and its answer read: arithmetic, search or text (an ordinary question)."""
    num_paths: int = 16
    """Noisy paths to grow."""
    latent_steps: int | None = None
    """Latents per path. Left out: what the reasoner's config names, else 10."""
    noise: float | None = None
    """Gaussian noise on every latent, relative to its root mean square. Left out: the reasoner's own, else 0.1."""
    temperature: float = 0.0
    """Temperature of the decoded answer. 0: always the likeliest token."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens. Left out: what the reasoner's config names, else 256."""
    seed: int = 42
    """Fixes every path's noise."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError('The question is empty. Type it in quotes: latent-prm solve "Ann has 12 apples. ..."')
        _at_least(1, num_paths=self.num_paths, latent_steps=self.latent_steps, max_new_tokens=self.max_new_tokens)
        _at_least(0, noise=self.noise, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Print what a folder of shards holds."""

    path: tyro.conf.Positional[str] = "prm_data"
    """The folder with the shards."""
