"""What training takes of memory, known before anything is loaded, and which settings fit how much of it.

This room hides what autograd, autocast and the optimizers keep. It reckons with a decoder built like Qwen's, Llama's or
Mistral's, not compiled, in one process; the tests hold it against saved tensors and against the peaks of real steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from latent_prm.demo import reader_folder
from latent_prm.files import BadFile
from latent_prm.growth import NUM_PATHS
from latent_prm.lessons import Lesson, chance
from latent_prm.losses import StepLoss
from latent_prm.memory import bill, held, spell
from latent_prm.optimizers import autocast_dtype
from latent_prm.options import TrainOptions
from latent_prm.packing import pack
from latent_prm.preflight import free_space
from latent_prm.pretrained import fetch, find_folder, loading, pick_device
from latent_prm.reading import read_trees
from latent_prm.shards import list_shards, nested_files, read_metadata, read_shard
from latent_prm.tree import ReasoningTree

CARDS = (4, 6, 8, 12)
"""GPUs as they are sold; one of 8 GB has 8 GiB."""
CUDA_ITSELF = 2**29
"""Bytes of CUDA's context and cuBLAS's workspace, about."""
QUESTION, LATENTS = 60, 10
"""Tokens of a question and latents of a path, where there is no data yet."""
SAMPLED = 100
"""Questions of the data that are measured."""
BLOCK, SMALL = 256, 4096
"""torchao's 8-bit moments: numbers with one scale, and the least numbers in a weight that has such moments."""

# --- what is counted --------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What of a model memory depends on."""

    layers: int
    hidden: int
    latent_dim: int
    """Where it is not ``hidden``, a projection stands in front."""
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    gated: bool
    """Whether two matrices lead into the inner layer, as in SwiGLU."""
    head_norms: bool
    """Whether queries and keys are normed, as in Qwen3."""
    embedding: int
    """Numbers in the token embedding."""
    sizes: tuple[int, ...]
    """Numbers in each other weight of the backbone."""
    matrices: tuple[tuple[int, int], ...]
    """The sides of its linear layers."""


def skeleton(model_path: str) -> Any:
    """The backbone behind a ``--model_path`` on the meta device, from its configuration alone."""
    folder = find_folder(model_path, reader_folder)
    with loading(folder):
        config = fetch(AutoConfig, folder, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False)


def shape_of(backbone: Any, latent_dim: int | None = None) -> Shape:
    """The shape of a PRM on a Hugging Face decoder, with or without weights, that reads latents of this width."""
    config, embedding = backbone.config.get_text_config(), backbone.get_input_embeddings().weight
    heads = getattr(config, "num_attention_heads", None) or 1
    linear = [module for module in backbone.modules() if isinstance(module, (nn.Linear, Conv1D))]
    names = [name for name, _ in backbone.named_modules()]
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        latent_dim=latent_dim or config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        gated=any("gate" in name for name in names),
        head_norms=any(name.endswith("q_norm") for name in names),
        embedding=embedding.numel(),
        sizes=tuple(p.numel() for p in backbone.parameters() if p is not embedding),
        matrices=tuple((module.weight.shape[0], module.weight.shape[1]) for module in linear),
    )


def trained(shape: Shape, options: TrainOptions) -> list[int]:
    """Numbers in each weight that learns: see ``tuning.adapt``."""
    own = [shape.hidden] * (2 if options.correctness_weight else 1)
    own += [shape.latent_dim * shape.hidden] * (shape.latent_dim != shape.hidden)
    if options.tuning == "head":
        return own
    if options.tuning == "lora":
        return own + [options.lora_rank * side for sides in shape.matrices for side in sides]
    return own + [*shape.sizes] + [shape.embedding] * options.train_embeddings


def frozen(shape: Shape, options: TrainOptions) -> int:
    """Numbers in the weights that do not."""
    full = options.tuning == "full"
    return (0 if full else sum(shape.sizes)) + (0 if full and options.train_embeddings else shape.embedding)


class Load(NamedTuple):
    """What an optimizer step computes."""

    columns: int
    """Question tokens and latents of all its labelled paths."""
    widest: int
    """Those of the largest tree, which is never cut."""

    def packed(self, pack_tokens: int) -> tuple[int, int]:
        """(columns of its largest pack, number of packs)"""
        size = max(pack_tokens, self.widest)
        return min(self.columns, size), ceil(self.columns / size)


# --- bytes ------------------------------------------------------------------------------------------------------------


class Need(NamedTuple):
    """Bytes on the device. Gradients come as copies and activations go, so that ``total`` is less than the sum."""

    weights: int
    """Those that learn."""
    frozen: int
    """Those that do not."""
    gradients: int
    moments: int
    copies: int
    """Of weights, in the dtype that autocast multiplies in, at the end of a forward pass."""
    activations: int
    """Kept at the end of the forward pass of the largest pack."""
    work: int
    """Beside those, while one layer is computed: for the second time with --gradient_checkpointing."""
    validation: int
    """A forward pass of a full pack that keeps nothing."""
    packs: int
    """In an optimizer step; from the second on, gradients are there while activations are kept."""

    @property
    def held(self) -> int:
        """What is there between steps, and in a checkpoint."""
        return self.weights + self.frozen + self.moments

    @property
    def total(self) -> int:
        """At the largest moment: the end of the forward pass, the way back, or validation."""
        before = self.gradients if self.packs > 1 else 0
        back = max(self.gradients, before + self.activations) + self.work
        return self.held + max(before + self.copies + self.activations, back, self.validation)


def need(shape: Shape, options: TrainOptions, precision: torch.dtype, load: Load) -> Need:
    """What training takes whose forward pass multiplies in ``precision`` (float32: without autocast)."""
    full, learn = options.tuning == "full", trained(shape, options)
    weight = 2 if options.optimizer == "adamw_bf16_sr" else 4
    compute = min(weight, precision.itemsize)
    columns, packs = load.packed(options.at_once)
    # Who sees whom, as yes or no and as numbers, which all layers share.
    seen = min(columns, load.widest) * (1 + compute * (shape.heads if options.sees == "tree" else 1))
    beside = 0
    if options.tuning == "lora":
        beside = sum(learn) - sum(trained(shape, replace(options, tuning="head", lora_rank=TrainOptions.lora_rank)))
    multiplied = compute * (sum(rows * wide for rows, wide in shape.matrices) + beside) * (compute < weight)
    # Autocast keeps copies of weights that learn until it ends; others are copied, and the copies dropped, at each use.
    cached = multiplied if full else compute * beside * (compute < weight)
    passing = _passing(shape, weight, compute) + seen
    layer = columns * _kept(shape, options, weight, compute)
    outside = columns * 24 * shape.hidden  # the last norm, its states, the chains' and two gradients, in float32
    if options.tuning == "head" and shape.latent_dim == shape.hidden:  # nothing in front learns: no way back
        copies, activations, work = 0, outside, columns * passing
    elif options.gradient_checkpointing:
        activations = outside + columns * (seen + shape.layers * weight * shape.hidden)
        copies, work = cached, layer + multiplied // shape.layers + columns * 2 * compute * shape.inner
    else:
        copies, activations, work = multiplied, outside + columns * seen + shape.layers * layer, 0
    return Need(
        weights=weight * sum(learn),
        frozen=weight * frozen(shape, options),
        gradients=weight * sum(learn),
        moments=sum(_moments(size, options) for size in learn),
        copies=copies,
        activations=activations,
        work=work,
        validation=cached + max(options.at_once, load.widest) * passing if options.val_size else 0,
        packs=packs,
    )


def _moments(size: int, options: TrainOptions) -> int:
    """Of a weight with so many numbers: see ``optimizers.make_optimizer``."""
    if options.optimizer == "adamw" or size < SMALL or size % BLOCK:
        return 2 * 4 * size
    return 2 * (size + 4 * (size // BLOCK) + 4 * 256)  # numbers, scales, and the 256 values that 8 bits stand for


def _kept(shape: Shape, options: TrainOptions, weight: int, compute: int) -> int:
    """What autograd keeps of one column in one layer. The residual stream has the weights' dtype, norms are float32."""
    full, mixed = options.tuning == "full", compute < weight
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (4 * shape.hidden + 4 + full * weight * shape.hidden)  # what goes in; to learn a scale: what it scales
    if shape.head_norms:
        norms += (4 + full * compute) * (queries + keys) + 4 * (shape.heads + shape.kv_heads)
    # Keys and values are spread out to as many as queries; beside them the output and its scale.
    attention = 4 * compute * queries + 4 * shape.heads
    inner = compute * shape.inner * (3 if shape.gated else 1)
    if options.tuning == "head":
        return norms + attention + inner
    inputs = 4 + shape.gated if mixed else 2  # autocast makes each matrix a copy of its own of what they all read
    read = compute * (inputs * shape.hidden + shape.inner)
    if options.tuning == "lora":
        read += compute * (mixed * queries + options.lora_rank * len(shape.matrices) // shape.layers)
    return norms + attention + inner + read


def _passing(shape: Shape, weight: int, compute: int) -> int:
    """What is there of one column while a layer computes and nothing is kept."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = compute * (4 * queries + 2 * keys)
    if compute < weight:  # rotated in float32 before attention makes them small
        attention += 4 * (2 * queries + keys)
    turns = 2 * weight * shape.head_dim  # of rotary positions, for all heads and layers
    return turns + 3 * weight * shape.hidden + max(attention, 3 * compute * shape.inner)


class Disk(NamedTuple):
    """What the checkpoints of a run take; equal ones share their bytes where the filesystem has hard links."""

    whole: int
    """Bytes of one that a run can go on from."""
    light: int
    """Bytes of one without optimizer.pt."""
    num_whole: int
    """Most of them that are there at a time."""
    num_light: int

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.whole * self.num_whole + self.light * self.num_light

    def __str__(self) -> str:
        light = f" and {self.num_light} of {spell(self.light)} without optimizer.pt" if self.num_light else ""
        return f"{self.num_whole} checkpoints of {spell(self.whole)}{light}"


def disk(options: TrainOptions, shape: Shape, steps: int) -> Disk:
    """What a run of so many optimizer steps keeps: of every --save_steps, of each epoch's end, and one to spare.

    The spare one is written before an old one goes, or is best where validation comes between epochs.
    """
    found = need(shape, options, torch.float32, Load(1, 1))
    ends = {steps * epoch // options.num_epochs for epoch in range(1, options.num_epochs + 1)} - {0}
    between = [step for step in range(options.save_steps, steps + 1, options.save_steps) if step not in ends]
    limit = options.save_total_limit
    kept = len(between) + bool(options.val_steps) if limit is None else min(len(between), limit + 1)
    kept += bool(limit and options.val_steps)
    light = 0 if options.save_optimizer else max(0, len(ends) - 1)
    return Disk(found.held, found.weights + found.frozen, kept + max(1, len(ends)) - light, light)


# --- what fits --------------------------------------------------------------------------------------------------------

KNOBS = ("tuning", "optimizer", "gradient_checkpointing", "pack_tokens")
"""The options that decide what fits; all others stay as typed."""
REMEDIES = (("full", "adamw"), ("full", "adamw8bit"), ("full", "adamw_bf16_sr"), ("lora", "adamw"), ("head", "adamw"))
"""What is trained by what, from the most exact to the smallest."""
PACKS = (8192, 4096, 2048, 1024, 512)


def remedies(options: TrainOptions) -> Iterator[TrainOptions]:
    """The options with other knobs, the fullest first: packs change nothing, checkpointing only the time."""
    packs = [options.pack_tokens, *(size for size in PACKS if size < options.at_once)]
    for tuning, optimizer in REMEDIES:
        embeddings, parallel = options.train_embeddings and tuning == "full", options.parallel
        others = {"train_embeddings": embeddings, "parallel": parallel if optimizer == "adamw" else "ddp"}
        others["lora_rank"] = options.lora_rank if tuning == "lora" else TrainOptions.lora_rank
        one = replace(options, tuning=tuning, optimizer=optimizer, **others)
        for again in (False, True):
            yield from (replace(one, gradient_checkpointing=again, pack_tokens=size) for size in packs)


def fullest(options: TrainOptions, takes: Callable[[TrainOptions], int], room: int) -> TrainOptions | None:
    """The first of the :func:`remedies` that takes at most ``room`` bytes; None when none does."""
    return next((one for one in remedies(options) if takes(one) <= room), None)


def typed(options: TrainOptions) -> str:
    """The knobs as they are typed; those that stand at their default are left out."""
    usual = {field.name: field.default for field in fields(TrainOptions)}
    chosen = {name: getattr(options, name) for name in KNOBS if getattr(options, name) != usual[name]}
    said = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in chosen.items())
    return said or f"the defaults of --{', --'.join(KNOBS)}"


# --- the data ---------------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What the data is like."""

    per_path: float
    """Columns to a labelled path: its own, and its share of the question and of what it has in common with others."""
    widest: int
    """Columns of the largest tree."""
    latent_dim: int | None
    said: str
    steps: int = 0
    """Optimizer steps of an epoch, about; 0 where there is no data yet, or of another program."""

    def load(self, options: TrainOptions) -> Load:
        """An optimizer step's."""
        paths = options.batch_size * options.gradient_accumulation_steps
        return Load(ceil(paths * self.per_path), self.widest)


def read(options: TrainOptions) -> Reading:
    """From the first shard of ``data_dir``; where there is none, from what a collection makes of ordinary questions.

    Raises ``files.BadFile`` for a damaged shard, without --skip_bad_files.
    """
    reads, tokenizer = options.read_parts(), None
    found = [Lesson.of(tree, options.use_prm_score, "answer" in reads) for tree in _trees(options)]
    lessons, asks = [one for one in found if one.targets][:SAMPLED], options.context == "question"
    if not lessons:
        columns = QUESTION * asks + NUM_PATHS * LATENTS
        like = f"{NUM_PATHS} paths of {LATENTS} latents" + f" to a question of {QUESTION} tokens" * asks
        return Reading(columns / NUM_PATHS, columns, None, f"no labelled paths in {options.data_dir}; say {like}")
    if asks or "answer" in reads:
        folder = find_folder(options.model_path, reader_folder)
        with loading(folder):
            tokenizer = fetch(AutoTokenizer, folder, trust_remote_code=False)

    def tokens(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts))["input_ids"] if tokenizer is not None and texts else []

    sizes = []
    seen = read_trees([lesson.tree for lesson in lessons], reads, tokens, asks)
    for lesson, own in zip(lessons, seen, strict=True):
        step = StepLoss([lesson._replace(**own._asdict())], options, partial(chance, options.seed))  # may add chains
        longest = options.max_seq_length
        packs = pack(step.trees, [own.context], wanted=step.wanted, tails=step.tails, max_seq_length=longest)
        sizes.append(sum(batch.num_tokens for batch in packs))
    paths, width = sum(len(lesson.targets) for lesson in lessons), seen[0].tree.paths[0].latents.shape[1]
    said = f"{paths / len(lessons):.1f} labelled paths to a question, {sum(sizes) / len(lessons):.1f} columns"
    said += f" (the first {len(lessons)} of {options.data_dir})"
    return Reading(sum(sizes) / paths, max(sizes), width, said, _steps(options, paths / len(lessons)))


def _steps(options: TrainOptions, paths: float) -> int:
    """Optimizer steps of an epoch when every question has so many labelled paths, as many as their metadata say."""
    questions = 0
    for path in list_shards(options.data_dir):
        with suppress(BadFile):
            questions += read_metadata(path)["num_questions"]
    kept = options.val_size if options.val_size >= 1 else options.val_size * questions
    together = max(1, int(options.batch_size * options.gradient_accumulation_steps / paths))
    return ceil(max(0, questions - round(kept)) / together)


def _trees(options: TrainOptions) -> list[ReasoningTree]:
    if harvest := nested_files(options.data_dir):
        return harvest.trees
    for path in list_shards(options.data_dir):
        try:
            return read_shard(path)
        except BadFile:
            if not options.skip_bad_files:
                raise
    return []


# --- what is printed --------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """Where something is to be trained."""

    device: torch.device
    precision: torch.dtype
    shape: Shape
    data: Reading

    def need(self, options: TrainOptions) -> Need:
        """What an optimizer step on this data takes of the device: a GPU goes without a frozen token embedding."""
        found = need(self.shape, options, self.precision, self.data.load(options))
        return found._replace(frozen=found.frozen - self.beside(options))

    def beside(self, options: TrainOptions) -> int:
        """Bytes that are kept in the computer's memory instead of a GPU's."""
        weight = 2 if options.optimizer == "adamw_bf16_sr" else 4
        return 0 if self.device.type == "cpu" or options.train_embeddings else weight * self.shape.embedding

    def takes(self, options: TrainOptions) -> int:
        """Bytes at the largest moment. On a CPU a checkpoint being written is a second copy of what is held."""
        found = self.need(options)
        return found.total + (found.held if self.device.type == "cpu" else 0)

    @property
    def free(self) -> int | None:
        """Bytes that can still be had; None where the system does not say."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        said = Path("/proc/meminfo")
        lines = said.read_text().splitlines() if said.exists() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def plan(options: TrainOptions) -> None:
    """Print what the run would take of memory, whether this machine has it, and which settings fit which GPU.

    Loads no weights. Raises ValueError for a model, a device or data that cannot be had, as training would.
    """
    device, data = pick_device(options.device), read(options)
    shape = shape_of(skeleton(options.model_path), data.latent_dim)
    machine = Machine(device, autocast_dtype(device) if options.mixed_precision else torch.float32, shape, data)
    card = Machine(torch.device("cuda"), torch.bfloat16 if options.mixed_precision else torch.float32, shape, data)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_introduction(machine, options))
    console.print(_table(machine, options))
    console.print("Gradients come as copies and activations go, so that the largest moment is less than the sum.")
    console.print(f"\n{_verdict(machine, options)}")
    place = options.output_dir or "checkpoints"
    planned = disk(options, shape, data.steps * options.num_epochs)
    about = "about " if data.steps else "at least "
    console.print(f"Disk: {about}{planned}: {spell(planned.total)}; {spell(free_space(place))} are free in {place}\n")
    console.print("What fits on a GPU that does nothing else, CUDA itself counted; the fullest setting to type:")
    for size in CARDS:
        chosen = fullest(options, card.takes, size * 2**30 - CUDA_ITSELF)
        takes, what = (spell(card.takes(chosen) + CUDA_ITSELF), typed(chosen)) if chosen else ("-", "nothing fits")
        console.print(f"{size:>4} GB {takes:>10}  {what}")
    console.print("\nNothing was loaded or written (--plan).")


def _introduction(machine: Machine, options: TrainOptions) -> str:
    shape, free, learn = machine.shape, machine.free, sum(trained(machine.shape, options))
    arithmetic = [torch.bfloat16] * 2 if options.optimizer == "adamw_bf16_sr" else [torch.float32, machine.precision]
    weights, products = (str(dtype).removeprefix("torch.") for dtype in arithmetic)
    front = f", the backbone is {shape.hidden}: a projection stands in front" * (shape.latent_dim != shape.hidden)
    guess = ", as the backbone, for lack of data" * (machine.data.latent_dim is None)
    memory = "free memory unknown" if free is None else f"{spell(free)} of memory free"
    return (
        f"Model: {options.model_path}, {learn + frozen(shape, options):,} parameters, of which {learn:,} are trained "
        f"(--tuning {options.tuning})\n"
        f"Device: {machine.device}, {memory}; weights {weights}, products {products}\n"
        f"Data: {machine.data.said}\n"
        f"Latents: {shape.latent_dim} wide{guess}{front}\n"
    )


def _table(machine: Machine, options: TrainOptions) -> Table:
    found, at_once = machine.need(options), options.at_once
    rows = {
        "weights that are trained": found.weights,
        "weights that are not": found.frozen,
        **({"token embedding, beside the GPU": beside} if (beside := machine.beside(options)) else {}),
        "gradients": found.gradients,
        f"moments ({options.optimizer})": found.moments,
        "copies of weights (autocast)": found.copies,
    }
    together = f" x {options.gradient_accumulation_steps}" * (options.gradient_accumulation_steps > 1)
    for size in sorted({2, 4, 8, 16, options.batch_size}):
        other = replace(options, batch_size=size)
        columns, packs = machine.data.load(other).packed(other.at_once)
        name = f"activations, --batch_size {size}{together}: {f'{packs} packs of ' * (packs > 1)}{columns:,} columns"
        rows[name] = machine.need(other).activations + machine.need(other).work
    most = max(at_once, machine.data.widest)
    full = need(machine.shape, options, machine.precision, Load(most, machine.data.widest))
    rows[f"activations, a full pack (--pack_tokens {at_once}): {most:,} columns"] = full.activations + full.work
    rows |= {"validation, a full pack": found.validation} if found.validation else {}
    rows |= {"a checkpoint on its way to the disk": found.held} if machine.device.type == "cpu" else {}
    own = CUDA_ITSELF if machine.device.type == "cuda" else held()
    rows["CUDA itself" if machine.device.type == "cuda" else "Python and libraries"] = own
    rows["at the largest moment, as typed"] = machine.takes(options) + own
    return bill({name: spell(size) for name, size in rows.items()})


def _verdict(machine: Machine, options: TrainOptions) -> str:
    """Whether this machine has the memory, and what to type where it has not."""
    takes, free = machine.takes(options), machine.free
    if free is None:
        return f"As typed, the run takes {spell(takes)} more than now; this system does not say whether it has that."
    if takes <= free:
        return f"This machine has the memory for it: {spell(takes)} of {spell(free)}."
    other = fullest(options, machine.takes, free)
    way_out = f"Type {typed(other)}" if other else "No setting takes so little"
    return f"This machine lacks memory: {spell(takes)}, but {spell(free)} are free. {way_out}."
