"""What of a model is trained: hides which parameters learn, and how small matrices beside the layers (LoRA, by PEFT)
are told from plain weights, added to them, kept, and shown to other programs.

A model with such matrices computes as before through the same calls; only the names of its parameters differ, and
only this room knows those names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from latent_prm import files
from latent_prm.model import QwenLatentPRM
from latent_prm.options import BUILTIN, TrainOptions
from latent_prm.ranks import whole


def adapt(model: QwenLatentPRM, options: TrainOptions) -> None:
    """Let learn what ``--tuning`` names, by ``requires_grad``, in a model fresh from its constructor.

    full: all but the token embedding, and that too with ``train_embeddings``. lora: a pair of matrices beside every
    linear layer of the backbone, W + 2 B A with B [out, rank] zero and A [rank, in] drawn from torch's generator, so
    that nothing is predicted otherwise yet; and all that stands outside the backbone: heads and projection.
    head: heads and projection alone. Source of lora: https://arxiv.org/abs/2106.09685.

    Raises ValueError when PEFT is missing or does not work.
    """
    if options.tuning == "full":
        model.backbone.get_input_embeddings().requires_grad_(options.train_embeddings)
        return
    model.backbone.requires_grad_(False)
    if options.tuning == "lora":
        _put_beside(model.backbone, options.lora_rank)


def _put_beside(backbone: nn.Module, rank: int) -> None:
    try:
        from peft import LoraConfig, TaskType, inject_adapter_in_model
    except ImportError:
        raise ValueError(
            '--tuning lora is done by PEFT, which is missing here: pip install "latent-prm[lora]"'
        ) from None
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in backbone.modules()),  # GPT-2 stores W transposed
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    try:
        inject_adapter_in_model(config, backbone)
    except ImportError as error:  # PEFT looks for quantised layers, and refuses a torchao of another time
        way_out = 'Type: pip install --upgrade "latent-prm[lora,lowmem]"'
        raise ValueError(f"--tuning lora is done by PEFT, which does not work here: {error}. {way_out}") from error


def merged_state(model: QwenLatentPRM) -> dict[str, Tensor]:
    """The state dict of a plain model that predicts the same: its names, in its order, the small matrices added in.

    Sums are float32, on the CPU, whatever the training computes with or in; the model stays as it is to the bit. All
    other tensors are the model's own, as in ``model.state_dict()``, which is what comes back where there are no small
    matrices. Where the model is spread over processes, all of them must take part.
    """
    state = model.state_dict()
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, piece = name.partition(".base_layer.")
        if piece == "weight":
            a, b = (state[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
            merged[f"{layer}.weight"] = _sum(value, a, b, model.get_submodule(layer))
        elif piece:  # a bias
            merged[f"{layer}.{piece}"] = value
        elif not _is_small(name):
            merged[name] = value
    return merged if _has_adapter(model) else state


def _sum(weight: Tensor, a: Tensor, b: Tensor, layer: Any) -> Tensor:
    """W + scaling B A."""
    weight, a, b = (whole(part).float() for part in (weight, a, b))
    left, right = (a.T, b.T) if layer.fan_in_fan_out else (b, a)
    with torch.autocast("cpu", enabled=False):
        return torch.addmm(weight, left, right, alpha=layer.scaling["default"])


def adapter_state(model: QwenLatentPRM) -> dict[str, Tensor] | None:
    """All of the state dict that does not come again from ``--model_path``: the small matrices, heads, projection and
    buffers, as they are; None where there are no small matrices."""
    if not _has_adapter(model):
        return None
    return {name: value for name, value in model.state_dict().items() if _is_own(name)}


def load_adapter(model: QwenLatentPRM, state: Mapping[str, Tensor]) -> None:
    """Put what :func:`adapter_state` gave into a model of the same ``--model_path`` that was adapted alike.

    Projection and second head come with the state, as in ``model.load_state_dict``. Raises ValueError when the state
    is not that of this model, which is then of no more use.
    """
    way_out = "Type the --model_path, --tuning and --lora_rank that it was trained with."
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"The small matrices are not of this model: {error}. {way_out}") from error
    own = (adapter_state(model) or {}).keys()
    if odd := sorted(own ^ state.keys()):
        named = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if odd[3:] else "")
        raise ValueError(f"The small matrices are not of this model: only one of the two has {named}. {way_out}")


def save_adapter(
    model: QwenLatentPRM,
    folder: str | Path,
    model_path: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the small matrices as PEFT does, adapter_model.safetensors and, last, adapter_config.json, so that
    ``peft.PeftModel.from_pretrained(AutoModel.from_pretrained(model_path), folder)`` has this backbone's hidden states.

    Heads and projection, which PEFT does not know, are not in it. ``state`` is what :func:`adapter_state` gave, for
    when the model has learnt on since; left out, it is asked for now. Raises OSError when the disk refuses.
    """
    state = adapter_state(model) if state is None else state
    assert state is not None, "adapt the model with --tuning lora first"
    tensors = {
        "base_model.model." + name.removeprefix("backbone.").replace(".default.", "."): whole(value).contiguous()
        for name, value in state.items()
        if _is_small(name)
    }
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    files.atomic_write(Path(folder, "adapter_model.safetensors"), lambda file: file.write(content))
    described = model.backbone.peft_config["default"].to_dict()
    described |= {name: sorted(value) for name, value in described.items() if isinstance(value, set)}
    base = None if model_path == BUILTIN else model_path  # the hub knows no such name
    files.save_json(
        described | {"base_model_name_or_path": base, "inference_mode": True}, Path(folder, "adapter_config.json")
    )


# --- names ------------------------------------------------------------------------------------------------------------


def _has_adapter(model: QwenLatentPRM) -> bool:
    return hasattr(model.backbone, "peft_config")


def _is_small(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _is_own(name: str) -> bool:
    return _is_small(name) or not name.startswith("backbone.")
