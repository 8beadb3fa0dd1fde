"""How weights move: hides which arithmetic a device trains in, which optimizer keeps weights and moments in how many
bits, and the course of the learning rate.

The order: ``arithmetic`` around it all, ``shrink_weights`` on a model fresh from its constructor, then
``make_optimizer`` and ``make_schedule``, and only then what a checkpoint holds of them.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latent_prm.options import TrainOptions

# --- arithmetic -------------------------------------------------------------------------------------------------------


@contextmanager
def arithmetic(device: torch.device, options: TrainOptions) -> Iterator[None]:
    """Inside, a GPU multiplies float32 as TF32 or, with ``--deterministic``, exactly and the same way each time.

    It holds for the whole process, and cuBLAS reads its setting when it starts: enter before anything is computed.
    A CPU computes the same way each time as it is.
    """
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if options.deterministic else "high")
        torch.use_deterministic_algorithms(options.deterministic)
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:  # what is scored afterwards in this process is scored as everywhere else
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])


def precision(device: torch.device, options: TrainOptions) -> torch.dtype:
    """What the forward pass multiplies in: float32 when neither autocast nor a smaller weight asks for less."""
    if options.optimizer == "adamw_bf16_sr":
        return torch.bfloat16  # as its weights are; float16 would need a scaler of gradients that are bfloat16
    return autocast_dtype(device) if options.mixed_precision else torch.float32


def autocast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes with it, else float16 on CUDA and float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


# --- optimizers -------------------------------------------------------------------------------------------------------


def shrink_weights(model: nn.Module, options: TrainOptions) -> None:
    """Turn the parameters into what the optimizer keeps: bfloat16 for ``adamw_bf16_sr``, as they are for the others.

    Buffers stay: rotary frequencies of 8 bits of precision would blur positions. Parameters remain the same objects.
    """
    if options.optimizer == "adamw_bf16_sr":
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """AdamW over what is trained; only matrices decay.

    ``adamw`` keeps moments in the weights' precision. ``adamw8bit`` keeps those of a weight of 4,096 numbers or more
    (a multiple of 256) in 8 bits, each 256 of them with a scale; smaller ones in float32.
    Source: https://arxiv.org/abs/2110.02861. ``adamw_bf16_sr`` also rounds bfloat16 weights by lot, up or down with
    the chance that keeps the mean, so that updates far below their precision are not lost; the lots are drawn from
    torch's generator, and it is ``shrink_weights`` that made those weights.

    Raises ValueError when torchao is missing.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}  # not to be pulled to zero
    groups = [{"params": [p for p in trained if p.ndim > 1]}, norms]
    settings: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "adamw":
        return AdamW(groups, **settings, fused=True)
    by_lot = options.optimizer == "adamw_bf16_sr"
    assert not by_lot or all(p.dtype is torch.bfloat16 for p in trained), "call shrink_weights first"
    return _adamw8bit(options.optimizer)(groups, **settings, bf16_stochastic_round=by_lot)


def _adamw8bit(name: str) -> Any:
    """torchao's AdamW8bit as a class that also suits machines without a compiler, and small weights of bfloat16."""
    try:
        with _hushed():
            from torchao.optim import AdamW8bit
            from torchao.optim.subclass_8bit import OptimState8bit
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torchao":
            raise  # it is there, but lacks something itself
        missing = f'--optimizer {name} is done by torchao, which is missing here: pip install "latent-prm[lowmem]"'
        raise ValueError(missing) from None

    class EightBitAdamW(AdamW8bit):
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            # torchao compiles each weight's update, so that a GPU starts few kernels for it. On a CPU that would ask
            # for a C++ compiler, which a laptop may lack, and for 7 to 20 seconds before the first step.
            weights = (p for group in self.param_groups for p in group["params"])
            if all(p.device.type == "cpu" for p in weights):
                with torch.compiler.set_stance("force_eager"):
                    return super().step(closure)
            with (
                warnings.catch_warnings()
            ):  # what torch remarks about caching torchao's tensors is no concern of a user
                warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")
                return super().step(closure)

        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            # The moments that stay as they are (head, norms) would be bfloat16 like p: then v + 0.001 (g² − v) rounds
            # back to v as soon as v is a quarter of g², and these weights move twice as fast as they should.
            return super()._new_buffer(p.float(), signed)

        def state_dict(self) -> dict[str, Any]:
            # torchao's tensors cannot be cloned, and from CPU to CPU they go as they are, whatever ``copy`` says: who
            # writes a moment of the run to the disk while training goes on is given copies here.
            held = super().state_dict()
            held["state"] = {
                number: {
                    name: _copied(value) if isinstance(value, OptimState8bit) and value.device.type == "cpu" else value
                    for name, value in state.items()
                }
                for number, state in held["state"].items()
            }
            return held

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            super().load_state_dict(dict(state_dict))
            # torch has given the moments the weights' dtype: those of float32 are put back as they were saved.
            numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
            weights = [p for group in self.param_groups for p in group["params"]]
            for number, weight in zip(numbers, weights, strict=True):
                for moment, value in state_dict["state"].get(number, {}).items():
                    if moment != "step":
                        self.state[weight][moment] = value.to(weight.device)

    return EightBitAdamW


def _copied(value: Any) -> Any:
    """A tensor that is made of others, made of copies of them."""
    names, said = value.__tensor_flatten__()
    return type(value).__tensor_unflatten__({name: getattr(value, name).clone() for name in names}, said)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what torchao says on import of kernels that are not for this machine, and of its own dealings with torch.

    Errors, raised or logged, come through.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- learning rate ----------------------------------------------------------------------------------------------------


def make_schedule(optimizer: Optimizer, options: TrainOptions, total_steps: int) -> LambdaLR:
    """The course of the learning rate over a run of ``total_steps`` optimizer steps."""
    warmup = int(options.warmup_ratio * total_steps)
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup, total_steps))


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """The share of the peak learning rate in a step (0: the first): up in ``warmup`` steps, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
