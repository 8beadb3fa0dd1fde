"""The reasoner: what it feeds, caches and decodes is what a plain forward pass, without any of that, gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_family, save_lm, save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from latent_prm.prompts import SOLO, Agent, Pipeline, render
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Grade, Question, load_task
from latent_prm.thought import Thought
from latent_prm.tree import ReasoningTree

SHORT, MIDDLE, LONG = (
    Question("text-1", "What is 3 + 4 ?", "7"),
    Question("text-2", "Ann has 12 apples . She buys 5 more . How many apples has Ann ?", "17"),
    Question("text-3", "Bob had 20 pears . " + "He eats 2 of them and gives away half of them . " * 12, "3"),
)
ALL = [SHORT, MIDDLE, LONG]
TASK = load_task("text")
ENDS = list(range(1, 64, 5))


@pytest.fixture(scope="module")
def reasoner(tiny_lm: Path) -> Reasoner:
    return Reasoner.from_pretrained(str(tiny_lm), device="cpu")


@pytest.fixture(scope="module")
def curt(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    """A reasoner with many end tokens, so that answers end at different lengths."""
    folder = tmp_path_factory.mktemp("curt") / "lm"
    variant(tiny_lm, folder, "generation_config.json", eos_token_id=ENDS)
    return Reasoner.from_pretrained(str(folder), device="cpu")


def grow(reasoner: Reasoner, questions: list[Question], **settings: Any) -> list[ReasoningTree]:
    settings = {"num_paths": 3, "latent_steps": 3, "noise": 0.3, "max_new_tokens": 12, **settings}
    return reasoner.grow(questions, TASK, reasoner.growth(**settings))


def chain(tree: ReasoningTree, leaf: int) -> torch.Tensor:
    return tree.chain_latents(leaf)


def same(one: ReasoningTree, other: ReasoningTree) -> None:
    """The same latents and tips to 1e-5, the same answers and scores."""
    assert len(one.paths) == len(other.paths)
    for a, b in zip(one.paths, other.paths, strict=True):
        torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.tip, b.tip, rtol=0, atol=1e-5)
        assert (a.answers, a.noise_free, a.prm_score, a.score) == (b.answers, b.noise_free, b.prm_score, b.score)
        assert (a.parent, a.agent) == (b.parent, b.agent)


# --- against a plain forward pass -----------------------------------------------------------------------------------


@torch.no_grad()
def plain_hidden(reasoner: Reasoner, question: Question, latents: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The hidden states of prompt, latents and tokens in one forward pass: no cache, no padding, no mask."""
    prompt = reasoner.tokenizer(render(reasoner.tokenizer, SOLO, question))["input_ids"]
    embed = reasoner.model.get_input_embeddings()
    parts = [embed(torch.tensor(prompt)), latents, embed(torch.tensor(tokens, dtype=torch.long))]
    out = reasoner.model.base_model(inputs_embeds=torch.cat(parts)[None], use_cache=False)
    return out.last_hidden_state[0, len(prompt) - 1 :]


@torch.no_grad()
def plain_answer(reasoner: Reasoner, question: Question, latents: torch.Tensor, longest: int) -> tuple[str, bool]:
    """The greedy answer, every token from a forward pass of its own, and whether it was cut off."""
    tokens: list[int] = []
    while len(tokens) < longest:
        hidden = plain_hidden(reasoner, question, latents, tokens)[-1]
        token = int(reasoner.model.get_output_embeddings()(hidden).argmax())
        if token in ENDS:
            return reasoner.tokenizer.decode(tokens), False
        tokens.append(token)
    return reasoner.tokenizer.decode(tokens), True


def test_tips_are_those_of_one_plain_forward_pass(reasoner: Reasoner) -> None:
    for question, tree in zip(ALL, grow(reasoner, ALL), strict=True):
        for path in tree.paths:
            hidden = plain_hidden(reasoner, question, path.latents, [])
            torch.testing.assert_close(path.tip, reasoner.latent_map(hidden)[-1], rtol=0, atol=1e-5)


def test_the_latents_of_the_noise_free_path_are_those_of_one_plain_forward_pass(reasoner: Reasoner) -> None:
    for question, tree in zip(ALL, grow(reasoner, ALL), strict=True):
        path = tree.paths[0]
        assert path.noise_free and not any(other.noise_free for other in tree.paths[1:])
        meant = reasoner.latent_map(plain_hidden(reasoner, question, path.latents, []))[:-1]
        torch.testing.assert_close(path.latents, meant, rtol=0, atol=1e-5)


def test_noise_is_relative_to_the_root_mean_square_of_the_latent(reasoner: Reasoner) -> None:
    ratios = []
    for question, tree in zip(ALL, grow(reasoner, ALL, num_paths=16, latent_steps=6, noise=0.25), strict=True):
        for path in tree.paths[1:]:
            meant = reasoner.latent_map(plain_hidden(reasoner, question, path.latents, []))[:-1]
            ratios.append((path.latents - meant).pow(2).mean(1) / meant.pow(2).mean(1))
    assert torch.cat(ratios).mean().sqrt().item() == pytest.approx(0.25, rel=0.05)  # 288 latents of 16 numbers


def test_answers_and_truncation_are_those_of_a_plain_decoding_loop(curt: Reasoner) -> None:
    found = []
    for question, tree in zip(ALL, grow(curt, ALL, num_paths=6, noise=1.0), strict=True):
        for path in tree.paths:
            answer = path.answers[0]
            assert (answer.text, answer.truncated) == plain_answer(curt, question, path.latents, 12)
            found.append(answer)
    assert len({len(answer.text.split()) for answer in found}) > 4  # many lengths, and both kinds, to compare
    assert len({answer.truncated for answer in found}) == 2


FAMILIES = ["qwen3", "qwen2", "llama", "mistral", "gemma3", "gpt2"]


@pytest.fixture(scope="module", params=FAMILIES)
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    folder = save_family(tmp_path_factory.mktemp(request.param) / "lm", request.param)
    return Reasoner.from_pretrained(str(folder), device="cpu")


def test_every_family_grows_what_a_plain_forward_pass_gives(any_family: Reasoner) -> None:
    test_tips_are_those_of_one_plain_forward_pass(any_family)
    test_the_latents_of_the_noise_free_path_are_those_of_one_plain_forward_pass(any_family)


@pytest.mark.parametrize("strategy", ["noise", "temperature", "dropout", "hybrid"])
def test_every_family_grows_by_every_strategy_and_no_batch_mate_is_felt(any_family: Reasoner, strategy: str) -> None:
    settings = {"diversity_strategy": strategy, "num_paths": 3, "dropout": 0.3}
    trees = grow(any_family, ALL, **settings)
    same(trees[1], grow(any_family, [MIDDLE], **settings)[0])
    for tree in trees:
        first = torch.stack([chain(tree, leaf)[-1] for leaf in tree.leaves()])
        assert (torch.pdist(first) > 1e-4).all()  # all paths differ, the noise-free one too


# --- independence ---------------------------------------------------------------------------------------------------


def test_batch_mates_and_padding_never_change_a_tree(reasoner: Reasoner) -> None:
    together = grow(reasoner, ALL)
    for question, tree in zip(ALL, together, strict=True):
        same(tree, grow(reasoner, [question])[0])
    same(together[2], grow(reasoner, [LONG, SHORT])[0])


def test_to_the_built_in_reasoner_no_batch_mate_is_felt_at_all_however_long_the_thought() -> None:
    exact = Reasoner.from_pretrained("builtin", device="cpu")
    assert exact.dtype == "float64"
    task = load_task("arithmetic,search")
    questions, growth = task.questions("test", 0, 6), exact.growth(num_paths=3, latent_steps=12)
    for question, tree in zip(questions, exact.grow(questions, task, growth), strict=True):
        for path, alone in zip(tree.paths, exact.grow([question], task, growth)[0].paths, strict=True):
            torch.testing.assert_close(path.latents, alone.latents, rtol=1e-6, atol=0)  # the last bit of float32
            assert path.latents.dtype == torch.float32 and path.answers == alone.answers


def test_batch_mates_never_change_a_sampled_answer(curt: Reasoner) -> None:
    for question, tree in zip(ALL, grow(curt, ALL, temperature=1.0), strict=True):
        alone = grow(curt, [question], temperature=1.0)[0]
        assert [path.answers for path in tree.paths] == [path.answers for path in alone.paths]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_path_is_the_same_however_many_siblings_it_has(tiny_backbone_24: Path, temperature: float) -> None:
    wide = Reasoner.from_pretrained(str(tiny_backbone_24), device="cpu")
    for steps in (1, 3):  # 24 numbers a latent: torch.randn would draw 1 × 24 otherwise as a part of 4 × 24
        few = grow(wide, [MIDDLE], num_paths=1, latent_steps=steps, temperature=temperature)[0]
        many = grow(wide, [MIDDLE], num_paths=4, latent_steps=steps, temperature=temperature)[0]
        for one, other in zip(few.paths, many.paths, strict=False):
            torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-5)
            assert one.answers == other.answers


def test_the_noise_free_path_is_a_path_without_noise(reasoner: Reasoner) -> None:
    quiet, loud = grow(reasoner, [MIDDLE], noise=0)[0], grow(reasoner, [MIDDLE], noise=0.5)[0]
    for path in quiet.paths:
        torch.testing.assert_close(path.latents, loud.paths[0].latents, rtol=0, atol=1e-5)
        assert path.answers == loud.paths[0].answers
    assert not torch.allclose(loud.paths[1].latents, loud.paths[0].latents, atol=1e-2)


def test_paths_that_cannot_differ_and_thinking_without_a_mode_for_it_are_said(
    reasoner: Reasoner, caplog: pytest.LogCaptureFixture
) -> None:
    reasoner.growth(noise=0.0, num_paths=4, think=True)
    assert "All 4 paths will be alike: there is neither diversity nor a temperature." in caplog.messages
    assert any(message.startswith("--think changes nothing") for message in caplog.messages)
    caplog.clear()
    reasoner.growth(noise=0.0, num_paths=1)
    reasoner.growth(noise=0.0, temperature=0.5)
    assert not caplog.messages


def test_siblings_questions_and_seeds_each_have_noise_of_their_own(reasoner: Reasoner) -> None:
    one, other = grow(reasoner, [MIDDLE, dataclasses.replace(MIDDLE, id="text-9")])
    again = grow(reasoner, [MIDDLE], seed=7)[0]
    first = [tree.paths[k].latents[0] for tree in (one, other, again) for k in (1, 2, 3)]
    gaps = torch.cdist(torch.stack(first), torch.stack(first))
    assert (gaps + 9 * torch.eye(9) > 1e-3).all()


# --- agents and branches --------------------------------------------------------------------------------------------

TEAM = Pipeline(
    "team",
    (Agent("planner", "{question} Plan ."), Agent("critic", "Check {question} again ."), Agent("refiner", None)),
    judger="Now answer {question}",
)


@torch.no_grad()
def plain_chain(
    reasoner: Reasoner, question: Question, tree: ReasoningTree, leaf: int, prompts: list[str | None]
) -> Any:
    """Hidden states of a leaf's whole text in one pass: each agent's prompt, then its latents; where each run ends."""
    embed, parts, ends = reasoner.model.get_input_embeddings(), [], []
    for prompt, i in zip(prompts, tree.chain(leaf), strict=True):
        if prompt is not None:
            ids = reasoner.tokenizer(render(reasoner.tokenizer, prompt, question))["input_ids"]
            parts.append(embed(torch.tensor(ids)))
        parts.append(tree.paths[i].latents)
        ends.append(sum(map(len, parts)) - 1)
    return reasoner.model.base_model(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state[0], ends


def test_agents_think_on_top_of_each_other_as_in_one_plain_forward_pass(reasoner: Reasoner) -> None:
    prompts = [agent.prompt for agent in TEAM.agents]
    for question, tree in zip(ALL, grow(reasoner, ALL, pipeline=TEAM, num_paths=None, branches=(2, 3, 1)), strict=True):
        assert [path.agent for path in tree.paths] == ["planner"] * 3 + ["critic"] * 7 + ["refiner"] * 7
        for leaf in tree.leaves():
            hidden, ends = plain_chain(reasoner, question, tree, leaf, prompts)
            for end, i in zip(ends, tree.chain(leaf), strict=True):
                tip = reasoner.latent_map(hidden[end][None])[0]
                torch.testing.assert_close(tree.paths[i].tip, tip, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_judger_reads_its_prompt_after_all_thoughts_and_answers(curt: Reasoner) -> None:
    settings = {"pipeline": TEAM, "num_paths": None, "branches": (3, 2, 1), "noise": 1.0, "latent_steps": 2}
    tree = grow(curt, [SHORT, MIDDLE], **settings)[1]
    prompts = [agent.prompt for agent in TEAM.agents]
    embed, found = curt.model.get_input_embeddings(), []
    for leaf in tree.leaves():
        parts = []
        for prompt, i in zip(prompts, tree.chain(leaf), strict=True):
            ids = curt.tokenizer(render(curt.tokenizer, prompt, MIDDLE))["input_ids"] if prompt else []
            parts += [embed(torch.tensor(ids, dtype=torch.long)), tree.paths[i].latents]
        parts.append(
            embed(torch.tensor(curt.tokenizer(render(curt.tokenizer, TEAM.judger or "", MIDDLE))["input_ids"]))
        )
        tokens: list[int] = []
        while len(tokens) < 12:
            inputs = torch.cat([*parts, embed(torch.tensor(tokens, dtype=torch.long))])
            token = int(curt.model(inputs_embeds=inputs[None]).logits[0, -1].argmax())
            if token in ENDS:
                break
            tokens.append(token)
        found.append(curt.tokenizer.decode(tokens))
        assert tree.paths[leaf].answers[0].text == found[-1]
    assert len(set(found)) > 2


def test_branches_make_the_tree_and_one_noise_free_chain_beside_it(reasoner: Reasoner) -> None:
    tree = grow(reasoner, [MIDDLE], num_paths=None, branches=(2, 2, 3), latent_steps=5)[0]
    assert [len(path.latents) for path in tree.paths] == [1] * 3 + [2] * 5 + [2] * 13
    free = [i for i, path in enumerate(tree.paths) if path.noise_free]
    assert free == [0, 3, 8] and tree.chain(8) == free
    assert [path.parent for path in tree.paths] == [None] * 3 + [0, 1, 1, 2, 2] + [
        3,
        4,
        4,
        4,
        5,
        5,
        5,
        6,
        6,
        6,
        7,
        7,
        7,
    ]
    assert all(bool(path.answers) == (i in tree.leaves()) for i, path in enumerate(tree.paths))


def test_branching_changes_nothing_for_the_paths_that_were_there(reasoner: Reasoner) -> None:
    """The first child of every path begins as if it were the only one."""
    slim = grow(reasoner, [MIDDLE], num_paths=None, branches=(3, 1), latent_steps=4)[0]
    wide = grow(reasoner, [MIDDLE], num_paths=None, branches=(5, 1), latent_steps=4)[0]
    for leaf, other in zip(slim.leaves(), wide.leaves(), strict=False):
        torch.testing.assert_close(chain(slim, leaf), chain(wide, other), rtol=0, atol=1e-5)


def test_an_agent_without_latents_leaves_no_path_but_is_read(reasoner: Reasoner) -> None:
    def tree(*agents: Agent) -> ReasoningTree:
        return grow(reasoner, [SHORT], pipeline=Pipeline("own", agents, None), num_paths=2)[0]

    first, mute = Agent("a", "{question}", 2), Agent("b", "Check {question}", 0)
    with_reader, without = tree(first, mute), tree(first)
    assert [path.agent for path in with_reader.paths] == ["a"] * 3
    torch.testing.assert_close(with_reader.paths[1].latents, without.paths[1].latents)
    assert with_reader.paths[1].answers and with_reader.paths[1].answers != without.paths[1].answers
    last = tree(mute, Agent("c", None, 2))
    assert [path.agent for path in last.paths] == ["c"] * 3


def test_every_leaf_gets_as_many_answers_as_asked_and_the_noise_free_one_a_single_greedy_one(
    reasoner: Reasoner,
) -> None:
    several = grow(reasoner, ALL, answers_per_leaf=4, temperature=1.5, num_paths=2)
    for tree in several:
        assert [len(path.answers) for path in tree.paths] == [1, 4, 4]
        assert [path.num_answers for path in tree.paths] == [1, 4, 4]
        assert len({answer.text for answer in tree.paths[1].answers}) > 1
    one = grow(reasoner, ALL, temperature=1.5, num_paths=2)
    for tree, other in zip(several, one, strict=True):
        assert tree.paths[0].answers == other.paths[0].answers
        assert tree.paths[1].answers[0] == other.paths[1].answers[0]  # the first is the same, however many
    for question, tree in zip(ALL, several, strict=True):
        same(tree, grow(reasoner, [question], answers_per_leaf=4, temperature=1.5, num_paths=2)[0])


def test_without_the_noise_free_path_the_others_are_the_same(reasoner: Reasoner) -> None:
    for tree, other in zip(grow(reasoner, ALL), grow(reasoner, ALL, noise_free=False), strict=True):
        assert not any(path.noise_free for path in other.paths)
        for path, same_path in zip(tree.paths[1:], other.paths, strict=True):
            torch.testing.assert_close(path.latents, same_path.latents, rtol=0, atol=1e-5)


def test_hidden_states_are_kept_on_request_and_are_the_latents_before_noise(reasoner: Reasoner) -> None:
    plain, kept = grow(reasoner, [MIDDLE])[0], grow(reasoner, [MIDDLE], keep_hidden=True)[0]
    assert all(path.hidden is None for path in plain.paths)
    torch.testing.assert_close(kept.paths[0].hidden, kept.paths[0].latents)
    for path in kept.paths[1:]:
        meant = reasoner.latent_map(plain_hidden(reasoner, MIDDLE, path.latents, []))[:-1]
        torch.testing.assert_close(path.hidden, meant, rtol=0, atol=1e-5)


class Graded:
    """Says of each question whether its first paths are to come out alike."""

    name = "text"

    def __init__(self, mixed: set[str]) -> None:
        self.mixed = mixed
        self.calls: Counter[str] = Counter()

    def grade(self, question: Question, text: str) -> Grade:
        self.calls[question.id] += 1
        return Grade("1", question.id in self.mixed and self.calls[question.id] % 2 == 0)


def test_until_mixed_stops_the_clear_and_goes_on_with_the_undecided(reasoner: Reasoner) -> None:
    growth = reasoner.growth(num_paths=6, latent_steps=2, noise=0.3, max_new_tokens=2, until_mixed=True)
    trees = reasoner.grow(ALL, Graded({"text-2"}), growth)  # type: ignore[reportArgumentType]
    assert [len(tree.paths) for tree in trees] == [1 + 3, 1 + 3 + 6, 1 + 3]
    whole = grow(reasoner, ALL, num_paths=9, latent_steps=2, max_new_tokens=2)
    for tree, other in zip(trees, whole, strict=True):  # what was grown is the beginning of a plain growth
        for path, same_path in zip(tree.paths, other.paths, strict=False):
            torch.testing.assert_close(path.latents, same_path.latents, rtol=0, atol=1e-5)


def test_until_mixed_keeps_parents_right_in_trees_of_several_runs(reasoner: Reasoner) -> None:
    growth = reasoner.growth(branches=(4, 2), latent_steps=2, max_new_tokens=2, until_mixed=True)
    tree = reasoner.grow([MIDDLE], Graded({"text-2"}), growth)[0]  # type: ignore[reportArgumentType]
    assert len(tree.leaves()) == 1 + 2 * 2 + 4 * 2
    assert all(len(tree.chain(leaf)) == 2 for leaf in tree.leaves())
    assert all(len(tree.children(i)) == 2 for i, path in enumerate(tree.paths) if path.parent is None and i)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_when_memory_is_full_fewer_are_grown_at_a_time_and_the_trees_are_the_same(
    tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: Exception
) -> None:
    small = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    expected, feed = grow(small, ALL, num_paths=4), Thought.feed

    def feed_few(self: Thought, latent: torch.Tensor) -> None:
        if len(self) > 3:
            raise reason
        feed(self, latent)

    monkeypatch.setattr(Thought, "feed", feed_few)
    for tree, other in zip(grow(small, ALL, num_paths=4), expected, strict=True):
        same(tree, other)
    assert "The memory is too small for 3 questions at once: trying 1." in caplog.messages
    assert "The memory is too small for 4 paths at once: trying half of them." in caplog.messages
    caplog.clear()
    grow(small, ALL, num_paths=2)
    assert not caplog.messages  # it has learnt how many fit


def test_a_memory_too_small_for_one_path_and_other_errors_are_told_apart(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: Exception) -> Any:
        def feed(self: Thought, latent: torch.Tensor) -> None:
            raise error

        return feed

    monkeypatch.setattr(Thought, "feed", raising(torch.OutOfMemoryError("CUDA out of memory\nmore")))
    with pytest.raises(ValueError, match=r"too small for one path \(CUDA out of memory\)\. Type a lower"):
        grow(reasoner, [SHORT], num_paths=1)
    monkeypatch.setattr(Thought, "feed", raising(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        grow(reasoner, ALL)


def test_a_sliding_window_never_lets_batch_mates_be_felt(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "lm", "mistral", sliding_window=24)
    narrow = Reasoner.from_pretrained(str(folder), device="cpu")
    for question, tree in zip(ALL, grow(narrow, ALL), strict=True):
        same(tree, grow(narrow, [question])[0])
        hidden = plain_hidden(narrow, question, tree.paths[1].latents, [])
        torch.testing.assert_close(tree.paths[1].tip, narrow.latent_map(hidden)[-1], rtol=0, atol=1e-5)


def test_where_the_longest_row_decides_the_rotation_no_batch_mate_is_felt_either(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    rope |= {"original_max_position_embeddings": 60, "partial_rotary_factor": 1.0}
    folder = save_family(tmp_path / "lm", "phi3", rope_parameters=rope, original_max_position_embeddings=60)
    long = Reasoner.from_pretrained(str(folder), device="cpu")
    for question, tree in zip(ALL, grow(long, ALL), strict=True):
        same(tree, grow(long, [question])[0])


# --- decoding -------------------------------------------------------------------------------------------------------


def test_sampling_follows_the_seed_and_spares_the_noise_free_path(reasoner: Reasoner) -> None:
    def texts(**settings: Any) -> list[str]:
        return [path.answers[0].text for tree in grow(reasoner, ALL, noise=0, **settings) for path in tree.paths]

    sampled, greedy = texts(temperature=1.5), texts()
    assert sampled == texts(temperature=1.5)
    assert sampled != texts(temperature=1.5, seed=43)
    assert sampled[::4] == greedy[::4]
    assert sampled != greedy


def test_an_answer_of_the_longest_length_is_marked_as_cut_off(reasoner: Reasoner) -> None:
    path = grow(reasoner, [SHORT], num_paths=1, max_new_tokens=1)[0].paths[0]
    assert path.answers[0].truncated
    assert len(path.answers[0].text.split()) == 1


def test_every_end_token_of_the_model_ends_an_answer(tiny_lm: Path, tmp_path: Path, reasoner: Reasoner) -> None:
    whole = grow(reasoner, [SHORT], num_paths=1, max_new_tokens=8)[0].paths[0].answers[0]
    words = whole.text.split()
    assert len(set(words)) > 1
    second = next(word for word in words if word != words[0])
    folder = variant(tiny_lm, tmp_path / "lm", "generation_config.json", eos_token_id=[1, token(reasoner, second)])
    cut = grow(Reasoner.from_pretrained(str(folder), device="cpu"), [SHORT], num_paths=1, max_new_tokens=8)[0]
    assert cut.paths[0].answers[0].text.split() == words[: words.index(second)]
    assert not cut.paths[0].answers[0].truncated


def test_what_growing_costs_is_counted(tiny_lm: Path) -> None:
    counting = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    tree = grow(counting, [SHORT])[0]
    answers = [path.answers[0] for path in tree.paths]
    words = sum(len(answer.text.split()) + (not answer.truncated) for answer in answers)  # one word, one token; an end
    assert counting.spent == {"prompt_tokens": 6, "latents": 4 * 3, "answer_tokens": words}


# --- from hidden state to next input --------------------------------------------------------------------------------


def test_a_model_made_for_latents_names_its_own_map_and_settings(tiny_lm: Path, tmp_path: Path) -> None:
    own = {"latent_map": {"factor": 0.5}, "latent_steps": 3, "noise": 0.2, "max_new_tokens": 7}
    folder = variant(tiny_lm, tmp_path / "lm", "config.json", latent_prm=own)
    made = Reasoner.from_pretrained(str(folder), device="cpu")
    hidden = torch.randn(2, 16)
    assert torch.equal(made.latent_map(hidden), hidden * 0.5)
    growth = made.growth(num_paths=2)
    assert (growth.latent_steps, growth.noise, growth.max_new_tokens) == (3, 0.2, 7)
    assert made.growth(num_paths=2, noise=0.0).noise == 0.0  # what is typed wins, 0 too
    path = made.grow([SHORT], TASK, growth)[0].paths[0]
    torch.testing.assert_close(path.latents[0], plain_hidden(made, SHORT, path.latents, [])[0] * 0.5)


def test_any_other_model_gets_ten_latents_a_tenth_of_noise_and_256_tokens(reasoner: Reasoner) -> None:
    growth = reasoner.growth()
    assert (growth.latent_steps, growth.noise, growth.max_new_tokens, growth.num_paths) == (10, 0.1, 256, 16)


def test_latents_and_tips_are_plain_float32_tensors_that_can_be_trained_on(reasoner: Reasoner) -> None:
    path = grow(reasoner, [SHORT])[0].paths[1]
    assert path.latents.shape == (3, 16) and path.latents.dtype == torch.float32
    weight = torch.ones(16, requires_grad=True)
    (path.latents @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, path.latents.sum(0))


def test_a_bfloat16_latent_is_stored_as_it_was_fed(tiny_lm: Path) -> None:
    half = Reasoner.from_pretrained(str(tiny_lm), device="cpu", dtype="bfloat16")
    latents = grow(half, [SHORT])[0].paths[1].latents
    assert latents.dtype == torch.float32
    assert torch.equal(latents, latents.bfloat16().float())


def test_the_digest_tells_weights_and_maps_apart_but_not_folders(tiny_lm: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return Reasoner.from_pretrained(str(folder), device="cpu").digest()

    copy = variant(tiny_lm, tmp_path / "copy", "config.json")
    mapped = variant(tiny_lm, tmp_path / "mapped", "config.json", latent_prm={"latent_map": {"factor": 0.5}})
    other = save_lm(tmp_path / "other", hidden_size=16, seed=1)
    assert digest(copy) == digest(tiny_lm)
    assert len({digest(tiny_lm), digest(mapped), digest(other)}) == 3


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_a_question_with_too_many_positions_is_refused_by_name(reasoner: Reasoner) -> None:
    with pytest.raises(ValueError, match=r"Question 'text-1' needs 519 positions .* the reasoner has 512"):
        grow(reasoner, [SHORT], latent_steps=1, max_new_tokens=512)


SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
ATTENTION = {"num_attention_heads": 2, "intermediate_size": 32}
NOT_PLAIN = {
    "mamba": SMALL | {"state_size": 4},
    "lfm2": SMALL | ATTENTION | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "llama4_text": SMALL | ATTENTION | {"num_key_value_heads": 1, "num_local_experts": 2, "intermediate_size_mlp": 32},
    "rwkv": SMALL,
}


def save_other(folder: Path, kind: str, shape: dict[str, Any]) -> Path:
    save_tokenizer(folder)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_reasoner_without_plain_attention_is_refused_in_words_with_its_weights_and_without(
    tmp_path: Path, kind: str
) -> None:
    folder = save_other(tmp_path / "lm", kind, NOT_PLAIN[kind])
    for weights in (True, False):
        with pytest.raises(ValueError, match=r"^\w+ForCausalLM .* Type a decoder with plain attention, as Qwen/Qwen3"):
            Reasoner.from_pretrained(str(folder), device="cpu", weights=weights)


def test_an_encoder_and_a_head_of_more_than_one_layer_are_refused_in_words(tmp_path: Path) -> None:
    encoder = save_other(tmp_path / "encoder", "bert", SMALL | ATTENTION)
    with pytest.raises(ValueError, match=r"^BertLMHeadModel cannot think .* Type a decoder with plain attention"):
        Reasoner.from_pretrained(str(encoder), device="cpu")
    tokens = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep", "pad")}
    headed = save_other(tmp_path / "headed", "modernbert-decoder", SMALL | ATTENTION | tokens)
    with pytest.raises(ValueError, match=r"^ModernBertDecoderForCausalLM says something else"):
        Reasoner.from_pretrained(str(headed), device="cpu")


def test_experts_in_64_bits_are_refused_with_the_way_out(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    folder = str(save_family(tmp_path / "lm", "qwen3_moe", **experts))
    with pytest.raises(ValueError, match=r"Qwen3MoeForCausalLM cannot think in torch.float64: .* Type --dtype float32"):
        Reasoner.from_pretrained(folder, device="cpu", dtype="float64")
    assert Reasoner.from_pretrained(folder, device="cpu", dtype="float32").latent_dim == 16


def test_a_padding_token_without_an_embedding_changes_nothing(
    tiny_lm: Path, tmp_path: Path, reasoner: Reasoner
) -> None:
    folder = tmp_path / "lm"
    shutil.copytree(tiny_lm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    padded = Reasoner.from_pretrained(str(folder), device="cpu")
    assert padded.tokenizer.pad_token_id == len(padded.model.get_input_embeddings().weight)
    for one, other in zip(grow(padded, ALL), grow(reasoner, ALL), strict=True):
        same(one, other)


def test_latents_that_are_not_finite_are_refused(tiny_lm: Path, tmp_path: Path) -> None:
    own = {"latent_map": {"factor": 1e39}}  # float32 ends at 3.4e38
    folder = variant(tiny_lm, tmp_path / "lm", "config.json", latent_prm=own)
    with pytest.raises(ValueError, match="latents are not finite in float32"):
        grow(Reasoner.from_pretrained(str(folder), device="cpu"), [SHORT])


def token(reasoner: Reasoner, word: str) -> int:
    return reasoner.tokenizer(word)["input_ids"][0]


def variant(folder: Path, copy: Path, name: str, **changes: Any) -> Path:
    """A copy of a model's folder with some keys of one of its .json files changed."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | changes))
    return copy
