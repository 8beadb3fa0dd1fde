"""What a tree is to grow like: stages, branches, diversity, decoding, all filled in; and the chance of every path.

This room hides how options become stages, which rows of a batch go on from which, and how a path's randomness follows
from the seed, its question's id and its own place in the tree, and from nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Protocol, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latent_prm.feedback import uniform
from latent_prm.options import Diversity
from latent_prm.prompts import Pipeline
from latent_prm.tree import ReasoningTree

NOISE = 0.1
"""Gaussian noise where neither the caller nor the reasoner's config says."""
NUM_PATHS = 16
NOISE_FREE = -1
"""The number, among the paths of its run, of the one without noise."""
FURTHER_ANSWERS = 2**20
"""The place of a leaf's second answer in its path's chance, beyond all latent steps."""


@dataclass(frozen=True)
class Run:
    """One agent's stretch of thinking."""

    agent: str
    prompt: str | None
    """What it reads first, on top of all thoughts so far; None: nothing, it keeps thinking."""
    latent_steps: int
    branches: int
    """Paths that begin here under every path so far."""


@dataclass(frozen=True)
class Growth:
    """What :meth:`Reasoner.grow` is asked for, with every default filled in."""

    pipeline: str
    runs: tuple[Run, ...]
    judger: str | None
    answers_per_leaf: int
    diversity_strategy: Diversity
    noise: float | dict[str, float]
    """Relative to the latent's root mean square; a dict says it by task."""
    soft_temperature: float
    dropout: float
    noise_free: bool
    keep_hidden: bool
    until_mixed: bool
    think: bool
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int

    @property
    def num_paths(self) -> int:
        """N, the leaves of a tree, its noise-free path not counted."""
        return prod(run.branches for run in self.runs)

    @property
    def latent_steps(self) -> int:
        """T, the latents from root to leaf."""
        return sum(run.latent_steps for run in self.runs)

    def noise_of(self, task: str) -> float:
        """The Gaussian noise for a question of a task."""
        if self.diversity_strategy not in ("noise", "hybrid"):
            return 0.0
        return self.noise.get(task, NOISE) if isinstance(self.noise, dict) else self.noise

    @property
    def differs(self) -> bool:
        """Whether anything can make two paths of it differ."""
        strengths = self.noise.values() if isinstance(self.noise, dict) else [self.noise]
        found = {"noise": any(strengths), "temperature": True, "dropout": self.dropout > 0, "hybrid": True}
        return found[self.diversity_strategy] or self.temperature > 0

    def __post_init__(self) -> None:
        noise = self.noise.values() if isinstance(self.noise, dict) else [self.noise]
        ranges = {
            "answers_per_leaf": (self.answers_per_leaf >= 1, "at least 1"),
            "diversity_strategy": (self.diversity_strategy in get_args(Diversity), f"one of {get_args(Diversity)}"),
            "noise": (all(one >= 0 for one in noise), "at least 0"),
            "soft_temperature": (self.soft_temperature > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "from 0 to below 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
        }
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise ValueError(f"--{name} is {getattr(self, name)!r}, but it must be {expected}.")
        if self.until_mixed and self.runs[0].branches < 2:
            raise ValueError(
                "--until_mixed stops after half of the first branches, but there is only one. "
                "Type --branches with 2 or more in front, as 4,2,2."
            )
        if self.answers_per_leaf > 1 and self.temperature == 0:
            raise ValueError(
                f"--answers_per_leaf is {self.answers_per_leaf}, but --temperature is 0, which decodes the same answer "
                f"{self.answers_per_leaf} times. Type --temperature 0.6, say."
            )


def plan(
    pipeline: Pipeline, latent_steps: int, num_paths: int | None = None, branches: tuple[int, ...] | None = None
) -> tuple[Run, ...]:
    """The runs of a pipeline, with ``branches`` as given, as the agents themselves say, or spread over the agents.

    Spread, each agent after the first takes the smallest prime factor of ``num_paths`` that is left, the first one the
    rest (20 paths of three agents: 5, 2, 2), so that every agent's paths get values of their own.
    A lone agent with several ``branches`` has its latents cut into as many runs, as even as they go: to branch after
    every latent gives every latent a Monte-Carlo value. An agent with 0 latent steps begins no path.

    Raises:
        ValueError: numbers that contradict each other, or a pipeline in which nobody thinks.
    """
    steps = [latent_steps if agent.latent_steps is None else agent.latent_steps for agent in pipeline.agents]
    least = {"num_paths": (num_paths, 1), "branches": (min(branches or [1]), 1), "latent_steps": (min(steps), 0)}
    for name, (value, bound) in least.items():
        if value is not None and value < bound:
            raise ValueError(f"--{name}: there is a {value}, but it must be at least {bound}.")
    if not any(steps):
        raise ValueError(
            "--latent_steps is 0: an ordinary text agent, which thinks no latents for a PRM to read. Type 1 or more."
        )
    named = [agent.branches for agent in pipeline.agents]
    if branches is None and any(named):
        branches = tuple(count or 1 for count, thinks in zip(named, steps, strict=True) if thinks)
    if branches is None:
        branches = _spread(NUM_PATHS if num_paths is None else num_paths, sum(map(bool, steps)))
    if num_paths is not None and prod(branches) != num_paths:
        product = " x ".join(map(str, branches))
        raise ValueError(
            f"--num_paths is {num_paths}, but the branches {product} make {prod(branches)} leaves. "
            "Leave one of the two out."
        )
    if len(steps) == 1:
        return _cut(pipeline, steps[0], branches)
    if len(branches) != sum(map(bool, steps)):
        raise ValueError(
            f"--branches has {len(branches)} numbers, but {sum(map(bool, steps))} agents of the pipeline "
            f"{pipeline.name!r} think. Type one number for each."
        )
    counts = iter(branches)
    return tuple(
        Run(agent.name, agent.prompt, count, next(counts) if count else 1)
        for agent, count in zip(pipeline.agents, steps, strict=True)
    )


def _spread(num_paths: int, agents: int) -> tuple[int, ...]:
    later = []
    for _ in range(agents - 1):
        factor = next((f for f in range(2, num_paths) if num_paths % f == 0), 1)
        later.append(factor)
        num_paths //= factor
    return (num_paths, *later)


def _cut(pipeline: Pipeline, steps: int, branches: tuple[int, ...]) -> tuple[Run, ...]:
    agent, count = pipeline.agents[0], len(branches)
    if count > steps:
        raise ValueError(
            f"--branches has {count} numbers, but --latent_steps is {steps}: there is a branching after every latent "
            f"at most. Type {steps} numbers or fewer."
        )
    lengths = [steps * (i + 1) // count - steps * i // count for i in range(count)]
    return tuple(
        Run(agent.name, agent.prompt if i == 0 else None, length, branches[i]) for i, length in enumerate(lengths)
    )


def every_latent(growth: Growth, begin: float = 1.0) -> Growth:
    """The growth with a lone run cut into runs of one latent each, and only this share of the first paths (at least 1).

    Several runs, as of a pipeline, stay as they are.
    """
    first, *later = growth.runs
    first = replace(first, branches=max(1, int(first.branches * begin)))
    if not later:
        later = [replace(first, prompt=None, latent_steps=1, branches=1)] * (first.latent_steps - 1)
        first = replace(first, latent_steps=1)
    return replace(growth, runs=(first, *later))


# --- who goes on from whom ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Whose sequence a row of the batch is."""

    question: int
    number: int | None = None
    """Of the path among all paths of its run, as `draw` takes it; None before the first branching."""
    path: int | None = None
    """Its index among the question's paths; None until something has been thought."""


class Steer(Protocol):
    """Who decides, while trees grow, which of their paths go on."""

    def __call__(
        self, trees: Sequence[ReasoningTree], frontiers: Sequence[Sequence[int]], growth: Growth, run: int
    ) -> list[list[int]]:
        """How often each of the frontier paths of each unfinished tree goes on after this run of the growth; 0: never.

        The noise-free path is in the trees, but never among the frontier paths: it goes on in any case.
        """
        ...


def branch(rows: Sequence[Row], numbers: range, noise_free: bool) -> tuple[list[int], list[Row]]:
    """The rows that begin under each row, and which one each carries on from.

    Under the trunk begin a noise-free row, if wanted, and those with the numbers; under a noise-free row one like it.
    """
    parents, out = [], []
    for i, row in enumerate(rows):
        if row.number is None:
            begin = [NOISE_FREE] * noise_free + list(numbers)
        elif row.number == NOISE_FREE:
            begin = [NOISE_FREE]
        else:
            begin = [row.number * len(numbers) + k for k in numbers]
        parents += [i] * len(begin)
        out += [replace(row, number=number) for number in begin]
    return parents, out


def carry_on(
    rows: Sequence[Row], steer: Steer, trees: Sequence[ReasoningTree], growth: Growth, run: int
) -> tuple[list[int], list[Row]]:
    """The rows that go on after a run as ``steer`` says, and which one each carries on from.

    A row that goes on keeps its number, and with it the chance it would have had; each further copy of it gets the
    smallest number that is free among its question's. Raises ValueError when no noisy path of a question goes on.
    """
    frontiers: list[list[int]] = [[] for _ in trees]
    for row in rows:
        if row.number != NOISE_FREE and row.path is not None:
            frontiers[row.question].append(row.path)
    told = steer(trees, frontiers, growth, run)
    for tree, counts in zip(trees, told, strict=True):
        if not any(counts):
            raise ValueError(f"Steering left no path of question {tree.question_id!r}: at least one has to go on.")
    each = [iter(counts) for counts in told]
    copies = [1 if row.number == NOISE_FREE else next(each[row.question]) for row in rows]
    taken = {(row.question, row.number) for row, wanted in zip(rows, copies, strict=True) if wanted}
    parents, out = [], []
    for i, (row, wanted) in enumerate(zip(rows, copies, strict=True)):
        for copy in range(wanted):
            if copy:
                row = replace(row, number=next(n for n in count() if (row.question, n) not in taken))
                taken.add((row.question, row.number))
            parents.append(i)
            out.append(row)
    return parents, out


# --- chance ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chance:
    """The randomness of some paths of one run of one question."""

    noise: Float[Tensor, "B T D"]
    """Gaussian, already as strong as asked for; 0 for the noise-free path."""
    keys: Int[Tensor, " B"]
    """For what is drawn where it is used (Gumbel noise, dropout)."""
    disturbed: Float[Tensor, " B"]
    """0 for the noise-free path, else 1."""
    answers: Float[Tensor, "B M L"]
    """A number in [0, 1) for every token of every answer; L is 0 where none is sampled."""


def draw(question_id: str, growth: Growth, run: int, numbers: list[int], width: int) -> Chance:
    """The chance of the paths of a run with these numbers: a path's number is its place among all paths of that run.

    It is drawn path by path, so that a path's does not depend on how many there are.
    """
    name = f"{growth.seed}/{question_id}" + (f"/{run}" if run else "")
    generator = torch.Generator().manual_seed(_seed(name))
    scale = growth.noise_of(question_id.rpartition("-")[0])
    last = run == len(growth.runs) - 1
    length = growth.max_new_tokens if last and growth.temperature > 0 else 0
    noise, answers = {}, {}
    for number in range(NOISE_FREE, max(numbers) + 1):
        strength = 0.0 if number == NOISE_FREE else scale
        noise[number] = torch.randn(growth.runs[run].latent_steps, width, generator=generator) * strength
        answers[number] = torch.rand(length, generator=generator)
    keys = torch.tensor([_seed(f"{name}/{run}/{number}") for number in numbers])
    further = [uniform(keys, FURTHER_ANSWERS + m, length) for m in range(1, growth.answers_per_leaf)]
    return Chance(
        noise=torch.stack([noise[number] for number in numbers]),
        keys=keys,
        disturbed=torch.tensor([float(number != NOISE_FREE) for number in numbers]),
        answers=torch.stack([torch.stack([answers[number] for number in numbers]), *further], dim=1),
    )


def quiet(rows: int, steps: int, width: int, device: torch.device) -> Chance:
    """The chance of rows that are not disturbed at all."""
    return Chance(
        noise=torch.zeros(rows, steps, width, device=device),
        keys=torch.zeros(rows, dtype=torch.long, device=device),
        disturbed=torch.zeros(rows, device=device),
        answers=torch.zeros(rows, 1, 0, device=device),
    )


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
