"""Files: written whole or not at all, and read as data or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest
import torch

from latent_prm import files
from latent_prm.files import BadFile


class Canary:
    """Its pickle creates a file when it is loaded as code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_what_is_written_is_what_was_hashed(tmp_path: Path):
    path = tmp_path / "new" / "a.bin"
    digest = files.atomic_write(path, lambda file: (file.write(b"one "), file.write(b"two")))
    assert path.read_bytes() == b"one two"
    assert digest == hashlib.sha256(b"one two").hexdigest()
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.pt"
    files.save_tensors({"x": torch.zeros(3)}, path)
    before = path.read_bytes()

    def write(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        files.atomic_write(path, write)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("fails_at", [1, 2, 3, 5, 8])
def test_a_full_disk_at_any_write_names_the_path_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
):
    path = tmp_path / "a.pt"
    files.save_tensors({"x": torch.zeros(3)}, path)
    before = path.read_bytes()
    writes = 0

    class FullDisk(files._HashingWriter):
        def write(self, data: Any, /) -> int:
            nonlocal writes
            writes += 1
            if writes == fails_at:
                self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise self.error
            return super().write(data)

    monkeypatch.setattr(files, "_HashingWriter", FullDisk)
    with pytest.raises(OSError, match="No space left") as caught:
        files.save_tensors({"x": torch.ones(30), "y": torch.ones(3)}, path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("write", [files.atomic_write, files.commit_folder])
def test_a_disk_that_is_read_only_is_told_by_the_path_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object]
):
    def refuse(*given: Any, **more: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))

    monkeypatch.setattr(io, "FileIO", refuse)  # root writes anywhere, and no test may mount a disk
    monkeypatch.setattr(Path, "unlink", refuse)
    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, **more: real(self, **more) if more else refuse(self))
    with pytest.raises(OSError, match="Read-only") as caught:
        write(tmp_path / "a.json", lambda _: None)
    assert caught.value.filename == str(tmp_path / "a.json")


def test_a_failed_fsync_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"a\.json"):
        files.save_json({}, tmp_path / "a.json")
    assert os.listdir(tmp_path) == []


def test_the_same_tensors_have_the_same_bytes_under_any_name(tmp_path: Path):
    one = files.save_tensors({"x": torch.arange(5.0)}, tmp_path / "one.pt")
    two = files.save_tensors({"x": torch.arange(5.0)}, tmp_path / "folder" / "two.bin")
    assert one == two == hashlib.sha256((tmp_path / "one.pt").read_bytes()).hexdigest()


@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_come_back(tmp_path: Path, mmap: bool):
    digest = files.save_tensors({"x": torch.arange(5.0), "names": ["a"]}, tmp_path / "x.pt")
    back = files.load_tensors(tmp_path / "x.pt", sha256=digest, mmap=mmap)
    assert back["x"].tolist() == [0, 1, 2, 3, 4]
    assert back["names"] == ["a"]


def test_what_is_changed_in_a_mapped_tensor_never_reaches_the_file(tmp_path: Path):
    digest = files.save_tensors({"x": torch.arange(5.0)}, tmp_path / "x.pt")
    files.load_tensors(tmp_path / "x.pt", sha256=digest, mmap=True)["x"].mul_(2)
    assert hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest() == digest
    assert files.load_tensors(tmp_path / "x.pt", mmap=True)["x"].tolist() == [0, 1, 2, 3, 4]


def test_json_comes_back_and_has_no_nan(tmp_path: Path):
    path = tmp_path / "x.json"
    files.save_json({"é": [1, 0.5, None]}, path)
    assert files.load_json(path) == {"é": [1, 0.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.save_json({"x": float("nan")}, path)
    assert files.load_json(path) == {"é": [1, 0.5, None]}


@pytest.mark.parametrize("text", [b"", b"{", b'{"x": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_bad_json_is_refused_by_name(tmp_path: Path, text: bytes):
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(BadFile, match=r"bad\.json: not valid JSON"):
        files.load_json(path)


def test_every_flipped_bit_is_noticed_with_and_without_a_checksum_at_hand(tmp_path: Path):
    path = tmp_path / "x.pt"
    digest = files.save_tensors({"x": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
        local = entry.header_offset
    start = whole.index(torch.arange(64.0).numpy().tobytes(), local)
    for at in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        with pytest.raises(BadFile, match=r"x\.pt: damaged or replaced"):
            files.load_tensors(path, sha256=digest)
        if start <= at < start + 256:
            with pytest.raises(BadFile, match=r"x\.pt: .*a wrong checksum inside"):
                files.load_tensors(path)


def test_verification_reads_an_unchanged_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.pt"
    digest = files.save_tensors({"x": torch.zeros(2)}, path)
    files.verify(path, digest)
    monkeypatch.setattr(hashlib, "sha256", None)  # hashing again would fail
    files.verify(path, digest)
    with pytest.raises(BadFile, match="damaged or replaced"):
        files.verify(path, "0" * 64)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: float):
    path = tmp_path / "x.pt"
    files.save_tensors({"x": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(BadFile, match=r"x\.pt: "):
        files.load_tensors(path)


def test_random_bytes_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "x.pt"
    generator = torch.Generator().manual_seed(0)
    for size in (1, 10, 1000):
        path.write_bytes(bytes(torch.randint(256, (size,), generator=generator).tolist()))
        with pytest.raises(BadFile, match=r"x\.pt: not a file that torch\.save wrote"):
            files.load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_never_run(tmp_path: Path, zipped: bool):
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    if zipped:
        torch.save({"x": Canary(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(BadFile, match=r"x\.pt: ") as caught:
        files.load_tensors(path)
    assert not canary.exists()
    assert "weights_only" not in str(caught.value)  # torch's own advice would be to load it unsafely


def test_zips_that_torch_never_writes_are_refused(tmp_path: Path):
    good, path = tmp_path / "good.pt", tmp_path / "x.pt"
    files.save_tensors({"x": torch.zeros(2000)}, good)

    def rewrite(compression: int, extra: dict[str, bytes]) -> None:
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", compression) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
            for name, content in extra.items():
                target.writestr(name, content)

    rewrite(zipfile.ZIP_DEFLATED, {})
    with pytest.raises(BadFile, match=r"x\.pt: .*compressed"):
        files.load_tensors(path)
    for name in ("../up", "/etc/passwd", "..\\up"):
        rewrite(zipfile.ZIP_STORED, {name: b""})
        with pytest.raises(BadFile, match=r"x\.pt: .*leads out of it"):
            files.load_tensors(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(zipfile.ZIP_STORED, {"archive/data.pkl": pickle.dumps(Canary(tmp_path / "canary"))})
    with pytest.raises(BadFile, match=r"x\.pt: .*two entries of one name"):
        files.load_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(BadFile, match=r"x\.pt: .*no data\.pkl"):
        files.load_tensors(path)


def test_what_is_not_a_regular_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    for name, why in (
        ("folder.pt", "not a regular file"),
        ("pipe.pt", "not a regular file"),
        ("no.pt", "No such file"),
    ):
        with pytest.raises(BadFile, match=f"{name}: .*{why}"):
            files.load_tensors(tmp_path / name)
        with pytest.raises(BadFile, match=f"{name}: .*{why}"):
            files.load_json(tmp_path / name)


def test_check_tensor_refuses_by_file_and_name():
    def check(value: Any, shape: tuple[int | None, ...] = (None, 2)) -> torch.Tensor:
        return files.check_tensor("x.pt", "latents", value, torch.float32, shape)

    good = torch.zeros(3, 2)
    assert check(good) is good
    assert check(torch.zeros(0, 2)).shape == (0, 2)
    bad = {
        "is float64[3, 2], but must be float32[any, 2]": good.double(),
        "is float32[3, 3], but must be float32[any, 2]": torch.zeros(3, 3),
        "is float32[6], but must be float32[any, 2]": torch.zeros(6),
        "is not a plain dense tensor": good.to_sparse(),
        "not a plain dense": [[0.0, 0.0]],
        "does not own exactly the bytes of its 2000000 elements": torch.zeros(1).expand(1_000_000, 2),
        "does not own exactly the bytes of its 4 elements": torch.zeros(3, 2)[:2],
        "does not own exactly": torch.zeros(2, 3).T,
        "has NaN or infinite elements": torch.tensor([[0.0, float("nan")]]),
        "NaN or infinite": torch.tensor([[0.0, float("inf")]]),
    }
    for why, value in bad.items():
        with pytest.raises(BadFile) as caught:
            check(value)
        assert str(caught.value).startswith("x.pt: latents ") and why in str(caught.value)


def test_a_folder_is_committed_whole(tmp_path: Path):
    final = tmp_path / "best"
    files.commit_folder(final, lambda folder: files.save_json({"step": 1}, folder / "inner" / "state.json"))
    assert json.loads((final / "inner" / "state.json").read_text()) == {"step": 1}
    files.commit_folder(final, lambda folder: files.save_json({"step": 2}, folder / "other.json"))
    assert os.listdir(final) == ["other.json"]

    def fail(folder: Path) -> None:
        files.save_json({"step": 3}, folder / "other.json")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.commit_folder(final, fail)
    assert files.load_json(final / "other.json") == {"step": 2}
    assert os.listdir(tmp_path) == ["best"]


def test_a_folder_that_a_kill_left_aside_is_put_back(tmp_path: Path):
    final = tmp_path / "best"
    files.commit_folder(final, lambda folder: files.save_json(1, folder / "step.json"))
    final.rename(tmp_path / ".best.old")  # killed between the two renames of the next commit

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        files.commit_folder(final, fail)
    assert files.load_json(final / "step.json") == 1


def test_a_turn_is_waited_for_and_not_refused(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with files.turn(tmp_path / ".lock-commit"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with files.turn(tmp_path / ".lock-commit"):
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
