"""What was run, as parts of a report: what was typed, how a training went, what is in a folder of shards.

This room hides which file says what: options and versions, metrics.jsonl and training_stats.json, the metadata of
shards. What a file does not say is left out, or said to be missing.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from latent_prm import options as typed_options
from latent_prm.charts import Axis, Line, Look, bars, chart
from latent_prm.files import BadFile, load_json
from latent_prm.shards import BINS, outcomes, read_metadata, scan
from latent_prm.sheet import Chart, Fold, Part, Section, Table, Tiles, Typed, Words
from latent_prm.tree import ReasoningTree

STEP = Axis(title="optimizer step")
VALIDATION = Look("--red", "solid", "diamond")
OUTCOMES = {
    "noise_free": "noise-free path",
    "random_path": "random path",
    "majority": "majority",
    "any_path": "any path",
}
COUNTED = {
    "num_questions": "questions",
    "num_paths": "paths",
    "num_labelled": "paths with a known value",
    "num_answers": "answers decoded",
    "truncated_answers": "answers cut off at the longest length",
    "num_leaves": "noisy leaves",
    "leaves_in_mixed_questions": "of these in questions with right and wrong ones",
    "stopped_early": "questions stopped early (--until_mixed)",
    "went_on": "questions given as many paths again",
    "prompt_tokens": "tokens of prompts read",
    "latents": "latents thought",
    "answer_tokens": "tokens of answers decoded",
    "seconds": "seconds of growing, over all workers",
}
"""What shards count, in words."""


# --- what was typed ---------------------------------------------------------------------------------------------------


def command(name: str, options_class: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Part]:
    """What was typed, with facts beside it, and every option. ``facts`` that are None are left out."""
    known = {field.name: field.default for field in fields(getattr(typed_options, options_class))}
    changed = {key: value for key, value in options.items() if _plain(known.get(key)) != value}
    rows = [[key, said(value)] for key, value in facts.items() if value is not None]
    each = [[f"--{key}", said(value), "" if key in changed else "default"] for key, value in options.items()]
    return [
        Typed(typed(name, changed)),
        Table("", [], rows, words=True),
        Fold(f"All {len(each)} options", [Table("", ["option", "value", ""], each, words=True)]),
    ]


def typed(name: str, options: Mapping[str, Any]) -> str:
    """A command line with these options."""
    words = ["latent-prm", name]
    for key, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{key}" if value else f"--no-{key}")
        elif value is not None:
            each = value if isinstance(value, list | tuple) else [value]
            words += [f"--{key}", *(shlex.quote(str(one)) for one in each)]
    return " ".join(words)


def said(value: Any) -> str:
    """A value as it is read."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {said(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: Any) -> str | None:
    """Seconds as a person says them."""
    if not isinstance(seconds, int | float):
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- a training run ---------------------------------------------------------------------------------------------------


def run_sections(folder: Path) -> list[Section]:
    """What a training run's folder says of it. Raises BadFile when one of its files cannot be read."""
    config = _json_of(folder / "config.json")
    stats = _json_of(folder / "training_stats.json")
    entries = metrics(folder / "metrics.jsonl")
    options, resolved = config.get("options") or {}, config.get("resolved") or {}
    best = stats.get("best") or {}
    missing = [name for name, found in (("config.json", config), ("training_stats.json", stats)) if not found]
    facts = {
        "backbone": options.get("model_path"),
        "data": options.get("data_dir"),
        "labelled paths": stats.get("samples"),
        "questions": stats.get("questions"),
        "best checkpoint": _best(best),
        "time": duration(stats.get("training_time")),
        "resumed": stats.get("resumed"),
        "chains cut to --max_seq_length": stats.get("truncated_chains"),
        "files left out": stats.get("skipped_files"),
        "seed": options.get("seed"),
        **{key.replace("_", " "): value for key, value in resolved.items()},
        "versions": config.get("versions"),
    }
    lines = [f"There is no {name} in {folder}: what it would say is missing here." for name in missing]
    if missing == ["training_stats.json"]:
        lines = ["There is no training_stats.json: this run has not ended, or was cut off."]
    parts: list[Part] = [Words(lines)] if lines else []
    parts += command("train", "TrainOptions", options, facts) if options else []
    tiles = _run_tiles(stats, entries)
    return [
        Section("run", "What was run", [*tiles, *parts]),
        Section("training", "Training", curves(entries, best.get("step"))),
    ]


def _best(best: Mapping[str, Any]) -> str | None:
    if "step" not in best:
        return None
    return (
        f"step {said(best['step'])}, epoch {said(best.get('epoch'))}: loss {said(best.get('loss'))} by {best.get('by')}"
    )


def _run_tiles(stats: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[Part]:
    step = (stats.get("best") or {}).get("step")
    own = next((entry for entry in reversed(entries) if entry["step"] == step and "val_loss" in entry), {})
    names = {"val_loss": "validation loss", "val_auroc": "AUROC within questions", "val_ece": "calibration error"}
    tiles = [(said_as, f"{own[key]:.3f}", f"step {step}") for key, said_as in names.items() if own.get(key) is not None]
    if stats.get("total_steps"):
        beside = duration(stats.get("training_time")) or ""
        tiles.append(("optimizer steps", said(stats["total_steps"]), beside))
    return [Tiles(tiles)] if tiles else []


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that was cut off; none where there is no such file.

    Raises BadFile when a line is no such line.
    """
    if not path.is_file():
        return []
    try:
        *whole, _ = path.read_text("utf-8").split("\n")
        entries = [json.loads(line) for line in whole]
    except ValueError as error:
        raise BadFile(f"{path}: a line of it is no JSON ({error}).") from error
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            raise BadFile(f"{path}: a line of it names no step: {str(entry)[:60]}")
        if wrong := [key for key, value in entry.items() if type(value) not in (int, float, type(None))]:
            raise BadFile(f"{path}: {wrong[0]} in step {entry['step']} is no number.")
    return entries


def curves(entries: Sequence[Mapping[str, Any]], best: int | None) -> list[Part]:
    """How training went, against the step: loss, learning rate, gradient norm, and what validation found."""
    if not entries:
        return [Words(["Nothing was logged: there is no metrics.jsonl, or nothing in it."])]

    def line(name: str, label: str, look: Look) -> list[Line]:
        pairs = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return [Line(label=label, x=steps, y=values, look=look)] if pairs else []

    losses = [
        *line("loss", "training", Look("--blue")),
        *line("train_loss", "training, mean of an epoch", Look("--sky", "dot", "square")),
    ]
    errors = line("val_loss", "validation", VALIDATION)
    marked = [entry for entry in entries if entry["step"] == best and entry.get("val_loss") is not None]
    if marked:
        look = Look("--ink", "solid", "star")
        errors.append(Line(label="best checkpoint", x=[best or 0], y=[marked[-1]["val_loss"]], look=look, sizes=[16]))
    said_of = f"The best checkpoint is of step {best}." if best is not None else ""
    found: list[Part] = [chart("Loss", losses, STEP, Axis(title="loss"))] if losses else []
    if errors:
        found.append(chart("Squared error of validation", errors, STEP, Axis(title="squared error"), said_of))
    chance = {"chance": 0.5}
    others: list[tuple[str, str, Axis, Look]] = [
        ("val_auroc", "AUROC of validation", Axis(title="AUROC within questions", shows="area"), VALIDATION),
        ("val_ece", "Calibration error of validation", Axis(title="calibration error", shows="area"), VALIDATION),
        ("lr", "Learning rate", Axis(title="learning rate", shows="small"), Look("--green")),
        ("grad_norm", "Gradient norm", Axis(title="gradient norm"), Look("--orange")),
    ]
    for name, title, axis, look in others:
        if own := line(name, title, look):
            found.append(chart(title, own, STEP, axis, at=chance if name == "val_auroc" else None))
    if not any(entry.get("val_loss") is not None for entry in entries):
        found.append(Words(["There was no validation (--val_size 0), or none yet."]))
    return found


# --- a folder of shards -----------------------------------------------------------------------------------------------


def data_sections(folder: Path, trees: Sequence[ReasoningTree]) -> list[Section]:
    """What a folder of shards holds: what was run for it, how the trees came out, and what they cost.

    ``trees`` are those of the folder; with none only what the metadata say is shown. Raises BadFile for bad metadata.
    """
    paths, unfinished = scan(folder)
    metadata = [read_metadata(path) for path in paths]
    lines = [f"Left out: {path.name} was never finished." for path in unfinished]
    if not metadata:
        lines.append("These files are another program's: they say nothing of how they were made.")
    rows = [
        [key.replace("_", " "), _shared(metadata, key)]
        for key in (
            "model",
            "weights",
            "revision",
            "dtype",
            "task",
            "split",
            "seed",
            "latent_dim",
            "created",
            "versions",
        )
        if any(one.get(key) is not None for one in metadata)
    ]
    settings = [one.get("settings") or {} for one in metadata]
    of_growth = [[key, _shared(settings, key)] for key in dict.fromkeys(key for one in settings for key in one)]
    made: list[Part] = [Words(lines)] if lines else []
    if rows:
        made += [Table(f"{_count(len(metadata), 'shard')} in {folder}", [], rows, words=True)]
    if of_growth:
        made.append(Fold("How the trees were grown", [Table("", ["setting", "value"], of_growth, words=True)]))
    return [
        Section("data", "Data", [*_data_tiles(metadata, trees), *made]),
        Section("outcomes", "How the trees came out", [*_distributions(metadata, trees), *_tasks(trees)]),
        *([Section("costs", "What it cost, and what was left out", [_accounts(metadata)])] if metadata else []),
    ]


def _shared(metadata: Sequence[Mapping[str, Any]], key: str) -> str:
    """What the shards say, each thing once."""
    each = dict.fromkeys(said(one[key]) for one in metadata if one.get(key) is not None)
    shown = list(each)
    return " · ".join(shown) if len(shown) < 4 else f"{shown[0]} … {shown[-1]} ({len(shown)} different)"


def _data_tiles(metadata: Sequence[Mapping[str, Any]], trees: Sequence[ReasoningTree]) -> list[Part]:
    if trees:
        found = outcomes(list(trees))
        count, mixed, accuracy = len(trees), found["mixed_share"], found["accuracy"]
    elif metadata:
        count, mixed, accuracy = _together(metadata)
    else:
        return []
    figures = [("questions", f"{count:,}", ""), ("mixed questions", _per_cent(mixed), "right and wrong paths")]
    figures += [(f"right: {label}", _per_cent(accuracy.get(key)), "") for key, label in OUTCOMES.items()]
    return [Tiles(figures)]


def _together(metadata: Sequence[Mapping[str, Any]]) -> tuple[int, float, dict[str, float | None]]:
    """Questions in all, and the shares over all of them."""
    sizes = [one["num_questions"] for one in metadata]

    def share(values: Iterable[float | None]) -> float | None:
        known = [(value, size) for value, size in zip(values, sizes, strict=True) if value is not None]
        return sum(v * n for v, n in known) / sum(n for _, n in known) if known else None

    accuracy = {key: share(one["accuracy"].get(key) for one in metadata) for key in OUTCOMES}
    return sum(sizes), share(one["mixed_share"] for one in metadata) or 0.0, accuracy


def _distributions(metadata: Sequence[Mapping[str, Any]], trees: Sequence[ReasoningTree]) -> list[Chart]:
    names = [f"{i / BINS:.1f}–{(i + 1) / BINS:.1f}" for i in range(BINS)]
    if trees:
        counts = {"leaves": [0] * BINS, "inner paths": [0] * BINS}
        for tree in trees:
            leaves = set(tree.leaves())
            for i, path in enumerate(tree.paths):
                if path.prm_score is not None:
                    own = counts["leaves" if i in leaves else "inner paths"]
                    own[min(int(path.prm_score * BINS), BINS - 1)] += 1
        groups = {name: own for name, own in counts.items() if any(own)}
    else:
        groups = {"paths": [sum(column) for column in zip(*(one["score_histogram"] for one in metadata), strict=True)]}
    rates = Counter(_eighth(tree) for tree in trees if tree.offered())
    parts = [bars("Values of paths (prm_score)", names, groups, "value", Axis(title="paths"), stacked=True)]
    if rates:
        share = [f"{i / 8:.3g}" for i in range(9)]
        found = {"questions": [rates[i] for i in range(9)]}
        said_of = "How hard the questions are: at both ends there is nothing to choose."
        of_all = "right paths of all, to the nearest eighth"
        parts.append(bars("Right paths of a question", share, found, of_all, Axis(title="questions"), said=said_of))
    return parts


def _eighth(tree: ReasoningTree) -> int:
    each = [tree.paths[i].answers[0].correct for i in tree.offered()]
    return round(8 * sum(each) / len(each))


def _tasks(trees: Sequence[ReasoningTree]) -> list[Part]:
    if not trees:
        return []
    names = sorted({tree.task for tree in trees})
    found = {name: outcomes([tree for tree in trees if tree.task == name]) for name in names}
    labels = {**OUTCOMES, "mixed": "mixed questions"}
    shares = {
        label: [found[n]["mixed_share"] if key == "mixed" else found[n]["accuracy"][key] for n in names]
        for key, label in labels.items()
    }
    truncated = {n: sum(a.truncated for t in trees if t.task == n for p in t.paths for a in p.answers) for n in names}
    rows = [
        [name, f"{sum(tree.task == name for tree in trees):,}", *(_per_cent(own[i]) for own in shares.values()),
         f"{truncated[name]:,}"]
        for i, name in enumerate(names)
    ]  # fmt: skip
    table = Table("By task", ["task", "questions", *labels.values(), "answers cut off"], rows)
    axis = Axis(title="share of the questions", shows="share", range=(0, 1))
    return [bars("What comes out, by task", names, shares, "task", axis), table]


def _accounts(metadata: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for key, label in COUNTED.items():
        values = [one[key] for one in metadata if isinstance(one.get(key), int | float)]
        if values and (sum(values) or key not in ("stopped_early", "went_on")):
            silent = len(metadata) - len(values)
            rows.append([label, f"{sum(values):,.6g}" if key == "seconds" else f"{sum(values):,}",
                         f"{_count(silent, 'shard')} without it" if silent else ""])  # fmt: skip
    return Table("All shards together", ["", "count", ""], rows)


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _json_of(path: Path) -> dict[str, Any]:
    """Nothing where there is no such file. Raises BadFile when it is not JSON, or no object."""
    if not path.is_file():
        return {}
    found = load_json(path)
    if not isinstance(found, dict):
        raise BadFile(f"{path}: not an object, so not one of ours.")
    return found
