"""Rivals that learn: small models of latents or of questions, fitted in seconds to minutes on a CPU.

This room hides their architectures and how they are fitted. All learn from the ``prm_score`` of noisy paths, as the PRM
does, and read a path's latents as they were fed, root to tip. Everything of chance follows from the seed: fitted twice,
with as many threads, they are the same to the bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.utils.rnn import pad_sequence

from latent_prm.tree import ReasoningTree

Scores = list[Float[np.ndarray, " _"]]
"""One number per path of every tree: higher is likelier right. Not necessarily a probability."""
Scorer = Callable[[Sequence[ReasoningTree]], Scores]

WIDEST = 128
"""The encoder projects wider latents to so many numbers first, which keeps it small."""
BATCH, EPOCHS, PATIENCE, HELD_OUT = 256, 20, 3, 0.1
"""Paths in an update, most rounds, rounds without a better one, and the share of questions that judges the rounds."""
PREDICTED = 4096
"""Paths that are scored at once."""


def fit_rivals(trees: Sequence[ReasoningTree], seed: int = 0) -> dict[str, Scorer]:
    """The rivals that learn, by name, fitted to trees of *training* questions; they score trees of any others.

    The scores of the two linear probes, the length probe and the question-only model are probabilities, those of the
    gate and the encoder log-odds, those of the centroids a difference of distances.

    Raises ValueError when nothing is labelled or everything ended alike, and, when one scores, for latents of another
    width.
    """
    data = Examples.of(trees)
    return {
        "CLUE centroid": _centroids(data),
        "linear probe, last latent": _probe(data, lambda chain: chain[-1]),
        "linear probe, mean latent": _probe(data, lambda chain: chain.mean(0)),
        "length probe": _probe(data, lengths),
        "SWIFT gate": _network(data, Gate(data.width, seed), seed, learning_rate=1e-2),
        "LTO encoder": _network(data, Encoder(data.width, seed), seed, learning_rate=1e-3),
        "question only": _question_only(trees),
    }


@dataclass(frozen=True)
class Examples:
    """The labelled noisy paths of some trees."""

    chains: list[Float[Tensor, "_ D"]]
    targets: Float[np.ndarray, " N"]
    """Their prm_scores."""
    questions: Int[np.ndarray, " N"]
    """Which tree each is of."""

    @classmethod
    def of(cls, trees: Sequence[ReasoningTree]) -> Examples:
        """All of them. Raises ValueError when there is none or all ended alike."""
        found = [(number, tree, i, target) for number, tree in enumerate(trees) for i, target in labelled(tree)]
        if len({target for *_, target in found}) < 2:
            raise ValueError(
                f"There is nothing for the rivals to learn: of the {len(found)} labelled paths none ended better than "
                "another. Give them the trees of more training questions."
            )
        chains = [tree.chain_latents(i) for _, tree, i, _ in found]
        return cls(chains, np.array([target for *_, target in found]), np.array([number for number, *_ in found]))

    @property
    def width(self) -> int:
        """D."""
        return self.chains[0].shape[1]


def labelled(tree: ReasoningTree) -> list[tuple[int, float]]:
    """The tree's noisy paths that have a prm_score, and this."""
    noisy = ((i, path.prm_score) for i, path in enumerate(tree.paths) if not path.noise_free)
    return [(i, score) for i, score in noisy if score is not None]


# --- without a network ----------------------------------------------------------------------------------------------


def lengths(chain: Float[Tensor, "T D"]) -> Float[Tensor, " six"]:
    """How long a chain's latents are (root mean squares): mean, spread, least, most, first, last."""
    each = chain.pow(2).mean(1).sqrt()
    return torch.stack([each.mean(), each.std(unbiased=False), each.min(), each.max(), each[0], each[-1]])


def _probe(data: Examples, feature: Callable[[Float[Tensor, "_ D"]], Tensor]) -> Scorer:
    """A linear probe: logistic regression on one feature vector of a chain, standardised (scikit-learn, C = 1)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    _fit(model, _features(data.chains, feature), data.targets)
    return _chain_scorer(data.width, lambda chains: model.predict_proba(_features(chains, feature))[:, 1])


def _centroids(data: Examples) -> Scorer:
    """CLUE (arXiv 2510.01591): how much nearer a chain's change is to the mean change of right ones than of wrong ones.

    There a change is the difference between the hidden states at the end and the start of a thought, in every layer,
    and nothing is learned but the two means. Here it is the last latent minus the first, of which there is one layer; a
    path with a prm_score s counts as s right and 1 - s wrong ones. A chain of one latent does not change: it gets the
    same score as any other such.
    """
    changes = _features(data.chains, _change)
    right = np.average(changes, axis=0, weights=data.targets)
    wrong = np.average(changes, axis=0, weights=1 - data.targets)

    def nearer(chains: list[Tensor]) -> Float[np.ndarray, " N"]:
        found = _features(chains, _change)
        return np.linalg.norm(found - wrong, axis=1) - np.linalg.norm(found - right, axis=1)

    return _chain_scorer(data.width, nearer)


def _question_only(trees: Sequence[ReasoningTree]) -> Scorer:
    """How hard a question is, from its text alone: logistic regression on TF-IDF of words and pairs of words.

    It predicts the share right of the question's paths, the same number for each of them, so that it tells nothing
    within a question: what it gains in any pooled figure is what knowing the question gains.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    taught = [(tree.question, [score for _, score in labelled(tree)]) for tree in trees]
    texts = [question for question, scores in taught if scores]
    shares = np.array([np.mean(scores) for _, scores in taught if scores])
    words = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(max_iter=2000))
    _fit(model, texts, shares)

    def score(trees: Sequence[ReasoningTree]) -> Scores:
        chances = model.predict_proba([tree.question for tree in trees])[:, 1] if trees else []
        return [np.full(len(tree.paths), chance) for tree, chance in zip(trees, chances, strict=True)]

    return score


def _fit(model: Any, examples: Any, targets: Float[np.ndarray, " N"]) -> None:
    """Fit a classifier to shares in 0..1: an example with the share t is t right and 1 - t wrong ones."""
    number = np.tile(np.arange(len(targets)), 2)
    weights = np.concatenate([targets, 1 - targets])
    classes = np.repeat([1, 0], len(targets))
    kept = weights > 0
    rows = examples[number[kept]] if isinstance(examples, np.ndarray) else [examples[i] for i in number[kept]]
    model.fit(rows, classes[kept], logisticregression__sample_weight=weights[kept])


def _change(chain: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
    return chain[-1] - chain[0]


def _features(chains: Sequence[Tensor], feature: Callable[[Tensor], Tensor]) -> Float[np.ndarray, "N F"]:
    return torch.stack([feature(chain) for chain in chains]).double().numpy()


def _chain_scorer(width: int, score: Callable[[list[Tensor]], Float[np.ndarray, " N"]]) -> Scorer:
    """A scorer of trees from one of chains. Raises ValueError, when it scores, for latents of another width."""

    def of_trees(trees: Sequence[ReasoningTree]) -> Scores:
        chains = [tree.chain_latents(i) for tree in trees for i in range(len(tree.paths))]
        if others := {chain.shape[1] for chain in chains} - {width}:
            raise ValueError(
                f"This rival was fitted to latents {width} wide, but here are some {others.pop()} wide. Fit it to "
                "trees of the same reasoner."
            )
        found = score(chains) if chains else np.empty(0)
        ends = np.cumsum([len(tree.paths) for tree in trees])
        return np.split(found, ends[:-1]) if len(ends) else []

    return of_trees


# --- networks -------------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """SWIFT, once ELHSR (arXiv 2505.12225): every latent has a reward and a gate, each linear; their weighted mean.

    logit = Σ g_t · reward_t / Σ g_t with g = sigmoid(gate), trained with binary cross-entropy. There it reads the
    hidden states of all layers at every token; here a step has one, its latent.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.both = nn.Linear(width, 2)

    def forward(self, latents: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Log-odds of being right."""
        gate, reward = self.both(latents).unbind(-1)
        gate = gate.sigmoid() * real
        return (gate * reward).sum(1) / gate.sum(1).clamp_min(1e-6)


class Encoder(nn.Module):
    """The latent classifier of LTO (arXiv 2509.26314): a two-layer transformer encoder, mean pooling, a linear head.

    Every latent sees every other one; where it stands is told by waves added to it. Trained with binary cross-entropy.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        inner = min(width, WIDEST) // 4 * 4 or 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter = nn.Linear(width, inner)
            layer = nn.TransformerEncoderLayer(inner, 4, 2 * inner, dropout=0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(inner), enable_nested_tensor=False)
            self.head = nn.Linear(inner, 1)
        self.inner = inner

    def forward(self, latents: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Log-odds of being right."""
        states = self.enter(latents) + _waves(latents.shape[1], self.inner)
        states = self.layers(states, src_key_padding_mask=~real) * real[..., None]
        return self.head(states.sum(1) / real.sum(1, keepdim=True))[:, 0]


def _waves(count: int, width: int) -> Float[Tensor, "T D"]:
    angles = torch.arange(count)[:, None] * 100.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


class _Standardised(nn.Module):
    """A network whose latents come with mean 0 and spread 1 in every dimension, as in what it was fitted to."""

    def __init__(self, network: nn.Module, latents: Float[Tensor, "N D"]) -> None:
        super().__init__()
        self.network, self.mean, self.spread = network, latents.mean(0), latents.std(0).clamp_min(1e-6)

    def forward(self, chains: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, " B"]:
        latents = pad_sequence([(chain - self.mean) / self.spread for chain in chains], batch_first=True)
        sizes = torch.tensor([len(chain) for chain in chains])
        return self.network(latents, torch.arange(latents.shape[1]) < sizes[:, None])


def _network(data: Examples, network: nn.Module, seed: int, learning_rate: float) -> Scorer:
    """A network fitted with AdamW to the binary cross-entropy: the weights of its best round on questions held out."""
    model = _Standardised(network, torch.cat(data.chains))
    targets = torch.from_numpy(data.targets).float()
    taught, kept = (part.tolist() for part in _split(data.questions, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    best, least, since = copy.deepcopy(model.state_dict()), float("inf"), 0
    for _ in range(EPOCHS):
        for batch in torch.tensor(taught)[torch.randperm(len(taught), generator=generator)].split(BATCH):
            optimizer.zero_grad()
            bce(model([data.chains[i] for i in batch.tolist()]), targets[batch]).backward()
            optimizer.step()
        judged = kept or taught
        loss = bce(torch.from_numpy(_predict(model, [data.chains[i] for i in judged])), targets[judged].double())
        since += 1
        if loss < least:
            best, least, since = copy.deepcopy(model.state_dict()), float(loss), 0
        if since == PATIENCE:
            break
    model.load_state_dict(best)
    return _chain_scorer(data.width, lambda chains: _predict(model, chains))


def _split(questions: Int[np.ndarray, " N"], seed: int) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]:
    """The paths to learn from and those of a tenth of the questions (none of less than two) to judge by."""
    names = np.unique(questions)
    count = min(len(names) - 1, math.ceil(HELD_OUT * len(names)))
    held = np.isin(questions, np.random.default_rng(seed).permutation(names)[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


@torch.no_grad()
def _predict(model: nn.Module, chains: Sequence[Tensor]) -> Float[np.ndarray, " N"]:
    found = [model(chains[start : start + PREDICTED]).double().numpy() for start in range(0, len(chains), PREDICTED)]
    return np.concatenate(found)
