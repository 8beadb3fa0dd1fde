"""The names of ``latent_prm`` where the guide looks for them: ``from methods.latent_prm import QwenLatentPRM``."""

from latent_prm import __all__, __dir__, __getattr__  # noqa: F401
