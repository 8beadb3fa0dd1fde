"""The guide's way to type ``latent-prm train``: ``python -m methods.latent_prm.trainer --num_epochs 10``."""

from __future__ import annotations

import sys

from latent_prm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
