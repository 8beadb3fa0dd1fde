"""How the built-in backbone for PRMs was made: ``python -m latent_prm.demo.reader`` makes one again.

A PRM starts from a language model that can already read and reckon: Qwen3-0.6B, as a rule. Next to the built-in
reasoner that part is played by the *reader*: the reasoner's own layers and some more on top, taught on the training
split to follow the reasoner's thoughts. After every latent it says whether the thought is sound so far (true
intermediate values are known here), and which numbers may come next. It has seen no tree and no answer; what it says
is not kept, only what it has come to see.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
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
    Lesson,
    Recipe,
    Term,
    build_optimizers,
    descend,
    draw_problems,
    missed,
    rate,
    read_on,
    think,
)


@dataclass(frozen=True, kw_only=True)
class ReaderRecipe:
    """What the shipped reader was made with."""

    output_dir: str = str(Path(__file__).parent / "reader")
    """Where the model folder is written."""
    more_layers: int = 2
    """Layers on top of the reasoner's: whoever checks a step must redo it and then compare."""
    seed: int = 5
    """Fixes the new layers."""
    whole: Term = field(
        default_factory=lambda: Term(own=900, paths=4, noise=0.6, learning_rate=0.02, warmup=50, fall=1.7, seed=9)
    )
    """First it says of each latent whether the thought is sound so far."""
    steps: Term = field(
        default_factory=lambda: Term(own=1000, paths=4, noise=0.5, learning_rate=0.015, warmup=30, fall=1.7, seed=10)
    )
    """Then also whether the last step by itself was right."""


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


def judge(lesson: Lesson, thought: Int[Tensor, "B K T"]) -> Bool[Tensor, "B K T 2"]:
    """Of every latent: whether the thought is sound so far (each step right), and whether the last step was right.

    A step is right when it was allowed and the goal can be reached from where it leads.
    """
    B, K, T = thought.shape
    allowed = lesson.allowed(*lesson.stands(thought)).gather(2, thought.flatten(1)[..., None])[..., 0].view(B, K, T)
    hopeful = lesson.hopeful[torch.arange(B)[:, None, None], torch.arange(1, T + 1), thought]
    return torch.stack([(allowed & hopeful).cumprod(2).bool(), allowed], 3)


def teach(
    reasoner: Qwen3ForCausalLM,
    reader: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    term: Term,
    verdicts: int,
) -> float:
    """One term with the first one or two verdicts of `judge`; returns the share told rightly over its last tenth."""
    own = Recipe()
    rng, generator = random.Random(term.seed), torch.Generator().manual_seed(term.seed)
    verdict = nn.Linear(reader.config.hidden_size, verdicts)
    optimizers = build_optimizers(reader, term)
    optimizers.append(torch.optim.AdamW(verdict.parameters(), lr=term.learning_rate / 10))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(term, i)) for optimizer in optimizers]
    bar, right = trange(term.updates, desc=f"reader, {verdicts} verdicts"), []
    for update in bar:
        lesson = Lesson.of(draw_problems(rng, term.questions), tokenizer, own.latent_steps)
        latents, thought = think(reasoner, lesson, own, term, generator)
        loss, told = follow(reader, verdict, lesson, latents, thought)
        descend(loss, reader, optimizers, schedules)
        right.append(told)
        if update % 50 == 49:
            bar.set_postfix(loss=f"{loss.item():.3f}", told=f"{sum(right[-50:]) / 50:.3f}")
    last = right[-max(1, term.updates // 10) :]
    return sum(last) / len(last)


def follow(
    reader: Qwen3ForCausalLM,
    verdict: nn.Linear,
    lesson: Lesson,
    latents: Float[Tensor, "B K T D"],
    thought: Int[Tensor, "B K T"],
) -> tuple[Float[Tensor, ""], float]:
    """The loss on one lesson, and the share of verdicts that are right."""
    B, K, T = thought.shape
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(output)

    keep = reader.model.norm.register_forward_hook(look)
    _, after = read_on(reader, lesson, latents)
    keep.remove()
    logits = verdict(seen[0][:, -K * T :]).view(B, K, T, -1)
    truth = judge(lesson, thought)[..., : logits.shape[-1]]
    steps = torch.arange(1, T).expand(B, K, T - 1).flatten(1)
    onward = missed(after[:, :, :-1].flatten(1, 2), lesson.allowed(steps, thought[..., :-1].flatten(1)))
    told = ((logits > 0) == truth).float().mean().item()
    return F.binary_cross_entropy_with_logits(logits, truth.float()) + 0.3 * onward.mean(), told


def main(recipe: ReaderRecipe) -> None:
    """Make the reader and write its folder."""
    torch.set_num_threads(2)  # another number adds up in another order
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    reasoner = Qwen3ForCausalLM.from_pretrained(reasoner_folder(), dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reasoner_folder())
    reader = deepen(reasoner, recipe.more_layers)
    for verdicts, term in enumerate((recipe.whole, recipe.steps), 1):
        told = teach(reasoner, reader, tokenizer, term, verdicts)
        print(f"Told rightly at the end of the term with {verdicts} of 2 verdicts: {told:.1%}")
    reader.save_pretrained(recipe.output_dir)
    tokenizer.save_pretrained(recipe.output_dir)
    print(f"Written: {recipe.output_dir}")


if __name__ == "__main__":
    main(tyro.cli(ReaderRecipe))
