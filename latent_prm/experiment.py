"""Grids of trainings, measured and put into one table.

latent-prm experiment experiments/choosing.yaml        (the same command again carries on)

This room hides what is done only once: pools are grown once for all experiments of an output folder, a training that
was finished or measured is not repeated, one that was killed goes on. What is there is known by a digest of all that it
depends on, so that a changed file redoes what it changes and nothing else.
"""

from __future__ import annotations

import gc
import logging
import os
import shlex
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from latent_prm import files, preflight, resuming, screen, trainer
from latent_prm.demo import reader_folder
from latent_prm.evaluator import unseen
from latent_prm.findings import (
    LOW,
    MOST_COLUMNS,
    Cell,
    Found,
    Measured,
    csv_of,
    find,
    lines_of,
    markdown_of,
    measure,
    tables_of,
)
from latent_prm.grid import Arm, Grid, load_grid
from latent_prm.model import QwenLatentPRM
from latent_prm.options import CollectOptions, ExperimentOptions, TrainOptions
from latent_prm.plots import NoMatplotlib, axis_curve
from latent_prm.pretrained import find_device, find_folder, pick_device, versions
from latent_prm.stock import Stock, digest, of_model, quiet_again
from latent_prm.stopping import ending_on_sigterm

log = logging.getLogger(__name__)

SAME_WEIGHTS = (resuming.FREE | resuming.ROUNDING | {"model_path"}) - {"early_stopping_patience"}
"""Options of train that change nothing of what is learned, or the last bits only; the model is known by its bytes."""
FORMAT = 1
"""Of what is kept of a measurement: with another one it is measured again."""
PACK_TOKENS = 16384


def main(options: ExperimentOptions) -> None:
    """Run the stage: read the plan, grow what lacks, train and measure what lacks, write the tables.

    Raises ValueError (or one of its kin) in plain words where the plan is impossible, and at the end where a cell
    failed; KeyboardInterrupt and SystemExit(143) where it is stopped, with the tables of what there is written.
    """
    grid = load_grid(options.path)
    work = Work(grid, Path(options.output_dir))
    refuse_the_impossible(work)
    print(say_plan(work))
    if options.dry_run:
        return
    way_out = "Wait until it is through, or type another --output_dir."
    with ending_on_sigterm(), files.lock(work.folder / ".lock", "experiment", way_out):
        copy = Path(options.path).expanduser().read_bytes()
        files.atomic_write(work.folder / "experiment.yaml", lambda file: file.write(copy))
        try:
            failed = run(work, options)
        except (KeyboardInterrupt, SystemExit):
            log.warning("Stopped. Type the same command again to carry on.")
            raise
        finally:
            found = found_in(work, options)
            if written := write_tables(work, found):
                print_tables(work, found)
                print(f"Saved {', '.join(map(str, written))}", flush=True)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(work.cells)} trainings failed: {'; '.join(failed)}. Their reasons stand above. "
            "The same command again tries them, and nothing else."
        )
    print(f"Next: latent-prm report {shlex.quote(str(best_run(work, found)))}")


# --- the cells of a grid ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One arm with one seed."""

    arm: Arm
    seed: int
    key: str
    """What tells its weights from those of others."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


class Kept(NamedTuple):
    """What a file says of a measurement."""

    measured: Measured
    minutes: float
    """That its training took."""


class Work:
    """A grid in its folder: what there is to do, and what is done."""

    def __init__(self, grid: Grid, output_dir: Path) -> None:
        self.grid, self.folder = grid, output_dir / grid.name
        self.stock = Stock(output_dir / "pools")
        self.cells = [Training(arm, seed, self._key(arm, seed)) for seed in grid.seeds for arm in grid.arms]
        self.results = {name: f"measured-{self._about(pool)}.json" for name, pool in grid.evaluate.items()}
        """What the file is called that says what was measured on a pool."""
        self._kept: dict[Path, Kept] = {}

    def _key(self, arm: Arm, seed: int) -> str:
        train = {name: value for name, value in asdict(arm.train).items() if name not in SAME_WEIGHTS}
        asked = [(question.id, question.gold) for question in self.stock.first(arm.pool, arm.questions)]
        try:
            model = of_model(arm.train.model_path, None, True)
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from error
        start = {"model": model, "start": arm.start, "depth": arm.depth}
        return digest([train | {"seed": seed}, start, self.stock.key(arm.pool), asked])

    def _about(self, pool: CollectOptions) -> str:
        asked = [(question.id, question.gold) for question in self.stock.first(pool, -1)]
        return digest([FORMAT, self.stock.key(pool), asked])

    def run_folder(self, cell: Training) -> Path:
        """Where it is trained: the folder of its digest, whatever its arm was called, or one of its own name."""
        there = sorted(self.folder.glob(f"runs/*-{cell.key}"))
        slug = "".join(letter if letter.isalnum() or letter in ".=" else "-" for letter in cell.arm.name)[:60]
        return there[0] if there else self.folder / "runs" / f"{slug}-seed{cell.seed}-{cell.key}"

    def kept(self, cell: Training, pool: str) -> Kept | None:
        """What was measured of it on a pool, if it was."""
        path = self.run_folder(cell) / self.results[pool]
        if path not in self._kept and path.is_file():
            found = files.load_json(path)
            self._kept[path] = Kept(Measured(**found["measured"]), found["minutes"])
        return self._kept.get(path)

    def lacking(self, cell: Training) -> list[str]:
        """The pools that it was not measured on."""
        return [pool for pool in self.grid.evaluate if self.kept(cell, pool) is None]

    def size(self, cell: Training) -> int:
        """Questions that its training reads, all epochs together."""
        return len(self.stock.first(cell.arm.pool, cell.arm.questions)) * cell.arm.train.num_epochs

    def rows(self) -> list[Cell]:
        """All that was measured."""
        found = [(cell, pool, self.kept(cell, pool)) for cell in self.cells for pool in self.grid.evaluate]
        return [Cell(c.arm.name, c.seed, pool, kept.measured, self._facts(c, kept)) for c, pool, kept in found if kept]

    def _facts(self, cell: Training, kept: Kept) -> dict[str, Any]:
        read = len(self.stock.first(cell.arm.pool, cell.arm.questions))
        run = self.run_folder(cell).relative_to(self.folder)
        place = dict(cell.arm.place)
        return {**place, "train_questions": read, "minutes": kept.minutes, "run": run.as_posix()}


def refuse_the_impossible(work: Work) -> None:
    """What only the tasks, folders and devices can tell. Raises OSError, or ValueError naming the arm."""
    preflight.can_write(work.folder)
    preflight.can_write(work.stock.folder)
    for device in {arm.train.device for arm in work.grid.arms} | {pool.device for pool in work.grid.evaluate.values()}:
        find_device(device)
    for arm in work.grid.arms:
        learned = {question.id for question in work.stock.first(arm.pool, arm.questions)}
        for name, pool in work.grid.evaluate.items():
            asked = {question.id for question in work.stock.first(pool, -1)}
            if asked <= learned:
                raise ValueError(
                    f"arm {arm.name!r} would learn from all {len(asked)} questions of pool {name!r}, which it is "
                    'measured on. Type another split or seed for one of the two, as "split: validation".'
                )


def say_plan(work: Work) -> str:
    """What there is, what is to do, and how much that is."""
    grid, lines = work.grid, []
    pools = dict.fromkeys([*(arm.pool for arm in grid.arms), *grid.evaluate.values()])
    for pool in pools:
        total, lacks = len(work.stock.first(pool, -1)), work.stock.lacks(pool)
        state = "there" if not lacks else f"{lacks:,} to grow"
        noise = "" if pool.noise is None else f", noise {pool.noise:g}"
        place = work.stock.place(pool).name
        lines.append(f"pool   {place}: {pool.task}, {pool.split}{noise}: {total:,} questions, {state}")
    for arm in grid.arms:
        cells = [cell for cell in work.cells if cell.arm is arm]
        done = sum(not work.lacking(cell) for cell in cells)
        begun = sum(bool(work.lacking(cell)) and work.run_folder(cell).is_dir() for cell in cells)
        state = f"{done} of {len(cells)} done" + (f", {begun} begun" if begun else "")
        lines.append(f"arm    {arm.name}: {work.size(cells[0]):,} questions read; {state}")
    left = [cell for cell in work.cells if work.lacking(cell)]
    asked = sum(len(work.stock.first(pool, -1)) for pool in grid.evaluate.values())
    sizes = f"{sum(map(work.size, left)):,} questions to read, {asked * len(left):,} to score"
    return "\n".join([*lines, f"to do  {len(left)} of {len(work.cells)} trainings: {sizes}{_time_left(work, left)}"])


def _time_left(work: Work, left: Sequence[Training]) -> str:
    """In words, as far as what is done can tell: training takes as long as the questions it reads."""
    done = [(work.size(cell), work.kept(cell, next(iter(work.grid.evaluate)))) for cell in work.cells]
    known = [(size, kept.minutes) for size, kept in done if kept]
    if not known or not left:
        return ""
    pace = sum(minutes for _, minutes in known) / sum(size for size, _ in known)
    return f", about {pace * sum(map(work.size, left)):.0f} min at the pace so far"


# --- running ----------------------------------------------------------------------------------------------------------


def run(work: Work, options: ExperimentOptions) -> list[str]:
    """Train and measure what lacks; returns the names of the cells that failed, whose reasons were printed."""
    left = [cell for cell in work.cells if work.lacking(cell)]
    needed = [cell.arm.pool for cell in left] + [pool for pool in work.grid.evaluate.values() if left]
    for pool in dict.fromkeys(needed):
        work.stock.grow(pool)
    failed = []
    for number, cell in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {cell.name}", flush=True)
        try:
            work_on(work, cell, options)
            found = figures_of(work, cell)
        except Exception as error:  # a night's work does not end with one bad cell
            if os.environ.get("LATENT_PRM_TRACEBACK"):
                traceback.print_exc()
            failed.append(cell.name)
            reason = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            print(f"[{number}/{len(left)}] {cell.name}: ✗ {reason}", flush=True)
            continue
        rest = left[number:]
        more = f"; {len(rest)} left{_time_left(work, rest)}" if rest else ""
        print(f"[{number}/{len(left)}] {cell.name}: {found}{more}", flush=True)
        write_tables(work, found_in(work, options))
    return failed


def work_on(work: Work, cell: Training, options: ExperimentOptions) -> None:
    """Train, or go on; measure on every pool that lacks; keep of the run what scoring needs."""
    folder = work.run_folder(cell)
    best = folder / "best"
    if not (folder / resuming.FINISHED).is_file() or not best.is_dir():
        with quiet_again():
            trainer.main(training_options(work, cell, folder))
    minutes = round(files.load_json(folder / resuming.FINISHED)["training_time"] / 60, 2)
    model = QwenLatentPRM.from_pretrained(best, device=pick_device(cell.arm.train.device))
    for name in work.lacking(cell):
        pool = work.grid.evaluate[name]
        trees, _ = unseen(work.stock.trees(pool, -1), [best])
        found = measure(trees, model.score_trees(trees, pack_tokens=PACK_TOKENS))
        told = {"arm": cell.arm.name, "seed": cell.seed, "pool": name, "minutes": minutes, "versions": versions()}
        files.save_json({**told, "measured": asdict(found)}, folder / work.results[name])
    del model
    gc.collect()
    for path in folder.iterdir():  # what only a run that goes on needs: three times what scoring does
        if path.is_dir() and not path.is_symlink() and path.name.startswith(("checkpoint-", "epoch_", "final")):
            files.remove_folder(path)


def training_options(work: Work, cell: Training, folder: Path) -> TrainOptions:
    """What the trainer is told: to go on where there is something to go on from."""
    arm = cell.arm
    begun = folder.is_dir() and any(folder.glob("*/training_state.json"))
    data = work.stock.part(arm.pool, arm.questions)
    model = arm.train.model_path
    if arm.start == "random":
        model = str(random_start(work.folder / "starts", model, arm.depth, cell.seed))
    return replace(
        arm.train,
        model_path=model,
        data_dir=str(data),
        output_dir=str(folder),
        seed=cell.seed,
        resume="auto" if begun else None,
        log_level="WARNING" if arm.train.log_level == "INFO" else arm.train.log_level,
    )


def random_start(folder: Path, model_path: str, depth: int | None, seed: int) -> Path:
    """A model folder like another, but with fresh weights drawn from the seed, and of another depth where one is given.

    Raises ValueError when there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    found = find_folder(model_path, reader_folder)
    place = folder / digest([of_model(model_path, None, True), depth, seed])
    if place.is_dir():
        return place
    described = AutoConfig.from_pretrained(found, trust_remote_code=False).to_dict()
    if depth is not None:
        described |= {"num_hidden_layers": depth}
        described.pop("layer_types", None)  # one for each layer that it had
    config = AutoConfig.for_model(**{key: value for key, value in described.items() if key != "architectures"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)

    def write(temp: Path) -> None:
        model.save_pretrained(temp)
        AutoTokenizer.from_pretrained(found, trust_remote_code=False).save_pretrained(temp)

    files.commit_folder(place, write)
    return place


def figures_of(work: Work, cell: Training) -> str:
    """A cell's figures in a line, in per cent."""
    rows = [row for row in work.rows() if (row.arm, row.seed) == (cell.arm.name, cell.seed)]
    found = find(rows, [cell.arm.name], work.grid.figures, num_bootstrap=1)
    said = []
    for pool, arms in found.items():
        figures = ", ".join(f"{name} {100 * figure.mean:.1f}" for name, figure in arms[cell.arm.name].items())
        said.append(f"{pool}: {figures}" if len(found) > 1 else figures)
    return f"{'; '.join(said)} ({rows[0].facts['minutes']} min)"


# --- tables -----------------------------------------------------------------------------------------------------------


def found_in(work: Work, options: ExperimentOptions) -> Found:
    """The figures of all that was measured."""
    return find(work.rows(), [arm.name for arm in work.grid.arms], work.grid.figures, options.num_bootstrap)


def print_tables(work: Work, found: Found) -> None:
    """Print the figures: means, and the gains of the first; results.md has all intervals."""
    console = screen.console()
    for table in tables_of(found, work.rows(), work.grid.figures, work.grid.arms[0].name):
        console.print(table)
    if more := work.grid.figures[MOST_COLUMNS:]:
        console.print(f"\nAlso in results.md: {', '.join(more)}", soft_wrap=True)
    console.print()


def best_run(work: Work, found: Found) -> Path:
    """The first training of the arm whose first figure is the best, on the first pool."""
    name = work.grid.figures[0]
    means = {arm: own[name].mean for arm, own in next(iter(found.values()), {}).items() if name in own}
    best = (min if name in LOW else max)(means, key=means.__getitem__, default=work.grid.arms[0].name)
    return work.run_folder(next(cell for cell in work.cells if cell.arm.name == best))


def write_tables(work: Work, found: Found) -> list[Path]:
    """Write results.csv, results.md and, where an axis has numbers, results.png; nothing where nothing was measured."""
    rows, grid = work.rows(), work.grid
    if not rows:
        return []
    table = f"# {grid.name}\n\n{markdown_of(found, rows, grid.figures, grid.arms[0].name)}"
    lacking = [cell.name for cell in work.cells if work.lacking(cell)]
    if lacking:
        table += f"\nNot finished, and not in these figures: {'; '.join(lacking)}.\n"
    for name, text in (("results.csv", csv_of(rows, grid.figures)), ("results.md", table)):
        files.atomic_write(work.folder / name, lambda file, text=text: file.write(text.encode()))
    along = lines_of(found, {arm.name: dict(arm.place) for arm in grid.arms}, grid.figures[0])
    said = [work.folder / "results.csv", work.folder / "results.md"]
    if along and along[1]:
        try:
            axis_curve(*along, grid.figures[0], work.folder / "results.png")
            said.append(work.folder / "results.png")
        except NoMatplotlib as missing:
            log.warning("%s", missing)
    return said
