"""Where questions come from, and when an answer to one of them is right.

This room hides behind one door what the built-in generators (``problems``), ``hub`` and ``gym`` have to ask. Splits of
what is generated are disjoint by construction: a question's own text decides which one it belongs to.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Protocol, TypeVar, get_args

from latent_prm import gym
from latent_prm.grading import Kind, boxed, canonical, chosen, extract_answer, question_digest
from latent_prm.hub import DATASETS, Item, Source, Split
from latent_prm.problems import ArithmeticProblem, SearchProblem, draw_arithmetic, draw_search
from latent_prm.rows import READERS

PATIENCE = 5000
"""Draws without a new question (a split gets one draw in twenty, or more) after which a generator has run dry."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question: an id that is unique within its task, what is asked, and the answer it is graded against."""

    id: str
    """The task's name, ``-`` and 16 hex digits of the text's digest."""
    text: str
    gold: str
    kind: Kind = "text"
    """How it is put to a reasoner, and how its answer is read."""
    steps: tuple[str, ...] = ()
    """The true intermediate values on the way to the gold, in order; (): unknown, or there is more than one way."""

    @property
    def task(self) -> str:
        """The name of the task that it came from."""
        return self.id.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Grade:
    """What a text answers (canonical form, by which votes are counted; ``""``: nothing), and whether that is right."""

    value: str
    correct: bool


class Task(Protocol):
    """A source of questions that can grade an answer to them, in any process: it pickles, and keeps no questions."""

    name: str
    endless: bool
    """Whether there is always another question."""

    def stream(self, split: Split, seed: int) -> Iterator[Question]:
        """All different questions of a split, in a fixed order.

        Raises ValueError for an unknown split, and for a file in which any line is wrong, before it gives the first.
        """
        ...

    def questions(self, split: Split, seed: int, count: int) -> list[Question]:
        """The first ``count`` of them; -1: all. ValueError when there are fewer, or no end."""
        ...

    def grade(self, question: Question, text: str) -> Grade:
        """The answer that ``text`` gives, and whether it is right."""
        ...


# --- tasks ---------------------------------------------------------------------------------------------------------


def split_of(text: str) -> Split:
    """The split a generated question belongs to: 90 % of all possible texts train, 5 % validate, 5 % test."""
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
    return "test" if share < 5 else "validation" if share < 10 else "train"


def _known(split: str) -> Split:
    for known in get_args(Split):
        if split == known:
            return known
    raise ValueError(f"there is no split {split!r}: type --split {', '.join(get_args(Split))}.")


class TextTask:
    """Any question with a value for an answer; it has no questions of its own, only the way they are graded."""

    name = "text"
    endless = False
    kind: Kind = "text"

    def stream(self, split: str, seed: int) -> Iterator[Question]:
        raise ValueError(f'the task "{self.name}" has no questions of its own; type {_WAYS}.')

    def questions(self, split: str, seed: int, count: int) -> list[Question]:
        if count < 0 and self.endless:
            raise ValueError(f"the task {self.name} never runs out of questions: say how many with --max_samples.")
        found = list(islice(self.stream(split, seed), None if count < 0 else count))
        if len(found) < count:
            raise ValueError(
                f"{self} has {len(found)} different questions, not {count}. Type --max_samples -1 for all."
            )
        return found

    def grade(self, question: Question, text: str) -> Grade:
        if question.kind == "choice":
            letter = chosen(question.text, text)
            return Grade(letter, bool(letter) and letter == question.gold)
        value = canonical(extract_answer(text))
        return Grade(value, bool(value) and bool(question.gold) and value == canonical(question.gold))

    def __str__(self) -> str:
        return self.name


def _question(task: str, item: Item) -> Question:
    return Question(f"{task}-{question_digest(item.text)}", item.text, item.gold, item.kind, item.steps)


class GeneratedTask(TextTask):
    """Questions without end, drawn from a seed."""

    endless = True
    kind: Kind = "text"

    def draws(self, seed: int) -> Iterator[Item]:
        """Questions of all splits, doubles among them."""
        raise NotImplementedError

    def stream(self, split: str, seed: int) -> Iterator[Question]:
        """Raises ValueError, once it is drawn from, when no other question comes any more."""
        return self._fresh(_known(split), self.draws(seed))

    def _fresh(self, split: Split, draws: Iterator[Item]) -> Iterator[Question]:
        seen: set[str] = set()
        in_vain = 0
        for item in draws:
            in_vain += 1
            if split_of(item.text) == split and (question := _question(self.name, item)).id not in seen:
                seen.add(question.id)
                in_vain = 0
                yield question
            elif in_vain == PATIENCE:
                raise ValueError(
                    f"{self} seems to have only {len(seen)} questions of the {split} split that differ in more than "
                    "punctuation. Type a smaller --max_samples, or another task."
                )


class SizedTask(GeneratedTask):
    """Problems of all sizes, or of so many ``size`` operations or moves: ``arithmetic:3``. The name says no size."""

    largest: int

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def rng(self, seed: int) -> random.Random:
        """What a seed draws from."""
        return random.Random(f"{self.name}{f':{self.size}' if self.size else ''}/{seed}")


class ArithmeticTask(SizedTask):
    """Word problems of 2 to 6 operations on numbers up to 99: "Ann has 12 apples. On Monday she buys 5. …"."""

    name = "arithmetic"
    kind: Kind = "maths"
    largest = 6

    def draws(self, seed: int) -> Iterator[Item]:
        rng = self.rng(seed)
        while True:
            problem = draw_arithmetic(rng, self.size)
            values = tuple(map(str, problem.values))
            yield Item(problem.text, values[-1], self.kind, values)


class SearchTask(SizedTask):
    """Reach a target from a start with given moves; the answer is the numbers visited, any way that works is right."""

    name = "search"
    kind: Kind = "search"
    largest = 4

    def draws(self, seed: int) -> Iterator[Item]:
        rng = self.rng(seed)
        while True:  # four moves are too hard to be most of it
            problem, way = draw_search(rng, self.size or rng.choice((2, 2, 3, 3, 4)))
            yield Item(problem.text, " ".join(map(str, way)), self.kind)

    def grade(self, question: Question, text: str) -> Grade:
        """Carries the answer out; a start named first is no visit. Raises ValueError for a question of another task."""
        problem = SearchProblem.parse(question.text)
        inside = boxed(text)
        written = re.findall(r"(?<!\d)-?\d+", (text if inside is None else inside).replace("−", "-"))
        numbers = [int(number[:9]) for number in written]  # Python refuses thousands of digits; nine are as wrong
        visited = numbers[1:] if len(numbers) == problem.count + 1 and numbers[0] == problem.start else numbers
        return Grade(" ".join(map(str, visited)), problem.reaches(visited))


class GymTask(GeneratedTask):
    """One of reasoning-gym's generators, judged by its own verifier. Raises ValueError when there is none such."""

    def __init__(self, generator: str) -> None:
        gym.check(generator)
        self.generator, self.name = generator, f"gym:{generator}"

    def draws(self, seed: int) -> Iterator[Item]:
        return (Item(text, gold, self.kind) for text, gold in gym.draw(self.generator, seed))

    def grade(self, question: Question, text: str) -> Grade:
        return Grade(*gym.judge(self.generator, question.text, question.gold, text))


class WrittenTask(TextTask):
    """Questions that stand in a file or in a dataset of the hub; they come in its order, whatever the seed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.dataset or (source.path.stem if source.path else "")
        if self.name in SIZED:
            raise ValueError(
                f"{source.path} is called as the built-in task {self.name} is, whose answers are checked in a way of "
                f"its own. Rename the file: my_{self.name}{source.path.suffix if source.path else ''}, say."
            )

    def stream(self, split: str, seed: int) -> Iterator[Question]:
        return iter(self.different(split)[0])

    def different(self, split: str) -> tuple[list[Question], int, list[str]]:
        """The different questions of a split, how many rows were doubles, and the texts of those with another gold."""
        found: dict[str, Question] = {}
        rows, contradicted = 0, []
        for item in self.source.items(_known(split)):
            question = _question(self.name, item)
            first = found.setdefault(question.id, question)
            if first.gold != question.gold and canonical(first.gold) != canonical(question.gold):
                contradicted.append(first.text)
            rows += 1
        return list(found.values()), rows - len(found), contradicted

    def __str__(self) -> str:
        return str(self.source)


class MixedTask(TextTask):
    """Several tasks in turn: the first question of each, then the second of each, and so on."""

    def __init__(self, parts: list[Task]) -> None:
        self.parts, self.name = parts, ",".join(part.name for part in parts)
        self.endless = any(part.endless for part in parts)

    def stream(self, split: str, seed: int) -> Iterator[Question]:
        """Where a task comes to its end, the others carry on."""
        return _in_turn([part.stream(_known(split), seed) for part in self.parts])

    def questions(self, split: str, seed: int, count: int) -> list[Question]:
        """As many of each task (one more of the first ones): ValueError when one of them has fewer than its share."""
        n = len(self.parts)
        share = [-1 if count < 0 else (count + n - 1 - i) // n for i in range(n)]
        drawn = [part.questions(_known(split), seed, k) for part, k in zip(self.parts, share, strict=True)]
        return list(_in_turn([iter(part) for part in drawn]))

    def grade(self, question: Question, text: str) -> Grade:
        return self.part(question).grade(question, text)

    def part(self, question: Question) -> Task:
        """The task a question of ours came from. Raises ValueError for a question of another task."""
        for part in self.parts:
            if question.task == part.name:
                return part
        raise ValueError(f"question {question.id!r} is of none of the tasks {self.name}: name its task in --task too.")


def _in_turn(streams: list[Iterator[Question]]) -> Iterator[Question]:
    while streams:
        for stream in list(streams):
            question = next(stream, None)
            if question is None:
                streams.remove(stream)
            else:
                yield question


# --- questions that come more than once ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Repeats:
    """How the questions of a split repeat themselves; two are one when they differ in case or punctuation only."""

    task: str
    questions: int
    """Different ones."""
    doubles: int
    """Rows that were left out because their question had come before."""
    contradicted: list[str]
    """The texts of questions that were left out with another gold than they had come with before."""
    elsewhere: dict[Split, list[str]]
    """The ids of those questions that stand in another split of the task too; splits without any are not named."""

    def __str__(self) -> str:
        """A line for each thing found; "" when nothing was."""
        rows = self.questions + self.doubles
        lines = [f"{self.task}: {self.doubles:,} of {rows:,} rows ask again and were left out."] * bool(self.doubles)
        if self.contradicted:
            count, first = len(self.contradicted), shorten(self.contradicted[0], 60)
            lines.append(
                f"{self.task}: {count:,} of these have another answer than before (first: {first!r}): mend them."
            )
        for split, ids in self.elsewhere.items():
            lines.append(f"{self.task}: {len(ids):,} of {self.questions:,} questions also stand in the {split} split.")
        return "\n".join(lines)


def find_repeats(task: Task, split: Split) -> list[Repeats]:
    """The repeats of every task that has any; generated tasks have none. Raises ValueError as ``Task.stream`` does."""
    if isinstance(task, MixedTask):
        return [found for part in task.parts for found in find_repeats(part, split)]
    if not isinstance(task, WrittenTask):
        return []
    questions, doubles, contradicted = task.different(split)
    ids = {question.id for question in questions}
    shared: dict[Split, list[str]] = {}
    for other in task.source.splits:
        again = [question.id for question in task.different(other)[0] if question.id in ids] if other != split else []
        if again:
            shared[other] = again
    found = Repeats(task.name, len(ids), doubles, contradicted, shared)
    return [found] if found.doubles or found.elsewhere else []


# --- by name ---------------------------------------------------------------------------------------------------------


class MathsTask(TextTask):
    """Any maths question, as GSM8K's."""

    name = "maths"
    kind: Kind = "maths"


class ChoiceTask(TextTask):
    """Any multiple-choice question, its options written below it as "A. …" lines."""

    name = "choice"
    kind: Kind = "choice"


BUILT_IN: dict[str, Callable[[], Task]] = {
    kind.name: kind for kind in (ArithmeticTask, SearchTask, TextTask, MathsTask, ChoiceTask)
}
SIZED: dict[str, type[SizedTask]] = {kind.name: kind for kind in (ArithmeticTask, SearchTask)}
_WAYS = (
    f"arithmetic, search, one of {', '.join(DATASETS)}, gym:NAME, or the path of a {', '.join(list(READERS)[:-1])} or "
    f"{list(READERS)[-1]} file"
)


def load_task(spec: str) -> Task:
    """The task behind a name, a path, or several with commas (a path with a comma in it is two).

    A name is ``arithmetic``, ``search`` (``search:2``: with two moves only), ``text``, a key of ``hub.DATASETS``
    (``gsm8k``; ``gsm8k:PATH`` for a folder or file of the same columns) or ``gym:`` and a generator of reasoning-gym; a
    path ends in .jsonl, .json, .csv or .parquet.

    Raises ValueError for any other name, and for two tasks of one name.
    """
    parts = [_load_one(name) for name in dict.fromkeys(filter(None, (part.strip() for part in spec.split(","))))]
    if not parts:
        raise ValueError(f"--task is empty: type {_WAYS}.")
    names = [part.name for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        way_out = f"Type one {twice[0]} only, and collect the other in a run and a folder of its own"
        if any(isinstance(part, WrittenTask) and part.name == twice[0] and not part.source.dataset for part in parts):
            way_out = "Rename one of the files"
        raise ValueError(f"two tasks of {spec!r} have one name, so their questions could not be told apart. {way_out}.")
    return parts[0] if len(parts) == 1 else MixedTask(parts)


def _load_one(spec: str) -> Task:
    name, colon, rest = spec.partition(":")
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    if (sized := SIZED.get(name)) and colon:
        if rest not in map(str, range(2, sized.largest + 1)):
            raise ValueError(f"--task is {spec!r}, but {name} has 2 to {sized.largest} steps: type {name}:3, say.")
        return sized(int(rest))
    if spec in DATASETS:
        return WrittenTask(Source(None, spec))
    if name in DATASETS and rest:
        return WrittenTask(Source(Path(rest), name))
    if name == "gym" and colon:
        return GymTask(rest)
    if Path(spec).suffix.lower() in READERS:
        return WrittenTask(Source(Path(spec)))
    near = get_close_matches(name.lower(), [*BUILT_IN, *DATASETS], n=1)
    raise ValueError(f"unknown task {spec!r}{f' (did you mean {near[0]}?)' if near else ''}: type {_WAYS}.")


# --- when nobody names a task ----------------------------------------------------------------------------------------


class OwnTask(TextTask):
    """Grades each question as the task does that it came from; where that is unknown, as its kind says."""

    name = "own"

    def grade(self, question: Question, text: str) -> Grade:
        return _task_of(question.task, question.kind).grade(question, text)


@cache
def _task_of(name: str, kind: Kind) -> Task:
    if name in BUILT_IN or name in DATASETS or name.startswith("gym:"):
        return load_task(name)
    by_kind: dict[Kind, Task] = {"maths": MathsTask(), "choice": ChoiceTask(), "text": TextTask()}
    return by_kind.get(kind) or SearchTask()


def as_question(text: str, task: Task | None = None) -> Question:
    """A plain text as a question of a task: left out, of search where it is written as one, else of arithmetic.

    Its gold is known where the text is as `ArithmeticTask` writes it, else ``""``. Raises ValueError for an empty text.

    >>> as_question("Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?").gold
    '17'
    >>> as_question("Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?").task
    'search'
    """
    if not text.strip():
        raise ValueError('The question is empty. Type it in quotes, as "Ann has 12 apples. ...".')
    if task is None:
        task = SearchTask() if _parsed(SearchProblem.parse, text) else ArithmeticTask()
    problem = _parsed(ArithmeticProblem.parse, text) if task.name == ArithmeticTask.name else None
    values = tuple(map(str, problem.values)) if problem else ()
    return _question(task.name, Item(text, values[-1] if values else "", getattr(task, "kind", "text"), values))


_P = TypeVar("_P")


def _parsed(parse: Callable[[str], _P], text: str) -> _P | None:
    try:
        return parse(text)
    except ValueError:
        return None
