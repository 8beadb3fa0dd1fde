"""Pools of questions, grown once: hides where a pool's trees lie, what tells them from others, and what lacks of them.

It also hides how little stages say when they are parts of something larger.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from latent_prm import collector, files, shards
from latent_prm.demo import reader_folder
from latent_prm.options import CollectOptions
from latent_prm.pretrained import find_folder
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree

SAME_TREES = {"output_dir", "max_samples", "batch_size", "shard_size", "compile", "engine", "num_workers", "shard"}
SAME_TREES |= {"dry_run", "skip_bad_files", "device"}
"""Options of collect that change no path of a question."""


class Stock:
    """Trees on disk, shared by all experiments of an output folder: a folder per reasoner and way of growing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions = cache(_questions)
        """All of a pool, in order. Raises ValueError as a task does."""
        self._loaded: dict[Path, dict[str, ReasoningTree]] = {}

    def first(self, pool: CollectOptions, count: int) -> list[Question]:
        """The first so many; -1: all."""
        drawn = self.questions(pool.task, pool.split, pool.seed, pool.max_samples)
        return list(drawn if count == -1 else drawn[:count])

    def key(self, pool: CollectOptions) -> str:
        """What tells its trees from others. A pool with more questions of the same kind has the same."""
        told = {name: value for name, value in asdict(pool).items() if name not in SAME_TREES}
        read = [part.rpartition(":")[2] for part in (*pool.task.split(","), pool.pipeline)]
        own = {name: files.digest(name) for name in read if Path(name).is_file()}
        return digest(told | {"model_path": of_model(pool.model_path, pool.revision), "files": own})

    def place(self, pool: CollectOptions) -> Path:
        """Where its trees are, or will be."""
        return self.folder / f"{pool.split}-{self.key(pool)}"

    def lacks(self, pool: CollectOptions) -> int:
        """How many of its questions are not grown."""
        there = shards.finished_questions(self.place(pool), pool.skip_bad_files)
        return sum(question.id not in there for question in self.first(pool, -1))

    def grow(self, pool: CollectOptions) -> None:
        """Grow what lacks. Raises as the collector does."""
        if self.lacks(pool):
            with quiet_again():
                collector.main(replace(pool, output_dir=str(self.place(pool))), alone=False)
            self._loaded.pop(self.place(pool), None)

    def trees(self, pool: CollectOptions, count: int) -> list[ReasoningTree]:
        """Of the first so many questions, in their order; their latents stay on disk until they are read."""
        place = self.place(pool)
        if place not in self._loaded:
            self._loaded[place] = {tree.question_id: tree for tree in shards.load_trees(place, pool.skip_bad_files)}
        found = self._loaded[place]
        return [found[question.id] for question in self.first(pool, count) if question.id in found]

    def part(self, pool: CollectOptions, count: int) -> Path:
        """A folder with the first so many questions and no other: the pool's own, or a copy beside it."""
        place, wanted = self.place(pool), self.first(pool, count)
        whole = shards.finished_questions(place, pool.skip_bad_files)
        if len(whole) <= len(wanted):
            return place
        part = place.with_name(f"{place.name}-first{len(wanted)}")
        if not part.is_dir():
            metadata = shards.read_metadata(shards.scan(place)[0][0])
            said = ("task", "model", "weights", "dtype", "split", "seed", "settings")
            facts = {key: metadata[key] for key in said if key in metadata}
            trees, size = self.trees(pool, count), pool.shard_size

            def write(folder: Path) -> None:
                for start in range(0, len(trees), size):
                    shards.write_shard(trees[start : start + size], folder, f"first_{start // size:05d}", facts)

            files.commit_folder(part, write)
            self._loaded.pop(place, None)  # it may be large, and is not measured on
        return part


def _questions(task: str, split: Any, seed: int, count: int) -> tuple[Question, ...]:
    return tuple(load_task(task).questions(split, seed, count))


@contextmanager
def quiet_again() -> Iterator[None]:
    """Inside no bars of what is loaded; afterwards as much is said as before, whatever a stage changed of that."""
    ours, root = logging.getLogger("latent_prm"), logging.getLogger()
    level, handlers, bars = ours.level, list(root.handlers), transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        ours.setLevel(level)
        root.handlers[:] = handlers
        if bars:
            transformers_logging.enable_progress_bar()


@cache
def of_model(model_path: str, revision: str | None = None, backbone: bool = False) -> str:
    """What tells a model from others: a digest of its folder's files, or its name on the hub."""
    found = find_folder(model_path, reader_folder) if backbone else find_folder(model_path)
    if not Path(found).is_dir():
        return f"{found}@{revision or 'main'}"
    parts = sorted(path for path in Path(found).iterdir() if path.is_file() and path.suffix != ".md")
    return digest([[path.name, files.digest(path)] for path in parts])


def digest(facts: Any) -> str:
    """12 hex digits that tell these facts from others."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
