"""What the model is trained to do: hides which paths teach what, and how predictions become one number to lower.

Every loss is a mean over units of its own (paths, answers, questions). A pack's share of a step is that mean times its
units over those of the whole step, so that how a step is cut into packs never changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from latent_prm.lessons import WITHIN, Lesson
from latent_prm.options import TrainOptions
from latent_prm.packing import PackedBatch
from latent_prm.tree import Path

MARGINS = {"adjacent swap": 0.5, "segment swap": 1.0, "reversal": 2.0}
"""By how much, in logits, a path must stand above its own latents in another order: the more disorder, the more."""


# --- the losses -------------------------------------------------------------------------------------------------------


def mse(
    logits: Float[Tensor, " K"], targets: Float[Tensor, " K"], weights: Float[Tensor, " K"] | None = None
) -> Float[Tensor, ""]:
    """Mean of (sigmoid(logit) − target)² over K paths, in float32 whatever the logits are in; targets are in 0..1.

    It is lowest where the predicted score is the chance of ending right (the Brier score of that chance).
    """
    squares = (logits.float().sigmoid() - targets.float()).square()
    return squares.mean() if weights is None else (weights * squares).sum() / weights.sum()


def bce(logits: Float[Tensor, " K"], targets: Float[Tensor, " K"], weights: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Σ w · −[t log s + (1 − t) log(1 − s)] / Σ w with s = sigmoid(logit), in float32.

    With t = k/M and w = M this is the negative log-likelihood of k right of M answers, per answer, without the binomial
    coefficient: a path with more decoded answers has less noise in its label and counts more.
    """
    each = functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (weights * each).sum() / weights.sum()


def listwise(
    logits: Float[Tensor, " K"],
    targets: Float[Tensor, " K"],
    questions: Int[Tensor, " K"],
    weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over questions of −Σ t_i/Σt · log softmax(logits)_i over the question's paths, in float32.

    The top-one cross-entropy of ListNet (Cao et al. 2007), as LatentRM (arXiv 2510.07745) trains with. A question whose
    targets are all equal contributes nothing and is not counted; 0 where there is no other.
    """

    def one(own: Float[Tensor, " P"], wanted: Float[Tensor, " P"]) -> Tensor:
        return -(wanted / wanted.sum() * own.log_softmax(0)).sum()

    return _mean_of_questions(one, logits, targets, questions, weights)


def pairwise(
    logits: Float[Tensor, " K"],
    targets: Float[Tensor, " K"],
    questions: Int[Tensor, " K"],
    weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over questions of the mean over pairs t_i > t_j of max(0, (t_i − t_j) − (l_i − l_j)), l the logits; float32.

    The hinge of a ranking SVM (Herbrich et al. 2000, Joachims 2002), whose margin is the targets' own difference: what
    differs by label noise alone need not be far apart, and a pair that is far enough apart is left alone. Questions
    without a pair count as in :func:`listwise`.
    """

    def one(own: Float[Tensor, " P"], wanted: Float[Tensor, " P"]) -> Tensor:
        apart = wanted[:, None] - wanted
        return (apart - (own[:, None] - own))[apart > 0].relu().mean()

    return _mean_of_questions(one, logits, targets, questions, weights)


def order(
    logits: Float[Tensor, " K"], disordered: Float[Tensor, " K"], margins: Float[Tensor, " K"]
) -> Float[Tensor, ""]:
    """Mean of max(0, margin − (logit − disordered)) over K paths and their own latents in another order, in float32.

    The order-corruption preference published in clutch-61/latenttts-experiment-pack: a chain is no bag of latents.
    """
    return (margins - (logits.float() - disordered.float())).relu().mean()


def _mean_of_questions(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor, questions: Tensor, weights: Tensor | None
) -> Float[Tensor, ""]:
    logits, targets = logits.float(), targets.float()
    mixed = list(_mixed(targets, questions))
    if not mixed:
        return logits.sum() * 0  # still a function of the logits, for backward
    each = torch.stack([loss(logits[own], targets[own]) for own in mixed])
    if weights is None:
        return each.mean()
    weighs = torch.stack([weights[own].amin() for own in mixed])
    return (weighs * each).sum() / weighs.sum()


def _mixed(targets: Tensor, questions: Tensor) -> Iterator[Int[Tensor, " P"]]:
    """The rows of each question whose targets are not all equal."""
    for question in questions.unique():
        own = (questions == question).nonzero()[:, 0]
        if targets[own].amin() < targets[own].amax():
            yield own


def shuffled(latents: Float[Tensor, "T D"], chance: Random) -> tuple[str, Float[Tensor, "T D"]]:
    """T >= 2 latents in another order, and its kind: one of ``MARGINS``, drawn from those that T latents allow.

    Adjacent swap: two neighbours. Segment swap (T >= 4): two neighbouring runs of equal length, 2 to T // 2. Reversal
    (T >= 3): all of them, last first.
    """
    total, kinds = len(latents), ["adjacent swap"]
    kinds += ["reversal"] * (total >= 3) + ["segment swap"] * (total >= 4)
    kind, places = chance.choice(kinds), list(range(total))
    if kind == "reversal":
        places.reverse()
    else:
        size = 1 if kind == "adjacent swap" else chance.randint(2, total // 2)
        a = chance.randint(0, total - 2 * size)
        b, c = a + size, a + 2 * size
        places[a:c] = places[b:c] + places[a:b]
    return kind, latents[places]


# --- a step -----------------------------------------------------------------------------------------------------------


class Labels(NamedTuple):
    """What N predictions are held against: K paths, or every latent of K paths."""

    targets: Float[Tensor, " N"]
    chances: Float[Tensor, " N"]
    """k/M where the counts are known, else the target."""
    answers: Float[Tensor, " N"]
    """M where the counts are known, else 1."""
    questions: Int[Tensor, " N"]
    """Whose paths are compared; where every latent is supervised, at the same depth."""
    weights: Float[Tensor, " N"] | None
    """1 / latents of the path, so that every path weighs the same; None: all alike."""

    def to(self, device: torch.device) -> Labels:
        """The same labels on another device."""
        moved = {name: column.to(device) for name, column in self._asdict().items() if column is not None}
        return Labels(**{"weights": None, **moved})

    def loss(self, name: str, logits: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """One of mse, bce, listwise, pairwise."""
        if name == "mse":
            return mse(logits, self.targets, self.weights)
        if name == "bce":
            return bce(logits, self.chances, self._answers())
        within = listwise if name == "listwise" else pairwise
        return within(logits, self.targets, self.questions, self.weights)

    def units(self, name: str) -> float:
        """What the mean of that loss is over."""
        if name == "bce":
            return self._answers().sum().item()
        each = torch.ones(len(self.targets), device=self.targets.device) if self.weights is None else self.weights
        if name == "mse":
            return each.sum().item()
        return sum(each[own].amin().item() for own in _mixed(self.targets, self.questions))

    def _answers(self) -> Float[Tensor, " N"]:
        return self.answers if self.weights is None else self.answers * self.weights


class StepLoss:
    """The loss of an optimizer step's lessons, pack by pack.

    ``chance(question id, path)`` draws the disorder of that path's latents; only the loss ``order`` asks for it. It
    does so for every path that is likelier right than wrong (target above 1/2), which costs one more path to compute.
    """

    def __init__(self, lessons: Sequence[Lesson], options: TrainOptions, chance: Callable[[str, int], Random]) -> None:
        self.terms, self.by_latent = options.loss_terms(), options.supervise == "steps"
        self.trees, self.wanted = [item.tree for item in lessons], [list(item.targets) for item in lessons]
        self.row_of = {row: k for k, row in enumerate((i, p) for i, paths in enumerate(self.wanted) for p in paths)}
        self.num_paths = len(self.row_of)
        """K, the labelled paths."""
        targets = [lessons[i].targets[path] for i, path in self.row_of]
        counts = [lessons[i].counts.get(path) for i, path in self.row_of]
        chances = [c[0] / c[1] if c else t for c, t in zip(counts, targets, strict=True)]
        self.labels = Labels(
            torch.tensor(targets),
            torch.tensor(chances),
            torch.tensor([float(c[1]) if c else 1.0 for c in counts]),
            torch.tensor([i for i, _ in self.row_of]),
            None,
        )
        self.margins: dict[tuple[int, int], float] = {}
        """By (lesson, path) of each disordered chain."""
        if "order" in self.terms:
            for i, item in enumerate(lessons):
                self._disorder(i, item, options.max_seq_length, chance)
        labelled = [(lessons[i].tree, path) for i, item in enumerate(lessons) for path in item.targets]
        lengths = [sum(len(tree.paths[p].latents) for p in tree.chain(path)) for tree, path in labelled]
        whole = self._labels(torch.arange(self.num_paths), torch.tensor(lengths).clamp(max=options.max_seq_length))
        self.units = {name: len(self.margins) if name == "order" else whole.units(name) for name in self.terms}

    @property
    def compares(self) -> bool:
        """Whether a question's paths must be computed together."""
        return bool(self.terms.keys() & {*WITHIN, "order"})

    def _disorder(self, i: int, item: Lesson, longest: int, chance: Callable[[str, int], Random]) -> None:
        extra: list[Path] = []
        for path, target in item.targets.items():
            latents = item.tree.chain_latents(path)[-longest:]
            if target > 0.5 and len(latents) > 1:
                kind, other = shuffled(latents, chance(item.tree.question_id, path))
                row = (i, len(item.tree.paths) + len(extra))
                extra.append(Path(latents=other, tip=None))
                self.margins[row], self.row_of[row] = MARGINS[kind], self.row_of[i, path]
                self.wanted[i].append(row[1])
        self.trees[i] = replace(item.tree, paths=[*item.tree.paths, *extra])

    def rows(self, batch: PackedBatch) -> Int[Tensor, " B"]:
        """Which of the K labelled paths each of the batch's chains is; a disordered one is the path it was made of."""
        return torch.tensor([self.row_of[row] for row in batch.paths])

    def share(self, logits: Tensor, batch: PackedBatch) -> Float[Tensor, ""]:
        """What a pack adds to the step's loss. ``logits`` [B] are of its chains, or [B, C] of every prefix of each."""
        rows, lengths = self.rows(batch), batch.lengths.cpu()
        true = torch.tensor([k for k, row in enumerate(batch.paths) if row not in self.margins])
        labels = self._labels(rows[true], lengths[true])
        here = labels.to(logits.device)
        own = logits[true.to(logits.device)]
        if self.by_latent:
            own = own[_within(lengths[true]).to(logits.device)]
        shares = []
        for name, weight in self.terms.items():
            if name == "order":
                loss, units = self._order(logits, lengths, rows, batch)
            else:
                loss, units = here.loss(name, own), labels.units(name)
            shares.append(weight * (loss * (units / self.units[name] if units else 0.0)))
        return torch.stack(shares).sum()

    def _labels(self, rows: Int[Tensor, " K"], lengths: Int[Tensor, " K"]) -> Labels:
        """Of these paths, or of each of their latents."""
        targets, chances, answers, questions, _ = self.labels
        if not self.by_latent:
            return Labels(targets[rows], chances[rows], answers[rows], questions[rows], None)
        path, depth = _within(lengths).nonzero(as_tuple=True)
        at, longest = rows[path], int(lengths.max())
        return Labels(targets[at], chances[at], answers[at], questions[at] * longest + depth, 1 / lengths[path])

    def _order(self, logits: Tensor, lengths: Tensor, rows: Tensor, batch: PackedBatch) -> tuple[Tensor, int]:
        ends = logits[torch.arange(len(lengths)), lengths - 1] if self.by_latent else logits
        place = {int(rows[k]): k for k, row in enumerate(batch.paths) if row not in self.margins}
        pairs = [
            (place[int(rows[k])], k, self.margins[row]) for k, row in enumerate(batch.paths) if row in self.margins
        ]
        if not pairs:
            return ends.sum() * 0, 0
        right, wrong, margins = (list(column) for column in zip(*pairs, strict=True))
        return order(ends[right], ends[wrong], torch.tensor(margins, device=ends.device)), len(pairs)


def _within(lengths: Int[Tensor, " K"]) -> Tensor:
    """[K, longest]: whether a chain has that latent."""
    return torch.arange(int(lengths.max())) < lengths[:, None]
