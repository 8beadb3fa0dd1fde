"""A question's tree of latent paths: who descends from whom, and how outcomes flow back to every path.

This room hides the arithmetic of the back-up and the drawing of a tree as text. It knows nothing of files or
models, and of tasks only which of them check answers without a gold. How its picture is drawn, `drawing` knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

import torch
from jaxtyping import Float
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text
from torch import Tensor

from latent_prm.drawing import Node, picture

MOST_LINES, LONGEST = 4, 24
"""Of a drawn question, and of a drawn answer in columns."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """One decoded text, graded."""

    text: str
    value: str
    """The answer in canonical form, by which votes are counted; "" when the text holds none."""
    correct: bool
    truncated: bool = False
    """The text was cut at the longest length allowed."""
    log_probability: float | None = field(default=None, compare=False)
    """The mean over its tokens of the logarithm of each one's probability, before temperature; None: unknown."""


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Path:
    """A run of consecutive latents by one agent. Its index in ``tree.paths`` is its id."""

    latents: Float[Tensor, "T D"]
    """As they were fed to the reasoner (after alignment and noise), float32, T >= 1."""
    tip: Float[Tensor, " D"] | None
    """The aligned hidden state after the last latent, without noise."""
    parent: int | None = None
    """Index of the path this one carries on from. Parents stand before their children."""
    agent: str = "solo"
    noise_free: bool = False
    answers: list[Answer] = field(default_factory=list)
    """What was decoded at the tip. Only a leaf's answers count."""
    prm_score: float | None = None
    """Chance of ending right, 0..1. None: never expanded, so unknown (censored), which is not zero."""
    score: float | None = None
    """Label-free: how far the tree's noisy answers agree with this path's, 0..1. None as for ``prm_score``."""
    num_correct: int | None = None
    """k of the M = ``num_answers`` answers that count for this path; both None where none does, or it is unknown."""
    num_answers: int | None = None
    hidden: Float[Tensor, "T D"] | None = None
    """On request: the aligned hidden states that the latents were made of, before noise."""

    def __repr__(self) -> str:
        said = [answer.value for answer in self.answers]
        score = "" if self.prm_score is None else f", prm_score={self.prm_score:.2f}"
        return f"Path(agent={self.agent!r}, parent={self.parent}, T={len(self.latents)}, answers={said}{score})"


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class ReasoningTree:
    """A question and every path that was grown for it."""

    question_id: str
    question: str
    gold: str
    task: str
    paths: list[Path]
    steps: tuple[str, ...] = ()
    """The true intermediate values on the way to the gold, in order; (): unknown. The last is mostly the gold's own,
    but GSM8K does not write out every sum."""

    def children(self, i: int) -> list[int]:
        """The paths that carry on from path ``i``, in order."""
        return [k for k, path in enumerate(self.paths) if path.parent == i]

    def leaves(self) -> list[int]:
        """The paths that nothing carries on from, in order."""
        parents = {path.parent for path in self.paths}
        return [i for i in range(len(self.paths)) if i not in parents]

    def chain(self, i: int) -> list[int]:
        """The paths from the root to path ``i``, both included.

        Raises:
            ValueError: a parent stands at or after its child.
        """
        chain = [i]
        while (parent := self.paths[chain[-1]].parent) is not None:
            self._check_parent(chain[-1], parent)
            chain.append(parent)
        return chain[::-1]

    def chain_length(self, i: int) -> int:
        """The latents of path ``i``'s chain."""
        return sum(len(self.paths[k].latents) for k in self.chain(i))

    def offered(self) -> list[int]:
        """The paths that are chosen from: noisy leaves that decoded an answer, in order.

        The noise-free path is a rival, not a candidate; who was pruned has nothing to say.
        """
        return [i for i in self.leaves() if self.paths[i].answers and not self.paths[i].noise_free]

    def chains(self, ends: Sequence[int]) -> tuple[ReasoningTree, list[int]]:
        """The chains of these paths as a tree of their own, without all others, and where the ends stand in it."""
        kept = sorted({i for end in ends for i in self.chain(end)})
        place = {i: at for at, i in enumerate(kept)}
        paths = [
            replace(path, parent=None if path.parent is None else place[path.parent])
            for path in (self.paths[i] for i in kept)
        ]
        return replace(self, paths=paths), [place[end] for end in ends]

    def chain_latents(self, i: int) -> Float[Tensor, "T D"]:
        """The latents of path ``i``'s chain, root to tip, in one tensor."""
        return torch.cat([self.paths[k].latents for k in self.chain(i)])

    @property
    def graded(self) -> bool:
        """Whether right and wrong are known: there is a gold, the task checks answers without one, or one of them is
        known to be right.
        """
        checked = self.gold != "" or self.task == "search" or self.task.startswith("gym:")
        return checked or any(answer.correct for path in self.paths for answer in path.answers)

    @property
    def mixed(self) -> bool:
        """Whether the noisy leaves' answers are neither all right nor all wrong."""
        outcomes = {answer.correct for answer in self._noisy_answers()}
        return len(outcomes) == 2

    def back_up(self) -> None:
        """Fill the scores and counts of every path from the answers of the leaves.

        A leaf's ``prm_score`` is its correct answers / its answers. Its ``score`` is the mean agreement of its answers:
        the share of all the tree's noisy leaf answers (its own included, when it is noisy) with the same value; ""
        agrees with nothing, yet is counted among all. An inner path's are the means of its scored children's, its
        counts are their sums; a noise-free child does not count for a noisy parent. All are None where nothing was
        decoded below. Where children differ in ``num_answers``, ``prm_score`` is not ``num_correct / num_answers``.

        Raises:
            ValueError: a parent stands at or after its child.
        """
        votes = Counter(answer.value for answer in self._noisy_answers())
        total = max(1, sum(votes.values()))  # only noise-free answers: there is nobody to agree with, so 0
        votes[""] = 0
        children: list[list[Path]] = [[] for _ in self.paths]
        for i, path in reversed(list(enumerate(self.paths))):  # children stand after parents: they are done first
            if children[i]:
                counted = [child for child in children[i] if path.noise_free or not child.noise_free]
                path.prm_score = _mean(child.prm_score for child in counted)
                path.score = _mean(child.score for child in counted)
                path.num_correct = _sum(child.num_correct for child in counted)
                path.num_answers = _sum(child.num_answers for child in counted)
            else:
                path.prm_score = _mean(answer.correct for answer in path.answers)
                path.score = _mean(votes[answer.value] / total for answer in path.answers)
                path.num_correct = sum(answer.correct for answer in path.answers) if path.answers else None
                path.num_answers = len(path.answers) or None
            if path.parent is not None:
                self._check_parent(i, path.parent)
                children[path.parent].insert(0, path)

    def show(self, width: int = 100, siblings: int = 8, scores: Float[Tensor, " P"] | None = None) -> str:
        """The tree as text for a terminal, no line wider than ``width`` columns: the question, then a line per path.

        A line names the agent, its latents T, the predicted score of ``scores`` where they are given, the ``prm_score``
        as 0.75 = 3/4 (in brackets where k / M is another number), and on a leaf what was answered, ✓ right or ✗ wrong.
        Where more than ``siblings`` paths stand side by side, the rest is counted.

        Raises ValueError when there is not a score for every path.

        >>> print(tree.show(scores=prm.score(tree)))  # doctest: +ELLIPSIS
        Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?
        search · 5 paths, 5 leaves
        ├─ solo · T 6 · noise-free  p 0.91  1.00 = 1/1  ✓ 10 20
        ...
        """
        facts = self._facts()
        lines = [*_wrapped(self.question, width), facts]
        rows = [(name, value, said) for _, name, value, said in self._rows(siblings, self._checked(scores))]
        values = max((len(value) for _, value, _ in rows), default=0)
        room = max(width // 2, width - values - LONGEST // 2)
        names = min(room, max((cell_len(name) for name, _, _ in rows), default=0))
        lines += [f"{_column(name, names)}  {value:<{values}}  {answers}" for name, value, answers in rows]
        return "\n".join(_fitted(line.rstrip(), width) for line in lines)

    def picture(self, scores: Float[Tensor, " P"] | None = None, siblings: int = 8) -> Picture:
        """The tree as HTML with an SVG, which a notebook shows: paths coloured by ``scores``, else by ``prm_score``,
        from orange (0) over grey to blue (1); leaves ringed where they are right, the ring broken where they are wrong.

        Raises ValueError when there is not a score for every path.

        >>> tree.picture(prm.score(tree)).count("<circle")
        5
        """
        checked, nodes, at = self._checked(scores), [], {}
        for group, name, value, said in self._rows(siblings, checked):
            path, alone = self.paths[group[0]], len(group) == 1
            shade = path.prm_score if checked is None else checked[group[0]]
            parent = None if path.parent is None else at[path.parent]
            at[group[0]] = len(nodes)
            right = path.answers[0].correct if said and self.graded else None
            shown = f"{shade:.2f}  {said}" if alone and shade is not None else said
            name = name.lstrip("│├└─ ")
            nodes.append(Node(parent, shade if alone else None, f"{name}  {value}", shown if alone else name, right))
        return Picture(picture(_printable(self.question), self._facts(), nodes))

    def __repr__(self) -> str:
        return f"ReasoningTree({shorten(self.question, 60)!r}, {self._facts()})"

    def __str__(self) -> str:
        return self.show()

    def _repr_html_(self) -> str:
        return self.picture()

    def _facts(self) -> str:
        counted = f"{_count(len(self.paths), 'path')}, {_count(len(self.leaves()), 'leaf')}"
        gold = f"gold {self.gold} · " if self.gold else "" if self.graded else "no gold · "
        return f"{gold}{self.task} · {counted}"

    def _checked(self, scores: Float[Tensor, " P"] | None) -> list[float] | None:
        if scores is not None and len(scores) != len(self.paths):
            raise ValueError(
                f"{len(scores)} scores for {len(self.paths)} paths: give one for each, as prm.score(tree)."
            )
        return None if scores is None else scores.tolist()

    def _rows(self, siblings: int, scores: list[float] | None) -> Iterator[tuple[list[int], str, str, str]]:
        """Of every path to draw, or of the rest of some siblings: which, its name behind the branches that lead to it,
        its value, its answers.
        """
        children: dict[int | None, list[int]] = {}
        for i, path in enumerate(self.paths):
            children.setdefault(path.parent, []).append(i)

        def brood(parent: int | None, indent: str) -> list[tuple[str, list[int], bool]]:
            """What stands below a path, last first: single paths, and the rest in one."""
            found = children.get(parent, [])
            shown = found if len(found) <= siblings + 1 else found[:siblings]
            groups = [[i] for i in shown] + ([found[siblings:]] if len(shown) < len(found) else [])
            return [(indent, group, group is groups[-1]) for group in reversed(groups)]

        waiting, graded = brood(None, ""), self.graded  # no recursion: a tree may be deeper than Python's stack
        while waiting:
            indent, group, last = waiting.pop()
            branch = indent + ("└─ " if last else "├─ ")
            if len(group) > 1:
                yield group, branch + _remainder([self.paths[i] for i in group]), "", ""
                continue
            path, below = self.paths[group[0]], brood(group[0], indent + ("   " if last else "│  "))
            name = f"{path.agent} · T {len(path.latents)}" + (" · noise-free" if path.noise_free else "")
            value = _value(path) if scores is None else f"p {scores[group[0]]:.2f}  {_value(path)}"
            said = "" if below else "  ".join(_outcome(answer, graded) for answer in path.answers)
            yield group, branch + _printable(name), value, said
            waiting += below

    def _noisy_answers(self) -> list[Answer]:
        leaves = [self.paths[i] for i in self.leaves()]
        return [answer for leaf in leaves if not leaf.noise_free for answer in leaf.answers]

    def _check_parent(self, i: int, parent: int) -> None:
        if not 0 <= parent < i:
            where = f"question {self.question_id!r}, path {i}"
            raise ValueError(f"{where}: its parent is {parent}, but parents must stand before their children.")


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


# --- drawing --------------------------------------------------------------------------------------------------------


class Picture(str):
    """HTML that a notebook shows as what it is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return self


def _value(path: Path) -> str:
    if path.prm_score is None:
        return "unknown"
    if path.num_correct is None or not path.num_answers:
        return f"{path.prm_score:.2f}"
    share = f"{path.num_correct}/{path.num_answers}"
    equal = abs(path.prm_score - path.num_correct / path.num_answers) < 1e-6  # a shard keeps float32
    return f"{path.prm_score:.2f} = {share}" if equal else f"{path.prm_score:.2f} ({share})"


def _outcome(answer: Answer, graded: bool) -> str:
    said = answer.value or ("cut off" if answer.truncated else "no answer")
    return f"{('✓' if answer.correct else '✗') if graded else '·'} {_fitted(_printable(said), LONGEST)}"


def _remainder(paths: list[Path]) -> str:
    right, answers = _sum(path.num_correct for path in paths), _sum(path.num_answers for path in paths)
    if right is None:
        return f"… {len(paths)} more"
    return f"… {len(paths)} more: {right} {'' if answers == len(paths) else f'of {answers} '}right"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else {'leaf': 'leaves'}.get(noun, noun + 's')}"


def _printable(text: str) -> str:
    """In one line, and without what a terminal would obey: a text may come from elsewhere."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def _wrapped(text: str, width: int) -> list[str]:
    lines = [line.plain.rstrip() for line in Text(_printable(text)).wrap(Console(width=width), width)]
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"]


def _fitted(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 1)).rstrip()}…"


def _column(text: str, width: int) -> str:
    """As wide as the others; of what is too long the end stays, where the name is."""
    if cell_len(text) > width:
        text = text[-2 * width :]  # of a path a thousand deep, the branches before it are long
        while cell_len(text) > width - 1:
            text = text[1:]
        text = f"…{text}"
    return set_cell_size(text, width)
