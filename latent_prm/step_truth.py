"""Whether PRMs see where paths first go wrong, task by task, beside what is cheap to have: ProcessBench for latents.

This room hides which questions a threshold is picked on, and the intervals. What is right, and how step scores become a
claim, `truth` says. No PRM is run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from latent_prm.metrics import Interval, resampled_means
from latent_prm.tree import ReasoningTree
from latent_prm.truth import (
    TASKS,
    Agreement,
    Change,
    Soundness,
    Steps,
    agreement_of,
    baselines,
    change_of,
    f1,
    first_errors,
    judged,
    localise,
    said,
    sound,
)

if TYPE_CHECKING:
    from latent_prm.reasoner import Reasoner

PRM = "PRM"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTruth:
    """What was found on the noisy leaves of one task's trees."""

    num_questions: int
    picked_on: int
    """Questions apart that thresholds were picked on; 0: each half of the questions on the other."""
    first_errors: list[int]
    """How many paths first go wrong at each latent, and, last, how many never do."""
    f1: dict[str, Interval]
    """Of localising the first error (`truth.f1`): "PRM", the mean where there are several, then the `baselines`."""
    best: str
    """The baseline with the highest."""
    gain: Interval
    """Paired, over questions: what the PRM's F1 is above that one's."""
    change: Change
    """Of the PRM's step score."""
    agreement: Agreement


def step_truth(
    reasoner: Reasoner,
    trees: Sequence[ReasoningTree],
    steps: Sequence[Steps],
    apart: Sequence[ReasoningTree] = (),
    apart_steps: Sequence[Steps] = (),
    num_bootstrap: int = 2000,
    seed: int = 42,
) -> dict[str, StepTruth]:
    """Hold PRMs' step scores and the `truth.baselines` against the truth, by task; other tasks are left out.

    ``reasoner`` grew the trees. ``steps`` holds, per PRM, `truth.step_scores` of them. Thresholds are picked on the
    trees ``apart``, of other questions; where they have none of a task, on the other half of its questions. A task is
    missing where these do not hold both sound paths and others. Raises ValueError as `truth.said` and `truth.sound`.
    """
    found = {}
    for task in TASKS:
        own = _of(reasoner, task, trees, steps, seed)
        other = _of(reasoner, task, apart, apart_steps, seed + 1)
        turns = [(own, other)] if other.trees else _halves(own, seed)
        if all(_mixed(calibration.sound) for _, calibration in turns):
            found[task] = _found(own, turns, len(other.trees), num_bootstrap, seed)
    return found


class _Evidence(NamedTuple):
    """Trees, and of their judged paths what is true and what each scorer says (a PRM's name stands for several)."""

    trees: list[ReasoningTree]
    sound: Soundness
    steps: dict[str, list[Steps]]

    def take(self, which: Sequence[int]) -> _Evidence:
        steps = {name: [[one[q] for q in which] for one in each] for name, each in self.steps.items()}
        return _Evidence([self.trees[q] for q in which], [self.sound[q] for q in which], steps)


def _of(reasoner: Reasoner, task: str, trees: Sequence[ReasoningTree], steps: Sequence[Steps], seed: int) -> _Evidence:
    which = [q for q, tree in enumerate(trees) if tree.task == task and judged(tree)]
    own = [trees[q] for q in which]
    scored = {PRM: [[prm[q] for q in which] for prm in steps]}
    scored |= {name: [one] for name, one in baselines(reasoner, own, seed).items()}

    def only(each: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        return [[row[i] for i in judged(tree)] for tree, row in zip(own, each, strict=True)]

    right = only([sound(tree, said(reasoner, tree)) for tree in own])
    return _Evidence(own, right, {name: [only(one) for one in each] for name, each in scored.items()})


def _halves(own: _Evidence, seed: int) -> list[tuple[_Evidence, _Evidence]]:
    """Each half of the questions, and the other to pick on."""
    order = np.random.default_rng(seed).permutation(len(own.trees)).tolist()
    first, second = (own.take(order[side::2]) for side in (0, 1))
    return [(first, second), (second, first)]


def _mixed(sound: Soundness) -> bool:
    errors = first_errors(sound)
    return bool((errors < 0).any() and (errors >= 0).any())


def _found(
    own: _Evidence, turns: list[tuple[_Evidence, _Evidence]], picked_on: int, num_bootstrap: int, seed: int
) -> StepTruth:
    draws: dict[str, Float[np.ndarray, "S b"]] = {}
    means: dict[str, Float[np.ndarray, " S"]] = {}
    for name, each in own.steps.items():
        counts = []  # per PRM: [Q, 4], the questions in the order of the turns
        for s in range(len(each)):
            claims = [localise(o.steps[name][s], o.sound, c.steps[name][s], c.sound).counts for o, c in turns]
            counts.append(np.concatenate(claims).astype(float))
        means[name] = np.array([f1(own_counts.sum(0)) for own_counts in counts])
        draws[name] = np.stack([f1(resampled_means(c.T, num_bootstrap, seed)) for c in counts])
    best = max((name for name in means if name != PRM), key=lambda name: means[name][0])
    errors, longest = first_errors(own.sound), max(len(path) for row in own.sound for path in row)
    changes = [change_of(steps, own.sound) for steps in own.steps[PRM]]
    return StepTruth(
        num_questions=len(own.trees),
        picked_on=picked_on,
        first_errors=np.bincount(np.where(errors < 0, longest, errors), minlength=longest + 1).tolist(),
        f1={name: _interval(means[name], draws[name]) for name in means},
        best=best,
        gain=_interval(means[PRM] - means[best], draws[PRM] - draws[best]),
        change=Change(_mean(c.at_error for c in changes), _mean(c.elsewhere for c in changes)),
        agreement=agreement_of(own.trees, own.sound),
    )


def _interval(means: Float[np.ndarray, " S"], draws: Float[np.ndarray, "S b"]) -> Interval:
    spread = float(means.std(ddof=1)) if len(means) > 1 else None
    return Interval.of(float(means.mean()), draws.mean(0), spread)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
