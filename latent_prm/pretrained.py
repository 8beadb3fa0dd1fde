"""Finding what is to be loaded: a device, a model's folder or hub name, and plain words when it cannot be had.

It also says which libraries load it.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from latent_prm import __version__
from latent_prm.demo import reasoner_folder
from latent_prm.options import BUILTIN

log = logging.getLogger(__name__)


def versions(*more: str) -> dict[str, str]:
    """What something was made with, for metadata: Python, the libraries, this package, and ``more`` installed ones."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "latent-prm": __version__,
        **{package: version(package) for package in more},
    }


def pick_device(device: str) -> torch.device:
    """The device to compute on; ``auto`` is CUDA when there is one, else the CPU, said aloud.

    Raises ValueError for one that is not there.
    """
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s (--device auto)", found)
        return torch.device(found)
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device}, but there is no such kind. Type cuda, cpu or auto.") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices were" if torch.cuda.is_available() else "no CUDA device was"
        raise ValueError(f"--device is {device}, but {found} found. Type --device cpu, or auto.")
    return where


def find_folder(model_path: str, builtin: Callable[[], Path] = reasoner_folder) -> str:
    """The folder or hub name behind a ``--model_path``. Raises ValueError for a local path that holds no model."""
    if model_path == BUILTIN:
        return str(builtin())
    folder = Path(model_path).expanduser()
    looks_local = model_path.startswith((".", "/", "~")) or model_path.count("/") > 1 or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        way_out = 'Type --model_path with a Hugging Face folder or hub name, or "builtin".'
        raise ValueError(f"No model in {model_path}: there is no config.json. {way_out}")
    return str(folder) if folder.is_dir() else model_path


@contextmanager
def loading(model_path: str) -> Iterator[None]:
    """Inside, what goes wrong between here and the hub becomes a ValueError that says what to do."""
    try:
        yield
    except OSError as error:
        if Path(model_path).is_dir():
            raise
        cause = _cause(error)
        if cause == "GatedRepoError":
            page = f"https://huggingface.co/{model_path}"
            raise ValueError(
                f"{model_path} is gated: accept its terms at {page}, then set HF_TOKEN to an access token of yours."
            ) from error
        if cause in ("RepositoryNotFoundError", "RevisionNotFoundError"):
            raise ValueError(
                f"The hub has no {model_path}, or not this --revision of it, or it is private: check the name, or set "
                "HF_TOKEN to an access token that may read it."
            ) from error
        raise ValueError(
            f"{model_path} is not on this machine, and the hub was not reached. Unset HF_HUB_OFFLINE if it is set, "
            f"check the network, or download it elsewhere (hf download {model_path} --local-dir FOLDER) and type "
            "--model_path FOLDER."
        ) from error


def _cause(error: BaseException | None) -> str:
    """The name of the hub's own error among those that led to this one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__module__.startswith("huggingface_hub") and type(error).__name__.endswith("NotFoundError"):
            return type(error).__name__
        if type(error).__name__ == "GatedRepoError":
            return "GatedRepoError"
        error = error.__cause__ or error.__context__
    return ""
