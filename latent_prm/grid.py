"""What a grid of trainings is made of: hides how its YAML file is read, checked and spelt out into arms.

    pools:                                    # options of `latent-prm collect`, grown once
      train: {max_samples: 4000, seed: 7}
      validation: {split: validation, max_samples: 1000}
    base: {num_epochs: 1, loss: mse}          # options of `latent-prm train`, and: pool, questions, start, depth
    arms:                                     # what each changes of the base; or axes: {loss: [mse, bce]}, all pairs
      bce: {loss: bce}
      little data: {questions: 500}           # the first so many of the pool
      strong noise: {noise: 0.6}              # an option of collect alone: another such pool
    seeds: [1, 2]
    evaluate: [validation]
    figures: [gap_best, auroc]                # the first is what is drawn

Everything that can be known to be wrong is refused here, by name, before anything is grown or trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import combinations, product
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from latent_prm.options import CollectOptions, GrowthOptions, TrainOptions
from latent_prm.yaml_files import keyed, load_yaml, meant, spell

Start = Literal["weights", "random"]

RULES = ("best", "weighted_vote", "logit_vote", "rank_vote", "tie_break", "agreement")
"""The rules of choosing that listen to a PRM and need nothing else."""
SAME = ("noise_free", "random", "vote", "oracle")
"""Accuracies that are the same whatever the PRM."""
FIGURES = (*RULES, *(f"gap_{rule}" for rule in RULES), "auroc", "brier", "ece", *SAME)
"""What can be asked for. gap_…: the share recovered of the way from the better of majority and noise-free to any."""
USUAL = ("gap_best", "gap_weighted_vote", "best", "weighted_vote", "auroc", "brier", "ece")
BASE = "base"
MOST_CELLS = 1000
SECTIONS = ("name", "pools", "base", "arms", "axes", "seeds", "evaluate", "figures")

_OWN: dict[str, Any] = {"pool": str, "questions": int, "start": Start, "depth": int | None}
_NOT_TRAINED = {
    "data_dir": 'name one of the pools: "pool: …"',
    "output_dir": "each run has a folder of its own",
    "resume": "it always goes on",
    "plan": "type --dry_run",
    "seed": 'type "seeds: [1, 2]" beside the base',
}
_NOT_GROWN = {
    "output_dir": "pools have folders of their own",
    "shard": "a pool is grown by one process",
    "dry_run": "type --dry_run",
}
_Options = TypeVar("_Options", CollectOptions, TrainOptions)


@dataclass(frozen=True)
class Arm:
    """One kind of training."""

    name: str
    train: TrainOptions
    """Its seed and folders are those of no cell yet."""
    pool: CollectOptions
    """What it learns from, as far as ``questions`` says."""
    questions: int
    """The first so many of the pool's; -1: all."""
    start: Start = "weights"
    """Whether it begins with the weights of its backbone, or with random ones in its shape."""
    depth: int | None = None
    """Layers of a random start; None: as many as the backbone has."""
    place: tuple[tuple[str, Any], ...] = ()
    """Its value on each axis, where there are axes."""

    @property
    def content(self) -> tuple[Any, ...]:
        """Everything but its name."""
        return self.train, self.pool, self.questions, self.start, self.depth


@dataclass(frozen=True)
class Grid:
    """Which arms are trained, with which seeds, and what they are measured on."""

    name: str
    arms: tuple[Arm, ...]
    """The first is what the others are compared with."""
    seeds: tuple[int, ...]
    evaluate: dict[str, CollectOptions]
    figures: tuple[str, ...]


def load_grid(file: str | Path) -> Grid:
    """The grid that a YAML file describes.

    Raises ValueError, naming the place in the file, for whatever cannot be: unknown keys, values of another kind,
    options that contradict each other, arms that are alike, hidden states that a pool does not keep.
    """
    path = Path(file).expanduser()
    content = load_yaml(path, "experiment", "Type its path, as experiments/choosing.yaml.")
    top = keyed(content, SECTIONS, f"{path}", "Type pools:, base:, arms: and evaluate:.")
    name = top.get("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w. -]{0,99}", name):
        raise ValueError(f"{path}: name is {spell(name)}. It becomes a folder: type letters, digits, - and _.")
    pools = _pools(top.get("pools"), f"{path}: pools")
    arms = _arms(top, pools, path)
    seeds = _list(top.get("seeds", [42]), int, f"{path}: seeds", "Type whole numbers: [1, 2]")
    figures = _list(top.get("figures", [*USUAL]), str, f"{path}: figures", f"Type some of {', '.join(FIGURES)}.")
    names = top.get("evaluate")
    names = [names] if isinstance(names, str) else names
    evaluated = _list(names, str, f"{path}: evaluate", f"Type some of the pools: [{', '.join(pools)}]")
    for figure in figures:
        if figure not in FIGURES:
            raise ValueError(f"{path}: figures: no {spell(figure)}{meant(figure, FIGURES)}. Type {', '.join(FIGURES)}.")
    for pool in evaluated:
        if pool not in pools:
            raise ValueError(f"{path}: evaluate: {_no_pool(pool, pools)}")
    if len(arms) * len(seeds) > MOST_CELLS:
        raise ValueError(f"{path}: {len(arms)} arms × {len(seeds)} seeds are more than {MOST_CELLS} trainings.")
    grid = Grid(name, arms, tuple(seeds), {pool: pools[pool] for pool in evaluated}, tuple(figures))
    _check(grid, path)
    return grid


def _check(grid: Grid, path: Path) -> None:
    for one, other in combinations(grid.arms, 2):
        if one.content == other.content:
            raise ValueError(f"{path}: arms {one.name!r} and {other.name!r} are the same training. Leave one out.")
    for arm in grid.arms:
        if "hidden" not in arm.train.read_parts():
            continue
        for what, pool in {"the pool it learns from": arm.pool, **grid.evaluate}.items():
            if not pool.keep_hidden:
                raise ValueError(
                    f"{path}: arm {arm.name!r} reads {arm.train.reads}, but {what} has no hidden states. "
                    'Type "keep_hidden: true" there.'
                )


# --- pools and arms ---------------------------------------------------------------------------------------------------


def _pools(entry: Any, where: str) -> dict[str, CollectOptions]:
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f'{where} is {spell(entry)}. Type a name for each, as "train: {{max_samples: 4000}}".')
    pools = {}
    for name, given in entry.items():
        at = f"{where}: {spell(name)}"
        if not isinstance(name, str):
            raise ValueError(f"{at} is no name. Put it in quotes.")
        given = keyed({} if given is None else given, _names(CollectOptions), at, "Type options of collect.")
        if taken := next((key for key in given if key in _NOT_GROWN), None):
            raise ValueError(f"{at}: {taken} is not for a file to say: {_NOT_GROWN[taken]}.")
        pools[name] = _options(CollectOptions, given, at)
    return pools


def _arms(top: Mapping[str, Any], pools: dict[str, CollectOptions], path: Path) -> tuple[Arm, ...]:
    base = _settings(top.get("base"), f"{path}: base")
    if ("arms" in top) == ("axes" in top):
        raise ValueError(f'{path}: type "arms:" (what each changes of the base) or "axes:" (lists, all combined), one.')
    if "axes" in top:
        return _along_axes(base, top["axes"], pools, f"{path}: axes")
    entry = top["arms"]
    if not isinstance(entry, dict):
        raise ValueError(f'{path}: arms is {spell(entry)}. Type a name for each, as "bce: {{loss: bce}}".')
    arms = [_arm(BASE, base, pools, f"{path}: base")]
    for name, given in entry.items():
        where = f"{path}: arm {spell(name)}"
        if not isinstance(name, str) or not name.strip() or name == BASE:
            raise ValueError(f'{where}: type another name, in quotes if it looks like a number ("{BASE}" is taken).')
        arms.append(_arm(name, base | _settings(given, where), pools, where))
    return tuple(arms)


def _along_axes(base: dict[str, Any], entry: Any, pools: dict[str, CollectOptions], where: str) -> tuple[Arm, ...]:
    """Every combination; first the one that the base says, or else that of the first values."""
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f'{where} is {spell(entry)}. Type lists, as "loss: [mse, bce]".')
    axes: dict[str, list[Any]] = {}
    for key, values in entry.items():
        _list(values, object, f"{where}: {key}", "Type the values to try: [mse, bce]")
        axes[key] = [_settings({key: value}, where)[key] for value in values]
    arms = []
    for values in product(*axes.values()):
        place = tuple(zip(axes, values, strict=True))
        named = ", ".join(f"{key}={value}" for key, value in place)
        arms.append(_arm(named, base | dict(place), pools, f"{where}: {named}", place))
    usual = {field.name: field.default for field in fields(TrainOptions)} | base
    first = tuple((key, usual[key] if usual.get(key) in values else values[0]) for key, values in axes.items())
    return tuple(sorted(arms, key=lambda arm: arm.place != first))  # the others stay in order


def _settings(entry: Any, where: str) -> dict[str, Any]:
    """Keys that a base or an arm may have, with values of the right kind."""
    train = [name for name in _names(TrainOptions) if name not in _NOT_TRAINED]
    known = [*_OWN, *train, *_grown()]
    entry = {} if entry is None else entry
    if isinstance(entry, dict) and (taken := next((key for key in entry if key in _NOT_TRAINED), None)):
        raise ValueError(f"{where}: {taken} is not for an arm to say: {_NOT_TRAINED[taken]}.")
    given = keyed(entry, known, where, 'Type what it changes, as "loss: bce".')
    hints = get_type_hints(CollectOptions) | get_type_hints(TrainOptions) | _OWN
    return {key: _value(value, hints[key], f"{where}: {key}") for key, value in given.items()}


def _arm(
    name: str,
    given: Mapping[str, Any],
    pools: dict[str, CollectOptions],
    where: str,
    place: tuple[tuple[str, Any], ...] = (),
) -> Arm:
    own = {key: value for key, value in given.items() if key in _OWN}
    source = own.get("pool", "train" if "train" in pools else None)
    if source not in pools:
        raise ValueError(f"{where}: {_no_pool(source, pools)}")
    grown = {key: given[key] for key in _grown() if key in given}
    pool = _options(CollectOptions, {**vars(pools[source]), **grown}, where) if grown else pools[source]
    train = _options(TrainOptions, {key: given[key] for key in _names(TrainOptions) if key in given}, where)
    count, most = own.get("questions", pool.max_samples), pool.max_samples
    if count != most and (count < 1 or -1 < most < count):
        raise ValueError(f"{where}: questions is {count}, but pool {source} has {most}. Type a number from 1 to that.")
    if own.get("depth") is not None and (own["depth"] < 1 or own.get("start") != "random"):
        raise ValueError(f'{where}: depth is {own["depth"]}: it must be at least 1, and needs "start: random".')
    return Arm(name, train, pool, count, own.get("start", "weights"), own.get("depth"), place)


def _no_pool(name: Any, pools: Mapping[str, object]) -> str:
    return f"there is no pool {spell(name)}{meant(name, pools)}. Type one of {', '.join(pools)}."


def _names(options: type[CollectOptions] | type[TrainOptions]) -> list[str]:
    return [field.name for field in fields(options)]


def _grown() -> list[str]:
    """What an arm may say of its pool: options that change a question's paths and mean nothing to a training."""
    train = {*_names(TrainOptions)}
    shared = [field.name for field in fields(GrowthOptions) if field.name not in train]
    return [*shared, "task", "answers_per_leaf", "until_mixed", "noise_free", "keep_hidden"]


# --- values -----------------------------------------------------------------------------------------------------------


def _options(kind: type[_Options], given: Mapping[str, Any], where: str) -> _Options:
    """The options, each of the right kind, that also agree with each other."""
    hints = get_type_hints(kind)
    values = {key: _value(value, hints[key], f"{where}: {key}") for key, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _list(entry: Any, kind: type, where: str, way_out: str) -> list[Any]:
    fits = isinstance(entry, list) and entry and all(isinstance(e, kind) and not isinstance(e, bool) for e in entry)
    if kind is object:
        fits = isinstance(entry, list) and bool(entry)
    if not fits:
        raise ValueError(f"{where} is {spell(entry)}. {way_out}")
    if double := next((one for i, one in enumerate(entry) if one in entry[:i]), None):
        raise ValueError(f"{where}: {spell(double)} is there twice. Type it once.")
    return entry


_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _value(value: Any, hint: Any, where: str) -> Any:
    """``value``, as an option of this type takes it. Raises ValueError when it is of another kind."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        found = _as(value, choice)
        if found is not MISSING:
            return found
    spelt = [
        ", ".join(map(str, get_args(choice))) if get_origin(choice) is Literal else _KINDS[choice]
        for choice in choices
        if choice is not type(None)
    ]
    raise ValueError(f"{where} is {spell(value)}. Type {' or '.join(spelt)}.")


def _as(value: Any, kind: Any) -> Any:
    """``value`` as a bool, an int, a float, a str, None or one of some words; MISSING where it is none."""
    if get_origin(kind) is Literal:
        if isinstance(value, bool) and {"on", "off"} <= {*get_args(kind)}:
            value = "on" if value else "off"  # which YAML takes for true and false
        return value if value in get_args(kind) and not isinstance(value, bool) else MISSING
    if kind is float and not isinstance(value, bool):
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            return float(value)  # YAML takes 3e-4, which has no point, for a text
        return float(value) if isinstance(value, int | float) else MISSING
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return value if fits else MISSING
