"""The options of every stage: one frozen dataclass each, whose field docstrings are the ``--help``.

Nothing here imports torch, so that ``--help`` is instant and a mistyped option costs nothing.
A ``ValueError`` raised here names the value that is wrong and what to type instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import tyro

Device = str
Split = Literal["train", "validation", "test"]
Pooling = Literal["mean", "last", "max"]
Context = Literal["question", "none"]
Diversity = Literal["noise", "temperature", "dropout", "hybrid"]
Align = Literal["ridge", "rescale", "none"]
Supervise = Literal["paths", "steps"]
Sees = Literal["chain", "tree"]
OptimizerName = Literal["adamw", "adamw8bit", "adamw_bf16_sr"]
Tuning = Literal["full", "lora", "head"]
Parallel = Literal["ddp", "fsdp"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Select = Literal[
    "auto", "best", "vote", "weighted_vote", "logit_vote", "rank_vote", "tie_break", "conservative", "agreement"
]

LOSSES = ("mse", "bce", "listwise", "pairwise", "order")
READABLE = ("fed", "hidden", "tip", "answer")
"""What a PRM can read of a path: its latents as they were fed, the hidden states before noise, the tip, the answer."""

BUILTIN = "builtin"
"""The name of the reasoner that comes with the package, wherever a model folder is asked for."""


def _at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(
                f"--{name} is {value}, but it must be {'a number of ' if value != value else ''}at least {least}."
            )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}: type a whole number from 0 to {2**63 - 1}.")


_LOADING = ("model_path", "revision", "align", "device", "dtype")
_GROWING = ("answers_per_leaf", "until_mixed", "noise_free", "keep_hidden")


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """Which reasoner thinks, and how: alike in every stage that grows trees."""

    model_path: str = BUILTIN
    """The reasoner: a Hugging Face folder or hub name, or "builtin"."""
    revision: str | None = None
    """The hub's branch, tag or commit. Left out: main."""
    align: Align | None = None
    """How a hidden state becomes the next input; rescale: its norm alone. Left out: the model's own map, else ridge."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic. float64: no batch is felt. auto: that for "builtin", else bfloat16 on CUDA, float32 on a CPU."""
    pipeline: str = "solo"
    """Who thinks: solo, sequential (planner, critic, refiner, judger), hierarchical (specialists), or a .yaml file."""
    think: bool = False
    """Put the prompts in the thinking mode of a reasoning model's chat template."""
    num_paths: int | None = None
    """Leaves per question, the noise-free path not counted. Left out: what the branches make, else 16."""
    branches: str | None = None
    """Paths that begin at each agent, as 8,2,2; a lone agent's latents are cut into as many runs. Left out: spread."""
    latent_steps: int | None = None
    """Latents per agent. Left out: what the reasoner's config names, else 10."""
    diversity_strategy: Diversity = "noise"
    """What makes paths differ: Gaussian noise, temperature (mixed word embeddings), dropout, or all three (hybrid)."""
    noise: float | None = None
    """Gaussian noise on every latent, relative to its root mean square. Left out: the reasoner's own, else 0.1."""
    soft_temperature: float | None = None
    """Of the mixtures that diversity_strategy temperature and hybrid feed. Left out: 1."""
    dropout: float | None = None
    """Share of units that diversity_strategy dropout and hybrid drop. Left out: 0.2."""
    temperature: float = 0.0
    """Temperature of the decoded answer. 0: always the likeliest token."""
    top_p: float = 1.0
    """Draw answer tokens from the likeliest that together have this probability."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens. Left out: what the reasoner's config names, else 256."""
    seed: int = 42
    """Fixes the questions and every path; serve, which shows every latent, draws others than solve."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        _at_least(1, num_paths=self.num_paths, max_new_tokens=self.max_new_tokens)
        _at_least(0, latent_steps=self.latent_steps, noise=self.noise, temperature=self.temperature)
        for name, value in (("dropout", self.dropout or 0), ("top_p", 1 - self.top_p)):
            if not 0 <= value < 1:
                said = f"--{name} is {getattr(self, name)}, but it is a share"
                raise ValueError(
                    f"{said}: type a number {'above 0, up to 1' if name == 'top_p' else 'from 0 to below 1'}."
                )
        if self.soft_temperature is not None and self.soft_temperature <= 0:
            raise ValueError(f"--soft_temperature is {self.soft_temperature}, but it must be above 0: type 1, say.")
        self._refuse_what_nobody_reads()
        self.branch_counts()

    def _refuse_what_nobody_reads(self) -> None:
        readers = {"noise": ("noise", "hybrid"), "soft_temperature": ("temperature", "hybrid")}
        readers["dropout"] = ("dropout", "hybrid")
        for name, strategies in readers.items():
            if getattr(self, name) is not None and self.diversity_strategy not in strategies:
                raise ValueError(
                    f"--{name} is {getattr(self, name)}, but --diversity_strategy {self.diversity_strategy} does not "
                    f"read it. Leave it out, or type --diversity_strategy {' or '.join(strategies)}."
                )
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(
                f"--top_p is {self.top_p}, but --temperature is 0, which always takes the likeliest token. "
                "Leave it out, or type --temperature 0.6, say."
            )
        if self.revision is not None and (self.model_path == BUILTIN or Path(self.model_path).is_dir()):
            raise ValueError(
                f"--revision is {self.revision}, but {self.model_path} is a folder, which has only one: leave it out."
            )

    def branch_counts(self) -> tuple[int, ...] | None:
        """``branches`` as numbers. Raises ValueError when it is no list of them."""
        if self.branches is None:
            return None
        counts = self.branches.replace(" ", "").split(",")
        if not all(count.isdecimal() and int(count) > 0 for count in counts):
            raise ValueError(
                f"--branches is {self.branches!r}. Type whole numbers from 1 with commas: --branches 8,2,2"
            )
        return tuple(map(int, counts))

    def reasoner(self) -> dict[str, Any]:
        """What ``Reasoner.from_pretrained`` takes."""
        return {name: getattr(self, name) for name in _LOADING}

    def growth(self) -> dict[str, Any]:
        """What ``Reasoner.growth`` takes."""
        shared = [field.name for field in fields(GrowthOptions) if field.name not in _LOADING]
        own = [name for name in _GROWING if hasattr(self, name)]
        return {name: getattr(self, name) for name in (*shared, *own)} | {"branches": self.branch_counts()}


@dataclass(frozen=True, kw_only=True)
class CollectOptions(GrowthOptions):
    """Grow trees of latent paths and write them as shards."""

    task: str = "arithmetic,search"
    """arithmetic, search, gsm8k, … (a wrong name lists them), gym:NAME, a .jsonl, .csv or .parquet file, or several."""
    split: Split = "train"
    """Which part of the task to draw from. A file is its own split."""
    output_dir: str = "prm_data"
    """The folder the shards go to. The same command in the same folder carries on where it stopped."""
    max_samples: int = 1000
    """How many questions to ask. -1: all there are; of a generated task, until Ctrl-C."""
    answers_per_leaf: int = 1
    """Answers decoded at every leaf, for a finer prm_score; they differ by the temperature."""
    until_mixed: bool = False
    """Stop a question whose first half of the paths all came out alike, and give any other as many again."""
    noise_free: bool = True
    """Grow each question's noise-free path too, the rival in every later table."""
    keep_hidden: bool = False
    """Store the hidden states before noise beside the latents as fed; twice the size."""
    batch_size: int | None = None
    """Questions grown together. Left out: as many as fit (about 2 GiB on a CPU, 80 % of a GPU), at most 64."""
    shard_size: int = 500
    """Questions per shard file; one of 256 MiB is closed sooner."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the latent steps and the decoding. auto: on CUDA, for 200 questions or more."""
    engine: Literal["local", "ray"] = "local"
    """ray: on several GPUs or machines, through the cluster at RAY_ADDRESS, else one started here."""
    num_workers: int | None = None
    """Reasoners that --engine ray runs. Left out: one per GPU, else one."""
    shard: str | None = None
    """2/4: ask every fourth question, from the second on, beside other jobs that write into the same folder."""
    dry_run: bool = False
    """Load no weights and grow nothing: print the plan, what memory and disk it takes, and one rendered prompt."""
    skip_bad_files: bool = False
    """Carry on when a shard already in the folder is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, answers_per_leaf=self.answers_per_leaf, batch_size=self.batch_size, shard_size=self.shard_size)
        _at_least(1, num_workers=self.num_workers)
        if self.max_samples < 1 and self.max_samples != -1:
            raise ValueError(f"--max_samples is {self.max_samples}: type a number from 1, or -1 for all there are.")
        if self.num_workers is not None and self.engine != "ray":
            raise ValueError(f"--num_workers is {self.num_workers}, but only --engine ray has workers: type that too.")
        self.share()

    def share(self) -> tuple[int, int]:
        """(i, N) of ``shard``; (1, 1) without one. Raises ValueError when it is not i/N with 1 <= i <= N."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard or "1/1")
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard is {self.shard!r}. Type i/N, with i from 1 to N: --shard 2/4")
        return int(found[1]), int(found[2])


@dataclass(frozen=True, kw_only=True)
class TuneNoiseOptions(GrowthOptions):
    """Find the noise at which the most questions have both right and wrong paths, at little loss of accuracy."""

    task: str = "arithmetic,search"
    """Where questions come from, as in collect."""
    split: Split = "validation"
    """Which part of the task to draw from. A file is its own split."""
    max_samples: int = 200
    """Questions to try every noise on."""
    noises: str = "0.05,0.1,0.15,0.2,0.3,0.4,0.5,0.6,0.8,1.0"
    """The strengths to try, with commas."""
    max_loss: float = 0.05
    """How much of the noise-free path's accuracy a single noisy path may lose."""
    output_dir: str = "reports"
    """Where noise.json and the picture go."""
    batch_size: int | None = None
    """Questions grown together. Left out: as many as fit (about 2 GiB on a CPU, 80 % of a GPU), at most 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, max_samples=self.max_samples, batch_size=self.batch_size)
        _at_least(0, max_loss=self.max_loss)
        if self.noise is not None:
            raise ValueError("--noise is what is looked for. Type --noises 0.1,0.2,0.4 to say which to try.")
        if self.diversity_strategy not in ("noise", "hybrid"):
            raise ValueError(
                f"--diversity_strategy is {self.diversity_strategy}, which has no noise to tune. Type noise or hybrid."
            )
        self.strengths()

    def strengths(self) -> list[float]:
        """``noises`` as numbers, in order. Raises ValueError when it is no list of them."""
        try:
            found = sorted({float(one) for one in self.noises.split(",")})
        except ValueError:
            found = []
        if not found or not all(0 < one < float("inf") for one in found):
            raise ValueError(f"--noises is {self.noises!r}. Type numbers above 0 with commas: --noises 0.1,0.2,0.4")
        return found


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
    tuning: Tuning = "full"
    """What learns: full, all layers; lora, small matrices beside them (PEFT, [lora]); head, the score head alone."""
    lora_rank: int = 16
    """Rank of those small matrices."""
    train_embeddings: bool = False
    """Train the token embedding too: it only serves the question's text, and is a quarter of Qwen3-0.6B."""
    batch_size: int = 4
    """Labelled paths per batch; times the accumulation, the number of labelled paths in an optimizer step."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    optimizer: OptimizerName = "adamw"
    """adamw; adamw8bit: moments of 8 bits; adamw_bf16_sr: also bfloat16 weights, rounded by lot (torchao, [lowmem])."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises; then it falls along a cosine."""
    gradient_accumulation_steps: int = 4
    """Batches per optimizer step."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped here. 0: nowhere."""
    pooling_strategy: Pooling = "mean"
    """How the latents of a chain become one state: mean, last or max."""
    dropout_prob: float = 0.1
    """Dropout before the score head."""
    max_seq_length: int = 512
    """Latents of a chain that are read; longer chains lose latents at the root end."""
    use_prm_score: bool = True
    """Learn prm_score (from right and wrong answers). --no-use_prm_score: learn the label-free score."""
    loss: str = "bce+0.5*listwise"
    """What is lowered: mse, bce, listwise, pairwise, order, or a weighted sum of them."""
    supervise: Supervise = "paths"
    """Where a path's target is asked for: paths, at its chain's last latent; steps, at each (all paths weigh alike)."""
    weigh_labels: bool = False
    """A label from M answers weighs M / (M + 2), its reliability, in mse, listwise and pairwise; in bce always M."""
    correctness_weight: float = 0.0
    """Weight of a second head, which learns whether a path can still end right (any answer below it did). 0: none."""
    context: Context = "question"
    """What the model reads before the latents: the question's text, or nothing."""
    context_dropout: float = 0.1
    """Share of questions read without their text while training, so that scoring works without it too."""
    reads: str = "fed,answer"
    """What the model reads of a path, with commas: fed, the latents as the reasoner got them; hidden, what it meant
    before noise (collect --keep_hidden); tip, the state after the last latent; answer, what was decoded from it."""
    sees: Sees = "chain"
    """Whom a path is judged beside. chain: nobody; tree: half of the attention heads see its siblings' thoughts."""
    val_size: float = 0.1
    """Share of the questions kept for validation, or from 1 on their number; whole questions. 0: none."""
    val_steps: int | None = None
    """Validate every so many optimizer steps too. Left out: at each epoch's end only."""
    early_stopping_patience: int | None = None
    """Stop after so many validations without a lower loss. Left out: never."""
    save_steps: int = 100
    """A checkpoint every so many optimizer steps."""
    save_total_limit: int | None = None
    """Keep so many of those, the newest; best, final and epoch_N are always kept. Left out: all."""
    save_optimizer: bool = True
    """Keep optimizer.pt in epoch_N and best too; checkpoint-N and final, from which a run goes on, always have it."""
    resume: str | None = None
    """Go on exactly where a run stopped. auto: the run in --output_dir, else the newest unfinished; or its folder."""
    logging_steps: int = 10
    """A log line every so many optimizer steps."""
    report_to: str = "auto"
    """Where curves go too: none, or some of tensorboard,wandb,trackio. auto: tensorboard where it is installed."""
    log_level: LogLevel = "INFO"
    """How much is said."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    mixed_precision: bool = True
    """Autocast: bfloat16 where the device has it, else float16 on CUDA, else none. Parameters stay
    float32, but with adamw_bf16_sr all is bfloat16."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the layers. auto: on CUDA, for runs that are long enough to win back the minute it takes."""
    parallel: Parallel = "ddp"
    """Under torchrun: ddp, every process has the whole model; fsdp, its weights and moments are spread over them."""
    deterministic: bool = False
    """The same bits again on the same GPU, more slowly. On a CPU it is always so."""
    seed: int = 42
    """Fixes the split, the order, the dropout and every weight."""
    pack_tokens: int | None = None
    """Question tokens and latents computed at once: less when memory is short, with the same result. Left out: 1,024
    for each of batch_size."""
    skip_bad_files: bool = False
    """Carry on when a shard is damaged, naming it and leaving it out."""
    plan: bool = False
    """Print what the run would take of memory, and which settings fit 4, 6, 8 and 12 GB; load and write nothing."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        _at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size)
        _at_least(1, gradient_accumulation_steps=self.gradient_accumulation_steps)
        _at_least(1, max_seq_length=self.max_seq_length, save_steps=self.save_steps)
        _at_least(1, logging_steps=self.logging_steps, pack_tokens=self.pack_tokens)
        _at_least(1, save_total_limit=self.save_total_limit, val_steps=self.val_steps, lora_rank=self.lora_rank)
        _at_least(1, early_stopping_patience=self.early_stopping_patience)
        _at_least(0, correctness_weight=self.correctness_weight, val_size=self.val_size)
        _at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)
        for name in ("warmup_ratio", "dropout_prob", "context_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(
                    f"--{name} is {value}, but it is a share: type a number from 0 up to (not including) 1."
                )
        if self.val_size >= 1 and self.val_size % 1:
            raise ValueError(f"--val_size is {self.val_size}: type a share below 1, or a whole number of questions.")
        if self.parallel == "fsdp" and self.optimizer != "adamw":
            raise ValueError("--parallel fsdp spreads float32 moments only: type --optimizer adamw.")
        if self.train_embeddings and self.tuning != "full":
            raise ValueError(
                f"--train_embeddings trains a part of the backbone, which --tuning {self.tuning} leaves as it is. "
                "Type --tuning full, or leave --train_embeddings out."
            )
        for name in ("early_stopping_patience", "val_steps"):
            if getattr(self, name) and not self.val_size:
                raise ValueError(f"--{name} needs validation: type --val_size 0.1, or leave it out.")
        if self.lora_rank != TrainOptions.lora_rank and self.tuning != "lora":
            raise ValueError(f"--lora_rank is {self.lora_rank}, but only --tuning lora reads it: type that too.")
        if self.correctness_weight and not self.use_prm_score:
            raise ValueError(
                f"--correctness_weight is {self.correctness_weight:g}: its head learns from right and wrong answers, "
                "which --no-use_prm_score does without. Leave one of the two out."
            )
        self.loss_terms()
        self.read_parts()

    @property
    def at_once(self) -> int:
        """``pack_tokens``, or what it is where it was left out."""
        return 1024 * self.batch_size if self.pack_tokens is None else self.pack_tokens

    def read_parts(self) -> tuple[str, ...]:
        """What ``reads`` names, in the order of ``READABLE``. Raises ValueError when it names something else."""
        named = set(self.reads.replace(" ", "").split(","))
        if unknown := sorted(named - set(READABLE)):
            close = get_close_matches(unknown[0], READABLE, n=1)
            meant = f"Did you mean {close[0]}?" if close else "Type some of them with commas, as fed,answer."
            raise ValueError(f"--reads is {self.reads!r}, but {unknown[0]!r} is none of {', '.join(READABLE)}. {meant}")
        if not named & {"fed", "hidden"}:
            raise ValueError(f"--reads is {self.reads!r}, without the latents. Type fed,{self.reads}.")
        return tuple(part for part in READABLE if part in named)

    def loss_terms(self) -> dict[str, float]:
        """The weight of each term of ``loss``, and of what the second head learns.

        Raises ValueError when it is no such sum.
        """
        terms: dict[str, float] = {}
        for term in self.loss.replace(" ", "").split("+"):
            weight, name = term.split("*", 1) if "*" in term else ("1", term)
            if name not in LOSSES:
                close = get_close_matches(name, LOSSES, n=1)
                meant = f"Did you mean {close[0]}?" if close else "Type one, or a sum as bce+0.5*listwise."
                raise ValueError(f"--loss is {self.loss!r}, but {name!r} is none of {', '.join(LOSSES)}. {meant}")
            if not re.fullmatch(r"(\d+\.?\d*|\.\d+)([eE]-?\d+)?", weight) or not 0 < float(weight) < math.inf:
                raise ValueError(f"--loss is {self.loss!r}: {weight!r} must be a number above 0, as in 0.5*{name}.")
            if name in terms:
                raise ValueError(f"--loss is {self.loss!r}, which names {name} twice. Type it once, as 2*{name}.")
            terms[name] = float(weight)
        return terms | ({"correctness": self.correctness_weight} if self.correctness_weight else {})


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure, on questions the model never saw, how much a PRM improves the choice among paths."""

    checkpoint: tuple[str, ...]
    """A checkpoint folder (…/best), or "builtin"; several, of PRMs alike but for the seed, share a table."""
    data_dir: str
    """A folder of shards with questions that the PRM was not trained on."""
    calibrate_on: str | None = None
    """A folder with other questions, to calibrate on and to pick a rule on. Left out: each half on the other."""
    rivals_on: str | None = None
    """A folder with training questions, for the rivals that learn. Left out: only those that do not."""
    rivals: bool = True
    """Measure the rivals that need no training, and the PRM's controls (up to six more passes), on the same paths."""
    output_dir: str | None = None
    """Where evaluation.json and the pictures go. Left out: <checkpoint>/evaluation, or reports for the built-in PRM."""
    num_bootstrap: int = 2000
    """Resamplings of the questions behind each interval."""
    context: Context | None = None
    """What the model reads before the latents: the question's text, or nothing. Left out: as it was trained."""
    seed: int = 42
    """Fixes the bootstrap, the halves (no --calibrate_on), what controls swap, MC-dropout and the rivals that learn."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    pack_tokens: int = 16384
    """Question tokens and latents computed at once; lower it when memory is short. Never changes the result."""
    skip_bad_files: bool = False
    """Carry on when a shard is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        _at_least(1, num_bootstrap=self.num_bootstrap, pack_tokens=self.pack_tokens)
        if not self.checkpoint:
            raise ValueError('--checkpoint names none. Type a folder as checkpoints/…/best, or "builtin".')
        for name in ("calibrate_on", "rivals_on"):
            if (folder := getattr(self, name)) is not None and Path(folder) == Path(self.data_dir):
                raise ValueError(f"--{name} is {folder}, which is the --data_dir: type a folder with other questions.")


@dataclass(frozen=True, kw_only=True)
class SolveOptions(GrowthOptions):
    """Answer one question: grow paths, score them, vote."""

    question: tyro.conf.Positional[str]
    """The question, in quotes."""
    checkpoint: str = BUILTIN
    """A checkpoint folder (…/best), or "builtin" for the PRM that comes with the package."""
    task: str = "arithmetic"
    """How the question is put and its answer read: arithmetic, search, maths, choice or text (an ordinary question)."""
    select: Select = "auto"
    """How one answer is chosen from the paths. auto: as the checkpoint's calibration.json says, else weighted_vote."""
    abstain: float = 0.0
    """Say "I do not know" where the answer is right with less than this probability. 0: never."""
    steer: str | None = None
    """Steer the growing paths by the PRM: topk, particles, anytime, … (a wrong name lists them). Left out: none is."""
    confidence: float | None = None
    """Of --steer anytime: stop once more paths would not mend the answer with this probability. Left out: 0.98."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.question.strip():
            raise ValueError('The question is empty. Type it in quotes: latent-prm solve "Ann has 12 apples. ..."')
        if not 0 <= self.abstain <= 1:
            raise ValueError(f"--abstain is {self.abstain}, but it is a probability: type a number from 0 to 1.")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(f"--confidence is {self.confidence}, but it must lie between 0 and 1: type 0.95, say.")
        if self.confidence is not None and self.steer != "anytime":
            raise ValueError(
                f"--confidence is {self.confidence}, but only --steer anytime reads it: type that too, or leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class ServeOptions(GrowthOptions):
    """Score paths and answer questions over HTTP, with a page to watch a tree grow. LATENT_PRM_TOKEN lets in."""

    checkpoint: str = BUILTIN
    """The PRM: a checkpoint folder (…/best), or "builtin" for the one that comes with the package."""
    task: str = "arithmetic"
    """How a question is put and its answer read where a request does not say, as in solve."""
    select: Select = "auto"
    """How one answer is chosen from the paths. auto: as the checkpoint's calibration.json says, else weighted_vote."""
    solve: bool = True
    """Answer questions too. --no-solve: score paths only, and load no reasoner."""
    host: str = "127.0.0.1"
    """The address to listen at. 0.0.0.0: at all of this machine's, for whoever can reach it."""
    port: int = 8000
    """The port to listen at. 0: any that is free."""
    max_body_mb: int = 16
    """Largest body of a request, in MiB."""
    queue_size: int = 64
    """Scoring requests that may wait; one more is told to come again (503)."""
    batch_tokens: int = 4096
    """Tokens (of question, latents and answers) scored at once; a request with more is refused."""
    timeout: float = 60.0
    """Seconds that a body may take to arrive, and a request to be answered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, max_body_mb=self.max_body_mb, queue_size=self.queue_size, batch_tokens=self.batch_tokens)
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port is {self.port}: type a number from 0 (any free one) to 65535.")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"--timeout is {self.timeout}, but it must be a number of seconds above 0: type 60, say.")
        self.asks("?")

    def asks(self, question: str, **changed: Any) -> SolveOptions:
        """What `latent-prm solve` would be told to answer a question as this server does, with what a request changes.

        Raises ValueError as ``SolveOptions`` does.
        """
        names = [*(field.name for field in fields(GrowthOptions)), "checkpoint", "task", "select"]
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return SolveOptions(question=question, **(own | changed))


@dataclass(frozen=True, kw_only=True)
class SteerOptions(GrowthOptions):
    """Let a scorer steer the thinking, and measure accuracy against compute."""

    task: str = "arithmetic,search"
    """Where questions come from, as in collect."""
    split: Split = "test"
    """Which part of the task to draw from. A file is its own split."""
    max_samples: int = 200
    """Questions to try every method on."""
    checkpoint: str = BUILTIN
    """The PRM: a checkpoint folder (…/best), or "builtin" for the one that comes with the package."""
    methods: str = "topk,adaptive,diversity,budget,beam,particles,merge,uncertain,anytime"
    """Ways to steer, with commas; also the presets conservative, balanced, aggressive, fast, quality."""
    scorer: str = "prm"
    """Who says what an unfinished path is worth: prm, heuristic, random, oracle, or several with commas."""
    after: str | None = None
    """Steer after so many latents of a path, as 2,4. Left out: after each; of several agents, after each agent."""
    select: Literal["best", "vote", "weighted_vote", "logit_vote", "rank_vote", "tie_break", "agreement"] = (
        "weighted_vote"
    )
    """How the answer is chosen among the paths that finish."""
    confidence: float | None = None
    """How sure anytime has to be that more paths would not mend its answer, to stop. Left out: 0.98."""
    pool_paths: int | None = None
    """Paths per question of the unsteered pool that others are compared with, rounded up to a multiple of num_paths.
    Left out: 4 times that."""
    num_bootstrap: int = 2000
    """Resamplings of the questions behind each interval."""
    output_dir: str = "reports"
    """Where steering.json and the picture go."""
    batch_size: int | None = None
    """Questions grown together. Left out: as many as fit (about 2 GiB on a CPU, 80 % of a GPU), at most 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, max_samples=self.max_samples, num_bootstrap=self.num_bootstrap, batch_size=self.batch_size)
        _at_least(1, pool_paths=self.pool_paths)
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise ValueError(f"--confidence is {self.confidence}. Type a probability from 0.5 to below 1.")
        methods = set(self.methods.replace(" ", "").split(","))
        if self.confidence is not None and "anytime" not in methods:
            raise ValueError(
                f"--confidence is {self.confidence}, but only anytime reads it, which --methods does not name: type "
                f"--methods {self.methods},anytime, or leave it out."
            )
        if self.latents() and methods == {"anytime"}:
            raise ValueError(
                f"--after is {self.after}, but --methods anytime does not read it, for it steers no unfinished path. "
                "Leave it out, or name other methods too, as --methods topk,anytime."
            )

    def latents(self) -> tuple[int, ...] | None:
        """``after`` as numbers. Raises ValueError when it is no list of them."""
        if self.after is None:
            return None
        found = self.after.replace(" ", "").split(",")
        if not all(one.isdecimal() and int(one) > 0 for one in found):
            raise ValueError(f"--after is {self.after!r}. Type whole numbers from 1 with commas: --after 2,4")
        return tuple(sorted(set(map(int, found))))


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """Train and measure a grid of PRMs, as a YAML file describes it, and write one table."""

    path: tyro.conf.Positional[str]
    """The .yaml file: pools, base, arms or axes, seeds, evaluate, figures (see experiments/)."""
    output_dir: str = "reports"
    """Where a folder of its name goes, and one with the pools. The same command carries on where it stopped."""
    num_bootstrap: int = 2000
    """Resamplings of the questions behind each interval."""
    dry_run: bool = False
    """Print the plan: what is there, what is to be grown, trained and measured. Do none of it."""

    def __post_init__(self) -> None:
        _at_least(1, num_bootstrap=self.num_bootstrap)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Print what a folder of shards holds."""

    path: tyro.conf.Positional[str] = "prm_data"
    """The folder with the shards."""
    show: int = 0
    """Print so many trees as text, those with right and wrong answers first."""

    def __post_init__(self) -> None:
        _at_least(0, show=self.show)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write one HTML page about a training run, a folder of shards, an evaluation or a steering result."""

    path: tyro.conf.Positional[str]
    """A training run, a folder of shards, or a folder (or file) of evaluation.json or steering.json."""
    output: str | None = None
    """The file to write. Left out: report.html (of one result evaluation.html or steering.html) in PATH, and of shards
    reports/<folder>.html."""
    checkpoint: str | None = None
    """The PRM that colours the trees. Left out: the one that PATH names; of shards "builtin", where it can read
    them."""
    data_dir: str | None = None
    """Where the trees are. Left out: the folder that PATH names."""
    questions: int = 200
    """Trees to look at, at most; those with right and wrong paths first. 0: none."""
    seed: int = 42
    """Fixes which trees."""
    device: Device = "auto"
    """cuda, cpu, or auto: CUDA when there is one, else the CPU, said aloud."""
    skip_bad_files: bool = False
    """Carry on when a shard is damaged, naming it and leaving it out."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        _at_least(0, questions=self.questions)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check whether what a stage wrote is as it was written, and fall back to what is sound."""

    path: tyro.conf.Positional[str]
    """A folder of shards, a training run, a checkpoint, a folder of results, or one that holds several of these."""
    repair: bool = False
    """Set aside what is damaged, put back what can be, remove what killed writes left, and say what to type next."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn the nested .pt files of another program into shards."""

    path: tyro.conf.Positional[str]
    """The folder with the nested files."""
    output_dir: str = "prm_data"
    """The folder the shards go to. Questions that are there already are left as they are."""
    use_heuristic_scores: bool = False
    """Take that program's guesses for the label-free score (train --no-use_prm_score). They never become labels."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a PRM as a plain Hugging Face folder, a sequence classifier that transformers loads by itself."""

    checkpoint: str
    """A checkpoint folder (…/best) of a PRM with --pooling_strategy last, or "builtin"."""
    output_dir: str
    """The folder to write. What an earlier export left there is replaced, anything else never."""
    push_to_hub: str | None = None
    """Put it on the Hugging Face hub too, as OWNER/NAME: private, and by the token of HF_TOKEN or hf auth login."""
    public: bool = False
    """Make what --push_to_hub creates public."""

    def __post_init__(self) -> None:
        if self.public and self.push_to_hub is None:
            raise ValueError("--public is about the hub, but nothing goes there: type --push_to_hub OWNER/NAME too.")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what is installed, what this machine has, and what is missing for what."""

    timeout: float = 5.0
    """Seconds to wait for the hub's answer. 0: do not ask."""

    def __post_init__(self) -> None:
        _at_least(0, timeout=self.timeout)
