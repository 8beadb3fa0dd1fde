"""Tasks: generated questions are what they claim and stay what they are, files are read whole, bad lines are named."""

from __future__ import annotations

import json
import pickle
import re
import sys
from hashlib import sha256
from itertools import islice
from math import prod
from pathlib import Path

import pytest

from latent_prm.problems import LARGEST, SearchProblem
from latent_prm.tasks import (
    ArithmeticTask,
    Question,
    SearchTask,
    Split,
    Task,
    TextTask,
    find_repeats,
    load_task,
    split_of,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

GSM8K = r"""{"question": "Natalia sold clips to 48 of her friends, and then half as many. How many?", "answer": "48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72 clips.\n#### 72"}
{"question": "A house costs $80,000 and sells for $150,000 more. What did it sell for?", "answer": "It sold for 80000+150000=$<<80000+150000=230000>>230,000.\n#### 230,000"}
{"question": "He owes 12 and pays 7. What has he?", "answer": "7-12=<<7-12=-5>>-5\n#### -5"}
"""  # noqa: E501 the lines are as GSM8K's own


# --- grading ---------------------------------------------------------------------------------------------------------


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
    nowhere = "Start at 7. Moves: add 3, double. Reach 7 in 0 moves. Which numbers do you visit?"
    with pytest.raises(ValueError, match="not a search question: 'Start at 7"):
        SearchTask().grade(Question("q", nowhere, "1"), "")


@pytest.mark.parametrize("moves", ["add 3, halve", "add 3 double", "subtract 2", "add 3,", "add"])
def test_a_move_that_is_none_is_named(moves: str):
    strange = moves.split(",")[-1].strip()
    with pytest.raises(ValueError, match=rf"there is no move '{strange}': a move is add N, take N or double"):
        SearchProblem.parse(f"Start at 7. Moves: {moves}. Reach 20 in 2 moves.")


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


def test_the_built_in_tasks_ask_what_they_have_always_asked():
    """The shipped weights and every figure of the model cards stand on these very questions."""
    asked = [
        (question.id, question.text, question.gold)
        for task in (ArithmeticTask(), SearchTask())
        for split in SPLITS
        for question in task.questions(split, 42, 50)
    ]
    assert (
        sha256(repr(asked).encode()).hexdigest() == "69f62b047fce9cf68e65dfbf482025ef953a068a422dadac83288e69d0644cad"
    )


@pytest.mark.parametrize("spec", ["arithmetic", "search", "arithmetic,search"])
def test_questions_are_the_first_of_an_endless_stream(spec: str):
    task = load_task(spec)
    assert task.endless
    stream = task.stream("validation", 3)
    assert list(islice(stream, 40)) == task.questions("validation", 3, 40)
    assert next(stream) == task.questions("validation", 3, 41)[-1]


@pytest.mark.parametrize("spec", ["arithmetic", "search", "arithmetic,search", "q.jsonl", "gsm8k"])
def test_an_unknown_split_is_refused_at_once(spec: str):
    with pytest.raises(ValueError, match="there is no split 'dev': type --split train, validation, test"):
        load_task(spec).stream("dev", 0)  # type: ignore[reportArgumentType]


def test_the_kind_says_how_a_question_is_put():
    assert [load_task(spec).questions("test", 0, 1)[0].kind for spec in ("arithmetic", "search")] == ["maths", "search"]
    assert Question("q", "?", "1").kind == "text"


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
        (b'{"question": "a \\ud83d", "answer": "1"}', "has half of a character"),
        (b'{"question": "a", "answer": NaN}', "has NaN for a text or a number: write it in quotes"),
        (b'{"question": "a", "answer": 1e999}', "has Infinity for a text"),
        (b'{"question": "a", "answer": true}', "has true for a text"),
        (b'["a", "b"]', "is not a JSON object"),
        (b'{"question": "a", "answer": "A", "choices": ["x"]}', "has 1 choices: write 2 to 26"),
        (b'{"question": "a", "answer": "A", "choices": "x, y"}', "has choices that are no list of texts: 'x, y'"),
        (b'{"question": "a", "answer": "C", "options": ["x", "y"]}', "has the answer 'C', which is neither the letter"),
        (b'{"question": "a", "answer": "x", "options": ["x", "x"]}', "has the answer 'x', which is neither the letter"),
        (b'{"question": "a", "answer": "So\\n#### "}', "has an empty answer"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, wrong: str):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "3 + 4?", "answer": "7"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"q\.jsonl, line 2 {wrong}"):
        load_task(str(path)).questions("train", 0, 1)  # though the first line alone is asked for


CHOICES = "Which is even?\nA. 3\nB. 4\nC. 5"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which is even?", "answer": "B", "choices": ["3", "4", "5"]},
        {"question": "Which is even?", "answer": "(B)", "options": ["3", " 4\n", "5"]},
        {"question": "Which is even?", "answer": 4, "choices": ["3", "4", "5"]},
        {"question": "Which is even?", "answer": "B", "A": "3", "B": "4", "C": "5", "D": ""},
    ],
)
def test_choices_make_a_question_that_is_answered_by_a_letter(tmp_path: Path, row: dict[str, object]):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row))
    task = load_task(str(path))
    (question,) = task.questions("train", 0, -1)
    assert (question.text, question.gold, question.kind) == (CHOICES, "B", "choice")
    assert task.grade(question, r"\boxed{B}").correct and task.grade(question, r"\boxed{4}").value == "B"
    assert task.grade(question, "The answer is A").value == "A" and not task.grade(question, "A").correct
    assert task.grade(question, "4").value == "" and not task.grade(question, "").correct


def test_a_csv_has_a_header_quoted_cells_and_columns_of_choices(tmp_path: Path):
    path = tmp_path / "q.csv"
    path.write_text(
        '\ufeffanswer,question,A,B,C,note\r\n7,"What is 3 + 4,\r\nsaid Ann?",,,,easy\r\n\r\n"1,000",How many?\r\n'
        "C,Which is odd?,2,4,5,\r\n",
        encoding="utf-8",
    )
    questions = load_task(str(path)).questions("test", 0, -1)
    assert [(q.text, q.gold, q.kind) for q in questions] == [
        ("What is 3 + 4,\r\nsaid Ann?", "7", "text"),
        ("How many?", "1,000", "text"),
        ("Which is odd?\nA. 2\nB. 4\nC. 5", "C", "choice"),
    ]


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        (b"question,answer\n3 + 4?,7\n,8\n", r'q\.csv, line 3 lacks a "question" or an "answer"'),
        (b'question,answer\n"3 +\n4?",7\n5?\n', r'q\.csv, line 4 lacks a "question" or an "answer"'),
        (b"question,solution\n3 + 4?,7\n", r'q\.csv, line 2 lacks a "question" or an "answer"'),
        (b"question,answer\n3, 4 or 5?,7\n", r"q\.csv, line 2 is not CSV in UTF-8 \(3 cells under a header of 2\)"),
        (b"question,answer,answer\n3?,1,2\n", r"q\.csv, line 1 is not CSV .* names the column 'answer' twice"),
        (b'question,answer\n"3 + 4?,7\n', r"q\.csv, line 2 is not CSV in UTF-8"),
        (b"question,answer\ncaf\xe9,7\n", r"q\.csv, line \d is not CSV in UTF-8"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(tmp_path: Path, written: bytes, wrong: str):
    path = tmp_path / "q.csv"
    path.write_bytes(written)
    with pytest.raises(ValueError, match=wrong):
        load_task(str(path)).stream("train", 0)


def test_a_json_file_is_a_list_of_objects_or_lines_of_them(tmp_path: Path):
    path, asked = tmp_path / "q.json", [{"question": "3 + 4?", "answer": 7}, {"question": "5 + 5?", "answer": "10"}]
    for written in (json.dumps(asked, indent=2), "\ufeff" + json.dumps(asked), "\n".join(map(json.dumps, asked))):
        path.write_text(written, encoding="utf-8")
        assert [q.gold for q in load_task(str(path)).questions("train", 0, -1)] == ["7", "10"]
    for written, wrong in (
        ("[1]", "row 1 is not a JSON object"),
        ("[{", "is not JSON"),
        ('[{"question": "a"}]', "row 1 l"),
    ):
        path.write_text(written)
        with pytest.raises(ValueError, match=rf"q\.json,? {wrong}"):
            load_task(str(path)).stream("train", 0)


def test_an_empty_file_has_no_questions(tmp_path: Path):
    for name in ("q.csv", "q.jsonl"):
        (tmp_path / name).write_text("")
        assert load_task(str(tmp_path / name)).questions("train", 0, -1) == []


def test_a_parquet_file_is_read_by_its_rows(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra [data]")
    from pyarrow import parquet

    path = tmp_path / "q.parquet"
    good = [
        {"question": "3 + 4?", "answer": "7", "choices": None},
        {"question": "Which is even?", "answer": "B", "choices": ["3", "4", "5"]},
    ]
    parquet.write_table(arrow.Table.from_pylist(good), path)
    questions = load_task(str(path)).questions("train", 0, -1)
    assert [(q.text, q.gold, q.kind) for q in questions] == [("3 + 4?", "7", "text"), (CHOICES, "B", "choice")]
    parquet.write_table(arrow.Table.from_pylist([*good, {"question": "?", "answer": None}]), path)
    with pytest.raises(ValueError, match=r'q\.parquet, row 3 lacks a "question" or an "answer"'):
        load_task(str(path)).questions("train", 0, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"q\.parquet, after row 0: not a readable \.parquet file"):
        load_task(str(path)).stream("train", 0)


def test_without_pyarrow_the_command_that_brings_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'pyarrow, which is missing here: pip install "latent-prm\[data\]"'):
        load_task(str(tmp_path / "q.parquet")).stream("train", 0)


def test_a_missing_or_short_file_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No such question file: .*none\.jsonl\. Type the path"):
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
    for name, count in (("quiz", 3), ("search-more", 1)):
        lines = [json.dumps({"question": f"{name} {i}?", "answer": i}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    task = load_task(f"{tmp_path / 'quiz.jsonl'},{tmp_path / 'search-more.jsonl'}")
    questions = task.questions("train", 0, -1)
    assert [question.text for question in questions] == ["quiz 0?", "search-more 0?", "quiz 1?", "quiz 2?"]
    mixed = load_task(f"search,{tmp_path / 'search-more.jsonl'}")
    assert mixed.grade(questions[1], "0").correct  # and not taken for a search question
    with pytest.raises(ValueError, match="question 'arithmetic-1' is of none of the tasks search,search-more"):
        mixed.grade(Question("arithmetic-1", "?", "1"), "1")


def test_a_task_that_ends_leaves_the_stream_to_the_others(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "3 + 4?", "answer": "7"}))
    task = load_task(f"{path},arithmetic")
    found = list(islice(task.stream("train", 0), 4))
    assert [question.id.split("-")[0] for question in found] == ["q", *["arithmetic"] * 3] and task.endless
    with pytest.raises(ValueError, match=r"q\.jsonl has 1 different questions, not 2"):
        task.questions("train", 0, 4)  # an equal share of each cannot be had
    with pytest.raises(ValueError, match="the task arithmetic never runs out"):
        task.questions("train", 0, -1)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"have one name, so their questions could not be told apart\. Rename one of the"
    ):
        load_task(f"{tmp_path / 'q.jsonl'},{tmp_path / 'again' / 'q.jsonl'}")
    for spec, name in (("search:2,search:3", "search"), (f"gsm8k:{tmp_path}/a,gsm8k:{tmp_path}/b", "gsm8k")):
        with pytest.raises(
            ValueError, match=f"could not be told apart. Type one {name} only, and collect the other in a"
        ):
            load_task(spec)


def test_a_file_that_is_called_as_a_built_in_task_would_be_graded_as_one_so_it_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"search\.jsonl is called as the built-in task .*: my_search\.jsonl"):
        load_task(str(tmp_path / "search.jsonl"))


def test_a_task_named_twice_is_one_task():
    assert isinstance(load_task("arithmetic,arithmetic"), ArithmeticTask)


@pytest.mark.parametrize(
    ("spec", "near"),
    [("arithmetics", "arithmetic"), ("GSM8K", "gsm8k"), ("gsm-hard", "gsm_hard"), ("gsm8K:/data", "gsm8k")],
)
def test_an_unknown_task_is_named_with_the_one_that_was_meant(spec: str, near: str):
    with pytest.raises(
        ValueError, match=rf"unknown task '{spec}' \(did you mean {near}\?\): type arithmetic, search, "
    ):
        load_task(spec)


@pytest.mark.parametrize("spec", ["zzz", "arithmetic,q.txt", "gsm8k:", "zzz:q.jsonl.gz"])
def test_an_unknown_task_is_answered_with_all_that_there_are(spec: str):
    with pytest.raises(ValueError, match=r"unknown task .*gsm8k, math, .*gym:NAME, or the path of a \.jsonl, \.json, "):
        load_task(spec)


def test_no_task_at_all_is_an_error():
    with pytest.raises(ValueError, match="--task is empty"):
        load_task(" , ")


def test_a_task_travels_to_another_process_as_its_name():
    for spec in ("arithmetic", "gsm8k", "math:/data", "q.csv", "arithmetic,search"):
        assert len(pickle.dumps(load_task(spec))) < 1000


# --- questions that come more than once ------------------------------------------------------------------------------


def test_repeats_within_and_across_splits_are_found_and_said(tmp_path: Path):
    asked = {
        "train": ["What is 3 + 4?", "what is 3+4", "What is 5 + 5?", "What is 2 + 2?", "How old?"],
        "test": ["WHAT IS 5 + 5", "How old", "What is 9 + 9?"],
    }
    for split, texts in asked.items():
        lines = (json.dumps({"question": text, "answer": "#### 1"}) for text in texts)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    task = load_task(f"gsm8k:{tmp_path}")
    (found,) = find_repeats(task, "train")
    questions = task.questions("train", 0, -1)
    assert (found.task, found.questions, found.doubles) == ("gsm8k", 4, 1)
    assert found.elsewhere == {"test": [questions[i].id for i in (1, 3)]}
    assert str(found).split("\n") == [
        "gsm8k: 1 of 5 rows ask again and were left out.",
        "gsm8k: 2 of 4 questions also stand in the test split.",
    ]
    assert str(find_repeats(load_task(f"arithmetic,gsm8k:{tmp_path}"), "test")[0]) == (
        "gsm8k: 2 of 3 questions also stand in the train split."
    )


def test_a_question_that_comes_again_with_another_answer_is_said_to_contradict(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    rows = [("What is 3 + 4?", "7"), ("what is 3+4", "7.0"), ("What is 2 + 2?", "4"), ("What is 2+2", "5")]
    path.write_text("\n".join(json.dumps({"question": text, "answer": gold}) for text, gold in rows))
    (found,) = find_repeats(load_task(str(path)), "train")
    assert str(found).split("\n") == [
        "q: 2 of 4 rows ask again and were left out.",
        "q: 1 of these have another answer than before (first: 'What is 2 + 2?'): mend them.",
    ]


def test_where_nothing_repeats_nothing_is_said(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    path.write_text(GSM8K)
    assert find_repeats(load_task(f"{path},arithmetic"), "train") == []  # one file is no two splits
