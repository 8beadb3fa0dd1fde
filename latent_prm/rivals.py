"""Rivals and controls: what else can tell right paths from wrong ones, and what is left of a PRM without its evidence.

A rival scores paths by simpler means; a PRM must beat every one on the same paths. A control is the PRM itself on
evidence that was spoilt; what it scores there it knows from elsewhere, and a PRM that is no better than its controls is
worthless. This room holds the rivals that need no training, and the controls; `probes` fits those that learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latent_prm.probes import Scorer, Scores, fit_rivals
from latent_prm.tree import Path, ReasoningTree

if TYPE_CHECKING:
    from latent_prm.model import QwenLatentPRM

__all__ = ["CONTROLS", "RIVALS", "Scorer", "Scores", "controls", "fit_rivals", "score_all"]


# --- rivals that need no training -----------------------------------------------------------------------------------


def log_probability(trees: Sequence[ReasoningTree]) -> Scores:
    """How surely the reasoner said the answer: the mean log-probability of its tokens (``Answer.log_probability``).

    The confidence score of the multi-path extension of LatentMAS. A path's first answer counts; one without an answer
    gets the least of all. Raises ValueError when no answer's is known.
    """
    each = [[path.answers[0].log_probability if path.answers else None for path in tree.paths] for tree in trees]
    known = [sure for row in each for sure in row if sure is not None]
    if not known:
        raise ValueError(
            "No answer's log-probability is known: these trees are older than it. Collect them again, or do without."
        )
    return [np.array([min(known) if sure is None else sure for sure in row]) for row in each]


def smoothness(trees: Sequence[ReasoningTree]) -> Scores:
    """Mean cosine similarity of consecutive latents along a chain; 0 for a single latent.

    A score of the multi-path extension of LatentMAS.
    """
    return _of_chains(trees, lambda x: float(F.cosine_similarity(x[1:], x[:-1]).mean()) if len(x) > 1 else 0.0)


def step_length(trees: Sequence[ReasoningTree]) -> Scores:
    """Minus the mean Euclidean distance of consecutive latents: short steps are good; 0 for a single latent.

    Smoothness in which size counts too.
    """
    return _of_chains(trees, lambda x: -float((x[1:] - x[:-1]).norm(dim=1).mean()) if len(x) > 1 else 0.0)


def norm(trees: Sequence[ReasoningTree]) -> Scores:
    """Minus the root mean square of a chain's latents: noise makes latents longer.

    REFERENCES.md counts it among the controls: a PRM that beats it has seen more than how long the latents are. The
    `probes` learn from the lengths too, whichever way they speak.
    """
    return _of_chains(trees, lambda x: -float(x.pow(2).mean().sqrt()))


def consistency(trees: Sequence[ReasoningTree]) -> Scores:
    """Mean cosine similarity of a path's latents to its siblings': self-consistency in latent space.

    The t-th latent of the chain is compared with the t-th of every other noisy path that stands as deep in the tree,
    where that has one; 0 for a path without such a sibling. A score of the multi-path extension of LatentMAS.
    """
    return [_consistency(tree) for tree in trees]


def agreement(trees: Sequence[ReasoningTree]) -> Scores:
    """The share of the tree's noisy answers that are the same as the path's (``Path.score``); 0 where unknown.

    Best by it is majority voting (arXiv 2203.11171).
    """
    return [np.array([path.score or 0.0 for path in tree.paths]) for tree in trees]


RIVALS: dict[str, Scorer] = {
    "log-probability": log_probability,
    "smoothness": smoothness,
    "step length": step_length,
    "norm": norm,
    "consistency": consistency,
    "agreement": agreement,
}
"""Those that need no training. No score is a probability: only their order within a question means something."""


def score_all(trees: Sequence[ReasoningTree], scorers: dict[str, Scorer]) -> dict[str, Scores]:
    """What each of some rivals says of these trees, by name; log-probability is left out where it is not known."""
    known = any(answer.log_probability is not None for tree in trees for path in tree.paths for answer in path.answers)
    return {name: score(trees) for name, score in scorers.items() if known or score is not log_probability}


def _of_chains(trees: Sequence[ReasoningTree], score: Callable[[Float[Tensor, "T D"]], float]) -> Scores:
    return [np.array([score(tree.chain_latents(i)) for i in range(len(tree.paths))], dtype=float) for tree in trees]


def _consistency(tree: ReasoningTree) -> Float[np.ndarray, " P"]:
    chains = [tree.chain_latents(i) for i in range(len(tree.paths))]
    unit = pad_sequence([F.normalize(chain.double(), dim=1) for chain in chains], batch_first=True)
    real = pad_sequence([torch.ones(len(chain), dtype=torch.double) for chain in chains], batch_first=True)
    depth = torch.tensor([len(tree.chain(i)) for i in range(len(chains))])
    noisy = torch.tensor([not path.noise_free for path in tree.paths])
    beside = (depth[:, None] == depth) & noisy & ~torch.eye(len(chains), dtype=torch.bool)  # who is compared with whom
    alike = torch.einsum("ptd,pq,qtd->pt", unit, beside.double(), unit)
    count = torch.einsum("pt,pq,qt->pt", real, beside.double(), real)
    mean = torch.where(count > 0, alike / count.clamp_min(1), 0.0)
    return (mean.sum(1) / (count > 0).sum(1).clamp_min(1)).numpy()


# --- controls -------------------------------------------------------------------------------------------------------

CONTROLS = ("latents swapped", "question swapped", "order shuffled", "noise only", "answers swapped", "all swapped")
"""What is spoilt; the last two for a PRM that reads answers."""


def controls(
    model: QwenLatentPRM,
    trees: Sequence[ReasoningTree],
    seed: int,
    context: bool | None = None,
    pack_tokens: int = 16384,
) -> dict[str, Scores]:
    """What the same PRM says of the same paths when its evidence is spoilt, by name, as `CONTROLS`.

    - latents swapped (`with_foreign_latents`): a path gets the score of another question's latents in its place. What
      is left is what the question, the answer and a path's place among its siblings tell.
    - question swapped (`with_foreign_questions`): a path's own latents under another question's text. What is left is
      what latents tell without anything to check them against. Missing where the PRM reads no question.
    - order shuffled (`out_of_order`): a chain's latents in another order. A PRM that is as good has read a bag.
    - noise only (`drowned`): latents of the same size, and nothing else.
    - answers swapped (`with_foreign_answers`): a path's own latents, and the answer of another question's path.
    - all swapped: latents and answer of another question's path. The last two only where the PRM reads answers; the
      others leave answers as they are.

    ``context`` and ``pack_tokens`` as `QwenLatentPRM.score_trees` takes them.
    Raises ValueError when there is but one question.
    """
    spoilt = {
        "latents swapped": with_foreign_latents(trees, seed),
        "question swapped": with_foreign_questions(trees, seed),
        "order shuffled": out_of_order(trees, seed),
        "noise only": drowned(trees, seed),
    }
    if not (model.context == "question" if context is None else context):
        del spoilt["question swapped"]
    if "answer" in model.reads:
        spoilt["answers swapped"] = with_foreign_answers(trees, trees, seed)
        spoilt["all swapped"] = with_foreign_answers(spoilt["latents swapped"], trees, seed)
    return {
        name: [score.double().numpy() for score in model.score_trees(those, context=context, pack_tokens=pack_tokens)]
        for name, those in spoilt.items()
    }


def with_foreign_latents(trees: Sequence[ReasoningTree], seed: int) -> list[ReasoningTree]:
    """Every path with the latents (hidden states and tip too) of the same path of another question's tree.

    The other question is of the same task and its tree of the same shape, where there is one such. Where there is not,
    another tree's paths are taken in turn, their latents repeated or cut to the length.
    """
    swapped: list[ReasoningTree] = []
    for tree, other in zip(trees, _others(trees, seed), strict=True):
        lenders = [other.paths[i % len(other.paths)] for i in range(len(tree.paths))]
        swapped.append(replace(tree, paths=[_thinking(*pair) for pair in zip(tree.paths, lenders, strict=True)]))
    return swapped


def with_foreign_answers(
    trees: Sequence[ReasoningTree], lenders: Sequence[ReasoningTree], seed: int
) -> list[ReasoningTree]:
    """Every path that answered with the answers of a path of another question's tree, chosen as in `_others`."""
    swapped: list[ReasoningTree] = []
    for tree, other in zip(trees, _others(lenders, seed), strict=True):
        said = [path.answers for path in other.paths if path.answers] or [[]]
        paths = [
            replace(path, answers=said[i % len(said)] if path.answers else []) for i, path in enumerate(tree.paths)
        ]
        swapped.append(replace(tree, paths=paths))
    return swapped


def with_foreign_questions(trees: Sequence[ReasoningTree], seed: int) -> list[ReasoningTree]:
    """Every tree under the text of another question, chosen as for `with_foreign_latents`."""
    return [replace(tree, question=other.question) for tree, other in zip(trees, _others(trees, seed), strict=True)]


def out_of_order(trees: Sequence[ReasoningTree], seed: int) -> list[ReasoningTree]:
    """Every path with the latents of its chain in a random other order; a single latent stays.

    Paths that share ancestors would have to share their order: here every path stands alone, with a copy of its chain.
    """
    generator = torch.Generator().manual_seed(seed)
    return [replace(tree, paths=_out_of_order(tree, generator)) for tree in trees]


def drowned(trees: Sequence[ReasoningTree], seed: int) -> list[ReasoningTree]:
    """Every latent, hidden state and tip replaced by Gaussian noise of its root mean square."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator) * like.pow(2).mean(-1, keepdim=True).sqrt()

    return [replace(tree, paths=[_changed(path, noise) for path in tree.paths]) for tree in trees]


def _others(trees: Sequence[ReasoningTree], seed: int) -> list[ReasoningTree]:
    """For every tree that of another question: of the same task and shape where there is one, and then each once."""
    if len({tree.question for tree in trees}) < 2:
        raise ValueError("A control needs the trees of two questions at least. Collect more, with --max_samples.")
    rng = np.random.default_rng(seed)
    alike: dict[object, list[int]] = {}
    for i, tree in enumerate(trees):
        shape = tuple((path.parent, len(path.latents), path.noise_free) for path in tree.paths)
        alike.setdefault((tree.task, shape), []).append(i)
    found: dict[int, ReasoningTree] = {}
    for group in alike.values():
        order = rng.permutation(group).tolist()
        found |= {i: trees[order[k - 1]] for k, i in enumerate(order)}  # round in a circle
    for i, tree in enumerate(trees):
        while found[i].question == tree.question:  # nobody is like it
            found[i] = trees[int(rng.integers(len(trees)))]
    return [found[i] for i in range(len(trees))]


def _thinking(path: Path, other: Path) -> Path:
    """A path with another's latents, as many as it has of its own."""
    return _changed(other, lambda x: x[torch.arange(len(path.latents)) % len(x)] if x.ndim == 2 else x, of=path)


def _out_of_order(tree: ReasoningTree, generator: torch.Generator) -> list[Path]:
    leaves, paths = set(tree.leaves()), []
    for i, path in enumerate(tree.paths):
        chain = tree.chain(i)
        order = torch.arange(sum(len(tree.paths[k].latents) for k in chain))
        while len(order) > 1 and bool((order == torch.arange(len(order))).all()):
            order = torch.randperm(len(order), generator=generator)
        meant = [hidden for k in chain if (hidden := tree.paths[k].hidden) is not None]
        whole = len(meant) == len(chain)
        paths.append(
            replace(
                path,
                latents=tree.chain_latents(i)[order],
                hidden=torch.cat(meant)[order] if whole else None,
                tip=path.tip if i in leaves else None,  # an inner path must not pass for a leaf
                parent=None,
            )
        )
    return paths


def _changed(path: Path, change: Callable[[Tensor], Tensor], of: Path | None = None) -> Path:
    """A path (or, with ``of``, that one) with what this one's latents, hidden states and tip are changed into."""
    hidden = None if path.hidden is None else change(path.hidden)
    tip = None if path.tip is None else change(path.tip)
    return replace(of or path, latents=change(path.latents), hidden=hidden, tip=tip)
