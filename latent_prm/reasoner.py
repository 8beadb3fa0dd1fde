"""A frozen language model that thinks in latents: it grows trees of latent paths and decodes their answers.

This room hides the latent feedback (how a hidden state becomes the next input), the noise that tells paths apart, the
KV cache and the decoding. Everything is batched over questions and paths; a path's randomness comes from the seed, its
question's id and its own index, never from its place in a batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_prm.demo import reasoner_folder
from latent_prm.options import BUILTIN
from latent_prm.prompts import solo_prompt
from latent_prm.tasks import Question, Task
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

log = logging.getLogger(__name__)

NOISE = 0.1
"""Where neither the caller nor the reasoner's config says."""
RIDGE = 1e-5
"""λ of the alignment, as in LatentMAS (arXiv 2511.20639)."""


def pick_device(device: str) -> torch.device:
    """The device to compute on; ``auto`` is CUDA when there is one, else the CPU, said aloud.

    Raises ValueError for one that is not there.
    """
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s (--device auto)", found)
        return torch.device(found)
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device}, but there is no such kind. Type cuda, cpu or auto.") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices were" if torch.cuda.is_available() else "no CUDA device was"
        raise ValueError(f"--device is {device}, but {found} found. Type --device cpu, or auto.")
    return where


def find_folder(model_path: str, builtin: Callable[[], Path] = reasoner_folder) -> str:
    """The folder or hub name behind a ``--model_path``. Raises ValueError for a local path that holds no model."""
    if model_path == BUILTIN:
        return str(builtin())
    folder = Path(model_path).expanduser()
    looks_local = model_path.startswith((".", "/", "~")) or model_path.count("/") > 1 or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        way_out = 'Type --model_path with a Hugging Face folder or hub name, or "builtin".'
        raise ValueError(f"No model in {model_path}: there is no config.json. {way_out}")
    return str(folder) if folder.is_dir() else model_path


class LatentMap(nn.Module):
    """How a hidden state (after the final norm) becomes the next input embedding.

    A model trained to think in latents names its own map in its config (``latent_prm.latent_map``: a plain factor). Any
    other model gets the LatentMAS alignment (arXiv 2511.20639): ``W_a = (W_outᵀ W_out + λI)⁻¹ W_outᵀ W_in``, then the
    mean norm of the input embeddings, computed once in float32 from the embeddings as the model really feeds them.
    """

    matrix: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        named = _own(model).get("latent_map")
        self.factor = float(named["factor"]) if named else None
        if self.factor is None:
            matrix, self.norm = _align(model)
            self.register_buffer("matrix", matrix)

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The next input embedding, float32."""
        hidden = hidden.float()
        if self.factor is not None:
            return hidden * self.factor
        return F.normalize(hidden @ self.matrix, dim=-1) * self.norm


def _own(model: Any) -> dict[str, Any]:
    """What a model made for thinking in latents says of itself in its config."""
    return getattr(model.config, "latent_prm", None) or {}


def _align(model: Any) -> tuple[Float[Tensor, "D D"], float]:
    embed, out = model.get_input_embeddings(), model.get_output_embeddings().weight
    width, vocabulary = out.shape[1], embed.weight.shape[0]
    gram = torch.zeros(width, width, device=out.device)
    cross, norm = torch.zeros_like(gram), 0.0
    for ids in torch.arange(min(vocabulary, out.shape[0]), device=out.device).split(8192):
        rows_in, rows_out = embed(ids).float(), out[ids].float()  # embed(), not its weight: some models scale inside
        gram += rows_out.T @ rows_out
        cross += rows_out.T @ rows_in
        norm += rows_in.norm(dim=-1).sum().item()
    eye = torch.eye(width, device=out.device)
    return torch.linalg.solve(gram + RIDGE * eye, cross), norm / min(vocabulary, out.shape[0])


@dataclass(frozen=True)
class Growth:
    """What :meth:`Reasoner.grow` is asked for, with every default filled in."""

    num_paths: int
    latent_steps: int
    noise: float | dict[str, float]
    """Relative to the latent's root mean square; a dict says it by task."""
    temperature: float
    max_new_tokens: int
    seed: int

    def noise_of(self, task: str) -> float:
        """The noise for a question of a task."""
        return self.noise.get(task, NOISE) if isinstance(self.noise, dict) else self.noise


@dataclass
class _Thought:
    """A batch of sequences in mid-thought. Rows are independent: their caches are copies, never shared."""

    cache: Any
    mask: Int[Tensor, "B S"]
    hidden: Float[Tensor, "B D"]

    def select(self, rows: Int[Tensor, " K"]) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]


class Reasoner:
    """A frozen causal LM with its tokenizer and latent map. Make one with :meth:`from_pretrained`."""

    spent: Counter[str]
    """What its growing has cost so far, in ``prompt_tokens``, ``latents`` and ``answer_tokens``."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.device: torch.device = model.device
        self.spent = Counter()
        with torch.no_grad():
            self.latent_map = LatentMap(model)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        stop = model.generation_config.eos_token_id
        self.stop = {tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}

    @classmethod
    def from_pretrained(cls, model_path: str = BUILTIN, *, device: str = "auto", dtype: str = "auto") -> Reasoner:
        """Load ``"builtin"``, a Hugging Face folder or a hub name. No remote code is run.

        Raises ValueError when the folder holds no model or the device does not exist.
        """
        where, folder = pick_device(device), find_folder(model_path)
        kind = ("bfloat16" if where.type == "cuda" else "float32") if dtype == "auto" else dtype
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind))
        return cls(model.to(where), AutoTokenizer.from_pretrained(folder), model_path)

    @property
    def latent_dim(self) -> int:
        """D, the width of a latent."""
        return self.model.config.get_text_config().hidden_size

    @property
    def dtype(self) -> str:
        """The arithmetic it computes in, by name."""
        return str(self.model.dtype).removeprefix("torch.")

    def digest(self) -> str:
        """16 hex digits that tell these weights and this latent map from others, whatever the folder is called."""
        found = hashlib.sha256(repr(self.latent_map.factor).encode())
        for name, weights in self.model.named_parameters():  # the first numbers of each: all would take many seconds
            some = weights.detach().flatten()[:64].to("cpu", torch.bfloat16)
            found.update(name.encode() + some.view(torch.int16).numpy().tobytes())
        return found.hexdigest()[:16]

    def growth(
        self,
        *,
        num_paths: int = 16,
        latent_steps: int | None = None,
        noise: float | None = None,
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
        seed: int = 42,
    ) -> Growth:
        """The settings of a growth; what is left out is as the reasoner's config says, else 10, 0.1 and 256 tokens."""
        own = {"latent_steps": 10, "noise": NOISE, "max_new_tokens": 256, **_own(self.model)}
        return Growth(
            num_paths=num_paths,
            latent_steps=own["latent_steps"] if latent_steps is None else latent_steps,
            noise=own["noise"] if noise is None else noise,
            temperature=temperature,
            max_new_tokens=own["max_new_tokens"] if max_new_tokens is None else max_new_tokens,
            seed=seed,
        )

    def cache_bytes(self, question: Question, growth: Growth) -> int:
        """Bytes of KV cache that one question's paths need at most."""
        config = self.model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        tokens = len(self._tokens(question)) + growth.latent_steps + growth.max_new_tokens
        per_token = 2 * config.num_hidden_layers * heads * head_dim * self.model.dtype.itemsize
        return tokens * per_token * (growth.num_paths + 1)

    @torch.no_grad()
    def grow(self, questions: list[Question], task: Task, growth: Growth | None = None) -> list[ReasoningTree]:
        """One tree per question: the noise-free path, then ``num_paths`` noisy ones, answered, graded and backed up.

        Raises ValueError for a question with more positions than the model has, and when a latent is not finite.
        """
        growth = growth or self.growth()
        paths = growth.num_paths + 1
        prompts = [self._tokens(question) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            self._check_length(question, prompt, growth)
        draws = [_draw(question, growth, self.latent_dim) for question in questions]
        thought = self._read(prompts)
        thought.select(torch.arange(len(questions), device=self.device).repeat_interleave(paths))
        latents, tips = self._think(thought, torch.cat([noise for noise, _ in draws]).to(self.device))
        tokens, truncated = self._decode(thought, growth, torch.cat([uniform for _, uniform in draws]))
        texts = [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        trees = []
        for q, question in enumerate(questions):
            grown = []
            for row in range(q * paths, (q + 1) * paths):
                grade = task.grade(question, texts[row])
                answer = Answer(text=texts[row], value=grade.value, correct=grade.correct, truncated=truncated[row])
                path = LatentPath(latents=latents[row], tip=tips[row], noise_free=row == q * paths, answers=[answer])
                grown.append(path)
            facts = {"question_id": question.id, "question": question.text, "gold": question.gold}
            trees.append(ReasoningTree(**facts, task=_kind(question), paths=grown))
            trees[-1].back_up()
        self.spent.update(prompt_tokens=sum(map(len, prompts)), answer_tokens=sum(map(len, tokens)))
        self.spent.update(latents=len(latents) * growth.latent_steps)
        return trees

    def _tokens(self, question: Question) -> list[int]:
        prompt = solo_prompt(self.tokenizer, question.text, _kind(question))
        # A chat template has already written the special tokens.
        return self.tokenizer(prompt, add_special_tokens=not self.tokenizer.chat_template)["input_ids"]

    def _check_length(self, question: Question, prompt: list[int], growth: Growth) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        needed = len(prompt) + growth.latent_steps + growth.max_new_tokens
        if limit and needed > limit:
            raise ValueError(
                f"Question {question.id!r} needs {needed} positions ({len(prompt)} to read, {growth.latent_steps} "
                f"latents, {growth.max_new_tokens} to answer), but the reasoner has {limit}. "
                "Lower --max_new_tokens or --latent_steps, or leave the question out."
            )

    def _read(self, prompts: list[list[int]]) -> _Thought:
        """Prefill, padded on the left, so that every prompt's last token stands at the end."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([[self.pad] * (longest - len(row)) + row for row in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=self.device)
        empty = _Thought(None, mask[:, :0], torch.empty(len(prompts), 0))
        return self._forward(empty, mask, input_ids=tokens)

    def _forward(self, thought: _Thought, mask: Int[Tensor, "B S"], **inputs: Tensor) -> _Thought:
        """Carry every row on by some positions; ``mask`` says which of them are real."""
        thought.mask = torch.cat([thought.mask, mask], dim=1)
        positions = (thought.mask.cumsum(1) - 1).clamp_min(0)[:, -mask.shape[1] :]
        out = self.model.base_model(
            attention_mask=thought.mask, position_ids=positions, past_key_values=thought.cache, use_cache=True, **inputs
        )
        thought.cache, thought.hidden = out.past_key_values, out.last_hidden_state[:, -1]
        return thought

    def _think(
        self, thought: _Thought, noise: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
        """Feed latents back, disturbed relative to their root mean square.

        Latents as fed and tips come back in float32 on the CPU. Raises ValueError when one is not finite.
        """
        one, fed = thought.mask.new_ones(len(noise), 1), []
        for step in noise.unbind(1):
            latent = self.latent_map(thought.hidden)
            latent = latent + step * latent.pow(2).mean(-1, keepdim=True).sqrt()
            latent = latent.to(self.model.dtype)  # stored as it was fed: after this rounding
            fed.append(latent.float().cpu())
            self._forward(thought, one, inputs_embeds=latent[:, None])
        latents, tips = torch.stack(fed, dim=1), self.latent_map(thought.hidden).cpu()
        if not (latents.isfinite().all() and tips.isfinite().all()):
            way_out = "Type --dtype float32, or another --model_path."
            raise ValueError(f"The reasoner's latents are not finite in {self.dtype}. {way_out}")
        return latents, tips

    def _decode(
        self, thought: _Thought, growth: Growth, uniform: Float[Tensor, "B L"]
    ) -> tuple[list[list[int]], list[bool]]:
        """The tokens of the answers by row, and whether each was cut off.

        Rows that have finished leave the batch once they are half of it.
        """
        rows = len(uniform)
        tokens: list[list[int]] = [[] for _ in range(rows)]
        live, done = list(range(rows)), [False] * rows
        greedy = torch.arange(rows, device=self.device) % (growth.num_paths + 1) == 0
        for step in range(growth.max_new_tokens):
            logits = self.model.get_output_embeddings()(thought.hidden).float()
            chosen = logits.argmax(-1)
            if growth.temperature > 0:
                drawn = _sample(logits / growth.temperature, uniform[live, step].to(self.device))
                chosen = torch.where(greedy[live], chosen, drawn)
            for row, token in zip(live, chosen.tolist(), strict=True):
                if not done[row]:
                    done[row] = token in self.stop
                    tokens[row] += [] if done[row] else [token]
            keep = [at for at, row in enumerate(live) if not done[row]]
            if not keep or step + 1 == growth.max_new_tokens:
                break
            if len(keep) * 2 <= len(live):
                index = torch.tensor(keep, device=self.device)
                thought.select(index)
                chosen, live = chosen[index], [live[at] for at in keep]
            self._forward(thought, thought.mask.new_ones(len(live), 1), input_ids=chosen[:, None])
        return tokens, [not finished for finished in done]


def _kind(question: Question) -> str:
    """The task a question comes from: its id is ``<task>-<digest>``."""
    return question.id.rsplit("-", 1)[0]


def _draw(question: Question, growth: Growth, width: int) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N L"]]:
    """A question's own randomness, of its seed and id alone: noise for every latent, a number per answer token.

    It is drawn path by path, so that a path's does not depend on how many there are. Path 0 has no noise.
    """
    digest = hashlib.sha256(f"{growth.seed}/{question.id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    length = growth.max_new_tokens if growth.temperature > 0 else 0
    noise, uniform = [], []
    for path in range(growth.num_paths + 1):
        scale = growth.noise_of(_kind(question)) if path else 0.0
        noise.append(torch.randn(growth.latent_steps, width, generator=generator) * scale)
        uniform.append(torch.rand(length, generator=generator))
    return torch.stack(noise), torch.stack(uniform)


def _sample(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Inverse-transform sampling: the token whose share of the cumulated probability holds the given number."""
    cumulated = logits.softmax(-1).double().cumsum(-1)
    found = torch.searchsorted(cumulated, uniform.double()[:, None] * cumulated[:, -1:], right=True)
    return found.clamp_max(logits.shape[-1] - 1)[:, 0]
