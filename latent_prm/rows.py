"""Local files of questions, row by row: .jsonl, .json, .csv and .parquet.

This room hides how each kind is read and checked, and names the line or row in which something is wrong.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

DATA = 'pip install "latent-prm[data]"'


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a .jsonl, .json, .csv or .parquet file, each with the words that name it: ``q.csv, line 3``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what its name says, or pyarrow is missing.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise FileNotFoundError(f"No such question file: {path}. Type the path of a {', '.join(READERS)} file.")
    yield from reader(path)


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not JSON in UTF-8 ({error}). Each line must be one object.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not a JSON object. Each line must be one.")
            yield where, row


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    """A list of objects, or lines as those of a .jsonl file, as some call it."""
    written = path.read_bytes()
    if not written.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(written.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON in UTF-8 ({error}). Write a list of objects, or one in each line."
        ) from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is not a JSON object. Each row must be one.")
        yield f"{path}, row {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        try:
            header = next(reader, [])
            if twice := [name for name in header if name and header.count(name) > 1]:
                raise csv.Error(f"its header names the column {twice[0]!r} twice: rename one")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    raise csv.Error(f"{len(cells)} cells under a header of {len(header)}")
                if cells:
                    yield f"{path}, line {line}", dict(zip(header, cells, strict=False))
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {line} is not CSV in UTF-8 ({error}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: a .parquet file is read with pyarrow, which is missing here: {DATA}") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}, after row {number}: not a readable .parquet file ({first_line(error)}).") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""By the ending of a file's name."""


def first_line(error: Exception) -> str:
    """What an error says, its first line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
