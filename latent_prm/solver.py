"""One question → one answer: grow paths (steered, if wished), score them, choose, and say how sure that is.

latent-prm solve "Ann has 12 apples. On Monday she buys 5. On Tuesday she gives away 3. How many apples does Ann have?"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latent_prm import confidence as calibrations
from latent_prm import kinship, preflight, screen
from latent_prm.confidence import Confidence, abstains
from latent_prm.doubt import lower_bounds
from latent_prm.growth import Growth, Steer, every_latent
from latent_prm.model import QwenLatentPRM, checked_folder
from latent_prm.options import SolveOptions
from latent_prm.pretrained import find_device, pick_device
from latent_prm.reasoner import Reasoner
from latent_prm.scorers import PrmScorer
from latent_prm.selector import NEEDS_LOWER, Candidates, Choice, How, choose_among, shares
from latent_prm.shards import TEST_DATA
from latent_prm.steering import Grown, Guide, check_name, from_name, keeping
from latent_prm.tasks import BUILT_IN, Question, Task, load_task
from latent_prm.tree import Answer, ReasoningTree


def main(options: SolveOptions) -> Choice:
    """Answer the question, print how the paths voted and how sure the answer is, and return the chosen answer.

    Raises ValueError when the PRM reads latents of another width than the reasoner's, for an unknown task or steering,
    and for --abstain without a calibration.
    """
    find_device(options.device)
    put(options)
    if options.steer is not None:
        check_name(options.steer)
    preflight.check_reasoner(options.model_path, options.revision, options.checkpoint)
    confidence = load_confidence(options)
    reasoner = Reasoner.from_pretrained(**options.reasoner())
    model = load_prm(options, reasoner)
    confidence = believed(options, confidence, model, reasoner)
    grown = grow(options, reasoner, model, confidence)
    choice = decide(options, grown, model, confidence)
    console = screen.console()
    print_vote(grown, choice, console)
    console.print(Text(said(grown, choice, options.abstain), style="bold"))
    for line in remarks(options, choice, confidence):
        console.print(line, soft_wrap=True)
    return choice


# --- loading --------------------------------------------------------------------------------------------------------


def load_confidence(options: SolveOptions) -> Confidence | None:
    """What lies beside the checkpoint's weights as calibration.json; None: nothing.

    Raises ValueError when --abstain asks for a probability that nobody has calibrated, or the file is foreign.
    """
    folder = checked_folder(options.checkpoint)
    found = calibrations.load(folder) if (folder / calibrations.FILE).is_file() else None
    how = rule(options, found)
    if options.abstain and (found is None or how not in found.answers):
        raise ValueError(
            f"--abstain is {options.abstain}, but {folder} has no calibrated probability for answers chosen by {how}. "
            f"Calibrate it first: {_how_to_calibrate(options)}"
        )
    return found


def rule(options: SolveOptions, confidence: Confidence | None) -> How:
    """The rule to choose by, typed or what auto stands for."""
    if options.select != "auto":
        return options.select
    return calibrations.BASE if confidence is None else confidence.picked.how


def load_prm(options: SolveOptions, reasoner: Reasoner) -> QwenLatentPRM:
    """The PRM of the checkpoint. Raises ValueError when it cannot read this reasoner's latents."""
    model = QwenLatentPRM.from_pretrained(options.checkpoint, device=pick_device(options.device))
    of, way_out = f"The latents of the reasoner {options.model_path}", "Type the --model_path it was trained for"
    preflight.same_width(reasoner.latent_dim, model.thought_dim, of, options.checkpoint, way_out)
    return model


def believed(
    options: SolveOptions, confidence: Confidence | None, model: QwenLatentPRM, reasoner: Reasoner
) -> Confidence | None:
    """The calibration, unless it is known to be of another reasoner than this one. Warns of a PRM of another one.

    Raises ValueError when --abstain asks for the probability that is lost with it.
    """
    found = kinship.believed(options.checkpoint, model, confidence, kinship.grower(reasoner))
    if options.abstain and found is None:
        raise ValueError(
            f"--abstain is {options.abstain}, but {options.checkpoint} has no probability calibrated for "
            f"{options.model_path}. Calibrate it first: {_how_to_calibrate(options)}"
        )
    return found


# --- answering ------------------------------------------------------------------------------------------------------


def put(options: SolveOptions) -> tuple[Question, Task]:
    """The question as a task puts it. Raises ValueError for an unknown task, and for a question that is not of it."""
    if options.task not in BUILT_IN:
        raise ValueError(f"--task is {options.task}, but one question is of one kind: type {', '.join(BUILT_IN)}.")
    task = load_task(options.task)
    question = Question(f"{options.task}-0", options.question, gold="", kind=getattr(task, "kind", "text"))
    task.grade(question, "")  # what could not be graded is better refused before it is thought about
    return question, task


Watch = Callable[[ReasoningTree, Float[np.ndarray, " P"]], None]
"""Called with a tree that is still growing, and what each of its paths is worth so far."""


def grow(
    options: SolveOptions,
    reasoner: Reasoner,
    model: QwenLatentPRM,
    confidence: Confidence | None = None,
    watch: Watch | None = None,
) -> Grown:
    """The question's tree, its noise-free path and the noisy ones that vote, with the PRM's score of every path.

    Whoever is to ``watch`` sees the tree after every latent of a lone agent, or after every agent; whatever it raises
    ends the growth. Raises ValueError for an unknown task or steering, and when somebody watches what is steered.
    """
    question, task = put(options)
    scorer = PrmScorer(model, reasoner)
    guide, settings = find_guide(options, scorer, confidence), options.growth()
    if guide is not None:
        if watch is not None:
            raise ValueError(f"--steer is {options.steer}, but only what nobody steers can be watched: leave it out.")
        if options.num_paths is None and options.branches is None:
            settings["num_paths"] = guide.num_paths
        return guide.grow(reasoner, [question], task, reasoner.growth(**settings))[0]
    growth, steer = keeping(reasoner.growth(**settings), scorer), None
    if watch is not None:
        growth, steer = every_latent(growth), _shown(model, watch)
    tree = reasoner.grow([question], task, growth, steer=steer)[0]
    votes = np.zeros(len(tree.paths), dtype=int)
    votes[tree.offered()] = 1
    return Grown(tree, model.score_trees([tree])[0].double().numpy(), votes)


def _shown(model: QwenLatentPRM, watch: Watch) -> Steer:
    """Steers nothing, and shows the tree."""

    def steer(
        trees: Sequence[ReasoningTree], frontiers: Sequence[Sequence[int]], growth: Growth, run: int
    ) -> list[list[int]]:
        for tree, scores in zip(trees, model.score_trees(trees), strict=True):
            watch(tree, scores.double().numpy())
        return [[1] * len(frontier) for frontier in frontiers]

    return steer


def find_guide(options: SolveOptions, scorer: PrmScorer, confidence: Confidence | None = None) -> Guide | None:
    """Who steers the growth; None: nobody. Raises ValueError for an unknown name."""
    if options.steer is None:
        return None
    settings: dict[str, Any] = {} if options.confidence is None else {"confidence": options.confidence}
    if options.steer == "anytime" and confidence is not None:
        settings["settled"] = confidence.settled(rule(options, confidence))
    return from_name(options.steer, scorer, **settings)


def decide(options: SolveOptions, grown: Grown, model: QwenLatentPRM, confidence: Confidence | None) -> Choice:
    """The answer that the paths give together; its index is the tree's. Raises ValueError when no path gave one."""
    found, how, lower = grown.ballots(), rule(options, confidence), None
    if how in NEEDS_LOWER:
        lower = lower_bounds(model, [grown.tree])[0][found.paths]
    if confidence is None:
        choice = choose_among(found.values, found.scores, how, lower)
    else:
        choice = confidence.choose(found.values, found.scores, how, lower)
    return choice._replace(index=found.paths[choice.index])


# --- showing --------------------------------------------------------------------------------------------------------


def print_vote(grown: Grown, choice: Choice, console: Console | None = None) -> None:
    """Print every answer with its paths, its share of the predicted scores and its best one; the chosen in bold."""
    console = console or screen.console()
    tree, found = grown.tree, grown.ballots()
    weight = shares(found.values, found.scores)
    right = dict(zip(found.values, found.correct, strict=True))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("answer")
    for name in ("paths", "PRM weight", "best score"):
        table.add_column(name, justify="right")
    if known := is_gradable(tree):
        table.add_column("right")
    for value in sorted(weight, key=lambda value: -weight[value]):
        scored = _scored(found, value)
        row = [Text(value or "(none)"), str(len(scored)), f"{100 * weight[value]:.1f} %", f"{max(scored):.3f}"]
        row += [_yes(right[value])] if known else []
        table.add_row(*row, style="bold" if value == choice.value else "")
    console.print(table)
    for answer in _noise_free_answers(tree):
        graded = f" (right: {_yes(answer.correct)})" if known else ""
        console.print(f"The noise-free path answers: {answer.value or '(none)'}{graded}")


def said(grown: Grown, choice: Choice, abstain: float = 0.0) -> str:
    """The answer in a sentence, with its probability: where it is not calibrated, the mean score of its paths."""
    if choice.value == "":
        return "I do not know: no path gave an answer."
    if abstain and abstains(choice, abstain):
        return f"I do not know ({choice.value} is right with probability {_probability(choice.probability)} only)"
    scores = _scored(grown.ballots(), choice.value)
    guessed = sum(scores) / len(scores) if choice.probability is None else choice.probability
    return f"I think {choice.value}, right with probability {_probability(guessed)}"


def remarks(options: SolveOptions, choice: Choice, confidence: Confidence | None) -> list[str]:
    """What a reader has to know of the answer, a line each: by which rule, and what its probability is worth."""
    if choice.value == "":
        return []
    lines = []
    if options.select != "auto":
        lines.append(f"Chosen by {options.select}.")
    elif confidence is not None:
        lines.append(f"Chosen by {confidence.picked}.")
    if choice.probability is None:
        lines.append(f"This probability is not calibrated. Calibrate it: {_how_to_calibrate(options)}")
        return lines
    if options.steer is not None:
        lines.append("This probability was calibrated on paths that nobody steered.")
    if confidence is not None and confidence.tasks and options.task not in confidence.tasks:
        lines.append(f"This probability was calibrated on questions of other tasks: {', '.join(confidence.tasks)}.")
    return lines


def is_gradable(tree: ReasoningTree) -> bool:
    """Whether an answer's correctness is known: there is a gold, or the answer is checked by carrying it out."""
    return tree.gold != "" or tree.task == "search"


def _how_to_calibrate(options: SolveOptions) -> str:
    measured, apart = TEST_DATA, "prm_data_validation"
    return f"latent-prm evaluate --checkpoint {options.checkpoint} --data_dir {measured} --calibrate_on {apart}"


def _scored(found: Candidates, value: str) -> list[float]:
    return [score for other, score in zip(found.values, found.scores, strict=True) if other == value]


def _noise_free_answers(tree: ReasoningTree) -> list[Answer]:
    return [path.answers[0] for path in tree.paths if path.noise_free and path.answers]


def _probability(p: float | None) -> str:
    return f"{min(max(p or 0.0, 0.01), 0.99):.2f}"  # nothing is certain


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
