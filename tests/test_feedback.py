"""From hidden state to next input: the alignment against float64, and every source of diversity against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_family
from transformers import AutoConfig, AutoModelForCausalLM

from latent_prm.feedback import GUMBEL, RIDGE, Dropout, LatentMap, SoftMixture, logits_of, uniform

ONE_KEY = torch.tensor([7])


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama whose lm_head is not its embedding."""
    return model_of(save_family(tmp_path_factory.mktemp("llama"), "llama"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its embeddings are scaled by √16 when they are fed."""
    return model_of(save_family(tmp_path_factory.mktemp("gemma3"), "gemma3"))


@pytest.fixture(scope="module")
def qwen(tiny_lm: Path) -> Any:
    return model_of(tiny_lm)


# --- alignment ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reference(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """LatentMAS' formula in float64, from the embeddings as the model feeds them."""
    w_in = model.get_input_embeddings()(torch.arange(model.config.get_text_config().vocab_size)).double()
    w_out = model.get_output_embeddings().weight.double()
    width = w_out.shape[1]
    w_a = torch.linalg.inv(w_out.T @ w_out + RIDGE * torch.eye(width).double()) @ w_out.T @ w_in
    aligned = hidden.double() @ w_a
    return aligned / aligned.norm(dim=1, keepdim=True) * w_in.norm(dim=1).mean()


@pytest.mark.parametrize("name", ["qwen", "untied", "gemma"])
def test_the_ridge_alignment_is_that_of_float64(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = LatentMap(model)(hidden)
    torch.testing.assert_close(found.double(), reference(model, hidden), rtol=1e-4, atol=1e-5)


def test_tied_embeddings_and_a_large_vocabulary_make_the_matrix_the_identity(qwen: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(LatentMap(qwen).matrix, torch.eye(16), rtol=0, atol=1e-3)


def test_rescaling_keeps_the_direction_and_none_keeps_everything(untied: Any) -> None:
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rescaled = LatentMap(untied, "rescale")(hidden)
        norm = untied.get_input_embeddings().weight.norm(dim=1).mean()
        torch.testing.assert_close(rescaled, hidden / hidden.norm(dim=1, keepdim=True) * norm)
        assert torch.equal(LatentMap(untied, "none")(hidden), hidden)
        assert not torch.allclose(LatentMap(untied, "ridge")(hidden), rescaled, atol=1e-3)


def test_what_is_typed_wins_over_the_models_own_map(tiny_lm: Path) -> None:
    model = model_of(tiny_lm)
    model.config.latent_prm = {"latent_map": {"factor": 0.5}}
    hidden = torch.ones(1, 16)
    with torch.no_grad():
        assert torch.equal(LatentMap(model)(hidden), hidden * 0.5)
        assert torch.equal(LatentMap(model, "none")(hidden), hidden)


# --- logits ---------------------------------------------------------------------------------------------------------

OWN_LOGITS = {
    "granite": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 8.0},  # it multiplies
    "cohere": {"logit_scale": 0.0625},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
}


@pytest.mark.parametrize("family", OWN_LOGITS)
def test_logits_and_soft_mixtures_are_scaled_and_capped_as_the_model_does_it(tmp_path: Path, family: str) -> None:
    model = model_of(save_family(tmp_path, family, **OWN_LOGITS[family]))
    tokens, greedy = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.zeros(2)
    with torch.no_grad():
        own = model(input_ids=tokens).logits[:, -1]
        hidden = model.base_model(input_ids=tokens).last_hidden_state[:, -1]
        torch.testing.assert_close(logits_of(model, hidden), own, rtol=0, atol=1e-5)
        fed = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
        mixed = SoftMixture(model)(hidden, torch.tensor([1, 2]), greedy, 0, 0.7)
        torch.testing.assert_close(mixed, (own / 0.7).softmax(-1) @ fed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own, model.get_output_embeddings()(hidden), atol=0.1)


# --- chance ---------------------------------------------------------------------------------------------------------


def test_numbers_depend_on_key_and_place_alone_and_not_on_how_many_are_drawn() -> None:
    keys = torch.tensor([3, 2**62, 5])
    table = uniform(keys, 4, 100)
    assert torch.equal(table[1:2, :30], uniform(keys[1:2], 4, 30))
    assert not torch.equal(table, uniform(keys, 5, 100))
    assert table.unique().numel() == 300


def test_no_number_is_rounded_to_one() -> None:
    assert uniform(torch.tensor([173]), 0, 100_000).max() < 1  # its 20,152nd would be 1 if one more bit were taken


def test_numbers_are_uniform_and_neighbours_are_not_alike() -> None:
    table = uniform(torch.arange(200), 0, 5000).double()
    assert table.min() > 0 and table.max() < 1
    counts = torch.histc(table, 50, 0, 1)
    assert ((counts - 20_000).pow(2) / 20_000).sum() < 90  # chi-squared with 49 degrees of freedom: 90 is one in 3,000
    for one, other in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.005


def test_a_soft_mixture_is_the_softmax_of_logits_and_gumbel_noise_times_the_embeddings(gemma: Any) -> None:
    hidden = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    keys = torch.tensor([1, 2])
    with torch.no_grad():
        fed = gemma.get_input_embeddings()(torch.arange(gemma.config.vocab_size))
        logits = gemma.get_output_embeddings()(hidden)
        gumbel = -(-uniform(keys, GUMBEL + 3, len(fed)).log()).log()
        mixed = SoftMixture(gemma)(hidden, keys, torch.tensor([0.0, 1.0]), 3, 0.7)
        torch.testing.assert_close(mixed[0], (logits[0] / 0.7).softmax(-1) @ fed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], ((logits[1] + gumbel[1]) / 0.7).softmax(-1) @ fed, rtol=1e-4, atol=1e-5)


def test_a_cold_soft_mixture_is_the_embedding_of_a_sampled_token(qwen: Any) -> None:
    hidden, keys = torch.zeros(4000, 16), torch.arange(4000)  # equal logits: every token is as likely
    with torch.no_grad():
        mixed = SoftMixture(qwen)(hidden, keys, torch.ones(4000), 0, 1e-4)
        nearest = torch.cdist(mixed, qwen.get_input_embeddings().weight).min(1)
    assert nearest.values.quantile(0.99) < 1e-3  # two Gumbel numbers may come close
    counts = nearest.indices.bincount(minlength=qwen.config.vocab_size)
    expected = 4000 / qwen.config.vocab_size
    assert ((counts - expected).pow(2) / expected).sum() < 160  # about as many degrees of freedom as tokens


def test_dropout_spares_rows_of_rate_zero_and_drops_the_share_it_says(qwen: Any) -> None:
    seen: list[torch.Tensor] = []
    handle = qwen.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output))
    latent = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)).repeat(400, 1, 1)
    rates = torch.full((400,), 0.25).index_fill(0, torch.arange(200), 0.0)
    after: list[torch.Tensor] = []
    with torch.no_grad():
        plain = qwen.model(inputs_embeds=latent).last_hidden_state
        with Dropout(qwen).at(torch.arange(400), rates, 0):
            last = qwen.model.layers[0].mlp.register_forward_hook(lambda m, i, output: after.append(output))
            dropped = qwen.model(inputs_embeds=latent).last_hidden_state
            last.remove()
        again = qwen.model(inputs_embeds=latent).last_hidden_state
    handle.remove()
    torch.testing.assert_close(dropped[:200], plain[:200])
    assert torch.equal(again, plain)  # nothing is left behind
    kept = after[0][200:] / seen[1][200:]
    zero = (kept == 0).double()
    assert zero.mean().item() == pytest.approx(0.25, abs=0.03)  # of 3,200 numbers
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 1 / 0.75))
    assert dropped[200:].flatten(1).unique(dim=0).shape[0] == 200


def test_dropout_differs_from_step_to_step_and_layer_to_layer(qwen: Any) -> None:
    with torch.no_grad():
        latent, rate = torch.ones(1, 1, 16), torch.tensor([0.5])
        found = []
        for step in (0, 1, 0):
            with Dropout(qwen).at(ONE_KEY, rate, step):
                found.append(qwen.model(inputs_embeds=latent).last_hidden_state)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    places = [uniform(ONE_KEY, place, 16) for place in range(4)]
    assert len({tuple(row[0].tolist()) for row in places}) == 4


TINY: dict[str, Any] = {"vocab_size": 70, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(kind: str, **shape: Any) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))


def test_dropout_finds_falcons_attention_and_the_text_model_of_one_that_sees() -> None:
    falcon = tiny("falcon", **TINY)
    parts = [layer for block in falcon.transformer.h for layer in (block.self_attention, block.mlp)]
    assert Dropout(falcon).sublayers == parts
    text = TINY | {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
    eyes = TINY | {"intermediate_size": 32, "image_size": 28, "patch_size": 14}
    gemma = tiny("gemma3", text_config=text, vision_config=eyes, mm_tokens_per_image=4)
    layers = gemma.base_model.language_model.layers
    assert Dropout(gemma).sublayers == [layer for block in layers for layer in (block.self_attn, block.mlp)]


def test_dropout_refuses_a_model_whose_layers_give_the_residual_stream_as_well() -> None:
    for kind, shape in (("bloom", TINY), ("mpt", {"vocab_size": 70, "d_model": 16, "n_layers": 2, "n_heads": 2})):
        with pytest.raises(ValueError, match=r"were found in \w+Model, .* Type --diversity_strategy noise"):
            Dropout(tiny(kind, **shape))


def test_a_model_without_known_layers_or_with_odd_embeddings_is_refused_in_words(qwen: Any) -> None:
    class Odd(torch.nn.Module):
        base_model = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"No attention or feed-forward layers .* Type --diversity_strategy noise"):
        Dropout(Odd())

    class Shifted(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + 1

    class Model:
        def get_input_embeddings(self) -> torch.nn.Module:
            return Shifted(8, 4)

        get_output_embeddings = get_input_embeddings

    with pytest.raises(ValueError, match=r"cannot be mixed. Type --diversity_strategy noise or dropout"):
        SoftMixture(Model())
