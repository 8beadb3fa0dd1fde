"""Training, ours beside a plain loop and Hugging Face's Trainer, in one run: the same steps, and how many times faster.

    python benchmarks/train.py                  # a CPU: 4 layers of Qwen3-0.6B's shape
    python benchmarks/train.py --shape full     # a GPU: all 28, the guide's run, peak memory by setting, the floor

The plain loop is what one would write from the guide: every path a row of its own with its question in front, batches
of 4, padded on the right, accumulation, torch's default AdamW, clipping, warm-up and cosine. All start from the same
weights and take the same paths in the same steps, in turns: what is printed are the medians of the turns. Weights,
latents and targets are random. "Tokens" are those that go through the backbone, padding not counted. "Losses apart":
of the first ten, from the first line's; half precision and float32 part ways at once where weights are random.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import re
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as File
from random import Random
from typing import Any, Literal

import torch
import transformers
import tyro
from full_shape import make_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from latent_prm import trainer
from latent_prm.feeding import ahead
from latent_prm.lessons import Lesson, epoch_steps, lessons_of
from latent_prm.model import QwenLatentPRM
from latent_prm.optimizers import autocast_dtype
from latent_prm.options import TrainOptions
from latent_prm.pretrained import pick_device
from latent_prm.ranks import Ranks
from latent_prm.tree import Path, ReasoningTree

Steps = Sequence[Sequence[Lesson]]
FIRST, AGREE = 10, 1e-4
"""So many losses are compared, and in float32 must agree so closely."""
LONGEST = 45.0
"""Seconds after which the guide's run is cut short at an epoch's end, and its time reckoned from what was done."""
MOVED = {"float32": 44, "half": 50}
"""Bytes that a step must move for each trained parameter: 28 by a fused AdamW (weight, gradient and two moments read,
all but the gradient written), 4 by the norm of the gradient, the rest by the matrix products: weights read forwards and
backwards, gradients written. In half precision these read copies, made once a step, and their gradients are widened."""
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "the guide's, exact AdamW": (8.0, {}),
    "--optimizer adamw8bit": (4.5, {"optimizer": "adamw8bit"}),
    "the smallest": (3.5, {"optimizer": "adamw_bf16_sr", "gradient_checkpointing": True, "pack_tokens": 2048}),
}
"""Of memory: the most GB it should take, and what to type beside the guide's settings."""


@dataclass(frozen=True)
class Data:
    """Random trees, all alike."""

    name: str
    question: int
    """Tokens in front; 0: the model reads no question."""
    branches: tuple[int, ...]
    """Of each agent: (20,) are 20 paths side by side, (4, 2, 2) are 4 + 8 + 16 paths, chains of three agents."""
    latents: int
    """To each path."""
    accumulation: int
    """Batches of 4 paths in an optimizer step."""

    @property
    def paths(self) -> int:
        """Of a tree; all of them have a target."""
        return sum(math.prod(self.branches[: depth + 1]) for depth in range(len(self.branches)))

    def trees(self, count: int, width: int) -> list[ReasoningTree]:
        """So many of them, the same ones each time."""
        chance, torch_chance = Random(1), torch.Generator().manual_seed(1)
        trees = []
        for number in range(count):
            paths: list[Path] = []
            parents: list[int | None] = [None]
            for agent, branches in enumerate(self.branches):
                begin = len(paths)
                for parent in [one for one in parents for _ in range(branches)]:
                    latents = 0.02 * torch.randn(self.latents, width, generator=torch_chance)
                    path = Path(latents=latents, tip=None, parent=parent, agent=f"agent {agent}")
                    path.prm_score = chance.random()
                    paths.append(path)
                parents = list(range(begin, len(paths)))
            text = "".join(chance.choices(string.ascii_lowercase, k=self.question or 20))  # a letter is a token
            trees.append(ReasoningTree(question_id=f"{number}", question=text, gold="", task="random", paths=paths))
        return trees


FLAT = Data("flat: 4 paths of 10 latents, no question", 0, (4,), 10, 4)
TREES = Data("trees: a question of 60 tokens, 20 paths of 15 latents", 60, (20,), 15, 5)
CHAINS = Data("chains: a question of 60 tokens, 3 agents of 10 latents, 4 x 2 x 2", 60, (4, 2, 2), 10, 7)
SIXTEEN = replace(TREES, name="trees: a question of 60 tokens, 16 paths of 15 latents", branches=(16,), accumulation=4)
"""As many paths as the guide has in a step."""
DATA = {"flat": FLAT, "trees": TREES, "chains": CHAINS}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shape: Literal["slice", "full"] | None = None
    """4 layers of Qwen3-0.6B's shape, or all 28 and more to measure. Left out: full with CUDA, else slice."""
    layers: int | None = None
    """Another number of layers."""
    data: tuple[Literal["flat", "trees", "chains"], ...] = ("flat", "trees", "chains")
    repeats: int = 3
    """Turns that each takes."""
    turn: int | None = None
    """Optimizer steps in a turn. Left out: 3 on a CPU, 6 on a GPU."""
    warm: int = 2
    """Steps before them."""
    compile: Literal["on", "off"] | None = None
    """Our layers. Left out: on a GPU. On a CPU compiled ones are one more line of the table."""
    minutes: float = 6.0
    """What would begin later is left out, and named."""


# --- time and memory --------------------------------------------------------------------------------------------------


def now(device: torch.device) -> float:
    """Seconds, when the device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[float]]:
    """Holds afterwards by how many bytes memory rose at most; nothing where that cannot be told."""
    found: list[float] = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what others gave back would hide what this one takes
        File("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except (OSError, AttributeError):
        yield found
        return
    before = resident("VmRSS")
    yield found
    found.append(resident("VmHWM") - before)


def resident(name: str) -> float:
    """Bytes that the process holds (VmRSS), or held at most (VmHWM)."""
    line = re.search(rf"{name}:\s+(\d+) kB", File("/proc/self/status").read_text())
    assert line
    return float(line[1]) * 1024


def named(precision: torch.dtype) -> str:
    """Without its family."""
    return str(precision).removeprefix("torch.")


def said(found: Sequence[float]) -> str:
    """A peak in GB (10^9 bytes)."""
    return f"{found[0] / 1e9:.2f} GB" if found else "unknown"


# --- the three --------------------------------------------------------------------------------------------------------


class Ours:
    """The stage's own code, from its Run to its optimizer steps."""

    def __init__(self, options: TrainOptions, trees: Sequence[ReasoningTree]) -> None:
        assert options.output_dir
        ranks = Ranks(pick_device(options.device))
        self.run = trainer.Run(options, File(options.output_dir), trees, [], ranks)
        self.name, self.losses = f"ours, {named(self.run.precision)}", list[float]()

    def turn(self, steps: Steps) -> float:
        """Take these steps, as the stage does in an epoch; returns the seconds."""
        run, began = self.run, now(self.run.device)
        for work in ahead(lambda numbered: run.prepare(*numbered), enumerate(steps, run.state.step)):
            self.losses.append(trainer.optimizer_step(run, work).loss)
            run.state.step += 1
        return now(run.device) - began


class Rows(nn.Module):
    """The same model, read as one would without packing: a path to a row."""

    def __init__(self, prm: QwenLatentPRM) -> None:
        super().__init__()
        self.prm, self.losses = prm, []

    def forward(
        self, token_ids: Tensor, latents: Tensor, is_latent: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The mean loss of B rows of S columns."""
        embedded = self.prm.backbone.get_input_embeddings()(token_ids)
        embedded = torch.where(is_latent[..., None], latents, embedded)
        states = self.prm.backbone(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False)
        pooled = (states.last_hidden_state.float() * is_latent[..., None]).sum(1) / is_latent.sum(1, keepdim=True)
        loss = nn.functional.mse_loss(self.prm.head(pooled)[:, 0].float().sigmoid(), labels)
        self.losses.append(loss.detach())
        return {"loss": loss}


Row = tuple[Tensor, Tensor, float]
"""A path by itself: the question's tokens, the chain's latents, the target."""


def rows_of(steps: Steps) -> list[Row]:
    """Every labelled path of these steps, in order."""
    return [
        (torch.tensor(item.context, dtype=torch.long), item.tree.chain_latents(path), target)
        for items in steps
        for item in items
        for path, target in item.targets.items()
    ]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch, padded on the right."""
    questions, latents, targets = zip(*rows, strict=True)
    ids = [torch.cat([q, q.new_zeros(len(own))]) for q, own in zip(questions, latents, strict=True)]
    vectors = [torch.cat([own.new_zeros(len(q), own.shape[1]), own]) for q, own in zip(questions, latents, strict=True)]
    place = [torch.arange(len(one)) >= len(q) for one, q in zip(ids, questions, strict=True)]
    return {
        "token_ids": pad_sequence(ids, batch_first=True),
        "latents": pad_sequence(vectors, batch_first=True),
        "is_latent": pad_sequence(place, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": torch.tensor(targets),
    }


class Rival:
    """What the plain loop and the Trainer begin with: our weights, optimizer settings and learning rates."""

    kind, fused = "", False

    def __init__(self, bench: Bench, options: TrainOptions, precision: torch.dtype, total: int) -> None:
        o = self.options = options
        self.device, self.precision = bench.device, precision
        self.name, self.losses = f"{self.kind}, {named(precision)}", list[float]()
        model = QwenLatentPRM(o.model_path, bench.width, o.pooling_strategy, dropout_prob=0.0)
        bench.give_head(model)
        self.model = model.to(self.device).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        norms = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
        groups = [{"params": [p for p in trained if p.ndim > 1]}, norms]
        self.optimizer = AdamW(groups, lr=o.learning_rate, weight_decay=o.weight_decay, fused=self.fused or None)
        warmup = int(o.warmup_ratio * total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        self.scheduler = LambdaLR(self.optimizer, factor)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)

    def turn(self, steps: Steps) -> float:
        """Take these steps; returns the seconds."""
        raise NotImplementedError


class Plain(Rival):
    """The guide's loop."""

    kind = "plain"

    def turn(self, steps: Steps) -> float:
        """As in Rival."""
        began = now(self.device)
        for items in steps:
            self.losses.append(self.step(rows_of([items])))
        return now(self.device) - began

    def step(self, rows: list[Row]) -> float:
        """One optimizer step; returns its loss."""
        total, size, batches = 0.0, self.options.batch_size, self.options.gradient_accumulation_steps
        rows_to_loss, half = Rows(self.model), self.precision is not torch.float32
        for at in range(0, len(rows), size):
            batch = {name: column.to(self.device) for name, column in collate(rows[at : at + size]).items()}
            with torch.autocast(self.device.type, self.precision if half else None, enabled=half):
                loss = rows_to_loss(**batch)["loss"] / batches
            self.scaler.scale(loss).backward()
            total += loss.item()
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return total


class Clock(TrainerCallback):
    """The time from the first step's beginning to the last one's end: the Trainer's preparations do not count."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began, self.ended = device, 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.began or now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            self.ended = now(self.device)


class HuggingFace(Rival):
    """transformers.Trainer, with its default optimizer: AdamW, fused."""

    kind, fused = "HF Trainer", True

    def turn(self, steps: Steps) -> float:
        """As in Rival."""
        o, clock, rows = self.options, Clock(self.device), Rows(self.model)
        args = TrainingArguments(
            output_dir=o.output_dir,
            per_device_train_batch_size=o.batch_size,
            gradient_accumulation_steps=o.gradient_accumulation_steps,
            max_steps=len(steps),
            max_grad_norm=o.max_grad_norm,
            bf16=self.precision is torch.bfloat16,
            fp16=self.precision is torch.float16,
            use_cpu=self.device.type == "cpu",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=self.device.type == "cuda",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=o.seed,
        )
        learner = Trainer(
            rows,
            args,
            collate,
            rows_of(steps),  # type: ignore[reportArgumentType]  # a list serves as a dataset
            callbacks=[clock],
            optimizers=(self.optimizer, self.scheduler),
        )
        learner.remove_callback(PrinterCallback)
        learner.train()
        size = o.gradient_accumulation_steps
        each = torch.stack(rows.losses).tolist()
        self.losses += [sum(each[at : at + size]) / size for at in range(0, len(each), size)]
        return clock.ended - clock.began


# --- side by side -----------------------------------------------------------------------------------------------------


class Bench:
    """Where the model lies, and what this machine can do."""

    def __init__(self, options: Options, scratch: File) -> None:
        self.options, self.scratch, self.runs = options, scratch, 0
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several the Trainer would take all
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high" if self.device.type == "cuda" else "highest")
        self.cuda = self.device.type == "cuda"
        self.shape = options.shape or ("full" if self.cuda else "slice")
        self.model, self.width = scratch / "model", 1024
        make_model(self.model, options.layers or {"slice": 4, "full": 28}[self.shape])
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.head = 0.02 * torch.randn(1, self.width, generator=torch.Generator().manual_seed(1))
        self.half = autocast_dtype(self.device)
        """The precision that a user gets."""
        self.known_rates: dict[torch.dtype, tuple[float, float]] = {}

    def settings(self, data: Data, **own: Any) -> TrainOptions:
        """The guide's, where nothing else is said."""
        self.runs += 1
        folders = {"model_path": str(self.model), "output_dir": str(self.scratch / f"run-{self.runs}")}
        common = {"device": self.device.type, "context": "question" if data.question else "none", "loss": "mse"}
        return TrainOptions(**{**folders, **common, "reads": "fed", "val_size": 0, "report_to": "none", **own})

    def steps(self, data: Data, trees: Sequence[ReasoningTree], options: TrainOptions, epoch: int = 1) -> Steps:
        """What the trainer goes through in an epoch of these trees."""
        lessons = lessons_of(trees, options)
        if data.question:
            tokens = self.tokenizer([item.tree.question for item in lessons])["input_ids"]
            assert {len(one) for one in tokens} == {data.question}
            lessons = [item._replace(context=one) for item, one in zip(lessons, tokens, strict=True)]
        return epoch_steps(lessons, epoch, options)

    @torch.no_grad()
    def give_head(self, model: QwenLatentPRM) -> None:
        """The same score head to every contender; all other weights are the folder's."""
        model.head.weight.copy_(self.head)

    def rates(self, precision: torch.dtype) -> tuple[float, float]:
        """Bytes a second, read and written, of a large copy; operations a second of a large matrix product."""
        if precision not in self.known_rates:
            size = 8192 if self.cuda else 2048
            a, m = torch.ones(2**28, device=self.device), torch.randn(size, size, device=self.device).to(precision)
            b, times = torch.empty_like(a), []
            for _ in range(6):
                began = now(self.device)
                b.copy_(a)
                middle = now(self.device)
                torch.mm(m, m)
                times.append((middle - began, now(self.device) - middle))
            copy, product = (min(column[1:]) for column in zip(*times, strict=True))
            self.known_rates[precision] = 2 * a.nbytes / copy, 2 * size**3 / product
        return self.known_rates[precision]


def computed(items: Sequence[Lesson], shared: bool) -> int:
    """Tokens and latents that a step's paths are made of; with ``shared``, those of several paths count once."""
    total = 0
    for item in items:
        chains = [item.tree.chain(path) for path in item.targets]
        runs = {run for chain in chains for run in chain} if shared else [run for chain in chains for run in chain]
        total += len(item.context) * (1 if shared else len(chains)) + sum(len(item.tree.paths[r].latents) for r in runs)
    return total


def compare(bench: Bench, data: Data) -> bool:
    """Print how fast each is on this data; returns whether ours and the plain loop agree in float32."""
    o, device = bench.options, bench.device
    turn = o.turn or (6 if bench.cuda else 3)
    total, size = max(FIRST, o.warm + o.repeats * turn), 4 * data.accumulation
    trees = data.trees(-(-total * size // data.paths), bench.width)
    common = {"num_epochs": 1, "gradient_accumulation_steps": data.accumulation, "dropout_prob": 0.0}
    common |= {"context_dropout": 0.0, "compile": (o.compile or "on") if bench.cuda else "off"}
    steps = bench.steps(data, trees, bench.settings(data, **common))

    def ours(half: bool, **changes: Any) -> Ours:
        made = Ours(bench.settings(data, mixed_precision=half, **common | changes), trees)
        made.name += ", compiled" if changes.get("compile") == "on" else ""
        bench.give_head(made.run.model)
        return made

    def other(kind: type[Rival], precision: torch.dtype) -> Rival:
        return kind(bench, bench.settings(data, **common), precision, len(steps))

    print(f"\n{data.name}; {size} paths to a step, {o.repeats} turns of {turn} steps")
    exact = [lambda: other(Plain, torch.float32), lambda: ours(False, compile="off")]
    if bench.cuda:  # there float32 is only to be compared: nobody would train in it
        torch.set_float32_matmul_precision("highest")
        pair = [make() for make in exact]
        for one in pair:
            one.turn(steps[:FIRST])
        gap = difference(*(one.losses for one in pair))
        del pair, one
        torch.set_float32_matmul_precision("high")
        makers = [lambda: other(Plain, bench.half), lambda: other(HuggingFace, bench.half), lambda: ours(True)]
    else:
        makers = [exact[0], lambda: other(HuggingFace, torch.float32), exact[1]]
        makers += [lambda: ours(True)] * (bench.half is not torch.float32)
        makers += [lambda: ours(True, compile="on")] * (o.compile == "on")
    contenders: list[Ours | Rival] = []
    peaks, times = [], []
    for make in makers:
        with peak_of(device) as peak:
            contenders.append(make())
            contenders[-1].turn(steps[: o.warm])
        peaks.append(said(peak))
    for at in range(o.warm, total, turn):
        times.append([one.turn(steps[at : at + turn]) / len(steps[at : at + turn]) for one in contenders])
    if not bench.cuda:
        gap = difference(contenders[2].losses, contenders[0].losses)
    table(data, steps[0], contenders, peaks, times)
    for one, seconds in zip(contenders, zip(*times, strict=True), strict=True):
        if isinstance(one, Ours):
            floor(bench, one, computed(steps[0], shared=True), statistics.median(seconds))
    print(
        f"first {FIRST} losses in float32, ours and plain: {gap:.1e} apart" + " (TOO FAR)" * (gap > AGREE), flush=True
    )
    return gap <= AGREE


def difference(own: Sequence[float], plain: Sequence[float]) -> float:
    """Between the first losses, the largest."""
    return max(abs(a - b) for a, b in zip(own[:FIRST], plain[:FIRST], strict=True))


def table(
    data: Data, items: Sequence[Lesson], contenders: Sequence[Ours | Rival], peaks: list[str], times: list[list[float]]
) -> None:
    """Print a line to each; the first is what the others are held against."""
    print(f"{'':<24}{'s/step':>9}{'samples/s':>11}{'tokens/s':>10}{'peak':>10}{'x plain':>9}{'losses apart':>14}")
    for k, one in enumerate(contenders):
        seconds = statistics.median(row[k] for row in times)
        ratio = statistics.median(row[0] / row[k] for row in times)
        tokens = computed(items, shared=isinstance(one, Ours)) / seconds
        gap = difference(one.losses, contenders[0].losses)
        samples = 4 * data.accumulation / seconds
        print(f"{one.name:<24}{seconds:>9.4f}{samples:>11.1f}{tokens:>10.0f}{peaks[k]:>10}{ratio:>9.1f}{gap:>14.1e}")


def floor(bench: Bench, ours: Ours, tokens: int, seconds: float) -> None:
    """Print what a step must cost on this machine, whatever the code, and how near ours comes to it."""
    half = ours.run.precision is not torch.float32
    trained = sum(p.numel() for p in ours.run.model.parameters() if p.requires_grad)
    bandwidth, speed = bench.rates(ours.run.precision)
    moved, done = MOVED["half" if half else "float32"] * trained, 6 * trained * tokens
    costs = {"bytes": moved / bandwidth, "operations": done / speed}
    binds = max(costs, key=lambda name: costs[name])
    print(
        f"floor of {ours.name}: {moved / 1e9:.1f} GB at {bandwidth / 1e9:.0f} GB/s {costs['bytes']:.4f} s, "
        f"{done / 1e12:.2f} TFLOP at {speed / 1e12:.2f} TFLOP/s {costs['operations']:.4f} s; "
        f"{binds} bind, {costs[binds] / seconds:.0%} of it reached"
    )


# --- by itself --------------------------------------------------------------------------------------------------------


def guides_run(bench: Bench, data: Data) -> None:
    """Print the time of 1,000 samples x 5 epochs with the guide's settings, after an epoch to warm up."""
    trees = data.trees(-(-1000 // data.paths), bench.width)
    options = bench.settings(data, num_epochs=6, compile=(bench.options.compile or "on") if bench.cuda else "off")
    seconds, done = 0.0, 0
    with peak_of(bench.device) as peak:
        ours = Ours(options, trees)
        warm_up = ours.turn(bench.steps(data, trees, options))
        epochs = [bench.steps(data, trees, options, epoch) for epoch in range(2, 7)]
        for steps in epochs:
            seconds, done = seconds + ours.turn(steps), done + len(steps)
            if seconds > LONGEST:
                break
    count = sum(len(steps) for steps in epochs)
    cut = f" (reckoned from {done} of them)" * (done < count)
    print(
        f"the guide's run, {data.name}: {len(trees) * data.paths:,} samples x 5 epochs, {count} steps{cut} "
        f"{seconds * count / done:.1f} s; the epoch before {warm_up:.1f} s; peak {said(peak)}",
        flush=True,
    )


def memory(bench: Bench, data: Data) -> None:
    """Print the peak of a few steps with less and less memory."""
    trees = data.trees(4, bench.width)
    for name, (most, own) in SETTINGS.items():
        try:
            with peak_of(bench.device) as peak:
                options = bench.settings(data, num_epochs=1, **own)
                Ours(options, trees).turn(bench.steps(data, trees, options))
        except (ImportError, ValueError) as error:
            print(f"peak, {name}: not measured ({str(error).splitlines()[0]})")
            continue
        print(f"peak, {name}: {said(peak)} (at most {most} GB is aimed at)", flush=True)


def main(options: Options) -> None:
    """Compare on each kind of data; with the full shape, measure ours by itself too."""
    began = time.perf_counter()
    logging.getLogger("latent_prm").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, File(scratch))
        name = torch.cuda.get_device_name() if bench.cuda else f"CPU, {torch.get_num_threads()} threads"
        load = f"load {os.getloadavg()[0]:.1f}"  # beside others' work two threads wait for each other: time with one
        print(f"{name}, {load}; torch {torch.__version__}, transformers {transformers.__version__}")
        parts = {one: partial(compare, bench, DATA[one]) for one in options.data}
        if bench.shape == "full":
            parts |= {
                "guide, flat": partial(guides_run, bench, FLAT),
                "guide, trees": partial(guides_run, bench, SIXTEEN),
                "memory": partial(memory, bench, SIXTEEN),
            }
        fine = True
        for name, part in parts.items():
            if time.perf_counter() - began > 60 * options.minutes:
                print(f"left out after {options.minutes:g} minutes: {name}")
            else:
                fine = part() is not False and fine
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    if not fine:
        sys.exit(f"In float32 ours and the plain loop must agree to {AGREE:g}, and do not.")


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True))
