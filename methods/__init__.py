"""A doorplate: the guide's commands say ``methods.latent_prm``; everything lives in ``latent_prm``."""
