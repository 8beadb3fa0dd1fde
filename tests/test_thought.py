"""Sequences in mid-thought: rows are independent, and a token is drawn by the number given for it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_family
from transformers import AutoModelForCausalLM

from latent_prm.thought import CompiledStep, Thought, decode, likeliest_or_drawn, sample


def thought_of(folder: Path, *prompts: list[int]) -> Thought:
    thought = Thought(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), len(prompts), 16)
    thought.read(prompts, pad=0)
    return thought


@torch.no_grad()
def test_a_siblings_latents_change_nothing_for_another(tiny_lm: Path) -> None:
    def think(latents: torch.Tensor) -> torch.Tensor:
        thought = thought_of(tiny_lm, [5, 6, 7])
        thought.select([0, 0, 0])
        for latent in latents.unbind(1):
            thought.feed(latent)
        return thought.hidden

    latents = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    before = think(latents)
    latents[1] *= -3
    after = think(latents)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


@torch.no_grad()
def test_a_second_prompt_is_read_on_top_of_the_first_whatever_the_padding(tiny_lm: Path) -> None:
    together = thought_of(tiny_lm, [5, 6, 7, 8, 9, 10], [11, 12])
    together.read([[13], [14, 15, 16]], pad=0)
    together.feed(torch.ones(2, 16))
    for row, (first, second) in enumerate((([5, 6, 7, 8, 9, 10], [13]), ([11, 12], [14, 15, 16]))):
        alone = thought_of(tiny_lm, [*first, *second])
        alone.feed(torch.ones(1, 16))
        torch.testing.assert_close(together.hidden[row], alone.hidden[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_are_carried_on_in_the_order_named_and_as_often(tiny_lm: Path) -> None:
    thought = thought_of(tiny_lm, [5, 6], [7], [8, 9, 10])
    hidden = thought.hidden.clone()
    thought.select([2, 0, 0])
    assert torch.equal(thought.hidden, hidden[[2, 0, 0]]) and len(thought) == 3
    thought.select([0, 1, 2])
    assert torch.equal(thought.hidden, hidden[[2, 0, 0]])


def test_sampling_takes_the_token_whose_share_holds_the_number() -> None:
    logits = torch.tensor([0.0, 0.5, 0.25, 0.25]).log().expand(6, 4)
    drawn = sample(logits, torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.999]))
    assert drawn.tolist() == [1, 1, 2, 2, 3, 3]  # token 0 never comes, not even for the number 0


def test_top_p_draws_from_the_likeliest_tokens_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(5, 4)
    numbers = torch.tensor([0.0, 0.3, 0.6, 0.7, 0.99])
    assert sample(logits, numbers, 0.7).tolist() == [1, 1, 1, 3, 3]  # 0.5 + 0.25: tokens 1 and 3, 2/3 and 1/3
    assert sample(logits, numbers, 0.4).tolist() == [1, 1, 1, 1, 1]  # the first that reaches it counts
    assert sample(logits, numbers, 0.76).tolist() == [1, 1, 2, 2, 3]  # 0.5, 0.15 and 0.25 of 0.9


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    ],
)
def test_tokens_are_drawn_from_the_models_own_logits_and_as_sure(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    numbers = torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    thought = thought_of(save_family(tmp_path, family, **settings), *[[5, 6, 7]] * 16)
    drawn = likeliest_or_drawn(numbers, torch.zeros(16, dtype=torch.bool), 0.7, 1.0)
    tokens, _, surety = decode(thought, 3, set(), drawn)
    for row in range(16):
        said, sure = [5, 6, 7], []
        for number in numbers[row]:
            own = thought.model(input_ids=torch.tensor([said])).logits[:, -1]
            said.append(int(sample(own / 0.7, number[None])))
            sure.append(own.log_softmax(-1)[0, said[-1]].item())
        assert tokens[row] == said[3:]
        assert surety[row] == pytest.approx(sum(sure) / 3, abs=1e-5)


# --- compiled steps on a static cache -------------------------------------------------------------------------------


@torch.no_grad()
def a_long_thought(model: Any, step: CompiledStep | None) -> torch.Tensor:
    """Prompts of unlike lengths, latents, branches, a second prompt, tokens, and rows that leave."""
    thought = Thought(model, 2, 20, step)
    thought.read([[5, 6, 7, 8], [9, 10]], pad=0)
    thought.select([0, 0, 1])
    for i in range(3):
        thought.feed(torch.ones(3, 16) * 0.3 * (i + 1))
    thought.read([[5, 6], [7], [8, 9, 10]], pad=0)
    thought.select([0, 1, 1, 2])
    for _ in range(3):
        thought.say(torch.tensor([4, 5, 6, 7]))
    thought.select([3, 0])
    thought.say(torch.tensor([4, 5]))
    return thought.hidden


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "mistral", "gpt2"])
def test_a_compiled_step_on_a_static_cache_changes_nothing(tmp_path: Path, family: str) -> None:
    folder = save_family(tmp_path / "lm", family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch._dynamo.reset()  # it counts the models of a process
    step = CompiledStep(model, backend="eager")  # traced as for every backend; code is generated in the slow test
    torch.testing.assert_close(a_long_thought(model, step), a_long_thought(model, None), rtol=0, atol=1e-5)
    assert step.run is not step.plain


GENERATED = """
import sys, torch
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question, load_task
plain, compiled = (Reasoner.from_pretrained(sys.argv[1], device="cpu", compiled=c) for c in (False, True))
questions = [Question("text-1", "What is 3 ?", "3"), Question("text-2", "Ann has 12 apples . She buys 5 .", "17")]
for settings in ({}, {"num_paths": 3}, {"diversity_strategy": "temperature"}, {"diversity_strategy": "dropout"}):
    given = {"latent_steps": 3, "max_new_tokens": 8, **settings}
    trees = [reasoner.grow(questions, load_task("text"), reasoner.growth(**given)) for reasoner in (plain, compiled)]
    for one, other in zip(*trees, strict=True):
        for a, b in zip(one.paths, other.paths, strict=True):
            torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)
            assert a.answers == b.answers
assert compiled.step.run is not compiled.step.plain, "it went on without"
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs g++")
def test_generated_code_changes_nothing_either(tiny_lm: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}  # apart: the compiler's own warnings are many
    done = subprocess.run([sys.executable, "-c", GENERATED, str(tiny_lm)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_compiling_fails_it_goes_on_without_and_says_so(tiny_lm: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such instruction")

    model = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32).eval()
    step = CompiledStep(model, backend=broken)
    with caplog.at_level(logging.WARNING):
        found = a_long_thought(model, step)
    torch.testing.assert_close(found, a_long_thought(model, None), rtol=0, atol=1e-5)
    assert len(caplog.messages) == 1 and "Compiling the steps failed" in caplog.messages[0]


def test_a_full_memory_is_no_failure_of_the_compiler(tiny_lm: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.float32).eval()
    step = CompiledStep(model, backend="eager")

    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    step.run = full
    with pytest.raises(torch.OutOfMemoryError):
        step(input_ids=torch.tensor([[1]]))
    assert step.run is full
