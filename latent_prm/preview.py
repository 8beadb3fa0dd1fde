"""What a collection would do: its plan, what it takes of memory and disk, and what the first agent reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from rich import box
from rich.table import Table

from latent_prm import screen
from latent_prm.growth import Growth
from latent_prm.memory import bill, held, spell, stored
from latent_prm.options import CollectOptions
from latent_prm.preflight import free_space
from latent_prm.reasoner import Reasoner, batch_size
from latent_prm.tasks import Question

LOOKED_AT = 1000
"""Questions whose prompts are measured."""


def preview(
    questions: Iterable[Question], total: int | None, reasoner: Reasoner, growth: Growth, options: CollectOptions
) -> None:
    """Print it. ``reasoner`` needs no weights.

    Raises ValueError for a question that is too long, as growing it would.
    """
    some = list(islice(questions, LOOKED_AT if total is None else min(total, LOOKED_AT)))
    for question in some:
        reasoner.check_length(question, growth)
    console = screen.console()
    console.print(_agents(growth))
    console.print()
    console.print(_figures(some, total, reasoner, growth, options))
    console.print(f"\nThe first agent reads, for {some[0].id}:\n")
    console.print(reasoner.prompt(some[0], growth), soft_wrap=True)
    console.print("\nNothing was grown (--dry_run).")


def _agents(growth: Growth) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("agent")
    for name in ("latents", "branches", "paths"):
        table.add_column(name, justify="right")
    paths = 1
    for run in growth.runs:
        paths *= run.branches
        table.add_row(run.agent, str(run.latent_steps), str(run.branches), str(paths))
    last = "the judger" if growth.judger is not None else growth.runs[-1].agent
    table.add_row(f"answers by {last}", "", str(growth.answers_per_leaf), str(paths * growth.answers_per_leaf))
    return table


def _figures(
    some: list[Question], total: int | None, reasoner: Reasoner, growth: Growth, options: CollectOptions
) -> Table:
    longest = max(some, key=lambda question: len(question.text))
    each = reasoner.footprint(longest, growth)
    most = options.batch_size or batch_size(reasoner, some, growth)
    together = min(most, options.shard_size, total or most)
    weights = sum(p.nbytes for p in reasoner.model.parameters())
    process = held() if reasoner.device.type == "cpu" else 0
    per_question = stored(growth, reasoner.latent_dim)
    rows = {
        "questions": "without end" if total is None else f"{total:,}",
        "leaves per question": f"{growth.num_paths} and the noise-free path" if growth.noise_free else growth.num_paths,
        "parameters": f"{sum(p.numel() for p in reasoner.model.parameters()):,} ({reasoner.dtype})",
        "positions of the longest": f"{reasoner.positions(longest, growth):,}",
        "questions grown together": together,
        "memory: weights": spell(weights),
        "memory: KV cache": spell(each.cache * together),
        "memory: activations and logits": spell(each.work * together),
        "memory: Python and libraries": spell(process),
        f"memory at its peak{' (at most)' if growth.until_mixed else ''}": spell(
            process + weights + each.total * together
        ),
        "disk": f"{spell(per_question * total) if total else spell(per_question) + ' a question'}, "
        f"{spell(free_space(options.output_dir))} free",
    }
    return bill(rows)
