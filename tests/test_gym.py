"""reasoning-gym: its questions, its verdicts, from the question alone, and never running what a reasoner wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra [gym]")

from latent_prm import gym
from latent_prm.tasks import GymTask, Question, Split, load_task, split_of

ROOT = Path(__file__).parent.parent
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def drawn(generator: str, count: int = 1) -> list[Question]:
    return load_task(f"gym:{generator}").questions("train", 0, count)


def known(question: Question) -> str:
    """The library's own answer."""
    return json.loads(question.gold)["answer"]


@pytest.mark.parametrize("generator", ["basic_arithmetic", "countdown", "knights_knaves"])
def test_the_same_seed_draws_the_same_questions_each_once(generator: str) -> None:
    task = load_task(f"gym:{generator}")
    questions = task.questions("train", 5, 30)
    assert questions == load_task(f"gym:{generator}").questions("train", 5, 30) != task.questions("train", 6, 30)
    assert questions[:7] == task.questions("train", 5, 7) == list(islice(task.stream("train", 5), 7))
    assert len({question.id for question in questions}) == 30 and task.endless
    assert all(question.id.startswith(f"gym:{generator}-") for question in questions)


def test_neighbouring_seeds_draw_questions_of_their_own() -> None:
    """The library seeds its n-th question with seed + n: one seed higher would be the same questions, one further."""
    one, other = (load_task("gym:chain_sum").questions("train", seed, 300) for seed in (1, 2))
    assert len({question.text for question in one} & {question.text for question in other}) < 30


def test_splits_share_no_question() -> None:
    task = load_task("gym:basic_arithmetic")
    texts = {split: {q.text for seed in (0, 1) for q in task.questions(split, seed, 20)} for split in SPLITS}
    assert all(split_of(text) == split for split, found in texts.items() for text in found)
    assert not texts["train"] & texts["validation"] and not (texts["train"] | texts["validation"]) & texts["test"]


def test_a_stream_goes_on_from_one_window_to_the_next() -> None:
    assert len({text for text, _ in islice(gym.draw("number_sorting", 0), gym.WINDOW + 50)}) == gym.WINDOW + 50


@pytest.mark.parametrize(
    "generator", ["basic_arithmetic", "countdown", "spell_backward", "n_queens", "simple_integration", "rearc"]
)
def test_the_known_answer_is_right_boxed_or_bare_and_another_is_not(generator: str) -> None:
    task = load_task(f"gym:{generator}")
    for question in drawn(generator, 5):
        answer = known(question)
        assert task.grade(question, f"So \\boxed{{{answer}}}.").correct
        assert task.grade(question, answer).correct
        assert not task.grade(question, "\\boxed{nothing}").correct and not task.grade(question, "").correct


def test_the_librarys_verifier_decides_and_not_the_text_of_its_answer() -> None:
    (question,) = drawn("countdown")
    task = load_task("gym:countdown")
    way = known(question)
    target = round(eval_sum(way))
    for text in (f"\\boxed{{({way}) * 1 / 1}}", f"\\boxed{{{target}}}", f"\\boxed{{{target} * 1}}"):
        assert not task.grade(question, text).correct  # the target is reached, but with other numbers
    for text in (f"\\boxed{{ ({way}) }}", f"It is {way}\n#### {way}", f"$\\boxed{{\\text{{{way}}}}}$"):
        assert task.grade(question, text).correct
    latex = way.replace("*", r" \times ")
    assert task.grade(question, rf"\boxed{{{latex}}}").correct


def eval_sum(way: str) -> float:
    from sympy import parse_expr

    return float(parse_expr(way))


def test_partial_credit_is_not_right() -> None:
    (question,) = drawn("spell_backward")
    task = load_task("gym:spell_backward")
    assert task.grade(question, rf"\boxed{{{known(question)}}}").correct
    assert not task.grade(question, rf"\boxed{{{known(question)}s}}").correct


def test_equal_numbers_count_as_one_vote_and_ways_by_their_text() -> None:
    (question,) = drawn("basic_arithmetic")
    task = load_task("gym:basic_arithmetic")
    texts = (r"\boxed{1,000}", r"\boxed{1000.0}", "about 1000")
    assert {task.grade(question, text).value for text in texts} == {"1000"}
    (question,) = drawn("countdown")
    task = load_task("gym:countdown")
    assert task.grade(question, r"\boxed{3 *  4}").value == "3 * 4" != task.grade(question, r"\boxed{6 * 2}").value


def test_another_process_grades_from_the_question_alone() -> None:
    questions = drawn("basic_arithmetic", 3) + drawn("countdown", 3)
    code = """
import json, sys
from latent_prm.tasks import Question, load_task
task = load_task("gym:basic_arithmetic,gym:countdown")
for line in sys.stdin:
    question = Question(**json.loads(line))
    answer = json.loads(question.gold)["answer"]
    print(task.grade(question, answer).correct, task.grade(question, "12345").correct)"""
    typed = "\n".join(json.dumps(asdict(question)) for question in questions)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=typed, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == ["True False"] * 6


def test_a_question_that_was_not_drawn_here_is_refused() -> None:
    (question,) = drawn("basic_arithmetic")
    task = load_task("gym:basic_arithmetic")
    with pytest.raises(ValueError, match=r"gym:basic_arithmetic did not draw this question here.*PYTHONHASHSEED=0"):
        task.grade(replace(question, text="What is 1 + 1?"), "2")
    for gold in ("42", "{}", '{"seed": 1, "index": 500}', '{"seed": 1, "index": -1}', "[" * 5000):
        with pytest.raises(ValueError, match="gym:basic_arithmetic cannot judge a question whose gold is"):
            task.grade(replace(question, gold=gold), "42")


def test_a_generator_that_runs_dry_says_so() -> None:
    with pytest.raises(ValueError, match=r"gym:coin_flip seems to have only \d+ questions of the test split"):
        load_task("gym:coin_flip").questions("test", 0, 5000)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("countdwn", r"reasoning-gym has no 'countdwn'\. Type gym: and one of its names: countdown"),
        ("qqq", r"reasoning-gym has no 'qqq'\. .*basic_arithmetic.*zebra_puzzles"),
        ("", "reasoning-gym has no ''"),
        ("composite", "reasoning-gym draws no composite without settings of its own"),
    ],
)
def test_an_unknown_generator_is_answered_with_close_names(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_task(f"gym:{name}")


def test_without_the_library_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r'gym:countdown is drawn by reasoning-gym.*pip install "latent-prm\[gym\]"'):
        GymTask("countdown")


# --- verifiers that run the answer -----------------------------------------------------------------------------------

RUN_IT = ("countdown", "puzzle24", "simple_integration", "polynomial_multiplication", "spiral_matrix", "n_queens")


@pytest.mark.parametrize("generator", RUN_IT)
def test_no_answer_is_ever_run_as_a_program(generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (question,) = drawn(generator)
    task = load_task(f"gym:{generator}")
    touch = "__import__('pathlib').Path('canary').touch()"
    for code in (touch, f"[{touch}]", "[open][0]('canary', 'w')", "(lambda: open('canary', 'w'))()", f"S({touch!r})"):
        assert not task.grade(question, f"\\boxed{{{code}}}").correct
        assert not task.grade(question, code).correct
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "endless", ["9**9**9**9", "9**(9**9)", "9 ** 99999999", "((((9**9)**9)**9)**9)**9", "99999999999!", "'a'*999999999"]
)
def test_no_answer_keeps_a_verifier_busy(endless: str) -> None:
    (question,) = drawn("countdown")
    began = time.monotonic()
    assert not load_task("gym:countdown").grade(question, rf"\boxed{{{endless}}}").correct
    assert time.monotonic() - began < 5


def test_verifiers_that_run_the_answer_are_known_by_their_source() -> None:
    assert all(gym._evaluates(type(gym._drawer(name, 0))) for name in RUN_IT)
    assert not gym._evaluates(type(gym._drawer("spell_backward", 0)))
