"""What growing takes, worked by hand for a model small enough to do so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latent_prm import memory
from latent_prm.memory import footprint, spell
from latent_prm.prompts import Agent, Pipeline
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question

SHORT = Question("text-1", "What is 3 + 4 ?", "7")
PER_TOKEN = 2 * 2 * 1 * 8 * 4  # keys and values, layers, heads, head_dim, float32


@pytest.fixture(scope="module")
def reasoner(tiny_lm: Path) -> Reasoner:
    return Reasoner.from_pretrained(str(tiny_lm), device="cpu")


def test_the_cache_holds_every_row_of_the_longest_answers(reasoner: Reasoner) -> None:
    growth = reasoner.growth(num_paths=3, latent_steps=4, max_new_tokens=10)
    assert reasoner.footprint(SHORT, growth).cache == (6 + 4 + 10) * (3 + 1) * PER_TOKEN
    several = reasoner.growth(num_paths=3, latent_steps=4, max_new_tokens=10, answers_per_leaf=5, temperature=1.0)
    assert reasoner.footprint(SHORT, several).cache == (6 + 4 + 10) * (3 * 5 + 1) * PER_TOKEN


def test_agents_and_branches_add_up(reasoner: Reasoner) -> None:
    pipeline = Pipeline("own", (Agent("a", "{question}", 2, 3), Agent("b", "Check {question}", 1, 2)), "Answer ?")
    growth = reasoner.growth(pipeline=pipeline, max_new_tokens=40)
    assert reasoner.footprint(SHORT, growth).cache == (6 + 2 + 7 + 1 + 2 + 40) * (6 + 1) * PER_TOKEN


@pytest.mark.parametrize(
    ("settings", "bytes_per_logit"),
    [({}, 4), ({"temperature": 1.0}, 24), ({"temperature": 1.0, "top_p": 0.9}, 48)],
)
def test_work_is_one_layers_copy_and_logits_or_heads(
    reasoner: Reasoner, settings: dict[str, Any], bytes_per_logit: int
) -> None:
    growth = reasoner.growth(num_paths=3, latent_steps=4, max_new_tokens=10, **settings)
    found = reasoner.footprint(SHORT, growth)
    active = 4 * 1 * 4 * (3 * 16 + 3 * 32)  # 4 rows of one position: hidden and inner numbers in float32
    assert found.work == found.cache // 2 + active + bytes_per_logit * 4 * reasoner.config.vocab_size
    assert found.total == found.cache + found.work


def test_a_skeleton_without_weights_plans_the_same(reasoner: Reasoner, tiny_lm: Path) -> None:
    skeleton = Reasoner.from_pretrained(str(tiny_lm), device="cpu", weights=False)
    assert all(p.device.type == "meta" for p in skeleton.model.parameters())
    growth = reasoner.growth(num_paths=3, diversity_strategy="temperature")
    assert skeleton.growth(num_paths=3, diversity_strategy="temperature") == growth
    assert skeleton.footprint(SHORT, growth) == reasoner.footprint(SHORT, growth)
    config, half = reasoner.config, reasoner.growth(num_paths=3)
    assert footprint(config, 2, half, [6]).cache * 2 == footprint(config, 4, half, [6]).cache


def test_a_cpu_has_a_fixed_budget() -> None:
    assert memory.budget(torch.device("cpu")) == 2 * 2**30


def test_what_torch_keeps_for_the_next_batch_is_a_gpus_free_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each batch would leave less room for the next one: the second here has had 60 of 100 and given them back."""
    for free, reserved in ((100, 0), (40, 60)):
        told = {"mem_get_info": (free, 200), "memory_reserved": reserved + 10, "memory_allocated": 10}
        for name, value in told.items():
            monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
        assert memory.budget(torch.device("cuda")) == 80


def test_bytes_are_spelled() -> None:
    assert [spell(size) for size in (7, 2048, 3.5 * 2**20, 2**31)] == ["7 B", "2.0 KiB", "3.5 MiB", "2.0 GiB"]
