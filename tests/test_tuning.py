"""tuning.py: what learns, that merged weights predict as the trained ones do, and that adapters come back whole."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import peft
import pytest
import torch
from conftest import save_family
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from latent_prm import files
from latent_prm.model import QwenLatentPRM
from latent_prm.options import BUILTIN, TrainOptions
from latent_prm.packing import pack
from latent_prm.tree import ReasoningTree
from latent_prm.tuning import adapt, adapter_state, load_adapter, merged_state, save_adapter

Trees = Callable[..., ReasoningTree]

FAMILIES = ["qwen3", "llama", "gpt2"]
OUTSIDE = {"head.weight", "correctness_head.weight", "projection.weight"}
PARTS = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real language model of each family, its weights wide apart."""
    return save_family(tmp_path_factory.mktemp(request.param) / "lm", request.param)


def build(
    backbone: Path, tuning: str = "lora", *, seed: int = 0, width: int = 16, second: bool = False, **typed: Any
) -> QwenLatentPRM:
    """An adapted PRM, everything of it drawn from ``seed``; ``second``: with the head of correctness too."""
    torch.manual_seed(seed)
    model = QwenLatentPRM(backbone, width, pooling_strategy="last", dropout_prob=0.0, second_head=second)
    nn.init.normal_(model.head.weight)  # wide, so that scores differ visibly
    adapt(model, TrainOptions(tuning=tuning, **typed))  # type: ignore[reportArgumentType]
    return model


def learn(model: QwenLatentPRM, tree: ReasoningTree, steps: int = 3, between: Callable[[], object] = int) -> None:
    """Some optimizer steps large enough to change every score."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.02)
    for step in range(steps):
        torch.manual_seed(step)  # of gpt2's own dropout
        loss(model, tree).backward()
        optimizer.step()
        optimizer.zero_grad()
        between()


def loss(model: QwenLatentPRM, tree: ReasoningTree) -> Tensor:
    (batch,) = pack([tree], model.read_questions([tree.question]), shared=model.shares, pack_tokens=16384)
    return sum(logits.sigmoid().square().mean() for logits in model.train()(batch) if logits is not None)  # type: ignore[reportReturnType]


def recompute(backbone: Any) -> None:
    """Turn gradient checkpointing on; transformers 5.21 gave it another name."""
    turn_on = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    turn_on({"use_reentrant": False})


def scores(model: QwenLatentPRM, tree: ReasoningTree) -> Tensor:
    return model.score_trees([tree])[0]


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def bits(state: dict[str, Tensor] | None) -> dict[str, bytes]:
    assert state is not None
    return {name: value.numpy().tobytes() for name, value in state.items()}


# PEFT 0.21 asks transformers 5.23 in a way that is to go.
with_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


# --- what learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("too", [False, True])
def test_full_tuning_trains_all_but_the_token_embedding_and_that_too_when_asked(backbone: Path, too: bool) -> None:
    model = build(backbone, "full", width=6, train_embeddings=too)
    (embedding,) = (n for n, p in model.named_parameters() if p is model.backbone.get_input_embeddings().weight)
    everything = {name for name, _ in model.named_parameters()}
    assert learning(model) == (everything if too else everything - {embedding})


def test_head_tuning_trains_what_stands_outside_the_backbone(tiny_lm: Path) -> None:
    assert learning(build(tiny_lm, "head")) == {"head.weight"}
    assert learning(build(tiny_lm, "head", width=6, second=True)) == OUTSIDE


def test_lora_trains_its_matrices_beside_every_linear_layer_and_what_stands_outside_the_backbone(
    backbone: Path,
) -> None:
    model = build(backbone, width=6, second=True)
    plain = QwenLatentPRM(backbone, latent_dim=6)
    linear = {
        name
        for name, layer in plain.backbone.named_modules()
        if isinstance(getattr(layer, "weight", None), Tensor) and layer.weight.ndim == 2  # type: ignore[reportAttributeAccessIssue]
        if not isinstance(layer, nn.Embedding)
    }
    assert len(linear) in (2 * 7, 2 * 4)  # q k v o gate up down, and gpt2's c_attn c_proj c_fc c_proj
    beside = {f"backbone.{name}.lora_{letter}.default.weight" for name in linear for letter in "AB"}
    assert learning(model) == beside | OUTSIDE


def test_the_number_of_trained_parameters_is_the_one_worked_by_hand(tiny_lm: Path) -> None:
    model = build(tiny_lm, lora_rank=4)
    # rank × (in + out) of q, k, v, o, gate, up, down: H = 16, two heads of 8, one key-value head of 8, MLP of 32
    layer = 4 * ((16 + 16) + (16 + 8) + (16 + 8) + (16 + 16) + (16 + 32) + (16 + 32) + (32 + 16))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * layer + 16


@pytest.mark.parametrize("rank", [2, 16])
def test_the_matrices_weigh_twice_whatever_their_rank_is(tiny_lm: Path, rank: int) -> None:
    model = build(tiny_lm, lora_rank=rank)
    plain = QwenLatentPRM(tiny_lm)
    name = "backbone.layers.1.mlp.down_proj"
    small = dict(model.named_parameters())
    with torch.no_grad():
        a = small[f"{name}.lora_A.default.weight"].normal_()
        b = small[f"{name}.lora_B.default.weight"].normal_()
    assert (a.shape, b.shape) == ((rank, 32), (16, rank))
    expected = plain.state_dict()[f"{name}.weight"] + 2 * b @ a
    torch.testing.assert_close(merged_state(model)[f"{name}.weight"], expected)


def test_before_the_first_step_lora_predicts_what_the_plain_model_does(backbone: Path, make_tree: Trees) -> None:
    tree = make_tree()
    assert torch.equal(scores(build(backbone), tree), scores(build(backbone, "full"), tree))


def test_the_matrices_follow_from_torchs_seed(backbone: Path) -> None:
    first, again, other = (bits(adapter_state(build(backbone, seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert all(first[name] != other[name] for name in first if ".lora_A." in name)


def test_gradients_reach_every_matrix_with_gradient_checkpointing_and_are_the_same(
    backbone: Path, make_tree: Trees
) -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = build(backbone)
        with torch.no_grad():  # B = 0 lets no gradient through to A
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.01)
        if checkpointing:
            recompute(model.backbone)
        calls: list[object] = []
        first = next(
            layer for name, layer in model.named_modules() if ".0." in name and name.endswith("lora_A.default")
        )
        first.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss(model, make_tree()).backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[-1].keys() == learning(model)
        assert all(gradient.abs().max() > 0 for gradient in gradients[-1].values())
    assert any(re.search(r"\.0\..*lora_A", name) for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_what_is_frozen_stays_what_it_was(backbone: Path, make_tree: Trees) -> None:
    model = build(backbone)
    before = bits(model.state_dict())
    names = learning(model)
    learn(model, make_tree())
    after = bits(model.state_dict())
    assert {name for name in before if before[name] != after[name]} == names


def test_without_peft_lora_says_what_to_install_and_the_others_do_not_need_it(
    tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'--tuning lora is done by PEFT.*pip install "latent-prm\[lora\]"'):
        build(tiny_lm)
    for tuning in ("full", "head"):
        model = build(tiny_lm, tuning)
        assert merged_state(model).keys() == model.state_dict().keys()


def test_a_peft_that_does_not_go_with_another_library_says_so(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise ImportError("Found an incompatible version of torchao")

    monkeypatch.setattr(peft, "inject_adapter_in_model", refuse)
    with pytest.raises(ValueError, match=r"PEFT, which does not work here: Found an incompatible.*pip install --upgr"):
        build(tiny_lm)


@pytest.mark.parametrize("tuning", ["lora", "head"])
def test_the_token_embedding_is_trained_with_full_tuning_only(tiny_lm: Path, tuning: str) -> None:
    with pytest.raises(ValueError, match=f"--train_embeddings .* --tuning {tuning} .* Type --tuning full"):
        build(tiny_lm, tuning, train_embeddings=True)


# --- plain weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 6])
def test_merged_weights_load_as_the_guide_says_and_predict_the_same(
    backbone: Path, make_tree: Trees, width: int
) -> None:
    model, tree = build(backbone, width=width, second=width == 6, lora_rank=3), make_tree(width=width)
    before = scores(model, tree)
    learn(model, tree)
    expected, merged = scores(model, tree), merged_state(model)
    plain = QwenLatentPRM(model_path=str(backbone))
    plain.load_state_dict(merged)  # strict
    assert list(merged) == list(plain.state_dict())
    assert {value.dtype for value in merged.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(scores(plain, tree), expected, atol=1e-6, rtol=0)
    assert (expected - before).abs().max() > 0.01  # it has learnt
    kept = dict(model.named_parameters())
    for name, value in plain.state_dict().items():
        if f"{name.removesuffix('.weight')}.base_layer.weight" in kept:  # and the backbone too
            assert not torch.equal(value, kept[f"{name.removesuffix('.weight')}.base_layer.weight"])


@pytest.mark.parametrize("tuning", ["full", "head"])
def test_where_there_are_no_small_matrices_the_plain_weights_are_the_models(tiny_lm: Path, tuning: str) -> None:
    model = build(tiny_lm, tuning)
    assert bits(merged_state(model)) == bits(model.state_dict())
    assert adapter_state(model) is None


def test_merging_between_steps_changes_no_bit_of_the_training(backbone: Path, make_tree: Trees) -> None:
    tree, runs = make_tree(), [build(backbone), build(backbone)]
    learn(runs[0], tree)
    learn(runs[1], tree, between=lambda: [value.zero_() for n, value in merged_state(runs[1]).items() if "proj" in n])
    assert bits(runs[0].state_dict()) == bits(runs[1].state_dict())


def test_merged_weights_are_float32_sums_whatever_the_training_computes_with(tiny_lm: Path, make_tree: Trees) -> None:
    model = build(tiny_lm)
    learn(model, make_tree())
    narrow = copy.deepcopy(model).bfloat16()
    name = "backbone.layers.0.self_attn.q_proj"
    w, a, b = (narrow.state_dict()[f"{name}.{part}"].float() for part in PARTS)
    with torch.autocast("cpu", torch.bfloat16):
        merged = merged_state(narrow)[f"{name}.weight"]
    torch.testing.assert_close(merged, w + 2 * b @ a, rtol=1e-6, atol=1e-6)
    assert not torch.equal(merged, merged.bfloat16().float())


def test_a_copy_learns_by_itself(backbone: Path, make_tree: Trees) -> None:
    model, tree = build(backbone), make_tree()
    before, twin = bits(model.state_dict()), copy.deepcopy(model)
    learn(twin, tree)
    assert bits(model.state_dict()) == before
    learn(model, tree)
    assert bits(model.state_dict()) == bits(twin.state_dict())


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_brings_everything_trained_back_to_the_bit(backbone: Path, tmp_path: Path, make_tree: Trees) -> None:
    model, tree = build(backbone, width=6, second=True), make_tree(width=6)
    learn(model, tree)
    files.save_tensors(adapter_state(model), tmp_path / "adapter.pt")
    other = build(backbone, width=6, second=True, seed=1)
    assert bits(other.state_dict()) != bits(model.state_dict())
    load_adapter(other, files.load_tensors(tmp_path / "adapter.pt"))
    assert bits(other.state_dict()) == bits(model.state_dict())
    learn(model, tree)
    learn(other, tree)
    assert bits(other.state_dict()) == bits(model.state_dict())


def test_an_adapter_holds_what_does_not_come_again_from_the_backbone(tiny_lm: Path) -> None:
    model = build(tiny_lm, width=6, second=True)
    state = adapter_state(model)
    assert state is not None
    assert state.keys() == learning(model) | {"pooling_code", "latent_width", "reading_code"}


def test_an_adapter_brings_its_projection_and_its_second_head_along(tiny_lm: Path, make_tree: Trees) -> None:
    model, tree = build(tiny_lm, width=6, second=True), make_tree(width=6)
    learn(model, tree)
    bare = build(tiny_lm, seed=1)
    state = adapter_state(model)
    assert bare.projection is None and state is not None
    load_adapter(bare, state)
    assert bits(bare.state_dict()) == bits(model.state_dict()) and learning(bare) == learning(model)
    assert torch.equal(scores(bare, tree), scores(model, tree))


def test_an_adapter_of_another_model_is_refused(tiny_lm: Path) -> None:
    state = adapter_state(build(tiny_lm, lora_rank=4))
    assert state is not None
    less = {name: value for name, value in state.items() if "layers.1.mlp" not in name}
    base = {"backbone.norm.weight": torch.ones(16)}
    with pytest.raises(ValueError, match=r"size mismatch.*Type the --model_path, --tuning and --lora_rank"):
        load_adapter(build(tiny_lm, lora_rank=2), state)
    with pytest.raises(ValueError, match=r"only one of the two has backbone\.layers\.1\.mlp\.down_proj.* and 3 more\."):
        load_adapter(build(tiny_lm, lora_rank=4), less)
    with pytest.raises(ValueError, match=r"only one of the two has backbone\.norm\.weight\."):
        load_adapter(build(tiny_lm, lora_rank=4), state | base)
    with pytest.raises(ValueError, match=r"only one of the two has backbone\.layers\.0.* and 29 more\."):
        load_adapter(build(tiny_lm, "head"), state)


@with_peft
def test_peft_loads_the_saved_adapter_and_computes_the_same_states(
    backbone: Path, tmp_path: Path, make_tree: Trees
) -> None:
    model = build(backbone)
    learn(model, make_tree())
    save_adapter(model, tmp_path / "adapter", str(backbone))
    latents = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model.eval().backbone(inputs_embeds=latents).last_hidden_state
        by_hand = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), str(tmp_path / "adapter")).eval()
        by_name = AutoPeftModelForFeatureExtraction.from_pretrained(str(tmp_path / "adapter")).eval()  # type: ignore[reportArgumentType]
        plain = AutoModel.from_pretrained(backbone).eval()(inputs_embeds=latents).last_hidden_state
        for loaded in (by_hand, by_name):
            states = loaded(inputs_embeds=latents).last_hidden_state
            torch.testing.assert_close(states, expected, rtol=0, atol=0)
    assert (plain - expected).abs().max() > 0.01


@with_peft
def test_the_files_are_those_that_peft_itself_writes(backbone: Path, tmp_path: Path) -> None:
    save_adapter(build(backbone, lora_rank=3), tmp_path / "ours", str(backbone))
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), str(tmp_path / "ours"))
    loaded.save_pretrained(str(tmp_path / "theirs"))
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert bits(ours) == bits(theirs)
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert ours["target_modules"] == sorted(theirs.pop("target_modules"))
    assert theirs.items() <= ours.items()
    said = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": 3, "lora_alpha": 6, "lora_dropout": 0.0}
    assert (said | {"base_model_name_or_path": str(backbone), "inference_mode": True}).items() <= ours.items()


@with_peft
def test_an_adapter_of_the_built_in_model_names_no_base(tiny_lm: Path, tmp_path: Path) -> None:
    model = build(tiny_lm)
    save_adapter(model, tmp_path, BUILTIN)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_lm), str(tmp_path))


def test_an_adapter_of_a_moment_is_kept_though_the_model_has_learnt_on(
    tiny_lm: Path, tmp_path: Path, make_tree: Trees
) -> None:
    model = build(tiny_lm)
    moment = copy.deepcopy(adapter_state(model))
    save_adapter(model, tmp_path / "then")
    learn(model, make_tree())
    save_adapter(model, tmp_path / "now")
    save_adapter(model, tmp_path / "kept", state=moment)
    then, now, kept = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("then", "now", "kept"))
    assert kept == then != now


def test_a_checkpoint_with_the_adapters_files_in_it_still_loads_as_plain(
    tiny_lm: Path, tmp_path: Path, make_tree: Trees
) -> None:
    model, tree = build(tiny_lm), make_tree()
    learn(model, tree)
    files.save_tensors(merged_state(model), tmp_path / "best" / "pytorch_model.bin")
    model.save_description(tmp_path / "best")
    shutil.copytree(tmp_path / "best", tmp_path / "plain")
    save_adapter(model, tmp_path / "best", "an/unreachable-model")
    for name in ("config.json", "tokenizer_config.json"):
        assert (tmp_path / "best" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    loaded = QwenLatentPRM.from_pretrained(tmp_path / "best")
    torch.testing.assert_close(scores(loaded, tree), scores(model, tree), atol=1e-6, rtol=0)
