"""`latent-prm solve` with the built-in reasoner and PRM: it answers, says how sure it is, and knows when not to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_prm import confidence as calibrations
from latent_prm import solver
from latent_prm.__main__ import main
from latent_prm.confidence import fit
from latent_prm.demo import prm_folder
from latent_prm.growth import every_latent
from latent_prm.metrics import Pool
from latent_prm.model import QwenLatentPRM
from latent_prm.options import SolveOptions
from latent_prm.reasoner import Reasoner
from latent_prm.selector import Choice
from latent_prm.solver import remarks, said
from latent_prm.steering import Grown
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

QUESTION = "Ann has 12 apples. On Monday she buys 5. On Tuesday she eats 3. How many apples does Ann have?"


@pytest.fixture
def solve(capsys: pytest.CaptureFixture[str]):
    def run(*options: str, code: int = 0) -> str:
        assert main(["solve", QUESTION, "--num_paths", "6", "--device", "cpu", *options]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in PRM with a calibration of a reasoner that is right in about a third of its questions."""
    folder = tmp_path_factory.mktemp("prm") / "best"
    shutil.copytree(prm_folder(), folder)
    rng = np.random.default_rng(0)
    scores = [np.full(4, p) for p in rng.random(200) * 0.7]
    right = [rng.random(4) < p for p in scores]
    values = [["7" if one else "9" for one in each] for each in right]
    calibrations.save(fit(Pool(values, right, scores)), folder)
    return str(folder)


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in PRM without its calibration."""
    folder = tmp_path_factory.mktemp("bare") / "best"
    shutil.copytree(prm_folder(), folder, ignore=shutil.ignore_patterns(calibrations.FILE))
    return str(folder)


def test_the_built_in_prm_is_calibrated(solve):
    out = solve()
    assert "not calibrated" not in out and "Chosen by logit_vote, which was right in" in out
    assert "of other tasks" not in out


def test_it_shows_the_vote_and_says_that_nobody_has_calibrated_it(solve, uncalibrated):
    out = solve("--checkpoint", uncalibrated)
    assert "PRM weight" in out and "The noise-free path answers: " in out
    assert re.search(r"^I think \d+, right with probability 0\.\d\d$", out, re.MULTILINE)
    remark = out.splitlines()[-1]
    assert remark.startswith(
        f"This probability is not calibrated. Calibrate it: latent-prm evaluate --checkpoint {uncalibrated}"
    )
    assert "--calibrate_on" in remark


def test_with_a_calibration_it_says_how_likely_the_answer_is_right_and_by_which_rule(solve, calibrated):
    out = solve("--checkpoint", calibrated)
    assert re.search(r"^I think \d+, right with probability 0\.\d\d$", out, re.MULTILINE)
    assert "not calibrated" not in out
    assert re.search(r"^Chosen by \w+, which was right in [\d.]+ % of the calibration questions", out, re.MULTILINE)
    assert "\nChosen by rank_vote.\n" in solve("--checkpoint", calibrated, "--select", "rank_vote")


def test_it_does_not_know_where_the_probability_is_too_low(solve, calibrated):
    out = solve("--checkpoint", calibrated, "--abstain", "0.99")
    assert re.search(r"^I do not know \(\d+ is right with probability 0\.\d\d only\)$", out, re.MULTILINE)
    assert "I think" in solve("--checkpoint", calibrated, "--abstain", "0.001")


def test_abstaining_takes_a_calibration(solve, calibrated, uncalibrated):
    bare = ("--checkpoint", uncalibrated, "--abstain", "0.5")
    assert f"Calibrate it first: latent-prm evaluate --checkpoint {uncalibrated}" in solve(*bare, code=1)
    options = ("--checkpoint", calibrated, "--abstain", "0.5", "--select", "conservative")
    assert "no calibrated probability for answers chosen by conservative" in solve(*options, code=1)


def test_a_foreign_calibration_is_refused(solve, calibrated, tmp_path: Path):
    folder = tmp_path / "prm"
    shutil.copytree(calibrated, folder)
    (folder / "calibration.json").write_text("[1]")
    assert "not a calibration of this project" in solve("--checkpoint", str(folder), code=1)


def test_a_lower_bound_and_steering_can_be_asked_for(solve, calibrated):
    assert "Chosen by conservative." in solve("--select", "conservative")
    out = solve("--checkpoint", calibrated, "--steer", "topk")
    assert "This probability was calibrated on paths that nobody steered." in out
    assert "I think" in solve("--steer", "anytime", "--confidence", "0.6")
    assert "There is no steering 'bram'" in solve("--steer", "bram", code=1)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ({"abstain": 1.5}, "--abstain is 1.5, but it is a probability"),
        ({"confidence": 0.9}, "only --steer anytime reads it"),
        ({"confidence": 1.0, "steer": "anytime"}, "must lie between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(typed, complaint):
    with pytest.raises(ValueError, match=complaint):
        SolveOptions(question="How many?", **typed)


def grown(values: list[str], scores: list[float], votes: list[int]) -> Grown:
    paths = [
        LatentPath(latents=torch.ones(1, 2), tip=None, answers=[Answer(text=value, value=value, correct=False)])
        for value in values
    ]
    tree = ReasoningTree(question_id="q", question="?", gold="", task="text", paths=paths)
    return Grown(tree, np.array(scores), np.array(votes))


def test_a_path_offers_its_answer_as_often_as_it_has_votes():
    found = grown(["7", "9", "4"], [0.5, 0.25, 0.75], [2, 0, 1]).ballots()
    assert (found.paths, found.values, found.scores) == ([0, 0, 2], ["7", "7", "4"], [0.5, 0.5, 0.75])


def test_what_is_said():
    one = grown(["7", "9", "7"], [0.5, 0.25, 0.7], [1, 1, 1])
    assert said(one, Choice("7", 0.8, 2)) == "I think 7, right with probability 0.60"
    assert said(one, Choice("7", 0.8, 2, 0.83)) == "I think 7, right with probability 0.83"
    assert said(one, Choice("7", 0.8, 2, 0.9999), 0.5) == "I think 7, right with probability 0.99"
    assert said(one, Choice("7", 0.8, 2, 0.31), 0.5) == "I do not know (7 is right with probability 0.31 only)"
    assert said(one, Choice("", 0.8, 2, 0.0), 0.5) == "I do not know: no path gave an answer."


def test_a_probability_of_other_tasks_is_said_to_be_one(solve):
    out = solve("--task", "text")
    assert "This probability was calibrated on questions of other tasks: arithmetic, search." in out


def test_where_no_path_gave_an_answer_nothing_is_said_of_how_it_was_chosen(calibrated: str):
    options = SolveOptions(question=QUESTION, task="text", steer="topk")
    known = calibrations.load(calibrated)
    assert remarks(options, Choice("", 0.8, 0, 0.0), known) == [] == remarks(options, Choice("", 0.8, 0), None)
    assert len(remarks(options, Choice("7", 0.8, 0, 0.5), known)) == 2  # unknown: of which tasks it is


def test_who_watches_gets_the_paths_of_a_growth_that_is_cut_into_single_latents():
    options = SolveOptions(question=QUESTION, num_paths=2, device="cpu")
    reasoner, model = Reasoner.from_pretrained(device="cpu"), QwenLatentPRM.from_pretrained("builtin")
    shown = solver.grow(options, reasoner, model, watch=lambda tree, scores: None).tree
    alone = solver.grow(options, reasoner, model).tree
    cut = reasoner.grow(*solver.put(options), every_latent(reasoner.growth(num_paths=2)))
    latents = [tree.chain_latents(tree.offered()[-1]) for tree in (shown, cut, alone)]
    assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])


def test_who_watches_sees_every_step_but_the_last_and_what_it_raises_ends_the_growth():
    options = SolveOptions(question=QUESTION, num_paths=3, device="cpu")
    reasoner, model = Reasoner.from_pretrained(device="cpu"), QwenLatentPRM.from_pretrained("builtin")
    seen: list[int] = []
    found = solver.grow(options, reasoner, model, watch=lambda tree, scores: seen.append(len(scores)))
    assert seen == [4, 8, 12, 16, 20] and len(found.tree.paths) == 24  # the noise-free path and three others, 6 latents
    assert sum(found.votes) == 3 and found.tree.offered() == [21, 22, 23]

    def stop(tree: ReasoningTree, scores: np.ndarray) -> None:
        raise KeyError(len(tree.paths))

    with pytest.raises(KeyError, match="4"):
        solver.grow(options, reasoner, model, watch=stop)
    steered = SolveOptions(question=QUESTION, steer="topk", device="cpu")
    with pytest.raises(ValueError, match="only what nobody steers can be watched"):
        solver.grow(steered, reasoner, model, watch=stop)


def test_a_question_that_is_not_of_its_task_is_refused_before_it_is_thought_about(solve):
    assert "not a search question" in solve("--task", "search", code=1)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--task", "serach"), "--task is serach, but one question is of one kind"),
        (("--steer", "anytim"), "There is no steering 'anytim'"),
        (("--checkpoint", "nothere"), "nothere does not exist"),
    ],
)
def test_what_is_mistyped_is_told_before_the_reasoner_is_loaded(solve, monkeypatch: pytest.MonkeyPatch, typed, said):
    monkeypatch.setattr("latent_prm.solver.Reasoner.from_pretrained", lambda **_: pytest.fail("it was loaded"))
    assert said in solve(*typed, code=1)
