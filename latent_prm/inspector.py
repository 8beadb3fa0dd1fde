"""What is in a folder of shards, as a table: ``latent-prm inspect prm_data``, and some trees: ``--show 3``.

This room hides the drawing. For the table it reads metadata and checks sums, but loads no latents.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from latent_prm import files, screen, shards
from latent_prm.foreign import Harvest
from latent_prm.options import InspectOptions
from latent_prm.tree import ReasoningTree

BLOCKS = " ▁▂▃▄▅▆▇█"
HEADERS = ("ques-\ntions", "paths", "label-\nled", "width", "mixed", "noise\nfree", "ran-\ndom", "majo-\nrity", "any")


def main(options: InspectOptions) -> None:
    """Print one row per shard, a total, the trees that are asked for, and by name whatever is unfinished or damaged.

    Raises:
        shards.NoData: there is no ``.pt`` in the folder.
        files.BadFile: a shard is damaged; said after the table of the others.
    """
    finished, unfinished = shards.scan(options.path)
    if not finished and not unfinished:
        raise shards.no_data(options.path, "type another folder")
    console = screen.console()
    if harvest := shards.nested_files(options.path):
        return _nested(console, options, harvest)
    sound: dict[str, dict[str, Any]] = {}
    damaged: list[str] = []
    for path in finished:
        try:
            metadata = shards.read_metadata(path)
            files.verify(path, metadata["sha256"])
            sound[path.stem] = metadata
        except files.BadFile as error:
            damaged.append(str(error))
    if sound:
        table = _table(options.path, sound)
        least = Measurement.get(console, console.options.update(width=screen.WIDE), table).minimum
        if least > console.width:  # else rich takes what lacks from the names, to the last letter
            table.width = least
        console.print(table, crop=False)
        console.print("Histogram: labelled paths by prm_score, from 0 (left) to 1 (right).", highlight=False)
    _show(console, _chosen((shards.read_shard(path) for path in finished if path.stem in sound), options.show))
    for path in unfinished:
        _say(console, f"Not read: {path.name}: {shards.why_left_out(path)}")
    if damaged:
        _say(console, f"Damaged: {len(damaged)} of {len(finished)} shards.")
        raise files.BadFile("\n".join([*damaged, shards.to_repair(options.path)]))


def histogram(counts: list[int]) -> str:
    """A bar of block characters, one per bin, as high as the bin is full against the fullest; never empty if not 0."""
    most = max(counts, default=0) or 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // most)] for count in counts)


def _table(folder: str | pathlib.Path, sound: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, padding=0, title=Text(str(folder)))
    table.add_column("shard", overflow="fold", min_width=8)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("prm_score\n0        1", no_wrap=True, min_width=shards.BINS)
    for name, metadata in sound.items():
        table.add_row(Text(name), *_cells(metadata))
    table.add_section()
    table.add_row(f"total: {len(sound)}", *_cells(_total(list(sound.values()))), style="bold")
    return table


def _cells(metadata: dict[str, Any]) -> list[str]:
    accuracy = [metadata["accuracy"][key] for key in shards.ACCURACIES]
    counts = [f"{metadata[key]:,}" for key in ("num_questions", "num_paths", "num_labelled")]
    shares = ["-" if share is None else f"{share:.2f}" for share in (metadata["mixed_share"], *accuracy)]
    return [*counts, str(metadata["latent_dim"]), *shares, histogram(metadata["score_histogram"])]


def _total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The metadata of all shards together; shares are over all questions."""

    def share(pairs: list[tuple[float | None, int]]) -> float | None:
        known = [(value, weight) for value, weight in pairs if value is not None]
        return sum(value * weight for value, weight in known) / sum(w for _, w in known) if known else None

    sizes = [part["num_questions"] for part in parts]
    total: dict[str, Any] = {
        key: sum(part[key] for part in parts) for key in ("num_questions", "num_paths", "num_labelled")
    }
    return total | {
        "latent_dim": "/".join(str(width) for width in sorted({part["latent_dim"] for part in parts})),
        "mixed_share": share([(part["mixed_share"], size) for part, size in zip(parts, sizes, strict=True)]),
        "accuracy": {
            key: share([(part["accuracy"][key], size) for part, size in zip(parts, sizes, strict=True)])
            for key in shards.ACCURACIES
        },
        "score_histogram": [sum(column) for column in zip(*(part["score_histogram"] for part in parts), strict=True)],
    }


def _nested(console: Console, options: InspectOptions, harvest: Harvest) -> None:
    """Another program's files: what was counted, instead of a table."""
    for sentence in harvest.say():
        _say(console, sentence)
    _show(console, _chosen([harvest.trees], options.show))
    _say(console, f"Next: latent-prm convert {options.path} --output_dir FOLDER")
    if harvest.bad:
        raise files.BadFile("\n".join(harvest.bad))


def _chosen(parts: Iterable[list[ReasoningTree]], count: int) -> list[ReasoningTree]:
    """The first ``count`` trees whose outcomes are mixed; where there are too few, the first others after them."""
    mixed: list[ReasoningTree] = []
    others: list[ReasoningTree] = []
    for trees in parts if count else []:
        for tree in trees:
            (mixed if tree.mixed else others).append(tree)
        del others[count:]
        if len(mixed) >= count:
            break
    return [*mixed, *others][:count]


def _show(console: Console, trees: list[ReasoningTree]) -> None:
    for tree in trees:
        text = tree.show(min(console.width, 120))
        console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
