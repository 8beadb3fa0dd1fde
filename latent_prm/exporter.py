"""A PRM → a plain Hugging Face folder: ``latent-prm export --checkpoint checkpoints/…/best --output_dir my-prm``.

This room hides how a PRM is written as a sequence classifier that others load without this package, what cannot be
written so, and how the folder goes to the hub.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import AutoModelForSequenceClassification

from latent_prm import __version__, confidence, files, model_card, preflight
from latent_prm.files import BadFile
from latent_prm.model import QwenLatentPRM, checkpoint_folder
from latent_prm.model_card import PROJECTION
from latent_prm.options import ExportOptions
from latent_prm.pretrained import fetch
from latent_prm.reading import Read
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

FORMAT = "latent-prm-export/1"
MOST_APART = 1e-3
"""Of two logits of one chain. Rounding is far below it, and whatever is above it is another model."""


def main(options: ExportOptions) -> Path:
    """Run the stage: look, load, write, compare, and push where that is asked for. Returns the folder.

    Raises ValueError (BadFile for damage) for a PRM that no classifier computes, a folder that holds something else,
    and where the hub refuses; OSError when the disk does.
    """
    target = Path(options.output_dir)
    check_target(target)
    preflight.can_write(target.absolute().parent)
    if options.push_to_hub:
        check_hub(options.push_to_hub)
    checkpoint = checkpoint_folder(options.checkpoint)
    table, calibration = model_card.measured(checkpoint), load_calibration(checkpoint)
    model = QwenLatentPRM.from_pretrained(options.checkpoint)
    difference = export(model, target, table, calibration, options.push_to_hub)
    print(
        f"Saved {target}: {architecture(model)}. Its logits differ from the checkpoint's by {difference:.0e} at most."
    )
    print(model_card.vllm(model.correctness_head is not None))
    if options.push_to_hub:
        print(f"Pushed to {push(target, options.push_to_hub, options.public)}")
    return target


# --- what can be exported -------------------------------------------------------------------------------------------


def check_target(folder: Path) -> None:
    """Raises ValueError for a folder that holds something else than an earlier export: it would be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        said = files.load_json(folder / "config.json")
        ours = said["latent_prm"]["format"] == FORMAT
    except (BadFile, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"--output_dir is {folder}, which holds something else. Type a folder that is not there yet.")


def check_exportable(model: QwenLatentPRM) -> None:
    """Raises ValueError for a PRM that no sequence classifier computes, saying why."""
    if model.pooling != "last":
        raise ValueError(
            f"This PRM pools by {model.pooling}, but a sequence classifier reads the last position alone, so that it "
            "would say something else. Train one with --pooling_strategy last."
        )
    if model.sees == "tree":
        raise ValueError(
            "This PRM judges a path beside its siblings, which half of its attention heads see, but a sequence "
            "classifier sees one path. Train one with --sees chain."
        )
    from transformers.modeling_layers import GenericForSequenceClassification  # it brings all of its quantizers

    with torch.device("meta"):
        made = _classifier(model)
    if not isinstance(made, GenericForSequenceClassification):
        raise ValueError(
            f"This PRM's backbone is a {type(model.backbone).__name__}, of which transformers makes no classifier that "
            "is one linear layer on the last position. Train one with --model_path Qwen/Qwen3-0.6B, say."
        )


def architecture(model: QwenLatentPRM) -> str:
    """The name of the class that an exported folder is loaded as."""
    with torch.device("meta"):
        return type(_classifier(model)).__name__


def _classifier(model: QwenLatentPRM) -> Any:
    """Without weights, where it is made on the device "meta"."""
    try:
        empty = {"dtype": torch.float32, "trust_remote_code": False}
        return AutoModelForSequenceClassification.from_config(_config(model), **empty)
    except ValueError:  # it goes on to list a hundred architectures
        return None


def _config(model: QwenLatentPRM) -> Any:
    config, labels = copy.deepcopy(model.backbone.config), ["value"]
    labels += ["correctness"] * (model.correctness_head is not None)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    config.problem_type = "multi_label_classification"  # each by its own sigmoid
    if config.pad_token_id is None:  # without one it takes no batch
        known = getattr(model.tokenizer, "pad_token_id", None)
        ends = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        config.pad_token_id = next((one for one in (known, ends) if one is not None), 0)
    return config


# --- writing --------------------------------------------------------------------------------------------------------


def export(
    model: QwenLatentPRM,
    folder: str | Path,
    measured: str = "",
    calibration: confidence.Confidence | None = None,
    hub: str | None = None,
) -> float:
    """Write a PRM as a Hugging Face folder, all at once; returns how far its logits, loaded again, were from ours.

    config.json, model.safetensors, the tokenizer's files, README.md, and projection.safetensors where latents are
    projected. ``measured`` goes into the card, what ``calibration`` says of paths into config.json. Raises as `main`.
    """
    check_exportable(model)
    folder, name = Path(folder), architecture(model)
    needed = sum(value.numel() * 4 for value in model.state_dict().values())
    preflight.has_room(folder, needed, "the exported model", "Type another --output_dir.")
    facts, found = describe(model, calibration), 0.0

    def write(temp: Path) -> None:
        nonlocal found
        said = json.loads(_config(model).to_json_string(use_diff=False))
        said.pop("_name_or_path", None)  # where it came from is no part of what it is
        said |= {"architectures": [name], "dtype": "float32", "latent_prm": facts}
        _save_tensors(weights(model), temp / "model.safetensors")
        if model.projection is not None:
            _save_tensors({"weight": model.projection.weight}, temp / PROJECTION)
        model.save_description(temp)  # the tokenizer, and a config.json that is not this one
        files.save_json(said, temp / "config.json")
        found = compare(model, temp)
        title = (hub or folder.absolute().name).rpartition("/")[2]
        text = model_card.write_card(facts, name, title, hub, found, measured, __version__)
        files.atomic_write(temp / "README.md", lambda file: file.write(text.encode()))

    files.commit_folder(folder, write)
    return found


def describe(model: QwenLatentPRM, calibration: confidence.Confidence | None = None) -> dict[str, Any]:
    """What config.json says under "latent_prm"."""
    paths = None
    if calibration is not None:
        kind = "platt" if isinstance(calibration.paths, confidence.Platt) else "isotonic"
        paths = {"method": kind, **asdict(calibration.paths)}
    return {
        "format": FORMAT,
        "latent_dim": model.latent_dim,
        "hidden_size": model.hidden_size,
        "projection": None if model.projection is None else PROJECTION,
        "pooling_strategy": model.pooling,
        "max_seq_length": model.max_seq_length,
        "context": model.context,
        "reads": list(model.reads),
        "sees": model.sees,
        "heads": ["value"] + ["correctness"] * (model.correctness_head is not None),
        "calibration": paths,
        **({"reasoners": list(model.reasoners)} if model.reasoners else {}),
    }


def load_calibration(checkpoint: Path) -> confidence.Confidence | None:
    """What lies beside the checkpoint's weights; None: nothing. Raises ``files.BadFile`` for a foreign one."""
    return confidence.load(checkpoint) if (checkpoint / confidence.FILE).is_file() else None


def weights(model: QwenLatentPRM) -> dict[str, Tensor]:
    """The backbone and the heads, by the names that the classifier has for them."""
    heads = [head.weight for head in (model.head, model.correctness_head) if head is not None]
    with torch.device("meta"):
        prefix = _classifier(model).base_model_prefix
    named = {f"{prefix}.{name}": value for name, value in model.backbone.state_dict().items()}
    return named | {"score.weight": torch.cat(heads)}


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(plain, metadata={"format": "pt"})
    files.atomic_write(path, lambda file: file.write(content))


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(model: QwenLatentPRM, folder: str | Path) -> float:
    """How far at most the logits of an exported folder are from the model's own, on random chains.

    Raises ValueError when it is farther than rounding can explain.
    """
    loaded = fetch(AutoModelForSequenceClassification, str(folder), dtype=torch.float32, trust_remote_code=False)
    read = model.as_read([_probe(model)])
    chains = [embedded(model, read[0], path) for path in range(len(read[0].tree.paths))]
    theirs, ours = torch.empty(0), torch.empty(len(chains), 0)
    with torch.no_grad(), model.evaluating():
        embeds, mask = left_padded(chains)
        theirs = loaded.eval()(inputs_embeds=embeds, attention_mask=mask).logits
        ours = torch.full_like(theirs, torch.nan)
        for batch in model.packs(read, max_seq_length=model.max_seq_length):
            logits = [each for each in model(batch.to(model.device)) if each is not None]
            for k, (_, path) in enumerate(batch.paths):
                ours[path] = torch.stack([each[k] for each in logits]).cpu()
    found = float((theirs - ours).abs().max())
    if not found < MOST_APART:
        raise ValueError(
            f"{folder}: its logits are {found:.1e} from the checkpoint's, so that it is not what was trained. "
            "Nothing was exported; please report this."
        )
    return found


def _probe(model: QwenLatentPRM) -> ReasoningTree:
    """A tree with chains of different lengths, the longest too long to be read whole, where that is not too long."""
    generator = torch.Generator().manual_seed(0)
    scale = float(model.backbone.get_input_embeddings().weight.std()) * (model.hidden_size / model.latent_dim) ** 0.5

    def path(count: int, parent: int | None = None) -> LatentPath:
        fed, hidden = (torch.randn(count, model.thought_dim, generator=generator) * scale for _ in range(2))
        answers = [Answer(text="5", value="5", correct=True)] if parent is not None else []
        return LatentPath(latents=fed, hidden=hidden, tip=fed[-1], parent=parent, answers=answers)

    paths = [path(3), path(1, parent=0), path(min(model.max_seq_length, 24), parent=0)]
    return ReasoningTree(question_id="probe", question="What is 2 + 3 ?", gold="5", task="text", paths=paths)


@torch.no_grad()
def embedded(model: QwenLatentPRM, read: Read, path: int) -> Float[Tensor, "S H"]:
    """What the model reads of a path, as ``inputs_embeds``."""
    words = model.backbone.get_input_embeddings()
    latents = read.tree.chain_latents(path)[-model.max_seq_length :].to(model.device)
    if model.projection is not None:
        latents = linear(latents, model.projection.weight.float())
    ends = [torch.tensor(list(tokens), dtype=torch.long) for tokens in (read.context, read.tails.get(path, ()))]
    before, after = (words(tokens.to(words.weight.device)).to(latents) for tokens in ends)
    return torch.cat([before, latents, after]).cpu()


def left_padded(chains: Sequence[Float[Tensor, "_ H"]]) -> tuple[Float[Tensor, "B S H"], Float[Tensor, "B S"]]:
    """Chains as a batch, and its mask: a classifier that is given ``inputs_embeds`` reads the last position."""
    longest = max(map(len, chains))
    embeds = torch.stack([pad(chain, (0, 0, longest - len(chain), 0)) for chain in chains])
    return embeds, torch.stack([(torch.arange(longest) >= longest - len(chain)).float() for chain in chains])


# --- the hub --------------------------------------------------------------------------------------------------------


def check_hub(name: str) -> None:
    """Raises ValueError where nothing could be pushed under this name: before anything is written."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub is {name!r}, which is no name for the hub: type OWNER/NAME.") from error
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"--push_to_hub is {name}, but HF_HUB_OFFLINE is set. Unset it, or leave --push_to_hub out.")
    if get_token() is None:
        raise ValueError(
            f"--push_to_hub is {name}, but there is no access token. Type: hf auth login, or set HF_TOKEN to one that "
            "may write."
        )


def push(folder: str | Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the hub, in a private repository unless it is to be public; returns its address.

    Raises ValueError when the hub refuses or is not reached, and for a repository that is there, and public.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        open_to_all = not api.repo_info(address.repo_id).private
        if public or not open_to_all:
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=f"latent-prm {__version__}")
            return str(address)
    except Exception as error:  # of the hub's HTTP library, which is another one in each of its great versions
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"The hub did not take {name}: {reason}. {folder} is whole: check the name and what the token may do, and "
            f"type: hf upload {name} {shlex.quote(str(folder))}{'' if public else ' --private'}"
        ) from error
    raise ValueError(f"{address} is there already, and public. Type --public to write into it, or another name.")
