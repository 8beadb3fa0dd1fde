"""A frozen language model that thinks in latents: it grows trees of latent paths and decodes their answers.

This room hides how agents follow each other, how paths branch, and how a batch is made to fit into memory. Everything
is batched over questions and paths; a path's randomness comes from the seed, its question's id and its own number,
never from its place in a batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from latent_prm.feedback import Dropout, LatentMap, SoftMixture, own_settings
from latent_prm.growth import NOISE, NOISE_FREE, Chance, Growth, Row, Steer, branch, carry_on, draw, plan, quiet
from latent_prm.memory import MOST_TOGETHER, Footprint, budget, footprint
from latent_prm.options import BUILTIN, Align, Diversity
from latent_prm.pretrained import fetch, fetch_weights, find_folder, loading, pick_device
from latent_prm.prompts import Pipeline, load_pipeline, render
from latent_prm.tasks import OwnTask, Question, Task, as_question, load_task
from latent_prm.thought import CompiledStep, Thought, decode, likeliest_or_drawn, try_out
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

log = logging.getLogger(__name__)


class Reasoner:
    """A frozen causal LM with its tokenizer and latent map. Make one with :meth:`from_pretrained`."""

    spent: Counter[str]
    """What its growing has cost so far, in ``prompt_tokens``, ``latents`` and ``answer_tokens``."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str, align: Align | None = None, compiled: bool = False
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.device: torch.device = model.device
        self.spent = Counter()
        if model.device.type != "meta":  # else there are no weights
            with torch.no_grad():
                self.latent_map = LatentMap(model, align)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        if self.pad >= len(model.get_input_embeddings().weight):  # a token was added, but no row for it; it is masked
            self.pad = 0
        stop = model.generation_config.eos_token_id
        self.stop = {tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}
        self.config = model.config.get_text_config()
        self.step = CompiledStep(model) if compiled else None
        self.most_together: int | None = None
        """Questions that fitted into memory when more did not."""

    @classmethod
    def from_pretrained(
        cls,
        model_path: str = BUILTIN,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        align: Align | None = None,
        compiled: bool | None = False,
        weights: bool = True,
    ) -> Reasoner:
        """Load ``"builtin"``, a Hugging Face folder or a hub name (at a ``revision``). No remote code is run.

        ``align`` says how hidden states become inputs, as :class:`LatentMap` has it; None: the model's own map where
        its config names one, else ``ridge``. ``compiled`` steps run on a static cache: worth it on a GPU, for hundreds
        of questions (None: on a GPU). Without ``weights`` it can plan a growth, but not grow.

        Raises ValueError when there is no such model, it cannot be had, it cannot think (`try_out`), or the device does
        not exist.
        """
        where, folder = pick_device(device), find_folder(model_path)
        if dtype == "auto":  # the built-in one is so small that exactness costs it a tenth of its time
            dtype = "float64" if model_path == BUILTIN else "bfloat16" if where.type == "cuda" else "float32"
        with loading(model_path):
            at: dict[str, Any] = {"trust_remote_code": False} | ({"revision": revision} if revision else {})
            tokenizer = fetch(AutoTokenizer, folder, **at)
            if weights:
                model: Any = fetch_weights(AutoModelForCausalLM, folder, dtype=getattr(torch, dtype), **at)
                model = model.to(where)
            else:
                config = fetch(AutoConfig, folder, **at)
                with torch.device("meta"):
                    model = AutoModelForCausalLM.from_config(
                        config, dtype=getattr(torch, dtype), trust_remote_code=False
                    )
        if model_path != BUILTIN:
            try_out(model)
        on_gpu = where.type == "cuda"
        reasoner = cls(model, tokenizer, model_path, align, on_gpu if compiled is None else compiled)
        reasoner.device = where
        return reasoner

    @property
    def latent_dim(self) -> int:
        """D, the width of a latent."""
        return self.config.hidden_size

    @property
    def dtype(self) -> str:
        """The arithmetic it computes in, by name."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def revision(self) -> str | None:
        """The hub's commit of these weights; None for a folder."""
        return getattr(self.model.config, "_commit_hash", None)

    def digest(self) -> str:
        """16 hex digits that tell these weights and this latent map from others, whatever the folder is called."""
        found = hashlib.sha256(self.latent_map.kind.encode())
        for name, weights in self.model.named_parameters():  # the first numbers of each: all would take many seconds
            some = weights.detach().flatten()[:64].to("cpu", torch.bfloat16)
            found.update(name.encode() + some.view(torch.int16).numpy().tobytes())
        return found.hexdigest()[:16]

    def describe(self) -> dict[str, str | None]:
        """What tells trees of this reasoner from those of another: its weights, the hub's commit, the arithmetic."""
        return {"weights": self.digest(), "revision": self.revision, "dtype": self.dtype}

    def growth(
        self,
        *,
        pipeline: Pipeline | str = "solo",
        num_paths: int | None = None,
        branches: tuple[int, ...] | None = None,
        latent_steps: int | None = None,
        answers_per_leaf: int = 1,
        diversity_strategy: Diversity = "noise",
        noise: float | dict[str, float] | None = None,
        soft_temperature: float | None = None,
        dropout: float | None = None,
        noise_free: bool = True,
        keep_hidden: bool = False,
        until_mixed: bool = False,
        think: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        seed: int = 42,
    ) -> Growth:
        """The settings of a growth, named as the options of ``latent-prm collect``.

        What is left out is as the reasoner's config says, else 16 paths, 10 latents, 0.1 of noise and 256 tokens.
        Raises ValueError for settings that contradict each other.
        """
        own = {"latent_steps": 10, "noise": NOISE, "max_new_tokens": 256, **own_settings(self.model)}
        pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
        steps = own["latent_steps"] if latent_steps is None else latent_steps
        runs = plan(pipeline, steps, num_paths, branches)
        for run in runs:
            if not run.latent_steps:  # it must not pass for one that thinks
                log.warning(
                    "%s has latent_steps 0: an ordinary text agent that reads, but thinks no latents.", run.agent
                )
        if think and not self.tokenizer.chat_template:
            log.warning("--think changes nothing: %s has no chat template, so it has no thinking mode.", self.name)
        growth = Growth(
            pipeline=pipeline.name,
            runs=runs,
            judger=pipeline.judger,
            answers_per_leaf=answers_per_leaf,
            diversity_strategy=diversity_strategy,
            noise=own["noise"] if noise is None else noise,
            soft_temperature=1.0 if soft_temperature is None else soft_temperature,
            dropout=0.2 if dropout is None else dropout,
            noise_free=noise_free,
            keep_hidden=keep_hidden,
            until_mixed=until_mixed,
            think=think,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=own["max_new_tokens"] if max_new_tokens is None else max_new_tokens,
            seed=seed,
        )
        if growth.num_paths > 1 and not growth.differs:
            log.warning("All %d paths will be alike: there is neither diversity nor a temperature.", growth.num_paths)
        return growth

    # --- trees ------------------------------------------------------------------------------------------------------

    @overload
    def grow(
        self,
        questions: str | Question,
        task: Task | str | None = None,
        growth: Growth | None = None,
        steer: Steer | None = None,
        roots: range | None = None,
        **settings: Any,
    ) -> ReasoningTree: ...

    @overload
    def grow(
        self,
        questions: Sequence[str | Question],
        task: Task | str | None = None,
        growth: Growth | None = None,
        steer: Steer | None = None,
        roots: range | None = None,
        **settings: Any,
    ) -> list[ReasoningTree]: ...

    @torch.no_grad()
    def grow(
        self,
        questions: str | Question | Sequence[str | Question],
        task: Task | str | None = None,
        growth: Growth | None = None,
        steer: Steer | None = None,
        roots: range | None = None,
        **settings: Any,
    ) -> ReasoningTree | list[ReasoningTree]:
        """One tree per question, or the tree of a single one: the noise-free path and ``num_paths`` others, answered,
        graded and backed up.

        >>> from latent_prm import Reasoner
        >>> reasoner = Reasoner.from_pretrained("builtin")
        >>> question = "Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"
        >>> tree = reasoner.grow(question, num_paths=4)
        >>> tree.task, len(tree.paths), tree.paths[0].noise_free
        ('search', 5, True)
        >>> [len(tree.paths) for tree in reasoner.grow([question, "What is 2 + 3?"], num_paths=2, noise_free=False)]
        [2, 2]

        ``task`` (or the name of one) says how a question is put, and graded; left out, the one that it came from, and
        of a text what `tasks.as_question` says. Where right and wrong are not known, no path has a ``prm_score``.
        The growth is as ``growth`` says, or as ``settings`` do, which are those of :meth:`growth`.

        A tree's paths stand run by run, in each run the noise-free one first. With ``until_mixed``, a question whose
        first half of the paths all came out alike stops there, and any other gets as many again as it was to have
        (its prompt is read again for them).
        ``steer`` says after every run but the last which of the noisy paths go on, and how often each; those that do
        not stay in the tree as they are, without a score. ``roots`` are the numbers of the first run's paths that are
        to be grown (else all, from 0 on; the noise-free path comes with number 0, or with none): a path is the same
        whatever others are grown, so that a tree can be grown in rounds and joined by :func:`beside`.
        When the memory is full, fewer questions, then fewer paths, are grown at a time.

        Raises ValueError for a question with more positions than the model has, when a latent is not finite, when
        the memory is too small for one path, for ``until_mixed`` together with ``steer`` or ``roots``, and for
        ``growth`` together with ``settings``.
        """
        if settings and growth is not None:
            raise ValueError(
                f"growth says how to grow, so {', '.join(settings)} would be ignored: give one of the two."
            )
        growth = growth or self.growth(**settings)
        task = load_task(task) if isinstance(task, str) else task
        some = [questions] if isinstance(questions, (str, Question)) else questions
        put = [as_question(one, task) if isinstance(one, str) else one for one in some]
        trees = self._trees(put, task or OwnTask(), growth, steer, roots)
        return trees[0] if isinstance(questions, (str, Question)) else trees

    def _trees(
        self, questions: Sequence[Question], task: Task, growth: Growth, steer: Steer | None, roots: range | None
    ) -> list[ReasoningTree]:
        if growth.until_mixed and (steer is not None or roots is not None):
            raise ValueError("--until_mixed decides by itself how many paths are grown. Leave it out when steering.")
        for question in questions:
            self.check_length(question, growth)
        branches = growth.runs[0].branches
        half = branches // 2 if growth.until_mixed else branches
        first = range(half) if roots is None else roots
        noise_free = growth.noise_free and (not first or 0 in first)
        grown = self._fitting(questions, task, growth, first, noise_free, steer)
        trees = [_tree(question, paths) for question, paths in zip(questions, grown, strict=True)]
        for tree in trees:
            back_up(tree)
        if growth.until_mixed:
            undecided = [i for i, tree in enumerate(trees) if tree.mixed]
            more = self._fitting([questions[i] for i in undecided], task, growth, range(half, half + branches), False)
            for i, paths in zip(undecided, more, strict=True):
                trees[i].paths = beside(trees[i].paths, paths)
                back_up(trees[i])
        return trees

    def _fitting(
        self,
        questions: Sequence[Question],
        task: Task,
        growth: Growth,
        roots: range,
        noise_free: bool,
        steer: Steer | None = None,
    ) -> list[list[LatentPath]]:
        """`_grow`, in pieces as large as the memory allows."""
        most = 1 if questions and self._feels(questions, growth) else self.most_together or len(questions)
        if len(questions) > most:
            pieces = [questions[start : start + most] for start in range(0, len(questions), most)]
            return [paths for piece in pieces for paths in self._fitting(piece, task, growth, roots, noise_free, steer)]
        if not questions:
            return []
        try:
            return self._grow(questions, task, growth, roots, noise_free, steer)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
                raise
            reason = str(error).partition("\n")[0]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(questions) > 1:
            self.most_together = len(questions) // 2
            log.warning(
                "The memory is too small for %d questions at once: trying %d.", len(questions), self.most_together
            )
            return self._fitting(questions, task, growth, roots, noise_free, steer)
        if len(roots) > 1 and steer is None:  # who steers must see all paths of a question together
            log.warning("The memory is too small for %d paths at once: trying half of them.", len(roots))
            halves = (roots[: len(roots) // 2], roots[len(roots) // 2 :])
            first, second = (
                self._fitting(questions, task, growth, part, noise_free and i == 0)[0] for i, part in enumerate(halves)
            )
            return [beside(first, second)]
        paths = "one path" if len(roots) == 1 else f"{len(roots)} paths steered together"
        raise ValueError(
            f"The memory is too small for {paths} ({reason}). Type a lower --max_new_tokens or --latent_steps, "
            "--dtype bfloat16, or a smaller --model_path."
        )

    def _feels(self, questions: Sequence[Question], growth: Growth) -> bool:
        """Whether batch-mates could be felt: their padding pushes a position out of a sliding window, or their length
        decides the rotation of all (LongRoPE)."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            return self._capacity(questions, growth) > rope["original_max_position_embeddings"]
        window: int | None = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if window is None or not (kinds is None or any("sliding" in kind for kind in kinds)):
            return False
        return self._capacity(questions, growth) >= window

    def _grow(
        self,
        questions: Sequence[Question],
        task: Task,
        growth: Growth,
        roots: range,
        noise_free: bool,
        steer: Steer | None,
    ) -> list[list[LatentPath]]:
        """The paths of each question that begin with these numbers, answered and graded."""
        grown: list[list[LatentPath]] = [[] for _ in questions]
        rows = [Row(q) for q in range(len(questions))]
        thought = self._begin(questions, growth)
        spent: Counter[str] = Counter()
        chance: Chance | None = None
        for index, run in enumerate(growth.runs):
            if run.prompt is not None:
                asked = [questions[row.question] for row in rows]
                spent["prompt_tokens"] += self._read(thought, run.prompt, asked, growth)
            parents, rows = branch(rows, range(run.branches) if index else roots, noise_free and not index)
            thought.select(parents)
            chance = self._chance(questions, rows, growth, index)
            if run.latent_steps:
                latents, hidden, tips = self._think(thought, chance, growth)
                spent["latents"] += latents.shape[0] * latents.shape[1]
                for i, row in enumerate(rows):
                    path = LatentPath(
                        latents=latents[i],
                        tip=tips[i],
                        parent=row.path,
                        agent=run.agent,
                        noise_free=row.number == NOISE_FREE,
                        hidden=hidden[i] if growth.keep_hidden else None,
                    )
                    grown[row.question].append(path)
                    rows[i] = replace(row, path=len(grown[row.question]) - 1)
                if steer is not None and index + 1 < len(growth.runs):
                    trees = [_tree(question, paths) for question, paths in zip(questions, grown, strict=True)]
                    parents, rows = carry_on(rows, steer, trees, growth, index)
                    thought.select(parents)
        if growth.judger is not None:
            asked = [questions[row.question] for row in rows]
            spent["prompt_tokens"] += self._read(thought, growth.judger, asked, growth)
        assert chance is not None  # there is at least one run
        spent["answer_tokens"] += self._answer(thought, rows, chance, questions, task, growth, grown)
        self.spent.update(spent)
        return grown

    def _begin(self, questions: Sequence[Question], growth: Growth) -> Thought:
        """A row for every question, of which nothing has been read."""
        room = self._capacity(questions, growth)
        hooked = growth.diversity_strategy in ("dropout", "hybrid")  # hooks that come and go cannot be compiled
        return Thought(self.model, len(questions), room, None if hooked else self.step)

    def _capacity(self, questions: Sequence[Question], growth: Growth) -> int:
        """Positions of these questions side by side, each prompt padded to the longest one of them."""
        longest = [max(column) for column in zip(*(self.prompt_lengths(q, growth) for q in questions), strict=True)]
        return sum(longest) + growth.latent_steps + growth.max_new_tokens

    def _chance(self, questions: Sequence[Question], rows: Sequence[Row], growth: Growth, run: int) -> Chance:
        """What `growth.draw` gives for these rows, on the device."""
        numbers: dict[int, list[int]] = {}
        for row in rows:  # the rows of a question stand together
            assert row.number is not None
            numbers.setdefault(row.question, []).append(row.number)
        parts = [draw(questions[q].id, growth, run, wanted, self.latent_dim) for q, wanted in numbers.items()]
        names = ("noise", "keys", "disturbed", "answers")
        return Chance(**{name: torch.cat([getattr(p, name) for p in parts]).to(self.device) for name in names})

    def _answer(
        self,
        thought: Thought,
        rows: list[Row],
        chance: Chance,
        questions: Sequence[Question],
        task: Task,
        growth: Growth,
        grown: list[list[LatentPath]],
    ) -> int:
        """Decode and grade the answers of the leaves: M of each, one of the noise-free one. Returns the tokens."""
        leaves = [
            (i, m)
            for i, row in enumerate(rows)
            for m in range(growth.answers_per_leaf if row.number != NOISE_FREE else 1)
        ]
        index, number = [i for i, _ in leaves], [m for _, m in leaves]
        thought.select(index)
        choose = likeliest_or_drawn(
            chance.answers[index, number], chance.disturbed[index] == 0, growth.temperature, growth.top_p
        )
        tokens, truncated, surety = decode(thought, growth.max_new_tokens, self.stop, choose)
        texts = [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        for (i, _), text, cut, sure in zip(leaves, texts, truncated, surety, strict=True):
            row = rows[i]
            grade = task.grade(questions[row.question], text)
            answer = Answer(text=text, value=grade.value, correct=grade.correct, truncated=cut, log_probability=sure)
            assert row.path is not None
            grown[row.question][row.path].answers.append(answer)
        return sum(map(len, tokens)) + truncated.count(False)  # the token that ended an answer was decoded too

    @torch.no_grad()
    def foresee(
        self,
        questions: Sequence[Question],
        task: Task,
        growth: Growth,
        trees: Sequence[ReasoningTree],
        paths: Sequence[Sequence[int]],
    ) -> tuple[list[list[bool]], int]:
        """Whether these paths of each tree, carried on to the end without noise, answer right; and the positions read.

        The paths must have equally long chains. What they have thought so far is fed again.
        """
        thought, spent, fed = self._begin(questions, growth), 0, 0
        rows = list(range(len(questions)))
        chains: Tensor | None = None
        for run in growth.runs:
            if run.prompt is not None:
                spent += self._read(thought, run.prompt, [questions[row] for row in rows], growth)
            if chains is None:
                rows = [row for row in rows for _ in paths[row]]
                thought.select(rows)
                chains = torch.stack([trees[q].chain_latents(i) for q, some in enumerate(paths) for i in some])
                chains = chains.to(self.device, self.model.dtype)
            past = chains[:, fed : fed + run.latent_steps]
            for latent in past.unbind(1):
                thought.feed(latent)
            fed += past.shape[1]
            if ahead := run.latent_steps - past.shape[1]:
                self._think(thought, quiet(len(rows), ahead, self.latent_dim, self.device), growth)
            spent += len(rows) * run.latent_steps
        if growth.judger is not None:
            spent += self._read(thought, growth.judger, [questions[row] for row in rows], growth)
        tokens, truncated, _ = decode(thought, growth.max_new_tokens, self.stop, lambda logits, *_: logits.argmax(-1))
        right: list[list[bool]] = [[] for _ in questions]
        for row, text in zip(rows, self.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            right[row].append(task.grade(questions[row], text.strip()).correct)
        return right, spent + sum(map(len, tokens)) + truncated.count(False)

    # --- one batch --------------------------------------------------------------------------------------------------

    def _tokens(self, question: Question, prompt: str, growth: Growth, first: bool) -> list[int]:
        text = render(self.tokenizer, prompt, question, growth.think, later=not first)
        # A chat template has already written the special tokens; a later prompt begins no new text.
        return self.tokenizer(text, add_special_tokens=first and not self.tokenizer.chat_template)["input_ids"]

    def prompt(self, question: Question, growth: Growth, agent: int = 0) -> str:
        """What an agent reads, the judger being the one after the last."""
        prompt = growth.runs[agent].prompt if agent < len(growth.runs) else growth.judger
        return render(self.tokenizer, prompt or "", question, growth.think, later=agent > 0)

    def prompt_lengths(self, question: Question, growth: Growth) -> list[int]:
        """The length of each prompt that is read on the way, the judger's last."""
        prompts = [run.prompt for run in growth.runs if run.prompt is not None]
        prompts += [growth.judger] if growth.judger is not None else []
        return [len(self._tokens(question, prompt, growth, i == 0)) for i, prompt in enumerate(prompts)]

    def positions(self, question: Question, growth: Growth) -> int:
        """Positions from the first prompt to the end of the longest answer."""
        return sum(self.prompt_lengths(question, growth)) + growth.latent_steps + growth.max_new_tokens

    def footprint(self, question: Question, growth: Growth) -> Footprint:
        """What growing one question takes of the memory, beside the weights."""
        return footprint(self.config, self.model.dtype.itemsize, growth, self.prompt_lengths(question, growth))

    def check_length(self, question: Question, growth: Growth) -> None:
        """Raises ValueError when the question needs more positions than the model has."""
        limit = getattr(self.config, "max_position_embeddings", None)
        needed = self.positions(question, growth) if limit else 0
        if limit and needed > limit:
            read = sum(self.prompt_lengths(question, growth))
            raise ValueError(
                f"Question {question.id!r} needs {needed} positions ({read} to read, {growth.latent_steps} "
                f"latents, {growth.max_new_tokens} to answer), but the reasoner has {limit}. "
                "Lower --max_new_tokens or --latent_steps, or leave the question out."
            )

    def _read(self, thought: Thought, prompt: str, questions: Sequence[Question], growth: Growth) -> int:
        """Each row reads the prompt with its own question. Returns the tokens read."""
        first = not thought.has_read
        found = {question: self._tokens(question, prompt, growth, first) for question in dict.fromkeys(questions)}
        thought.read([found[question] for question in questions], self.pad)
        return sum(len(found[question]) for question in questions)

    def _think(
        self, thought: Thought, chance: Chance, growth: Growth
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
        """Feed latents back, each disturbed as the growth says.

        Latents as fed, the hidden states they were made of (aligned, without noise) and tips come back in float32 on
        the CPU. Raises ValueError when one is not finite.
        """
        soft = SoftMixture(self.model) if growth.diversity_strategy in ("temperature", "hybrid") else None
        dropout = Dropout(self.model) if growth.diversity_strategy in ("dropout", "hybrid") else None
        meant, fed = [], []
        for step, noise in enumerate(chance.noise.unbind(1)):
            meant.append(self.latent_map(thought.hidden))
            latent = meant[-1]
            if soft is not None:
                latent = soft(thought.hidden, chance.keys, chance.disturbed, step, growth.soft_temperature)
            latent = latent + noise * latent.pow(2).mean(-1, keepdim=True).sqrt()
            # Stored as it was fed, in float32: after both roundings.
            latent = latent.float().to(self.model.dtype)
            fed.append(latent.float())
            rates = chance.disturbed * growth.dropout
            with dropout.at(chance.keys, rates, step) if dropout is not None else nullcontext():
                thought.feed(latent)
        latents, hidden = torch.stack(fed, 1).cpu(), torch.stack(meant, 1).float().cpu()
        tips = self.latent_map(thought.hidden).float().cpu()
        if not (latents.isfinite().all() and tips.isfinite().all()):
            way_out = "Type --dtype float32, or another --model_path."
            raise ValueError(f"The reasoner's latents are not finite in {self.dtype}. {way_out}")
        return latents, hidden, tips


def batch_size(reasoner: Reasoner, questions: Sequence[Question], growth: Growth, room: int | None = None) -> int:
    """How many of these questions to grow together: as many as fit were all as long as the longest.

    ``room`` are the bytes that they may take; None: what the reasoner's own device has.
    """
    longest = max(questions, key=lambda question: len(question.text))
    each = reasoner.footprint(longest, growth).total
    return max(1, min(MOST_TOGETHER, (budget(reasoner.device) if room is None else room) // each))


def _tree(question: Question, paths: list[LatentPath]) -> ReasoningTree:
    return ReasoningTree(
        question_id=question.id,
        question=question.text,
        gold=question.gold,
        task=question.task,
        paths=paths,
        steps=question.steps,
    )


def back_up(tree: ReasoningTree) -> None:
    """As the tree does it; but where right and wrong are not known no path has a label, which is not the label 0."""
    tree.back_up()
    for path in tree.paths if not tree.graded else []:
        path.prm_score = path.num_correct = path.num_answers = None


def beside(paths: list[LatentPath], others: list[LatentPath]) -> list[LatentPath]:
    """Two sets of paths of one question as one, each path under its own parent still."""
    for path in others:
        path.parent = None if path.parent is None else path.parent + len(paths)
    return paths + others
