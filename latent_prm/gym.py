"""Questions drawn by reasoning-gym, each judged by the verifier that its own library wrote for it.

This room hides that library: its registry, its seeds, and what may be handed to a verifier. A drawn question is found
again from a seed and an index alone, so that any process can judge an answer to it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from hashlib import sha256
from itertools import count
from typing import Any

from latent_prm.grading import boxed, canonical, extract_answer

WINDOW = 500
"""Questions drawn with one seed. Some generators depend on it, so it is part of what a seed means."""
LONGEST = 10_000
"""Characters. A longer answer is wrong unread."""


def check(name: str) -> None:
    """Raises ValueError when there is no generator of this name, or no reasoning-gym at all."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError(
            f'gym:{name} is drawn by reasoning-gym, which is missing here: pip install "latent-prm[gym]"'
        ) from None
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=5, cutoff=0.5) or sorted(DATASETS)
        raise ValueError(f"reasoning-gym has no {name!r}. Type gym: and one of its names: {', '.join(near)}.")
    try:
        _drawer(name, 0)
    except Exception as error:  # whatever a generator thinks of its own defaults
        raise ValueError(f"reasoning-gym draws no {name} without settings of its own ({error}).") from error


def draw(name: str, seed: int) -> Iterator[tuple[str, str]]:
    """Texts and golds without end. A gold is JSON: the library's own answer, and where the question is drawn again."""
    for window in count():
        start = int(sha256(f"{name}/{seed}/{window}".encode()).hexdigest()[:8], 16)
        for index in range(WINDOW):
            entry = _entry(name, start, index)
            yield entry["question"], json.dumps({"answer": entry["answer"], "seed": start, "index": index})


def judge(name: str, text: str, gold: str, written: str) -> tuple[str, bool]:
    """The answer that ``written`` gives to the question ``text``, and whether the library's verifier calls it right.

    Right is a full score: all verifiers give 1 for it, and less for what is merely near or well-formed. Raises
    ValueError for a question that this generator did not draw.
    """
    try:
        where = json.loads(gold)
        entry = _entry(name, int(where["seed"]), int(where["index"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise ValueError(
            f"gym:{name} cannot judge a question whose gold is {gold[:60]!r}: it drew none such."
        ) from None
    if entry["question"] != text:
        raise ValueError(
            f"gym:{name} did not draw this question here: its generator depends on the process or on the library's "
            "version. Set PYTHONHASHSEED=0 for all processes; if that does not help, collect anew."
        )
    answer = _answer(written, entry["answer"])
    verifier = _drawer(name, int(where["seed"]))
    correct = any(_score(verifier, spelling, entry) >= 1 for spelling in dict.fromkeys((answer, canonical(answer))))
    number = re.fullmatch(r"[-+$]*[\d.,]+\s*\w*[.%]?", answer)
    return canonical(answer) if number else " ".join(answer.split()), correct


@lru_cache(maxsize=8)
def _drawer(name: str, seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=WINDOW)


@lru_cache(maxsize=1024)
def _entry(name: str, seed: int, index: int) -> dict[str, Any]:
    if not 0 <= index < WINDOW:
        raise IndexError(index)
    return _drawer(name, seed)[index]


def _answer(written: str, known: str | None) -> str:
    """What a text answers: its box, what follows ``####``, the last number where a number is asked for, else all."""
    inside = boxed(written)
    if inside is None:
        numeric = "####" in written or re.fullmatch(r"-?[\d.,]+", known or "")
        return (extract_answer(written) if numeric else written).strip()
    inside = re.sub(r"\\text\s*\{([^{}]*)\}|\\(?:left|right|[,;!])|\$", r"\1", inside)
    return re.sub(r"\\(?:times|cdot) ?", "*", inside.replace(r"\div", "/")).strip()


def _score(verifier: Any, answer: str, entry: dict[str, Any]) -> float:
    if len(answer) > LONGEST or (_evaluates(type(verifier)) and not _harmless(answer)):
        return 0.0
    try:
        return float(verifier.score_answer(answer, entry))
    except Exception:  # a verifier stumbles over an answer that it cannot read
        return 0.0


@cache
def _evaluates(verifier: type) -> bool:
    """Whether a verifier runs the answer as Python: several do, by eval or by sympy's parser, which is built on it."""
    return bool(re.search(r"\b(?:eval|exec|parse_expr|sympify)\(", inspect.getsource(verifier.score_answer)))


_TOKENS = re.compile(
    r"""(?: \d{1,12}(?!\d) | \*(?!\*) | [-+/(),.\[\]'"\s_=]
          | [a-z](?![A-Za-z]) | [A-Z]+(?![A-Za-z]) | (?:a?(?:sin|cos|tan)|exp|log|sqrt|pi)(?![A-Za-z])
          | (?<!\))\*\*(?:-?\d\d?|\(-?\d\d?(?:/\d\d?)?\))(?!\d|\*\*)  # x**12, x**(3/2), but no tower of powers
          | (?<=\))\*\*(?:\d|\(-?\d/\d\))(?!\d|\*\*)                  # (x + 1)**2, (x + 1)**(3/2)
    )*""",
    re.VERBOSE,
)
_CALLS = re.compile(r"[)\]'\"]\s*\(|\.\s*[A-Za-z_]|exp(?!\s*\([^()]*\))")  # of what is no function of ours; exp(exp(9))


def _harmless(answer: str) -> bool:
    """Whether an answer is a sum, a formula or a list so plain that running it can do no more than give its value."""
    answer = re.sub(r"\s*\*\*\s*", "**", answer)
    repeated = "*" in answer and re.search(r"['\"\[]", answer)  # "a"*999999999
    large = len(answer) > 1000 or answer.count(")**") > 2
    return bool(_TOKENS.fullmatch(answer)) and not (large or repeated or _CALLS.search(answer))
