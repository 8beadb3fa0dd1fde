"""The two kinds of problems that the built-in reasoner is for: how they are drawn, put into words and carried out.

What is drawn, and in which order, is settled: the shipped weights and all figures about them stand on it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

LARGEST = 99
"""Every number in the built-in tasks lies in 0..99, so that each can be one token of the built-in reasoner."""


# --- arithmetic ----------------------------------------------------------------------------------------------------

PEOPLE = {"Ann": "she", "Ben": "he", "Eva": "she", "Tom": "he", "Mia": "she", "Sam": "he", "Zoe": "she", "Leo": "he"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
THINGS = ("apples", "coins", "books", "stamps", "cards", "shells", "pens", "marbles")
MORE = ("buys", "finds", "gets")
LESS = ("gives away", "loses", "sells")
_STORY = re.compile(r"\w+ has (\d+) \w+\. ((?:On \w+ \w+ [^.]+\. )+)How many \w+ does \w+ have\?")
_EVENT = re.compile(
    rf"On \w+ \w+ (?:(?P<verb>{'|'.join(MORE)}|{'|'.join(LESS)}) (?:(?P<bags>\d+) bags of )?(?P<number>\d+)"
    r"|(?P<other>doubles them|triples them|gives away half))"
)
_OTHER = {"doubles them": ("*", 2), "triples them": ("*", 3), "gives away half": ("/", 2)}


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

    @classmethod
    def parse(cls, text: str) -> ArithmeticProblem:
        """The problem behind a question's text. Raises ValueError when it is not of this form, naming the sentence."""
        found = _STORY.fullmatch(text)
        if not found:
            raise ValueError(
                f"not an arithmetic question: {text!r}. Write it as "
                '"Ann has 7 pens. On Monday she buys 3 bags of 4. How many pens does Ann have?"'
            )
        operations = []
        for sentence in found[2].removesuffix(". ").split(". "):
            event = _EVENT.fullmatch(sentence)
            if not event:
                raise ValueError(f"there is no operation in {sentence!r}, in {text!r}.")
            number = int(event["number"] or 0) * int(event["bags"] or 1)
            sign = "+" if event["verb"] in MORE else "-"
            operations.append(_OTHER[event["other"]] if event["other"] else (sign, number))
        return cls(text, int(found[1]), tuple(operations))


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
_MOVE = re.compile(r"\s*(?:add (?P<add>\d+)|take (?P<take>\d+)|(?P<double>double))\s*")


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
        """The problem behind a question's text. Raises ValueError when it is not of this form, naming the move."""
        found = _SEARCH.search(text)
        if not found or int(found[4]) < 1:
            raise ValueError(
                f"not a search question: {text!r}. Write it as "
                '"Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"'
            )
        moves = []
        for written in found[2].split(","):
            move = _MOVE.fullmatch(written)
            if not move:
                raise ValueError(
                    f"there is no move {written.strip()!r}: a move is add N, take N or double, in {text!r}."
                )
            sign = "+" if move["add"] else "-" if move["take"] else "*"
            moves.append((sign, int(move["add"] or move["take"] or 2)))
        return cls(int(found[1]), tuple(moves), int(found[3]), int(found[4]))

    def next_values(self, value: int) -> list[int]:
        """Where one move can lead from ``value``: only numbers in 0..99 count."""
        return [v for v in (carry_out(value, s, n) for s, n in self.moves) if 0 <= v <= LARGEST]

    def hopeful(self) -> list[set[int]]:
        """After 0, 1 … ``count`` moves: the numbers from which the moves that are left can end at the target."""
        found = [{self.target}]
        for _ in range(self.count):
            found.append({v for v in range(LARGEST + 1) if not found[-1].isdisjoint(self.next_values(v))})
        return found[::-1]

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
