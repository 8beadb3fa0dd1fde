"""What a tree is to grow like: stages, branches, diversity, decoding, all filled in; and the chance of every path.

This room hides how options become stages, and how a path's randomness follows from the seed, its question's id and its
own place in the tree, and from nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latent_prm.feedback import uniform
from latent_prm.options import Diversity
from latent_prm.prompts import Pipeline

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
    if not any(steps):
        raise ValueError(
            "--latent_steps is 0: an ordinary text agent, which thinks no latents for a PRM to read. Type 1 or more."
        )
    named = [agent.branches for agent in pipeline.agents]
    if branches is None and any(named):
        branches = tuple(count or 1 for count, thinks in zip(named, steps, strict=True) if thinks)
    if branches is None:
        branches = _spread(num_paths or NUM_PATHS, sum(map(bool, steps)))
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


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
