"""A batch of sequences in mid-thought: hides the KV cache, the padding, the positions and the decoding loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from latent_prm.feedback import logits_of
from latent_prm.memory import is_full
from latent_prm.rows import first_line

log = logging.getLogger(__name__)

CAPACITY_STEP = 64
"""A static cache's capacity is a multiple of it, so that few sizes are met."""
APART = 0.25
"""How far a model may be from itself, relative to its logits: more than bfloat16 makes, less than a forgotten scale."""


class CompiledStep:
    """A model's forward pass, compiled for one position of many rows. Where that fails it goes on without, and says so.

    A GPU spends most of an uncompiled step waiting for Python to name the next kernel.
    """

    def __init__(self, model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
        self.plain = model.base_model
        self.run: Callable[..., Any] = torch.compile(self.plain, dynamic=True, fullgraph=True, backend=backend)

    def __call__(self, **inputs: Any) -> Any:
        try:
            return self.run(**inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever compiler, driver or model cannot do: uncompiled, it still can
            if self.run is self.plain:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            log.warning("Compiling the steps failed (%s): going on without.", reason)
            self.run = self.plain
            return self.run(**inputs)


class _Roomy(DynamicLayer):
    """A layer's cache with room for what is to come: the usual one is copied whole for every position that it gets."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0
        self.rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_states.shape[-2]
        if self.rooms is None:
            self.lazy_initialization(key_states, value_states)
            self.rooms = self._room(key_states), self._room(value_states)
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, begin : self.length] = states
        self.keys, self.values = (room[:, :, : self.length] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is None or self.values is None:
            return
        rooms = []
        for held in (self.keys, self.values):
            rooms.append(self._room(held[:1], len(indices)))
            torch.index_select(held, 0, indices, out=rooms[-1][:, :, : self.length])
        self.rooms = rooms[0], rooms[1]
        self.keys, self.values = (room[:, :, : self.length] for room in rooms)

    def _room(self, like: Tensor, rows: int | None = None) -> Tensor:
        return like.new_empty(rows or len(like), like.shape[1], max(self.capacity, self.length), like.shape[3])


class Thought:
    """B sequences that a model carries on from where they stand. Rows are independent: each has a cache of its own.

    The cache has room for ``capacity`` positions. With a compiled ``step`` it is of that size from the start.
    """

    hidden: Float[Tensor, "B D"]
    """The last position's hidden state, after the final norm; there is none before something was read."""

    def __init__(self, model: Any, rows: int, capacity: int, step: CompiledStep | None = None) -> None:
        self.model, self.step, self.capacity = model, step, capacity
        self.mask: Int[Tensor, "B S"] = torch.zeros(rows, 0, dtype=torch.long, device=model.device)
        if step is None:
            self.cache: Any = DynamicCache(config=model.config)
            plain = [type(layer) is DynamicLayer for layer in self.cache.layers]
            for i in [i for i, is_plain in enumerate(plain) if is_plain]:
                self.cache.layers[i] = _Roomy(capacity)
        else:
            self.capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
            self.cache = StaticCache(config=model.config, max_cache_len=self.capacity)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def has_read(self) -> bool:
        """Whether anything was."""
        return self.mask.shape[1] > 0

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, each as often as it is named: the copies know nothing of each other."""
        if rows == list(range(len(self))):
            return
        index = torch.tensor(rows, device=self.mask.device)
        if self.has_read:
            for layer in self.cache.layers:
                if self.step is None:
                    layer.batch_select_indices(index)
                else:
                    layer.keys, layer.values = layer.keys[index], layer.values[index]
            self.hidden = self.hidden[index]
        self.mask = self.mask[index]

    def read(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """Prefill each row's own tokens, padded on the left, so that all end together."""
        longest, device = max(map(len, prompts)), self.mask.device
        tokens = torch.tensor([[pad] * (longest - len(row)) + [*row] for row in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
        self._forward(mask, input_ids=tokens)

    def feed(self, latent: Float[Tensor, "B D"]) -> None:
        """One position more, given as an input embedding in the model's dtype."""
        self._forward(self.mask.new_ones(len(self), 1), inputs_embeds=latent[:, None])

    def say(self, token: Int[Tensor, " B"]) -> None:
        """One position more, given as a token."""
        self._forward(self.mask.new_ones(len(self), 1), input_ids=token[:, None])

    def _forward(self, mask: Int[Tensor, "B S"], **inputs: Tensor) -> None:
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -mask.shape[1] :]
        seen, forward = self.mask, self.model.base_model
        if self.step is not None:
            seen = F.pad(self.mask, (0, self.capacity - self.mask.shape[1]))  # of one size from step to step
            if mask.shape[1] == 1:
                forward = self.step
        out = forward(attention_mask=seen, position_ids=positions, past_key_values=self.cache, use_cache=True, **inputs)
        self.cache, self.hidden = out.past_key_values, out.last_hidden_state[:, -1]


@torch.no_grad()
def try_out(model: Any) -> None:
    """Raises ValueError for a model that no `Thought` can carry on, in the model's own arithmetic.

    It must have attention as its only memory; and two rows that are padded, branched and cached must say what one alone
    says in the model's own forward pass, as far as weights are there. In half precision that is a warning only: there
    rounding alone can send a token to other experts.
    """
    way_out, kind = "Type a decoder with plain attention, as Qwen/Qwen3-0.6B.", type(model).__name__
    layers = DynamicCache(config=model.config).layers
    plain = all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers
    )
    if not plain or model.base_model is model or not hasattr(model.config.get_text_config(), "num_attention_heads"):
        raise ValueError(f"{kind} does not remember by plain attention alone, so it cannot think here. {way_out}")
    if model.device.type == "meta":
        return
    try:
        thought = Thought(model, 2, 5)
        thought.read([[1, 2], [1, 2, 3]], pad=0)
        thought.select([1, 0])
        thought.feed(model.get_input_embeddings()(torch.tensor([4, 4], device=model.device)))
        found = logits_of(model, thought.hidden)[1]
        own = model(input_ids=torch.tensor([[1, 2, 4]], device=model.device), use_cache=False).logits[0, -1]
    except Exception as error:  # whatever a model that was not made for this raises
        if is_full(error):
            raise
        if model.dtype == torch.float64:  # experts are multiplied in 32 bits or fewer
            way_out = "Type --dtype float32."
        raise ValueError(f"{kind} cannot think in {model.dtype}: {first_line(error)}. {way_out}") from error
    if (found - own).norm() > APART * own.norm():
        apart = f"{kind} says something else from its cache than without"
        if model.dtype.itemsize >= 4:
            raise ValueError(f"{apart}, so it cannot think here. {way_out}")
        log.warning("%s. It may be rounding: --dtype float32 would tell.", apart)


def decode(
    thought: Thought,
    longest: int,
    stop: set[int],
    choose: Callable[[Float[Tensor, "B V"], list[int], int], Int[Tensor, " B"]],
) -> tuple[list[list[int]], list[bool], list[float]]:
    """The tokens that each row says until one of ``stop``, whether it was cut off at the ``longest``, and how surely it
    said them: the mean log-probability of its tokens, that of the stop among them, before temperature.

    ``choose(logits, rows, step)`` picks the next token of the rows that still speak. Rows that have finished leave the
    batch once they are half of it.
    """
    tokens: list[list[int]] = [[] for _ in range(len(thought))]
    live, done = list(range(len(thought))), [False] * len(thought)
    said = [0.0] * len(thought)
    for step in range(longest):
        logits = logits_of(thought.model, thought.hidden).float()
        chosen = choose(logits, live, step)
        sure = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
        for row, token, surely in zip(live, chosen.tolist(), sure.tolist(), strict=True):
            if not done[row]:
                said[row] += surely
                done[row] = token in stop
                tokens[row] += [] if done[row] else [token]
        keep = [at for at, row in enumerate(live) if not done[row]]
        if not keep or step + 1 == longest:
            break
        if len(keep) * 2 <= len(live):
            thought.select(keep)
            chosen, live = chosen[torch.tensor(keep, device=chosen.device)], [live[at] for at in keep]
        thought.say(chosen)
    counts = [len(row) + finished for row, finished in zip(tokens, done, strict=True)]
    return tokens, [not finished for finished in done], [total / n for total, n in zip(said, counts, strict=True)]


def likeliest_or_drawn(
    uniform: Float[Tensor, "B L"], greedy: Bool[Tensor, " B"], temperature: float, top_p: float
) -> Callable[[Float[Tensor, "B V"], list[int], int], Int[Tensor, " B"]]:
    """How `decode` is to choose: the likeliest token for ``greedy`` rows, one drawn by the row's numbers for others."""

    def choose(logits: Tensor, rows: list[int], step: int) -> Tensor:
        best = logits.argmax(-1)
        if temperature == 0:
            return best
        return torch.where(greedy[rows], best, sample(logits / temperature, uniform[rows, step], top_p))

    return choose


def sample(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], top_p: float = 1.0) -> Int[Tensor, " B"]:
    """Inverse-transform sampling: the token whose share of the cumulated probability holds the given number.

    With ``top_p`` only the likeliest tokens that together reach it are drawn from.
    """
    shares = logits.softmax(-1).double()
    if top_p < 1:
        ordered, order = shares.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the first token is never beyond
        shares = shares.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulated = shares.cumsum(-1)
    found = torch.searchsorted(cumulated, uniform.double()[:, None] * cumulated[:, -1:], right=True)
    return found.clamp_max(logits.shape[-1] - 1)[:, 0]
