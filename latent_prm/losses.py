"""What the model is trained to do: hides which paths teach what, and how predictions become one number to lower.

Every loss is a mean over units of its own (paths, answers, questions). A pack's share of a step is that mean times its
units over those of the whole step, so that how a step is cut into packs never changes it. What a pack's predictions
are held against is laid out before they are computed, so that a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from latent_prm.lessons import WITHIN, Lesson
from latent_prm.model import Logits
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


class Group(NamedTuple):
    """G questions with P paths each, side by side."""

    rows: Int[Tensor, "G P"]
    """Which of all logits are those of its paths."""
    targets: Float[Tensor, "G P"]
    weights: Float[Tensor, " G"]
    """What each question weighs."""


def groups_of(
    targets: Float[Tensor, " K"], questions: Int[Tensor, " K"], weights: Float[Tensor, " K"] | None = None
) -> tuple[Group, ...]:
    """The questions that teach a loss which compares their paths; those with equally many stand side by side.

    A question whose targets are all equal teaches nothing and is left out. One weighs what the lightest of its paths
    does: a comparison is no better than the less reliable label.
    """
    weights = torch.ones_like(targets) if weights is None else weights
    sizes = questions.unique(return_counts=True)[1]
    each = questions.argsort(stable=True).split(sizes.tolist())
    groups: list[Group] = []
    for size in sizes.unique().tolist():
        rows = torch.stack([own for own in each if len(own) == size])
        lowest, highest = targets[rows].aminmax(dim=1)
        rows = rows[lowest < highest]
        if len(rows):
            groups.append(Group(rows, targets[rows], weights[rows].amin(1)))
    return tuple(groups)


def listwise(logits: Float[Tensor, " K"], groups: Sequence[Group]) -> Float[Tensor, ""]:
    """Mean over questions of −Σ t_i/Σt · log softmax(logits)_i over the question's paths, in float32; 0 without any.

    The top-one cross-entropy of ListNet (Cao et al. 2007), as LatentRM (arXiv 2510.07745) trains with.
    """

    def each(own: Float[Tensor, "G P"], wanted: Float[Tensor, "G P"]) -> Float[Tensor, " G"]:
        return -(wanted / wanted.sum(1, keepdim=True) * own.log_softmax(1)).sum(1)

    return _mean_of_questions(each, logits, groups)


def pairwise(logits: Float[Tensor, " K"], groups: Sequence[Group]) -> Float[Tensor, ""]:
    """Mean over questions of the mean over pairs t_i > t_j of max(0, (t_i − t_j) − (l_i − l_j)), l the logits; float32.

    The hinge of a ranking SVM (Herbrich et al. 2000, Joachims 2002), whose margin is the targets' own difference: what
    differs by label noise alone need not be far apart, and a pair that is far enough apart is left alone. 0 without a
    question.
    """

    def each(own: Float[Tensor, "G P"], wanted: Float[Tensor, "G P"]) -> Float[Tensor, " G"]:
        apart = wanted[:, :, None] - wanted[:, None]
        lacking = (apart - (own[:, :, None] - own[:, None])).relu()
        pairs = apart > 0
        return (lacking * pairs).sum((1, 2)) / pairs.sum((1, 2))

    return _mean_of_questions(each, logits, groups)


def order(
    logits: Float[Tensor, " L"], true: Int[Tensor, " K"], disordered: Int[Tensor, " K"], margins: Float[Tensor, " K"]
) -> Float[Tensor, ""]:
    """Mean of max(0, margin − (l_true − l_disordered)) over K paths and their own latents in another order, in float32.

    The order-corruption preference published in clutch-61/latenttts-experiment-pack: a chain is no bag of latents.
    """
    lacking = (margins - (logits[true].float() - logits[disordered].float())).relu()
    return lacking.mean() if len(lacking) else lacking.sum()


def _mean_of_questions(
    each: Callable[[Tensor, Tensor], Tensor], logits: Tensor, groups: Sequence[Group]
) -> Float[Tensor, ""]:
    logits = logits.float()
    if not groups:
        return logits.sum() * 0  # still a function of the logits, for backward
    losses = torch.cat([each(logits[group.rows], group.targets) for group in groups])
    weights = torch.cat([group.weights for group in groups])
    return (weights * losses).sum() / weights.sum()


def reliability(answers: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """M / (M + 2): how much of the variance of a label k/M, from M answers, is that of the true chance p.

    With p uniform on 0..1, Var(p) = 1/12, and drawing the answers adds E[p (1 − p)] / M = 1/(6M) to it, so that
    Var(p) / Var(k/M) = (1/12) / (1/12 + 1/(6M)) = M / (M + 2).
    """
    return answers / (answers + 2)


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


class Term(NamedTuple):
    """One loss over a pack, ready but for the logits."""

    loss: Callable[..., Float[Tensor, ""]]
    against: tuple[Any, ...]
    """Its other arguments."""
    units: float
    """What it is the mean over."""


class Held(NamedTuple):
    """What a pack's predictions are held against."""

    places: Int[Tensor, " N"]
    """Which of the pack's logits, flattened, have labels."""
    terms: dict[str, Term]
    """``order`` takes all the logits, every other loss those that have labels."""

    def to(self, device: torch.device | str) -> Held:
        """The same on another device, without waiting for it."""
        return Held(_moved(self.places, device), {name: _moved(term, device) for name, term in self.terms.items()})


def _moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a tuple with all that is in it, on another device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if not isinstance(value, tuple):
        return value
    moved = [_moved(item, device) for item in value]
    return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)


class Asked(NamedTuple):
    """N predictions that are asked for."""

    chains: Int[Tensor, " N"]
    rows: Int[Tensor, " N"]
    """Which of the K labelled paths each chain is."""
    depth: Int[Tensor, " N"]
    """The column of the chain after which it is asked."""
    shares: Float[Tensor, " N"]
    """What each weighs: every path weighs 1, half of it its answer where one is read."""
    places: Int[Tensor, " N"]
    """Paths of a question are compared at equal places: behind the answer, and at the same latent or the last."""


class StepLoss:
    """The loss of an optimizer step's lessons, pack by pack: ``prepare`` on the CPU, ``share`` where the logits are.

    ``chance(question id, path)`` draws the disorder of that path's latents; only the loss ``order`` asks for it. It
    does so for every path that is likelier right than wrong (target above 1/2), which costs one more path to compute.
    """

    def __init__(self, lessons: Sequence[Lesson], options: TrainOptions, chance: Callable[[str, int], Random]) -> None:
        self.terms: dict[str, float] = options.loss_terms()
        """What each loss weighs."""
        self.each_latent, self.weigh_labels = options.supervise == "steps", options.weigh_labels
        self.by_latent = self.each_latent or any(item.tails for item in lessons)
        """Whether a prediction is asked for elsewhere than at the end of a chain."""
        self.trees, self.wanted = [item.tree for item in lessons], [list(item.targets) for item in lessons]
        self.tails = [dict(item.tails) for item in lessons]
        self.row_of = {row: k for k, row in enumerate((i, p) for i, paths in enumerate(self.wanted) for p in paths)}
        self.num_paths = len(self.row_of)
        """K, the labelled paths."""
        rows, longest = [(lessons[i], path) for i, path in self.row_of], options.max_seq_length
        self.questions = torch.tensor([i for i, _ in self.row_of])
        self.targets = torch.tensor([item.targets[path] for item, path in rows])
        self.chances = torch.tensor([_chance(item, path) for item, path in rows])
        """k/M where the counts are known, else the target."""
        self.answers = torch.tensor(
            [float(item.counts[path][1]) if path in item.counts else 1.0 for item, path in rows]
        )
        """M where the counts are known, else 1."""
        sound = [_soundness(item, path, longest) for item, path in rows]
        self.sound = pad_sequence(sound, batch_first=True)
        """[K, longest chain]: whether all is right up to that column."""
        self.margins: dict[tuple[int, int], float] = {}
        """By (lesson, path) of each disordered chain."""
        if "order" in self.terms:
            for i, item in enumerate(lessons):
                self._disorder(i, item, longest, chance)
        self.spoken = torch.tensor([len(item.tails.get(path, ())) for item, path in rows])
        """[K]: tokens of the answer that is read."""
        lengths = torch.tensor([len(own) for own in sound])
        whole = self._terms(self._asked(torch.arange(self.num_paths), lengths))
        self.units = {name: whole[name].units if name in whole else float(len(self.margins)) for name in self.terms}
        """What each loss of the whole step is the mean over; 0 where nothing teaches it."""
        self.sums: Tensor = torch.zeros(len(self.terms), dtype=torch.float64)
        """[losses], in the order of ``terms``: each one's sum over its units in the packs whose share was taken."""

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
                extra.append(Path(latents=other, tip=None, noise_free=True))  # that no sibling sees
                self.tails[i][row[1]] = self.tails[i].get(path, ())
                self.margins[row], self.row_of[row] = MARGINS[kind], self.row_of[i, path]
                self.wanted[i].append(row[1])
        self.trees[i] = replace(item.tree, paths=[*item.tree.paths, *extra])

    def rows(self, batch: PackedBatch) -> Int[Tensor, " B"]:
        """Which of the K labelled paths each of the batch's chains is; a disordered one is the path it was made of."""
        return torch.tensor([self.row_of[row] for row in batch.paths])

    def prepare(self, batch: PackedBatch) -> Held:
        """What a batch, which is still on the CPU, is held against."""
        true = torch.tensor([k for k, row in enumerate(batch.paths) if row not in self.margins])
        asked = self._asked(self.rows(batch)[true], batch.lengths[true])
        terms = self._terms(asked)
        if "order" in self.terms:
            terms["order"] = self._order(batch)
        return Held(self._places(batch, true[asked.chains], asked.depth), terms)

    def share(self, logits: Logits, held: Held) -> Float[Tensor, ""]:
        """What a pack adds to the step's loss, for backward; its losses are added to ``sums``.

        The logits [B] are those of its chains or, with ``by_latent``, [B, C] of every prefix of each.
        """
        said = {"order": logits.value.flatten()}
        labelled = said["order"][held.places]
        if "correctness" in self.terms:
            assert logits.correctness is not None, "correctness is learned by a second head"
            said["correctness"] = logits.correctness.flatten()[held.places]
        shares: list[Tensor] = []
        sums: list[Tensor] = []
        for name, weight in self.terms.items():
            term = held.terms[name]
            loss = term.loss(said.get(name, labelled), *term.against)
            shares.append(weight * (loss * (term.units / self.units[name] if term.units else 0.0)))
            sums.append(loss.detach().double() * term.units)
        self.sums = self.sums.to(logits.value.device, non_blocking=True) + torch.stack(sums)
        return torch.stack(shares).sum()

    def _asked(self, rows: Int[Tensor, " B"], lengths: Int[Tensor, " B"]) -> Asked:
        """What is asked of B chains of so many columns: after the last latent or each, and behind the answer."""
        latents = lengths - self.spoken[rows]
        column, end = torch.arange(int(lengths.max())), (lengths - 1)[:, None]
        within = column < latents[:, None] if self.each_latent else column == latents[:, None] - 1
        speaks = (self.spoken[rows] > 0)[:, None]
        answer = speaks & (column == end)
        each = within / within.sum(1, keepdim=True) * torch.where(speaks, 0.5, 1.0) + 0.5 * answer
        chains, depth = (within | answer).nonzero(as_tuple=True)
        place = depth + 1 if self.each_latent else torch.ones_like(depth)
        return Asked(chains, rows[chains], depth, each[chains, depth], place.masked_fill(answer[chains, depth], 0))

    def _places(self, batch: PackedBatch, chains: Int[Tensor, " N"], depth: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Which of the batch's logits, flattened, are those of these chains after that latent."""
        return chains * batch.chains.shape[1] + depth if self.by_latent else chains

    def _terms(self, asked: Asked) -> dict[str, Term]:
        """Every loss but ``order``."""
        rows, even = asked.rows, asked.shares
        targets, answers = self.targets[rows], self.answers[rows]
        questions = self.questions[rows] * (self.sound.shape[1] + 1) + asked.places
        weights, counted = even * reliability(answers) if self.weigh_labels else even, even * answers
        terms = {
            "mse": Term(mse, (targets, weights), weights.sum().item()),
            "bce": Term(bce, (self.chances[rows], counted), counted.sum().item()),
            "correctness": Term(bce, (self.sound[rows, asked.depth], even), even.sum().item()),
        }
        if WITHIN & self.terms.keys():
            groups = groups_of(targets, questions, weights)
            units = sum(group.weights.sum().item() for group in groups)
            terms |= {loss.__name__: Term(loss, (groups,), units) for loss in (listwise, pairwise)}
        return {name: term for name, term in terms.items() if name in self.terms}

    def _order(self, batch: PackedBatch) -> Term:
        place = {self.row_of[row]: k for k, row in enumerate(batch.paths) if row not in self.margins}
        found = [(place[self.row_of[row]], k) for k, row in enumerate(batch.paths) if row in self.margins]
        pairs = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
        right, wrong = (self._places(batch, own, batch.lengths[own] - 1) for own in pairs.unbind(1))
        margins = torch.tensor([self.margins[row] for row in batch.paths if row in self.margins])
        return Term(order, (right, wrong, margins), float(len(found)))


def _chance(lesson: Lesson, path: int) -> float | None:
    """k/M where the counts are known, else the target, where there is one."""
    if path in lesson.counts:
        correct, answers = lesson.counts[path]
        return correct / answers
    return lesson.targets.get(path)


def _soundness(lesson: Lesson, path: int, longest: int) -> Float[Tensor, " C"]:
    """Of each column of a labelled path's chain: 1 where some answer from there on was right, else 0.

    The hard estimation of Math-Shepherd (arXiv 2312.08935): so far, such a chain can only be right. A latent of an
    ancestor is judged by all answers below that ancestor, the answer's tokens as the path's own latents: by all that
    were graded, whichever is read.
    """
    chain = [lesson.tree.paths[p] for p in lesson.tree.chain(path)]
    sound = [(len(own.latents), float(_ends_right(own) or _ends_right(chain[-1]))) for own in chain]
    latents = torch.cat([torch.full((length,), right) for length, right in sound])
    return torch.cat([latents[-longest:], latents[-1:].expand(len(lesson.tails.get(path, ())))])


def _ends_right(path: Path) -> bool:
    """Whether any answer that counts for it was right; of a label that came without its counts, whether it says so."""
    return bool(path.prm_score if path.num_correct is None else path.num_correct)
