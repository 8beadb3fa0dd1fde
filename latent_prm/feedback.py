"""How a thought goes round: a hidden state becomes the next input, and chance makes one path differ from another.

This room hides the alignment of hidden states to input space, how logits are made, and every source of diversity:
Gaussian noise, soft mixtures of word embeddings, dropout. Chance comes in from outside, as numbers and keys, so that it
can be fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from latent_prm.options import Align

RIDGE = 1e-5
"""λ of the alignment, as in LatentMAS (arXiv 2511.20639)."""
CHUNK = 2**24
"""Numbers of a rows × vocabulary table that are held at once."""
GUMBEL = 2**19
"""The place of a path's first Gumbel numbers in its chance: dropout's, one per layer and step, stand before."""
BLOCKS = ("layers", "h", "blocks")
SUBLAYERS = ("self_attn", "self_attention", "attn", "attention", "mlp", "feed_forward", "ffn")


class LatentMap(nn.Module):
    """How a hidden state (after the final norm) becomes the next input embedding.

    A model trained to think in latents names its own map in its config (``latent_prm.latent_map``: a plain factor).
    Any other model gets ``align``: ``ridge`` is the alignment of LatentMAS (arXiv 2511.20639), ``W_a = (W_outᵀ W_out +
    λI)⁻¹ W_outᵀ W_in`` and then the mean norm of the input embeddings, computed once in float32 from the embeddings as
    the model really feeds them; ``rescale`` is the norm without the matrix; ``none`` feeds the hidden state as it is.
    """

    matrix: Tensor | None
    norm: float | None

    def __init__(self, model: Any, align: Align | None = None) -> None:
        super().__init__()
        named = own_settings(model).get("latent_map") if align is None else None
        self.kind = f"factor {float(named['factor'])}" if named else align or "ridge"
        self.factor = float(named["factor"]) if named else 1.0
        matrix, self.norm = (None, None) if named or align == "none" else _align(model)
        self.register_buffer("matrix", matrix if self.kind == "ridge" else None)

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The next input embedding, float32 (float64 where the hidden state is)."""
        hidden = (hidden if hidden.dtype == torch.float64 else hidden.float()) * self.factor
        if self.matrix is not None:
            hidden = hidden @ self.matrix.to(hidden.dtype)
        return hidden if self.norm is None else F.normalize(hidden, dim=-1) * self.norm


def own_settings(model: Any) -> dict[str, Any]:
    """What a model made for thinking in latents says of itself in its config."""
    return getattr(model.config, "latent_prm", None) or {}


def _align(model: Any) -> tuple[Float[Tensor, "D D"], float]:
    embed, out = model.get_input_embeddings(), model.get_output_embeddings().weight
    width, vocabulary = out.shape[1], min(embed.weight.shape[0], out.shape[0])
    gram = torch.zeros(width, width, device=out.device)
    cross, norm = torch.zeros_like(gram), 0.0
    for ids in torch.arange(vocabulary, device=out.device).split(8192):
        rows_in, rows_out = embed(ids).float(), out[ids].float()  # embed(), not its weight: some models scale inside
        gram += rows_out.T @ rows_out
        cross += rows_out.T @ rows_in
        norm += rows_in.norm(dim=-1).sum().item()
    return torch.linalg.solve(gram + RIDGE * torch.eye(width, device=out.device), cross), norm / vocabulary


def logits_of(model: Any, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
    """What the model says of its next word, scaled and capped as in its own forward pass; float32 or float64."""
    logits = model.get_output_embeddings()(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    config = model.config.get_text_config()
    scale = getattr(config, "logits_scaling", 1.0)
    scale = scale if config.model_type == "hyperclovax" else 1 / scale  # Granite and MiniCPM3 divide by it
    scale *= getattr(model, "logit_scale", None) or getattr(config, "output_multiplier", None) or 1.0  # Cohere, Muse
    logits = logits if scale == 1 else logits * scale
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return cap * torch.tanh(logits / cap) if cap else logits


# --- chance ---------------------------------------------------------------------------------------------------------


def uniform(keys: Int[Tensor, " B"], place: int, count: int) -> Float[Tensor, "B C"]:
    """Numbers in (0, 1), fixed by each row's key and the place: the same on every device, in every batch.

    Counter-based: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over key and counter. Its upper 23 bits: a
    half more than 24 of them can say is rounded to 1 in float32.
    """
    counter = torch.arange(count, device=keys.device) + (place + 1) * 2**32
    x = keys[:, None] + counter * -7046029254386353131  # 2⁶⁴ divided by the golden ratio; int64 wraps around
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return (_shifted(x ^ _shifted(x, 31), 41).float() + 0.5) / 2**23


def _shifted(x: Int[Tensor, "B C"], bits: int) -> Int[Tensor, "B C"]:
    """To the right, as unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class SoftMixture:
    """Soft thinking: the next input is a mixture of word embeddings, weighted by softmax((logits + Gumbel noise) / T).

    It needs embeddings that are their weight times a constant. Raises ValueError for a model with others.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.embed = model, model.get_input_embeddings()
        ids = torch.arange(min(64, len(self.embed.weight)), device=self.embed.weight.device)
        fed, stored = self.embed(ids).float(), self.embed.weight[ids].float()
        self.scale = (fed.norm() / stored.norm()).item()
        if not torch.allclose(fed, stored * self.scale, rtol=1e-2, atol=1e-5 * self.scale):
            raise ValueError(
                "This reasoner's embeddings are not its embedding weights times a constant, so they cannot be mixed. "
                "Type --diversity_strategy noise or dropout."
            )

    def __call__(
        self, hidden: Float[Tensor, "B D"], keys: Int[Tensor, " B"], noisy: Float[Tensor, " B"], step: int, T: float
    ) -> Float[Tensor, "B D"]:
        """The next inputs, float32 or float64; rows where ``noisy`` is 0 are mixed without Gumbel noise."""
        weight = self.embed.weight[: self.model.get_output_embeddings().weight.shape[0]]
        rows = max(1, CHUNK // len(weight))
        parts = []
        for h, key, disturbed in zip(hidden.split(rows), keys.split(rows), noisy.split(rows), strict=True):
            logits = logits_of(self.model, h)[:, : len(weight)]
            gumbel = -(-uniform(key, GUMBEL + step, len(weight)).log()).log()
            shares = ((logits + gumbel * disturbed[:, None]) / T).softmax(-1)
            mixed = shares.to(weight.dtype) @ weight
            parts.append((mixed if mixed.dtype == torch.float64 else mixed.float()) * self.scale)
        return torch.cat(parts)


class Dropout:
    """Monte-Carlo dropout on what every attention and feed-forward gives, in latent steps only.

    That is what they add to the residual stream; in Gemma 2, 3 and OLMo 2 a norm comes between. Qwen3 and its like have
    no dropout of their own but in attention, so these are hooks. Raises ValueError for a model whose layers are not
    found, or (Bloom, MPT) give the residual stream as well, which would be dropped with them.
    """

    def __init__(self, model: Any) -> None:
        base = getattr(model.base_model, "language_model", model.base_model)  # the text model of one that sees, too
        blocks = next((getattr(base, name) for name in BLOCKS if hasattr(base, name)), ())
        found = [getattr(block, name) for block in blocks for name in SUBLAYERS if hasattr(block, name)]
        if not found or any("residual" in signature(layer.forward).parameters for layer in found):
            raise ValueError(
                f"No attention or feed-forward layers that stand by themselves were found in {type(base).__name__}, so "
                "nothing can be dropped. Type --diversity_strategy noise or temperature."
            )
        self.sublayers: list[nn.Module] = found

    @contextmanager
    def at(self, keys: Int[Tensor, " B"], rates: Float[Tensor, " B"], step: int) -> Iterator[None]:
        """Inside, a forward pass of one position drops each unit with its row's rate, fixed by key and latent step."""

        def hook(number: int) -> Any:
            def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
                whole = output[0] if isinstance(output, tuple) else output
                place = step * len(self.sublayers) + number
                kept = uniform(keys, place, whole.shape[-1]) >= rates[:, None]
                scaled = (whole * (kept / (1 - rates)[:, None])[:, None]).to(whole.dtype)
                return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

            return drop

        handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(self.sublayers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
