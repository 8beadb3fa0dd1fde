"""The stage steer: what methods get right and cost, side by side, against unsteered paths of the same cost."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from latent_prm.contest import ALL, Report, Unsteered, print_reports
from latent_prm.metrics import Interval, Pool
from latent_prm.options import SteerOptions
from latent_prm.reasoner import Reasoner
from latent_prm.reporter import look
from latent_prm.steerer import Bench, ancestors, main

METHODS = "topk,beam,anytime,balanced,conservative"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steer")


@pytest.fixture(scope="module")
def told() -> io.StringIO:
    """What the stage prints."""
    return io.StringIO()


@pytest.fixture(scope="module")
def reports(folder: Path, told: io.StringIO) -> dict[str, Report]:
    with redirect_stdout(told):
        return main(
            SteerOptions(
                max_samples=6,
                methods=METHODS,
                scorer="prm,oracle",
                split="validation",
                output_dir=str(folder),
                pool_paths=32,
                num_bootstrap=50,
                latent_steps=4,
                batch_size=2,
            )
        )


def test_there_is_a_report_per_task_and_one_of_all(reports: dict[str, Report]) -> None:
    assert list(reports) == ["arithmetic", "search", ALL]
    assert [report.num_questions for report in reports.values()] == [3, 3, 6]
    names = [(line.name, line.scorer) for line in reports[ALL].lines]
    assert names == [
        ("noise-free path", ""),
        ("unsteered, vote", ""),
        ("unsteered, weighted vote", "prm"),
        ("unsteered, weighted vote", "oracle"),
        *((name, scorer) for scorer in ("prm", "oracle") for name in METHODS.split(",")),
    ]


def test_latents_are_those_that_are_thought(reports: dict[str, Report]) -> None:
    latents = {(line.name, line.scorer): line.costs["latents"] for line in reports[ALL].lines}
    assert latents["noise-free path", ""] == 4
    assert latents["unsteered, vote", ""] == latents["beam", "prm"] == 16 * 4
    assert latents["topk", "prm"] == 16 + 3 * 4
    assert latents["balanced", "prm"] == 5 + 2 + 2 + 2  # 30 % of 5, 80 % of 2
    assert 4 * 4 <= latents["anytime", "prm"] <= 16 * 4


def test_all_costs_stand_in_the_total_and_a_vote_without_scores_pays_no_scorer(reports: dict[str, Report]) -> None:
    for line in reports[ALL].lines:
        assert line.costs["total"] == pytest.approx(sum(v for name, v in line.costs.items() if name != "total"))
        assert (line.costs["scorer"] > 0) == (line.scorer != "")
    prompts = {line.name: line.costs["prompts"] for line in reports[ALL].lines}
    assert prompts["topk"] == prompts["unsteered, vote"] < prompts["anytime"]  # each round reads the question again


def test_methods_are_held_against_as_many_unsteered_paths_as_cost_no_less(reports: dict[str, Report]) -> None:
    lines = {(line.name, line.scorer): line for line in reports[ALL].lines}
    topk, beam, best = (lines[key] for key in (("topk", "prm"), ("beam", "prm"), ("beam", "oracle")))
    assert topk.at_equal_latents is not None and topk.at_equal_latents[0] == 7  # 28 / 4
    assert beam.at_equal_latents is not None and beam.at_equal_latents[0] == 16
    assert best.at_equal_total is not None and best.at_equal_total[0] == 32  # all there are
    assert all((line.gain is None) == line.name.startswith(("noise", "unsteered")) for line in lines.values())


def test_a_preset_is_held_against_as_many_paths_as_itself_asks_for(reports: dict[str, Report]) -> None:
    lines = [line for line in reports[ALL].lines if line.name == "conservative"]
    for line in lines:  # 3 paths, and nobody is pruned
        assert line.costs["latents"] == 3 * 4 and line.at_equal_latents == (3, line.gain)
    assert len(lines) == 2


def test_the_truth_steers_better_than_the_prm(reports: dict[str, Report]) -> None:
    right = {(line.name, line.scorer): line.right.mean for line in reports[ALL].lines}
    assert right["beam", "oracle"] > right["beam", "prm"]
    assert right["unsteered, weighted vote", "oracle"] >= right["unsteered, weighted vote", "prm"]


def test_stopping_later_uses_more_paths_and_settles_more(reports: dict[str, Report]) -> None:
    for by in ("agreement", "scores", "regret"):
        stops = [stop for stop in reports[ALL].stops if stop.by == by and stop.scorer == "prm"]
        shares = [stop.share.mean for stop in stops]
        assert [stop.confidence for stop in stops] == [0.8, 0.9, 0.95, 0.97, 0.98, 0.99]
        assert shares == sorted(shares) and shares[0] >= 2 / 16 and shares[-1] <= 1


def test_numbers_and_a_picture_are_saved(reports: dict[str, Report], folder: Path) -> None:
    found = json.loads((folder / "steering.json").read_text("utf-8"))
    assert found["options"]["methods"] == METHODS and found["settings"]["num_paths"] == 16
    lines = found["reports"][ALL]["lines"]
    assert [line["right"]["mean"] for line in lines] == [line.right.mean for line in reports[ALL].lines]
    assert [len(curve["right"]) for curve in found["reports"][ALL]["curves"]] == [6, 6, 6]  # 1, 2, 4, 8, 16, 32 paths
    assert (folder / "steering.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_name_every_method(reports: dict[str, Report]) -> None:
    told = io.StringIO()
    print_reports(reports, Console(file=told, width=160))
    for text in ("beam · prm", "noise-free path", "settled by", "agreement · prm", "equal compute", "all tasks: 6"):
        assert text in told.getvalue()


def test_what_is_gained_stands_last_and_no_row_of_stopping_is_broken(reports: dict[str, Report]) -> None:
    wide = Interval(-0.125, -0.375, 0.125)
    stops = [replace(stop, scorer="heuristic", gains=dict.fromkeys(stop.gains, wide)) for stop in reports[ALL].stops]
    told = io.StringIO()
    print_reports({ALL: replace(reports[ALL], stops=stops)}, Console(file=told, width=80))
    before, _, gains = told.getvalue().partition("Points more than unsteered paths")
    rows = [line for line in before.splitlines() if line.count("-12.5 [-37.5, +12.5]") == 2]
    assert len(rows) == len(stops) and all(len(row.rstrip()) <= 80 and " · heuristic" in row for row in rows)
    assert "beam · prm" in gains


def test_what_to_type_next_can_be_typed(reports: dict[str, Report], folder: Path, told: io.StringIO) -> None:
    *_, following = told.getvalue().splitlines()
    assert following == f"Next: latent-prm report {folder / 'steering.json'}"
    assert look(Path(following.rpartition(" ")[2])).words == "steering"


def test_the_device_is_said_once_and_agreement_chooses_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few: dict[str, Any] = {"max_samples": 2, "num_paths": 4, "latent_steps": 2, "pool_paths": 4, "num_bootstrap": 10}
    found = main(SteerOptions(methods="anytime", select="agreement", output_dir=str(tmp_path), **few))
    assert [record.getMessage() for record in caplog.records].count("device: cpu (--device auto)") == 1
    assert "unsteered, agreement" in [line.name for line in found[ALL].lines]


def test_the_fewest_paths_that_cost_no_less_are_found() -> None:
    pool = Pool([["1"] * 4], [np.ones(4, dtype=bool)], [np.full(4, 0.5)])
    spent = np.array([[[10.0, 3.0 * k, 1.0 * k, 4.0 + 4.0 * k]] for k in (1, 2, 3, 4)])
    unsteered = Unsteered("prm", pool, spent, "vote")
    assert unsteered.costs(2).tolist() == [[10.0, 6.0, 2.0, 12.0]]
    assert unsteered.equal(np.array([[0.0, 6.0, 0.0, 0.0]]), slice(1, 2)) == 2
    assert unsteered.equal(np.array([[0.0, 6.5, 0.0, 0.0]]), slice(1, 2)) == 3
    assert unsteered.equal(np.array([[99.0, 0.0, 0.0, 0.0]]), slice(None)) == 4


def test_few_leaves_stand_on_few_ancestors() -> None:
    growth = Reasoner.from_pretrained(device="cpu").growth(branches=(2, 2), latent_steps=2)
    assert [ancestors(growth, k) for k in (1, 2, 3, 4)] == [[1, 1], [5 / 3, 2], [2, 3], [2, 4]]
    alone = Reasoner.from_pretrained(device="cpu").growth(num_paths=49, latent_steps=2)
    assert all(ancestors(alone, k) == [k] for k in range(1, 50))


def test_of_several_agents_one_path_pays_for_its_own_ancestors_and_all_for_what_was_grown() -> None:
    pipeline: dict[str, Any] = {"pipeline": "sequential", "num_paths": 4, "latent_steps": 2, "pool_paths": 8}
    bench = Bench(SteerOptions(max_samples=2, methods="none", scorer="random", num_bootstrap=10, **pipeline))
    (_, unsteered), read = bench.try_all(), bench.reasoner.spent
    spent = unsteered[0].spent.mean(1)
    plain = replace(bench.pool_growth, noise_free=False)
    for k, growth in ((1, replace(bench.growth, noise_free=True)), (8, plain)):
        before = read.copy()
        bench.reasoner.grow(bench.questions, bench.task, growth, roots=range(0) if k == 1 else None)
        names = ("prompt_tokens", "latents")
        assert spent[k - 1, :2].tolist() == [(read[name] - before[name]) / 2 for name in names]
    assert (np.diff(spent[:, :2], axis=0) > 0).all()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"methods": "beam,rays"}, "--methods names 'rays', which is none of none, topk"),
        ({"scorer": "judge"}, "--scorer names 'judge', which is none of prm, heuristic, random, oracle"),
        ({"after": "two"}, "--after is 'two'. Type whole numbers"),
        ({"confidence": 1.0}, "--confidence is 1.0"),
        (
            {"confidence": 0.6, "methods": "topk"},
            r"--confidence is 0.6, but only anytime reads it.*--methods topk,anytime",
        ),
        ({"after": "2", "methods": "anytime"}, "--after is 2, but --methods anytime does not read it"),
        ({"after": "9", "latent_steps": 4, "max_samples": 2}, "Nothing can be steered after 9 latents"),
    ],
)
def test_what_cannot_be_tried_is_refused(typed: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(SteerOptions(output_dir=str(tmp_path), **typed))  # type: ignore[reportArgumentType]
