"""optimizers.py: what a step moves, what moments weigh, that no small update is lost, and that all of it goes on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latent_prm import files, optimizers
from latent_prm.model import QwenLatentPRM
from latent_prm.options import OptimizerName, TrainOptions
from latent_prm.packing import pack
from latent_prm.ranks import whole
from latent_prm.tree import ReasoningTree

ROOT = Path(__file__).parent.parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EVERY = get_args(OptimizerName)
Prm = Callable[..., tuple[QwenLatentPRM, Optimizer, LambdaLR]]


@pytest.fixture
def prm(tiny_lm: Path) -> Prm:
    """A model of width 16 with what trains it. It reads latents of 256: a projection of 4,096 numbers, no fewer, gets
    moments of 8 bits."""

    def build(optimizer: str = "adamw", width: int = 256, **changes: Any) -> tuple[QwenLatentPRM, Optimizer, LambdaLR]:
        options = TrainOptions(**{"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.1, **changes})
        torch.manual_seed(0)
        model = QwenLatentPRM(tiny_lm, width)
        optimizers.shrink_weights(model, options)
        made = optimizers.make_optimizer(model, options)
        return model, made, optimizers.make_schedule(made, options, total_steps=20)

    return build


@pytest.fixture
def process_settings() -> Iterator[None]:
    """Put back what holds for the whole process."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.use_deterministic_algorithms(before[1])
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if variable is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = variable


class Weights(nn.Module):
    """A matrix and a vector of equal numbers."""

    def __init__(self, value: float, rows: int = 16) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((rows, 256), value))
        self.vector = nn.Parameter(torch.full((16,), value))


def still(optimizer: str, learning_rate: float) -> TrainOptions:
    return TrainOptions(optimizer=optimizer, learning_rate=learning_rate, weight_decay=0.0)  # type: ignore[reportArgumentType]


def push(model: nn.Module, optimizer: Optimizer, gradient: float = 1.0, seed: int = 0) -> None:
    """One step along the same gradient everywhere."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient) if parameter.requires_grad else None
    torch.manual_seed(seed)
    optimizer.step()


def learn(model: QwenLatentPRM, optimizer: Optimizer, schedule: LambdaLR, tree: ReasoningTree, steps: range) -> None:
    """Real steps, each with the seed of its number."""
    (batch,) = pack([tree], [[5, 6, 7]], max_seq_length=64, pack_tokens=4096, shared=model.shares)
    half = model.head.weight.dtype is torch.bfloat16
    for step in steps:
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(batch).value
        (logits - 1).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def pieces(value: Any) -> list[Tensor]:
    """The plain tensors that a tensor is made of: itself, or codes, scales and what codes mean."""
    return [getattr(value, name) for name in value.__tensor_flatten__()[0]] if type(value) is not Tensor else [value]


def weighs(value: Tensor) -> int:
    """Bytes."""
    return sum(piece.numel() * piece.itemsize for piece in pieces(value))


def bits(tensors: Iterable[Tensor]) -> bytes:
    return b"".join(
        piece.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for tensor in tensors
        for piece in pieces(tensor.detach())
    )


def moments(state_dict: dict[str, Any]) -> list[Tensor]:
    return [value for state in state_dict["state"].values() for value in state.values()]


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_the_first_step_is_the_learning_rate_against_the_gradients_sign_and_only_matrices_decay(
    prm: Prm, name: str
) -> None:
    model, optimizer, _ = prm(name, warmup_ratio=0.0)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    signs = {key: torch.where(torch.rand_like(value) < 0.5, -1.0, 1.0) for key, value in before.items()}
    for key, parameter in model.named_parameters():
        parameter.grad = 3 * signs[key] if parameter.requires_grad else None
    optimizer.step()
    for key, parameter in model.named_parameters():
        kept = 1 - 0.01 * 0.1 if parameter.ndim > 1 else 1.0  # 1 - learning rate × weight decay
        expected = before[key] * kept - 0.01 * signs[key] if parameter.requires_grad else before[key]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6, msg=key)
    kinds = {(parameter.ndim > 1, parameter.requires_grad) for parameter in model.parameters()}
    assert kinds == {(True, True), (False, True), (True, False)}  # matrices, norms and the frozen embedding


def test_adamw_is_torchs_own_in_one_kernel(prm: Prm) -> None:
    _, optimizer, _ = prm("adamw")
    assert type(optimizer) is AdamW and optimizer.defaults["fused"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("name", EVERY)
def test_a_head_that_learns_alone_has_no_norms_beside_it(prm: Prm, name: str) -> None:
    model, _, _ = prm(name)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    before = model.head.weight.detach().clone()
    push(model, optimizers.make_optimizer(model, still(name, 0.25)))
    torch.testing.assert_close(model.head.weight.detach(), before - 0.25, rtol=0.01, atol=0)


# --- moments of 8 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw8bit", "adamw_bf16_sr"])
def test_eight_bit_moments_take_a_quarter_of_the_bytes(prm: Prm, name: str) -> None:
    taken = {}
    for kind in ("adamw", name):
        model, optimizer, _ = prm(kind, width=4096)
        push(model, optimizer)
        assert model.projection is not None and model.projection.weight.numel() == 65536
        state = optimizer.state[model.projection.weight]
        taken[kind] = [weighs(state[moment]) for moment in ("exp_avg", "exp_avg_sq")]
    assert taken["adamw"] == [4 * 65536] * 2
    assert taken[name] == [65536 + 4 * 65536 // 256 + 4 * 256] * 2  # codes, a scale for each 256, what codes mean


def test_eight_bits_lead_nearly_where_float32_does(prm: Prm, make_tree: Callable[..., ReasoningTree]) -> None:
    tree, ways = make_tree(1, width=256), []
    for name in ("adamw", "adamw8bit"):
        model, optimizer, schedule = prm(name, learning_rate=1e-3)
        assert model.projection is not None
        before = model.projection.weight.detach().clone()
        learn(model, optimizer, schedule, tree, range(10))
        ways.append(model.projection.weight.detach() - before)
    assert 0 < (ways[0] - ways[1]).norm() < 0.2 * ways[0].norm()


# --- weights of bfloat16 ----------------------------------------------------------------------------------------------


def test_shrinking_halves_parameters_and_leaves_buffers_and_other_optimizers_weights(tiny_lm: Path) -> None:
    model = QwenLatentPRM(tiny_lm, 256)
    parameters, buffers = list(model.parameters()), {name: value.dtype for name, value in model.named_buffers()}
    for name in ("adamw", "adamw8bit"):
        optimizers.shrink_weights(model, TrainOptions(optimizer=name))
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
    optimizers.shrink_weights(model, TrainOptions(optimizer="adamw_bf16_sr"))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
    assert {name: value.dtype for name, value in model.named_buffers()} == buffers
    assert torch.float32 in buffers.values()  # rotary frequencies


def test_an_update_below_half_a_bit_moves_the_share_of_weights_that_keeps_the_mean() -> None:
    # Below 1 bfloat16 has steps of 1/256. A step of 1/2048 is an eighth of one: rounded to the nearest it is nothing.
    assert torch.tensor(1 - 1 / 2048).bfloat16() == 1

    def stepped(seed: int) -> Tensor:
        model, options = Weights(1.0, rows=256), still("adamw_bf16_sr", 1 / 2048)
        optimizers.shrink_weights(model, options)
        push(model, optimizers.make_optimizer(model, options), seed=seed)
        return model.matrix.detach().float()

    weights = stepped(seed=0)
    assert set(weights.unique().tolist()) == {1.0, 1 - 1 / 256}
    moved = int((weights < 1).sum())
    assert abs(moved - 65536 / 8) < 4 * math.sqrt(65536 * 1 / 8 * 7 / 8)  # four standard deviations
    assert torch.equal(weights, stepped(seed=0))
    assert not torch.equal(weights, stepped(seed=1))


def test_small_bfloat16_weights_have_moments_that_do_not_stand_still() -> None:
    # After t steps of gradient 1 the second moment is 1 - 0.999^t; in bfloat16 it would never pass a quarter.
    model, options = Weights(1.0), still("adamw_bf16_sr", 0.0)
    optimizers.shrink_weights(model, options)
    optimizer = optimizers.make_optimizer(model, options)
    for _ in range(500):
        push(model, optimizer)
    moment = optimizer.state[model.vector]["exp_avg_sq"]
    assert moment.tolist() == pytest.approx([1 - 0.999**500] * 16, rel=1e-4)


def test_bfloat16_weights_must_have_been_shrunk_first(tiny_lm: Path) -> None:
    with pytest.raises(AssertionError, match="shrink_weights"):
        optimizers.make_optimizer(QwenLatentPRM(tiny_lm), TrainOptions(optimizer="adamw_bf16_sr"))


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_three_steps_saved_and_three_more_are_six_to_the_bit(
    prm: Prm, make_tree: Callable[..., ReasoningTree], tmp_path: Path, name: str
) -> None:
    tree, straight, halves = make_tree(1, width=256), prm(name), prm(name)
    learn(*straight, tree, range(6))
    learn(*halves, tree, range(3))
    for i, part in enumerate(halves):
        files.save_tensors(part.state_dict(), tmp_path / f"{i}.pt")
    resumed = prm(name)
    for i, part in enumerate(resumed):
        part.load_state_dict(files.load_tensors(tmp_path / f"{i}.pt"))
    learn(*resumed, tree, range(3, 6))

    def now(run: tuple[QwenLatentPRM, Optimizer, LambdaLR]) -> bytes:
        return bits([*run[0].parameters(), *moments(run[1].state_dict())])

    assert now(resumed) == now(straight) != now(halves)
    assert float(resumed[2].get_last_lr()[0]) == float(straight[2].get_last_lr()[0])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_kept_of_a_moment_stays_while_training_goes_on(prm: Prm, name: str) -> None:
    model, optimizer, _ = prm(name)
    push(model, optimizer)
    kept = whole(optimizer.state_dict())
    before = bits(moments(kept))
    push(model, optimizer, gradient=-1.0)
    assert bits(moments(kept)) == before != bits(moments(optimizer.state_dict()))


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_without_torchao_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r'adamw8bit .* torchao.*: pip install "latent-prm\[lowmem\]"'):
        optimizers.make_optimizer(Weights(1.0), TrainOptions(optimizer="adamw8bit"))


def test_a_laptop_without_a_compiler_takes_a_step_and_nothing_is_said(tmp_path: Path) -> None:
    code = """
import torch
from latent_prm import optimizers
from latent_prm.options import TrainOptions
options, model = TrainOptions(optimizer="adamw8bit", learning_rate=0.5, weight_decay=0.0), torch.nn.Linear(256, 16)
optimizer = optimizers.make_optimizer(model, options)
model(torch.ones(256)).sum().backward()
before = model.weight.detach().clone()
optimizer.step()
assert torch.allclose(model.weight, before - 0.5)
"""
    bare = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_console_speaks_again_after_torchao_came_in(caplog: pytest.LogCaptureFixture) -> None:
    optimizers.make_optimizer(Weights(1.0), TrainOptions(optimizer="adamw8bit"))
    optimizers.logging.getLogger("latent_prm").warning("heard")
    assert caplog.messages == ["heard"]


def test_what_a_device_multiplies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(device: torch.device, **changes: Any) -> torch.dtype:
        return optimizers.precision(device, TrainOptions(**changes))

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert found(CPU) is torch.bfloat16
    assert found(CPU, mixed_precision=False) is torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert found(CPU) is torch.float32
    assert found(CPU, optimizer="adamw8bit") is torch.float32
    assert found(CPU, optimizer="adamw_bf16_sr") is torch.bfloat16
    for able, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert found(CUDA) is dtype
        assert found(CUDA, optimizer="adamw_bf16_sr") is torch.bfloat16


@pytest.mark.usefixtures("process_settings")
def test_a_gpu_multiplies_faster_or_the_same_way_each_time_and_a_cpu_as_ever() -> None:
    def now() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()

    ever = now()
    for deterministic in (False, True):
        with optimizers.arithmetic(CPU, TrainOptions(deterministic=deterministic)):
            assert now() == ever == ("highest", False)
    with optimizers.arithmetic(CUDA, TrainOptions()):
        assert now() == ("high", False)
    with pytest.raises(ValueError, match="no data"), optimizers.arithmetic(CUDA, TrainOptions(deterministic=True)):
        assert now() == ("highest", True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise ValueError("no data")
    assert now() == ever  # nothing is left of a run before in the same process


# --- learning rate ----------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_then_falls_along_a_cosine() -> None:
    factors = [optimizers.learning_rate_factor(step, warmup=2, total=6) for step in range(7)]
    expected = [0.5, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]
    assert factors == pytest.approx(expected)
    assert optimizers.learning_rate_factor(0, warmup=0, total=1) == 1


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_walks_at_the_scheduled_rate(name: str) -> None:
    options = TrainOptions(optimizer=name, learning_rate=0.5, weight_decay=0.0, warmup_ratio=0.25)  # type: ignore[reportArgumentType]
    model = Weights(8.0)
    optimizers.shrink_weights(model, options)
    optimizer = optimizers.make_optimizer(model, options)
    schedule, places = optimizers.make_schedule(optimizer, options, total_steps=8), [8.0]
    for _ in range(8):
        push(model, optimizer)
        schedule.step()
        places.append(model.matrix.float().mean().item())
    walked = [before - after for before, after in pairwise(places)]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert walked == pytest.approx([0.25, *(0.5 * factor for factor in (1, *cosine))][:8], abs=0.01)
