"""One question → one answer: grow paths, score them, vote, and show the vote.

latent-prm solve "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"
"""

from __future__ import annotations

from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from latent_prm.model import QwenLatentPRM
from latent_prm.options import SolveOptions
from latent_prm.pretrained import pick_device
from latent_prm.reasoner import Reasoner
from latent_prm.selector import Choice, candidates, choose, shares
from latent_prm.tasks import BUILT_IN, Question, load_task
from latent_prm.tree import Answer, ReasoningTree


def main(options: SolveOptions) -> Choice:
    """Answer the question, print how the paths voted, and return the chosen answer.

    Raises ValueError when the PRM reads latents of another width than the reasoner's.
    """
    reasoner = Reasoner.from_pretrained(**options.reasoner())
    model = load_prm(options, reasoner)
    tree = grow(options, reasoner)
    scores = model.score_trees([tree])[0]
    choice = choose(tree, scores)
    print_vote(tree, scores, choice)
    return choice


def load_prm(options: SolveOptions, reasoner: Reasoner) -> QwenLatentPRM:
    """The PRM of the checkpoint. Raises ValueError when it cannot read this reasoner's latents."""
    model = QwenLatentPRM.from_pretrained(options.checkpoint, device=pick_device(options.device))
    if model.latent_dim != reasoner.latent_dim:
        raise ValueError(
            f"The reasoner {options.model_path} thinks in latents {reasoner.latent_dim} wide, but the PRM in "
            f"{options.checkpoint} reads latents {model.latent_dim} wide. Type the --model_path it was trained for, "
            "or another --checkpoint."
        )
    return model


def grow(options: SolveOptions, reasoner: Reasoner) -> ReasoningTree:
    """The question's tree: its noise-free path and the noisy ones that vote. Raises ValueError for an unknown task."""
    if options.task not in BUILT_IN:
        raise ValueError(f"--task is {options.task}, but one question is of one kind: type {', '.join(BUILT_IN)}.")
    task = load_task(options.task)
    question = Question(f"{options.task}-0", options.question, gold="", kind=getattr(task, "kind", "text"))
    return reasoner.grow([question], task, reasoner.growth(**options.growth()))[0]


def print_vote(
    tree: ReasoningTree, scores: Float[Tensor, " P"], choice: Choice, console: Console | None = None
) -> None:
    """Print every answer with its paths, its share of the predicted scores and its best one; the chosen in bold."""
    console = console or Console(highlight=False, markup=False)
    found = candidates(tree, scores)
    weight = shares(found.values, found.scores)
    right = dict(zip(found.values, found.correct, strict=True))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("answer")
    for name in ("paths", "PRM weight", "best score"):
        table.add_column(name, justify="right")
    if known := is_gradable(tree):
        table.add_column("right")
    for value in sorted(weight, key=lambda value: -weight[value]):
        scored = [s for v, s in zip(found.values, found.scores, strict=True) if v == value]
        row = [Text(value or "(none)"), str(len(scored)), f"{100 * weight[value]:.1f} %", f"{max(scored):.3f}"]
        row += [_yes(right[value])] if known else []
        table.add_row(*row, style="bold" if value == choice.value else "")
    console.print(table)
    console.print(Text(f"Answer: {choice.value or '(none)'}", style="bold"))
    for answer in _noise_free_answers(tree):
        graded = f" (right: {_yes(answer.correct)})" if known else ""
        console.print(f"The noise-free path answers: {answer.value or '(none)'}{graded}")


def is_gradable(tree: ReasoningTree) -> bool:
    """Whether an answer's correctness is known: there is a gold, or the answer is checked by carrying it out."""
    return tree.gold != "" or tree.task == "search"


def _noise_free_answers(tree: ReasoningTree) -> list[Answer]:
    return [path.answers[0] for path in tree.paths if path.noise_free and path.answers]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
