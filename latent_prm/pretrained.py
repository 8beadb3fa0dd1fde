"""Finding what is to be loaded: a device, a model's folder or hub name, and plain words when it cannot be had.

It also says which libraries load it.
"""

from __future__ import annotations

import logging
import pickle
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from latent_prm import __version__, screen
from latent_prm.demo import reasoner_folder
from latent_prm.options import BUILTIN
from latent_prm.reaching import causes, patiently
from latent_prm.rows import first_line

log = logging.getLogger(__name__)

AGAIN = "Download it again, or type another --model_path."


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

    Raises ValueError as `find_device`.
    """
    where = find_device(device)
    if device == "auto":
        log.info("device: %s (--device auto)", where)
    return where


def find_device(device: str) -> torch.device:
    """As `pick_device`, with nothing said: to be asked before anything expensive.

    Raises ValueError for a device that is not there. There is no silent run on another one.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        kind: Any = torch.get_device_module(where)
    except RuntimeError:
        raise ValueError(f"--device is {device}, but there is no such kind. Type cuda, cpu or auto.") from None
    if where.type == "cpu":
        return where
    count, name = kind.device_count() if kind.is_available() else 0, where.type.upper()
    if (where.index or 0) >= count:
        found = f"{count} {name} device{'s were' if count > 1 else ' was'}" if count else f"no {name} device was"
        built = name == "CUDA" and torch.version.cuda is None
        other = f" This torch ({torch.__version__}) is built without CUDA: https://pytorch.org has others." * built
        raise ValueError(f"--device is {device}, but {found} found. Type --device cpu, or auto.{other}")
    return where


def find_folder(model_path: str, builtin: Callable[[], Path] = reasoner_folder) -> str:
    """The folder or hub name behind a ``--model_path``. Raises ValueError for a local path that holds no model, and for
    a mistyped "builtin"."""
    if model_path == BUILTIN:
        return str(builtin())
    folder = Path(model_path).expanduser()
    looks_local = model_path.startswith((".", "/", "~")) or model_path.count("/") > 1 or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        way_out = 'Type --model_path with a Hugging Face folder or hub name, or "builtin".'
        raise ValueError(f"No model in {model_path}: there is no config.json. {way_out}")
    if not looks_local and get_close_matches(model_path, [BUILTIN], cutoff=0.8):
        raise ValueError(f'--model_path is {model_path}. Did you mean "{BUILTIN}"?')
    return str(folder) if folder.is_dir() else model_path


def fetch(kind: Any, folder: str, **settings: Any) -> Any:
    """``kind.from_pretrained``, asked again where the hub stumbles: `reaching.patiently`.

    What config.json says is asked first: without it, others look for it several times, for half a minute each.
    """
    if kind is not AutoConfig and not Path(folder).is_dir():
        ours = ("dtype", "output_loading_info")
        fetch(AutoConfig, folder, **{name: settings[name] for name in settings if name not in ours})
    with _bars_where_watched():
        return patiently(partial(kind.from_pretrained, folder, **settings), folder)


@contextmanager
def _bars_where_watched() -> Iterator[None]:
    """Inside, transformers draws what it loads only where somebody looks."""
    hidden = transformers_logging.is_progress_bar_enabled() and not screen.watched()
    if hidden:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            transformers_logging.enable_progress_bar()


def fetch_weights(kind: Any, folder: str, **settings: Any) -> Any:
    """As `fetch`, with all of the model's weights: transformers makes up those that are not there, at random.

    Raises ValueError where some are not.
    """
    model, found = fetch(kind, folder, output_loading_info=True, **settings)
    if missing := sorted(found["missing_keys"]):
        names = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
        raise ValueError(f"{folder} lacks {len(missing)} of {type(model).__name__}'s weights: {names}. {AGAIN}")
    return model


def width_of(model_path: str, revision: str | None = None) -> int:
    """The width of a reasoner's latents, as its config.json says. Raises ValueError where that cannot be had."""
    folder = find_folder(model_path)
    with loading(model_path):
        config = fetch(AutoConfig, folder, revision=revision or "main", trust_remote_code=False)
    return config.get_text_config().hidden_size


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
        if cause == "RemoteEntryNotFoundError" or "does not appear to have a file" in str(error):
            raise ValueError(_no_model(model_path, error)) from error
        raise ValueError(
            f"{model_path} is not on this machine, and the hub was not reached. Unset HF_HUB_OFFLINE if it is set, "
            f"check the network, or download it elsewhere (hf download {model_path} --local-dir FOLDER) and type "
            "--model_path FOLDER."
        ) from error
    except SafetensorError as error:
        raise ValueError(f"The weights in {model_path} are damaged: {first_line(error)}. {AGAIN}") from error
    except pickle.UnpicklingError as error:  # its own text goes on to recommend the unsafe way of loading
        raise ValueError(
            f"The weights in {model_path} are damaged, or more than data, so they are not loaded. {AGAIN}"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"The weights in {model_path} have other shapes than its config.json says. {AGAIN}") from error
    except ValueError as error:
        if "backend tokenizer" in str(error):  # in four lines, none of which says whose
            raise ValueError(
                f"{model_path} has no tokenizer that can be loaded: there is no tokenizer.json, or it needs "
                "sentencepiece or tiktoken (pip install sentencepiece tiktoken). Put its model's files there."
            ) from error
        if "Unrecognized model" not in str(error):
            raise
        raise ValueError(_no_model(model_path, error)) from error


def _no_model(model_path: str, error: Exception) -> str:
    return (
        f"{model_path} is there, but holds no model that can be loaded: {first_line(error)} Type another --model_path."
    )


def _cause(error: BaseException | None) -> str:
    """The name of the hub's own error among those that led to this one."""
    for kind in map(type, causes(error)):
        if kind.__name__ == "GatedRepoError" or (
            kind.__module__.startswith("huggingface_hub") and kind.__name__.endswith("NotFoundError")
        ):
            return kind.__name__
    return ""
