"""Another program's trees → our shards: ``latent-prm convert their_data --output_dir prm_data``.

This room hides how the shards are cut and named, and that a conversion carries on where it was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from latent_prm import files, foreign, inventory, preflight, screen, shards
from latent_prm.files import BadFile
from latent_prm.foreign import Harvest
from latent_prm.options import ConvertOptions
from latent_prm.tree import ReasoningTree

SHARD_SIZE = 500
"""Questions."""


def main(options: ConvertOptions) -> None:
    """Run the stage: read, look what is there already, write, report.

    Raises:
        FileNotFoundError: there is no nested file in the folder.
        ValueError: a file is not what it should be (a BadFile, which names it and the sample), or what stands in the
            output folder does not go with it.
    """
    logging.basicConfig(format="[Converter] %(message)s")
    inventory.refuse_strangers(Path(options.output_dir))
    preflight.can_write(options.output_dir)
    harvest = read(options)
    fresh = missing(harvest.trees, options)
    held = (path.latents for tree in fresh for path in tree.paths)
    needed, way_out = sum(latents.nbytes for latents in held), "Type another --output_dir."
    preflight.has_room(options.output_dir, needed, f"the trees of {len(fresh):,} questions", way_out)
    written = write(fresh, harvest, options)
    report(harvest, fresh, written, options)


def read(options: ConvertOptions) -> Harvest:
    """All nested files of the folder. Raises as `main`."""
    folder = Path(options.path)
    if folder.resolve() == Path(options.output_dir).resolve():
        raise ValueError(f"--output_dir is {options.path} itself. Choose another folder: shards stand by themselves.")
    paths = sorted(folder.glob("*.pt"))
    for metadata in filter(Path.exists, map(shards.metadata_path, paths)):
        files.load_json(metadata)  # a damaged one is named here: it must not make a file one of another kind
    paths = [path for path in paths if foreign.beside(path) is not None]
    harvest = foreign.read(paths, options.use_heuristic_scores)
    if harvest.bad:
        raise BadFile("\n".join([*harvest.bad, "Move what is damaged elsewhere, and type the same command again."]))
    if not harvest.trees:
        there = ", ".join(path.name for path in sorted(folder.glob("*.pt"))[:4])
        found = f"its .pt files ({there}, …) are of another kind or empty" if there else "it has no .pt files"
        raise FileNotFoundError(f"No nested trees found in {folder}: {found}. Type the folder that they are in.")
    return harvest


def missing(trees: Sequence[ReasoningTree], options: ConvertOptions) -> list[ReasoningTree]:
    """The trees whose questions are in no finished shard of the output folder. Raises as `main`."""
    width = trees[0].paths[0].latents.shape[1]
    for path in shards.scan(options.output_dir)[0]:
        if (other := shards.read_metadata(path)["latent_dim"]) != width:
            raise ValueError(f"{path} has latents {other} wide, not {width}. Choose another --output_dir.")
    done = shards.finished_questions(options.output_dir)
    return [tree for tree in trees if tree.question_id not in done]


def write(trees: Sequence[ReasoningTree], harvest: Harvest, options: ConvertOptions) -> list[Path]:
    """Shards of `SHARD_SIZE` questions under names that are free; where they stand."""
    folder, taken = Path(options.output_dir), {path.stem for path in shards.scan(options.output_dir)[0]}
    names = (name for k in count() if (name := f"converted_{k:04d}") not in taken)
    parts = [list(trees[k : k + SHARD_SIZE]) for k in range(0, len(trees), SHARD_SIZE)]
    facts = describe(harvest, options)
    return [
        shards.write_shard(part, folder, name, {"task": ",".join(sorted({tree.task for tree in part}))} | facts)
        for name, part in zip(names, parts, strict=False)
    ]


def describe(harvest: Harvest, options: ConvertOptions) -> dict[str, Any]:
    """What the metadata of every shard of this conversion says alike."""

    def said(key: str) -> str:
        return ",".join(sorted({source.said.get(key, foreign.UNKNOWN) for source in harvest.sources}))

    return {
        "model": said("model"),
        "split": said("split"),
        "method": said("method"),
        "settings": {"layout": "nested", "use_heuristic_scores": options.use_heuristic_scores},
        "sources": [{"file": source.name, "sha256": source.sha256} for source in harvest.sources],
        "conversion": dict(harvest.table()) | {"left out": {why: len(at) for why, at in harvest.left_out.items()}},
    }


def report(harvest: Harvest, fresh: Sequence[ReasoningTree], written: Sequence[Path], options: ConvertOptions) -> None:
    """Print what was read, what became of it, and what to type next."""
    console = screen.console()
    table = Table(box=box.SIMPLE, padding=(0, 1), title=Text(options.path), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for name, number in harvest.table():
        table.add_row(name, f"{number:,}", _MEANING.get(name, ""))
    for reason, places in harvest.left_out.items():
        table.add_row(Text(f"left out: {reason}"), f"{len(places):,}", Text(f"first: {places[0]}"))
    console.print(table)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for doubt in harvest.doubts():
        say(doubt, "yellow")
    if there := len(harvest.trees) - len(fresh):
        say(f"{there} questions are in {options.output_dir} already, and were left as they are.")
    if written:
        say(f"Wrote {len(fresh)} questions to {options.output_dir}: {', '.join(path.name for path in written)}.")
    say(f"Next: latent-prm inspect {options.output_dir} --show 3")


_MEANING = {
    "growths": "times that a question was grown; all of a question are one tree",
    "labelled": "with a prm_score",
    "censored": "without one: unknown, which is not 0",
    "labels withdrawn": "no graded answer below them; among the censored",
    "labels corrected": "they were not what the graded answers, or known labels, below them give",
}
