"""Finding models and devices: what cannot be had is said in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import save_family
from safetensors.torch import load_file, save_file

from latent_prm.model import QwenLatentPRM
from latent_prm.pretrained import find_folder, loading, pick_device
from latent_prm.reasoner import Reasoner


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


@pytest.mark.parametrize("typed", ["builtn", "built-in", "buitlin"])
def test_a_mistyped_builtin_is_not_looked_for_in_the_hub(typed: str) -> None:
    with pytest.raises(ValueError, match=f'--model_path is {typed}. Did you mean "builtin"'):
        find_folder(typed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused() -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"--device is {device}, but no CUDA device was found. Type --device cpu"):
            pick_device(device)


def test_a_device_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--device is cdua, .* Type cuda, cpu or auto"):
        pick_device("cdua")


def test_a_hub_name_without_the_hub_says_how_to_get_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for load in (Reasoner.from_pretrained, QwenLatentPRM):
        with pytest.raises(ValueError, match=r"nobody/nothing is not on this machine, .* HF_HUB_OFFLINE .*hf download"):
            load("nobody/nothing")


def test_a_gated_and_a_missing_model_each_have_their_own_way_out() -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    for kind, sentence in (
        (GatedRepoError, "me/it is gated: accept its terms .* set HF_TOKEN"),
        (RepositoryNotFoundError, "The hub has no me/it"),
        (RevisionNotFoundError, "not this --revision"),
    ):
        with pytest.raises(ValueError, match=sentence), loading("me/it"):
            raise OSError("as transformers puts it") from kind.__new__(kind)  # its __init__ wants an HTTP answer


def test_an_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="not yours"), loading(str(tmp_path)):
        raise PermissionError("not yours")


# --- folders that are not whole -------------------------------------------------------------------------------------


def cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:3000])


def reshaped(weights: Path) -> None:
    found = load_file(weights)
    save_file(found | {"model.norm.weight": torch.ones(7)}, weights, metadata={"format": "pt"})


def lacking(weights: Path) -> None:
    found = load_file(weights)
    del found["lm_head.weight"], found["model.layers.1.mlp.up_proj.weight"]
    save_file(found, weights, metadata={"format": "pt"})


def without_tokenizer(weights: Path) -> None:
    for file in weights.parent.glob("token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_off, r"The weights in {} are damaged: .* Download it again"),
        (reshaped, r"The weights in {} have other shapes than its config.json says"),
        (lacking, r"{} lacks \d of Llama\w+'s weights: .*layers.1.mlp.up_proj.weight. Download it again"),
        (without_tokenizer, r"^{} has no tokenizer that can be loaded"),
    ],
)
@pytest.mark.parametrize("load", [lambda folder: Reasoner.from_pretrained(folder, device="cpu"), QwenLatentPRM])
def test_a_folder_that_is_not_whole_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str, load: Callable[[str], object]
) -> None:
    folder = save_family(tmp_path / "lm", "llama")
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match=sentence.format(folder)):
        load(str(folder))


def test_weights_that_are_more_than_data_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "lm", "llama")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"The weights in {folder} are damaged, or more than data"):
        Reasoner.from_pretrained(str(folder), device="cpu")


def test_a_backbone_is_whole_without_its_language_models_head(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "lm", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert QwenLatentPRM(str(folder)).hidden_size == 16
    with pytest.raises(ValueError, match=r"lacks 1 of LlamaForCausalLM's weights: lm_head.weight"):
        Reasoner.from_pretrained(str(folder), device="cpu")
