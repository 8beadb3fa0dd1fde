"""Let a language model think along many latent paths, learn which end right, and answer better.

The chain is **grow → back up → pack → learn → choose**, and every stage works on one thing: a tree of latent paths.

Axes, in every shape of this package:

| | |
|---|---|
| Q | questions |
| N | paths per question |
| B | paths in a batch |
| T | latents along a path |
| S | tokens in a packed sequence |
| D | latent width (the reasoner's) |
| H | backbone width (the PRM's) |

From a question to an answer:

>>> from latent_prm import QwenLatentPRM, Reasoner, choose
>>> reasoner, prm = Reasoner.from_pretrained("builtin"), QwenLatentPRM.from_pretrained("builtin")
>>> question = "Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"
>>> tree = reasoner.grow(question, num_paths=4)
>>> choose(tree, prm).value
'10 20'

``print(tree.show())`` draws the tree, a notebook shows ``tree.picture(prm.score(tree))`` in colours. ``__all__`` lists
the names that stay as they are. ``import latent_prm`` is instant: such a name brings its room, and with it torch, when
it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_prm.client import Client
    from latent_prm.model import QwenLatentPRM
    from latent_prm.reasoner import Reasoner
    from latent_prm.selector import Choice, choose
    from latent_prm.shards import load_trees
    from latent_prm.tasks import Question, load_task
    from latent_prm.tree import Answer, Path, ReasoningTree

# Where torchao is installed, transformers loads it with a model, and it complains of kernels for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Choice",
    "Client",
    "Path",
    "Question",
    "QwenLatentPRM",
    "Reasoner",
    "ReasoningTree",
    "choose",
    "load_task",
    "load_trees",
]

_ROOMS = {
    "Answer": "tree",
    "Choice": "selector",
    "Client": "client",
    "Path": "tree",
    "QwenLatentPRM": "model",
    "Question": "tasks",
    "Reasoner": "reasoner",
    "ReasoningTree": "tree",
    "choose": "selector",
    "load_task": "tasks",
    "load_trees": "shards",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
