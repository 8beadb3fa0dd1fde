"""What training takes, worked by hand for Qwen3-0.6B, and held against what autograd, optimizers and processes take."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_family
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel

from latent_prm import files, tuning
from latent_prm.feeding import prepare
from latent_prm.lessons import lessons_of, num_targets
from latent_prm.model import QwenLatentPRM
from latent_prm.optimizers import autocast_dtype, make_optimizer, shrink_weights
from latent_prm.options import TrainOptions
from latent_prm.shards import write_shard
from latent_prm.sizing import (
    Load,
    Need,
    Shape,
    frozen,
    fullest,
    need,
    plan,
    read,
    remedies,
    shape_of,
    skeleton,
    trained,
    typed,
)

GIB = 2**30
LAYER = 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072 + 2 * 128 + 2 * 1024
"""Numbers in a layer of Qwen3-0.6B: queries and output, keys and values, inner layer, norms of heads and of input."""
BACKBONE, EMBEDDING = 28 * LAYER + 1024, 151_936 * 1024
SMALL_STEP = Load(columns=220, widest=220)


@pytest.fixture(scope="module")
def qwen() -> Shape:
    """Qwen3-0.6B's, of no weights."""
    return shape_of(meta("qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, layers=28))


def meta(family: str, *, layers: int, **sides: int) -> Any:
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": layers}
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(family, **heads | sides))


# --- Qwen3-0.6B, by hand ----------------------------------------------------------------------------------------------


def test_a_skeleton_counts_as_the_real_model_does(qwen: Shape) -> None:
    assert (sum(qwen.sizes), qwen.embedding) == (BACKBONE, EMBEDDING) == (440_467_456, 155_582_464)
    assert (qwen.layers, qwen.hidden, qwen.heads, qwen.kv_heads, qwen.head_dim, qwen.inner) == (
        28,
        1024,
        16,
        8,
        128,
        3072,
    )
    assert qwen.gated and qwen.head_norms and len(qwen.matrices) == 28 * 7


@pytest.mark.parametrize(
    ("typed_options", "known", "not_trained"),
    [
        ({"train_embeddings": True}, 8.9, 0),
        ({}, 6.6, 4 * EMBEDDING),
        ({"optimizer": "adamw8bit"}, 4.1, 4 * EMBEDDING),
        ({"optimizer": "adamw_bf16_sr"}, 2.5, 2 * EMBEDDING),
    ],
)
def test_what_is_trained_takes_the_known_figures(
    qwen: Shape, typed_options: dict[str, Any], known: float, not_trained: int
) -> None:
    found = need(qwen, TrainOptions(**typed_options), torch.bfloat16, SMALL_STEP)
    assert round((found.weights + found.gradients + found.moments) / GIB, 1) == known
    assert found.frozen == not_trained  # the token embedding is there all the same: 0.6 GiB in float32


def test_bytes_per_trained_number_are_16_or_10_or_6(qwen: Shape) -> None:
    numbers = BACKBONE + 1024  # and the head
    exact = need(qwen, TrainOptions(), torch.bfloat16, SMALL_STEP)
    assert (exact.weights, exact.gradients, exact.moments) == (4 * numbers, 4 * numbers, 8 * numbers)
    # 28 x 7 matrices have moments of 8 bits, with a scale to 256 numbers and a table of 256 values; 28 x 4 + 1 norms
    # and the head have ordinary ones.
    matrices, norms = 28 * (LAYER - 2304), 28 * 2304 + 1024 + 1024
    eight = 2 * (matrices + 4 * matrices // 256 + 28 * 7 * 1024) + 8 * norms
    small = need(qwen, TrainOptions(optimizer="adamw8bit"), torch.bfloat16, SMALL_STEP)
    assert (small.weights, small.gradients, small.moments) == (4 * numbers, 4 * numbers, eight)
    smallest = need(qwen, TrainOptions(optimizer="adamw_bf16_sr"), torch.bfloat16, SMALL_STEP)
    assert (smallest.weights, smallest.gradients, smallest.moments) == (2 * numbers, 2 * numbers, eight)


def test_autocast_copies_the_matrices_of_float32_weights_only(qwen: Shape) -> None:
    matrices = 28 * (LAYER - 2304)
    assert need(qwen, TrainOptions(), torch.bfloat16, SMALL_STEP).copies == 2 * matrices
    assert need(qwen, TrainOptions(), torch.float32, SMALL_STEP).copies == 0
    assert need(qwen, TrainOptions(optimizer="adamw_bf16_sr"), torch.bfloat16, SMALL_STEP).copies == 0


def test_a_smaller_batch_with_as_much_more_accumulation_is_the_same_step_in_less_memory(qwen: Shape) -> None:
    """The guide's first remedy."""
    large = SMALL_STEP._replace(columns=16 * SMALL_STEP.columns)
    four, two = (TrainOptions(batch_size=b, gradient_accumulation_steps=a) for b, a in ((4, 4), (2, 8)))
    most, less = (need(qwen, options, torch.bfloat16, large) for options in (four, two))
    assert (most.packs, less.packs) == (1, 2)
    assert less.activations < 0.6 * most.activations
    assert need(qwen, replace(two, pack_tokens=4096), torch.bfloat16, large) == most


def test_checkpointing_keeps_one_hidden_state_per_layer_and_computes_one_layer_again(qwen: Shape) -> None:
    plain = need(qwen, TrainOptions(), torch.bfloat16, SMALL_STEP)
    again = need(qwen, TrainOptions(gradient_checkpointing=True), torch.bfloat16, SMALL_STEP)
    outside = 220 * (24 * 1024 + 220 * 3)  # a mask in bytes and in half precision
    assert again.activations == outside + 28 * 220 * 4 * 1024
    layer, copies, on_the_way_back = (plain.activations - outside) // 28, plain.copies // 28, 220 * 2 * 2 * 3072
    assert again.work == layer + copies + on_the_way_back
    assert again.copies == plain.copies  # autocast's own, until the forward pass is over
    lora = need(qwen, TrainOptions(gradient_checkpointing=True, tuning="lora"), torch.bfloat16, SMALL_STEP)
    assert lora.copies == 2 * (
        sum(trained(qwen, TrainOptions(tuning="lora"))) - 1024
    )  # what is frozen has no lasting one


def test_lora_and_head_train_what_the_formula_says(qwen: Shape) -> None:
    sides = 2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072)
    assert sum(trained(qwen, TrainOptions(tuning="lora", lora_rank=8))) == 28 * 8 * sides + 1024
    assert trained(qwen, TrainOptions(tuning="head")) == [1024]
    assert trained(qwen, TrainOptions(tuning="head", correctness_weight=0.5)) == [1024, 1024]
    assert trained(qwen._replace(latent_dim=896), TrainOptions(tuning="head")) == [1024, 896 * 1024]
    assert frozen(qwen, TrainOptions(tuning="head")) == BACKBONE + EMBEDDING


# --- steps and moments ------------------------------------------------------------------------------------------------


def test_a_step_is_cut_into_packs_but_a_tree_is_not() -> None:
    assert Load(columns=1000, widest=100).packed(16384) == (1000, 1)
    assert Load(columns=1000, widest=100).packed(300) == (300, 4)
    assert Load(columns=1000, widest=400).packed(300) == (400, 3)


def test_gradients_meet_activations_from_the_second_pack_on() -> None:
    one = Need(
        weights=100, frozen=10, gradients=100, moments=200, copies=50, activations=30, work=5, validation=0, packs=1
    )
    assert one.held == 310
    assert one.total == 310 + 100 + 5  # gradients at the end of the way back: more than 50 + 30 before it
    assert one._replace(activations=90).total == 310 + 50 + 90
    assert one._replace(packs=2).total == 310 + 100 + 50 + 30
    assert one._replace(packs=2, work=60).total == 310 + 100 + 30 + 60
    assert one._replace(validation=400).total == 310 + 400


# --- what fits --------------------------------------------------------------------------------------------------------


def test_remedies_begin_with_what_changes_nothing() -> None:
    first = [typed(one) for one in remedies(TrainOptions(pack_tokens=2048))]
    assert first[:6] == [
        "--pack_tokens 2048",
        "--pack_tokens 1024",
        "--pack_tokens 512",
        "--gradient_checkpointing --pack_tokens 2048",
        "--gradient_checkpointing --pack_tokens 1024",
        "--gradient_checkpointing --pack_tokens 512",
    ]
    assert first[6] == "--optimizer adamw8bit --pack_tokens 2048"
    assert len(first) == len(set(first)) == 5 * 2 * 3


def test_the_fullest_setting_that_fits_is_chosen(qwen: Shape) -> None:
    def takes(options: TrainOptions) -> int:
        return need(qwen, options, torch.bfloat16, SMALL_STEP).total

    def chosen(room: float) -> str:
        found = fullest(TrainOptions(train_embeddings=True), takes, int(room * GIB))
        return typed(found) if found else "nothing"

    assert chosen(12).startswith("the defaults of --tuning")
    assert chosen(6).startswith("--optimizer adamw8bit")
    assert chosen(3.6).startswith("--optimizer adamw_bf16_sr")
    assert chosen(3.0).startswith("--tuning lora")
    assert chosen(2.0) == "nothing"  # the float32 weights alone are 2.2


# --- held against what is real ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize(
    "typed_options",
    [
        {},
        {"train_embeddings": True},
        {"correctness_weight": 0.5},
        {"tuning": "head"},
        {"tuning": "lora", "lora_rank": 2},
    ],
    ids=str,
)
def test_as_many_parameters_are_trained_as_are_counted(
    tiny_lm: Path, typed_options: dict[str, Any], width: int
) -> None:
    if typed_options.get("tuning") == "lora":
        pytest.importorskip("peft", reason="LoRA is done by PEFT")
    options = TrainOptions(model_path=str(tiny_lm), **typed_options)
    model = QwenLatentPRM(options.model_path, width, second_head=options.correctness_weight > 0)
    tuning.adapt(model, options)
    shape = shape_of(skeleton(options.model_path), width)
    assert sorted(trained(shape, options)) == sorted(p.numel() for p in model.parameters() if p.requires_grad)
    assert frozen(shape, options) == sum(p.numel() for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw_bf16_sr"])
def test_moments_are_as_large_as_the_real_ones(tmp_path: Path, optimizer: Any) -> None:
    if optimizer != "adamw":
        pytest.importorskip("torchao", reason="8-bit moments are torchao's")
    options = TrainOptions(model_path=str(save_family(tmp_path, "qwen3", hidden_size=64)), optimizer=optimizer)
    model = QwenLatentPRM(options.model_path)
    shrink_weights(model, options)
    real = make_optimizer(model, options)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    real.step()
    moments = [state[name] for state in real.state.values() for name in ("exp_avg", "exp_avg_sq")]
    found = need(shape_of(model.backbone), options, torch.float32, SMALL_STEP)
    assert found.moments == sum(map(stored, moments))
    assert found.weights + found.frozen == sum(map(stored, model.parameters()))


def stored(tensor: Any) -> int:
    """Bytes of a tensor, or of the tensors that a quantised one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "mistral"])
@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("tuned", ["full", "lora", "head"])
def test_autograd_keeps_to_the_byte_what_a_layer_more_is_said_to_keep(family: str, arithmetic: str, tuned: Any) -> None:
    if tuned == "lora":
        pytest.importorskip("peft", reason="LoRA is done by PEFT")
    small = arithmetic == "bfloat16"
    rank = 4 if tuned == "lora" else TrainOptions.lora_rank
    options = TrainOptions(tuning=tuned, lora_rank=rank, optimizer="adamw_bf16_sr" if small else "adamw")
    precision = torch.float32 if arithmetic == "float32" else torch.bfloat16
    kept, said = [], []
    for layers in (2, 3):
        backbone = tiny(family, layers)
        shape = shape_of(backbone, 12)  # a projection in front, so that gradients reach the first layer
        model = QwenLatentPRM(backbone=backbone, latent_dim=12)
        tuning.adapt(model, options)
        shrink_weights(model, options)
        kept.append(saved_bytes(model.backbone.train(), precision))
        found = need(shape, options, precision, Load(columns=3 * 40, widest=40))
        said.append(found.activations + found.copies)
    assert kept[1] - kept[0] == said[1] - said[0]


def tiny(family: str, layers: int) -> Any:
    shape = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80}
    shape |= {"vocab_size": 50, "num_hidden_layers": layers, "bos_token_id": None, "eos_token_id": None}
    head_dim = {} if family == "qwen2" else {"head_dim": 16}  # it has none of its own; elsewhere 6 x 16 is not 48
    return AutoModel.from_config(AutoConfig.for_model(family, **shape | head_dim), dtype=torch.float32)


def saved_bytes(
    backbone: nn.Module, precision: torch.dtype, rows: int = 3, columns: int = 40, wants_gradient: bool = True
) -> int:
    """Bytes, parameters and buffers aside, that autograd keeps of a forward pass on random input."""
    own = {x.untyped_storage().data_ptr() for x in [*backbone.parameters(), *backbone.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    dtype = next(p.dtype for p in backbone.parameters())
    embedded = torch.randn(rows, columns, 48, dtype=dtype, requires_grad=wants_gradient)
    sees = torch.ones(columns, columns, dtype=torch.bool).tril().repeat(rows, 1, 1, 1)
    mask = torch.zeros(sees.shape, dtype=precision).masked_fill_(~sees, -torch.inf)
    positions = torch.arange(columns).repeat(rows, 1)
    half = precision is torch.bfloat16
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16 if half else None, enabled=half),
    ):
        backbone(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
        return sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own)


@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
def test_a_pass_that_keeps_nothing_holds_about_what_is_said(arithmetic: str) -> None:
    backbone = tiny("qwen3", layers=2).requires_grad_(False)
    shape, small = shape_of(backbone), arithmetic == "bfloat16"
    options = TrainOptions(tuning="head", optimizer="adamw_bf16_sr" if small else "adamw")
    precision = torch.float32 if arithmetic == "float32" else torch.bfloat16
    backbone = backbone.bfloat16() if small else backbone
    with Living([*backbone.parameters(), *backbone.buffers()]) as living:
        saved_bytes(backbone, precision, rows=60, wants_gradient=False)
    found = need(shape, options, precision, Load(columns=60 * 40, widest=40))
    assert found.work == pytest.approx(living.most, rel=0.1)
    validation = need(
        shape, replace(options, pack_tokens=60 * 40), precision, SMALL_STEP._replace(widest=40)
    ).validation
    assert validation == found.work  # 2,400 columns as well


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once, of those that begin inside."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in there}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.end, storage._cdata, storage.nbytes())
        return out

    def end(self, storage: int, size: int) -> None:
        self.seen.discard(storage)
        self.now -= size


# --- the data ---------------------------------------------------------------------------------------------------------


def test_without_data_a_question_is_taken_to_be_an_ordinary_one(tiny_lm: Path, tmp_path: Path) -> None:
    options = TrainOptions(model_path=str(tiny_lm), data_dir=str(tmp_path / "none"))
    found = read(options)
    assert (found.per_path, found.widest, found.latent_dim) == ((60 + 16 * 10) / 16, 220, None)
    assert found.load(replace(options, batch_size=2)) == Load(columns=110, widest=220)
    assert read(replace(options, context="none")).widest == 160


def test_columns_are_those_of_the_data(tiny_lm: Path, tmp_path: Path, make_tree: Callable[..., Any]) -> None:
    # 15 words of a question; 3 paths and 6 below them, of 4 latents each; the noise-free one is not learned from.
    trees = [make_tree(seed, width=12, latent_steps=(4, 4)) for seed in range(2)]
    write_shard(trees, tmp_path, "a", {})
    options = TrainOptions(model_path=str(tiny_lm), data_dir=str(tmp_path), reads="fed")
    found = read(options)
    words = len(QwenLatentPRM(tiny_lm).read_questions([trees[0].question])[0])
    assert (found.widest, found.latent_dim) == (words + 9 * 4, 12)
    assert found.per_path == found.widest / 9
    assert found.load(options).columns == -(-16 * found.widest // 9)
    assert read(replace(options, reads="fed,tip,answer")).widest == found.widest + 6 * 2  # leaves: a tip, a number


@pytest.mark.parametrize("reads", ["fed", "fed,tip,answer"])
def test_the_chains_that_order_adds_are_columns_too(
    reads: str, tiny_lm: Path, tmp_path: Path, make_tree: Callable[..., Any]
) -> None:
    trees = [make_tree(seed, latent_steps=(3, 3), question=f"What is {seed} ?") for seed in range(6)]
    write_shard(trees, tmp_path, "a", {})
    options = TrainOptions(model_path=str(tiny_lm), data_dir=str(tmp_path), reads=reads, batch_size=64, val_size=0)
    plain, found = read(options), read(replace(options, loss="bce+order"))
    model = QwenLatentPRM(tiny_lm, 16, reads=options.read_parts())
    lessons = lessons_of(trees, options)
    beside = model.as_read([lesson.tree for lesson in lessons])
    items = [lesson._replace(context=own.context, tails=own.tails) for lesson, own in zip(lessons, beside, strict=True)]
    work = prepare(
        items,
        0,
        replace(options, loss="bce+order"),
        hidden_size=16,
        dropout=0.0,
        shared=True,
        share=lambda sizes: list(range(len(sizes))),
    )
    assert len(work.objective.margins) > 6  # by hand: whose target is above one half
    assert found.load(options).columns == pytest.approx(work.num_tokens * 256 / num_targets(lessons), abs=1)
    assert found.widest > plain.widest and found.per_path > 1.2 * plain.per_path


def test_a_damaged_shard_is_an_error_unless_it_is_to_be_skipped(
    tiny_lm: Path, tmp_path: Path, make_tree: Callable[..., Any]
) -> None:
    for name, width in (("a", 16), ("b", 12)):
        write_shard([make_tree(width, width=width)], tmp_path, name, {})
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:-1])
    options = TrainOptions(model_path=str(tiny_lm), data_dir=str(tmp_path))
    with pytest.raises(files.BadFile, match=r"a\.pt"):
        read(options)
    assert read(replace(options, skip_bad_files=True)).latent_dim == 12


def test_another_programs_files_are_data_too(tiny_lm: Path, tmp_path: Path) -> None:
    path = {"path_id": 0, "agent_name": "planner", "parent_path_id": None, "child_path_ids": [], "score": 0.5}
    path |= {"prm_score": 1.0, "metadata": {}, "latent_history": torch.ones(7, 12), "num_latent_steps": 7}
    question = {"question_id": "q_0", "question": "3 + 4 ?", "gold_answer": "7", "paths": [path]}
    torch.save({"batch_name": "a", "num_questions": 1, "questions": [question]}, tmp_path / "a.pt")
    found = read(TrainOptions(model_path=str(tiny_lm), data_dir=str(tmp_path), context="none"))
    assert (found.per_path, found.widest, found.latent_dim) == (7, 7, 12)


# --- what is printed --------------------------------------------------------------------------------------------------


def test_the_plan_is_printed_without_weights_and_leaves_nothing_behind(
    tiny_lm: Path, tmp_path: Path, make_tree: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny_lm, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_shard([make_tree(0, width=12)], data, "a", {})
    before = sorted(tmp_path.rglob("*"))
    plan(TrainOptions(model_path=str(folder), data_dir=str(data), device="cpu", batch_size=3))
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    shape = shape_of(skeleton(str(folder)), 12)
    learn = sum(shape.sizes) + 16 + 12 * 16
    assert f"{learn + shape.embedding:,} parameters, of which {learn:,} are trained (--tuning full)" in said
    assert "Latents: 12 wide, the backbone is 16: a projection stands in front" in said
    for row in ("weights that are trained", "moments (adamw)", "--batch_size 3 x 4:", "--batch_size 16 x 4:"):
        assert row in said
    assert "a checkpoint on its way to the disk" in said and "CUDA itself  " not in said
    assert [line.split()[:2] for line in said.splitlines() if " GB " in line] == [[f"{n}", "GB"] for n in (4, 6, 8, 12)]


def test_the_plan_of_qwen_names_a_setting_for_each_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta("qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, layers=28).config.save_pretrained(
        tmp_path
    )
    plan(TrainOptions(model_path=str(tmp_path), data_dir=str(tmp_path), device="cpu"))
    said = capsys.readouterr().out
    assert "596,050,944 parameters, of which 440,468,480 are trained (--tuning full)" in said
    # 6, 10 and 16 bytes for each of these, and half a GiB; the token embedding is beside the GPU
    settings = {line.split()[0]: line.split()[2:5] for line in said.splitlines() if " GB " in line}
    assert settings == {
        "4": ["3.0", "GiB", "--optimizer"],
        "6": ["4.6", "GiB", "--optimizer"],
        "8": ["7.1", "GiB", "the"],
        "12": ["7.1", "GiB", "the"],
    }
    assert said.count("  --optimizer adamw_bf16_sr\n") == said.count("  --optimizer adamw8bit\n") == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system does not say how much memory is free")
def test_the_plan_says_whether_the_machine_has_the_memory(tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(model_path=str(tiny_lm), data_dir="none", device="cpu")
    plan(options)
    assert "This machine has the memory for it: " in capsys.readouterr().out
    plan(replace(options, batch_size=10**9, pack_tokens=10**10, val_size=0))
    assert "are free. Type --pack_tokens 8192." in capsys.readouterr().out
    plan(replace(options, lora_rank=10**10, tuning="lora", val_size=0))
    assert "are free. Type the defaults of --tuning, " in capsys.readouterr().out


# --- a real process ---------------------------------------------------------------------------------------------------

STEP = """
import gc, json, sys
import torch
from transformers import AutoModel, Qwen3Config
from latent_prm.model import QwenLatentPRM
from latent_prm.optimizers import autocast_dtype
from latent_prm.packing import pack
from latent_prm.tree import Path, ReasoningTree

torch.set_num_threads(1)
rows, columns, packs, again, layers, hidden = map(int, sys.argv[1:])
precision = autocast_dtype(torch.device("cpu"))
half = precision is torch.bfloat16

def memory(name):
    status = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))

def make(layers, hidden):
    shape = dict(vocab_size=1000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
                 num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=128)
    model = QwenLatentPRM(backbone=AutoModel.from_config(Qwen3Config(**shape), dtype=torch.float32))
    if again:
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    return model.train(), trained, torch.optim.AdamW(trained, lr=1e-5, fused=True)

def step(model, optimizer, count, width):
    question = width // 4
    latents = [torch.randn(width - question, model.latent_dim) for _ in range(count)]
    trees = [ReasoningTree(question_id="", question="", gold="", task="",
                           paths=[Path(latents=x[at : at + 8], tip=None) for at in range(0, len(x), 8)])
             for x in latents]
    for batch in pack(trees, [[1] * question] * count, pack_tokens=width * count // packs):
        with torch.autocast("cpu", precision if half else None, enabled=half):
            value = model(batch).value
        value.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()

small = make(1, 128)
step(small[0], small[2], packs, 32)  # what is imported on first use is there now
del small
gc.collect()
empty = memory("VmRSS")
model, trained, optimizer = make(layers, hidden)
for weight in trained:
    weight.grad = torch.zeros_like(weight)
optimizer.step()  # moments
optimizer.zero_grad()
held = memory("VmRSS")
step(model, optimizer, rows * packs, columns)
print(json.dumps([held - empty, memory("VmHWM") - empty]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process takes")
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(("rows", "packs"), [(4, 1), (12, 1), (6, 2)])
def test_a_real_step_takes_what_is_said_within_15_percent(rows: int, packs: int, again: bool) -> None:
    columns, layers, hidden = 128, 4, 1024
    arguments = map(str, (rows, columns, packs, int(again), layers, hidden))
    # Freed memory goes back to the system at once, so that the most it ever held is what was in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", STEP, *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    held, most = json.loads(done.stdout.splitlines()[-1])
    shape = shape_of(meta("qwen3", vocab_size=1000, hidden_size=hidden, intermediate_size=3 * hidden, layers=layers))
    options = TrainOptions(gradient_checkpointing=again, pack_tokens=rows * columns, val_size=0)
    load = Load(columns=rows * columns * packs, widest=columns)
    found = need(shape, options, autocast_dtype(torch.device("cpu")), load)
    assert found.packs == packs
    assert found.held == pytest.approx(held, rel=0.05)
    assert found.total == pytest.approx(most, rel=0.15)
    assert found.total - found.held == pytest.approx(most - held, rel=0.15)  # stricter: what comes and goes
