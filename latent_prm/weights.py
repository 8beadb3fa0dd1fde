"""The weights of a checkpoint that may come from anywhere: hides what is looked at before a model is made of them.

A small file can ask for much: a tensor of one number that stands for terabytes, a model of millions of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from latent_prm import files, seals
from latent_prm.files import BadFile

WEIGHTS = "pytorch_model.bin"
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


def load(folder: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint folder, checked; what its manifest lists is as it was written, but for optimizer.pt.

    A folder without a manifest (made by hand) is believed. Raises BadFile.
    """
    for path in sorted(folder.iterdir()):
        if not (path.is_file() or (path.is_dir() and not path.suffix)):
            raise BadFile(f"{path}: not a regular file.")  # and a pipe would wait forever
    vouched: dict[str, Any] = {}
    if (folder / seals.MANIFEST).exists():
        _, vouched = seals.listed(folder / seals.MANIFEST)
        seals.check_files(folder, vouched, but=["optimizer.pt"])  # the largest, and no score depends on it
    path = folder / WEIGHTS
    weights = files.load_tensors(path, vouched.get(WEIGHTS, {}).get("sha256"))
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise BadFile(f"{path}: not the weights of a model: it is not a dict of tensors.")
    check_tensors(path, weights)
    return weights


def check_tensors(path: Path, held: Any) -> None:
    """Nothing, if all tensors in what was loaded are plain: dense, in order, of real and finite numbers.

    torchao's own tensors, of an 8-bit optimizer, are left to it. Raises BadFile naming file and tensor.
    """
    todo: list[tuple[str, Any]] = [("", held)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(f"{name}.{key}".strip("."), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            todo += [(f"{name}.{k}".strip("."), item) for k, item in enumerate(value)]
        elif isinstance(value, Tensor) and not type(value).__module__.startswith("torchao."):
            plain = value.layout is torch.strided and not value.is_quantized and value.dtype in _DTYPES
            if not plain or not value.is_contiguous() or value.device.type != "cpu":
                raise BadFile(f"{path}: {name or 'it'} is not a plain dense tensor of real numbers.")
            if not value.isfinite().all():
                raise BadFile(f"{path}: {name or 'it'} has NaN or infinite elements.")


def check_config(folder: Path, described: Mapping[str, Any]) -> None:
    """Nothing, if config.json asks for no code: transformers would fetch attention kernels. Raises BadFile."""
    if "/" in str(described.get("attn_implementation") or described.get("_attn_implementation") or ""):
        raise BadFile(f"{folder / 'config.json'} asks for attention code from the hub, which is never run.")


def check_size(config: Any, weights: Mapping[str, Tensor]) -> None:
    """Nothing, if these weights can be a model of this config, which is built before they are put in.

    Raises ValueError when the model is larger.
    """
    layers, stored = config.get_text_config().num_hidden_layers, sum(value.numel() for value in weights.values())
    if layers > len(weights):
        raise ValueError(f"its config.json asks for {layers} layers, but there are {len(weights)} tensors in {WEIGHTS}")
    with torch.device("meta"):
        backbone = AutoModel.from_config(config, trust_remote_code=False)
    if (asked := sum(each.numel() for each in backbone.parameters())) > stored:
        raise ValueError(f"its config.json asks for {asked} numbers, but there are {stored} in {WEIGHTS}")


def width_of(weights: Mapping[str, Any], hidden_size: int) -> int:
    """How wide the latents are that a model of these weights reads.

    Raises RuntimeError, as torch does for weights of another model, when the projection is of another width.
    """
    width, projection = int(weights["latent_width"]), weights.get("projection.weight")
    found = hidden_size if projection is None else projection.shape[-1]
    if width != found:
        raise RuntimeError(f"latent_width is {width}, but the other weights are of a model that reads {found}")
    return width
