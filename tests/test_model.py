"""The model: packed scores and gradients are those of each path alone; what a state dict and a folder bring back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from latent_prm import files
from latent_prm.model import POOLINGS, QwenLatentPRM
from latent_prm.packing import pack
from latent_prm.tree import Path as LatentPath
from latent_prm.tree import ReasoningTree

Trees = Callable[..., ReasoningTree]

QUESTION = "Ann has 3 apples . She buys 2 more . How many apples has Ann ?"
SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def build(
    backbone: Path, pooling: str = "mean", latent_dim: int | None = None, seed: int = 0, second_head: bool = False
) -> QwenLatentPRM:
    """A PRM whose heads and projection are drawn from ``seed``, without dropout in effect."""
    torch.manual_seed(seed)
    model = QwenLatentPRM(backbone, latent_dim, pooling, second_head=second_head)
    torch.nn.init.normal_(model.head.weight)  # wide, so that scores differ visibly
    if model.correctness_head is not None:
        torch.nn.init.normal_(model.correctness_head.weight)
    return model.eval()


def grow(make_tree: Trees, width: int, rounds: int = 1) -> list[ReasoningTree]:
    """Trees of many forms: branching once to thrice, chains of 1 to 12 latents, several agents, unexpanded paths."""
    shapes: list[dict[str, Any]] = [
        {"branches": (4,), "latent_steps": (3, 3)},
        {"branches": (3, 2), "latent_steps": (1, 5), "question": "What is 3 + 4 ?"},
        {"branches": (2, 2, 2), "latent_steps": (1, 4), "noise_free": False, "unexpanded": 0.5},
        {"branches": (1, 3), "latent_steps": (1, 1)},
        {"branches": (1,), "latent_steps": (1, 1), "noise_free": False},
    ]
    trees = [make_tree(seed, width=width, **shape) for seed, shape in enumerate(shapes * rounds)]
    for tree in trees:
        for path in tree.paths:
            path.agent = "planner" if path.parent is None else "critic"
    return trees


def alone(model: QwenLatentPRM, latents: Tensor, question: str | None = None, head: str = "head") -> Tensor:
    """The logit of one chain, written plainly: one sequence without padding, the backbone's own causal attention."""
    x = latents if model.projection is None else latents @ model.projection.weight.T
    if question is not None:
        tokens = torch.tensor(model.tokenizer(question)["input_ids"])
        x = torch.cat([model.backbone.get_input_embeddings()(tokens), x])
    states = model.backbone(inputs_embeds=x[None]).last_hidden_state[0, -len(latents) :]
    if model.pooling == "mean":
        pooled = states.mean(0)
    elif model.pooling == "last":
        pooled = states[-1]
    else:
        pooled = states.max(0).values
    return getattr(model, head).weight[0] @ pooled


def all_alone(model: QwenLatentPRM, trees: Sequence[ReasoningTree], context: bool) -> list[Tensor]:
    """The logits of every path of every tree, each path by itself."""
    return [
        torch.stack(
            [alone(model, tree.chain_latents(i), tree.question if context else None) for i in range(len(tree.paths))]
        )
        for tree in trees
    ]


def all_packed(model: QwenLatentPRM, trees: Sequence[ReasoningTree], context: bool, pack_tokens: int) -> list[Tensor]:
    """The same logits, packed."""
    contexts = model.read_questions([tree.question for tree in trees]) if context else [[]] * len(trees)
    found = {
        where: logit
        for batch in pack(trees, contexts, pack_tokens=pack_tokens, shared=model.shares)
        for where, logit in zip(batch.paths, model(batch).value, strict=True)
    }
    return [torch.stack([found[n, i] for i in range(len(tree.paths))]) for n, tree in enumerate(trees)]


def gradients(model: QwenLatentPRM, logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of a loss in which every path has another weight."""
    model.zero_grad()
    values = torch.cat(list(logits))
    (values.sigmoid() * torch.linspace(-1, 2, len(values))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[16, 24], ids=["D=H", "D≠H"])
def backbone(request: pytest.FixtureRequest, tiny_lm: Path, tiny_backbone_24: Path) -> Path:
    """A backbone for latents that are 16 wide."""
    return tiny_lm if request.param == 16 else tiny_backbone_24


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [True, False], ids=["question", "none"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_scores_and_gradients_are_those_of_each_path_alone(
    make_tree: Trees, backbone: Path, pooling: str, context: bool
):
    model, trees = build(backbone, pooling, latent_dim=16), grow(make_tree, 16, rounds=3)
    wanted = all_alone(model, trees, context)
    assert torch.cat(wanted).std() > 0.1
    for pack_tokens in (1, 10_000):
        packed = all_packed(model, trees, context, pack_tokens)
        for one, other in zip(packed, wanted, strict=True):
            close(one, other)
    scored = gradients(model, packed)
    expected = gradients(model, all_alone(model, trees, context))
    assert scored.keys() == expected.keys()
    assert scored.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in expected.items():
        assert value.abs().max() > 1e-2
        close(scored[name], value)


@pytest.mark.parametrize("context", [True, False], ids=["question", "none"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_score_trees_is_the_same_however_it_is_cut_and_packed(
    make_tree: Trees, tiny_lm: Path, pooling: str, context: bool
):
    model, trees = build(tiny_lm, pooling), grow(make_tree, 16)
    wanted = [logits.sigmoid() for logits in all_alone(model, trees, context)]
    for pack_tokens in (1, 50, 200, 16384):
        for one, other in zip(model.score_trees(trees, context, pack_tokens), wanted, strict=True):
            close(one, other)
    model.shares = False  # as for a backbone that cannot pack
    for one, other in zip(model.score_trees(trees, context), wanted, strict=True):
        close(one, other)
    (by_itself,) = model.score_trees(trees[1:2], context)
    close(by_itself, wanted[1])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_chain_that_is_too_long_scores_as_its_last_latents_alone(make_tree: Trees, tiny_lm: Path, pooling: str):
    model, trees = build(tiny_lm, pooling), grow(make_tree, 16)
    for n, scores in enumerate(model.score_trees(trees, max_seq_length=3)):
        for i, score in enumerate(scores):
            close(score, alone(model, trees[n].chain_latents(i)[-3:], trees[n].question).sigmoid())
    model.max_seq_length = 3
    for one, other in zip(model.score_trees(trees), model.score_trees(trees, max_seq_length=3), strict=True):
        assert torch.equal(one, other)


def test_every_path_has_a_score_those_without_a_label_too(make_tree: Trees, tiny_lm: Path):
    tree = make_tree(1, branches=(3, 2), unexpanded=1.0)
    assert all(path.prm_score is None for path in tree.paths if not path.noise_free)
    (scores,) = build(tiny_lm).score_trees([tree])
    assert scores.shape == (len(tree.paths),) and scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()


def test_nothing_to_score_gives_nothing(tiny_lm: Path):
    model = build(tiny_lm)
    assert model.score_trees([]) == []
    empty = ReasoningTree(question_id="q", question="?", gold="", task="", paths=[])
    assert [scores.shape for scores in model.score_trees([empty])] == [(0,)]
    assert model.predict_scores(torch.zeros(0, 3, 16)).shape == (0,)


# --- predict_scores --------------------------------------------------------------------------------------------------


def padded(chains: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """The chains in one tensor, garbage where there is none, and which places are real."""
    longest = max(map(len, chains))
    latents, mask = torch.full((len(chains), longest, 16), 1e3), torch.zeros(len(chains), longest, dtype=torch.bool)
    for row, chain in enumerate(chains):
        place = slice(longest - len(chain), longest) if side == "left" else slice(len(chain))
        latents[row, place], mask[row, place] = chain, True
    return latents, mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_and_batch_mates_never_change_a_score(backbone: Path, pooling: str, side: str, dtype: torch.dtype):
    model = build(backbone, pooling, latent_dim=16)
    chains = [torch.randn(T, 16) for T in (1, 7, 3, 12)]
    latents, mask = padded(chains, side)
    questions = [QUESTION, "What is 3 ?", "start", "How many ?"]
    with torch.no_grad():
        for asked in (None, questions):
            together = model.predict_scores(latents, mask.to(dtype), asked)
            for row, chain in enumerate(chains):
                question = None if asked is None else asked[row]
                close(together[row], alone(model, chain, question).sigmoid())
                one = model.predict_scores(chain[None], questions=None if question is None else [question])
                close(together[row], one[0])


@pytest.mark.parametrize("asked", [None, QUESTION])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_score_of_a_prefix_is_that_of_the_chain_cut_there(tiny_lm: Path, pooling: str, asked: str | None):
    model = build(tiny_lm, pooling)
    chains = [torch.randn(T, 16) for T in (5, 1, 3)]
    latents, mask = padded(chains, "left")
    questions = None if asked is None else [asked] * 3
    with torch.no_grad():
        steps = model.predict_step_scores(latents, mask, questions)
        assert torch.equal(steps[~mask], torch.zeros(int((~mask).sum())))
        for row, chain in enumerate(chains):
            for t in range(len(chain)):
                cut = model.predict_scores(chain[None, : t + 1], questions=questions and questions[:1])
                close(steps[row, 5 - len(chain) + t], cut[0])


def test_one_latent_and_no_question_is_a_score_and_not_nan(tiny_lm: Path):
    for pooling in POOLINGS:
        assert 0 < build(tiny_lm, pooling).predict_scores(torch.randn(1, 1, 16)).item() < 1


def test_a_score_is_never_a_matter_of_chance(make_tree: Trees, tiny_lm: Path):
    model = QwenLatentPRM(model_path=tiny_lm, dropout_prob=0.9).train()
    latents, tree = torch.randn(2, 3, 16), make_tree()
    assert torch.equal(model.predict_scores(latents), model.predict_scores(latents))
    assert torch.equal(model.score_trees([tree])[0], model.score_trees([tree])[0])
    assert model.training and model.dropout.training and model.backbone.training  # as before


def test_scores_of_latents_that_ask_for_it_have_a_gradient(tiny_lm: Path):
    latents = torch.randn(1, 4, 16, requires_grad=True)
    build(tiny_lm).predict_scores(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


# --- the second head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_second_head_reads_what_the_first_one_reads(make_tree: Trees, tiny_lm: Path, pooling: str):
    model, trees = build(tiny_lm, pooling, second_head=True), grow(make_tree, 16)
    for head, layer in (("value", "head"), ("correctness", "correctness_head")):
        for tree, scores in zip(trees, model.score_trees(trees, head=head), strict=True):
            for i, score in enumerate(scores):
                close(score, alone(model, tree.chain_latents(i), tree.question, layer).sigmoid())
    chain = torch.randn(5, 16)
    with torch.no_grad():
        steps = model.predict_step_scores(chain[None], head="correctness")[0]
        for t in range(5):
            close(steps[t], model.predict_scores(chain[None, : t + 1], head="correctness")[0])
            close(steps[t], alone(model, chain[: t + 1], head="correctness_head").sigmoid())


def test_a_second_head_changes_nothing_of_the_first(make_tree: Trees, tiny_backbone_24: Path):
    found, trees = [], grow(make_tree, 16)
    for second_head in (False, True):
        torch.manual_seed(3)
        model = QwenLatentPRM(tiny_backbone_24, 16, second_head=second_head)
        found.append(model.score_trees(trees))
        assert ("correctness_head.weight" in model.state_dict()) == second_head
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("by_latent", [True, False])
def test_both_heads_see_the_same_dropout(make_tree: Trees, tiny_lm: Path, by_latent: bool):
    model = build(tiny_lm, second_head=True).train()
    model.dropout.p = 0.5
    assert model.correctness_head is not None
    model.correctness_head.load_state_dict(model.head.state_dict())
    (batch,) = pack([make_tree()], [[]])
    value, correctness = model(batch, by_latent)
    assert correctness is not None and torch.equal(value, correctness)
    assert not torch.equal(value, model(batch, by_latent).value)  # there is dropout


def test_a_second_head_travels_in_the_state_dict(tmp_path: Path, tiny_lm: Path, make_tree: Trees):
    trained, plain, trees = build(tiny_lm, second_head=True), build(tiny_lm, seed=1), grow(make_tree, 16)
    expected = trained.score_trees(trees, head="correctness")
    torch.save(trained.state_dict(), tmp_path / "pytorch_model.bin")
    fresh = QwenLatentPRM(model_path=tiny_lm)
    fresh.load_state_dict(torch.load(tmp_path / "pytorch_model.bin"))
    for model in (fresh, QwenLatentPRM.from_pretrained(checkpoint(trained, tmp_path / "best"))):
        for one, other in zip(model.score_trees(trees, head="correctness"), expected, strict=True):
            assert torch.equal(one, other)
    kept = trained.correctness_head
    trained.load_state_dict(fresh.state_dict())
    assert trained.correctness_head is kept  # whoever holds its parameters, as an optimizer does, holds them still
    trained.load_state_dict({"head.weight": plain.head.weight}, strict=False)
    assert trained.correctness_head is kept  # a part says nothing of the rest
    trained.load_state_dict(plain.state_dict())
    assert trained.correctness_head is None


def test_a_head_that_is_not_there_is_a_plain_error(tiny_lm: Path, make_tree: Trees):
    model, latents = build(tiny_lm), torch.zeros(1, 3, 16)
    asked: list[Callable[[str], object]] = [
        lambda head: model.score_trees([make_tree()], head=head),
        lambda head: model.predict_scores(latents, head=head),
        lambda head: model.predict_step_scores(latents, head=head),
    ]
    for ask in asked:
        with pytest.raises(
            ValueError, match=r"has no correctness head.* Train one with --correctness_weight 0\.5, say"
        ):
            ask("correctness")
        with pytest.raises(ValueError, match="head is 'count': type one of value, correctness"):
            ask("count")


# --- parameters of other types, other devices ------------------------------------------------------------------------


@pytest.mark.parametrize("by_latent", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_parameters_give_float32_logits(
    make_tree: Trees, tiny_backbone_24: Path, pooling: str, autocast: bool, by_latent: bool
):
    model = build(tiny_backbone_24, pooling, latent_dim=16, second_head=True)
    batch = next(pack([make_tree()], [[3, 4]]))
    exact = model(batch, by_latent)
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(batch, by_latent)
    within = torch.arange(batch.chains.shape[1]) < batch.lengths[:, None] if by_latent else slice(None)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        apart = ((one - other)[within].abs().max() / other[within].std()).item()
        assert 0 < apart < 0.3  # bfloat16 has 8 bits
    torch.cat([each[within].flatten() for each in found]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_heads_are_computed_in_float32_with_half_precision_weights(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch):
    model = build(tiny_lm, "last", second_head=True).to(torch.bfloat16)
    states = torch.randn(1, 16)
    monkeypatch.setattr(model, "column_states", lambda batch: states)  # nothing of the backbone's own rounding
    (batch,) = pack([ReasoningTree(question_id="", question="", gold="", task="", paths=[one_latent()])], [[]])
    for logit, name in zip(model(batch), ("head", "correctness_head"), strict=True):
        expected = (states.double() @ model.get_parameter(f"{name}.weight").double().T)[0]
        torch.testing.assert_close(logit.double(), expected, atol=1e-6, rtol=1e-6)


def one_latent() -> LatentPath:
    return LatentPath(latents=torch.zeros(1, 16), tip=None)


@pytest.mark.parametrize("by_latent", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_forward_pass_never_asks_its_device_for_a_number(
    make_tree: Trees, tiny_backbone_24: Path, pooling: str, by_latent: bool, monkeypatch: pytest.MonkeyPatch
):
    # Whatever would wait for a GPU (a shape that depends on numbers, a number read) fails on a device without numbers.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which that device has not either
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    model = build(tiny_backbone_24, pooling, latent_dim=16, second_head=True).to("meta")
    (batch,) = pack([make_tree()], [[3, 4]])
    value, correctness = model(batch.to(torch.device("meta")), by_latent)
    assert value.shape == (batch.chains.shape if by_latent else batch.lengths.shape)
    assert correctness is not None and correctness.device.type == value.device.type == "meta"


# --- other backbones -------------------------------------------------------------------------------------------------


def save(folder: Path, config: Any, words: Path) -> Path:
    """A folder with a backbone of this config and the tokenizer of ``words``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", ["LlamaConfig", "Qwen2Config", "GPT2Config"])
def test_plain_causal_backbones_pack_exactly(tmp_path: Path, tiny_lm: Path, make_tree: Trees, config: str):
    shape = {**SHAPE, "vocab_size": 80}
    if config == "GPT2Config":  # positions are learned, not rotary
        shape = {"vocab_size": 80, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
        shape |= {"bos_token_id": 1, "eos_token_id": 1}
    model = build(save(tmp_path, getattr(transformers, config)(**shape), tiny_lm), "mean")
    assert model.shares
    trees = grow(make_tree, 16)
    for one, other in zip(model.score_trees(trees), all_alone(model, trees, True), strict=True):
        close(one, other.sigmoid())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ("MistralConfig", {**SHAPE, "sliding_window": 4}),
        ("MistralConfig", {**SHAPE, "sliding_window": 12}),  # wider than the tree that is tried at load
        ("Gemma3TextConfig", {**SHAPE, "sliding_window": 4, "head_dim": 8}),
        ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}),
    ],
    ids=["Mistral, window 4", "Mistral, window 12", "Gemma 3, window 4", "Bloom, ALiBi"],
)
def test_a_backbone_that_cannot_be_packed_is_said_aloud_and_scored_right(
    tmp_path: Path,
    tiny_lm: Path,
    make_tree: Trees,
    caplog: pytest.LogCaptureFixture,
    config: str,
    shape: dict[str, Any],
):
    folder = save(tmp_path, getattr(transformers, config)(**{**shape, "vocab_size": 80}), tiny_lm)
    with caplog.at_level(logging.WARNING, "latent_prm"):
        model = build(folder, "mean")
    assert not model.shares
    assert "cannot share a tree's latents exactly: its paths are scored one by one" in caplog.text
    trees = grow(make_tree, 16)
    for one, other in zip(model.score_trees(trees), all_alone(model, trees, True), strict=True):
        close(one, other.sigmoid())
    chain = torch.randn(9, 16)
    close(model.predict_scores(chain[None])[0], alone(model, chain).sigmoid())


def test_a_model_that_cannot_read_latents_is_refused(tmp_path: Path, tiny_lm: Path):
    config = transformers.T5Config(vocab_size=80, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5Model cannot read latents"):
        QwenLatentPRM(model_path=save(tmp_path, config, tiny_lm))


def test_a_tokenizer_that_adds_its_own_tokens_adds_them_once_for_all_paths(
    tmp_path: Path, tiny_lm: Path, make_tree: Trees
):
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    model = build(tiny_lm)
    model.tokenizer = tokenizer
    (ids,) = model.read_questions(["Ann has"])
    assert (ids[0], len(ids), ids[-1]) == (2, 4, 1)
    trees = grow(make_tree, 16)
    for one, other in zip(model.score_trees(trees), all_alone(model, trees, True), strict=True):
        close(one, other.sigmoid())


# --- what it is made of ----------------------------------------------------------------------------------------------


def test_parameters_are_float32_whatever_the_folder_holds_and_only_the_embedding_is_frozen(
    tmp_path: Path, tiny_lm: Path
):
    transformers.AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.bfloat16).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = QwenLatentPRM(model_path=tmp_path, latent_dim=20)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["backbone.embed_tokens.weight"]
    assert {"head.weight", "projection.weight"} < {name for name, _ in model.named_parameters()}


def test_a_state_dict_brings_width_and_pooling_with_it(tmp_path: Path, tiny_lm: Path):
    trained = build(tiny_lm, "last", latent_dim=20, seed=3)
    torch.save(trained.state_dict(), tmp_path / "pytorch_model.bin")
    model = QwenLatentPRM(model_path=tiny_lm)
    assert (model.latent_dim, model.pooling) == (16, "mean")
    model.load_state_dict(torch.load(tmp_path / "pytorch_model.bin"))
    model.eval()
    assert (model.latent_dim, model.pooling) == (20, "last")
    latents = torch.randn(2, 5, 20)
    assert torch.equal(model.predict_scores(latents), trained.predict_scores(latents))
    back = QwenLatentPRM(model_path=tiny_lm, latent_dim=20)
    back.load_state_dict(build(tiny_lm, "max").state_dict())  # and the other way round: no projection any more
    assert (back.latent_dim, back.pooling, back.projection) == (16, "max", None)


def checkpoint(model: QwenLatentPRM, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    model.save_description(folder)
    files.save_tensors(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_checkpoint_folder_is_all_that_is_needed(tmp_path: Path, tiny_backbone_24: Path, make_tree: Trees):
    source = tmp_path / "source"
    source.symlink_to(tiny_backbone_24)
    trained = build(source, "max", latent_dim=16)
    trained.max_seq_length, trained.context, trained.dropout.p = 4, "none", 0.3
    folder = checkpoint(trained, tmp_path / "best")
    source.unlink()  # the original is gone
    model, trees = QwenLatentPRM.from_pretrained(folder), grow(make_tree, 16)
    assert not model.training
    assert (model.latent_dim, model.pooling, model.max_seq_length, model.context) == (16, "max", 4, "none")
    assert model.dropout.p == 0.3, "for whoever asks it for its doubt"
    assert json.loads((folder / "config.json").read_text())["latent_prm"] == {
        "format": "latent-prm/1",
        "latent_dim": 16,
        "pooling_strategy": "max",
        "dropout_prob": 0.3,
        "max_seq_length": 4,
        "context": "none",
        "reads": ["fed"],
        "sees": "chain",
    }
    for one, other in zip(model.score_trees(trees), trained.score_trees(trees), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(model.score_trees(trees), model.score_trees(trees, False, max_seq_length=4), strict=True):
        assert torch.equal(one, other)
    with_question = model.score_trees(trees, context=True)
    assert not torch.allclose(with_question[0], model.score_trees(trees)[0])


def test_equal_models_are_described_in_equal_bytes_that_name_no_folder(tmp_path: Path, tiny_lm: Path):
    one, other = (checkpoint(build(tiny_lm), tmp_path / name) for name in ("one", "other"))
    again = checkpoint(QwenLatentPRM.from_pretrained(one), tmp_path / "again")
    for name in sorted(path.name for path in one.iterdir()):
        assert (one / name).read_bytes() == (other / name).read_bytes()
        assert str(tiny_lm).encode() not in (one / name).read_bytes()
    assert (again / "pytorch_model.bin").read_bytes() == (one / "pytorch_model.bin").read_bytes()
    assert files.load_json(again / "config.json") == files.load_json(one / "config.json")


def test_what_it_reads_while_training_travels_only_with_a_folder(tiny_lm: Path):
    model = build(tiny_lm)
    assert (model.max_seq_length, model.context) == (512, "question")


def test_without_a_tokenizer_latents_are_scored_and_questions_are_not(tmp_path: Path, tiny_lm: Path, make_tree: Trees):
    trained = build(tiny_lm)
    trained.tokenizer = None
    model = QwenLatentPRM.from_pretrained(checkpoint(trained, tmp_path / "best"))
    assert len(model.score_trees([make_tree()], context=False)) == 1
    with pytest.raises(ValueError, match="no tokenizer to read questions with"):
        model.score_trees([make_tree()])


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, tiny_lm: Path, name: str):
    folder = checkpoint(build(tiny_lm), tmp_path / "best")
    (folder / name).write_bytes(b"[]")
    with pytest.raises(files.BadFile, match=f"best.{name}"):
        QwenLatentPRM.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(files.BadFile, match=f"best is not a checkpoint: it has no {name}"):
        QwenLatentPRM.from_pretrained(folder)


@pytest.mark.parametrize("weights", [{}, [1, 2], {"latent_width": torch.tensor(16)}])
def test_weights_that_do_not_fit_are_a_bad_file(tmp_path: Path, tiny_lm: Path, weights: object):
    folder = checkpoint(build(tiny_lm), tmp_path / "best")
    files.save_tensors(weights, folder / "pytorch_model.bin")
    with pytest.raises(files.BadFile, match=r"best is not a whole checkpoint|not the weights of a model"):
        QwenLatentPRM.from_pretrained(folder)


def test_a_wrong_pooling_or_no_model_is_a_plain_error(tiny_lm: Path):
    with pytest.raises(ValueError, match="pooling_strategy is 'sum': type one of mean, last, max"):
        QwenLatentPRM(model_path=tiny_lm, pooling_strategy="sum")
    with pytest.raises(ValueError, match="needs model_path"):
        QwenLatentPRM()


def test_latents_of_another_width_are_a_plain_error(tiny_lm: Path, make_tree: Trees):
    model = build(tiny_lm)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 20\], but this PRM reads \[batch, latents, 16\]"):
        model.predict_scores(torch.zeros(1, 3, 20))
    tree = make_tree(4, width=20)
    with pytest.raises(ValueError, match="question q4, path 0: its latents are 20 wide, but this PRM reads 16"):
        model.score_trees([tree])


def test_a_path_without_latents_is_a_plain_error(tiny_lm: Path, make_tree: Trees):
    tree = make_tree(4)
    tree.paths[2] = LatentPath(latents=torch.zeros(0, 16), tip=None)
    with pytest.raises(ValueError, match="question q4, path 2: it has no latent"):
        build(tiny_lm).score_trees([tree])
    with pytest.raises(ValueError, match="row 0 of latent_sequence has no real latent"):
        build(tiny_lm).predict_scores(torch.zeros(1, 0, 16))


def test_a_mask_that_does_not_fit_is_a_plain_error(tiny_lm: Path):
    model, latents = build(tiny_lm), torch.zeros(2, 3, 16)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \[2, 4\], but the latents have \[2, 3\]"):
        model.predict_scores(latents, torch.ones(2, 4))
    with pytest.raises(ValueError, match="row 1 of latent_sequence has no real latent"):
        model.predict_scores(latents, torch.tensor([[0, 1, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="1 questions for 2 chains of latents: give one for each"):
        model.predict_scores(latents, questions=["?"])
