"""The latent process reward model: a language model that reads a chain of latents and says how likely it ends right.

This room hides the backbone, the projection between widths, the pooling, the heads and the packing of what is scored
together.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear
from transformers import AutoConfig, AutoModel, AutoTokenizer

from latent_prm import files, weights
from latent_prm.demo import prm_folder, reader_folder
from latent_prm.options import BUILTIN, READABLE, Context, Sees
from latent_prm.packing import PackedBatch, pack
from latent_prm.pretrained import fetch, fetch_weights, find_folder, loading
from latent_prm.reading import Read, read_trees
from latent_prm.tree import Path as LatentPath
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

Pooling = Literal["mean", "last", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


class Logits(NamedTuple):
    """What the heads say of the K wanted paths of a batch, or of every prefix of each; float32."""

    value: Float[Tensor, "K ..."]
    """Its sigmoid is the predicted score: the chance of ending right."""
    correctness: Float[Tensor, "K ..."] | None
    """Its sigmoid is the chance of being right so far: that a path can still end right. None without a second head."""

    def total(self) -> Float[Tensor, ""]:
        """Their sum: a number that every parameter has a gradient of."""
        return torch.stack([each.sum() for each in self if each is not None]).sum()


class QwenLatentPRM(nn.Module):
    """Latents (and the question's text) → backbone → pooling over the chain's latents → one bias-free linear layer.

    With ``second_head`` another such layer beside it says how likely the chain is right so far (BiRM, arXiv
    2503.04618).

    ``model_path`` is a Hugging Face decoder (folder or hub name, Qwen3-0.6B as a rule, or ``"builtin"``); its
    parameters are float32. ``latent_dim`` is the reasoner's width D; where it differs from the backbone's H, a
    projection stands in front. Width, pooling, second head and what is read travel in the state dict, so
    that ``load_state_dict`` alone restores them; ``max_seq_length`` and ``context`` travel in its config.json.
    Whatever the parameters are in, latents are projected, and heads computed, with float32 numbers.
    """

    pooling_code: Tensor
    latent_width: Tensor
    reading_code: Tensor

    def __init__(
        self,
        model_path: str | Path | None = None,
        latent_dim: int | None = None,
        pooling_strategy: str = "mean",
        dropout_prob: float = 0.1,
        *,
        second_head: bool = False,
        reads: Sequence[str] = ("fed",),
        backbone: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if pooling_strategy not in POOLINGS:
            raise ValueError(f"pooling_strategy is {pooling_strategy!r}: type one of {', '.join(POOLINGS)}.")
        if backbone is None:
            if model_path is None:
                raise ValueError("QwenLatentPRM needs model_path: a Hugging Face folder or name, as Qwen/Qwen3-0.6B.")
            model_path = find_folder(str(model_path), reader_folder)
            # transformers would load the checkpoint's dtype; bfloat16 parameters swallow updates of 2e-5.
            with loading(model_path):
                backbone = fetch_weights(AutoModel, model_path, dtype=torch.float32, trust_remote_code=False)
                tokenizer = fetch(AutoTokenizer, model_path, trust_remote_code=False)
        self.backbone, self.tokenizer = backbone, tokenizer
        self.max_seq_length: int = 512
        """Latents of a chain that it was trained to read; longer chains lose latents at the root end."""
        self.context: str = "question"
        """What it was trained to read before the latents: "question" or "none"."""
        self.reads: tuple[str, ...] = tuple(reads)
        """What it reads of a path: some of `options.READABLE`."""
        self.sees: str = "chain"
        """Whom a path is judged beside: "chain", nobody; "tree", its siblings."""
        self.reasoners: tuple[dict[str, str], ...] = ()
        """Whose trees it learnt from, where that is known: "model" and "weights" of each, as `kinship.growers`."""
        self.hidden_size: int = backbone.config.get_text_config().hidden_size
        self.dropout = nn.Dropout(dropout_prob)
        self.head = self._new_head()
        self.pooling: str = pooling_strategy
        """How a chain's latents become one state."""
        self.latent_dim: int = self.hidden_size
        """The width of what it reads for a latent: D, or 2 D for latents as fed and hidden states side by side."""
        # What the two travel as; to look there while computing would make a GPU wait.
        self.register_buffer("pooling_code", torch.tensor(POOLINGS.index(pooling_strategy)))
        self.register_buffer("latent_width", torch.tensor(self.hidden_size))
        self.register_buffer("reading_code", torch.tensor(_code(self.reads, self.sees)))
        self.projection: nn.Linear | None = None
        streams = _streams(self.reads)
        self._set_width((latent_dim or self.hidden_size) * streams, streams)
        self.correctness_head: nn.Linear | None = None
        self._set_second_head(second_head)
        self.backbone.get_input_embeddings().requires_grad_(False)  # it only serves the question's text
        self.shares = self._packs_exactly()

    # --- what it is ---

    @property
    def thought_dim(self) -> int:
        """D, the width of the reasoner's latents: it may read two streams of them side by side."""
        return self.latent_dim // _streams(self.reads)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.head.weight.device

    @property
    def num_positions(self) -> int | None:
        """Up to where its backbone counts, what stands before and behind a chain too; None where it does not say."""
        return getattr(self.backbone.config.get_text_config(), "max_position_embeddings", None)

    @property
    def has_position_table(self) -> bool:
        """Whether its backbone looks positions up, learnt ones as a rule, so that it fails beyond the last."""
        last, words = self.num_positions, self.backbone.get_input_embeddings()
        tables = [part for part in self.backbone.modules() if isinstance(part, nn.Embedding) and part is not words]
        learnt = last is not None and any(last <= table.num_embeddings <= last + 2 for table in tables)  # OPT skips two
        return learnt or any(name.endswith("embed_positions") for name, _ in self.backbone.named_buffers())  # GPT-J

    def _new_head(self) -> nn.Linear:
        head = nn.Linear(self.hidden_size, 1, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        return head

    def _set_width(self, latent_dim: int, streams: int = 1) -> None:
        self.latent_dim = latent_dim
        self.latent_width.fill_(latent_dim)
        if latent_dim == self.hidden_size:
            self.projection = None
        elif self.projection is None or self.projection.in_features != latent_dim:
            self.projection = nn.Linear(latent_dim, self.hidden_size, bias=False).to(self.head.weight)
            nn.init.normal_(self.projection.weight, std=(latent_dim // streams) ** -0.5)  # keeps the root mean square
            if streams > 1:  # the second stream begins silent, and the first as if it were alone
                with torch.no_grad():
                    first = self.projection.weight[:, : latent_dim // streams]
                    self.projection.weight[:, latent_dim // streams :] = 0
                    if first.shape[0] == first.shape[1]:
                        nn.init.eye_(first)

    def _set_second_head(self, wanted: bool) -> None:
        if not wanted:
            self.correctness_head = None
        elif self.correctness_head is None:
            self.correctness_head = self._new_head().to(self.head.weight)

    def see(self, whom: str) -> None:
        """Judge paths beside nobody (``"chain"``) or beside their siblings (``"tree"``), of which half the heads know.

        Raises ValueError where the backbone cannot be packed, or has but one head.
        """
        heads = getattr(self.backbone.config.get_text_config(), "num_attention_heads", 0)  # state spaces have none
        if whom == "tree" and (not self.shares or heads % 2):
            raise ValueError(
                f"--sees tree needs a backbone whose paths can be packed and an even number of heads, but "
                f"{type(self.backbone).__name__} has {heads} heads and {'can' if self.shares else 'cannot'}. "
                "Type --sees chain."
            )
        self.sees = whom
        self.reading_code.fill_(_code(self.reads, self.sees))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; pooling, projection and second head come with the weights, or go where these have none."""
        if "latent_width" in state_dict:  # else it is a part of one, which says nothing of what it has not
            self._set_width(weights.width_of(state_dict, self.hidden_size))
            self._set_second_head("correctness_head.weight" in state_dict)
            state_dict = {"reading_code": self.reading_code, **state_dict}  # the first had none: it stays as it is
        found = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.pooling = POOLINGS[int(self.pooling_code)]
        code = int(self.reading_code)
        self.reads = tuple(part for bit, part in enumerate(READABLE) if code >> bit & 1)
        self.see("tree" if code >> len(READABLE) & 1 else "chain")
        return found

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, *, device: str | torch.device = "cpu") -> QwenLatentPRM:
        """The model of a checkpoint folder (or of ``"builtin"``), ready to score. Needs nothing but the folder.

        >>> from latent_prm import QwenLatentPRM
        >>> QwenLatentPRM.from_pretrained("builtin").pooling
        'last'

        Raises ``files.BadFile`` when the folder is not a checkpoint, is damaged, or is not all data: what its manifest
        lists must be there as it was written. One without a manifest (made by hand) is believed.
        """
        folder = checked_folder(checkpoint)
        described = files.load_json(folder / "config.json")
        own = described.get("latent_prm") if isinstance(described, dict) else None
        if not isinstance(own, dict) or not _described(own):
            raise files.BadFile(
                f"{folder / 'config.json'} does not describe a latent PRM. Type a folder as checkpoints/…/best."
            )
        weights.check_config(folder, described)
        state = weights.load(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            weights.check_size(config, state)
            backbone = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
            tokenizer = None
            if (folder / "tokenizer_config.json").is_file():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            dropout = float(own.get("dropout_prob", 0.1))
            model = cls(backbone=backbone, tokenizer=tokenizer, dropout_prob=dropout, reads=own.get("reads", ["fed"]))
            model.load_state_dict(state)
            model.max_seq_length = int(own.get("max_seq_length", model.max_seq_length))
        except Exception as error:  # a config.json can make transformers and torch raise whatever they have
            raise files.BadFile(f"{folder} is not a whole checkpoint: {error}") from error
        model.context = own.get("context", model.context)
        model.reasoners = tuple(own.get("reasoners", ()))
        return model.to(device).eval()

    def save_description(self, folder: Path) -> None:
        """Everything but the weights that :meth:`from_pretrained` needs: config.json and the tokenizer."""
        described = json.loads(self.backbone.config.to_json_string(use_diff=False))
        described.pop("_name_or_path", None)  # where it came from is no part of what it is
        described["latent_prm"] = {
            "format": "latent-prm/1",
            "latent_dim": self.latent_dim,
            "pooling_strategy": self.pooling,
            "dropout_prob": self.dropout.p,
            "max_seq_length": self.max_seq_length,
            "context": self.context,
            "reads": list(self.reads),
            "sees": self.sees,
            **({"reasoners": list(self.reasoners)} if self.reasoners else {}),
        }
        files.save_json(described, folder / "config.json")
        if self.tokenizer is not None:
            _save_tokenizer(self.tokenizer, folder)

    # --- scoring ---

    def column_states(self, batch: PackedBatch) -> Float[Tensor, "columns H"]:
        """The backbone's state at every column of the batch's R rows of S."""
        embedding = self.backbone.get_input_embeddings()
        found = embedding(batch.token_ids.to(embedding.weight.device))  # it may be kept beside the device
        embedded = found.to(batch.latents.device)
        latents = batch.latents
        if self.projection is not None:
            latents = linear(latents, self.projection.weight.float())
        embedded = embedded.masked_scatter(batch.is_latent[..., None], latents.to(embedded.dtype))
        if self.shares:
            autocast = torch.is_autocast_enabled(latents.device.type)
            dtype = torch.get_autocast_dtype(latents.device.type) if autocast else embedded.dtype
            # As numbers to add, made once: every layer would make, and keep, its own of a mask that says yes or no.
            mask = torch.zeros(batch.mask.shape, dtype=dtype, device=latents.device)
            mask = mask.masked_fill_(~batch.mask, -torch.inf)
            if (groups := mask.shape[1]) > 1:
                mask = mask.repeat_interleave(self.backbone.config.get_text_config().num_attention_heads // groups, 1)
            layout = {"attention_mask": mask, "position_ids": batch.positions.clamp_min(0)}
        else:  # one path to a row needs nothing but the usual mask, which any backbone understands
            layout = {"attention_mask": (batch.positions >= 0).long()}
        return self.backbone(inputs_embeds=embedded, use_cache=False, **layout).last_hidden_state.flatten(0, 1)

    def forward(self, batch: PackedBatch, by_latent: bool = False) -> Logits:
        """The logits [K] of the wanted paths; with ``by_latent``, [K, C] of every prefix of each: the same pooling, cut
        short after each latent, and arbitrary beyond a chain's end. Both heads see the same dropout.
        """
        states = self.column_states(batch).float()
        pooled = self._pool_prefixes(states, batch) if by_latent else self._pool(states, batch)
        with torch.autocast(states.device.type, enabled=False):  # logits and losses are float32
            pooled = self.dropout(pooled)
            value, second = linear(pooled, self.head.weight.float())[..., 0], self.correctness_head
            return Logits(value, None if second is None else linear(pooled, second.weight.float())[..., 0])

    def _pool(self, states: Float[Tensor, "columns H"], batch: PackedBatch) -> Float[Tensor, "K H"]:
        if self.pooling == "last":
            return states[batch.chains.gather(1, batch.lengths[:, None] - 1)[:, 0]]
        within = torch.arange(batch.chains.shape[1], device=states.device) < batch.lengths[:, None]
        if self.pooling == "mean":  # without a copy of each chain: paths may share most of theirs
            summed = embedding_bag(batch.chains, states, mode="sum", per_sample_weights=within.to(states.dtype))
            return summed / batch.lengths[:, None]
        return states[batch.chains].masked_fill(~within[..., None], -torch.inf).amax(1)

    def _pool_prefixes(self, states: Float[Tensor, "columns H"], batch: PackedBatch) -> Float[Tensor, "K C H"]:
        chains = states[batch.chains]
        if self.pooling == "mean":
            return _running_sum(chains) / torch.arange(1, chains.shape[1] + 1, device=states.device)[:, None]
        return chains.cummax(1).values if self.pooling == "max" else chains

    def as_read(self, trees: Sequence[ReasoningTree], context: bool | None = None) -> list[Read]:
        """What the model reads of each tree, as its ``reads`` and ``context`` say. Raises as `read_trees`."""
        context = self.context == "question" if context is None else context
        return read_trees(trees, self.reads, self.read_questions, context)

    def read_questions(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of what stands before the latents."""
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer to read questions with; load it from a folder that has one.")
        return self.tokenizer(list(questions))["input_ids"] if questions else []

    @overload
    def score(self, trees: ReasoningTree, head: str = "value", **settings: Any) -> Float[Tensor, " P"]: ...

    @overload
    def score(
        self, trees: Sequence[ReasoningTree], head: str = "value", **settings: Any
    ) -> list[Float[Tensor, " P"]]: ...

    def score(
        self, trees: ReasoningTree | Sequence[ReasoningTree], head: str = "value", **settings: Any
    ) -> Float[Tensor, " P"] | list[Float[Tensor, " P"]]:
        """The predicted score, 0..1, of every path of a tree, or of each of several; ``settings`` and errors are those
        of :meth:`score_trees`.

        >>> from latent_prm import QwenLatentPRM
        >>> prm = QwenLatentPRM.from_pretrained("builtin")
        >>> scores = prm.score(tree)
        >>> len(scores) == len(tree.paths), bool((0 < scores).all() and (scores < 1).all())
        (True, True)
        """
        if isinstance(trees, ReasoningTree):
            return self.score_trees([trees], head=head, **settings)[0]
        return self.score_trees(trees, head=head, **settings)

    @torch.no_grad()
    def score_trees(
        self,
        trees: Sequence[ReasoningTree],
        context: bool | None = None,
        pack_tokens: int = 16384,
        max_seq_length: int | None = None,
        head: str = "value",
    ) -> list[Float[Tensor, " P"]]:
        """The predicted score, 0..1, of every path of every tree (those without a label too), float32 on the CPU.

        ``context`` (whether it reads the questions) and ``max_seq_length`` are, where left out, those of its training.
        ``head="correctness"`` asks the second head: how likely a path is right so far.
        Raises ValueError when a path has no latent, or latents of another width than this model reads, and when there
        is no such head.
        """
        self._check_head(head)
        longest = self.max_seq_length if max_seq_length is None else max_seq_length
        read = self.as_read(trees, context)
        for own in read:
            for i, path in enumerate(own.tree.paths):
                self._check_path(path, f"question {own.tree.question_id}, path {i}")
        scores = [torch.empty(len(tree.paths)) for tree in trees]
        with self.evaluating():
            for batch in self.packs(read, max_seq_length=longest, pack_tokens=pack_tokens):
                logits = getattr(self(batch.to(self.device)), head)
                for (tree, path), score in zip(batch.paths, logits.sigmoid().cpu(), strict=True):
                    scores[tree][path] = score
        return scores

    def packs(self, read: Sequence[Read], **size: Any) -> Iterator[PackedBatch]:
        """`packing.pack` of what the model reads of some trees, as it sees them."""
        trees, contexts, tails = zip(*read, strict=True) if read else ((), (), ())
        yield from pack(trees, contexts, tails=tails, siblings=self.sees == "tree", shared=self.shares, **size)

    def _check_head(self, head: str) -> None:
        if head not in Logits._fields:
            raise ValueError(f"head is {head!r}: type one of {', '.join(Logits._fields)}.")
        if head == "correctness" and self.correctness_head is None:
            raise ValueError(
                "This PRM has no correctness head, for none was trained. "
                "Train one with --correctness_weight 0.5, say, or ask for head='value'."
            )

    def _check_path(self, path: LatentPath, where: str) -> None:
        length, width = path.latents.shape
        if width != self.latent_dim:
            raise ValueError(
                f"{where}: its latents are {width} wide, but this PRM reads {self.latent_dim}. "
                "Score trees of the reasoner that the PRM was trained for, or train one on these."
            )
        if length == 0:
            raise ValueError(f"{where}: it has no latent, so that there is nothing to score. A path needs T >= 1.")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout for the time being: a score is never a matter of chance."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def predict_scores(
        self,
        latent_sequence: Float[Tensor, "B T D"],
        attention_mask: Tensor | None = None,
        questions: Sequence[str] | None = None,
        head: str = "value",
    ) -> Float[Tensor, " B"]:
        """The predicted score, 0..1, of each chain of latents.

        ``attention_mask`` [B, T] (bool, int or float) says which latents are real; all of them are read.
        ``head`` as in :meth:`score_trees`.
        Raises ValueError for shapes that do not fit, for a row without a single real latent, and for a missing head.
        """
        return self._predict(latent_sequence, attention_mask, questions, head, steps=False)

    def predict_step_scores(
        self,
        latent_sequence: Float[Tensor, "B T D"],
        attention_mask: Tensor | None = None,
        questions: Sequence[str] | None = None,
        head: str = "value",
    ) -> Float[Tensor, "B T"]:
        """The predicted score after each latent of each chain, in the latents' places; 0 where the mask has none."""
        return self._predict(latent_sequence, attention_mask, questions, head, steps=True)

    def _predict(
        self, latents: Tensor, mask: Tensor | None, questions: Sequence[str] | None, head: str, *, steps: bool
    ) -> Tensor:
        self._check_head(head)
        real = self._check(latents, mask, questions)
        rows = [row[keep] for row, keep in zip(latents.float(), real, strict=True)]
        trees = [_tree([row], [None]) for row in rows]
        contexts = self.read_questions(questions) if questions is not None else [[]] * len(trees)
        order, scores = torch.arange(latents.shape[1], device=real.device), torch.zeros(real.shape, device=self.device)
        out = torch.zeros(len(latents), device=self.device)
        with self.evaluating():
            for batch in pack(trees, contexts, max_seq_length=latents.shape[1], shared=self.shares):
                logits = getattr(self(batch.to(self.device), steps), head)
                for k, (row, _) in enumerate(batch.paths):
                    if steps:
                        scores[row, order[real[row]]] = logits[k, : int(batch.lengths[k])].sigmoid()
                    else:
                        out[row] = logits[k].sigmoid()
        return scores if steps else out

    def _check(self, latents: Tensor, mask: Tensor | None, questions: Sequence[str] | None) -> Bool[Tensor, "B T"]:
        if latents.ndim != 3 or latents.shape[2] != self.latent_dim:
            raise ValueError(
                f"latent_sequence has the shape {list(latents.shape)}, "
                f"but this PRM reads [batch, latents, {self.latent_dim}]."
            )
        real = torch.ones(latents.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        if real.shape != latents.shape[:2]:
            raise ValueError(
                f"attention_mask has the shape {list(real.shape)}, but the latents have {list(latents.shape[:2])}."
            )
        if not real.any(1).all():
            raise ValueError(
                f"row {int((~real.any(1)).nonzero()[0])} of latent_sequence has no real latent: a path needs T >= 1."
            )
        if questions is not None and len(questions) != len(latents):
            raise ValueError(f"{len(questions)} questions for {len(latents)} chains of latents: give one for each.")
        return real.to(latents.device)

    @torch.no_grad()
    def _packs_exactly(self) -> bool:
        """Whether this backbone scores a small packed tree as it scores its paths alone.

        Raises ValueError when it cannot read latents at all.
        """
        generator = torch.Generator().manual_seed(0)
        scale = self.backbone.get_input_embeddings().weight.float().std().item()
        draw = [torch.randn(3, self.latent_dim, generator=generator) * scale for _ in range(3)]
        tree, kind = _tree(draw, [None, 0, 0]), type(self.backbone).__name__
        states: list[Tensor] = []
        with self.evaluating():
            for self.shares in (False, True):
                try:
                    packs = pack([tree], [[0, 1]], wanted=[[1, 2]], shared=self.shares)
                    states.append(torch.cat([self.column_states(batch)[batch.chains] for batch in packs]))
                except Exception as error:  # whatever a backbone raises that does not know this kind of mask
                    if not self.shares:
                        raise ValueError(
                            f"{kind} cannot read latents ({error}). Type a causal LM as Qwen3-0.6B."
                        ) from error
                    log.debug("packing refused: %s", error)
        exact = len(states) == 2 and not _short_sighted(self.backbone.config.get_text_config())
        exact = exact and torch.allclose(states[0], states[1], rtol=1e-3, atol=1e-3 * float(states[0].abs().max()))
        if not exact:
            log.warning(
                "%s cannot share a tree's latents exactly: its paths are scored one by one, which is slower", kind
            )
        return exact


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Where a PRM is: ``"builtin"`` comes with the package."""
    return prm_folder() if checkpoint == BUILTIN else Path(checkpoint)


def checked_folder(checkpoint: str | Path) -> Path:
    """As `checkpoint_folder`. Raises ``files.BadFile``, with what to type, where there is no checkpoint."""
    folder = checkpoint_folder(checkpoint)
    if not folder.exists():
        raise files.BadFile(f'{folder} does not exist. Type a folder as checkpoints/…/best, or "{BUILTIN}".')
    for name in ("config.json", "pytorch_model.bin"):
        if not (folder / name).is_file():
            best = folder / "best"
            way_out = f"Type {best}" if best.is_dir() else "Type a folder as checkpoints/…/best"
            raise files.BadFile(f"{folder} is not a checkpoint: it has no {name}. {way_out}.")
    return folder


def _streams(reads: Sequence[str]) -> int:
    return len({"fed", "hidden"} & set(reads))


def _code(reads: Sequence[str], sees: str) -> int:
    """A bit for each part that is read, and one for seeing the tree."""
    bits = [part in reads for part in READABLE] + [sees == "tree"]
    return sum(1 << bit for bit, on in enumerate(bits) if on)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """It writes by itself, so it does it aside; what is kept is written as all else is. Raises OSError."""
    with TemporaryDirectory(dir=folder) as aside:
        try:
            tokenizer.save_pretrained(aside)
        except Exception as error:  # the part of it that is not Python knows no OSError
            if not (code := re.search(r"\(os error (\d+)\)", str(error))):
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder / "tokenizer.json")) from error
        for path in sorted(Path(aside).iterdir()):
            files.copy(path, folder / path.name)


def _described(own: dict[str, Any]) -> bool:
    """Whether a checkpoint's config.json says what is possible."""
    reads = own.get("reads", ["fed"])
    known = isinstance(reads, list) and bool(reads) and set(reads) <= set(READABLE)
    known = known and _are_reasoners(own.get("reasoners", []))
    return known and own.get("context", "question") in get_args(Context) and own.get("sees", "chain") in get_args(Sees)


def _are_reasoners(said: Any) -> bool:
    return isinstance(said, list) and all(
        isinstance(one, dict)
        and set(one) == {"model", "weights"}
        and all(isinstance(value, str) for value in one.values())
        for one in said
    )


def _running_sum(states: Float[Tensor, "K C H"]) -> Float[Tensor, "K C H"]:
    """Over C, as cumsum does, of which a GPU has no version that gives the same bits each time."""
    if states.is_cuda and torch.are_deterministic_algorithms_enabled():
        return torch.stack(list(accumulate(states.unbind(1))), 1)
    return states.cumsum(1)


def _short_sighted(config: Any) -> bool:
    """Whether a layer sees only so many columns back: a tree too small to show it would still pack exactly."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) != {"full_attention"}
    return any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))


def _tree(latents: Sequence[Float[Tensor, "_ D"]], parents: Sequence[int | None]) -> ReasoningTree:
    paths = [LatentPath(latents=x, tip=None, parent=parent) for x, parent in zip(latents, parents, strict=True)]
    return ReasoningTree(question_id="", question="", gold="", task="", paths=paths)
