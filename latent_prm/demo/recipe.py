"""How the built-in reasoner was made: ``python -m latent_prm.demo.recipe`` makes it again, the same bits on the same
machine and versions.

A reasoner that thinks in latents is taught step by step. Every latent must decode (through the lm_head) to the number
in hand, so a step is a small lesson of its own: from this number, on this day of the story, to the next. First the
numbers in hand are drawn at random and stand as word embeddings (``imagined``: many steps to a question, one forward
pass). Then they are the model's own latents, disturbed by noise, and the lesson goes on from wherever the model's own
thought stands, so that it learns to live with its slips; the answer is read off the thought. In the search problems
any move is right from which the target can still be reached, which the model must come to see by itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import trange
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from latent_prm.problems import LARGEST, ArithmeticProblem, SearchProblem, draw_arithmetic, draw_search
from latent_prm.tasks import split_of

NUMBERS = LARGEST + 1
PERIODS = (2, 3, 5, 7, 10, 11, 20, 25, 50, 100, 200, 400)
"""Word embeddings of numbers start with waves of these periods, in which adding is turning: it saves training."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A run of updates with a learning rate that rises and falls."""

    imagined: int = 0
    """Updates on imagined thoughts; they come first."""
    own: int = 0
    """Updates on the model's own thoughts."""
    questions: int = 64
    """Questions to an update, two of search to one of arithmetic."""
    paths: int = 3
    """Thoughts to a question; of the model's own, the first has no noise."""
    noise: float = 0.0
    """Most noise on the model's own thoughts, relative to their root mean square."""
    learning_rate: float
    """Of Muon, for the matrices; embeddings and norms get a tenth of it from AdamW."""
    warmup: int
    """Updates until the learning rate stands."""
    fall: float
    """How steeply it falls: over the last 1/fall of the term."""
    seed: int
    """Fixes questions and noise."""

    @property
    def updates(self) -> int:
        """All of them."""
        return self.imagined + self.own


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the shipped reasoner was made with."""

    output_dir: str = str(Path(__file__).parent / "reasoner")
    """Where the model folder is written."""
    hidden: int = 128
    """Width of the model."""
    layers: int = 3
    """Depth of the model; few, so that it is wrong often enough to be worth judging."""
    latent_steps: int = 6
    """Latents to a thought: as many as the longest story has days."""
    factor: float = 0.5
    """The next input is this factor times the hidden state."""
    arithmetic_noise: float = 0.2
    """The noise that ``latent-prm collect`` takes by default: the one at which a majority of 16 is right most often, on
    the validation split."""
    search_noise: float = 0.4
    """The same for search, where noise costs less."""
    alone: int = 2
    """Of the imagined thoughts, those whose steps do not see each other: the facts are learnt faster so."""
    stray: float = 0.5
    """Share of imagined numbers that come out of the blue."""
    seed: int = 1
    """Fixes the untrained weights."""
    terms: tuple[Term, ...] = (
        Term(imagined=800, own=1000, noise=0.6, learning_rate=0.02, warmup=50, fall=1.7, seed=1),
        Term(own=500, questions=96, paths=1, learning_rate=0.012, warmup=30, fall=1.5, seed=77),
    )
    """The second one, without noise, is what lets a majority of noisy paths be as good as the noise-free one."""


# --- the pupil -----------------------------------------------------------------------------------------------------


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: the numbers 0 to 99 first, as tokens 0 to 99."""
    rng, words, splitter = random.Random(0), set(), pre_tokenizers.Whitespace()
    for _ in range(3000):
        for text in (draw_arithmetic(rng).text, draw_search(rng)[0].text):
            words.update(word for word, _ in splitter.pre_tokenize_str(text))
    numbers = [str(number) for number in range(NUMBERS)]
    vocabulary = [*numbers, "<pad>", "<eos>", "<unk>", *sorted(words - set(numbers))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained Qwen3 whose config says how it thinks."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=recipe.hidden // 4,
        intermediate_size=3 * recipe.hidden,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.get_vocab()["<pad>"],
        eos_token_id=tokenizer.get_vocab()["<eos>"],
        bos_token_id=None,
    )
    config.update(
        {
            "latent_prm": {
                "latent_map": {"factor": recipe.factor},
                "latent_steps": recipe.latent_steps,
                "noise": {"arithmetic": recipe.arithmetic_noise, "search": recipe.search_noise},
                "max_new_tokens": recipe.latent_steps,
                "recipe": {name: value for name, value in asdict(recipe).items() if name != "output_dir"},
            }
        }
    )
    model = Qwen3ForCausalLM(config)
    turns = 2 * math.pi * torch.arange(float(NUMBERS))[:, None] / torch.tensor(PERIODS)
    with torch.no_grad():
        model.model.embed_tokens.weight[:NUMBERS, : 2 * len(PERIODS)] = torch.cat([turns.cos(), turns.sin()], 1) / 10
    return model


# --- the lesson ----------------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """Questions, padded on the left, and where each step may lead. Options are the moves; a story has one a day."""

    ids: Int[Tensor, "B S"]
    real: Bool[Tensor, "B S"]
    start: Int[Tensor, " B"]
    count: Int[Tensor, " B"]
    """Operations or moves; after them the number stays as it is."""
    lists: Bool[Tensor, " B"]
    """Whether the answer lists every number (search) or only the last."""
    onward: Int[Tensor, "B T V O"]
    """The number that option O leads to from the number V at step T, -1 where it leads nowhere."""
    hopeful: Bool[Tensor, "B T+1 V"]
    """Whether the goal can still be reached from the number V before step T."""

    @classmethod
    def of(
        cls, problems: Sequence[ArithmeticProblem | SearchProblem], tokenizer: PreTrainedTokenizerFast, steps: int
    ) -> Lesson:
        """The lesson that these problems make."""
        read = tokenizer([problem.text for problem in problems], return_tensors="pt", padding=True)
        count = [len(p.operations) if isinstance(p, ArithmeticProblem) else p.count for p in problems]
        goal = torch.tensor([p.values[-1] if isinstance(p, ArithmeticProblem) else p.target for p in problems])
        onward = torch.full((len(problems), steps, NUMBERS, 3), -1)
        for b, problem in enumerate(problems):
            if isinstance(problem, ArithmeticProblem):
                for t, operation in enumerate(problem.operations):
                    onward[b, t, :, 0] = _carried(*operation).clamp(0, LARGEST)
            else:
                for option, move in enumerate(problem.moves):
                    values = _carried(*move)
                    onward[b, : problem.count, :, option] = torch.where((values < 0) | (values > LARGEST), -1, values)
            onward[b, count[b] :, :, 0] = torch.arange(NUMBERS)
        hopeful = torch.zeros(len(problems), steps + 1, NUMBERS, dtype=torch.bool)
        hopeful[torch.arange(len(problems)), steps, goal] = True
        for t in reversed(range(steps)):
            onto = hopeful[:, t + 1].gather(1, onward[:, t].clamp_min(0).flatten(1)).view_as(onward[:, t])
            hopeful[:, t] = (onto & (onward[:, t] >= 0)).any(-1)
        return cls(
            ids=read["input_ids"],
            real=read["attention_mask"].bool(),
            start=torch.tensor([problem.start for problem in problems]),
            count=torch.tensor(count),
            lists=torch.tensor([isinstance(problem, SearchProblem) for problem in problems]),
            onward=onward,
            hopeful=hopeful,
        )

    def part(self, count: int) -> Lesson:
        """The first so many of its questions."""
        return Lesson(**{name: tensor[:count] for name, tensor in vars(self).items()})

    def allowed(self, step: Int[Tensor, "B K"], value: Int[Tensor, "B K"]) -> Bool[Tensor, "B K V"]:
        """The numbers that may come next: those with hope, else any that a move leads to, else the number itself."""
        row = torch.arange(len(step))[:, None]
        options = self.onward[row, step, value]
        legal = options >= 0
        hope = self.hopeful[row[..., None], step[..., None] + 1, options.clamp_min(0)] & legal
        options = torch.where(torch.where(hope.any(-1, keepdim=True), hope, legal), options, -1)
        options[..., 0] = torch.where((options < 0).all(-1), value, options[..., 0])
        return F.one_hot(options + 1, NUMBERS + 1).any(-2)[..., 1:]

    def stands(self, thought: Int[Tensor, "B K T"]) -> tuple[Int[Tensor, "B KT"], Int[Tensor, "B KT"]]:
        """For every step of a thought, which step it is and the number in hand before it, as `allowed` takes them."""
        B, K, T = thought.shape
        before = torch.cat([self.start[:, None, None].expand(-1, K, 1), thought[..., :-1]], 2)
        return torch.arange(T).expand(B, K, T).flatten(1), before.flatten(1)

    def answers(self, thought: Int[Tensor, "B K T"], eos: int, pad: int) -> Int[Tensor, "B K T"]:
        """What the thought says: every number up to the count (search), or the last; then the end, then padding."""
        at = torch.arange(thought.shape[-1])
        said = torch.where(self.lists[:, None, None], thought, thought[..., -1:])
        length = torch.where(self.lists, self.count, 1)[:, None, None]
        return torch.where(at < length, said, torch.where(at == length, eos, pad))


def _carried(sign: str, number: int) -> Int[Tensor, " V"]:
    values = torch.arange(NUMBERS)
    return {"+": values + number, "-": values - number, "*": values * number, "/": values // number}[sign]


def draw_problems(
    rng: random.Random, count: int, stories: int = 1, of: int = 3
) -> list[ArithmeticProblem | SearchProblem]:
    """Problems of the training split: so many ``stories`` in every few (``of``), the rest is search, learnt later."""
    problems: list[ArithmeticProblem | SearchProblem] = []
    while len(problems) < count:
        problem = draw_arithmetic(rng) if len(problems) % of < stories else draw_search(rng)[0]
        if split_of(problem.text) == "train":
            problems.append(problem)
    return problems


# --- teaching ------------------------------------------------------------------------------------------------------


def read_on(
    model: Qwen3ForCausalLM, lesson: Lesson, paths: Float[Tensor, "B K L D"], alone: int = 0, gap: int = 0
) -> tuple[Float[Tensor, "B V"], Float[Tensor, "B K L V"]]:
    """Logits after each question and after every input of its K paths, which see the question and themselves only.

    Of the first ``alone`` paths, an input does not even see the path's earlier ones: every step is a lesson of its own.
    The paths begin ``gap`` places behind the question.
    """
    B, K, L, D = paths.shape
    S = lesson.ids.shape[1]
    place = (lesson.real.cumsum(1) - 1).clamp_min(0)
    steps = (place[:, -1:] + 1 + gap + torch.arange(L)).repeat(1, K)
    mask = torch.eye(S + K * L, dtype=torch.bool).repeat(B, 1, 1)
    mask[:, :S, :S] |= lesson.real[:, None] & torch.ones(S, S, dtype=torch.bool).tril()
    mask[:, S:, :S] = lesson.real[:, None]
    within = torch.ones(K, L, L).tril()
    within[:alone] = torch.eye(L)
    mask[:, S:, S:] |= torch.block_diag(*within).bool()
    embedded = torch.cat([model.model.embed_tokens(lesson.ids), paths.reshape(B, K * L, D)], 1)
    hidden = model.model(
        inputs_embeds=embedded,
        attention_mask=mask[:, None],
        position_ids=torch.cat([place, steps], 1),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, S - 1]), model.lm_head(hidden[:, S:]).view(B, K, L, -1)


def missed(logits: Float[Tensor, "*B V"], allowed: Bool[Tensor, "*B W"]) -> Float[Tensor, "*B"]:
    """-log of the probability given to all allowed numbers together: which of them is the model's own choice."""
    return -logits.log_softmax(-1)[..., :NUMBERS].masked_fill(~allowed, -1e9).logsumexp(-1)


def imagine(
    model: Qwen3ForCausalLM, lesson: Lesson, recipe: Recipe, term: Term, generator: torch.Generator
) -> tuple[Float[Tensor, "B K T D"], Int[Tensor, "B K T"]]:
    """Thoughts made up of word embeddings: allowed steps, and every now and then a number out of the blue."""
    shape = (len(lesson.ids), term.paths)
    value, thought = lesson.start[:, None].expand(shape), []
    for t in range(recipe.latent_steps):
        chances = lesson.allowed(torch.full(shape, t), value).float() * torch.rand(*shape, NUMBERS, generator=generator)
        stray = torch.rand(shape, generator=generator) < recipe.stray
        value = torch.where(stray, torch.randint(NUMBERS, shape, generator=generator), chances.argmax(-1))
        thought.append(value)
    numbers = torch.stack(thought, -1)
    return 4 * model.model.embed_tokens(numbers), numbers


@torch.no_grad()
def think(
    model: Qwen3ForCausalLM, lesson: Lesson, recipe: Recipe, term: Term, generator: torch.Generator
) -> tuple[Float[Tensor, "B K T D"], Int[Tensor, "B K T"]]:
    """The model's own thoughts as fed, noise and all, and the numbers that they say."""
    B, K = len(lesson.ids), term.paths
    mask = lesson.real.long()
    place = (mask.cumsum(1) - 1).clamp_min(0)
    out = model.model(input_ids=lesson.ids, attention_mask=mask, position_ids=place, use_cache=True)
    cache, hidden = out.past_key_values, out.last_hidden_state[:, -1].repeat_interleave(K, 0)
    cache.batch_repeat_interleave(K)
    mask, place = mask.repeat_interleave(K, 0), place[:, -1:].repeat_interleave(K, 0)
    noise = torch.rand(B, K, generator=generator) * term.noise
    noise[:, 0] = 0
    fed = []
    for _ in range(recipe.latent_steps):
        latent = hidden * recipe.factor
        size = latent.pow(2).mean(-1, keepdim=True).sqrt() * noise.view(-1, 1)
        fed.append(latent + torch.randn(latent.shape, generator=generator) * size)
        mask, place = F.pad(mask, (0, 1), value=1), place + 1
        out = model.model(
            inputs_embeds=fed[-1][:, None],
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]
    latents = torch.stack(fed, 1).view(B, K, recipe.latent_steps, -1)
    return latents, model.lm_head(latents)[..., :NUMBERS].argmax(-1)


def lesson_loss(
    model: Qwen3ForCausalLM,
    lesson: Lesson,
    latents: Float[Tensor, "B K T D"],
    thought: Int[Tensor, "B K T"],
    answers: Int[Tensor, "B K T"],
    pad: int,
    alone: int = 0,
) -> Float[Tensor, ""]:
    """Every step from where the thought stands, and the answer that the thought says."""
    K, T = thought.shape[1:]
    paths = torch.cat([latents, model.model.embed_tokens(answers[..., :-1])], 2)
    after_question, after = read_on(model, lesson, paths, alone)
    before = torch.cat([after_question[:, None, None].expand(-1, K, 1, -1), after[:, :, : T - 1]], 2).flatten(1, 2)
    steps_loss = missed(before, lesson.allowed(*lesson.stands(thought))).mean()
    spoken, said = after[:, alone:, T - 1 :].flatten(0, 2), answers[:, alone:].flatten()
    return steps_loss + F.cross_entropy(spoken, said, ignore_index=pad)


def train(recipe: Recipe) -> Qwen3ForCausalLM:
    """Teach a reasoner and write its folder."""
    torch.set_num_threads(2)  # another number adds up in another order
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    for number, term in enumerate(recipe.terms, 1):
        teach(model, tokenizer, recipe, term, f"term {number} of {len(recipe.terms)}")
    model.save_pretrained(recipe.output_dir)
    tokenizer.save_pretrained(recipe.output_dir)
    return model


def teach(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, term: Term, name: str) -> None:
    """One term. It starts with fresh optimizers and chance, so that it depends on the weights and its seed alone."""
    rng, generator = random.Random(term.seed), torch.Generator().manual_seed(term.seed)
    eos, pad = (tokenizer.get_vocab()[word] for word in ("<eos>", "<pad>"))
    optimizers = build_optimizers(model, term)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(term, i)) for optimizer in optimizers]
    bar = trange(term.updates, desc=name)
    for update in bar:
        lesson = Lesson.of(draw_problems(rng, term.questions), tokenizer, recipe.latent_steps)
        imagined = update < term.imagined
        latents, thought = (imagine if imagined else think)(model, lesson, recipe, term, generator)
        answers = lesson.answers(thought, eos, pad)
        loss = lesson_loss(model, lesson, latents, thought, answers, pad, recipe.alone if imagined else 0)
        descend(loss, model, optimizers, schedules)
        if update % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def build_optimizers(model: Qwen3ForCausalLM, term: Term) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=term.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=term.learning_rate / 10, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def descend(
    loss: Float[Tensor, ""],
    model: Qwen3ForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    schedules: Sequence[torch.optim.lr_scheduler.LambdaLR],
) -> None:
    """One update, its gradient clipped."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def rate(term: Term, update: int) -> float:
    """The share of the learning rate at an update: up, level, and down to 2 %."""
    return min(1.0, (update + 1) / term.warmup, 0.02 + term.fall * (1 - update / term.updates))


if __name__ == "__main__":
    import tyro

    from latent_prm.demo import card

    found = tyro.cli(Recipe)
    train(found)
    if found.output_dir == Recipe.output_dir:
        card.main()
