"""What comes with the package: a small reasoner that thinks in latents, a backbone to make PRMs of, and a PRM.

Each is an ordinary folder, made by a recipe that lies beside it.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def reasoner_folder() -> Path:
    """The built-in reasoner: a Hugging Face folder with config.json, model.safetensors and tokenizer.json."""
    return _folder("reasoner", "python -m latent_prm.demo.recipe")


def reader_folder() -> Path:
    """The built-in backbone that a PRM starts from: a Hugging Face folder too."""
    return _folder("reader", "python -m latent_prm.demo.reader")


def prm_folder() -> Path:
    """The PRM that comes with the built-in reasoner: a checkpoint folder like any other."""
    return _folder("prm", "bash latent_prm/demo/prm.sh")


def _folder(name: str, recipe: str) -> Path:
    folder = _HERE / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f'the built-in {name} is missing from {folder}: reinstall latent-prm, or run "{recipe}".'
        )
    return folder
