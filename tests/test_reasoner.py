"""The reasoner: what it feeds, caches and decodes is what a plain forward pass, without any of that, gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_lm

from latent_prm.prompts import INSTRUCTION, solo_prompt
from latent_prm.reasoner import RIDGE, Reasoner, _sample, find_folder, pick_device
from latent_prm.tasks import Question, load_task
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


def same(one: ReasoningTree, other: ReasoningTree) -> None:
    """The same latents and tips to 1e-5, the same answers and scores."""
    assert len(one.paths) == len(other.paths)
    for a, b in zip(one.paths, other.paths, strict=True):
        torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.tip, b.tip, rtol=0, atol=1e-5)
        assert (a.answers, a.noise_free, a.prm_score, a.score) == (b.answers, b.noise_free, b.prm_score, b.score)


# --- against a plain forward pass -----------------------------------------------------------------------------------


@torch.no_grad()
def plain_hidden(reasoner: Reasoner, question: Question, latents: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The hidden states of prompt, latents and tokens in one forward pass: no cache, no padding, no mask."""
    prompt = reasoner.tokenizer(solo_prompt(reasoner.tokenizer, question.text, "text"))["input_ids"]
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


def test_a_model_with_absolute_positions_is_padded_as_exactly(tiny_lm: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(tiny_lm, tmp_path / "lm")
    config = GPT2Config(
        vocab_size=80, n_positions=512, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, eos_token_id=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    test_tips_are_those_of_one_plain_forward_pass(Reasoner.from_pretrained(str(tmp_path / "lm"), device="cpu"))


# --- independence ---------------------------------------------------------------------------------------------------


def test_batch_mates_and_padding_never_change_a_tree(reasoner: Reasoner) -> None:
    together = grow(reasoner, ALL)
    for question, tree in zip(ALL, together, strict=True):
        same(tree, grow(reasoner, [question])[0])
    same(together[2], grow(reasoner, [LONG, SHORT])[0])


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


def test_a_siblings_noise_changes_nothing_for_another(reasoner: Reasoner) -> None:
    def think(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        thought = reasoner._read([reasoner._tokens(MIDDLE)])
        thought.select(torch.zeros(3, dtype=torch.long))
        return reasoner._think(thought, noise)

    with torch.no_grad():
        noise = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
        latents, tips = think(noise)
        noise[1] *= -3
        others, other_tips = think(noise)
    assert torch.equal(latents[[0, 2]], others[[0, 2]]) and torch.equal(tips[[0, 2]], other_tips[[0, 2]])
    assert not torch.allclose(latents[1], others[1]) and not torch.allclose(tips[1], other_tips[1])


def test_the_noise_free_path_is_a_path_without_noise(reasoner: Reasoner) -> None:
    quiet, loud = grow(reasoner, [MIDDLE], noise=0)[0], grow(reasoner, [MIDDLE], noise=0.5)[0]
    for path in quiet.paths:
        torch.testing.assert_close(path.latents, loud.paths[0].latents, rtol=0, atol=1e-5)
        assert path.answers == loud.paths[0].answers
    assert not torch.allclose(loud.paths[1].latents, loud.paths[0].latents, atol=1e-2)


def test_siblings_questions_and_seeds_each_have_noise_of_their_own(reasoner: Reasoner) -> None:
    one, other = grow(reasoner, [MIDDLE, dataclasses.replace(MIDDLE, id="text-9")])
    again = grow(reasoner, [MIDDLE], seed=7)[0]
    first = [tree.paths[k].latents[0] for tree in (one, other, again) for k in (1, 2, 3)]
    gaps = torch.cdist(torch.stack(first), torch.stack(first))
    assert (gaps + 9 * torch.eye(9) > 1e-3).all()


# --- decoding -------------------------------------------------------------------------------------------------------


def test_sampling_follows_the_seed_and_spares_the_noise_free_path(reasoner: Reasoner) -> None:
    def texts(**settings: Any) -> list[str]:
        return [path.answers[0].text for tree in grow(reasoner, ALL, noise=0, **settings) for path in tree.paths]

    sampled, greedy = texts(temperature=1.5), texts()
    assert sampled == texts(temperature=1.5)
    assert sampled != texts(temperature=1.5, seed=43)
    assert sampled[::4] == greedy[::4]
    assert sampled != greedy


def test_sampling_takes_the_token_whose_share_holds_the_number() -> None:
    logits = torch.tensor([0.0, 0.5, 0.25, 0.25]).log().expand(6, 4)
    drawn = _sample(logits, torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.999]))
    assert drawn.tolist() == [1, 1, 2, 2, 3, 3]  # token 0 never comes, not even for the number 0


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
    words = sum(len(path.answers[0].text.split()) for path in tree.paths)  # one word, one token
    assert counting.spent == {"prompt_tokens": 6, "latents": 4 * 3, "answer_tokens": words}


def test_the_key_value_cache_is_counted_in_bytes(reasoner: Reasoner) -> None:
    growth = reasoner.growth(num_paths=3, latent_steps=4, max_new_tokens=10)
    per_token = 2 * 2 * 1 * 8 * 4  # keys and values, layers, heads, head_dim, float32
    assert reasoner.cache_bytes(SHORT, growth) == (6 + 4 + 10) * (3 + 1) * per_token


# --- from hidden state to next input --------------------------------------------------------------------------------


def test_the_latent_map_is_the_latentmas_alignment_in_float64(tiny_lm: Path, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shutil.copytree(tiny_lm, tmp_path / "lm")
    config = Qwen3Config.from_pretrained(tiny_lm, tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / "lm")
    untied = Reasoner.from_pretrained(str(tmp_path / "lm"), device="cpu")
    w_in, w_out = (getattr(untied.model, f"get_{kind}_embeddings")().weight.double() for kind in ("input", "output"))
    assert not torch.equal(w_in, w_out)
    w_a = torch.linalg.inv(w_out.T @ w_out + RIDGE * torch.eye(16).double()) @ w_out.T @ w_in
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    aligned = hidden.double() @ w_a
    expected = aligned / aligned.norm(dim=1, keepdim=True) * w_in.norm(dim=1).mean()
    torch.testing.assert_close(untied.latent_map(hidden).double(), expected, rtol=1e-4, atol=1e-5)


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


# --- prompts --------------------------------------------------------------------------------------------------------


def test_a_chat_model_is_told_how_to_answer_and_another_gets_the_bare_question(reasoner: Reasoner) -> None:
    assert solo_prompt(reasoner.tokenizer, SHORT.text, "text") == SHORT.text
    chat = type(reasoner.tokenizer).from_pretrained(reasoner.tokenizer.name_or_path)
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}{% if not enable_thinking %}<no-thinking>{% endif %}"
    )
    for kind, told in (("search", "search"), ("gsm8k", "text")):
        expected = f"<user>{SHORT.text}\n\n{INSTRUCTION[told]}<assistant><no-thinking>"
        assert solo_prompt(chat, SHORT.text, kind) == expected


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "prm_data").mkdir()
    for path in (tmp_path / "prm_data", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"No model in {path}: .* Type --model_path"):
            find_folder(str(path))


def test_a_relative_folder_without_a_model_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prm_data").mkdir()
    with pytest.raises(ValueError, match="No model in prm_data"):
        find_folder("prm_data")
    assert find_folder("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert find_folder("gpt2") == "gpt2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused() -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"--device is {device}, but no CUDA device was found. Type --device cpu"):
            pick_device(device)


def test_a_device_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--device is cdua, .* Type cuda, cpu or auto"):
        pick_device("cdua")


def test_a_question_with_too_many_positions_is_refused_by_name(reasoner: Reasoner) -> None:
    with pytest.raises(ValueError, match=r"Question 'text-1' needs 519 positions .* the reasoner has 512"):
        grow(reasoner, [SHORT], latent_steps=1, max_new_tokens=512)


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
