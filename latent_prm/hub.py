"""Questions that others wrote down: the one table of hub datasets, and plain local files.

This room hides where the rows lie, what their columns are called, and how a row becomes a question with its gold.
A new dataset is one entry in ``DATASETS``. Code that a dataset brings along is never run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from latent_prm.grading import Kind, boxed, extract_answer, halved, with_choices
from latent_prm.reaching import patiently
from latent_prm.rows import DATA, READERS, Row, first_line, rows_of

Split = Literal["train", "validation", "test"]
MOST_CHOICES = len(ascii_uppercase)


class Item(NamedTuple):
    """What a row says: a question, the answer it is graded against, how it is put, and the values on the way."""

    text: str
    gold: str
    kind: Kind
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset of the hub, script-free, and how one of its rows is read."""

    repo: str
    splits: Mapping[Split, str]
    """Its own name of each split that it has. What is made for measuring only is our test split, whatever its name."""
    read: Callable[[Row], Item]
    """Raises KeyError for a column that is missing, ValueError for a row that makes no question."""
    read_at: str
    """Where the column names and splits were read."""
    revision: str
    """The commit for which they hold: everyone gets the same questions."""
    configs: tuple[str, ...] = ()
    """Read one after the other; (): the dataset has no configurations."""


# --- how a row is read ----------------------------------------------------------------------------------------------


def _maths(text: str, gold: object) -> Item:
    """A gold of ``1000.0`` or ``033`` is written as people write it."""
    spelt = str(int(gold) if isinstance(gold, float) and gold.is_integer() else gold).strip()
    if spelt in ("", "None", "nan", "inf", "-inf"):
        raise ValueError(f"has no answer, only {gold!r}")
    return Item(text.strip(), str(int(spelt)) if spelt.isdecimal() else spelt, "maths")


def _choice(text: str, choices: Sequence[str], right: int) -> Item:
    return Item(with_choices(text, choices), ascii_uppercase[right], "choice")


def _gsm8k(row: Row) -> Item:
    _, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("has no answer after ####")
    item = _maths(row["question"], gold)
    return item._replace(steps=tuple(re.findall(r"<<[^<>]*=([^<>=]+)>>", row["answer"])))


def _math(row: Row) -> Item:
    r"""The gold is the last box of the solution; a few boxes have no braces: ``\boxed 3``."""
    bare = re.findall(r"\\f?box(?:ed)? +([^\s{}$.]+)", row["solution"])
    return _maths(row["problem"], boxed(row["solution"]) or (bare[-1] if bare else ""))


def _gpqa(row: Row) -> Item:
    """The right answer comes first in its row: the order is the question's own, the same in every run."""
    question, right = row["Question"].strip(), row["Correct Answer"]
    choices = [right, *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    choices.sort(key=lambda choice: sha256(f"{question}\n{choice}".encode()).digest())
    return _choice(question, choices, choices.index(right))


def _arc(row: Row) -> Item:
    """Some rows are labelled 1 to 4, and some have three choices or five."""
    return _choice(row["question"], row["choices"]["text"], _index(row["answerKey"], row["choices"]["label"]))


def _medqa(row: Row) -> Item:
    letters = [letter for letter in ascii_uppercase if row["options"].get(letter)]
    return _choice(row["question"], [row["options"][letter] for letter in letters], _index(row["answer_idx"], letters))


def _index(answer: str, labels: Sequence[str]) -> int:
    if answer not in labels:
        raise ValueError(f"has the answer {answer!r}, but choices {', '.join(labels)}")
    return list(labels).index(answer)


def _plain(row: Row) -> Item:
    """Our own format: ``question`` and ``answer``; ``choices`` (or ``options``, or columns A, B, …) where there are."""
    texts = [row.get("question"), row.get("answer")]
    if not all(isinstance(text, (str, int, float)) and str(text).strip() for text in texts):
        raise ValueError('lacks a "question" or an "answer": every question must have both')
    if odd := [v for v in texts if isinstance(v, bool) or (isinstance(v, float) and not math.isfinite(v))]:
        raise ValueError(f"has {json.dumps(odd[0])} for a text or a number: write it in quotes if it is meant")
    text, answer = (str(text).strip() for text in texts)
    choices = row.get("choices") or row.get("options") or _columns(row)
    if choices:
        return _choice(text, choices, _place(answer, choices))
    gold = extract_answer(answer) if "####" in answer or boxed(answer) is not None else answer
    if not gold:
        raise ValueError("has an empty answer: nothing could be graded against it")
    return Item(text, gold, "text")


def _columns(row: Row) -> list[str]:
    """The texts in the columns A, B, C … up to the first empty one."""
    found: list[str] = []
    for letter in ascii_uppercase:
        if row.get(letter) in (None, ""):
            break
        found.append(str(row[letter]))
    return found


def _place(answer: str, choices: Any) -> int:
    """Which of the choices an answer names: by its letter, else by its whole text."""
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"has choices that are no list of texts: {choices!r}; a .csv has them in columns A, B, C, D")
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise ValueError(f"has {len(choices)} choices: write 2 to {MOST_CHOICES}")
    letter = re.fullmatch(r"\(?([A-Z])[).]?", answer)
    if letter and ascii_uppercase.index(letter[1]) < len(choices):
        return ascii_uppercase.index(letter[1])
    same = [i for i, choice in enumerate(choices) if choice.strip() == answer]
    if len(same) != 1:
        raise ValueError(f"has the answer {answer!r}, which is neither the letter nor the text of one of its choices")
    return same[0]


# --- the table ------------------------------------------------------------------------------------------------------

_CARD = "https://huggingface.co/datasets/"
_HARNESS = "https://github.com/EleutherAI/lm-evaluation-harness/tree/main/lm_eval/tasks/"
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

DATASETS: dict[str, Dataset] = {
    "gsm8k": Dataset(
        repo="openai/gsm8k",
        configs=("main",),
        splits={"train": "train", "test": "test"},
        read=_gsm8k,
        read_at=_HARNESS + "gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
    ),
    "math": Dataset(
        repo="EleutherAI/hendrycks_math",
        configs=_SUBJECTS,
        splits={"train": "train", "test": "test"},
        read=_math,
        read_at=_HARNESS + "hendrycks_math",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    ),
    "math500": Dataset(
        repo="HuggingFaceH4/MATH-500",
        splits={"test": "test"},
        read=lambda row: _maths(row["problem"], row["answer"]),
        read_at=_HARNESS + "hendrycks_math",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    ),
    "aime2024": Dataset(
        repo="HuggingFaceH4/aime_2024",
        splits={"test": "train"},
        read=lambda row: _maths(row["problem"], row["answer"]),
        read_at=_CARD + "HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    ),
    "aime2025": Dataset(
        repo="math-ai/aime25",
        splits={"test": "test"},
        read=lambda row: _maths(row["problem"], row["answer"]),
        read_at=_CARD + "math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
    ),
    "gpqa": Dataset(
        repo="Idavidrein/gpqa",
        configs=("gpqa_diamond",),
        splits={"test": "train"},
        read=_gpqa,
        read_at=_HARNESS + "gpqa",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    ),
    "arc_easy": Dataset(
        repo="allenai/ai2_arc",
        configs=("ARC-Easy",),
        splits={"train": "train", "validation": "validation", "test": "test"},
        read=_arc,
        read_at=_CARD + "allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
    ),
    "arc_challenge": Dataset(
        repo="allenai/ai2_arc",
        configs=("ARC-Challenge",),
        splits={"train": "train", "validation": "validation", "test": "test"},
        read=_arc,
        read_at=_CARD + "allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
    ),
    "medqa": Dataset(
        repo="GBaker/MedQA-USMLE-4-options",
        splits={"train": "train", "test": "test"},
        read=_medqa,
        read_at="https://github.com/Abhipal-Wolfe/NLP_RAG",
        revision="0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
    ),
    "multiarith": Dataset(
        repo="ChilleD/MultiArith",
        splits={"train": "train", "test": "test"},
        read=lambda row: _maths(row["question"], row["final_ans"]),
        read_at="https://pypi.org/project/llmdataset/0.1.6",
        revision="144d44c3fb87c0b9097ac9593c789e716a282e3e",
    ),
    "gsm_hard": Dataset(
        repo="reasoning-machines/gsm-hard",
        splits={"test": "train"},
        read=lambda row: _maths(row["input"], row["target"]),
        read_at="https://github.com/aabbdev/openbench2",
        revision="960448f73503112d4226baeb8eb41d3fb5ae2506",
    ),
    "svamp": Dataset(
        repo="ChilleD/SVAMP",
        splits={"train": "train", "test": "test"},
        read=lambda row: _maths(f"{row['Body'].strip()} {row['Question'].strip()}", row["Answer"]),
        read_at=_CARD + "ChilleD/SVAMP",
        revision="5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef",
    ),
}

# --- where the rows are ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one finite task: a plain file, or a dataset of the table from a file, a folder or the hub."""

    path: Path | None
    """None: the dataset is fetched from the hub, or from its cache."""
    dataset: str | None = None
    """A key of ``DATASETS``; None: the columns are ``question``, ``answer`` and perhaps ``choices``."""

    def __str__(self) -> str:
        return str(self.path or self.dataset)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are told apart here; (): one file is one set of questions, whatever split is asked for."""
        if self.dataset is None or (self.path and not self.path.is_dir()):
            return ()
        return tuple(split for split in DATASETS[self.dataset].splits if not self.path or self._files(split))

    def items(self, split: Split) -> Iterator[Item]:
        """Every row of a split as a question.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a row makes no question (it names the row), there is no such split, the hub cannot be reached,
                or a library is missing.
        """
        read = DATASETS[self.dataset].read if self.dataset else _plain
        for where, row in self._rows(split):
            try:
                item = read(row)
            except KeyError as error:
                raise ValueError(f"{where} has no column {error}: there are {', '.join(map(str, row))}.") from None
            except ValueError as error:
                raise ValueError(f"{where} {error}.") from None
            except (TypeError, AttributeError) as error:
                raise ValueError(f"{where} has a column of another type than it should ({error}).") from None
            if not item.text or not item.gold:
                raise ValueError(f"{where} has an empty question or answer.")
            if halved(item.text + item.gold):
                raise ValueError(f"{where} has half of a character (a lone surrogate), as of an emoji that was cut.")
            yield item

    def _rows(self, split: Split) -> Iterator[tuple[str, Row]]:
        if self.path and (self.dataset is None or not self.path.is_dir()):
            yield from rows_of(self.path)
        elif split not in self.splits:
            there = " and ".join(self.splits) or "none that its files name"
            raise ValueError(f"{self} has no {split} split; it has {there}. Type one of these as --split.")
        elif self.path:
            for path in self._files(split):
                yield from rows_of(path)
        elif self.dataset:
            yield from _fetch(self.dataset, split)

    def _files(self, split: Split) -> list[Path]:
        """A folder's files of this split, told by the names in their paths, as the hub lays them out."""
        assert self.path and self.dataset
        dataset = DATASETS[self.dataset]
        if split not in dataset.splits:
            return []
        files = (path for path in sorted(self.path.rglob("*")) if path.suffix in READERS)
        told = re.compile(r"(?:dataset|config|state)[^/]*\.json")  # what the hub and its libraries put beside the rows
        found = {path: path.relative_to(self.path) for path in files if not told.fullmatch(path.name)}
        ours = {p: name for p, name in found.items() if {*name.parts, name.stem} & set(dataset.configs)} or found
        word = re.compile(rf"(?<![A-Za-z]){dataset.splits[split]}(?![A-Za-z])")
        named = [path for path, name in ours.items() if word.search(name.as_posix())]
        return named if named or len(dataset.splits) > 1 else list(ours)


def _fetch(name: str, split: Split) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name} is fetched by the library datasets, which is missing here: {DATA}") from None
    dataset, theirs = DATASETS[name], DATASETS[name].splits[split]
    for config in dataset.configs or (None,):
        try:
            load = partial(datasets.load_dataset, dataset.repo, config, split=theirs, revision=dataset.revision)
            table: Any = patiently(load, dataset.repo)
        except Exception as error:  # a dozen kinds, of three libraries
            raise ValueError(_why_not(name, dataset.repo, error)) from error
        for number, row in enumerate(table, 1):
            yield f"{dataset.repo}, row {number} of {config or 'its'} {theirs}", row


def _why_not(name: str, repo: str, error: Exception) -> str:
    if "gated" in str(error).lower():
        return (
            f"{repo} is gated: accept its terms on {_CARD}{repo}, then set HF_TOKEN to a token of that account and "
            "type the same command again."
        )
    reason = "HF_HUB_OFFLINE is set, and it is not in the cache" if "OfflineMode" in str(error) else first_line(error)
    return (
        f"{repo} cannot be fetched ({reason}). Unset HF_HUB_OFFLINE where there is a network. Where there is none, "
        f'make a folder elsewhere by "hf download --repo-type dataset {repo} --local-dir FOLDER", copy it here, and '
        f"type --task {name}:FOLDER."
    )
