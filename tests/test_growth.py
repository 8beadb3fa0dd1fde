"""Plans and chance: how options become runs, and that a path's randomness is its own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from latent_prm.growth import NOISE_FREE, Growth, draw, plan
from latent_prm.prompts import Agent, Pipeline, load_pipeline
from latent_prm.reasoner import Reasoner

SOLO, SEQUENTIAL = load_pipeline("solo"), load_pipeline("sequential")


@pytest.fixture(scope="module")
def growth(tiny_lm: Path) -> Growth:
    reasoner = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    return reasoner.growth(branches=(3, 2), latent_steps=4, noise=0.5, temperature=1.0, max_new_tokens=5)


def runs(pipeline: Pipeline, *given: object) -> list[tuple[str, int, int]]:
    return [(run.agent, run.latent_steps, run.branches) for run in plan(pipeline, *given)]  # type: ignore[reportArgumentType]


def test_paths_begin_at_a_lone_agent_or_are_spread_over_all_unless_something_else_is_said() -> None:
    assert runs(SOLO, 6) == [("solo", 6, 16)]
    assert runs(SOLO, 6, 5) == [("solo", 6, 5)]
    assert runs(SEQUENTIAL, 3, 5) == [("planner", 3, 5), ("critic", 3, 1), ("refiner", 3, 1)]
    for paths, spread in ((20, [5, 2, 2]), (16, [4, 2, 2]), (15, [5, 3, 1]), (4, [2, 2, 1]), (1, [1, 1, 1])):
        assert [run.branches for run in plan(SEQUENTIAL, 3, paths)] == spread
    assert runs(SEQUENTIAL, 3, None, (8, 2, 2)) == [("planner", 3, 8), ("critic", 3, 2), ("refiner", 3, 2)]


def test_a_lone_agents_latents_are_cut_into_as_many_runs_as_there_are_branches() -> None:
    cut = plan(SOLO, 7, None, (4, 2, 2))
    assert [(run.latent_steps, run.branches) for run in cut] == [(2, 4), (2, 2), (3, 2)]
    assert [run.prompt is None for run in cut] == [False, True, True]
    assert [run.latent_steps for run in plan(SOLO, 4, None, (2, 2, 2, 2))] == [1, 1, 1, 1]


def test_agents_of_a_file_say_their_own_steps_and_branches() -> None:
    pipeline = Pipeline("own", (Agent("a", "{question}", 2, 3), Agent("b", None, 0), Agent("c", None, None, 2)), None)
    assert runs(pipeline, 5) == [("a", 2, 3), ("b", 0, 1), ("c", 5, 2)]
    assert runs(pipeline, 5, None, (4, 1)) == [("a", 2, 4), ("b", 0, 1), ("c", 5, 1)]  # what is typed wins
    silent = Pipeline("own", (Agent("a", "{question}", 0), Agent("b", None)), None)
    assert runs(silent, 5, 7) == [("a", 0, 1), ("b", 5, 7)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((SOLO, 0), "--latent_steps is 0: an ordinary text agent"),
        ((SOLO, -1), "--latent_steps: there is a -1, but it must be at least 0"),
        ((SOLO, 2, 0), "--num_paths: there is a 0, but it must be at least 1"),
        ((SOLO, 2, None, (2, 0)), "--branches: there is a 0, but it must be at least 1"),
        ((SOLO, 2, None, (2, 2, 2)), "--branches has 3 numbers, but --latent_steps is 2"),
        ((SOLO, 6, 16, (2, 2)), "--num_paths is 16, but the branches 2 x 2 make 4 leaves"),
        ((SEQUENTIAL, 6, None, (2, 2)), "--branches has 2 numbers, but 3 agents of the pipeline 'sequential' think"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(given: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan(*given)  # type: ignore[reportArgumentType]


def test_until_mixed_needs_branches_to_halve(growth: Growth) -> None:
    one = dataclasses.replace(growth, runs=plan(SOLO, 4, None, (1, 4)))
    with pytest.raises(ValueError, match=r"there is only one. Type --branches with 2 or more in front"):
        dataclasses.replace(one, until_mixed=True)


def test_it_is_known_whether_paths_can_differ(growth: Growth) -> None:
    def differs(**changes: object) -> bool:
        return dataclasses.replace(growth, **{"temperature": 0.0, **changes}).differs  # type: ignore[reportArgumentType]

    assert differs() and differs(noise={"a": 0.0, "b": 0.1}) and differs(noise=0.0, temperature=1.0)
    assert not differs(noise=0.0) and not differs(noise={"a": 0.0})
    assert differs(diversity_strategy="dropout") and not differs(diversity_strategy="dropout", dropout=0.0)
    assert differs(diversity_strategy="temperature", noise=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("answers_per_leaf", 0),
        ("noise", -0.1),
        ("noise", {"search": -0.1}),
        ("soft_temperature", 0.0),
        ("dropout", 1.0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("max_new_tokens", 0),
    ],
)
def test_a_number_that_means_nothing_is_refused_from_python_too(growth: Growth, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"--{name} is {re.escape(repr(value))}, but it must be"):
        dataclasses.replace(growth, **{name: value})  # type: ignore[reportArgumentType]


def test_several_answers_need_a_temperature(growth: Growth) -> None:
    with pytest.raises(ValueError, match="--answers_per_leaf is 3, but --temperature is 0"):
        dataclasses.replace(growth, answers_per_leaf=3, temperature=0.0)


def test_a_paths_chance_is_the_same_whoever_is_drawn_with_it(growth: Growth) -> None:
    for run in (0, 1):
        whole = draw("text-1", growth, run, [NOISE_FREE, 0, 1, 2, 3, 4, 5], 16)
        some = draw("text-1", growth, run, [4, 1], 16)
        for name in ("noise", "keys", "disturbed", "answers"):
            assert torch.equal(getattr(whole, name)[[5, 2]], getattr(some, name)), name


def test_the_noise_free_path_has_no_noise_and_others_the_noise_asked_for(growth: Growth) -> None:
    chance = draw("text-1", growth, 0, [NOISE_FREE, *range(200)], 64)
    assert not chance.noise[0].any() and chance.disturbed.tolist() == [0.0] + [1.0] * 200
    assert chance.noise[1:].std().item() == pytest.approx(0.5, rel=0.02)  # of 25,600 numbers


def test_every_question_run_path_and_seed_has_a_chance_of_its_own(growth: Growth) -> None:
    other_seed = dataclasses.replace(growth, seed=7)
    draws = [draw("text-1", growth, 0, [0, 1], 16), draw("text-2", growth, 0, [0, 1], 16)]
    draws += [draw("text-1", growth, 1, [0, 1], 16), draw("text-1", other_seed, 0, [0, 1], 16)]
    rows = torch.cat([chance.noise[:, :2].flatten(1) for chance in draws])
    assert (torch.cdist(rows, rows) + 9 * torch.eye(8) > 1).all()
    assert torch.cat([chance.keys for chance in draws]).unique().numel() == 8


def test_only_the_last_run_draws_answers_and_only_with_a_temperature(growth: Growth) -> None:
    assert draw("text-1", growth, 0, [0], 16).answers.shape == (1, 1, 0)
    assert draw("text-1", growth, 1, [0], 16).answers.shape == (1, 1, 5)
    several = dataclasses.replace(growth, answers_per_leaf=3)
    assert draw("text-1", several, 1, [0], 16).answers.shape == (1, 3, 5)
    assert draw("text-1", dataclasses.replace(growth, temperature=0.0), 1, [0], 16).answers.numel() == 0


def test_strategies_without_gaussian_noise_draw_none(growth: Growth) -> None:
    for strategy in ("temperature", "dropout"):
        assert dataclasses.replace(growth, diversity_strategy=strategy).noise_of("arithmetic") == 0.0
    named = dataclasses.replace(growth, noise={"search": 0.4})
    assert (named.noise_of("search"), named.noise_of("other")) == (0.4, 0.1)
