"""How likely what was chosen is right: probabilities fitted on questions apart, and what follows from them.

This room hides the fitting, which is scikit-learn's, and the file calibration.json, which lies beside a checkpoint's
weights. What was fitted is a few numbers, applied with numpy alone. Which rule answers best, and whether by more than
chance, is found here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from latent_prm.files import BadFile, load_json, save_json
from latent_prm.metrics import Interval, Pool, bootstrap_interval, of_rules
from latent_prm.odds import Odds, fit_odds, log_odds, logistic, sigmoid
from latent_prm.pretrained import versions
from latent_prm.selector import HOWS, NEEDS_LOWER, Choice, How, choose_among
from latent_prm.settling import NUM_FEATURES as REGRET_FEATURES
from latent_prm.settling import Settled, by_prm, by_regret, fit_regret

FILE = "calibration.json"
FORMAT = "latent-prm-calibration/1"
GAIN = ("mean", "low", "high")
FEATURES = (
    "share of the scores",
    "share of the paths",
    "log-odds of its best score",
    "log-odds of its mean score",
    "log of the number of paths",
    "that log times the share of the paths",
    "that log times the log-odds of its mean score",
)
"""What a chosen answer's probability is told from. The last two: a share or a mean counts for more when of more."""
FEW = 100
"""Questions. With fewer there is no telling whether an isotonic curve fits better than Platt's."""
FOLDS = 5
BASE: How = "weighted_vote"
"""The rule to choose by where nothing is known, and what a picked one is compared with."""


# --- what is fitted -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Platt:
    """A calibration of path scores by two numbers (Platt 1999): the sigmoid of slope x log-odds + intercept."""

    slope: float
    intercept: float

    def __call__(self, scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """The calibrated scores."""
        return sigmoid(self.slope * log_odds(scores, 1e-6) + self.intercept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotonic:
    """A calibration of path scores that assumes nothing but that more is more: a rising line through points."""

    scores: tuple[float, ...]
    rates: tuple[float, ...]
    """The share of right paths at each of ``scores``; straight between them, level beyond."""

    def __call__(self, scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """The calibrated scores."""
        return np.interp(scores, self.scores, self.rates)


class Picked(NamedTuple):
    """The rule to choose by, and how sure it is that this matters."""

    how: How
    accuracy: dict[How, float]
    """Of every rule that was tried, over all paths of the calibration questions."""
    gain: Interval
    """Of ``how`` over weighted_vote, question by question. Being the best of several, it promises a little much."""

    def __str__(self) -> str:
        """In words."""
        said = f"{self.how}, which was right in {100 * self.accuracy[self.how]:.1f} % of the calibration questions"
        if self.how == BASE:
            return f"{said}, as often as any other rule or more"
        low, high = 100 * self.gain.low, 100 * self.gain.high
        doubt = "" if low > 0 else ", which may be chance"
        return f"{said}, {100 * self.gain.mean:.1f} points [{low:.1f}, {high:.1f}] more often than {BASE}{doubt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """Calibrated probabilities of paths and of chosen answers; `fit` makes it, `save` and `load` keep it."""

    paths: Platt | Isotonic
    answers: dict[How, Odds]
    """One per rule, on the `FEATURES`: what is chosen by another rule is right with another probability."""
    regrets: dict[How, Odds]
    """Of the picked rule and weighted_vote: how likely more paths mend an answer, as `settling.fit_regret`."""
    picked: Picked
    num_questions: int
    num_paths: int
    """Most paths that one of the questions had."""
    versions: dict[str, str]
    reasoners: tuple[dict[str, str], ...] = ()
    """Whose paths they were, as `kinship.growers`; unknown: those that the PRM learnt from."""
    tasks: tuple[str, ...] = ()
    """Where the questions were from, sorted; empty: nobody knows."""

    def path(self, scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Predicted scores → the shares of such paths that are right."""
        return self.paths(np.asarray(scores, dtype=float))

    def choose(
        self,
        values: Sequence[str],
        scores: Sequence[float] | Float[np.ndarray, " N"],
        how: How | None = None,
        lower: Sequence[float] | Float[np.ndarray, " N"] | None = None,
    ) -> Choice:
        """As `selector.choose_among`, by the picked rule where ``how`` is left out, with its probability.

        The probability is 0 where no path gave an answer, and None for a rule that was not calibrated, that is for
        conservative where the calibration questions came without lower bounds.
        """
        choice = choose_among(values, scores, how or self.picked.how, lower)
        if choice.value == "":
            return choice._replace(probability=0.0)
        odds = self.answers.get(how or self.picked.how)
        return choice if odds is None else choice._replace(probability=odds(features(values, scores, choice.value)))

    def settled(self, how: How) -> Settled:
        """How settled what ``how`` chooses is: by regret where that was learnt for this rule, else by the scores."""
        return by_regret(self.regrets[how], how) if how in self.regrets else by_prm


def features(
    values: Sequence[str], scores: Sequence[float] | Float[np.ndarray, " N"], value: str
) -> Float[np.ndarray, " F"]:
    """The `FEATURES` of one of the answers that a question's paths gave."""
    own = np.array([other == value for other in values])
    p = np.asarray(scores, dtype=float)
    share = p[own].sum() / (p.sum() or 1.0)
    best, mean = log_odds(np.array([p[own].max(), p[own].mean()]), 1e-3)
    size = math.log(len(p))
    return np.array([share, own.mean(), best, mean, size, size * own.mean(), size * mean])


def abstains(choice: Choice, threshold: float) -> bool:
    """Whether to say "I do not know": its probability lies below the threshold.

    Raises ValueError when the choice has no calibrated probability.
    """
    if choice.probability is None:
        raise ValueError("Only a choice with a calibrated probability can be abstained from: use Confidence.choose.")
    return choice.probability < threshold


# --- fitting --------------------------------------------------------------------------------------------------------


def fit(pool: Pool, seed: int = 42, num_bootstrap: int = 2000) -> Confidence:
    """What a pool of questions teaches, which should be others than those that the PRM and any test have seen.

    Where the pool has lower bounds of its scores, the rule conservative takes part.
    """
    picked = compare_rules(pool, seed, num_bootstrap)
    return Confidence(
        paths=fit_paths(pool),
        answers={how: _fit_answers(pool, how, seed) for how in HOWS if how in pool.methods},
        regrets={how: fit_regret(pool, how, seed) for how in HOWS if how in {picked.how, BASE} - NEEDS_LOWER},
        picked=picked,
        num_questions=len(pool),
        num_paths=max(map(len, pool.values)),
        versions=versions("scikit-learn", "numpy"),
    )


def compare_rules(pool: Pool, seed: int = 42, num_bootstrap: int = 2000) -> Picked:
    """The rule that is right most often on a pool (of equals `BASE`, then the first), and how much more than `BASE`."""
    right = of_rules(pool)
    accuracy: dict[How, float] = {how: float(each.mean()) for how, each in right.items()}
    best = max((BASE, *accuracy), key=lambda how: round(accuracy[how], 9))
    return Picked(best, accuracy, bootstrap_interval(right[best] - right[BASE], num_bootstrap, seed))


def fit_paths(pool: Pool) -> Platt | Isotonic:
    """The calibration of path scores, isotonic or Platt's, that predicts questions left out better (log-loss)."""
    scores, right = np.concatenate(pool.scores).astype(float), np.concatenate(pool.correct).astype(bool)
    if len(pool) < FEW:
        return _fit_platt(scores, right)
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    question = np.repeat(np.arange(len(pool)), [len(values) for values in pool.values])
    fitters = (_fit_platt, _fit_isotonic)  # of equals the simpler
    losses = np.zeros(len(fitters))
    for seen, unseen in GroupKFold(FOLDS).split(scores, right, question):
        predicted = [fitter(scores[seen], right[seen])(scores[unseen]) for fitter in fitters]
        losses += [log_loss(right[unseen], each, labels=[False, True], normalize=False) for each in predicted]
    return fitters[int(losses.argmin())](scores, right)


def _fit_platt(scores: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]) -> Platt:
    weights, intercept = logistic(log_odds(scores, 1e-6)[:, None], right, np.ones(len(right)))
    return Platt(slope=weights[0], intercept=intercept)


def _fit_isotonic(scores: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(right) + 2)  # None of n right is no proof of never: Laplace's rule of succession.
    curve = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(scores, right.astype(float))
    return Isotonic(scores=tuple(curve.X_thresholds_.tolist()), rates=tuple(curve.y_thresholds_.tolist()))


def _fit_answers(pool: Pool, how: How, seed: int) -> Odds:
    """Fitted on what the rule chooses from all of a question's paths and, together weighing as much, from seeded
    subsets of 1, 2, 4, … of them, so that it knows what fewer paths are worth.
    """
    rng, rows, right, weight = np.random.default_rng(seed), [], [], []
    bounds: Sequence[Any] = pool.lower or [None] * len(pool)
    for values, correct, scores, lower in zip(pool.values, pool.correct, pool.scores, bounds, strict=True):
        sizes = [1 << step for step in range(len(values).bit_length()) if 1 << step < len(values)]
        for size in (*sizes, len(values)):
            members = rng.permutation(len(values))[:size] if size < len(values) else np.arange(size)
            own, p = [values[i] for i in members], scores[members]
            choice = choose_among(own, p, how, None if lower is None else lower[members])
            if choice.value != "":  # which is never right, and needs no fit
                rows.append(features(own, p, choice.value))
                right.append(bool(correct[members[choice.index]]))
                weight.append(1.0 if size == len(values) else 1 / len(sizes))
    return fit_odds(rows, right, weight, len(FEATURES))


# --- on disk --------------------------------------------------------------------------------------------------------


def save(confidence: Confidence, folder: str | Path) -> Path:
    """Write calibration.json into a checkpoint folder (or another) and return its path."""
    path = Path(folder) / FILE
    calibration = "platt" if isinstance(confidence.paths, Platt) else "isotonic"
    gain = {name: getattr(confidence.picked.gain, name) for name in GAIN}
    picked = {**confidence.picked._asdict(), "gain": gain}
    paths = {"method": calibration, **asdict(confidence.paths)}
    save_json({"format": FORMAT, **asdict(confidence), "picked": picked, "paths": paths}, path)
    return path


def load(folder: str | Path) -> Confidence:
    """What `save` wrote into a folder.

    Raises ``files.BadFile`` when calibration.json is missing, or not such a file, which may come from anywhere.
    """
    path = Path(folder) / FILE
    found = load_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BadFile(f'{path}: not a calibration of this project: its "format" is not {FORMAT!r}.')
    try:
        return _read(found)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        again = "Remove it, or write it again: latent-prm evaluate --checkpoint … --calibrate_on …"
        raise BadFile(f"{path}: not a whole calibration: {missing}. {again}") from error


def _read(found: dict[str, Any]) -> Confidence:
    """Raises KeyError, TypeError or ValueError for whatever `save` would not have written."""
    paths, picked = dict(found["paths"]), dict(found["picked"])
    answers = _read_odds(found["answers"], len(FEATURES))
    regrets = _read_odds(found.get("regrets", {}), REGRET_FEATURES)
    accuracy: dict[How, float] = {_rule(how): _number(share, 0, 1) for how, share in dict(picked["accuracy"]).items()}
    gain = Interval(*(_number(picked["gain"][name], -1, 1) for name in GAIN))
    how = _rule(picked["how"])
    if how not in answers or how not in accuracy:
        raise ValueError(f"the rule {how} was picked, but has no numbers")
    versions = {str(name): str(number) for name, number in dict(found["versions"]).items()}
    counts = {name: int(_number(found[name], 1)) for name in ("num_questions", "num_paths")}
    return Confidence(
        paths=_read_paths(paths),
        answers=answers,
        regrets=regrets,
        picked=Picked(how, accuracy, gain),
        versions=versions,
        reasoners=_read_reasoners(found.get("reasoners", [])),
        tasks=_read_tasks(found.get("tasks", [])),
        **counts,
    )


def _read_paths(found: dict[str, Any]) -> Platt | Isotonic:
    if found["method"] == "platt":
        return Platt(slope=_number(found["slope"]), intercept=_number(found["intercept"]))
    if found["method"] != "isotonic":
        raise ValueError(f"the method {found['method']!r} is neither platt nor isotonic")
    scores, rates = _numbers(found["scores"]), _numbers(found["rates"], 0, 1)
    if not len(scores) == len(rates) > 0 or list(scores) != sorted(scores) or list(rates) != sorted(rates):
        raise ValueError("its scores and rates are not as many rising numbers")
    return Isotonic(scores=scores, rates=rates)


def _read_odds(found: Any, num_features: int) -> dict[How, Odds]:
    read: dict[How, Odds] = {}
    for name, odds in dict(found).items():
        how = _rule(name)
        rows = {name: _numbers(odds[name]) for name in ("means", "scales", "weights")}
        if any(len(row) != num_features for row in rows.values()) or min(rows["scales"]) <= 0:
            raise ValueError(f"the odds of {how} are not {num_features} means, scales above 0, and weights")
        read[how] = Odds(**rows, intercept=_number(odds["intercept"]))
    return read


def _read_reasoners(found: Any) -> tuple[dict[str, str], ...]:
    return tuple({"model": str(one["model"]), "weights": str(one["weights"])} for one in found)


def _read_tasks(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{found!r} is no list of tasks")
    return tuple(found)


def _rule(name: Any) -> How:
    for how in HOWS:
        if how == name:
            return how
    raise ValueError(f"there is no rule {name!r}")


def _numbers(values: Any, least: float = -math.inf, most: float = math.inf) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is no list of numbers")
    return tuple(_number(value, least, most) for value in values)


def _number(value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    if not least <= value <= most:
        raise ValueError(f"{value} does not lie in {least:g}..{most:g}")
    return float(value)
