"""The built-in reasoner's model card: ``python -m latent_prm.demo.card`` measures it on the test split and writes
its README.md."""

from __future__ import annotations

import json

from latent_prm.demo import reasoner_folder
from latent_prm.problems import SearchProblem
from latent_prm.reasoner import Reasoner
from latent_prm.shards import outcomes
from latent_prm.tasks import load_task
from latent_prm.tree import ReasoningTree

QUESTIONS, PATHS, SEED, TOGETHER = 1500, 16, 0, 100
NOISES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
COLUMNS = {"noise_free": "noise-free", "random_path": "one path", "majority": "majority of 16", "any_path": "any of 16"}
SIZES = {"arithmetic": "operations", "search": "moves"}

CARD = """---
license: apache-2.0
---

# The built-in reasoner of latent-prm

A Qwen3-architecture model of {parameters:.2f} M parameters ({layers} layers, width {width}, one token per word) that
thinks in {steps} latents before it answers two kinds of questions in plain English. It is an ordinary Hugging Face
folder: `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it.

- **arithmetic**: "{arithmetic}" Answer: `{arithmetic_gold}`
- **search**: "{search}" Answer: `{search_gold}`, or any other way that works.

It is wrong often enough to be worth judging, which is what it is for. It knows nothing else.

**How it thinks.** The hidden state after the final norm, times {factor}, is the next input (`latent_prm.latent_map`
in config.json). The number in hand after each operation or move can be read off each latent through the lm_head; once
through, the last one stays.

**Data and recipe.** Both generators (`latent_prm/problems.py`), training split only: the text of a question decides its
split. `{command}` makes these weights again: the same bits on the same machine and versions (two runs in LOG.md).

```json
{recipe}
```

## Accuracy on the test split

{questions} questions of each task, {paths} paths, seed {seed}; per cent answered right. `mixed`: questions with right
and wrong paths. `python -m latent_prm.demo.card` measures it again.

{tables}

Noise is relative to the root mean square of the latent fed back. `latent-prm collect` takes {noise} by default.
"""


def main() -> None:
    """Measure and write."""
    reasoner = Reasoner.from_pretrained("builtin", device="cpu")
    tables = []
    for name in SIZES:
        by_noise = {noise: grow(reasoner, name, noise) for noise in NOISES}
        tables.append(f"### {name}\n\n" + table("noise", by_noise))
        own_noise = reasoner.growth().noise_of(name)
        own = by_noise[own_noise]
        sizes = sorted({size_of(tree) for tree in own})
        groups = {size: [tree for tree in own if size_of(tree) == size] for size in sizes}
        tables.append(f"At noise {own_noise}, by number of {SIZES[name]}:\n\n" + table(SIZES[name], groups))
    (reasoner_folder() / "README.md").write_text(card(reasoner, "\n\n".join(tables)), encoding="utf-8")
    print("\n\n".join(tables))


def size_of(tree: ReasoningTree) -> int:
    """Operations or moves of a tree's question."""
    return SearchProblem.parse(tree.question).count if tree.task == "search" else tree.question.count(" On ")


def grow(reasoner: Reasoner, name: str, noise: float) -> list[ReasoningTree]:
    """Trees of the test split."""
    task = load_task(name)
    questions = task.questions("test", SEED, QUESTIONS)
    growth = reasoner.growth(num_paths=PATHS, noise=noise, seed=SEED)
    batches = [questions[i : i + TOGETHER] for i in range(0, QUESTIONS, TOGETHER)]
    return [tree for batch in batches for tree in reasoner.grow(batch, task, growth)]


def table(first: str, groups: dict[float, list[ReasoningTree]] | dict[int, list[ReasoningTree]]) -> str:
    """A row per group, in Markdown."""
    rows = [f"| {first} | questions | {' | '.join(COLUMNS.values())} | mixed |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, trees in groups.items():
        found = outcomes(trees)
        shares = [found["accuracy"][column] for column in COLUMNS] + [found["mixed_share"]]
        rows.append(f"| {name} | {len(trees)} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(rows)


def card(reasoner: Reasoner, tables: str) -> str:
    """The model card's text."""
    config = reasoner.model.config
    examples = {name: load_task(name).questions("test", SEED, 1)[0] for name in SIZES}
    return CARD.format(
        parameters=sum(p.numel() for p in reasoner.model.parameters()) / 1e6,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        steps=reasoner.growth().latent_steps,
        factor=config.latent_prm["latent_map"]["factor"],
        arithmetic=examples["arithmetic"].text,
        arithmetic_gold=examples["arithmetic"].gold,
        search=examples["search"].text,
        search_gold=examples["search"].gold,
        command="python -m latent_prm.demo.recipe",
        recipe=json.dumps(config.latent_prm["recipe"], indent=2),
        questions=QUESTIONS,
        paths=PATHS,
        seed=SEED,
        tables=tables,
        noise=" and ".join(f"{reasoner.growth().noise_of(name)} for {name}" for name in SIZES),
    )


if __name__ == "__main__":
    main()
