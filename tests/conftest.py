"""What every test may ask for: tiny real models, random trees. In test runs, shapes and types are checked for true.

Running a test file alone works the same: ``pytest tests/test_tree.py``.
"""

from __future__ import annotations

import os

# Before any import that reads them, and for subprocesses too: no model hub, and one thread (fastest for tiny models).
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import install_import_hook

numbers_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a fine float


def checked(function: Any) -> Any:
    """beartype, but for what no run can check: a function that takes a plain Protocol."""
    try:
        return numbers_checked(function)
    except BeartypeDecorHintPep3119Exception:
        return function


install_import_hook("latent_prm", "conftest.checked")

from latent_prm import tree as trees

torch.set_num_threads(1)

VOCABULARY = r"""<pad> <eos> <unk> 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 ? . , + - * = \boxed{ }
Ann Bob has had apples pears moves She He buys sells eats gives more of them twice half left What is How many
start target reach add subtract multiply double from to at with the and by"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test, whatever the one before it did to the environment, asks a model hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """A stage sets how much our loggers say, for good: here only until the end of the test."""
    log = logging.getLogger("latent_prm")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real Qwen3ForCausalLM with random weights: D = 16, 2 layers, and a word-level tokenizer."""
    return save_lm(tmp_path_factory.mktemp("tiny_lm"), hidden_size=16)


@pytest.fixture(scope="session")
def tiny_backbone_24(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_lm``, but H = 24: a backbone whose width is not the latents'."""
    return save_lm(tmp_path_factory.mktemp("tiny_backbone_24"), hidden_size=24)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def make_tree() -> Callable[..., trees.ReasoningTree]:
    """``random_tree`` of this file."""
    return random_tree


def save_lm(folder: Path, hidden_size: int, seed: int = 0) -> Path:
    """Save an ordinary Hugging Face folder (config.json, model.safetensors, tokenizer.json) and return it."""
    return save_family(folder, "qwen3", hidden_size=hidden_size, seed=seed)


def save_family(folder: Path, family: str, *, hidden_size: int = 16, seed: int = 0, **changes: Any) -> Path:
    """As `save_lm`, of the architecture of qwen3, qwen2, llama (untied embeddings), mistral, gemma3 or gpt2."""
    from transformers import AutoConfig, AutoModelForCausalLM

    words = save_tokenizer(folder)
    shape = {
        "vocab_size": words,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family != "llama",
        "initializer_range": 0.3,  # wide, so that different inputs give visibly different outputs
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "dtype": "float32",
    }
    if family == "gpt2":
        shape = {"vocab_size": words, "n_positions": 512, "n_embd": hidden_size, "n_layer": 2, "n_head": 2}
        shape |= {"initializer_range": 0.3, "eos_token_id": 1, "bos_token_id": None}
    if family == "qwen2":
        del shape["head_dim"]  # it has none of its own
    if family == "gemma3":
        shape |= {"sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"]}
    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(family, family), **shape | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> int:
    """Save a word-level tokenizer and return how many words it has."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = VOCABULARY.split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    split = Regex(r"\\boxed\{|\d+|\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(split, behavior="removed", invert=True)  # type: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    fast.save_pretrained(folder)
    return len(words)


def random_tree(
    seed: int = 0,
    *,
    width: int = 16,
    branches: tuple[int, ...] = (3, 2),
    latent_steps: tuple[int, int] = (1, 5),
    noise_free: bool = True,
    answers: int = 1,
    unexpanded: float = 0.0,
    question: str = "Ann has 3 apples . She buys 2 more . How many apples has Ann ?",
) -> trees.ReasoningTree:
    """A tree of ``branches[0]`` roots, each with ``branches[1]`` children, and so on, already backed up.

    Every path has between ``latent_steps[0]`` and ``latent_steps[1]`` latents; every leaf ``answers`` random answers.
    ``noise_free`` adds a path 0 that stands alone. ``unexpanded`` is the share of leaves with no answer at all.
    """
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)

    def path(parent: int | None, leaf: bool, noise_free: bool = False) -> trees.Path:
        count = answers if leaf and draw.random() >= unexpanded else 0
        values = [draw.choice(["5", "6", "7"]) for _ in range(count)]
        return trees.Path(
            latents=torch.randn(draw.randint(*latent_steps), width, generator=noise),
            tip=torch.randn(width, generator=noise),
            parent=parent,
            noise_free=noise_free,
            answers=[trees.Answer(text=f"\\boxed{{{value}}}", value=value, correct=value == "5") for value in values],
        )

    paths = [path(None, leaf=True, noise_free=True)] if noise_free else []
    parents: list[int | None] = [None]
    for depth, count in enumerate(branches):
        first = len(paths)
        paths += [path(parent, leaf=depth == len(branches) - 1) for parent in parents for _ in range(count)]
        parents = list(range(first, len(paths)))
    tree = trees.ReasoningTree(question_id=f"q{seed}", question=question, gold="5", task="arithmetic", paths=paths)
    tree.back_up()
    return tree
