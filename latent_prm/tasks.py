"""Where questions come from, how an answer is read out of a text, and when it is right.

This room hides the two built-in generators (``arithmetic``, ``search``), local ``.jsonl`` files, and grading by value.
Splits of the generators are disjoint by construction: a question's own text decides which split it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

LARGEST = 99
"""Every number in the built-in tasks lies in 0..99, so that each can be one token of the built-in reasoner."""

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question: an id that is unique within its task, what is asked, and the answer it is graded against."""

    id: str
    text: str
    gold: str


@dataclass(frozen=True, slots=True)
class Grade:
    """What a text answers (canonical form, by which votes are counted; ``""``: nothing), and whether that is right."""

    value: str
    correct: bool


class Task(Protocol):
    """A source of questions that can grade an answer to them."""

    name: str

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        """``count`` different questions of a split; -1: all there are (an error where there is no end)."""
        ...

    def grade(self, question: Question, text: str) -> Grade:
        """The answer that ``text`` gives, and whether it is right."""
        ...


# --- arithmetic ----------------------------------------------------------------------------------------------------

PEOPLE = {"Ann": "she", "Ben": "he", "Eva": "she", "Tom": "he", "Mia": "she", "Sam": "he", "Zoe": "she", "Leo": "he"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
THINGS = ("apples", "coins", "books", "stamps", "cards", "shells", "pens", "marbles")
MORE = ("buys", "finds", "gets")
LESS = ("gives away", "loses", "sells")


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """A word problem and the operations that solve it: ``(sign, number)`` with a sign of ``+ - * /``."""

    text: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The number in hand after each operation; the last is the answer."""
        value, out = self.start, []
        for sign, number in self.operations:
            value = carry_out(value, sign, number)
            out.append(value)
        return out


def carry_out(value: int, sign: str, number: int) -> int:
    """``value`` after one operation, unchecked: it may leave 0..99, and a half is rounded down."""
    return {"+": value + number, "-": value - number, "*": value * number, "/": value // number}[sign]


def draw_arithmetic(rng: random.Random, operations: int | None = None) -> ArithmeticProblem:
    """A random word problem of 2 to 6 operations (or of as many as given, up to 6) with every value in 1..99."""
    name, thing = rng.choice(list(PEOPLE)), rng.choice(THINGS)
    start = value = rng.randint(2, 60)
    sentences, steps = [f"{name} has {value} {thing}."], []
    for day in DAYS[: operations or rng.randint(2, 6)]:
        phrase, sign, number = _draw_operation(rng, value)
        sentences.append(f"On {day} {PEOPLE[name]} {phrase}.")
        value = carry_out(value, sign, number)
        steps.append((sign, number))
    sentences.append(f"How many {thing} does {name} have?")
    return ArithmeticProblem(" ".join(sentences), start, tuple(steps))


def _draw_operation(rng: random.Random, value: int) -> tuple[str, str, int]:
    """What happens on one day, in words and as (sign, number), so that the value stays in 1..99."""
    while True:
        kind, bags, number = rng.choice("++++----*/"), rng.randint(1, 9), rng.randint(2, 49)
        if kind in "+-":
            if bags > 1 and rng.random() < 0.6:
                each = rng.randint(2, 9)
                number, amount = bags * each, f"{bags} bags of {each}"
            else:
                amount = str(number)
            if 1 <= carry_out(value, kind, number) <= LARGEST:
                return f"{rng.choice(MORE if kind == '+' else LESS)} {amount}", kind, number
        elif kind == "*" and value * (number := rng.choice((2, 3))) <= LARGEST:
            return "doubles them" if number == 2 else "triples them", kind, number
        elif kind == "/" and value % 2 == 0:
            return "gives away half", kind, 2


# --- search --------------------------------------------------------------------------------------------------------

MOVE_WORDS = {"+": "add {n}", "-": "take {n}", "*": "double"}
_SEARCH = re.compile(r"Start at (\d+)\. Moves: (.+?)\. Reach (\d+) in (\d+) moves\.")
_MOVE = re.compile(r"add (?P<add>\d+)|take (?P<take>\d+)|(?P<double>double)")


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """Reach ``target`` from ``start`` in exactly ``count`` moves, each one of ``moves``; a move may be used again."""

    start: int
    moves: tuple[tuple[str, int], ...]
    target: int
    count: int

    @property
    def text(self) -> str:
        moves = ", ".join(MOVE_WORDS[sign].format(n=number) for sign, number in self.moves)
        return (
            f"Start at {self.start}. Moves: {moves}. Reach {self.target} in {self.count} moves. "
            "Which numbers do you visit?"
        )

    @classmethod
    def parse(cls, text: str) -> SearchProblem:
        """The problem behind a question's text. Raises ValueError when it is not of this form."""
        found = _SEARCH.search(text)
        if not found:
            raise ValueError(
                f"not a search question: {text!r}. Write it as "
                '"Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"'
            )
        moves = []
        for move in _MOVE.finditer(found[2]):
            sign = "+" if move["add"] else "-" if move["take"] else "*"
            moves.append((sign, int(move["add"] or move["take"] or 2)))
        return cls(int(found[1]), tuple(moves), int(found[3]), int(found[4]))

    def next_values(self, value: int) -> list[int]:
        """Where one move can lead from ``value``: only numbers in 0..99 count."""
        return [v for v in (carry_out(value, s, n) for s, n in self.moves) if 0 <= v <= LARGEST]

    def reaches(self, visited: list[int]) -> bool:
        """Whether these numbers, one per move, are a way from start to target: the answer, carried out."""
        if len(visited) != self.count or visited[-1] != self.target:
            return False
        return all(
            there in self.next_values(here) for here, there in zip([self.start, *visited], visited, strict=False)
        )


def draw_search(rng: random.Random, moves: int | None = None) -> tuple[SearchProblem, list[int]]:
    """A random search problem of 2 to 4 moves (or as many as given) that can be solved, and one way to solve it."""
    while True:
        start, count = rng.randint(2, 40), moves or rng.randint(2, 4)
        up = rng.sample(range(2, 20), 2)
        kinds = [("+", up[0]), ("-", rng.randint(2, 19)), rng.choice([("*", 2), ("+", up[1])])]
        rng.shuffle(kinds)
        problem, way = SearchProblem(start, tuple(kinds), 0, count), [start]
        for _ in range(count):
            onward = [v for v in problem.next_values(way[-1]) if v not in way]
            if not onward:
                break
            way.append(rng.choice(onward))
        else:
            return SearchProblem(start, problem.moves, way[-1], count), way[1:]


# --- reading and grading an answer ---------------------------------------------------------------------------------

LONGEST = 100
"""Characters. What is longer is neither a number nor a formula that anyone would write as an answer."""

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?:(?<![\w.)])-)?[$€£]?(?:{_DIGITS})(?:[eE][+-]?\d\d?(?!\w)|/\d+)?(?:\s(?:{'|'.join(_SCALES)}))?", re.IGNORECASE
)
_PLAIN = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>0*[1-9]\d*)"
    rf"|(?P<digits>\d{{1,3}}(?:\ \d{{3}})+|{_DIGITS})(?P<power>[eE][+-]?\d\d?)?)"
    r"(?P<unit>\s*°\s?[CF]?|(?:\s*(?!pi\b)(?=[A-Za-z]{2})|\s+|(?=[ghlmsLVW]\b))"  # "3m" is three metres, "3x" a formula
    r"(?![xyz])[A-Za-z][A-Za-z .²³/-]*(?:\^\{?\d\}?)?)?"
)
_FORMULA = re.compile(
    r"(?!.*(?:\.\d*\.|\d[eE]\d))"  # 1.000.000 and 1e400 are no formulas
    r"(?:\\(?:[dt]?frac|sqrt|pi|cdot|times|div|infty|pm|cup)(?![A-Za-z])|\\[{}]|[A-Za-z](?![A-Za-z])"
    r"|\^(?:\d|\{-?\d\d?\})|\*(?!\*)|[\d ,.=<>|()\[\]{}/+-])+"
)


def boxed(text: str) -> str | None:
    r"""What stands in the last complete ``\boxed{…}`` (or ``\fbox``), its braces balanced; None where there is none."""
    opened: list[int] = []
    begin, end = -1, -1
    for brace in re.finditer(r"(\\f?box(?:ed)?\s*\{)|[{}]", text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[1] else -1)
        elif opened and (start := opened.pop()) > begin:
            begin, end = start, brace.start()
    return None if begin < 0 else text[begin:end].strip()


def extract_answer(text: str) -> str:
    r"""The answer a text gives, as written: the last ``\boxed{}``, else what follows ``####``, else the last number.

    ``""`` when it gives none.
    """
    inside = boxed(text)
    if inside is not None:
        return inside
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().split("\n")[0].strip()
    numbers = _NUMBER.findall(text.replace("−", "-"))
    return numbers[-1] if numbers else ""


def canonical(answer: str) -> str:
    r"""One spelling for equal answers: ``"$1,000.00"`` and ``"1000 cm"`` are ``"1000"``, ``"\frac12"`` is ``"0.5"``.

    Numbers and plain fractions with commas, currency and units are read here; other formulas by ``math-verify``. What
    is neither is compared as lower-case words. Safe on any text, in any thread.
    """
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 ", answer).replace("{,}", ",").replace("−", "-")
    text = re.sub(r"(?<=\d)\\[,;! ](?=\d)", " ", text)
    text = re.sub(r"\\[,;:! ]|\\?[$%€£]|\\(?:left|right)(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?", " ", text)
    text = re.sub(r"^[A-Za-z]\w*\s*=", "", text.strip()).strip().rstrip(".")  # "x = 5" answers 5
    number = _PLAIN.fullmatch(text)
    if number and len(number[0].removesuffix(number["unit"] or "")) <= LONGEST:
        return _spell(_value(number))
    return _formula(text) or _words(text)


def _value(number: re.Match[str]) -> Fraction:
    if number["over"]:
        value = int(number["whole"] or 0) + Fraction(int(number["over"]), int(number["under"]))
    else:
        value = Fraction(re.sub(r"[, ]", "", number["digits"]) + (number["power"] or ""))
    first_word = (number["unit"] or "").lower().strip().partition(" ")[0]
    value *= _SCALES.get(first_word, 1)
    return -value if number["sign"] == "-" else value


def _spell(value: Fraction) -> str:
    value = round(value, 9)
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def _formula(text: str) -> str:
    """The spelling of a formula, "" for what is none.

    math-verify evaluates what it reads, its own time limit works in the main thread only, and a text such as
    ``9^{9^{9^9}}`` would keep it busy for ever: only what is surely small is given to it.
    """
    exponents = (int(n) for n in re.findall(r"\^\{?-?(\d+)", text))
    if not re.search(r"\d|\\", text) or len(text) > LONGEST or not _FORMULA.fullmatch(text) or prod(exponents) > 1000:
        return ""
    from math_verify import LatexExtractionConfig, parse  # slow to import (sympy), and plain numbers never need it

    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)  # it warns that no time limit is set
    found = parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)
    try:
        value: Any = found[0].doit()
        if getattr(value, "is_Rational", False):
            return _spell(Fraction(int(value.p), int(value.q)))
        if getattr(value, "is_number", False) and value.is_real:
            return _spell(Fraction(round(float(value), 9)))
        return "" if str(value) in ("nan", "zoo") else str(value)
    except Exception:  # nothing was read, or sympy cannot evaluate it, or it is too large to be spelled
        return ""


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.+*/^()=,-]", " ", text.lower()).split())


def normalise(text: str) -> str:
    """A question's text with case, spaces and punctuation evened out: two spellings of one question become equal.

    Signs that make another sum of the same numbers stay: "3 + 4?" and "3 - 4?" are two questions.
    """
    return " ".join(re.findall(r"\w+|[+*/^=<>×÷%]|-(?=\s*\d)|\.(?=\d)", text.lower()))


def question_digest(text: str) -> str:
    """16 hex digits that stand for a question's normalised text, to tell seen questions from unseen ones."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


# --- tasks ---------------------------------------------------------------------------------------------------------


def split_of(text: str) -> Split:
    """The split a generated question belongs to: 90 % of all possible texts train, 5 % validate, 5 % test."""
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
    return "test" if share < 5 else "validation" if share < 10 else "train"


def _generate(
    name: str, draw: Callable[[random.Random], tuple[str, str]], split: Split, seed: int, count: int
) -> list[Question]:
    if count < 0:
        raise ValueError(f"the task {name} never runs out of questions: say how many with --max_samples.")
    rng, seen, out = random.Random(f"{name}/{seed}"), set(), []
    while len(out) < count:
        text, gold = draw(rng)
        if split_of(text) == split and text not in seen:
            seen.add(text)
            out.append(Question(f"{name}-{question_digest(text)}", text, gold))
    return out


class TextTask:
    """Any question with a value for an answer; it has no questions of its own, only the way they are graded."""

    name = "text"

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        raise ValueError(
            'the task "text" has no questions of its own; type arithmetic, search or the path of a .jsonl file.'
        )

    def grade(self, question: Question, text: str) -> Grade:
        value = canonical(extract_answer(text))
        return Grade(value, bool(value) and bool(question.gold) and value == canonical(question.gold))


class ArithmeticTask(TextTask):
    """Word problems of 2 to 6 operations on numbers up to 99: "Ann has 12 apples. On Monday she buys 5. …"."""

    name = "arithmetic"

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        def draw(rng: random.Random) -> tuple[str, str]:
            problem = draw_arithmetic(rng)
            return problem.text, str(problem.values[-1])

        return _generate(self.name, draw, split, seed, count)


class SearchTask:
    """Reach a target from a start with given moves; the answer is the numbers visited, any way that works is right."""

    name = "search"

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        def draw(rng: random.Random) -> tuple[str, str]:
            problem, way = draw_search(rng, rng.choice((2, 2, 3, 3, 4)))  # four moves are too hard to be most of it
            return problem.text, " ".join(map(str, way))

        return _generate(self.name, draw, split, seed, count)

    def grade(self, question: Question, text: str) -> Grade:
        """Carries the answer out; a start named first is no visit. Raises ValueError for a question of another task."""
        problem = SearchProblem.parse(question.text)
        inside = boxed(text)
        written = re.findall(r"(?<!\d)-?\d+", (text if inside is None else inside).replace("−", "-"))
        numbers = [int(number[:9]) for number in written]  # Python refuses thousands of digits; nine are as wrong
        visited = numbers[1:] if len(numbers) == problem.count + 1 and numbers[0] == problem.start else numbers
        return Grade(" ".join(map(str, visited)), problem.reaches(visited))


class JsonlTask(TextTask):
    """A local file, one JSON object a line with ``question`` and ``answer`` (GSM8K's ``####`` is understood)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        """The first ``count`` questions of the file, in its order. Raises ValueError naming the line that is wrong."""
        if not self.path.is_file():
            raise FileNotFoundError(f"No such question file: {self.path}. Type a path, or arithmetic or search.")
        out: dict[str, Question] = {}
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if count >= 0 and len(out) == count:
                    break
                if line.strip():
                    question = self._read(line, number)
                    out.setdefault(question.id, question)  # a question asked twice is asked once
        if len(out) < count:
            raise ValueError(
                f"{self.path} has {len(out)} different questions, not {count}. Type --max_samples -1 for all."
            )
        return list(out.values())

    def _read(self, line: bytes, number: int) -> Question:
        where = f"{self.path}, line {number}"
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON in UTF-8 ({error}). Each line must be one object.") from None
        texts = [entry.get(key) for key in ("question", "answer")] if isinstance(entry, dict) else [None]
        if not all(isinstance(t, (str, int, float)) and str(t).strip() for t in texts):
            raise ValueError(f'{where} lacks a "question" or an "answer". Each line must be an object with both.')
        text, answer = (str(t).strip() for t in texts)
        gold = extract_answer(answer) if "####" in answer or boxed(answer) is not None else answer
        if not gold:
            raise ValueError(f"{where} has an empty answer: nothing could be graded against it.")
        return Question(f"{self.name}-{question_digest(text)}", text, gold)


class MixedTask:
    """Several tasks in turn: the first question of each, then the second of each, and so on."""

    def __init__(self, parts: list[Task]) -> None:
        self.parts, self.name = parts, ",".join(part.name for part in parts)

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        n = len(self.parts)
        share = [-1 if count < 0 else (count + n - 1 - i) // n for i in range(n)]
        drawn = [part.questions(split, seed, k) for part, k in zip(self.parts, share, strict=True)]
        return [part[i] for i in range(max(map(len, drawn))) for part in drawn if i < len(part)]

    def grade(self, question: Question, text: str) -> Grade:
        return self.part(question).grade(question, text)

    def part(self, question: Question) -> Task:
        """The task a question of ours came from. Raises ValueError for a question of another task."""
        for part in self.parts:
            if question.id.rpartition("-")[0] == part.name:
                return part
        raise ValueError(f"question {question.id!r} is of none of the tasks {self.name}: name its task in --task too.")


BUILT_IN: dict[str, Callable[[], Task]] = {"arithmetic": ArithmeticTask, "search": SearchTask, "text": TextTask}


def load_task(spec: str) -> Task:
    """The task behind ``arithmetic``, ``search``, ``text``, the path of a ``.jsonl`` file, or several with commas.

    Raises ValueError for any other name.
    """
    parts: list[Task] = []
    for name in dict.fromkeys(filter(None, (part.strip() for part in spec.split(",")))):
        if name in BUILT_IN:
            parts.append(BUILT_IN[name]())
        elif name.endswith(".jsonl"):
            parts.append(JsonlTask(Path(name)))
        else:
            raise ValueError(f"unknown task {name!r}: type arithmetic, search or the path of a .jsonl file.")
    if not parts:
        raise ValueError("--task is empty: type arithmetic, search or the path of a .jsonl file.")
    return parts[0] if len(parts) == 1 else MixedTask(parts)
