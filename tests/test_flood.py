"""A few of each of the floods of `benchmarks/flood.py`; all of them run in `benchmarks/torture.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import flood


@pytest.mark.slow
def test_the_server_stands_a_small_flood(tmp_path: Path) -> None:
    said = flood.flood(tmp_path, 0, count=120, seconds=2.0)
    assert "MiB in chunks: 413" in said and "120 fuzzed bodies" in said and "120 slow connections" in said


def test_a_path_is_worth_the_same_alone_and_among_others(tmp_path: Path) -> None:
    assert flood.alone_and_together(tmp_path, 0, count=32).startswith("32 paths alone and in batches of 32")
