"""evaluation.py, tables.py and evaluator.py: from trees and scores to numbers, words and files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_tree
from rich.console import Console

from latent_prm import confidence, evaluator
from latent_prm.__main__ import main as run
from latent_prm.comparison import Comparison, Discrimination
from latent_prm.confidence import compare_rules
from latent_prm.demo import prm_folder
from latent_prm.evaluation import (
    FEW,
    Evaluation,
    Scored,
    Scores,
    _judges,
    evaluate,
    fewer_paths,
    first,
    pool_of,
)
from latent_prm.evaluator import draw, listen, main, others, print_evaluation, thinker, together, unseen, verdict
from latent_prm.exhibits import evaluation_sections
from latent_prm.grading import question_digest
from latent_prm.metrics import Interval, expected_accuracies
from latent_prm.model import QwenLatentPRM
from latent_prm.options import EvaluateOptions
from latent_prm.predictions import Bin, Coverage
from latent_prm.reasoner import Reasoner
from latent_prm.shards import write_shard
from latent_prm.tables import all_of
from latent_prm.tasks import load_task
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath


def grown(task: str, number: int, noise_free: bool, answers: str) -> ReasoningTree:
    """A tree whose noise-free path answers "1" (right) or "0", and whose noisy paths give these answers."""

    def path(value: str, noise_free: bool = False) -> LatentPath:
        answer = Answer(text=value, value=value, correct=value == "1")
        return LatentPath(latents=torch.ones(1, 2), tip=None, noise_free=noise_free, answers=[answer])

    paths = [path("1" if noise_free else "0", noise_free=True), *map(path, answers)]
    return ReasoningTree(question_id=f"{task}-{number}", question="?", gold="1", task=task, paths=paths)


def drawn(questions: int, paths: int = 6, seed: int = 0, task: str = "search") -> tuple[list[ReasoningTree], Scored]:
    """Trees of "1" (right), "2" and "3", and of each path a probability that knows something."""
    rng = np.random.default_rng(seed)
    trees, scores = [], []
    for number in range(questions):
        answers = "".join(rng.choice(["1", "2", "3"], paths, p=[0.4, 0.35, 0.25]))
        trees.append(grown(task, number, bool(rng.random() < 0.5), answers))
        right = np.array([0.5, *(float(answer == "1") for answer in answers)])
        scores.append(np.clip(0.5 * right + 0.6 * rng.random(paths + 1), 0, 1))
    return trees, Scored(prms=[scores])


def printed(evaluation: Evaluation | dict[str, Evaluation], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    print_evaluation(evaluation, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- trees and scores → numbers ---------------------------------------------------------------------------------------


def test_trees_and_scores_become_a_comparison_per_task_and_one_of_all() -> None:
    trees = [grown("search", 0, noise_free=True, answers="1111"), grown("search", 1, noise_free=True, answers="")]
    trees += [grown("arithmetic", i, noise_free=i != 0, answers="2212") for i in range(3)]
    trees += [replace(grown("arithmetic", 3, noise_free=False, answers="2222"), gold="")]  # nobody knows
    scores = [torch.tensor([0.5] + [0.9 if path.answers[0].correct else 0.05 for path in t.paths[1:]]) for t in trees]
    found = evaluate(trees, scores, num_bootstrap=100, skipped={"seen in training": 2})
    assert list(found.comparisons) == ["arithmetic", "search", "all tasks"]
    assert found.skipped == {"seen in training": 2, "no graded path": 2}
    at_four = {method: by_size[4].mean for method, by_size in found.comparisons["arithmetic"].accuracy.items()}
    expected = {"noise_free": 2 / 3, "random": 1 / 4, "vote": 0, "best": 1, "weighted_vote": 1, "oracle": 1}
    expected |= {"tie_break": 0, "logit_vote": 1, "rank_vote": 0, "agreement": 1}
    assert at_four == pytest.approx(expected)  # ranks: 2/4 each for three wrong ones against 4/4
    assert found.overall.num_questions == 4
    for method, by_size in found.overall.accuracy.items():  # all: three times arithmetic, and once search
        alone = [found.comparisons[task].accuracy[method] for task in ("arithmetic", "search")]
        for k, interval in by_size.items():
            assert interval.mean == pytest.approx((3 * alone[0][k].mean + alone[1][k].mean) / 4)
    assert found.calibrated_on is None and not found.overall.rules
    assert verdict(found.comparisons["arithmetic"]) == [
        "There are too few questions (3) to tell whether PRM best or PRM-weighted vote beats the majority and the "
        "noise-free path."
    ]
    with pytest.raises(ValueError, match="no question"):
        evaluate(trees[1:2], scores[1:2])


def test_tasks_with_different_numbers_of_paths_share_what_both_have() -> None:
    few, of_few = drawn(5, paths=3, task="arithmetic")
    many, of_many = drawn(5, paths=5, seed=1)
    found = evaluate([*few, *many], [*of_few.prms[0], *of_many.prms[0]], num_bootstrap=20)
    assert [own.num_paths for own in found.comparisons.values()] == [3, 5, 3]
    at_three = [own.accuracy["weighted_vote"][3].mean for own in found.comparisons.values()]
    assert at_three[2] == pytest.approx((at_three[0] + at_three[1]) / 2)


def test_a_task_without_noise_free_answers_takes_them_from_no_other_task() -> None:
    trees, scored = drawn(12, task="arithmetic")
    more, of_more = drawn(12, seed=1)
    more[3].paths[0].answers = []
    found = evaluate([*trees, *more], [*scored.prms[0], *of_more.prms[0]], num_bootstrap=20)
    assert ["noise_free" in own.accuracy for own in found.comparisons.values()] == [True, False, False]
    assert "no noise-free path" in printed(found)


def test_each_half_is_calibrated_on_the_other() -> None:
    trees, scored = drawn(400)
    found = evaluate(trees, scored, num_bootstrap=50)
    overall = found.overall
    assert found.calibrated_on == 0 and not found.confidences
    before, after = overall.forecasts["paths"][0], overall.forecasts["paths, calibrated"][0]
    assert before.calibration_error > 0.15 > 0.05 > after.calibration_error and after.brier < before.brier
    assert overall.forecasts["answers, calibrated"][0].calibration_error < 0.08
    # The picked rule is that of the other half: had a question's own outcome taught it, a coin would look good.
    assert set(overall.rules) <= {
        compare_rules(pool_of(trees, scored.prms[0])).how,
        "best",
        "weighted_vote",
        "logit_vote",
    }
    assert overall.accuracy["auto"][6].mean > overall.accuracy["vote"][6].mean + 0.1
    assert overall.abstaining[0].coverage == 1
    surest = overall.coverage["calibrated probability"][0]
    assert surest.coverage < 0.05 and (surest.accuracy or 0) > (overall.abstaining[0].accuracy or 0)
    assert evaluate(trees[: FEW - 1], Scored(prms=[scored.prms[0][: FEW - 1]]), num_bootstrap=9).calibrated_on is None


def test_no_answer_is_not_the_surest_answer() -> None:
    trees, scored = drawn(60)
    for tree in trees[:30]:
        for path in tree.paths[1:]:
            path.answers = [Answer(text="", value="", correct=False)]
    found = evaluate(trees, scored, num_bootstrap=9).overall
    assert found.abstaining[0].coverage == 0.5 and found.abstaining[0].accuracy is not None
    for curve in found.coverage.values():
        assert curve[0].coverage < 0.5 == curve[-1].coverage
    (shares,) = found.forecasts["answers, by share"]
    assert (shares.bins[0].predicted, shares.bins[0].right, shares.bins[0].count) == (0, 0, 30)


def test_where_no_path_answered_there_is_nothing_to_be_sure_of_nor_to_draw(tmp_path: Path) -> None:
    trees = [grown("search", number, noise_free=True, answers="22") for number in range(FEW)]
    for tree in trees:
        for path in tree.paths[1:]:
            path.answers = [Answer(text="", value="", correct=False)]
    found = evaluate(trees, [np.full(3, 0.5)] * FEW, num_bootstrap=9)
    assert all(point.coverage == 0 and point.accuracy is None for point in found.overall.abstaining)
    assert all(curve == [] for curve in found.overall.coverage.values())
    pytest.importorskip("matplotlib", reason="it is the extra [plot]")
    assert [path.name for path in draw(found, tmp_path)] == ["accuracy.png", "calibration.png"]


def test_nobody_is_judged_by_what_was_learnt_from_itself() -> None:
    trees, scored = drawn(50)
    pool = pool_of(trees, scored.prms[0])
    (judges,) = _judges([pool], None, seed=3)
    for judge in (judges[0], next(other for other in judges if other is not judges[0])):
        judged = {q for q, own in enumerate(judges) if own is judge}
        assert len(judged) == 25
        assert judge == confidence.fit(pool.take([q for q in range(50) if q not in judged]), seed=3)


def test_scores_that_know_nothing_are_not_made_to_look_good_by_calibration() -> None:
    trees, _ = drawn(200)
    rng = np.random.default_rng(5)
    found = evaluate(trees, [rng.random(len(tree.paths)) for tree in trees], num_bootstrap=50).overall
    assert abs(found.forecasts["paths, calibrated"][0].skill or 0) < 0.02


def test_questions_apart_calibrate_and_recommend_a_rule() -> None:
    trees, scored = drawn(60)
    apart, own = drawn(300, seed=9)
    fitted = confidence.fit(pool_of(apart, own.prms[0]))
    found = evaluate(trees, scored, confidences=[fitted], num_bootstrap=50)
    assert found.calibrated_on == 300 and found.confidences == [fitted]
    assert found.overall.rules == [fitted.picked.how]
    accuracy = expected_accuracies(pool_of(trees, scored.prms[0]), fitted.picked.how, 6).per_question.mean()
    assert found.overall.accuracy["auto"][6].mean == pytest.approx(accuracy)


def test_rivals_controls_steps_and_lower_bounds_are_of_the_paths_that_are_chosen_from() -> None:
    trees, scored = drawn(50)
    scores = scored.prms[0]
    backwards = [1 - own for own in scores]
    steps = [[np.array([0.5, score]) for score in own] for own in scores]
    everything = Scored(
        prms=[scores],
        lower=[scores],
        steps=[steps],
        rivals={"a thousand times": [1000 * own for own in scores], "question only": [0 * own + 0.4 for own in scores]},
        controls={"noise only": [backwards]},
    )
    found = evaluate(trees, everything, num_bootstrap=100).overall
    assert found.accuracy["conservative"] == found.accuracy["weighted_vote"]
    same, spoilt = found.rivals["a thousand times"], found.rivals["noise only"]
    assert (same.control, spoilt.control) == (False, True)
    assert same.gains["auroc"].mean == same.gains["best"].mean == 0  # its ranks are in the same order
    assert found.auroc is not None and spoilt.gains["auroc"].mean == pytest.approx(2 * found.auroc.mean - 1)
    assert found.rivals["question only"].auroc.mean == 0.5  # type: ignore[union-attr]
    first, last = found.steps
    assert first.auroc is not None and first.auroc.mean == 0.5 and last == found.discrimination
    right = np.concatenate([[path.answers[0].correct for path in tree.paths[1:]] for tree in trees])
    (paths,) = found.forecasts["paths"]
    assert found.over_question == pytest.approx(1 - paths.brier / np.mean((0.4 - right) ** 2))


def test_of_training_free_scores_only_the_order_counts() -> None:
    trees = [grown("search", 0, noise_free=True, answers="2211")]
    scores: Scores = [np.array([0, 0.1, 0.1, 0.2, 0.05])]
    both = Scored(prms=[scores], rivals={"free": scores, "trained": scores}, ordinal=frozenset({"free"}))
    found = evaluate(trees, both, num_bootstrap=9).overall.rivals
    assert found["free"].best == found["trained"].best and found["free"].auroc == found["trained"].auroc
    assert found["trained"].vote.mean == 1  # 0.25 against 0.2
    assert found["free"].vote.mean == 0.5  # the places 4 and 1 against 2.5 and 2.5


def test_the_first_paths_alone_are_a_tree_of_their_own() -> None:
    tree = random_tree(3, branches=(3, 2), answers=2)
    kept = first(tree, 3)
    assert [path.parent for path in kept.paths] == [None, None, 0, 0, 1]
    assert [kept.paths[i] for i in kept.offered()] != [] and len(kept.offered()) == 3
    for place, i in zip(kept.offered(), tree.offered(), strict=False):
        assert torch.equal(kept.chain_latents(place), tree.chain_latents(i))
        assert kept.paths[place].answers == tree.paths[i].answers
    assert first(tree, 6) is tree
    few, many = (drawn(2, paths=paths, task=task)[0] for paths, task in ((4, "arithmetic"), (16, "search")))
    assert fewer_paths(many) == [4] and fewer_paths([*few, *many]) == [4] and fewer_paths(few) == []
    assert fewer_paths([*many, *drawn(2, paths=17)[0]]) == [4, 16] and fewer_paths([]) == []


def test_a_prm_that_sees_siblings_is_measured_on_fewer_paths_without_the_others() -> None:
    trees, scored = drawn(50, paths=6)
    right = [np.array([float(path.answers[0].correct) for path in first(tree, 4).paths]) for tree in trees]
    found = evaluate(trees, replace(scored, fewer={4: Scored(prms=[right])}), num_bootstrap=50)
    assert found.beside_siblings
    assert list(found.overall.accuracy["best"]) == list(found.overall.accuracy["auto"]) == [1, 4, 6]
    at_four = np.mean([any(path.answers[0].correct for path in tree.paths[1:5]) for tree in trees])
    assert found.overall.accuracy["best"][4].mean == pytest.approx(at_four)  # who sees so few sees the truth
    plain = evaluate(trees, scored, num_bootstrap=50)
    for k in (1, 6):  # of one path there is no choice
        assert found.overall.accuracy["best"][k] == plain.overall.accuracy["best"][k]
    assert found.overall.accuracy["vote"] == plain.overall.accuracy["vote"]
    assert "scores a path beside its siblings" in printed(found) and "siblings" not in printed(plain)
    few = evaluate(*few_paths(trees, scored, 4), num_bootstrap=50)
    assert few.beside_siblings and list(few.overall.accuracy["best"]) == [1, 4]


def few_paths(trees: list[ReasoningTree], scored: Scored, k: int) -> tuple[list[ReasoningTree], Scored]:
    """Of every tree the noise-free path and k others, and what a PRM that sees siblings says of these."""
    cut = [replace(tree, paths=tree.paths[: k + 1]) for tree in trees]
    return cut, Scored(prms=[[own[: k + 1] for own in scored.prms[0]]], fewer={})


def test_values_of_leaves_and_of_inner_paths_are_held_against_the_scores() -> None:
    trees = [random_tree(seed, branches=(3, 2), answers=4) for seed in range(6)]
    scores = [torch.full((len(tree.paths),), 0.25) for tree in trees]
    found = evaluate(trees, scores, num_bootstrap=20).overall
    assert [(kind, own[0].count, own[0].answers) for kind, own in found.errors.items()] == [
        ("leaves", 36, 4),
        ("inner paths", 18, 8),
    ]
    inner = np.array([tree.paths[i].prm_score for tree in trees for i in (1, 2, 3)], dtype=float)
    (own,) = found.errors["inner paths"]
    assert own.mse == pytest.approx(float(((inner - 0.25) ** 2).mean()))
    assert own.noise_floor == pytest.approx(float((inner * (1 - inner) / 7).mean()))
    assert trees[0].offered() == [4, 5, 6, 7, 8, 9]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_printed_evaluation_fits_the_terminal_and_says_the_verdict(width: int) -> None:
    tree = grown("search", 0, noise_free=True, answers="1122")
    found = evaluate([tree] * 10, [torch.tensor([0.5, 0.9, 0.8, 0.2, 0.1])] * 10, num_bootstrap=100)
    text = printed(found, width)
    assert all(len(line) <= width for line in text.splitlines())
    said = "With 4 paths, PRM best beats the majority and does not measurably differ from the noise-free path."
    assert said in " ".join(text.split())
    assert width == 30 or "100.0 [100.0, 100.0]" in text


@pytest.mark.parametrize("width", [80, 100])
def test_everything_there_is_to_print_fits_with_its_numbers_whole(width: int) -> None:
    trees, scored = drawn(60)
    scores = scored.prms[0]
    both = Scored(
        prms=[scores, [own**2 for own in scores]],
        steps=[[[np.array([0.5, score]) for score in own] for own in scores]] * 2,
        rivals={"linear probe, last latent": scores},
        controls={"question swapped": [scores, scores]},
    )
    text = printed(evaluate(trees, both, num_bootstrap=50), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text and "mean of 2 PRMs" in " ".join(text.split())
    for title in (
        "other rules",
        "the PRM gains",
        "scores after each latent",
        "= reliability",
        "answering only where",
    ):
        assert title in text
    several = printed(
        {"one": evaluate(trees, scored, num_bootstrap=20), "two": evaluate(trees, scored, num_bootstrap=20)}
    )
    assert "vote by two" in several and "In detail" not in several


def spoilt(**controls: list[np.ndarray]) -> str:
    """What is said of a PRM that knows something, held against these controls."""
    trees, scored = drawn(60)
    named = {name.replace("_", " "): [scores] for name, scores in controls.items()}
    return " ".join(verdict(evaluate(trees, replace(scored, controls=named), num_bootstrap=100).overall))


def test_a_prm_that_does_not_beat_its_controls_is_said_to_be_worthless() -> None:
    trees, scored = drawn(60)
    same = list(scored.prms[0])
    chance = [np.full(len(tree.paths), 0.5) for tree in trees]
    assert "WORTHLESS" in spoilt(latents_swapped=same, noise_only=chance, order_shuffled=chance)
    assert "no better than with latents swapped." in spoilt(latents_swapped=same, noise_only=chance)
    said = spoilt(latents_swapped=chance, order_shuffled=same)
    assert "WORTHLESS" not in said and "but no use of the latents' order could be measured" in said
    mixed = sum(len({path.answers[0].correct for path in tree.paths[1:]}) == 2 for tree in trees)
    assert mixed < 60 and f"({mixed} mixed questions; controls that it does not beat: order shuffled)" in said
    assert f"as far as {mixed} mixed questions can tell" in spoilt(latents_swapped=same)
    assert "beats every one of its 2 controls" in spoilt(latents_swapped=chance, question_swapped=chance)
    assert "control" not in spoilt()


def test_a_few_questions_give_no_verdict() -> None:
    trees, scored = drawn(60)
    few = [q for q, tree in enumerate(trees) if len({path.answers[0].correct for path in tree.paths[1:]}) == 2][:9]
    trees += [grown("search", 60, noise_free=True, answers="111111")]
    scores = [*scored.prms[0], np.full(7, 0.5)]

    def said(which: list[int]) -> str:
        own = [scores[q] for q in which]
        both = Scored(prms=[own], rivals={"equal": own}, controls={"noise only": [own]})
        return printed(evaluate([trees[q] for q in which], both, num_bootstrap=50)).split("In detail")[0]

    for which in (few[:1], few):
        words = said(which)
        assert f"There are too few questions ({len(which)}) to tell whether PRM best or PRM-weighted vote" in words
        assert f"There are too few mixed questions ({len(which)}) to tell whether it beats its rivals and" in words
        assert not any(verdict in words for verdict in ("With 6 paths", "WORTHLESS", "does NOT tell", "better than"))
    words = said([*few, 60])
    assert "too few mixed questions (9)" in words and "With 6 paths" in words and "WORTHLESS" not in words


def test_what_is_of_the_first_of_several_prms_says_so() -> None:
    trees, scored = drawn(60)
    alone = evaluate(trees, scored, num_bootstrap=9)
    both = evaluate(trees, Scored(prms=[*scored.prms, *scored.prms]), num_bootstrap=9)
    assert "first PRM" not in printed(alone)
    assert "answering only where sure enough (the first PRM, all paths)" in " ".join(printed(both).split())
    assert "Answering only where 80 % sure (the first PRM, all paths):" in " ".join(all_of(both, "search")[1])
    _, results = evaluation_sections({}, both)
    assert "Answering only when sure (the first PRM, all paths)" in repr(results)


def test_where_a_prm_is_worthless_in_one_task_the_first_words_say_so() -> None:
    (good, of_good), (bad, of_bad) = drawn(60, task="arithmetic"), drawn(20, seed=1)
    chance = [np.full(len(tree.paths), 0.5) for tree in good]
    controls: dict[str, Sequence[Scores]] = {"noise only": [[*chance, *of_bad.prms[0]]]}
    found = evaluate(
        [*good, *bad], Scored(prms=[[*of_good.prms[0], *of_bad.prms[0]]], controls=controls), num_bootstrap=100
    )
    assert "Yet the PRM is WORTHLESS in search: see there." in printed(found).split("In detail")[0]
    assert "Yet" not in printed(evaluate(bad, replace(of_bad, controls={"noise only": of_bad.prms}), num_bootstrap=50))


def test_rivals_that_are_not_beaten_are_named() -> None:
    trees, scored = drawn(60)
    rivals = {"equal": scored.prms[0], "blind": [np.full(len(tree.paths), 0.5) for tree in trees]}
    said = verdict(evaluate(trees, replace(scored, rivals=rivals), num_bootstrap=100).overall)
    assert said[2] == "It does NOT tell right from wrong paths measurably better than: equal."
    del rivals["equal"]
    said = verdict(evaluate(trees, replace(scored, rivals=rivals), num_bootstrap=100).overall)
    assert said[2] == "It tells right from wrong paths measurably better than each of 1 rivals."


# --- the stage --------------------------------------------------------------------------------------------------------


def folder(path: Path, seeds: range) -> str:
    """A folder with a shard of random trees, that the built-in PRM can read."""
    trees = []
    for seed in seeds:
        question = f"Ann has {seed} apples . She buys 2 more . How many apples has Ann ?"
        trees.append(random_tree(seed, width=128, branches=(4,), latent_steps=(3, 3), question=question))
    path.mkdir()
    write_shard(trees, path, "some", {})
    return str(path)


def test_the_stage_measures_calibrates_shows_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = EvaluateOptions(
        checkpoint=("builtin", "builtin"),
        data_dir=folder(tmp_path / "test", range(12)),
        calibrate_on=folder(tmp_path / "apart", range(8, 40)),
        rivals_on=folder(tmp_path / "train", range(100, 120)),
        output_dir=str(tmp_path / "found"),
        num_bootstrap=50,
        device="cpu",
    )
    found = main(options)
    assert found.overall.num_prms == 2 and found.overall.accuracy["best"][4].spread == 0
    assert found.calibrated_on == 28  # four of the questions apart are measured on
    assert {"smoothness", "SWIFT gate", "question only", "noise only"} <= set(found.overall.rivals)
    assert found.overall.rivals["noise only"].control and found.overall.over_question is not None
    assert len(found.overall.steps) == 3 and "conservative" in found.overall.accuracy
    saved = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert saved["options"]["checkpoint"] == ["builtin", "builtin"]
    assert saved["comparisons"]["arithmetic"]["accuracy"]["vote"]["4"]["mean"] == found.overall.accuracy["vote"][4].mean
    assert confidence.load(tmp_path / "found") == found.confidences[0]
    assert "In detail" in capsys.readouterr().out
    pictures = pytest.importorskip("matplotlib") and ("accuracy", "calibration", "coverage", "steps")
    for name in pictures:
        assert (tmp_path / "found" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_thoughts_of_the_built_in_reasoner_are_checked_step_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reasoner = Reasoner.from_pretrained("builtin", device="cpu", dtype="float32")
    task = load_task("search")
    trees = reasoner.grow(task.questions("validation", 7, 24), task, reasoner.growth(num_paths=4))
    (tmp_path / "data").mkdir()
    write_shard(trees, tmp_path / "data", "some", {"model": "builtin", "weights": reasoner.digest()})
    options = EvaluateOptions(
        checkpoint=("builtin",), data_dir=str(tmp_path / "data"), output_dir=str(tmp_path), num_bootstrap=50
    )
    found = main(options)
    assert list(found.step_truth) == ["search"] and found.step_truth["search"].num_questions == 24
    assert "surety" in found.overall.rivals
    said = capsys.readouterr().out
    assert "first wrong latent" in said and "search: steps and outcome agree on" in said
    saved = json.loads((tmp_path / "evaluation.json").read_text())["step_truth"]["search"]
    assert saved["f1"]["PRM"]["mean"] == found.step_truth["search"].f1["PRM"].mean
    assert sum(saved["agreement"].values()) == 24 * 4
    write_shard([replace(trees[0], question_id="another")], tmp_path / "data", "more", {"model": "builtin"})
    assert thinker(options.data_dir) is None and "not grown by this built-in reasoner alone" in caplog.text
    assert thinker(str(tmp_path)) is None


def test_a_prm_that_sees_siblings_is_asked_about_fewer_paths_too() -> None:
    trees = [random_tree(seed, width=128, branches=(6,), latent_steps=(3, 3)) for seed in range(2)]
    model, options = QwenLatentPRM.from_pretrained("builtin"), EvaluateOptions(checkpoint=("builtin",), data_dir="data")
    alone = listen(model, trees, options)
    assert alone.fewer is None
    model.see("tree")
    beside = listen(model, trees, options)
    assert beside.fewer is not None and list(beside.fewer) == [4]
    for k, (scores, lower) in beside.fewer.items():
        expected = model.score_trees([first(tree, k) for tree in trees])
        assert all(torch.equal(own, other) for own, other in zip(scores, expected, strict=True))
        assert lower is not None and all(len(own) == k for own in lower)
        assert not torch.allclose(scores[0][0], beside.scores[0][1])  # path 0 of the whole tree has no noise
    with pytest.raises(ValueError, match="some beside its siblings"):
        together([alone, beside], {}, frozenset())


def test_questions_that_a_prm_or_the_measuring_has_seen_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees = [replace(tree, question=str(number)) for number, tree in enumerate(drawn(4)[0])]
    for name, seen in (("one", "0"), ("two", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "questions.json").write_text(json.dumps({"train": [question_digest(seen)]}))
    kept, seen = unseen(trees, [tmp_path / "one", tmp_path / "two"])
    assert [tree.question for tree in kept] == ["1", "3"] and seen == 2
    assert "2 of 4 questions were in the PRM's training" in caplog.text
    data = folder(tmp_path / "data", range(3))
    options = EvaluateOptions(checkpoint=("builtin",), data_dir="elsewhere", calibrate_on=str(data))
    measured = [random_tree(0, question="Ann has 1 apples . She buys 2 more . How many apples has Ann ?")]
    assert [tree.question.split()[2] for tree in others("calibrate_on", measured, options)] == ["0", "2"]
    asked = [replace(measured[0], question=tree.question) for tree in others("calibrate_on", [], options)]
    with pytest.raises(ValueError, match="No question in"):
        others("calibrate_on", asked, options)
    assert "1 of 3 trees in" in caplog.text and "graded" not in caplog.text


def test_questions_without_a_graded_path_are_not_taken_for_questions_measured_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees = [replace(random_tree(number, question=f"{number} ?"), gold="") for number in range(3)]
    for tree in trees:
        for path in tree.paths:
            path.answers = [replace(answer, correct=False) for answer in path.answers]
        tree.back_up()
    write_shard(trees, tmp_path, "some", {})
    options = EvaluateOptions(checkpoint=("builtin",), data_dir="elsewhere", calibrate_on=str(tmp_path))
    with pytest.raises(ValueError, match=r"None of the 2 other questions in .* has a graded path\. Collect some"):
        others("calibrate_on", trees[:1], options)
    assert "1 of 3 trees in" in caplog.text and "are of questions measured on: left out" in caplog.text
    assert "2 of 3 trees in" in caplog.text and "have no graded path: left out" in caplog.text


def test_a_calibration_of_other_scores_than_solve_s_replaces_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "best"
    shutil.copytree(prm_folder(), checkpoint)
    before = (checkpoint / "calibration.json").read_bytes()
    typed = {
        "checkpoint": (str(checkpoint),),
        "data_dir": folder(tmp_path / "test", range(2)),
        "calibrate_on": folder(tmp_path / "apart", range(8, 12)),
        "rivals": False,
        "num_bootstrap": 9,
        "device": "cpu",
    }
    main(EvaluateOptions(**typed, context="none"))
    assert (checkpoint / "calibration.json").read_bytes() == before
    assert "with --context none is not saved" in caplog.text
    caplog.clear()
    main(EvaluateOptions(**typed, context="question"))
    assert confidence.load(checkpoint).num_questions == 4 and "not saved" not in caplog.text


@pytest.mark.parametrize(("option", "split"), [("data_dir", "test"), ("calibrate_on", "validation"), ("rivals_on", "")])
def test_a_folder_without_trees_is_told_by_its_option_and_how_it_is_filled(
    option: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where no script is
    there, nowhere = folder(tmp_path / "data", range(3)), tmp_path / "nowhere"
    typed = {"data_dir": there, option: str(nowhere)}
    words = [word for name, value in typed.items() for word in (f"--{name}", value)]
    assert run(["evaluate", "--checkpoint", "builtin", *words, "--output_dir", str(tmp_path / "out")]) == 1
    collect = f"latent-prm collect{f' --split {split}' if split else ''} --output_dir {nowhere}"
    said = f'No .pt files found in {nowhere}\nRun "{collect}" first, or type another --{option}.\n'
    assert capsys.readouterr().err.endswith(said)


def test_latents_of_another_width_are_told_by_the_option_that_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, out = folder(tmp_path / "data", range(3)), tmp_path / "out"
    write_shard([random_tree(0)], tmp_path / "narrow", "shard", {})
    typed = ["--data_dir", there, "--calibrate_on", str(tmp_path / "narrow"), "--output_dir", str(out)]
    assert run(["evaluate", "--checkpoint", "builtin", *typed]) == 1
    said = capsys.readouterr().err
    assert f"The latents in {tmp_path / 'narrow'} are" in said and "Type the --calibrate_on of the reasoner" in said


@pytest.mark.parametrize("stage", ["evaluate --data_dir data", "solve 1+1", "serve", "steer", "export"])
def test_a_run_and_what_is_not_there_are_told_before_anything_else(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run/best").mkdir(parents=True)
    folder(tmp_path / "data", range(3))
    for module in ("latent_prm.reasoner.AutoModelForCausalLM", "latent_prm.pretrained.AutoConfig"):
        monkeypatch.setattr(f"{module}.from_pretrained", lambda *_, **__: pytest.fail("the reasoner was asked for"))
    out = ["--output_dir", "out"] * stage.startswith(("evaluate", "export", "steer"))
    for checkpoint, said in (
        ("run", "run is not a checkpoint: it has no config.json. Type run/best."),
        ("nothere", 'nothere does not exist. Type a folder as checkpoints/…/best, or "builtin".'),
    ):
        assert run([*stage.split(), "--checkpoint", checkpoint, *out]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"✗ ERROR: {said}\n")
    assert not Path("out").exists()


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="names none"):
        EvaluateOptions(checkpoint=(), data_dir="data")
    with pytest.raises(ValueError, match="--calibrate_on is data/, which is the --data_dir"):
        EvaluateOptions(checkpoint=("builtin",), data_dir="data", calibrate_on="data/")
    with pytest.raises(ValueError, match="--rivals_on is data/, which is the --data_dir"):
        EvaluateOptions(checkpoint=("builtin",), data_dir="data", rivals_on="data/")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_pictures_of_an_evaluation_show_what_they_are_given(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is the extra [plot]")
    from latent_prm import plots

    def inks(name: str) -> dict[str, int]:
        pixels = 255 * image.imread(tmp_path / name)[..., :3]
        found = {}
        for ink in ("BLUE", "RED", "ORANGE", "GREEN", "PURPLE", "BLACK"):
            code = getattr(plots, ink)
            rgb = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
            found[ink] = int((np.abs(pixels - rgb).max(2) < 2).sum())
        return found

    trees, scored = drawn(60)
    found: Comparison = evaluate(trees, scored, num_bootstrap=20).overall
    plots.accuracy_curve(found, tmp_path / "accuracy.png")
    shown = inks("accuracy.png")
    assert min(shown[ink] for ink in ("BLUE", "RED", "ORANGE", "GREEN", "PURPLE")) > 100
    few = evaluate(trees[:9], Scored(prms=[scored.prms[0][:9]]), num_bootstrap=20).overall
    plots.accuracy_curve(few, tmp_path / "few.png")
    assert inks("few.png")["PURPLE"] == 0  # there is no auto
    plots.calibration_curves({"paths": {"the PRM": [Bin(0.1, 0.2, 3)]}}, tmp_path / "one.png")
    curves = {"the PRM": [Bin(0.1, 0.2, 3), Bin(0.9, 0.6, 9)], "calibrated": [Bin(0.3, 0.3, 3), Bin(0.6, 0.6, 9)]}
    plots.calibration_curves({"paths": curves, "chosen answers": curves}, tmp_path / "two.png")
    assert inks("one.png")["RED"] == 0 < inks("one.png")["BLUE"] and inks("two.png")["RED"] > 200
    points = [Coverage(0.9, 0.1, 1.0), Coverage(0.5, 0.0, None), Coverage(0.2, 1.0, 0.4)]
    plots.coverage_picture({"calibrated probability": points, "share": points[::2]}, tmp_path / "deep" / "coverage.png")
    assert min(inks("deep/coverage.png")[ink] for ink in ("RED", "ORANGE")) > 100
    areas = [None, Interval(0.6, 0.5, 0.7), Interval(0.7, 0.6, 0.8)]
    steps = [Discrimination(auroc=area, pairwise=area, pooled=None, num_mixed=3) for area in areas]
    plots.steps_curve(steps, tmp_path / "steps.png")
    assert inks("steps.png")["BLUE"] > 200


def test_no_picture_of_steps_is_drawn_where_no_question_is_mixed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trees = [grown("search", i, noise_free=True, answers="1111") for i in range(4)]
    scores: Scores = [np.full(5, 0.5) for _ in trees]
    steps = [[[np.array([0.5])] * 5 for _ in trees]]
    found = evaluate(trees, Scored(prms=[scores], steps=steps), num_bootstrap=9)
    assert found.overall.steps  # of latents there is one, which tells nothing apart
    assert {path.name for path in evaluator.draw(found, tmp_path)} == {"accuracy.png", "calibration.png"}
