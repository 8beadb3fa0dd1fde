"""Grading: answers are read and compared by value, choices by their letter, questions by their words."""

from __future__ import annotations

import logging
import re
import threading

import pytest

from latent_prm.grading import boxed, canonical, choices_of, chosen, extract_answer, question_digest, with_choices


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
        (r"It is \boxed{42}, in \boxed{} as asked.", "42"),
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
        ("The area is 16 cm^2.", "16"),
        (r"It holds 27\text{ cm}^{3}.", "27"),
        ("In base six it is 4343_6.", "4343."),
        ("It takes 3 1/2 hours.", "3 1/2"),
        ("The answer is –5.", "-5."),
        ("from 7–10", "10"),
        ("a loss of –$5.50", "-$5.50"),
        ("It is 5!", "5"),
        ("I do not know.", ""),
        ("", ""),
    ],
)
def test_an_answer_is_the_last_box_else_the_mark_else_the_last_number(text: str, answer: str):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("value", "spellings"),
    [
        (
            "1000",
            [
                "1,000",
                "1000.0",
                "1000",
                "$1,000.00",
                r"\$1,000",
                "1{,}000",
                r"1\,000",
                r"1,\!000",
                "1 000",
                "+1000",
                "1e3",
            ],
        ),
        ("1000", ["1000 dollars", "x = 1000", "$1000$", r"\text{1000}", "1 thousand", "01000.", "€1000"]),
        ("-5", ["-5", "−5", "- 5", "-$5", "$-5.00", r"-5\%", "-5 °C", r"-5^\circ", r"-5^{\circ}"]),
        ("0.5", [".5", "0.50", "1/2", r"\frac{1}{2}", r"\frac12", r"\dfrac{2}{4}", "1/2 cup", "2 / 4"]),
        ("-0.75", ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "-.75"]),
        ("1.5", ["1 1/2", r"1\frac{1}{2}", "1.5 hours", "3/2"]),
        (
            "5",
            [
                r"\textbf{5}",
                r"\mathbf{5}",
                r"\(5\)",
                "5~cm",
                "5 cm",
                r"5\text{ cm}",
                r"5\,\text{cm}^2",
                "5 cm^2",
                "5m",
                "5 m/s",
                "5%",
                "5 apples",
                "5kg",
                "5 years",
                "5 yards",
                "5 months",
                "5m",
                "5km/h",
                "5 K",
                "{5}",
                "(5)",
            ],
        ),
        ("1024", ["2^{10}", "2^10", "1,024"]),
        ("2500000", ["2.5 million", "2,500,000"]),
        ("1.414213562", [r"\sqrt{2}", r"\frac{2}{\sqrt{2}}"]),
        ("12345678901234567891", ["12345678901234567891", "12,345,678,901,234,567,891.0"]),
        ("0", ["0", "-0", "0.00", "-0.0"]),
        ("1.414213562", [r"2^{1/2}", r"\sqrt2", r"\sqrt{2}\text{ cm}"]),
        ("38.571428571", [r"\frac{270}7\text{ degrees}", r"\frac{270}{7}", r"\frac{270}{7}^\circ"]),
        ("37.699111843", [r"12\pi\text{ cm}^2", r"12\pi", "12 pi", "12π"]),
        ("4343", ["4343_6", "4343_{6}", "4343"]),  # as math-verify has it: the base goes without saying
        ("3628800", ["10!", "3,628,800"]),
        ("60", ["5!/2", "60"]),
        ("c", [r"\text{(C)}", "C", "(C)"]),
        ("Interval(-2, 7)", [r"x \in [-2,7]", "[-2, 7]", r"x\in\left[-2,7\right]"]),
        (
            "Matrix([[-1/3], [2]])",
            [
                r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}",
                r"\begin{pmatrix}-\frac{1}{3}\\2\end{pmatrix}",
                r"\begin{bmatrix} -\frac13 \\ 2 \end{bmatrix}",
            ],
        ),
        ("180 - theta", [r"180-\theta", r"180 - \theta", r"180^\circ - \theta"]),
        ("cot(x)", [r"\cot x", r"\cot(x)"]),
        ("p-q", ["p-q", "p - q", "p- q"]),
        ("6 pm", ["6 pm", "6 p.m.", r"6 \text{ p.m.}", "6PM"]),
        (
            "x**8 + x**7 + x**6 + x**5 + x**4 + x**3 + x**2 + x + 1",
            ["x^8+x^7+x^6+x^5+x^4+x^3+x^2+x+1", "x^8 + x^7 + x^6 + x^5 + x^4 + x^3 + x^2 + x + 1"],
        ),
        ("paris", ["Paris", r"\text{Paris}", " PARIS. ", "Paris!"]),
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
        (r"1,\!000,\!000", r"1,\!000"),
        ("p ≥ 3", "p ≤ 3"),
        ("A ∩ B", "A ∆ B"),
        ("2ab", "2cd"),
        ("6mn", "6"),
        ("2sinx", "2cosx"),
        ("3", "3 pi"),
        ("3", "3pi"),
        ("3", "3 i"),
        (r"6 \text{ p.m.}", r"6 \text{ a.m.}"),
        ("10 am", "10 pm"),
        ("7", "7 or less"),
        ("7", "7 hours or less"),
        (r"\frac72\text{ or less}", r"\frac72"),
        (r"\frac12\text{ million}", r"\frac12"),
        ("2", "2 thirds"),
        ("5", "5!"),
        ("n", "n!"),
        ("(n+1)!", "(n+1)"),
        (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix} 1-2 \end{pmatrix}"),
        (r"\log_2 4", r"\log_{24}"),
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
        "(" * 48 + "1" + ")" * 48,
        "9^9!",
        "(9!)^{99}^{99}",
        r"\frac{9^{99}}{1}^{99}",
        r"\sqrt{9^{99}}^{99}",
    ],
)
def test_a_formula_that_would_take_for_ever_is_not_evaluated(hostile: str):
    assert canonical(hostile) == canonical(hostile) != ""
    assert canonical(extract_answer(rf"\boxed{{{hostile}}}")) != "1"


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


def test_a_digest_depends_on_the_words_and_not_on_their_dress():
    assert question_digest("Ann has 3 apples.") == question_digest("ann  has 3 apples")
    assert question_digest("Ann has 3 apples.") != question_digest("Ann has 4 apples.")
    assert re.fullmatch(r"[0-9a-f]{16}", question_digest("?"))
    assert question_digest("Does a well-known man say “wow!”") == question_digest("does a well known man say wow?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is (2 + 3) * 4?", "What is 2 + 3 * 4?"),
        ("What is 5!?", "What is 5?"),
        ("Is 3 ≤ 4?", "Is 3 ≥ 4?"),
        ("How many are in A ∩ B?", "How many are in A ∆ B?"),
        ("What is |-3|?", "What is -3?"),
        ("Simplify x - y.", "Simplify x y."),
        ("What is x-y?", "What is xy?"),
        ("What is 3 − 4?", "What is 3 4?"),
        ("What is .5?", "What is 5?"),
        ("What is #A B?", "What is A B#?"),
    ],
)
def test_a_sign_that_asks_something_else_makes_another_digest(one: str, other: str):
    assert question_digest(one) != question_digest(other)


# --- choices ---------------------------------------------------------------------------------------------------------

COLOURS = with_choices("Which is the colour of the sea? ", ["red", "deep\nblue", "green", "B flat"])


def test_choices_stand_under_the_question_and_are_found_there() -> None:
    assert COLOURS == "Which is the colour of the sea?\nA. red\nB. deep blue\nC. green\nD. B flat"
    assert choices_of(COLOURS) == {"A": "red", "B": "deep blue", "C": "green", "D": "B flat"}
    assert list(choices_of(COLOURS)) == ["A", "B", "C", "D"]
    assert choices_of("A. Who?\nB. Where?\nSay it.") == {} == choices_of("No list.\nB. b\nC. c") == choices_of("")
    assert choices_of("A. x\nWhat then?\nA. p\nB. q") == {"A": "p", "B": "q"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"So \boxed{B}.", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(C)}", "C"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B) deep blue}}", "B"),
        (r"\boxed{B. deep blue}", "B"),
        (r"\boxed{Deep blue.}", "B"),  # the text of a choice stands for its letter
        (r"\boxed{B flat}", "D"),
        (r"First \boxed{A}, no: \boxed{C}", "C"),
        (r"The answer is A. \boxed{C}", "C"),
        (r"\boxed{E}", ""),  # there is no E
        (r"\boxed{A and B}", ""),
        (r"\boxed{blue}", ""),
        (r"\boxed{} The answer is B", ""),
        ("The answer is (B).", "B"),
        ("The answer is **C**, because option A is wrong.", "C"),
        ("Answer: B", "B"),
        ("the correct answer is option D", "D"),
        ("Answer: A. Wait. Answer: C", "C"),
        ("The answer is B. For this answer I compared them all.", "B"),
        (r"\boxed{Option B}", "B"),
        (r"\boxed{Answer: C}", "C"),
        (r"\boxed{(B)\ deep blue}", "B"),
        ("B. deep blue", "B"),
        ("(B) deep blue, as everybody knows", "B"),
        ("**C.** It is green", "C"),
        ("the answer is (b)", "B"),
        ("Answer: (c) green", "C"),
        ("A. Is it red? B. Is it blue? Who knows", ""),
        ("the answer is a colour", ""),
        ("The answer is Blue", ""),
        ("The answer is E", ""),
        ("It must be B", "B"),
        ("I would say (C).", "C"),
        ("It is the colour green", ""),
        ("A thing", ""),
        ("", ""),
    ],
)
def test_a_choice_is_read_from_the_box_else_from_what_is_said_else_from_the_end(text: str, letter: str) -> None:
    assert chosen(COLOURS, text) == letter


def test_two_choices_of_the_same_words_are_told_apart_by_their_letters_only() -> None:
    question = with_choices("Which?", ["one", "One.", "two"])
    assert chosen(question, r"\boxed{one}") == "" and chosen(question, r"\boxed{B}") == "B"


def test_a_question_without_choices_takes_any_letter() -> None:
    assert chosen("Pick one of A to E.", r"\boxed{E}") == "E"
