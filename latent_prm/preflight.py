"""What is looked at before the first expensive step: hides how it is found out that a stage would fail at its end.

That a folder can be written to, that the disk has room for what is planned, and that a PRM reads latents as wide as
those that are there. That a device exists is for ``pretrained.find_device`` to say. No weights are loaded here.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from latent_prm import files, shards
from latent_prm.memory import spell
from latent_prm.model import checked_folder, checkpoint_folder
from latent_prm.pretrained import width_of

IN_PLACE = (".lock", "training.log", "metrics.jsonl")
"""What stages write into where they find it; and .lock-1of2, and so on."""


def can_write(folder: str | Path, way_out: str = "Type another --output_dir.") -> None:
    """Nothing, if files can be made in a folder, or where it would be made; found out by making one, which goes again.

    Raises OSError naming the folder and the reason. One is that a file which stages write into in place (all others are
    exchanged whole) is a link, so that the file it leads to would be changed, or a pipe, which would wait forever.
    """
    place = _there(folder)
    try:
        if not place.is_dir():
            raise NotADirectoryError(0, f"{place} is a file")
        for path in (*(place / name for name in IN_PLACE), *place.glob(".lock-*")):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise OSError(0, f"{path.name} in it is not a regular file")
        with TemporaryFile(dir=place) as probe:  # without a name: nobody who holds the folder can sweep it away
            probe.write(b"?")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror or error}). {way_out}") from error


def has_room(folder: str | Path, needed: int, what: str, way_out: str) -> str:
    """How much of the disk is needed and free, in words. Raises OSError where the first is more."""
    free = free_space(folder)
    if free < needed:
        raise OSError(f"{folder} needs {spell(needed)} for {what}, but only {spell(free)} are free. {way_out}")
    return f"{spell(needed)} for {what}; {spell(free)} are free"


def free_space(folder: str | Path) -> int:
    """Bytes that can still be written to a folder, or where it would be made."""
    return shutil.disk_usage(_there(folder)).free


def taken(folder: Path) -> int:
    """Bytes of the checkpoints in a folder; files that share their bytes are counted once."""
    checkpoints = [path.parent for path in folder.glob("*/pytorch_model.bin")]
    found = [path.stat() for checkpoint in checkpoints for path in checkpoint.iterdir() if path.is_file()]
    return sum({(info.st_dev, info.st_ino): info.st_size for info in found}.values())


def _there(folder: str | Path) -> Path:
    """The folder, or the first thing above it that exists."""
    path = Path(folder).absolute()
    return next(one for one in (path, *path.parents) if os.path.lexists(one))


# --- widths -----------------------------------------------------------------------------------------------------------


def same_width(there: int | None, read: int | None, latents: str, prm: str, way_out: str) -> None:
    """Raises ValueError where latents are known to be of another width than a PRM reads."""
    if there is not None and read is not None and there != read:
        raise ValueError(
            f"{latents} are {there} wide, but the PRM in {prm} reads latents {read} wide. {way_out}, or another "
            "--checkpoint."
        )


def check_reasoner(model_path: str, revision: str | None, checkpoint: str) -> None:
    """Raises ValueError where a PRM cannot read the latents that a reasoner thinks in, as their config.json say, and
    where there is no PRM."""
    checked_folder(checkpoint)
    there, read = width_of(model_path, revision), width_read(checkpoint)
    of = f"The latents of the reasoner {model_path}"
    same_width(there, read, of, checkpoint, "Type the --model_path it was trained for")


def check_data(data_dir: str, checkpoint: str, option: str = "--data_dir") -> None:
    """Raises ValueError where a PRM cannot read the latents in a folder, as metadata and config.json say.

    ``option`` names the folder.
    """
    there, read = width_there(data_dir), width_read(checkpoint)
    of, way_out = f"The latents in {data_dir}", f"Type the {option} of the reasoner it was trained for"
    same_width(there, read, of, checkpoint, way_out)


def width_read(checkpoint: str) -> int | None:
    """How wide the latents are that a PRM reads; None where that is only known once it is loaded."""
    with suppress(files.BadFile, KeyError, TypeError):  # what is damaged, loading says
        own = files.load_json(checkpoint_folder(checkpoint) / "config.json")["latent_prm"]
        return int(own["latent_dim"]) // len({"fed", "hidden"} & set(own.get("reads", ["fed"])))
    return None


def width_there(data_dir: str | Path) -> int | None:
    """How wide the latents of a folder are; None where no metadata say so."""
    for path in shards.scan(data_dir)[0]:
        with suppress(files.BadFile):
            return shards.read_metadata(path)["latent_dim"]
    return None
