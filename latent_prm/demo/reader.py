"""How the built-in backbone for PRMs was made: ``python -m latent_prm.demo.reader`` makes one again.

A PRM starts from a language model that can already read and reckon: Qwen3-0.6B, as a rule. Next to the built-in
reasoner that part is played by the *reader*: the reasoner's own layers and some more on top, taught on the training
split, where every true intermediate value is known. First it learns the facts: where each single step leads from any
number. Then it follows the reasoner's thoughts, which hold several numbers at once more often than not, and says after
each latent which numbers are truly next, whether the thought is sound so far, and of an answer written behind the
latents whether it is right. It has seen no tree and no outcome; what it says is not kept, only what it has come to see.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import trange
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from latent_prm.demo import reasoner_folder
from latent_prm.demo.recipe import (
    NUMBERS,
    Lesson,
    Recipe,
    Term,
    build_optimizers,
    descend,
    draw_problems,
    imagine,
    missed,
    rate,
    read_on,
    think,
)

FACTS = 16
"""Questions of an update that go on teaching facts when the reasoner's thoughts are followed."""
CHECKED = 24
"""Search questions of an update to which many answers are made up."""
OUT_OF_THE_BLUE = 0.15
"""Share of strays in half of the answers that are made up; the other half is right."""


@dataclass(frozen=True, kw_only=True)
class ReaderRecipe:
    """What the shipped reader was made with."""

    output_dir: str = str(Path(__file__).parent / "reader")
    """Where the model folder is written."""
    more_layers: int = 3
    """Layers on top of the reasoner's: whoever checks a step must redo it and then compare."""
    seed: int = 5
    """Fixes the new layers."""
    threads: int = 1
    """Another number adds up in another order."""
    terms: tuple[Term, ...] = (
        Term(imagined=450, questions=64, paths=8, noise=0.3, learning_rate=0.02, warmup=30, fall=3.0, seed=9),
        Term(own=1500, questions=72, paths=2, noise=0.4, learning_rate=0.015, warmup=30, fall=1.7, seed=10),
        Term(own=480, questions=96, paths=2, noise=0.3, learning_rate=0.015, warmup=30, fall=1.4, seed=11),
    )
    """Facts, then thoughts and answers, then these again, and many answers to one question beside them."""
    stories: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (2, 3))
    """Of the questions of each term, how many of how many are stories."""
    answers: tuple[int, ...] = (0, 0, 16)
    """Answers, made up without a thought, to each of some search questions of an update."""


def deepen(reasoner: Qwen3ForCausalLM, more: int) -> Qwen3ForCausalLM:
    """The reasoner with fresh layers on top, which begin by changing little."""
    layers = reasoner.config.num_hidden_layers + more
    settings = {name: value for name, value in reasoner.config.to_dict().items() if name != "latent_prm"}
    settings.update(num_hidden_layers=layers, layer_types=["full_attention"] * layers)
    config = type(reasoner.config)(**settings)
    reader = Qwen3ForCausalLM(config)
    reader.load_state_dict(reasoner.state_dict(), strict=False)
    with torch.no_grad():
        for name, weight in reader.named_parameters():
            fresh = name.startswith(tuple(f"model.layers.{layer}." for layer in range(layers - more, layers)))
            if fresh and name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.1)
    return reader


# --- the truth ------------------------------------------------------------------------------------------------------


def judge(lesson: Lesson, thought: Int[Tensor, "B K T"]) -> Bool[Tensor, "B K T"]:
    """Of every latent: whether the thought is sound so far.

    Each step must have been allowed, and the goal within reach from where it leads.
    """
    B, K, T = thought.shape
    allowed = lesson.allowed(*lesson.stands(thought)).gather(2, thought.flatten(1)[..., None])[..., 0].view(B, K, T)
    hopeful = lesson.hopeful[torch.arange(B)[:, None, None], torch.arange(1, T + 1), thought]
    return (allowed & hopeful).cumprod(2).bool()


def truly_next(lesson: Lesson, thought: Int[Tensor, "B K T"]) -> Bool[Tensor, "B K T V"]:
    """The numbers that should come next, before the thought and after each of its latents but the last.

    A story has one true course, whatever was thought; in a search it goes on from where the thought stands.
    """
    B, K, T = thought.shape
    value, course = lesson.start, []
    for t in range(T):
        value = lesson.onward[torch.arange(B), t, value, 0].clamp_min(0)
        course.append(value)
    true = F.one_hot(torch.stack(course, 1), NUMBERS).bool()[:, None].expand(B, K, T, NUMBERS)
    found = lesson.allowed(*lesson.stands(thought)).view(B, K, T, NUMBERS)
    return torch.where(lesson.lists[:, None, None, None], found, true)


def write_answers(
    lesson: Lesson, thought: Int[Tensor, "B K T"], made_up: Int[Tensor, "B K T"], generator: torch.Generator
) -> tuple[Int[Tensor, "B K T"], Bool[Tensor, "B K T"], Bool[Tensor, "B K T"]]:
    """An answer to each path, -1 beyond its end: half of them say what the path thought, half what was ``made_up``.

    Beside it, whether the answer is right up to each of its numbers, and which of its places are filled.
    """
    B, K, T = thought.shape
    own = torch.rand(B, K, 1, generator=generator) < 0.5
    numbers = torch.where(own, thought, made_up)
    lists = lesson.lists[:, None, None]
    length = torch.where(lesson.lists, lesson.count, 1)[:, None, None]
    filled = (torch.arange(T) < length).expand(B, K, T)
    final = lesson.hopeful[torch.arange(B)[:, None], T, numbers[..., -1]]
    right = torch.where(lists, judge(lesson, numbers), final[..., None])
    return torch.where(filled, torch.where(lists, numbers, numbers[..., -1:]), -1), right, filled


# --- teaching -------------------------------------------------------------------------------------------------------


def teach(
    reasoner: Qwen3ForCausalLM,
    reader: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    term: Term,
    stories: tuple[int, int],
    answers: int,
    name: str,
) -> dict[str, float]:
    """One term; returns what `follow` says of its last tenth, on average."""
    rng, generator = random.Random(term.seed), torch.Generator().manual_seed(term.seed)
    verdict = nn.Linear(reader.config.hidden_size, 1)
    optimizers = build_optimizers(reader, term)
    optimizers.append(torch.optim.AdamW(verdict.parameters(), lr=term.learning_rate / 10))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(term, i)) for optimizer in optimizers]
    bar, said = trange(term.updates, desc=name, mininterval=10), []
    for update in bar:
        lesson = Lesson.of(draw_problems(rng, term.questions, *stories), tokenizer, Recipe().latent_steps)
        if update < term.imagined:
            loss, found = facts(reasoner, reader, lesson, term, generator), {}
        else:
            loss, found = follow(reasoner, reader, verdict, lesson, term, generator)
            few = lesson.part(FACTS)
            loss = loss + 0.3 * facts(reasoner, reader, few, replace(term, paths=8), generator)
            if answers:
                searches = Lesson.of(draw_problems(rng, CHECKED, 0, 1), tokenizer, Recipe().latent_steps)
                more, told = check(reader, verdict, searches, answers, generator)
                loss, found = loss + more, {**found, "checked": told}
        descend(loss, reader, optimizers, schedules)
        said.append({"loss": loss.item(), **found})
        if update % 50 == 49:
            bar.set_postfix({key: f"{value:.3f}" for key, value in mean(said[-50:]).items()})
    return mean(said[-max(1, term.updates // 10) :])


def mean(said: list[dict[str, float]]) -> dict[str, float]:
    """Each number's mean."""
    return {key: sum(found[key] for found in said) / len(said) for key in said[-1]}


def facts(
    reasoner: Qwen3ForCausalLM, reader: Qwen3ForCausalLM, lesson: Lesson, term: Term, generator: torch.Generator
) -> Float[Tensor, ""]:
    """The loss on where single steps lead, from numbers that are made up and blurred; no step sees another."""
    latents, thought = imagine(reasoner, lesson, Recipe(), term, generator)
    B, K, T, _ = latents.shape
    size = latents.pow(2).mean(-1, keepdim=True).sqrt() * term.noise * torch.rand(B, K, 1, 1, generator=generator)
    _, after = read_on(reader, lesson, latents + torch.randn(latents.shape, generator=generator) * size, alone=K)
    steps = torch.arange(1, T).expand(B, K, T - 1).flatten(1)
    return missed(after[:, :, :-1].flatten(1, 2), lesson.allowed(steps, thought[..., :-1].flatten(1))).mean()


def follow(
    reasoner: Qwen3ForCausalLM,
    reader: Qwen3ForCausalLM,
    verdict: nn.Linear,
    lesson: Lesson,
    term: Term,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss on the reasoner's thoughts about one lesson, and how much the reader told rightly.

    ``value``: of the stories, the share whose last number it knows; ``sound``: of the latents; ``answer``: of answers.
    """
    latents, thought = think(reasoner, lesson, Recipe(), term, generator)
    B, K, T = thought.shape
    _, right_way = imagine(reasoner, lesson, Recipe(stray=0.0), term, generator)
    _, astray = imagine(reasoner, lesson, Recipe(stray=OUT_OF_THE_BLUE), term, generator)
    made_up = torch.where(torch.rand(B, K, 1, generator=generator) < 0.5, right_way, astray)
    answers, right, filled = write_answers(lesson, thought, made_up, generator)
    paths = torch.cat([latents, reader.model.embed_tokens(answers.clamp_min(0))], 2)
    with last_states(reader) as seen:
        first, after = read_on(reader, lesson, paths)
    logits = verdict(seen[0][:, -2 * K * T :]).view(B, K, 2 * T)
    before = torch.cat([first[:, None, None].expand(-1, K, 1, -1), after[:, :, : T - 1]], 2)
    true = truly_next(lesson, thought)
    sound = judge(lesson, thought)
    soundness = F.binary_cross_entropy_with_logits(logits[..., :T], sound.float())
    checking = F.binary_cross_entropy_with_logits(logits[..., T:][filled], right[filled].float())
    known = before[~lesson.lists][:, :, -1, :NUMBERS].argmax(-1)
    told = {
        "value": true[~lesson.lists][:, :, -1].gather(2, known[..., None]).float().mean().item(),
        "sound": ((logits[..., :T] > 0) == sound).float().mean().item(),
        "answer": ((logits[..., T:] > 0) == right)[filled].float().mean().item(),
    }
    return missed(before, true).mean() + 0.5 * soundness + checking, told


def check(
    reader: Qwen3ForCausalLM, verdict: nn.Linear, lesson: Lesson, answers: int, generator: torch.Generator
) -> tuple[Float[Tensor, ""], float]:
    """The loss on so many answers to each search question, which stand where they would behind a thought; and the share
    that is told rightly.
    """
    numbers = near_misses(lesson, answers, generator)
    T = numbers.shape[2]
    right, filled = judge(lesson, numbers), (torch.arange(T) < lesson.count[:, None, None]).expand_as(numbers)
    with last_states(reader) as seen:
        read_on(reader, lesson, reader.model.embed_tokens(numbers), gap=T)
    logits = verdict(seen[0][:, -answers * T :]).view(len(numbers), answers, T)
    loss = F.binary_cross_entropy_with_logits(logits[filled], right[filled].float())
    return loss, ((logits > 0) == right)[filled].float().mean().item()


@contextmanager
def last_states(reader: Qwen3ForCausalLM) -> Iterator[list[Tensor]]:
    """What the reader's last layer says [B, S, D] of whatever it reads in here, before any head."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(output)

    keep = reader.model.norm.register_forward_hook(look)
    try:
        yield seen
    finally:
        keep.remove()


def near_misses(lesson: Lesson, answers: int, generator: torch.Generator) -> Int[Tensor, "B K T"]:
    """Ways through a search of which about a third leads to the goal: others take a move that is legal but hopeless, or
    write down a number beside the true one.
    """
    B, T = len(lesson.count), lesson.onward.shape[1]
    shape, row = (B, answers), torch.arange(B)[:, None]
    careless = 0.5 * (torch.rand(shape, generator=generator) < 0.6)  # of the others, no step goes wrong
    value, ways = lesson.start[:, None].expand(shape), []
    for t in range(T):
        options = lesson.onward[row, t, value]
        legal = F.one_hot(options.clamp_min(0) + 1, NUMBERS + 1).mul((options >= 0)[..., None]).any(-2)[..., 1:]
        hopeful = lesson.allowed(torch.full(shape, t), value)
        wild = (torch.rand(shape, generator=generator) < careless) & legal.any(-1)
        chances = torch.where(wild[..., None], legal, hopeful) * torch.rand(*shape, NUMBERS, generator=generator)
        value = chances.argmax(-1)
        slip = torch.tensor([-10, -2, -1, 1, 2, 10])[torch.randint(6, shape, generator=generator)]
        slips = (torch.rand(shape, generator=generator) < 0.3 * careless) & (t < lesson.count[:, None])
        value = torch.where(slips, (value + slip).clamp(0, NUMBERS - 1), value)
        ways.append(value)
    return torch.stack(ways, 2)


def main(recipe: ReaderRecipe) -> None:
    """Make the reader and write its folder."""
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    reasoner = Qwen3ForCausalLM.from_pretrained(reasoner_folder(), dtype=torch.float32).requires_grad_(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reasoner_folder())
    reader = deepen(reasoner, recipe.more_layers)
    for number, course in enumerate(zip(recipe.terms, recipe.stories, recipe.answers, strict=True), 1):
        told = teach(reasoner, reader, tokenizer, *course, f"term {number} of {len(recipe.terms)}")
        print(f"Term {number} ended with " + ", ".join(f"{key} {value:.3f}" for key, value in told.items()))
        reader.save_pretrained(recipe.output_dir)
        tokenizer.save_pretrained(recipe.output_dir)
        print(f"Written: {recipe.output_dir}")


if __name__ == "__main__":
    main(tyro.cli(ReaderRecipe))
