"""How bytes reach the disk whole, and how foreign ones are refused. Every file is written here, but for the log.

What is written is either there completely or not at all, whatever is killed or full in between. What is read is data,
never code, and any doubt about it is a ``BadFile`` that names the file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import secrets
import shutil
import socket
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

import torch
from torch import Tensor

JSON_LIMIT = 256 * 2**20
"""Bytes. A larger .json is not one of ours."""


class BadFile(ValueError):
    """A file that cannot be trusted; the message names it and says what is wrong."""


class DiskFull(OSError):
    """No space left: the message has the path, the bytes it needs (as far as is known) and those that are free."""

    def __init__(self, path: str | Path, needed: int) -> None:
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        free, self.needed = shutil.disk_usage(there).free, needed
        said = f"it needs {needed:,} bytes or more, and {free:,} are free"
        super().__init__(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {said}", str(path))


class _HashingWriter(io.BufferedWriter):
    """Hashes what passes through, so that the checksum is of what was meant, not of what the disk returned.

    What is there whole or not at all passes one of these.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self.sha256, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def seekable(self) -> bool:
        return False  # a hash cannot go back

    def write(self, data: Any, /) -> int:
        try:
            self.sha256.update(data)
            self.size += memoryview(data).nbytes
            return super().write(data)
        except OSError as error:  # torch.save may turn it into a RuntimeError that has forgotten the reason
            self.error = self.error or error
            raise


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a file through ``write(file)`` and return its sha256: afterwards ``path`` is the whole file, or as before.

    Raises:
        OSError: the disk refused (full, no permission, failed fsync); it names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = _temp_beside(path)
    file = None
    try:
        with _HashingWriter(io.FileIO(temp, "x")) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        _fsync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # on a read-only disk; the reason that is told names ``path``
            temp.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else file and file.error
        if reason is None or reason.errno is None:
            raise
        raise _refused(reason, path, _on_disk(file.size) if file else 0) from error
    return file.sha256.hexdigest()


def append(path: str | Path, text: str) -> None:
    """Add to a file at its end: the one write here that a kill can cut short. Raises OSError, naming ``path``."""
    content = text.encode()
    try:
        with _HashingWriter(io.FileIO(path, "a")) as file:
            file.write(content)
    except OSError as error:
        raise _refused(error, Path(path), len(content)) from error


def copy(source: str | Path, target: str | Path) -> str:
    """Copy a file's bytes as `atomic_write` writes, and return their sha256."""
    with open(source, "rb") as file:
        return atomic_write(target, lambda out: shutil.copyfileobj(file, out))


def commit_folder(final: str | Path, write: Callable[[Path], object]) -> None:
    """Fill a folder through ``write(temp_folder)``: afterwards ``final`` is the whole new folder, or as before.

    A killed replacement may leave the old folder as ``.<name>.old``; the next commit puts it back or removes it.

    Raises:
        OSError: the disk refused; it names the file by the place where it would have stood.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temp, aside = _temp_beside(final), final.with_name(f".{final.name}.old")
    if os.path.lexists(aside):
        _remove(aside) if os.path.lexists(final) else aside.rename(final)
    try:
        temp.mkdir()
        write(temp)
        for folder, _, names in os.walk(temp, topdown=False):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if os.path.lexists(final):
            final.rename(aside)
        try:
            temp.rename(final)
        except OSError:
            if os.path.lexists(aside):
                aside.rename(final)
            raise
        _fsync(final.parent)
    except BaseException as error:
        held = sum(_on_disk(path.lstat().st_size) for path in temp.rglob("*"))
        shutil.rmtree(temp, ignore_errors=True)  # what cannot be removed now is swept later
        if not isinstance(error, OSError) or error.errno is None:
            raise
        place = Path(error.filename) if isinstance(error.filename, str) else temp
        place = final / place.relative_to(temp) if temp in (place, *place.parents) else place
        raise _refused(error, place, held + getattr(error, "needed", 0)) from error
    if os.path.lexists(aside):
        _remove(aside)


@contextmanager
def lock(path: str | Path, who: str, way_out: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock file, made if need be; pid and host of a sole holder stand in it. A dead one holds nothing.

    Raises ValueError at once, naming the other holder, when there is one; ``shared`` ones bear each other.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _written(file) or "unknown"
            raise ValueError(f"Another {who} (pid {owner}) is writing into {path.parent}. {way_out}") from None
        if not shared:
            try:
                file.truncate(0)
                os.write(file.fileno(), f"{os.getpid()} on {socket.gethostname()}\n".encode())
            except OSError as error:
                raise _refused(error, path, 0) from error
        yield


@contextmanager
def turn(path: str | Path) -> Iterator[None]:
    """Hold a lock file, made if need be, as soon as nobody else does."""
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _refused(error, Path(path), 0) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _written(file: TextIO) -> str:
    """Who holds a lock; one that has only just got it is given time to write its name over that of a dead one."""
    for _ in range(20):
        time.sleep(0.1)
        file.seek(0)
        if owner := file.read().strip():
            return owner
    return ""


def cut_off(folder: str | Path) -> list[Path]:
    """What killed writes left in a folder, by the names that only `atomic_write` and `commit_folder` give."""
    return [path for path in Path(folder).glob(".tmp-*") if re.fullmatch(r"\.tmp-\d+-[0-9a-f]{8}", path.name)]


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed writes left in a folder of which the caller is the only writer; returns what was removed.

    A folder that was set aside by ``commit_folder`` and has no successor is put back.
    """
    torn = cut_off(folder)
    for aside in filter(Path.is_dir, Path(folder).glob(".*.old")):  # only folders are ever set aside
        final = aside.with_name(aside.name[1 : -len(".old")])
        if os.path.lexists(final):
            torn.append(aside)
        else:
            aside.rename(final)
    for path in torn:
        _remove(path)
    return torn


def remove_folder(path: str | Path) -> None:
    """Remove a folder so that its name goes first and at once: nobody ever sees half of it."""
    _remove(Path(path).rename(_temp_beside(Path(path))))


def save_tensors(obj: object, path: str | Path) -> str:
    """Save as ``torch.save`` does and return the sha256. The bytes do not depend on the file's name."""
    return atomic_write(path, lambda file: torch.save(obj, file))


def save_json(obj: object, path: str | Path) -> str:
    """Save readable JSON and return the sha256. NaN and infinities are a ``ValueError``, for JSON has none."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return atomic_write(path, lambda file: file.write(text.encode()))


def load_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        BadFile: missing, not a regular file, or not JSON.
    """
    if (size := _regular(path).st_size) > JSON_LIMIT:
        raise BadFile(f"{path}: {size} bytes are too many for a .json of this project ({JSON_LIMIT} at most).")
    try:
        return json.loads(Path(path).read_bytes().decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: not valid JSON ({error}).") from error


def load_tensors(path: str | Path, sha256: str | None = None, mmap: bool = False) -> Any:
    """What ``torch.save`` put into a file, on the CPU: tensors and plain values only, never code.

    Without ``sha256`` the file's own checksums are verified instead. With ``mmap`` the tensors are views of the file,
    which is never written to through them: what is changed in one is changed in memory only.

    Raises:
        BadFile: missing, not a regular file, changed, not torch's zip format, or holding anything but data.
    """
    _regular(path)
    if sha256 is not None:
        verify(path, sha256)
    try:
        _check_zip(path, check_bytes=sha256 is None)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except BadFile:
        raise
    except pickle.UnpicklingError as error:  # its own text goes on to recommend the unsafe way of loading
        raise BadFile(
            f"{path}: it holds something other than tensors and plain values, so it was not loaded."
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadFile(f"{path}: not a readable .pt file ({reason}).") from error


_digests: dict[tuple[int, int, int, int], str] = {}


def verify(path: str | Path, sha256: str) -> None:
    """Check a file against its sha256; within one process an unchanged file is read for this only once.

    Raises:
        BadFile: missing, not a regular file, or other bytes than those of the checksum.
    """
    if (found := digest(path)) != sha256:
        raise BadFile(f"{path}: damaged or replaced: its sha256 is {found}, but {sha256} was written.")


def digest(path: str | Path) -> str:
    """The sha256 of a file's bytes; within one process an unchanged file is read for this only once.

    Raises:
        BadFile: missing, or not a regular file.
    """
    info = _regular(path)
    key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    if key not in _digests:
        sha256 = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
        _digests[key] = sha256.hexdigest()
    return _digests[key]


def check_tensor(
    path: str | Path, name: str, value: Any, dtype: torch.dtype, shape: tuple[int | None, ...], finite: bool = True
) -> Tensor:
    """``value``, if it is a plain dense tensor of this dtype and shape (None: any size) and owns exactly its bytes.

    Raises:
        BadFile: otherwise; it names the file, the tensor and what is wrong.
    """
    wanted = f"{dtype}".removeprefix("torch.") + f"[{', '.join('any' if n is None else str(n) for n in shape)}]"
    if type(value) is not Tensor or value.layout is not torch.strided or value.is_quantized:
        raise BadFile(f"{path}: {name} is not a plain dense tensor, but must be {wanted}.")
    fits = len(shape) == value.ndim and all(n in (None, size) for n, size in zip(shape, value.shape, strict=True))
    if value.dtype != dtype or not fits or value.device.type != "cpu":
        found = f"{value.dtype}".removeprefix("torch.") + f"{list(value.shape)}"
        raise BadFile(f"{path}: {name} is {found}, but must be {wanted}.")
    # A file of a kilobyte can declare a tensor of terabytes, all of whose elements are one and the same.
    if not value.is_contiguous() or value.untyped_storage().nbytes() != value.numel() * value.itemsize:
        raise BadFile(f"{path}: {name} does not own exactly the bytes of its {value.numel()} elements.")
    if finite and not value.isfinite().all():
        raise BadFile(f"{path}: {name} has NaN or infinite elements.")
    return value


def _regular(path: str | Path) -> os.stat_result:
    """Before it is opened: a pipe would wait forever, a folder or device is no file of ours."""
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(info.st_mode):
        raise BadFile(f"{path}: not a regular file.")
    return info


def _check_zip(path: str | Path, check_bytes: bool) -> None:
    """What zip allows and torch.save never does is how a small file hurts: compression, double and escaping names."""
    if not zipfile.is_zipfile(path):
        raise BadFile(f"{path}: not a file that torch.save wrote (or cut short).")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [PurePosixPath(entry.filename.replace("\\", "/")) for entry in entries]
        odd = {
            "compressed or encrypted entries": any(entry.compress_type or entry.flag_bits & 1 for entry in entries),
            "entries that share bytes": sum(entry.file_size for entry in entries) > os.path.getsize(path),
            "two entries of one name": len(set(names)) != len(names),
            "an entry whose name leads out of it": any(name.is_absolute() or ".." in name.parts for name in names),
            "no data.pkl, or several": sum(name.name == "data.pkl" for name in names) != 1,
        }
        wrong = [what for what, found in odd.items() if found]
        if not wrong and check_bytes and archive.testzip():  # only now: nothing in it can inflate
            wrong = ["a wrong checksum inside"]
    if wrong:
        raise BadFile(f"{path}: not as torch.save writes it: it has {', '.join(wrong)}.")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _temp_beside(path: Path) -> Path:
    """A name that is free, short however long the final one is, in the same folder so that a rename is all it takes."""
    return path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _refused(error: OSError, path: Path, needed: int) -> OSError:
    """The same error, of this path; of a full disk with figures."""
    return DiskFull(path, needed) if error.errno == errno.ENOSPC else OSError(error.errno, error.strerror, str(path))


def _on_disk(size: int) -> int:
    """Bytes that a file takes where blocks have the usual 4 KiB."""
    return -(-size // 4096) * 4096


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
