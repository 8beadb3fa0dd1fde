"""Thinking steered by a scorer: which paths of a growing tree go on, and when a question has enough of them.

This room hides how a rule of `rules` is fed while `Reasoner.grow` works. `from_name` makes a guide of a rule's or a
preset's name; its `grow` gives finished trees with the final score and the votes of every path.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int

from latent_prm.growth import Growth, every_latent
from latent_prm.reasoner import Reasoner, back_up, beside
from latent_prm.rules import (
    Counts,
    Rule,
    Scores,
    Turn,
    adaptive,
    beam,
    budget,
    diversity,
    merged,
    none,
    particles,
    topk,
    uncertain,
)
from latent_prm.scorers import Scorer, lots, score_ends
from latent_prm.selector import Candidates, Choice, How, candidates_of, choose_among
from latent_prm.settling import CONFIDENCE, Settled, by_agreement, by_prm, rounds
from latent_prm.tasks import Question, Task
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

# --- guides ---------------------------------------------------------------------------------------------------------


class Grown(NamedTuple):
    """A finished tree, and what its paths have to say. Where a path did not finish, or is noise-free, both are 0."""

    tree: ReasoningTree
    scores: Float[np.ndarray, " P"]
    """The scorer's last word of each path, 0..1."""
    votes: Int[np.ndarray, " P"]
    """How many paths each stands for: more than one where others were merged into it."""

    def ballots(self) -> Candidates:
        """What the finished paths offer, each as often as it has votes."""
        cast = np.repeat(np.arange(len(self.votes)), self.votes).tolist()
        return candidates_of(self.tree, cast, self.scores.tolist())

    def choose(self, how: How = "weighted_vote") -> Choice:
        """The answer that they give together; its ``index`` is the best path in the tree that gave it."""
        cast = self.ballots()
        choice = choose_among(cast.values, cast.scores, how)
        return choice._replace(index=cast.paths[choice.index])


class Guide(Protocol):
    """A way of growing trees with a scorer's help."""

    name: str
    num_paths: int | None
    """Paths that it is meant for, to be asked of ``Reasoner.growth`` unless others are typed; None: any number."""

    def grow(
        self, reasoner: Reasoner, questions: Sequence[Question], task: Task, growth: Growth | None = None
    ) -> list[Grown]:
        """A finished tree per question."""
        ...


@dataclass
class Steering:
    """A rule, the scorer that it listens to, and when: what `Reasoner.grow` takes for its ``steer``."""

    name: str
    rule: Rule
    scorer: Scorer
    num_paths: int | None = None
    after: tuple[int, ...] | None = None
    """Steer after so many latents of a chain; None: after every run, a lone agent's runs being single latents."""
    turns: int | None = None
    """Steer so often, evenly spread over the runs, where ``after`` does not say when; None: after every run."""
    merge: float | None = None
    """First make one path of those whose tips (the next latents, before noise) have at least this cosine."""
    begin: float = 1.0
    """Share of the paths that begin."""
    _merged: dict[str, dict[int, int]] = field(default_factory=dict)
    """By question, the votes that a path was given by those merged into it."""
    _warned: bool = False

    @property
    def _steers(self) -> bool:
        return self.rule is not none or self.merge is not None

    def grow(
        self, reasoner: Reasoner, questions: Sequence[Question], task: Task, growth: Growth | None = None
    ) -> list[Grown]:
        """A finished tree per question: a lone agent's growth is cut into runs of one latent each, and steered.

        Raises ValueError as `Reasoner.grow`, and when nobody thinks so many latents as ``after`` says.
        """
        growth = every_latent(keeping(growth or reasoner.growth(), self.scorer), self.begin)
        if not self._turns(growth) and self._steers and not self._warned:
            log.warning("%s steers nothing: no path has a second latent, after the first of which it could.", self.name)
            self._warned = True
        trees = reasoner.grow(questions, task, growth, steer=self)
        ends = [tree.offered() for tree in trees]
        worths = score_ends(self.scorer, trees, ends)
        return [_grown(*each, self._votes(each[0])) for each in zip(trees, ends, worths, strict=True)]

    def __call__(
        self, trees: Sequence[ReasoningTree], frontiers: Sequence[Sequence[int]], growth: Growth, run: int
    ) -> list[list[int]]:
        """How often each frontier path goes on, as `growth.Steer` has it."""
        for tree, frontier in zip(trees, frontiers, strict=True):
            if all(tree.paths[i].parent is None for i in frontier):
                self._merged[tree.question_id] = {}
        turns = self._turns(growth)
        if run not in turns or not self._steers:
            return [[1] * len(frontier) for frontier in frontiers]
        asked = self.rule is not none
        worths = score_ends(self.scorer, trees, frontiers) if asked else [np.ones(len(some)) for some in frontiers]
        return [
            self._decide(tree, frontier, worth, _turn(tree, growth, run, turns)).tolist()
            for tree, frontier, worth in zip(trees, frontiers, worths, strict=True)
        ]

    def _turns(self, growth: Growth) -> list[int]:
        """The runs after which it steers. Raises ValueError when ``after`` names no end of one."""
        thought = np.cumsum([run.latent_steps for run in growth.runs]).tolist()
        ends = {thought[i]: i for i, run in enumerate(growth.runs[:-1]) if run.latent_steps}
        if unknown := [latents for latents in self.after or () if latents not in ends]:
            raise ValueError(
                f"Nothing can be steered after {unknown[0]} latents: runs end, and others follow, after "
                f"{', '.join(map(str, ends)) or 'none'}."
            )
        if self.after is not None:
            return [ends[latents] for latents in sorted(set(self.after))]
        every, turns = list(ends.values()), self.turns
        if turns is None or turns >= len(every):
            return every
        return [every[round((turn + 1) * (len(every) + 1) / (turns + 1)) - 1] for turn in range(turns)]

    def _decide(self, tree: ReasoningTree, frontier: Sequence[int], worth: Scores, turn: Turn) -> Counts:
        tips = [tip for i in frontier if (tip := tree.paths[i].tip) is not None]
        thoughts = torch.stack(tips).double().numpy()
        if self.merge is None:
            return self.rule(worth, thoughts, turn)
        owners = merged(worth, thoughts, self.merge)
        given = self._merged[tree.question_id]
        for i, owner in enumerate(owners):
            if owner != i:
                given[frontier[owner]] = given.get(frontier[owner], 0) + self._vote(tree, frontier[i])
        alone = sorted(set(owners))
        counts = np.zeros(len(frontier), dtype=int)
        counts[alone] = self.rule(worth[alone], thoughts[alone], turn)
        return counts

    def _vote(self, tree: ReasoningTree, path: int) -> int:
        given = self._merged.get(tree.question_id, {})
        return 1 + sum(given.get(i, 0) for i in tree.chain(path))

    def _votes(self, tree: ReasoningTree) -> list[int]:
        return [self._vote(tree, i) for i in range(len(tree.paths))]


def _turn(tree: ReasoningTree, growth: Growth, run: int, turns: Sequence[int]) -> Turn:
    branches, steps = [each.branches for each in growth.runs], [each.latent_steps for each in growth.runs]
    later = range(run + 1, len(steps))
    return Turn(
        width=prod(branches[: run + 1]),
        progress=turns.index(run) / max(1, len(turns) - 1),
        spent=sum(len(path.latents) for path in tree.paths if not path.noise_free),
        left=max(1, sum(steps[r] * prod(branches[run + 1 : r + 1]) for r in later)),
        whole=sum(count * prod(branches[: r + 1]) for r, count in enumerate(steps)),
        lot=float(lots(f"{growth.seed}/{tree.question_id}/{run}", 1)[0]),
    )


def keeping(growth: Growth, scorer: Scorer) -> Growth:
    """The growth, with the hidden states kept where the scorer reads them."""
    return replace(growth, keep_hidden=growth.keep_hidden or scorer.reads_hidden)


def _grown(
    tree: ReasoningTree, ends: Sequence[int], worth: Float[np.ndarray, " N"], votes: Sequence[int] | None = None
) -> Grown:
    scores, cast = np.zeros(len(tree.paths)), np.zeros(len(tree.paths), dtype=int)
    scores[ends] = worth
    cast[ends] = 1 if votes is None else [votes[i] for i in ends]
    return Grown(tree, scores, cast)


# --- anytime --------------------------------------------------------------------------------------------------------


@dataclass
class Anytime:
    """Grows a question's paths in rounds, and stops when the answer is settled.

    A path's chance does not depend on how many there are: what is grown are the first paths of the whole tree.
    """

    scorer: Scorer
    confidence: float = CONFIDENCE
    settled: Settled = by_prm
    """Who says how settled an answer is; `Confidence.settled` has learnt it."""
    first: int = 2
    """Paths (of the first agent) in the first round."""
    more: int = 1
    """In every other."""
    num_paths: int | None = None
    name: str = "anytime"

    def grow(
        self, reasoner: Reasoner, questions: Sequence[Question], task: Task, growth: Growth | None = None
    ) -> list[Grown]:
        """A finished tree per question, with as many paths as it needed. Raises ValueError as `Reasoner.grow`."""
        growth = keeping(growth or reasoner.growth(), self.scorer)
        trees: list[ReasoningTree | None] = [None] * len(questions)
        worths = [np.zeros(0) for _ in questions]
        asking, begin = list(range(len(questions))), 0
        for end in rounds(growth.runs[0].branches, self.first, self.more):
            if not asking:
                break
            news = reasoner.grow([questions[i] for i in asking], task, growth, roots=range(begin, end))
            for i, new in zip(asking, news, strict=True):
                trees[i] = new if (known := trees[i]) is None else joined(known, new)
            if self.settled is not by_agreement:
                self._score(trees, worths, asking)
            asking = [i for i in asking if not self._settled(trees[i], worths[i], growth.num_paths)]
            begin = end
        whole = [tree for tree in trees if tree is not None]
        self._score(trees, worths, list(range(len(questions))))
        return [_grown(tree, tree.offered(), worth) for tree, worth in zip(whole, worths, strict=True)]

    def _score(
        self, trees: Sequence[ReasoningTree | None], worths: list[Float[np.ndarray, " _"]], asked: Sequence[int]
    ) -> None:
        """Score the finished paths that have no score yet; all anew where one's score depends on the others."""
        shown = [tree for i in asked if (tree := trees[i]) is not None]
        known = [len(worths[i]) for i in asked]
        ends = [tree.offered() for tree in shown]
        fresh = [
            some if not self.scorer.apart and len(some) > done else some[done:]
            for some, done in zip(ends, known, strict=True)
        ]
        for i, some, new in zip(asked, fresh, score_ends(self.scorer, shown, fresh), strict=True):
            if some:
                worths[i] = np.concatenate([worths[i], new]) if self.scorer.apart else new

    def _settled(self, tree: ReasoningTree | None, worth: Float[np.ndarray, " _"], num_paths: int) -> bool:
        if tree is None:
            return False
        values = [tree.paths[i].answers[0].value for i in tree.offered()]
        return bool(values) and self.settled(values, worth, num_paths - len(values)) >= self.confidence


def joined(tree: ReasoningTree, more: ReasoningTree) -> ReasoningTree:
    """Both trees of one question as one, backed up anew."""
    whole = replace(tree, paths=beside(tree.paths, more.paths))
    back_up(whole)
    return whole


# --- by name --------------------------------------------------------------------------------------------------------


class Preset(NamedTuple):
    """What a name stands for."""

    rule: Rule
    said: str
    """In a few words, for a table."""
    num_paths: int | None = None
    merge: float | None = None
    begin: float = 1.0
    turns: int | None = None
    settings: Mapping[str, Any] = {}


PRESETS: dict[str, Preset] = {
    "none": Preset(none, "nothing is steered"),
    "topk": Preset(topk, "keep the best quarter of the width"),
    "adaptive": Preset(adaptive, "after a third keep 30 %, after two thirds 80 % of these", turns=2),
    "diversity": Preset(diversity, "keep a quarter, by score and by distance to those kept"),
    "budget": Preset(budget, "keep as many as half of all latents can pay for"),
    "beam": Preset(beam, "the best quarter goes on, four times each"),
    "particles": Preset(particles, "resample in proportion to the score"),
    "merge": Preset(none, "near-identical paths become one with their votes", merge=0.9),
    "uncertain": Preset(uncertain, "begin a quarter, branch where the score is near 1/2", begin=0.25),
    "conservative": Preset(none, "3 paths, nobody is pruned", 3),
    "balanced": Preset(adaptive, "5 paths, as adaptive", 5, turns=2),
    "aggressive": Preset(topk, "10 paths, the best 2 go on after the first turn", 10, settings={"keep": 0.2}),
    "fast": Preset(budget, "3 paths, half of their latents", 3),
    "quality": Preset(particles, "12 paths, resampled", 12),
}
"""Every name of a steering; the last five, with their numbers of paths, are those of the multi-path extension."""
NAMES: tuple[str, ...] = (*PRESETS, "anytime")


def check_name(name: str) -> None:
    """Raises ValueError for a name that no guide has."""
    if name not in NAMES:
        raise ValueError(f"There is no steering {name!r}: type one of {', '.join(NAMES)}.")


def from_name(
    name: str,
    scorer: Scorer,
    *,
    after: Sequence[int] | None = None,
    merge: float | None = None,
    begin: float | None = None,
    **settings: Any,
) -> Guide:
    """The guide of this name: a rule, a preset or ``"anytime"``, with some ``settings`` of its rule changed.

    ``after`` are the latents after which it steers (left out: each, or each agent's last), ``merge`` the cosine from
    which paths become one, ``begin`` the share of the paths that begin. Raises ValueError for an unknown name or
    setting, one out of its range, and for merging paths where a rule also copies some.
    """
    if name == "anytime":
        others = {"after": after, "merge": merge, "begin": begin}
        given = settings | {setting: value for setting, value in others.items() if value is not None}
        _check_settings(name, given, ["confidence", "settled", "first", "more"])
        return Anytime(scorer, **settings)
    check_name(name)
    preset = PRESETS[name]
    _check_settings(name, settings, list(inspect.signature(preset.rule).parameters)[3:])
    changed = {**preset.settings, **settings}
    merge = preset.merge if merge is None else merge
    if merge is not None and preset.rule in (beam, particles, uncertain):
        raise ValueError(f"{name} makes copies of paths, which merge would make one again: leave merge out.")
    return Steering(
        name=name,
        rule=partial(preset.rule, **changed) if changed else preset.rule,
        scorer=scorer,
        num_paths=preset.num_paths,
        after=None if after is None else tuple(after),
        merge=merge,
        begin=preset.begin if begin is None else begin,
        turns=preset.turns,
    )


def _check_settings(name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := given.keys() - set(known):
        raise ValueError(f"{name} has no setting {min(unknown)!r}: it has {', '.join(known) or 'none'}.")
    for setting in sorted({"first", "more", "temperature"} & given.keys()):
        if not given[setting] > 0:
            raise ValueError(f"{name} has {setting} {given[setting]}, but it must be above 0: give 1, say.")
