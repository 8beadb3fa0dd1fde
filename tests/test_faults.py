"""Killed, stopped, refused: what is written and said then; the torture's rows A1, A2, A4, A5 and B1, reduced."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks import faults, torture
from latent_prm import files, shards
from latent_prm.checkpoint import link_checkpoint
from latent_prm.collector import ShardWriter
from latent_prm.logbook import log_lines
from latent_prm.tree import ReasoningTree
from latent_prm.watching import Watch

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse(*_: Any) -> NoReturn:
    """As a full disk does: without a word on which file it was."""
    raise OSError(*FULL.args)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files._HashingWriter, "flush", refuse)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_the_path_what_is_needed_and_what_is_free(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(files.DiskFull) as caught:
        files.atomic_write(tmp_path / "a.bin", lambda file: file.write(bytes(5000)))
    said = str(caught.value)
    assert caught.value.filename == str(tmp_path / "a.bin") and caught.value.errno == errno.ENOSPC
    assert re.search(r"No space left on device: it needs 8,192 bytes or more, and [\d,]+ are free", said)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_did_not_fit_is_told_as_a_whole_and_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(temp: Path) -> None:
        files.atomic_write(temp / "one", lambda file: file.write(bytes(9000)))
        monkeypatch.setattr(os, "fsync", refuse)
        files.atomic_write(temp / "two", lambda file: file.write(bytes(100)))

    with pytest.raises(OSError, match=r"it needs 16,384 bytes or more") as caught:
        files.commit_folder(tmp_path / "best", write)
    assert caught.value.filename == str(tmp_path / "best" / "two")
    assert os.listdir(tmp_path) == []


def test_another_refusal_keeps_its_kind_and_gets_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: Any) -> NoReturn:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fsync", forbid)
    with pytest.raises(PermissionError) as caught:
        files.commit_folder(tmp_path / "best", lambda temp: (temp / "x").touch())
    assert caught.value.filename == str(tmp_path / "best")


def test_a_log_line_and_a_lock_that_do_not_fit_name_their_file(
    tmp_path: Path, full_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(files.DiskFull, match=r"a\.jsonl.*|.*a\.jsonl"):
        files.append(tmp_path / "a.jsonl", "{}\n")
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(files.DiskFull, match=r"\.lock"), files.lock(tmp_path / ".lock", "training", ""):
        pass


def test_a_checkpoint_that_can_be_neither_linked_nor_copied_is_told_by_its_name(
    tmp_path: Path, full_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "epoch_1").mkdir()
    (tmp_path / "epoch_1" / "config.json").write_text("{}")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(files.DiskFull) as caught:
        link_checkpoint(tmp_path / "epoch_1", tmp_path / "best")
    assert caught.value.filename == str(tmp_path / "best" / "config.json")


def test_a_log_file_on_a_full_disk_neither_ends_a_run_nor_hides_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.log").symlink_to("/dev/full")  # refuses every byte
    with pytest.raises(ValueError, match="the reason"), log_lines(tmp_path / "training.log", "INFO"):
        for _ in range(3):
            logging.getLogger("latent_prm.run").info("a line")
        raise ValueError("the reason")
    printed = capsys.readouterr()
    assert printed.out.count("a line") == 3
    assert printed.err.count("No space left on device: it lacks lines from here on") == 1
    assert "Traceback" not in printed.err


def test_every_line_and_every_file_of_a_description_passes_the_one_writer(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latent_prm.model import QwenLatentPRM

    written: Counter[str] = Counter()
    write = files._HashingWriter.write

    def counted(self: Any, data: Any, /) -> int:
        written[Path(str(self.name)).parent.name] += 1
        return write(self, data)

    monkeypatch.setattr(files._HashingWriter, "write", counted)
    (tmp_path / "c").mkdir()
    QwenLatentPRM(tiny_lm).save_description(tmp_path / "c")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert written["c"] == 3
    (tmp_path / "run").mkdir()
    Watch(tmp_path / "run", [], "none").record(1, 1, loss=0.5)
    assert written["run"] == 2  # begun empty, then the line


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_what_was_grown_is_kept_once_whichever_sync_of_a_shard_fails(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tree: Callable[..., ReasoningTree]
) -> None:
    syncs, fsync = [0], os.fsync

    def once(number: int) -> None:
        syncs[0] += 1
        if syncs[0] == fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(number)

    monkeypatch.setattr(os, "fsync", once)
    writer = ShardWriter(tmp_path, "trees", {"settings": {"num_paths": 6}})
    writer.add([make_tree(0)], Counter())
    with pytest.raises(OSError, match=r"trees_00000.*|Input/output"):
        writer.commit()
    writer.commit()  # on the way out, as the collector does
    assert [tree.question_id for tree in shards.load_trees(tmp_path)] == ["q0"]
    assert syncs[0] == (4 if fails == 4 else fails + 4)


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_a_missed_row_is_said_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missed(folder: Path, seed: int) -> str:
        raise AssertionError(f"seed {seed}:\n2 of 30 differ")

    def broken(folder: Path, seed: int) -> str:
        raise KeyError("x")

    def lacking(folder: Path, seed: int) -> str:
        raise ModuleNotFoundError("No module named 'fastapi'")

    def fine(folder: Path, seed: int) -> str:
        return f"{folder.name} found {len(list(folder.iterdir()))} files"

    for name, row in {"A1": missed, "A2": broken, "A4": fine, "A5": lacking}.items():
        monkeypatch.setitem(faults.ROWS, name, row)
    assert torture.main(torture.Options(rows="A4,A1,a2,A5", seed=7, folder=tmp_path)) == 2
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "A1 MISSED 0 s seed 7: 2 of 30 differ",
        "A2 MISSED 0 s KeyError: 'x'",
        "A4 passed 0 s A4 found 0 files",
        "A5 not run 0 s No module named 'fastapi'",
        "1 passed, 2 missed, 1 not run",
    ]


def test_rows_and_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no row 'A9'. Type some of: A1, A2, A3"):
        torture.main(torture.Options(rows="A1,A9"))
    (tmp_path / "A1").mkdir()
    with pytest.raises(ValueError, match=r"A1 is there already. Type another --folder"):
        torture.main(torture.Options(rows="A1", folder=tmp_path))
    assert set(faults.ROWS) == set(torture.PLACES["faults"].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "count", "said"),
    [
        ("A1", 4, r"\d+ kills \([1-9]\d* inside a save, [1-9]\d* at an epoch's end"),
        ("A2", 2, r"at 2 of the 1\d\d points of a checkpoint's .* and 2 of the \d+ of a shard's: .*; 16 resumed"),
        ("A4", 2, r"accumulation 1 \(\d+ steps\), 4 \(\d+ steps\), 7 \(\d+ steps\): resumed from each of the first 2"),
        ("A5", 2, r"2 times SIGTERM, 1 times a second one inside the save: exit code 143, .* within \d+\.\d s"),
        ("B1", 3, r"full at 3 points \(.*\): earlier checkpoints' hashes unchanged"),
    ],
    ids=list(faults.ROWS),
)
def test_row(row: str, count: int, said: str, tmp_path: Path) -> None:
    function: Any = faults.ROWS[row]
    assert re.search(said, found := function(tmp_path, 0, count=count)), found
