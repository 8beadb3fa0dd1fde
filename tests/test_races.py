"""Killed collections go on, and of two that want one folder one has it; the torture's rows A3 and A6, reduced."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import races


@pytest.mark.slow
def test_collections_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    assert "the same 24 questions, none twice" in races.collected(tmp_path, 1, count=5)


@pytest.mark.slow
def test_of_two_processes_on_one_folder_just_one_wins(tmp_path: Path) -> None:
    assert "1 races for a run folder and 1 for a shard" in races.raced(tmp_path, 1, count=1)


def test_a_shard_that_is_not_the_one_there_was_is_told(tmp_path: Path) -> None:
    whole = {"one.pt": "0" * 64}
    with pytest.raises(AssertionError, match="a finished shard was touched"):
        races._check_untouched(tmp_path, whole, whole)
