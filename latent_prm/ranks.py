"""Several processes that train one model, or one alone: hides who they are, and how what is spread over them meets.

Launched by ``torchrun`` or ``accelerate launch``. Every process reads the same data and draws the same steps; of each
it computes a part. So what a step is, and what it is divided by, needs no talk: only gradients and sums are exchanged.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from latent_prm.options import Parallel

T = TypeVar("T")


def local_device(device: torch.device) -> torch.device:
    """This process's own device: with CUDA, the one of its number on this machine."""
    local = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or device.index is not None or local is None:
        return device
    if int(local) >= (count := torch.cuda.device_count()):
        raise ValueError(f"Process {local} of this machine has no GPU of its own: there are {count}. Launch {count}.")
    torch.cuda.set_device(int(local))
    return torch.device("cuda", int(local))


class Ranks:
    """Who takes part. With one process every method is the plain thing it stands for."""

    def __init__(self, device: torch.device) -> None:
        self.device = local_device(device)
        # The first process reads all data through once before it says what the run is made of.
        self.state = PartialState(cpu=device.type == "cpu", timeout=timedelta(hours=4))
        self.rank: int = self.state.process_index
        self.world: int = self.state.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    # --- what they tell each other ---

    def same(self, value: T) -> T:
        """What the first process says, on all of them."""
        if self.world == 1:
            return value
        said: list[Any] = [value]
        broadcast_object_list(said)
        return said[0]

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return number if self.world == 1 else max(gather_object([number]))

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over the processes, element by element."""
        summed: Any = numbers if self.world == 1 else reduce(numbers.to(self.device), "sum")
        return summed

    def gather(self, items: Sequence[T]) -> list[T]:
        """All processes' items, in the order of the processes."""
        return list(items) if self.world == 1 else gather_object(list(items))

    def abreast(self, items: Iterable[T], idle: T) -> Iterator[tuple[T, bool]]:
        """This process's items and True, then ``idle`` and False for as long as another process has more.

        A spread model computes only when all processes do.
        """
        own = iter(items)
        while True:
            item = next(own, None)
            if not self.most(item is not None):
                return
            yield (idle, False) if item is None else (item, True)

    # --- work ---

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which of the items of these sizes this process takes, in their order; the loads come out about equal.

        The largest first, each to whoever has the least so far.
        """
        loads = [0] * self.world
        own: list[int] = []
        for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            taker = loads.index(min(loads))
            loads[taker] += sizes[item]
            own += [item] * (taker == self.rank)
        return sorted(own)

    # --- weights ---

    def spread(self, model: nn.Module, layers: Iterable[nn.Module], parallel: Parallel) -> nn.Module:
        """The model to call so that gradients meet: itself when alone.

        Gradients come out as the mean over the processes. With ``fsdp`` (FSDP2) the parameters of each of the
        ``layers``, and of the rest together, become DTensors, of which each process holds its part.
        """
        if self.world == 1:
            return model
        if parallel == "ddp":
            own = [self.device] if self.device.type == "cuda" else None
            with warnings.catch_warnings():  # of the argument's newer name, which older torch does not know
                warnings.simplefilter("ignore", FutureWarning)
                return DistributedDataParallel(model, device_ids=own, broadcast_buffers=False)
        # Nobody writes into the logits, which are a view.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model


def whole(state: Any, keep: bool = True) -> Any:
    """A state dict whose tensors are whole again, on the CPU, with storage of their own; all processes must take part.

    What is not spread is copied: training may go on while the copy is written. One that does not ``keep`` it gets None
    for each tensor, and needs no memory for them.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True) if keep else None
    if isinstance(state, Mapping):
        return {key: whole(value, keep) for key, value in state.items()}
    return type(state)(whole(value, keep) for value in state) if isinstance(state, (list, tuple)) else state


def spread_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state dict, spread as the parameters of ``optimizer`` are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        number: {
            name: distribute_tensor(value, own.device_mesh, own.placements)
            if isinstance(own := parameters[number], DTensor) and isinstance(value, Tensor) and value.ndim
            else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    return {**state, "state": spread}
