"""What a run learns from, and in which order: hides targets, the split by question, and an epoch's steps.

Every choice of chance follows from the seed and from what it is chosen for, never from what was drawn before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from latent_prm.grading import question_digest
from latent_prm.kinship import facts
from latent_prm.options import TrainOptions
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

FEW_SAMPLES = 100
"""The guide: at least so many labelled paths."""
WITHIN = {"listwise", "pairwise"}
"""Losses that compare the paths of a question."""


class Lesson(NamedTuple):
    """A question's tree and what is learned of it."""

    tree: ReasoningTree
    targets: dict[int, float]
    """By path; 0..1."""
    context: Sequence[int] = ()
    """The tokens read before its latents."""
    counts: Mapping[int, tuple[int, int]] = {}
    """By path, where known and where the target is the prm_score: k of M answers right."""
    tails: Mapping[int, Sequence[int]] = {}
    """By path, the tokens read after its latents: its answer."""

    @property
    def num_tokens(self) -> int:
        """What its tree is computed from: tokens in front, and latents."""
        tails = sum(map(len, self.tails.values()))
        return len(self.context) + sum(len(path.latents) for path in self.tree.paths) + tails

    @classmethod
    def of(cls, tree: ReasoningTree, use_prm_score: bool = True, answer: bool = False) -> Lesson:
        """A tree with the target of each of its noisy paths: its prm_score, or its label-free score.

        A path that was never expanded has no score and so no target: it is unknown, not zero. Where the ``answer`` is
        read, a leaf's target is whether the one that is read, its first, is right: k of M = 1.
        """
        scores = {i: path.prm_score if use_prm_score else path.score for i, path in enumerate(tree.paths)}
        noisy = {i: score for i, score in scores.items() if not tree.paths[i].noise_free}
        counts = {
            i: (path.num_correct, path.num_answers)
            for i, path in enumerate(tree.paths)
            if use_prm_score and path.num_correct is not None and path.num_answers
        }
        targets = {i: s for i, s in noisy.items() if s is not None}
        if answer and use_prm_score:
            read = {
                i: tree.paths[i].answers[0].correct for i in tree.leaves() if i in targets and tree.paths[i].answers
            }
            targets |= {i: float(right) for i, right in read.items()}
            counts |= {i: (int(right), 1) for i, right in read.items()}
        return cls(tree, targets, counts=counts)


def lessons_of(trees: Iterable[ReasoningTree], options: TrainOptions) -> list[Lesson]:
    """The lesson of every tree that has a target; says how many teach nothing to a loss that compares paths."""
    answer = "answer" in options.read_parts()
    lessons = [found for tree in trees if (found := Lesson.of(tree, options.use_prm_score, answer)).targets]
    if compared := WITHIN & options.loss_terms().keys():
        equal = sum(len(set(lesson.targets.values())) == 1 for lesson in lessons)
        why = f"teach nothing to {' and '.join(sorted(compared))}: their paths' targets are all equal"
        log.info(f"[Trainer] {equal} of {len(lessons)} questions {why}.")
    return lessons


def num_targets(lessons: Iterable[Lesson]) -> int:
    """Labelled paths of all lessons: the guide's samples."""
    return sum(len(lesson.targets) for lesson in lessons)


def look_at(lessons: Sequence[Lesson], options: TrainOptions) -> int:
    """Warn of data that cannot teach much; returns how many chains are longer than ``max_seq_length``.

    Raises ValueError when no path has a target.
    """
    count, longest = num_targets(lessons), options.max_seq_length
    splits = [str(said.get("split")).split(",") for said in facts(options.data_dir)]
    if tested := sum("test" in some for some in splits):
        said = f"{tested} of {len(splits)} shards in {options.data_dir} are from the test split"
        log.warning(f"[Trainer] {said}: what is measured there afterwards is worth nothing.")
    targets = {target for lesson in lessons for target in lesson.targets.values()}
    if not targets:
        kind = "prm_score" if options.use_prm_score else "score"
        lacks = f"no noisy path in {options.data_dir} has a {kind}"
        raise ValueError(f"There is nothing to learn from: {lacks}. Collect again, or pass another --data_dir.")
    if len(targets) == 1:
        way_out = "Collect other questions, or with more noise, so that some paths end right and some wrong."
        log.warning(f"[Trainer] There is nothing to learn from: all {count} scores are {targets.pop():g}. {way_out}")
    if count < FEW_SAMPLES:
        log.warning(f"[Trainer] Samples: {count}, where {FEW_SAMPLES} or more are advised. Collect more.")
    truncated = sum(lesson.tree.chain_length(path) > longest for lesson in lessons for path in lesson.targets)
    if truncated:
        lose = f"have more than {longest} latents and lose those at the root end (--max_seq_length)"
        log.warning(f"[Trainer] {truncated} of {count} chains {lose}.")
    return truncated


def split(items: Sequence[Lesson], size: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Items to train on and to validate with: a share of the questions below 1, else their number.

    Trees of one question, known by its text, stay on one side.
    """
    digests = sorted({question_digest(item.tree.question) for item in items})
    if 1 < len(digests) <= size:
        raise ValueError(
            f"--val_size is {size:g}, but there are {len(digests)} questions. Type fewer, or a share: 0.1."
        )
    count = round(size if size >= 1 else size * len(digests))
    kept = set(chance(seed, "split").sample(digests, min(count, len(digests) - 1)))
    if not kept:
        log.warning(
            f"[Trainer] No validation: --val_size {size:g} of {len(digests)} question(s) is none. "
            "The best checkpoint is chosen by training loss."
        )
    sides: tuple[list[Lesson], list[Lesson]] = [], []
    for item in items:
        sides[question_digest(item.tree.question) in kept].append(item)
    return sides


def epoch_steps(items: Sequence[Lesson], epoch: int, options: TrainOptions) -> list[list[Lesson]]:
    """An epoch's optimizer steps: whole questions in seeded order, at most a step's number of labelled paths in each.

    A question with more of them gives so many, in turns: other ones in the next epoch. Some lose their context.
    """
    size, seed = options.batch_size * options.gradient_accumulation_steps, options.seed
    steps: list[list[Lesson]] = [[]]
    room = size
    for item in chance(seed, "order", epoch).sample(items, len(items)):
        name, count = item.tree.question_id, len(item.targets)
        if count > size:
            turns = chance(seed, "turns", name).sample(sorted(item.targets), count)
            chosen = sorted(turns[(epoch * size + k) % count] for k in range(size))
            item = item._replace(targets={path: item.targets[path] for path in chosen})
        if chance(seed, "context", epoch, name).random() < options.context_dropout:
            item = item._replace(context=())
        if len(item.targets) > room:
            steps.append([])
            room = size
        steps[-1].append(item)
        room -= len(item.targets)
    return steps


def chance(seed: int, *what: object) -> Random:
    """Chance of its own for everything that is chosen."""
    return Random(f"{seed}/{'/'.join(map(str, what))}")
