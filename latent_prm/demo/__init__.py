"""What comes with the package: a small reasoner that thinks in latents, and a PRM for it. Each is an ordinary folder."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def reasoner_folder() -> Path:
    """The built-in reasoner: a Hugging Face folder with config.json, model.safetensors and tokenizer.json."""
    return _folder("reasoner", "recipe")


def prm_folder() -> Path:
    """The PRM that comes with the built-in reasoner: a checkpoint folder like any other."""
    return _folder("prm", "prm_recipe")


def _folder(name: str, recipe: str) -> Path:
    folder = _HERE / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the built-in {name} is missing from {folder}: reinstall latent-prm, or make it again with "
            f'"python -m latent_prm.demo.{recipe}".'
        )
    return folder
