"""Exact truth about every latent of the built-in tasks, and whether a PRM's step scores find the first error.

Every latent of the built-in reasoner decodes to the number in hand, so that each step of a thought can be checked: the
latent counterpart of ProcessBench (arXiv 2412.06559). This room hides how a latent is read, what makes a step right,
and how scores become a claim about where a path first went wrong.

A second truth is the outcome. The two differ: on the built-in reasoner a thought whose numbers hold an error often ends
right all the same (the latent says more than the nearest number, and a later latent may mend it), so that a PRM which
learned from outcomes is not wrong to forgive such a step. `Agreement` says how far they agree. From which latent on a
path can no longer end right is not known, and not guessed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latent_prm.probes import Scorer, Scores
from latent_prm.problems import LARGEST, ArithmeticProblem, SearchProblem
from latent_prm.tree import ReasoningTree

if TYPE_CHECKING:
    from latent_prm.model import QwenLatentPRM
    from latent_prm.reasoner import Reasoner

TASKS = ("arithmetic", "search")
"""Whose steps can be checked."""

Steps = list[list[Float[np.ndarray, " _"]]]
"""One score after each latent of a chain, of some chains of every tree; higher: likelier right so far."""
Soundness = list[list[Bool[np.ndarray, " _"]]]
"""Whether each latent of these chains is right, and all before it."""

Rule = Literal["below", "drop"]
THRESHOLDS = 400
"""Tried when one is picked: so many quantiles of what is compared with it."""


# --- the truth ------------------------------------------------------------------------------------------------------


def said(reasoner: Reasoner, tree: ReasoningTree) -> list[Int[np.ndarray, " _"]]:
    """Of every path: the number, 0..99, that each latent of its chain decodes to through the lm_head, root to tip.

    Latents are read as they were fed, noise and all. Raises ValueError for a reasoner whose latents do not decode so.
    """
    return [chances.argmax(1).numpy() for chances in _chances(reasoner, tree)]


def surety(reasoner: Reasoner, tree: ReasoningTree) -> list[Float[np.ndarray, " _"]]:
    """Of every path: the probability, among all numbers, of the one that each latent decodes to. Raises as `said`."""
    return [chances.amax(1).numpy() for chances in _chances(reasoner, tree)]


def sure_thoughts(reasoner: Reasoner) -> Scorer:
    """A rival that needs no training, but the reasoner: the mean log of `surety` along a chain. Raises as `said`.

    What the multi-path extension of LatentMAS calls confidence, of thoughts instead of words.
    """

    def score(trees: Sequence[ReasoningTree]) -> Scores:
        return [np.array([np.log(sure).mean() for sure in surety(reasoner, tree)]) for tree in trees]

    return score


def sound(tree: ReasoningTree, said: Sequence[Int[np.ndarray, " _"]]) -> list[Bool[np.ndarray, " _"]]:
    """Of every path: whether each latent of its chain says a right number, and all before it did.

    arithmetic: the number in hand after this day's operation. search: a number that one move leads to, from which the
    moves left can still end at the target; any way there is right. After the last operation or move the number must
    stay. ``said`` as from `said`. Raises ValueError for a tree of another task, or a question that is not of its task's
    form.
    """
    if tree.task == "arithmetic":
        values = [int(step) for step in tree.steps] or ArithmeticProblem.parse(tree.question).values
        return [_follows(values, numbers) for numbers in said]
    if tree.task == "search":
        problem = SearchProblem.parse(tree.question)
        hopeful = problem.hopeful()
        return [_finds(problem, hopeful, numbers) for numbers in said]
    raise ValueError(
        f"The steps of task {tree.task!r} cannot be checked, only those of {' and '.join(TASKS)}: leave such trees out."
    )


def first_error(sound: Bool[np.ndarray, " T"]) -> int:
    """The place of the first latent that is not sound; -1 when all are."""
    return -1 if sound.all() else int(sound.argmin())


def judged(tree: ReasoningTree) -> list[int]:
    """The paths whose steps are looked at: noisy leaves, so that no chain is a part of another."""
    return [i for i in tree.leaves() if not tree.paths[i].noise_free]


@torch.no_grad()
def _chances(reasoner: Reasoner, tree: ReasoningTree) -> list[Float[Tensor, "_ V"]]:
    vocabulary, own = reasoner.tokenizer.get_vocab(), reasoner.latent_map.kind.startswith("factor")
    tokens = [vocabulary.get(str(number)) for number in range(LARGEST + 1)]
    if not own or None in tokens:
        raise ValueError(
            f"The latents of {reasoner.name} do not decode to numbers as those of the built-in reasoner do, so its "
            "steps cannot be checked. Type --model_path builtin."
        )
    head = reasoner.model.get_output_embeddings()
    weights = head.weight[torch.tensor(tokens, device=head.weight.device)].double().cpu()
    each = [(path.latents.double() / reasoner.latent_map.factor @ weights.T).softmax(1) for path in tree.paths]
    return [torch.cat([each[k] for k in tree.chain(i)]) for i in range(len(tree.paths))]


def _follows(values: Sequence[int], numbers: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    true = np.array([values[min(t, len(values) - 1)] for t in range(len(numbers))], dtype=int)
    return np.logical_and.accumulate(numbers == true)


def _finds(problem: SearchProblem, hopeful: list[set[int]], numbers: Int[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    here, right = problem.start, []
    for t, there in enumerate(numbers.tolist()):
        moving = t < problem.count
        right.append(there in problem.next_values(here) and there in hopeful[t + 1] if moving else there == here)
        here = there
    return np.logical_and.accumulate(np.array(right, dtype=bool))


# --- what is held against it ----------------------------------------------------------------------------------------


@torch.no_grad()
def step_scores(
    model: QwenLatentPRM, trees: Sequence[ReasoningTree], context: bool | None = None, pack_tokens: int = 16384
) -> Steps:
    """Of every path of every tree: the predicted score, 0..1, after each latent of its chain, root to tip.

    It is the model's score of the chain cut short there; an answer that it reads comes later and is not counted in.
    Latents that a chain is too long for (``max_seq_length``) get the score of the first that is read.
    ``context`` and ``pack_tokens`` as `QwenLatentPRM.score_trees` takes them.
    """
    read = model.as_read(trees, context)
    found: list[dict[int, Float[np.ndarray, " _"]]] = [{} for _ in trees]
    with model.evaluating():
        for batch in model.packs(read, max_seq_length=model.max_seq_length, pack_tokens=pack_tokens):
            scores = model(batch.to(model.device), True).value.sigmoid().double().cpu()
            for (number, path), row, length in zip(batch.paths, scores, batch.lengths.tolist(), strict=True):
                seen = read[number].tree.chain_length(path) + len(read[number].tails.get(path, ()))
                columns = torch.arange(trees[number].chain_length(path)) - (seen - length)
                found[number][path] = row[columns.clamp(0, length - 1)].numpy()
    return [[own[path] for path in range(len(own))] for own in found]


def baselines(reasoner: Reasoner, trees: Sequence[ReasoningTree], seed: int) -> dict[str, Steps]:
    """Step scores that cost next to nothing, of every path, by name.

    - always none: finds no error in any path.
    - random latent: a number drawn for each latent.
    - smoothness: the latent's cosine similarity to the one before; 1 for the first.
    - surety: how surely the latent decodes (`surety`).
    """
    rng = np.random.default_rng(seed)
    chains = [[tree.chain_latents(i) for i in range(len(tree.paths))] for tree in trees]
    return {
        "always none": [[np.ones(len(chain)) for chain in row] for row in chains],
        "random latent": [[rng.random(len(chain)) for chain in row] for row in chains],
        "smoothness": [[_similarity(chain) for chain in row] for row in chains],
        "surety": [surety(reasoner, tree) for tree in trees],
    }


def _similarity(chain: Float[Tensor, "T D"]) -> Float[np.ndarray, " T"]:
    return np.concatenate([[1.0], F.cosine_similarity(chain[1:], chain[:-1]).double().numpy()])


# --- finding the first error ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well step scores say where paths first go wrong, as ProcessBench measures it."""

    rule: Rule
    """below: the first error is claimed at the first latent whose score is below the threshold. drop: at the latent
    whose score is furthest below the one before, if that change is below the threshold."""
    threshold: float
    """Picked, with the rule, for the highest F1 on the calibration questions."""
    counts: Int[np.ndarray, "Q 4"]
    """Of each question: its paths with an error, those of them whose first error was claimed exactly, its sound paths,
    those of them in which no error was claimed. To bootstrap over questions, pass sums over resampled rows to `f1`."""

    @property
    def found(self) -> float:
        """Share of the paths with an error whose first error was claimed exactly."""
        return float(_shares(self.counts.sum(0))[0])

    @property
    def cleared(self) -> float:
        """Share of the sound paths in which none was claimed."""
        return float(_shares(self.counts.sum(0))[1])

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return float(f1(self.counts.sum(0)))


def f1(counts: Int[np.ndarray, "*Q 4"] | Float[np.ndarray, "*Q 4"]) -> Float[np.ndarray, "*Q"]:
    """The harmonic mean of found and cleared from counts as `Localisation` keeps them, or sums or means of such; 0
    where either is 0 or there is no path of its kind."""
    found, cleared = _shares(counts)
    return np.asarray(2 * found * cleared / np.maximum(found + cleared, 1e-12))


def localise(scores: Steps, sound: Soundness, calibration_scores: Steps, calibration_sound: Soundness) -> Localisation:
    """Claim the first error of every path from its step scores, by the rule and threshold that do best on calibration.

    Calibration questions must be others. Scores of the same kind for both; they need not be probabilities.
    Raises ValueError when the calibration questions do not hold both sound paths and paths with an error.
    """
    errors = first_errors(calibration_sound)
    if not (errors < 0).any() or not (errors >= 0).any():
        raise ValueError(
            f"Of the {len(errors)} calibration paths {int((errors < 0).sum())} are sound: there must be sound ones and "
            "others to pick a threshold. Give more calibration questions."
        )
    start = float(np.mean([path[0] for row in calibration_scores for path in row]))
    best: tuple[float, Rule, float] = (-1.0, "below", 0.0)
    rules: tuple[Rule, ...] = ("below", "drop")
    for rule in rules:
        evidence = _evidence(rule, calibration_scores, start)
        for threshold in np.unique(np.quantile(evidence[np.isfinite(evidence)], np.linspace(0, 1, THRESHOLDS))):
            reached = float(f1(_tally(errors, _claims(rule, evidence, threshold)).sum(0)))
            if reached > best[0]:
                best = reached, rule, float(threshold)
    _, rule, threshold = best
    each = _tally(first_errors(sound), _claims(rule, _evidence(rule, scores, start), threshold))
    ends = np.cumsum([0, *map(len, sound)])
    counts = np.stack([each[a:b].sum(0) for a, b in pairwise(ends)])
    return Localisation(rule, threshold, counts)


def _shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wrong, found, right, cleared = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    return np.asarray(found / np.maximum(wrong, 1e-12)), np.asarray(cleared / np.maximum(right, 1e-12))


def first_errors(sound: Soundness) -> Int[np.ndarray, " N"]:
    """`first_error` of all paths, one after the other."""
    return np.array([first_error(path) for row in sound for path in row], dtype=int)


def _evidence(rule: Rule, scores: Steps, start: float) -> Float[np.ndarray, "N T"]:
    """What a threshold is held against, of all paths; infinite beyond a path's end. ``start`` stands before a path."""
    paths = [path for row in scores for path in row]
    found = np.full((len(paths), max(map(len, paths))), np.inf)
    for evidence, path in zip(found, paths, strict=True):
        evidence[: len(path)] = path if rule == "below" else np.diff(path, prepend=start)
    return found


def _claims(rule: Rule, evidence: Float[np.ndarray, "N T"], threshold: float) -> Int[np.ndarray, " N"]:
    below = evidence < threshold
    where = below.argmax(1) if rule == "below" else evidence.argmin(1)
    return np.where(below.any(1), where, -1)


def _tally(errors: Int[np.ndarray, " N"], claims: Int[np.ndarray, " N"]) -> Int[np.ndarray, "N 4"]:
    wrong, exact = errors >= 0, claims == errors
    return np.stack([wrong, wrong & exact, ~wrong, ~wrong & exact], 1).astype(int)


# --- what else there is to say --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the two truths go together: of N paths that gave an answer, how many are sound to the end, and end right."""

    sound_right: int
    sound_wrong: int
    unsound_right: int
    unsound_wrong: int

    def __str__(self) -> str:
        sounds, others = self.sound_right + self.sound_wrong, self.unsound_right + self.unsound_wrong
        agree = (self.sound_right + self.unsound_wrong) / max(1, sounds + others)
        return (
            f"steps and outcome agree on {100 * agree:.1f} % of {sounds + others} paths: "
            f"{100 * self.sound_right / max(1, sounds):.1f} % of the sound ones end right, "
            f"{100 * self.unsound_right / max(1, others):.1f} % of the others"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """The mean change of the step score from one latent to the next."""

    at_error: float | None
    """Where the path first goes wrong (paths that do so at the first latent have none)."""
    elsewhere: float | None
    """Where it stays sound."""


def change_of(scores: Steps, sound: Soundness) -> Change:
    """How much the step score changes at first errors, and elsewhere; None where there is no such latent."""
    at: tuple[list[float], list[float]] = ([], [])
    for path, right in zip((p for row in scores for p in row), (s for row in sound for s in row), strict=True):
        for t in range(1, len(right)):
            if right[t - 1]:
                at[bool(right[t])].append(float(path[t] - path[t - 1]))
    return Change(*(float(np.mean(changes)) if changes else None for changes in at))


def agreement_of(trees: Sequence[ReasoningTree], sound: Soundness) -> Agreement:
    """Of the `judged` paths that gave an answer (the first counts): sound to the end against right."""
    counts = [0, 0, 0, 0]
    for tree, row in zip(trees, sound, strict=True):
        for i, steps in zip(judged(tree), row, strict=True):
            if answers := tree.paths[i].answers:
                counts[2 * (not steps.all()) + (not answers[0].correct)] += 1
    return Agreement(*counts)
