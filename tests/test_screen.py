"""screen.py: what goes into a file is neither folded nor drawn over itself, and a terminal shows it as ever."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.table import Table
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from latent_prm import screen
from latent_prm.logbook import Terminal
from latent_prm.pretrained import fetch


class Seen(io.StringIO):
    """A terminal, as far as anybody can tell."""

    def isatty(self) -> bool:
        return True


def wide() -> Table:
    table = Table()
    for _ in range(9):
        table.add_column("nine long")
    table.add_row(*["123456789"] * 9)
    return table


def test_a_table_folds_at_the_edge_of_a_terminal_but_not_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folded, whole = Seen(), io.StringIO()
    screen.console(file=folded).print(wide())
    screen.console(file=whole).print(wide())
    assert "123456789" not in folded.getvalue() and whole.getvalue().count("123456789") == 9


def counted(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO) -> str:
    """What stderr shows of a bar over a hundred things, with a word beside it and a log line in the middle."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with screen.bar(total=100, desc="Counting") as bar:
        for number in range(100):
            bar.set_postfix_str(f"at {number}")
            bar.update()
            if number == 50:
                Terminal().emit(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "half of it"}))
    return stderr.getvalue()


def test_a_bar_in_a_file_is_its_first_and_its_last_frame_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said = counted(monkeypatch, io.StringIO())
    first, warned, last = said.split("\n")[:3]
    assert "Counting:   0%" in first and warned == "half of it" and "Counting: 100%" in last and "at 99" in last
    assert "\r" not in said and not said.split("\n", 3)[3].strip()


def test_a_bar_in_a_file_says_where_it_is_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(sys, "stderr", said)
    with screen.bar(total=100) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        monkeypatch.setattr(screen, "time", lambda: now[0])
        bar.start_t = bar.last_print_t = now[0]
        for _ in range(100):
            now[0] += 1
            bar.update()
    shares = [line.partition("%")[0].strip() for line in said.getvalue().split("\n") if "%" in line]
    assert shares == ["0", "30", "60", "90", "100"]


@pytest.mark.parametrize("stderr", [io.StringIO(), Seen()], ids=["file", "terminal"])
def test_what_transformers_loads_is_drawn_on_a_terminal_alone(
    stderr: io.StringIO, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers_logging.enable_progress_bar()
    monkeypatch.setattr(sys, "stderr", stderr)
    fetch(AutoModel, str(tiny_lm), trust_remote_code=False)
    assert ("Loading weights" in stderr.getvalue()) == stderr.isatty()
    assert transformers_logging.is_progress_bar_enabled()  # for whoever loads something else


def test_a_bar_on_a_terminal_is_drawn_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = counted(monkeypatch, Seen())
    assert said.count("\r") > 100 and "half of it\n" in said and "at 17" in said
