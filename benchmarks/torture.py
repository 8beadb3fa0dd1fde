"""Everything that RELIABILITY's table promises, tried with its figures: one line per row, and how many were missed.

    python benchmarks/torture.py                          # all rows, under half an hour on two cores
    python benchmarks/torture.py --rows A1,C3 --seed 1    # some, with other moments and other damage

Each row gets an empty folder below ``--folder`` (left out: a temporary one) and says what it did; a row that fails says
what it missed, and the others still run. What cannot run here, because an extra is not installed, is said too. Exit
code: 0 when no row was missed, else 1.
"""

from __future__ import annotations

import os

# Before any import that reads them: no model hub, and one thread, which is fastest for tiny models.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import shorten

import tyro

PLACES = {"faults": "A1 A2 A4 A5 B1", "races": "A3 A6", "hostile": "C1 C2", "oddities": "C3 C4 C5", "flood": "E1 E2"}
"""Which file has which rows."""
TABLE = sorted(" ".join(PLACES.values()).split())


LONGEST = 2000
"""Characters of a line, however much a row says that it missed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to try."""

    rows: str = ""
    """Names with commas; left out: all."""
    seed: int = 0
    """Of everything that is drawn."""
    folder: Path | None = None
    """Where to work. Left out: a temporary folder. It may grow to a few hundred MB, and row A2 syncs it often."""

    def chosen(self) -> list[str]:
        """The rows, in the table's order. Raises ValueError when there is no such row."""
        names = [name.strip().upper() for name in self.rows.split(",")] if self.rows else TABLE
        if unknown := [name for name in names if name not in TABLE]:
            raise ValueError(
                f"--rows is {self.rows!r}, but there is no row {unknown[0]!r}. Type some of: {', '.join(TABLE)}."
            )
        return [name for name in TABLE if name in names]


class CannotRun(Exception):
    """A row whose file is not there, or which needs what is not installed; the message says what."""


def row_of(name: str) -> Callable[[Path, int], str]:
    """The function that tries a row. Raises CannotRun."""
    module = next(module for module, names in PLACES.items() if name in names.split())
    full = f"{__package__}.{module}" if __package__ else module
    try:
        return import_module(full).ROWS[name]
    except ModuleNotFoundError as error:
        raise CannotRun(f"there is no benchmarks/{module}.py" if error.name == full else f"{error}") from error


def attempt(name: str, folder: Path, seed: int) -> tuple[str, str]:
    """How a row went (passed, MISSED, not run), and what is to be said of it, in one line."""
    try:
        outcome, said = "passed", row_of(name)(folder, seed)
    except (CannotRun, ModuleNotFoundError) as error:
        outcome, said = "not run", f"{error}"
    except AssertionError as error:
        outcome, said = "MISSED", f"{error}"
    except Exception as error:  # a row that breaks has shown nothing, and must not stop the others
        outcome, said = "MISSED", f"{type(error).__name__}: {error}"
    return outcome, shorten(said, LONGEST)


def main(options: Options) -> int:
    """Try the rows one after another; returns how many were missed. Raises ValueError when a row's folder is there."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        for name in options.chosen():
            folder = Path(options.folder or scratch, name).absolute()
            if folder.exists():
                raise ValueError(f"{folder} is there already. Type another --folder: each row needs an empty one.")
            folder.mkdir(parents=True)
            began = time.monotonic()
            if sys.stderr.isatty():
                print(f"{name} …", end="\r", file=sys.stderr)
            outcome, said = attempt(name, folder, options.seed)
            outcomes.append(outcome)
            print(f"{name}  {outcome:<7}  {time.monotonic() - began:5.0f} s  {said}", flush=True)
    counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "MISSED", "not run")}
    print(", ".join(f"{number} {outcome.lower()}" for outcome, number in counts.items()))
    return counts["MISSED"]


if __name__ == "__main__":
    try:
        sys.exit(min(1, main(tyro.cli(Options, use_underscores=True))))
    except (ValueError, OSError) as error:
        sys.exit(f"✗ ERROR: {error}")
