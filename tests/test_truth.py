"""Truth about steps: problems carried out by hand, claims counted by hand, and the built-in reasoner's own thoughts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path as Folder

import numpy as np
import pytest
import torch
from conftest import random_tree

from latent_prm.model import QwenLatentPRM
from latent_prm.problems import ArithmeticProblem, SearchProblem, draw_arithmetic, draw_search
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import load_task
from latent_prm.tree import Answer, Path, ReasoningTree
from latent_prm.truth import (
    Agreement,
    Change,
    agreement_of,
    baselines,
    change_of,
    f1,
    first_error,
    judged,
    localise,
    said,
    sound,
    step_scores,
    sure_thoughts,
    surety,
)

STORY = (
    "Ann has 7 pens. On Monday she buys 3 bags of 4. On Tuesday she gives away half. On Wednesday she triples them. "
    "On Thursday she gives away 2. On Friday she doubles them. How many pens does Ann have?"
)
MOVES = "Start at 7. Moves: add 3, double, take 6. Reach 20 in 2 moves. Which numbers do you visit?"


def about(question: str, task: str, steps: tuple[str, ...] = ()) -> ReasoningTree:
    return ReasoningTree(question_id=f"{task}-1", question=question, gold="", task=task, paths=[], steps=steps)


def verdicts(tree: ReasoningTree, *numbers: int) -> list[bool]:
    return sound(tree, [np.array(numbers)])[0].tolist()


# --- problems read back ---------------------------------------------------------------------------------------------


def test_a_story_is_read_back_as_the_operations_it_tells() -> None:
    problem = ArithmeticProblem.parse(STORY)
    assert problem.operations == (("+", 12), ("/", 2), ("*", 3), ("-", 2), ("*", 2))
    assert problem.values == [19, 9, 27, 25, 50]


def test_every_story_drawn_is_read_back_as_it_was_drawn() -> None:
    rng = random.Random(0)
    for _ in range(500):
        problem = draw_arithmetic(rng)
        assert ArithmeticProblem.parse(problem.text) == problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("What is 3 + 4?", "not an arithmetic question"),
        (STORY.replace("triples them", "eats 3"), "no operation in 'On Wednesday she eats 3'"),
        (STORY.replace("gives away half", "sells half"), "no operation in 'On Tuesday she sells half'"),
    ],
)
def test_what_is_no_story_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ArithmeticProblem.parse(text)


def test_hopeful_numbers_are_those_from_which_the_target_is_near_enough() -> None:
    problem = SearchProblem.parse(MOVES)
    assert problem.hopeful() == [{14, 23, 7, 5, 16, 13, 32}, {17, 10, 26}, {20}]


def test_every_way_drawn_is_hopeful_to_the_end() -> None:
    rng = random.Random(0)
    for _ in range(100):
        problem, way = draw_search(rng)
        assert all(there in hopeful for there, hopeful in zip([problem.start, *way], problem.hopeful(), strict=True))


# --- sound steps ----------------------------------------------------------------------------------------------------


def test_a_step_of_arithmetic_is_sound_while_every_number_is_the_true_one() -> None:
    story = about(STORY, "arithmetic")
    assert verdicts(story, 19, 9, 27, 25, 50) == [True] * 5
    assert verdicts(story, 19, 9, 27, 25, 50, 50, 50) == [True] * 7
    assert verdicts(story, 19, 9, 27, 25, 50, 51) == [True] * 5 + [False]
    assert verdicts(story, 19, 8, 27) == [True, False, False], "a slip that mends itself was a slip"


def test_known_steps_are_taken_at_their_word() -> None:
    assert verdicts(about("anything", "arithmetic", steps=("4", "6")), 4, 6, 6) == [True] * 3


def test_a_move_is_sound_if_it_is_legal_and_the_target_can_still_be_reached() -> None:
    moves = about(MOVES, "search")
    assert verdicts(moves, 10, 20, 20) == [True] * 3
    assert verdicts(moves, 14, 20) == [False, False], "legal, but 14 is a dead end"
    assert verdicts(moves, 17, 20) == [False, False], "17 leads to 20, but nothing leads to 17"
    assert verdicts(moves, 10, 13) == [True, False]
    assert verdicts(moves, 10, 20, 23) == [True, True, False], "after the last move the number stays"


def test_any_way_that_leads_there_is_sound() -> None:
    ways = about(MOVES.replace("Reach 20 in 2", "Reach 4 in 2"), "search")
    assert verdicts(ways, 10, 4) == [True, True]
    assert verdicts(ways, 1, 4) == [True, True]


def test_other_tasks_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="'gsm8k' cannot be checked"):
        verdicts(about("How many?", "gsm8k", steps=("4",)), 4)


# --- finding the first error ----------------------------------------------------------------------------------------


def paths(*rows: list[float]) -> list[list[np.ndarray]]:
    """One question with these paths."""
    return [[np.array(row, dtype=float) for row in rows]]


def truths(*rows: str) -> list[list[np.ndarray]]:
    """The same, of + for a sound latent and - for another."""
    return [[np.array([sign == "+" for sign in row]) for row in rows]]


def test_the_first_error_is_where_soundness_ends() -> None:
    ((never, second, first),) = truths("+++", "+--", "-")
    assert (first_error(never), first_error(second), first_error(first)) == (-1, 1, 0)


def test_a_score_that_falls_below_the_picked_threshold_claims_the_first_error() -> None:
    known = truths("+++", "+--", "-", "++-"), paths([0.9, 0.8, 0.7], [0.9, 0.2, 0.1], [0.3], [0.9, 0.8, 0.1])
    found = localise(known[1], known[0], known[1], known[0])
    assert found.rule == "below" and 0.3 < found.threshold <= 0.7
    assert (found.f1, found.counts.tolist()) == (pytest.approx(1.0), [[3, 3, 1, 1]])
    # of three unseen paths with an error, one is found; one of two sound ones is cleared
    test = paths([0.9, 0.1, 0.1], [0.9, 0.2, 0.1], [0.9], [0.8, 0.9], [0.1, 0.9])
    found = localise(test, truths("+--", "++-", "-", "++", "++"), known[1], known[0])
    assert found.counts.tolist() == [[3, 1, 2, 1]]
    assert (found.found, found.cleared) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert found.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_where_the_level_says_nothing_the_steepest_drop_does() -> None:
    known = paths([0.9, 0.85, 0.8], [0.7, 0.66, 0.6], [0.9, 0.88, 0.65], [0.75, 0.55, 0.5], [0.9, 0.62, 0.6])
    right = truths("+++", "+++", "++-", "+--", "+--")
    found = localise(known, right, known, right)
    assert found.rule == "drop"
    assert (found.f1, found.counts.tolist()) == (pytest.approx(1.0), [[3, 3, 2, 2]])


def test_counts_are_kept_by_question_for_intervals() -> None:
    scores, right = paths([0.9], [0.1]) + paths([0.9]), truths("+", "-") + truths("-")
    found = localise(scores, right, scores[:1], right[:1])
    assert found.counts.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert f1(found.counts).tolist() == pytest.approx([1.0, 0.0])
    assert f1(np.stack([found.counts.sum(0), found.counts[0] * 2])).tolist() == pytest.approx([2 / 3, 1.0])


def test_scores_that_know_nothing_find_nothing() -> None:
    scores, right = paths([1.0, 1.0], [1.0, 1.0]), truths("++", "+-")
    found = localise(scores, right, scores, right)
    assert (found.found, found.cleared, found.f1) == (0.0, 1.0, 0.0)


def test_a_threshold_needs_sound_paths_and_others() -> None:
    with pytest.raises(ValueError, match="Of the 2 calibration paths 2 are sound"):
        localise(paths([0.1]), truths("+"), paths([0.1], [0.2]), truths("+", "+"))


def test_the_change_at_errors_and_elsewhere() -> None:
    change = change_of(paths([0.9, 0.8, 0.2, 0.1], [0.5, 0.6], [0.1, 0.9]), truths("++--", "++", "--"))
    assert change.at_error == pytest.approx(-0.6)
    assert change.elsewhere == pytest.approx((-0.1 + 0.1) / 2)
    assert change_of(paths([0.9, 0.8]), truths("--")) == Change(None, None)


def test_steps_and_outcome_are_told_apart() -> None:
    def leaf(*right: bool, noise_free: bool = False) -> Path:
        answers = [Answer(text="", value="", correct=correct) for correct in right]
        return Path(latents=torch.zeros(2, 2), tip=None, answers=answers, noise_free=noise_free)

    leaves = [leaf(True, noise_free=True), leaf(True), leaf(True), leaf(False), leaf(False), leaf(True, False), leaf()]
    tree = replace(about(STORY, "arithmetic"), paths=leaves)
    assert judged(tree) == [1, 2, 3, 4, 5, 6]
    found = agreement_of([tree], truths("++", "+-", "+-", "++", "++", "++"))
    assert found == Agreement(sound_right=2, sound_wrong=1, unsound_right=1, unsound_wrong=1)
    assert str(found) == (
        "steps and outcome agree on 60.0 % of 5 paths: 66.7 % of the sound ones end right, 50.0 % of the others"
    )


# --- step scores ----------------------------------------------------------------------------------------------------


def test_step_scores_are_the_models_scores_of_prefixes(tiny_lm: Folder) -> None:
    torch.manual_seed(0)
    prm = QwenLatentPRM(model_path=str(tiny_lm)).train()
    trees = [random_tree(1), random_tree(2, branches=(3,))]
    found = step_scores(prm, trees)
    assert prm.training, "it is left as it was"
    for tree, rows in zip(trees, found, strict=True):
        for i, row in enumerate(rows):
            chain = tree.chain_latents(i)
            expected = prm.predict_step_scores(chain[None], questions=[tree.question])[0]
            np.testing.assert_allclose(row, expected.detach().numpy(), atol=1e-5)
    assert np.abs(step_scores(prm, trees, context=False)[0][0] - found[0][0]).max() > 1e-4


def test_a_prm_that_reads_tip_and_answer_has_not_seen_them_in_the_middle_of_a_thought(tiny_lm: Folder) -> None:
    torch.manual_seed(0)
    prm = QwenLatentPRM(model_path=str(tiny_lm)).eval()
    tree = random_tree(1)
    (plain,) = step_scores(prm, [tree])
    prm.reads = ("fed", "tip", "answer")
    (rows,) = step_scores(prm, [tree])
    assert [len(row) for row in rows] == [len(tree.chain_latents(i)) for i in range(len(tree.paths))]
    for one, other in zip(plain, rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert abs(float(prm.score_trees([tree])[0][0]) - rows[0][-1]) > 1e-4, "the whole chain's score has"


def test_latents_beyond_the_models_reach_get_the_score_of_the_first_that_is_read(tiny_lm: Folder) -> None:
    torch.manual_seed(0)
    prm = QwenLatentPRM(model_path=str(tiny_lm)).eval()
    tree = random_tree(1, branches=(1,), latent_steps=(5, 5), noise_free=False)
    prm.max_seq_length = 3
    (row,) = step_scores(prm, [tree])[0]
    read = prm.predict_step_scores(tree.paths[0].latents[None, -3:], questions=[tree.question])[0]
    np.testing.assert_allclose(row, read[[0, 0, 0, 1, 2]].detach().numpy(), atol=1e-5)


# --- the built-in reasoner ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner.from_pretrained("builtin", device="cpu")


@pytest.fixture(scope="module")
def grown(reasoner: Reasoner) -> dict[str, list[ReasoningTree]]:
    found = {}
    for name in ("arithmetic", "search"):
        task = load_task(name)
        settings = reasoner.growth(num_paths=4, noise={"arithmetic": 0.15, "search": 0.4}[name])
        found[name] = reasoner.grow(task.questions("validation", 42, 24), task, settings)
    return found


@pytest.mark.parametrize("name", ["arithmetic", "search"])
def test_the_built_in_reasoners_thoughts_say_what_it_answers(reasoner: Reasoner, grown, name: str) -> None:
    """Without noise, what its latents decode to is mostly what it says, and sound thoughts are mostly right."""
    same, right = [], {True: [], False: []}
    for tree in grown[name]:
        answer, numbers = tree.paths[0].answers[0], said(reasoner, tree)[0]
        spoken = numbers[: SearchProblem.parse(tree.question).count] if name == "search" else numbers[-1:]
        same.append(answer.value.split() == [str(number) for number in spoken])
        right[bool(sound(tree, [numbers])[0].all())].append(answer.correct)
    assert np.mean(same) > 0.7
    assert len(right[True]) >= 5 and np.mean(right[True]) > 0.7 and np.mean(right[False]) < 0.4


def test_numbers_are_read_along_the_chain(reasoner: Reasoner, grown) -> None:
    tree = grown["search"][0]
    first, second = (Path(latents=part, tip=None) for part in tree.paths[1].latents.split(3))
    second.parent = 0
    numbers = said(reasoner, replace(tree, paths=[first, second]))
    assert numbers[0].tolist() == said(reasoner, tree)[1][:3].tolist()
    assert numbers[1].tolist() == said(reasoner, tree)[1].tolist()


def test_a_latent_that_is_a_numbers_own_direction_surely_says_it(reasoner: Reasoner) -> None:
    word = reasoner.model.get_output_embeddings().weight[[42, 7]].float()
    faint = Path(latents=word[:1] * 0.01, tip=None)
    tree = replace(about(MOVES, "search"), paths=[Path(latents=word * 100, tip=None), faint])
    assert said(reasoner, tree)[0].tolist() == [42, 7]
    assert surety(reasoner, tree)[0].tolist() == pytest.approx([1, 1])
    assert 0.01 <= surety(reasoner, tree)[1][0] < 0.02


def test_a_reasoner_whose_latents_are_no_numbers_is_refused(tiny_lm: Folder) -> None:
    with pytest.raises(ValueError, match="do not decode to numbers"):
        said(Reasoner.from_pretrained(str(tiny_lm), device="cpu"), random_tree())


def test_baselines_score_every_latent(reasoner: Reasoner, grown) -> None:
    trees = grown["search"][:2]
    found = baselines(reasoner, trees, seed=0)
    for name, steps in found.items():
        assert [[len(row) for row in rows] for rows in steps] == [[6] * 5] * 2, name
    np.testing.assert_array_equal(found["surety"][1][3], surety(reasoner, trees[1])[3])
    (thoughts,) = sure_thoughts(reasoner)(trees[:1])
    assert thoughts[2] == pytest.approx(np.log(found["surety"][0][2]).mean())
    latents = trees[0].paths[2].latents
    assert found["smoothness"][0][2][0] == 1
    assert found["smoothness"][0][2][1] == pytest.approx(float(torch.cosine_similarity(latents[0], latents[1], dim=0)))
