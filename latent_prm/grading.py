r"""How an answer is read out of a text, and when two answers, or two questions, are one and the same.

This room hides ``\boxed{}``, numbers with commas, currency and units, formulas, and lettered choices.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_uppercase
from typing import Any, Literal

Kind = Literal["maths", "choice", "text", "search"]
"""How a question is put to a reasoner, and how its answer is read: a number or formula, the letter of a choice, any
value, or the numbers visited in a search."""

LONGEST = 100
"""Characters. What is longer is neither a number nor a formula that anyone would write as an answer."""

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?:(?<![\w.)])-)?[$€£]?(?:\d{{1,3}} \d+/\d+|(?:{_DIGITS})(?:[eE][+-]?\d\d?(?!\w)|/\d+)?)"
    rf"(?:\s(?:{'|'.join(_SCALES)}))?",
    re.IGNORECASE,
)
# What may follow a number is its unit, and does not count; but not these words, which make another answer of it.
_OTHER = (
    r"(?:pi|[ap]\.?\s?m|and|or|at\s+(?:least|most)|plus|minus|over|factorial|squared|cubed|sin|cos|tan|cot|csc|log|ln|sqrt"
    r"|half|halves|thirds|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths)"
)
_WORDS = rf"(?!(?i:{_OTHER})\b)[A-Za-z][A-Za-z.²³/-]*(?:\ +(?!(?i:{_OTHER})\b)[A-Za-z.²³/-]+)*\ *"
_GLUED = (  # "5cm" is a length, "5ab" a formula
    r"(?:[cdkmn]?m|[km]?g|[cdm]?[lL]|[hsV]|k?Wh?|k?Hz|[KMGT]B|ms|[km]ph|km/h|ft|in|yds?|mi|lbs?|oz|hrs?|mins?|secs?|USD"
    r"|(?:(?:centi|kilo|milli)?(?:met(?:er|re)|gram|lit(?:er|re))|mile|yard|second|minute|hour|day|week|month|year|degree"
    r"|cent|dollar|euro|unit)s?|inch(?:es)?|feet|foot|percent|people)"
)
_PLAIN = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>0*[1-9]\d*)"
    rf"|(?P<digits>\d{{1,3}}(?:\ \d{{3}})+|{_DIGITS})(?P<power>[eE][+-]?\d\d?)?)"
    rf"(?P<unit>\s*°\s?[CF]?|(?:\s*(?={_GLUED}(?![A-Za-z]))|\s+(?=[A-Za-z]{{2}}|[CFJKN](?![A-Za-z])))"
    rf"{_WORDS}(?:\^\{{?\d\}}?)?)?"
)
_FONT = r"(?:text\w*|math(?:rm|bf|it|sf|tt|normal)|mbox)"
_UNIT = re.compile(rf"\\{_FONT}\s*\{{\s*(?!(?i:{'|'.join(_SCALES)})\b){_WORDS}\}}(?:\^\{{?\d\}}?)?\s*\.?\s*$")
_FORMULA = re.compile(
    r"(?!.*(?:\.\d*\.|\d[eE]\d))"  # 1.000.000 and 1e400 are no formulas
    r"(?:\\(?:[dt]?frac|sqrt|pi|cdot|times|div|infty|pm|cup|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|alpha|beta|gamma|delta"
    r"|theta|lambda|mu|sigma|phi|omega)(?![A-Za-z])|\\(?:begin|end)\{[pb]matrix\}|\\\\|&|\\[{}]|[A-Za-z](?![A-Za-z])"
    r"|\^(?:\d|\{-?\d\d?(?:/\d)?\})|(?<![\w.^])\d\d?!(?!!)|\*(?!\*)|[\d ,.=<>|()\[\]{}/+-])+"
)
NESTED, TALLEST = 6, 1000
"""Of what is given to ``math-verify``: how deep its brackets may nest (each level doubles the time), and what the
exponents that stand one upon another, and the numbers before "!", may multiply to."""


_PUNCTUATION = ".,;:?!\"'`‘’“”„«»…¿¡–—、。，？！：；$"  # noqa: RUF001
"""What may be put otherwise without asking something else."""
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_]{2})|(?<=[^\W\d_]{2})-(?=[^\W\d_])")  # in a word; "x-y" has a minus


def boxed(text: str) -> str | None:
    r"""What stands in the last complete ``\boxed{…}`` (or ``\fbox``), its braces balanced; None where there is none.

    An empty one, as where a text repeats what it was asked, counts only where there is no other.
    """
    opened: list[int] = []
    begin, end = -1, -1
    for brace in re.finditer(r"(\\f?box(?:ed)?\s*\{)|[{}]", text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[1] else -1)
        elif opened and (start := opened.pop()) > begin and (begin < 0 or text[start : brace.start()].strip()):
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
    numbers = _NUMBER.findall(re.sub(r"[_^]\{?-?\d+\}?", "", _minus(text)))  # cm^2 is not 2
    return numbers[-1] if numbers else ""


def canonical(answer: str) -> str:
    r"""One spelling for equal answers: ``"$1,000.00"`` and ``"1000 cm"`` are ``"1000"``, ``"\frac12"`` is ``"0.5"``.

    Numbers and plain fractions with commas, currency and units are read here; other formulas by ``math-verify``. What
    is neither is compared as lower-case words. Safe on any text, in any thread.
    """
    text = _undressed(answer)
    number = _PLAIN.fullmatch(text)
    if number and len(number[0].removesuffix(number["unit"] or "")) <= LONGEST:
        return _spell(_value(number))
    return _formula(_undressed(_UNIT.sub("", answer))) or _words(text)


def _minus(text: str) -> str:
    return re.sub(r"(?<![\w.)\]}])–(?=[$€£]?[.\d\\])", "-", text.replace("−", "-"))


def _undressed(answer: str) -> str:
    """Without LaTeX's fonts and spaces, currency, "x =" and "x in" in front, a number's base, and brackets around."""
    text = re.sub(rf"\\{_FONT}\s*\{{([^{{}}]*)\}}", r" \1 ", _minus(answer)).replace("{,}", ",")
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])|π", r"\\pi ", text)
    text = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d)\\[,;! ](?=\d)", " ", text)
    text = re.sub(r"(?<!\\)\\[,;:! ()]|~|\\?[$%€£]|\\(?:left|right)(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?", " ", text)
    text = re.sub(r"^[A-Za-z]\w*\s*(?:=|\\in(?![A-Za-z]))", "", text.strip()).strip()  # "x = 5" answers 5
    text = re.sub(r"(?i)(?<=\d)\s*([ap])(?:\.\s?m\.|m\b\.?)", r" \1m", text).rstrip(".")  # 6 p.m.
    text = re.sub(r"_\{(\w+)\}", r"_\1", re.sub(r"^\{([^{}]*)\}$", r"\1", text))
    return re.sub(r"^\(\s*([A-Za-z]\w*)\s*\)$|^(-?\d+)_\d\d?$", r"\1\2", text).strip()


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
    if not re.search(r"\d|\\", text) or len(text) > LONGEST or not _FORMULA.fullmatch(text) or not _small(text):
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


def _small(formula: str) -> bool:
    """Whether brackets nest no deeper, and powers rise no higher, than can be evaluated in a moment."""
    tallest, before = [1], [1]  # by open bracket: the largest power in it, and the last one that an exponent may raise
    last = ""
    for token in re.finditer(r"\^\{?-?(\d+)(?:/\d)?\}?|(\d+)!|[(\[{]|[)\]}]|[^ ]", formula):
        if token[0] in "([{":
            before[-1] = before[-1] if last in [*")]}"] else 1  # both parts of a fraction are raised together
            tallest, before = [*tallest, 1], [*before, 1]
        elif token[0] in ")]}":
            if len(tallest) == 1:
                return False
            inner = tallest.pop()
            before.pop()
            before[-1] = max(before[-1], inner)
        else:
            before[-1] = before[-1] * int(token[1]) if token[1] else int(token[2] or 1)
        tallest[-1] = max(tallest[-1], before[-1])
        last = token[0]
        if len(tallest) > NESTED + 1 or tallest[-1] > TALLEST:
            return False
    return True


def _words(text: str) -> str:
    text = " ".join(text.lower().split())
    if re.search(r"[-+*/=<>^\\]", text):  # of a formula that could not be read, spaces say nothing
        text = re.sub(r" (?=[^\w\s])|(?<=[^\w\s]) ", "", text)
    unsaid = r"[\[\]{}\\\"'`~$%&#@?;:…‘’“”]|(?<![\d)\]}])(?<!\b[^\W\d_])!"  # noqa: RUF001
    return " ".join(re.sub(unsaid, " ", text).split())


def normalise(text: str) -> str:
    """A question's text with case, spaces and punctuation evened out: two spellings of one question become equal.

    Signs that make another question stay: "(3 + 4) * 2?" and "3 + 4 * 2?", "5!" and "5?" are four.
    """
    text = _HYPHEN.sub(" ", text.lower().replace("−", "-"))
    return " ".join(re.findall(rf"\w+|\.(?=\d)|(?:(?<=[\d)\]}}])|(?<=\b[^\W\d_]))!|[^\w\s{_PUNCTUATION}]", text))


def halved(text: str) -> bool:
    """Whether half of a character stands in it (a lone surrogate), as of an emoji that was cut: no file can hold it."""
    return re.search("[\ud800-\udfff]", text) is not None


def question_digest(text: str) -> str:
    """16 hex digits that stand for a question's normalised text, to tell seen questions from unseen ones."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


# --- choices --------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"([A-Z])\. (.+)")
# B, (B), **B**, "B. Paris", "Option B"
_LETTER = re.compile(r"(?:(?i:option|choice|answer)[\s:]+)?[(\[*]*([A-Za-z])[)\]*]*(?:[.:)]\s.*|[.:])?", re.DOTALL)
_SAID = re.compile(
    r"(?i:answer)(?:\s+(?i:is|choice|option))*(?:[\s:=*_$({\[\"'\\]*([A-Z])(?![\w'’])|[\s:*]*\(([a-z])\))"
)
_MARK = re.compile(r"(?:\A|[\s(*])([A-Z])[.)][\s*]")
_LAST = re.compile(r"(?:^|[\s(*])([A-Z])[).*\s]*\Z")


def with_choices(text: str, choices: Sequence[str]) -> str:
    """The question with its choices under it, a line each: ``A. …``, ``B. …``. Line breaks within a choice go."""
    return "\n".join([text.strip(), *(f"{ascii_uppercase[i]}. {' '.join(c.split())}" for i, c in enumerate(choices))])


def choices_of(text: str) -> dict[str, str]:
    """The choices under a question by their letters; {} where there are none."""
    found: dict[str, str] = {}
    for line in reversed(text.rstrip().split("\n")):
        choice = _CHOICE.fullmatch(line.strip())
        if not choice or (found and ord(choice[1]) != ord(min(found)) - 1):
            return {}
        found[choice[1]] = choice[2]
        if choice[1] == "A":
            return dict(reversed(found.items()))
    return {}


def chosen(question: str, text: str) -> str:
    r"""The letter that a text chooses among the question's choices, "" for none.

    It stands in the last ``\boxed{}`` (or the full text of one choice does), else after "answer is" or "answer:", else
    alone at the end, else in front, as in "B. Paris", where no other letter is marked so.
    """
    choices = choices_of(question) or dict.fromkeys(ascii_uppercase, "")
    inside = boxed(text)
    if inside is None:
        said = [(one or other).upper() for one, other in _SAID.findall(text)] or _LAST.findall(text)
        if not said and re.match(r"[\s*(]*[A-Z][.)]", text) and len(marked := set(_MARK.findall(text))) == 1:
            said = [*marked]
        said = [letter for letter in said if letter in choices]
        return said[-1] if said else ""
    inside = re.sub(rf"\\{_FONT}\s*\{{([^{{}}]*)\}}|\\[,;:! ]|~", r" \1", inside).strip(" $")
    letter = _LETTER.fullmatch(inside)
    if letter and letter[1].upper() in choices:
        return letter[1].upper()
    same = [name for name, choice in choices.items() if inside and normalise(choice) == normalise(inside)]
    return same[0] if len(same) == 1 else ""
