"""What growing takes: bytes of KV cache and working memory, known before anything is loaded or grown.

This room hides the arithmetic. `benchmarks/collect.py` compares it with the peak of a real run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from latent_prm.growth import Growth

CPU_BUDGET = 2 * 2**30
"""Bytes that a batch may take on a CPU when no --batch_size is typed: more is no faster there."""
CUDA_SHARE = 0.8
"""Of the memory that is free beside the weights, for a batch on a GPU."""
MOST_TOGETHER = 64
"""Questions in a batch: where more fit, the model is so small that more are no faster."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one question's growth at its largest moment."""

    cache: int
    """Keys and values of all rows."""
    work: int
    """Activations or logits beside it, and the copy of one layer's cache that is being made."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.cache + self.work


def footprint(config: Any, itemsize: int, growth: Growth, prompts: list[int]) -> Footprint:
    """The footprint of a question whose prompts (the judger's last) have these lengths.

    ``config`` is the text model's, ``itemsize`` the bytes of one number of it. Every answer is taken to be as long as
    it may be.
    """
    lengths, free = iter(prompts), int(growth.noise_free)
    noisy, tokens, moments = 0, 0, []
    for run in growth.runs:
        if run.prompt is not None:
            tokens += (read := next(lengths))
            moments.append(_moment(config, itemsize, noisy + free if noisy else 1, tokens, read))
        noisy = max(1, noisy) * run.branches
        tokens += run.latent_steps
        thinking = _moment(config, itemsize, noisy + free, tokens, 1)
        mixed = 24 * (noisy + free) * config.vocab_size if growth.diversity_strategy in ("temperature", "hybrid") else 0
        moments.append(Footprint(thinking.cache, thinking.work + mixed))
    rows = noisy + free
    if growth.judger is not None:
        tokens += (read := next(lengths))
        moments.append(_moment(config, itemsize, rows, tokens, read))
    rows = noisy * growth.answers_per_leaf + free
    tokens += growth.max_new_tokens
    logits = 4 if itemsize == 4 else 4 + itemsize
    if growth.temperature > 0:  # shares, and in double: shares and their sums; sorted too where top_p cuts
        logits += 4 + 16 + (24 if growth.top_p < 1 else 0)
    last = _moment(config, itemsize, rows, tokens, 1)
    moments.append(Footprint(last.cache, last.work + logits * rows * config.vocab_size))
    return max(moments, key=lambda moment: moment.total)


def stored(growth: Growth, latent_dim: int) -> int:
    """Bytes of one question's latents, hidden states and tips on disk."""
    paths, vectors = 1, 0
    for run in growth.runs:
        paths *= run.branches
        tip = int(run.latent_steps > 0)
        vectors += (paths + growth.noise_free) * (run.latent_steps * (2 if growth.keep_hidden else 1) + tip)
    return 4 * latent_dim * vectors


def budget(device: torch.device) -> int:
    """Bytes that a batch may take on a device, the weights being there already."""
    if device.type != "cuda":
        return CPU_BUDGET
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, kept for the next
    return int(CUDA_SHARE * (torch.cuda.mem_get_info(device)[0] + idle))


def is_full(error: Exception) -> bool:
    """Whether an error says that the memory is: torch's own is a RuntimeError, on a GPU and on a CPU."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|allocate memory", str(error)))


def _moment(config: Any, itemsize: int, rows: int, tokens: int, read: int) -> Footprint:
    """While each of ``rows`` reads its last ``read`` of so many ``tokens``."""
    layers, cache = config.num_hidden_layers, rows * tokens * token_bytes(config, itemsize)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # The residual stream and its norm, then gate, up and their product at once; the rest is smaller.
    active = rows * read * itemsize * (3 * config.hidden_size + 3 * inner)
    # A prompt's grouped heads are spread out, as many keys and values as queries; a single position's are not.
    spread = 2 * rows * tokens * config.num_attention_heads * _head_dim(config) * itemsize if read > 1 else 0
    mask = 5 * rows * read * tokens if read > 1 else 0  # who sees whom, as bytes and as numbers to add
    return Footprint(cache, cache // layers + mask + max(active, spread))


def token_bytes(config: Any, itemsize: int) -> int:
    """Keys and values of one position in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * _head_dim(config) * itemsize


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def held() -> int:
    """Bytes of memory that this process holds now; where the system does not say, the most it has held."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def bill(rows: Mapping[str, object]) -> Table:
    """Names on the left, what they come to on the right, for the terminal."""
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def spell(size: float) -> str:
    """Bytes in words: "3.2 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
