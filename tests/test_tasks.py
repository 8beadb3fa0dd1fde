"""Tasks: answers are read and compared by value, generated questions are what they claim, bad lines are named."""

from __future__ import annotations

import json
import logging
import re
import threading
from math import prod
from pathlib import Path

import pytest

from latent_prm.tasks import (
    LARGEST,
    ArithmeticTask,
    Question,
    SearchProblem,
    SearchTask,
    Split,
    Task,
    TextTask,
    boxed,
    canonical,
    extract_answer,
    load_task,
    question_digest,
    split_of,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

GSM8K = r"""{"question": "Natalia sold clips to 48 of her friends, and then half as many. How many?", "answer": "48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72 clips.\n#### 72"}
{"question": "A house costs $80,000 and sells for $150,000 more. What did it sell for?", "answer": "It sold for 80000+150000=$<<80000+150000=230000>>230,000.\n#### 230,000"}
{"question": "He owes 12 and pays 7. What has he?", "answer": "7-12=<<7-12=-5>>-5\n#### -5"}
"""  # noqa: E501 the lines are as GSM8K's own


# --- reading an answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{3}, no: \boxed{4}.", "4"),
        (r"\boxed{\frac{1}{2}} of 8", r"\frac{1}{2}"),
        (r"\boxed{\text{about } \sqrt{1 + \frac{1}{3}}}", r"\text{about } \sqrt{1 + \frac{1}{3}}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{5} and then cut off \boxed{6", "5"),
        (r"a stray } and { before \fbox { 8 }", "8"),
        (r"\boxed{} 5", ""),
        ("It is 3.\n#### 1,234\nand more 5", "1,234"),
        ("There are 3 of 4, so 12.", "12."),
        ("It costs 1,000 dollars", "1,000"),
        ("It costs $1,234,567.50.", "$1,234,567.50"),
        ("from 7-10", "10"),
        ("so x = -5", "-5"),
        ("so x = −5", "-5"),
        ("The share is 3/4.", "3/4"),
        ("They are .5 apart", ".5"),
        ("about 2.5 million people", "2.5 million"),
        ("I do not know.", ""),
        ("", ""),
    ],
)
def test_an_answer_is_the_last_box_else_the_mark_else_the_last_number(text: str, answer: str):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("value", "spellings"),
    [
        ("1000", ["1,000", "1000.0", "1000", "$1,000.00", r"\$1,000", "1{,}000", r"1\,000", "1 000", "+1000", "1e3"]),
        ("1000", ["1000 dollars", "x = 1000", "$1000$", r"\text{1000}", "1 thousand", "01000.", "€1000"]),
        ("-5", ["-5", "−5", "- 5", "-$5", "$-5.00", r"-5\%", "-5 °C", r"-5^\circ", r"-5^{\circ}"]),
        ("0.5", [".5", "0.50", "1/2", r"\frac{1}{2}", r"\frac12", r"\dfrac{2}{4}", "1/2 cup", "2 / 4"]),
        ("-0.75", ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "-.75"]),
        ("1.5", ["1 1/2", r"1\frac{1}{2}", "1.5 hours", "3/2"]),
        ("5", ["5 cm", r"5\text{ cm}", r"5\,\text{cm}^2", "5 cm^2", "5m", "5 m/s", "5%", "5 apples"]),
        ("1024", ["2^{10}", "2^10", "1,024"]),
        ("2500000", ["2.5 million", "2,500,000"]),
        ("1.414213562", [r"\sqrt{2}", r"\frac{2}{\sqrt{2}}"]),
        ("12345678901234567891", ["12345678901234567891", "12,345,678,901,234,567,891.0"]),
        ("0", ["0", "-0", "0.00", "-0.0"]),
        ("paris", ["Paris", r"\text{Paris}", " PARIS. "]),
        ("x + 1", ["x+1", "1 + x"]),
        ("", ["", " ", "$"]),
    ],
)
def test_equal_values_have_one_spelling(value: str, spellings: list[str]):
    assert {spelling: canonical(spelling) for spelling in spellings} == dict.fromkeys(spellings, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.333", "1/3"),
        ("1,000", "1"),
        ("5", "5 million"),
        ("3x", "3"),
        ("5", "-5"),
        ("12:30", "12"),
        ("1.000.000", "1"),
    ],
)
def test_different_values_have_different_spellings(one: str, other: str):
    assert canonical(one) != canonical(other)


def test_a_number_too_long_for_anybody_is_compared_as_text():
    assert canonical("9" * 6000) == "9" * 6000  # int() of it would raise


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9^9}}",
        "9^9^9^9^9",
        "(((9^{99})^{99})^{99})^{99}",
        "2**2**100",
        r"\sum_{i=1}^{10^9} i",
        "10^{400}",
        "1/0",
        "1e400",
    ],
)
def test_a_formula_that_would_take_for_ever_is_not_evaluated(hostile: str):
    assert canonical(hostile) == canonical(hostile) != ""
    assert not TextTask().grade(Question("q", "?", "1"), rf"\boxed{{{hostile}}}").correct


def test_a_box_opened_a_thousand_times_is_read_in_a_moment():
    assert boxed(r"\boxed{" * 20_000 + "1" + "}") == "1"


def test_formulas_are_read_outside_the_main_thread_and_without_a_word(caplog: pytest.LogCaptureFixture):
    found = []
    with caplog.at_level(logging.DEBUG):
        thread = threading.Thread(target=lambda: found.append(canonical(r"\frac{\sqrt{9}}{4}")))
        thread.start()
        thread.join()
    assert found == ["0.75"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("gold", "text", "value", "correct"),
    [
        ("18", r"She makes 9 * 2 = \boxed{18} dollars.", "18", True),
        ("1,000", "That is $1000.00", "1000", True),
        ("0.5", r"\boxed{\frac{1}{2}}", "0.5", True),
        ("18", "It is 18 of 20.", "20", False),
        ("18", "No idea.", "", False),
        ("", "No idea.", "", False),
    ],
)
def test_a_text_is_graded_by_value(gold: str, text: str, value: str, correct: bool):
    grade = TextTask().grade(Question("q", "?", gold), text)
    assert (grade.value, grade.correct) == (value, correct)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def solve(text: str) -> list[int]:
    """Every number in hand, read from the problem's sentences alone."""
    first, *sentences, _ = re.findall(r"[^.?]+[.?]", text)
    values = [int(re.findall(r"\d+", first)[0])]
    for sentence in sentences:
        amount = prod(int(number) for number in re.findall(r"\d+", sentence))  # "2 bags of 5" are 10
        if "half" in sentence:
            assert values[-1] % 2 == 0
            values.append(values[-1] // 2)
        elif "doubles" in sentence or "triples" in sentence:
            values.append(values[-1] * (2 if "doubles" in sentence else 3))
        else:
            less = any(verb in sentence for verb in (" gives away ", " loses ", " sells "))
            values.append(values[-1] + (-amount if less else amount))
    return values


def test_the_gold_of_every_word_problem_is_what_its_sentences_say():
    questions = ArithmeticTask().questions("train", seed=3, count=500)
    for question in questions:
        values = solve(question.text)
        assert question.gold == str(values[-1])
        assert 2 <= len(values) - 1 <= 6
        assert all(0 <= number <= LARGEST for number in [*values, *map(int, re.findall(r"\d+", question.text))])
    assert {len(solve(question.text)) - 1 for question in questions} == {2, 3, 4, 5, 6}


# --- search ----------------------------------------------------------------------------------------------------------


def test_every_search_question_is_solved_by_its_gold_and_survives_its_own_text():
    task = SearchTask()
    for question in task.questions("train", seed=3, count=500):
        problem = SearchProblem.parse(question.text)
        assert problem.text == question.text
        way = [int(number) for number in question.gold.split()]
        assert len(way) == problem.count and way[-1] == problem.target
        for here, there in zip([problem.start, *way], way, strict=False):
            moved = {here + n if sign == "+" else here - n if sign == "-" else here * 2 for sign, n in problem.moves}
            assert there in moved
        assert all(0 <= number <= LARGEST for number in [*way, *map(int, re.findall(r"\d+", question.text))])
        assert task.grade(question, question.gold).correct


SEARCH = Question(
    "search-x", "Start at 7. Moves: add 3, take 2, double. Reach 20 in 2 moves. Which numbers do you visit?", "10 20"
)


@pytest.mark.parametrize(
    ("text", "value", "correct"),
    [
        ("10 20", "10 20", True),  # 7 + 3 = 10, 10 * 2 = 20
        (r"From 7 I go \boxed{10, 20}.", "10 20", True),
        ("7 10 20", "10 20", True),  # the start named first is no visit
        ("7 -> 10 -> 20", "10 20", True),
        ("10-20", "10 20", True),
        ("10 -20", "10 -20", False),
        ("14 20", "14 20", False),  # 14 to 20 is no move
        ("17 20", "17 20", False),  # 7 to 17 is no move, though 17 + 3 = 20
        ("20", "20", False),  # too short
        ("7 20", "7 20", False),
        ("10 12 20", "10 12 20", False),  # too long
        ("10 13", "10 13", False),  # elsewhere
        ("no way", "", False),
        ("10 " + "2" * 6000, "10 222222222", False),
    ],
)
def test_a_search_answer_is_right_when_carrying_it_out_reaches_the_target(text: str, value: str, correct: bool):
    grade = SearchTask().grade(SEARCH, text)
    assert (grade.value, grade.correct) == (value, correct)


def test_any_way_to_the_target_is_right():
    question = Question("search-x", "Start at 4. Moves: add 4, double. Reach 16 in 2 moves.", "8 16")
    other = Question("search-x", "Start at 2. Moves: add 2, double, add 8. Reach 12 in 2 moves.", "4 12")
    assert SearchTask().grade(question, "8 16").correct
    assert SearchTask().grade(other, "4 12").correct and SearchTask().grade(other, "10 12").correct


def test_no_visit_may_leave_the_numbers_that_there_are():
    question = Question("search-x", "Start at 90. Moves: add 15, take 25. Reach 80 in 2 moves.", "")
    assert not SearchTask().grade(question, "105 80").correct
    below = Question("search-x", "Start at 5. Moves: take 9, add 14. Reach 10 in 2 moves.", "")
    assert not SearchTask().grade(below, "-4 10").correct and SearchTask().grade(below, "19 10").correct


def test_a_question_of_another_kind_is_no_search_question():
    with pytest.raises(ValueError, match="not a search question: 'How many'"):
        SearchTask().grade(Question("q", "How many", "1"), "1")


# --- the generators' splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [ArithmeticTask(), SearchTask()])
def test_splits_share_no_question_whatever_the_seeds(task: Task):
    drawn = {split: [q for seed in (0, 1, 42) for q in task.questions(split, seed, 15)] for split in SPLITS}
    texts = {split: {question.text for question in questions} for split, questions in drawn.items()}
    for split, questions in drawn.items():
        assert all(split_of(question.text) == split for question in questions)
        assert len({question.id for question in questions}) == len(texts[split])
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


@pytest.mark.parametrize("task", [ArithmeticTask(), SearchTask()])
def test_the_same_seed_asks_the_same_questions_each_once(task: Task):
    first, again, other = (task.questions("train", seed, 200) for seed in (5, 5, 6))
    assert first == again and first != other
    assert len({question.text for question in first}) == len({question.id for question in first}) == 200
    assert task.questions("train", 5, 20) == first[:20]


@pytest.mark.parametrize("task", [ArithmeticTask(), SearchTask()])
def test_a_generator_has_no_last_question(task: Task):
    with pytest.raises(ValueError, match=f"the task {task.name} never runs out of questions: .*--max_samples"):
        task.questions("train", 0, -1)


def test_a_text_task_has_no_questions_of_its_own():
    with pytest.raises(ValueError, match='"text" has no questions of its own'):
        load_task("text").questions("train", 0, 1)


# --- files -----------------------------------------------------------------------------------------------------------


def test_gsm8k_lines_are_read_with_their_golds(tmp_path: Path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(GSM8K)
    task = load_task(str(path))
    questions = task.questions("train", 0, -1)
    assert [question.gold for question in questions] == ["72", "230,000", "-5"]
    assert [question.id.rpartition("-")[0] for question in questions] == ["gsm8k"] * 3
    assert task.grade(questions[1], r"It sold for \boxed{\$230000}.").correct
    assert task.grade(questions[2], "-5 dollars").correct and not task.grade(questions[2], "5").correct
    assert task.questions("test", 7, 2) == questions[:2]


def test_a_question_asked_twice_is_asked_once(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    asked = ["What is 3 + 4?", "what is 3+4", "What is 3 - 4?", "What is 3 * 4?", "What is 3.4?", "What is 34?"]
    path.write_text("\n\n".join(json.dumps({"question": text, "answer": 7}) for text in asked))
    questions = load_task(str(path)).questions("train", 0, -1)
    assert [question.text for question in questions] == [asked[i] for i in (0, 2, 3, 4, 5)]
    assert questions[0].gold == "7"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"{oops", "is not JSON"),
        (b'{"question": "caf\xe9", "answer": "1"}', "is not JSON in UTF-8"),
        (b'{"question": "a"}', 'lacks a "question" or an "answer"'),
        (b'{"question": "a", "answer": null}', 'lacks a "question" or an "answer"'),
        (b'{"question": " ", "answer": "1"}', 'lacks a "question" or an "answer"'),
        (b'["a", "b"]', 'lacks a "question" or an "answer"'),
        (b'{"question": "a", "answer": "So\\n#### "}', "has an empty answer"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, wrong: str):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "3 + 4?", "answer": "7"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"q\.jsonl, line 2 {wrong}"):
        load_task(str(path)).questions("train", 0, -1)


def test_a_missing_or_short_file_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No such question file: .*none\.jsonl\. Type a path"):
        load_task(str(tmp_path / "none.jsonl")).questions("train", 0, 1)
    path = tmp_path / "q.jsonl"
    path.write_text(GSM8K)
    with pytest.raises(ValueError, match=r"q\.jsonl has 3 different questions, not 4\. Type --max_samples -1"):
        load_task(str(path)).questions("train", 0, 4)


# --- several tasks ---------------------------------------------------------------------------------------------------


def test_mixed_tasks_take_turns_and_grade_their_own():
    task = load_task("arithmetic, search")
    questions = task.questions("validation", seed=1, count=5)
    assert [question.id.split("-")[0] for question in questions] == ["arithmetic", "search"] * 2 + ["arithmetic"]
    assert questions[::2] == ArithmeticTask().questions("validation", 1, 3)
    assert all(task.grade(question, question.gold).correct for question in questions)
    assert task.name == "arithmetic,search"
    assert [len(task.questions("train", 0, count)) for count in (0, 1, 2)] == [0, 1, 2]


def test_mixed_files_are_read_to_the_end_and_told_apart_by_their_whole_name(tmp_path: Path):
    for name, count in (("search", 3), ("search-more", 1)):
        lines = [json.dumps({"question": f"{name} {i}?", "answer": i}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    task = load_task(f"{tmp_path / 'search.jsonl'},{tmp_path / 'search-more.jsonl'}")
    questions = task.questions("train", 0, -1)
    assert [question.text for question in questions] == ["search 0?", "search-more 0?", "search 1?", "search 2?"]
    mixed = load_task(f"search,{tmp_path / 'search-more.jsonl'}")
    assert mixed.grade(questions[1], "0").correct  # and not taken for a search question
    with pytest.raises(ValueError, match="question 'arithmetic-1' is of none of the tasks search,search-more"):
        mixed.grade(Question("arithmetic-1", "?", "1"), "1")


def test_a_task_named_twice_is_one_task():
    assert isinstance(load_task("arithmetic,arithmetic"), ArithmeticTask)


@pytest.mark.parametrize("spec", ["arithmetics", "gsm8k", "arithmetic,q.json"])
def test_an_unknown_task_is_named(spec: str):
    with pytest.raises(ValueError, match=r"unknown task '.*': type arithmetic, search or the path of a \.jsonl file"):
        load_task(spec)


def test_no_task_at_all_is_an_error():
    with pytest.raises(ValueError, match="--task is empty"):
        load_task(" , ")


def test_a_digest_depends_on_the_words_and_not_on_their_dress():
    assert question_digest("Ann has 3 apples.") == question_digest("ann  has 3 apples")
    assert question_digest("Ann has 3 apples.") != question_digest("Ann has 4 apples.")
    assert re.fullmatch(r"[0-9a-f]{16}", question_digest("?"))
