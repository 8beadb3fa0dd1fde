"""The model card of an exported PRM: hides its words, and the code in it that scores a path without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_prm.comparison import table_sizes
from latent_prm.files import BadFile, load_json
from latent_prm.metrics import METHODS, Interval
from latent_prm.plots import LABELS

PROJECTION = "projection.safetensors"

CARD = """---
library_name: transformers
tags: [process-reward-model, latent-reasoning, latent-prm]
---

# {name}

A latent process reward model: a `{architecture}` that reads a path of *latents* (the vectors that a language
model feeds back to itself instead of words) and says how likely the path ends in a right answer. It reads no text
alone: it is called with `inputs_embeds`, left-padded. Exported by latent-prm {version}; `latent_prm` in config.json
says what it reads, and holds the calibration where there is one.

- **Reads**, in this order: {reads}.
- **Latents** are {width} wide, one vector each; of a longer chain the last {longest} count.{projected}{learnt}
- **Says** {heads}

## How to score a path

```python
{code}```

`embed` takes a chain from root to tip; `score` takes any number of chains. The largest difference from the model it was
exported from was {difference:.0e} in its logits, on random chains.

## vLLM

{vllm}

## What was measured

{measured}
"""

CODE = '''import torch
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModelForSequenceClassification, AutoTokenizer
{download}
folder = {folder}
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
{tokenizer}words = model.get_input_embeddings()
{projection}

def embed({arguments}):
    """What the model reads of a chain of latents [T, {width}], root to tip: [S, {hidden_size}]."""
{embed}

@torch.no_grad()
def score(chains):
    """The predicted score of each embedded chain, 0..1."""
    longest = max(map(len, chains))
    embeds = torch.stack([pad(chain, (0, 0, longest - len(chain), 0)) for chain in chains])
    mask = torch.stack([(torch.arange(longest) >= longest - len(chain)).long() for chain in chains])
    return model(inputs_embeds=embeds, attention_mask=mask).logits[:, 0].sigmoid()
'''

VLLM = """vLLM is documented to serve a `*ForSequenceClassification` with its pooling runner (`--runner pooling`): it
pools the last position and, for one label, returns the sigmoid, which is this model's predicted score. As a path is no
text, it must come as a prompt embedding: in Python
`LLM(model=folder, runner="pooling", enable_prompt_embeds=True, dtype="float32")` and
`llm.classify({{"prompt_embeds": embed(...)}})`, unpadded; vLLM's pull request 56639 (September 2026) is about prompt
embeddings in that runner. Over HTTP (`--enable-prompt-embeds`) its documentation names the completions APIs only, which
do not score; `latent-prm serve` scores over HTTP. None of this was run at the export: it needs vLLM.{more}"""
TWO_LABELS = """ With two
labels the sigmoid is asked for by `problem_type`, "multi_label_classification", which not every release reads."""

PARTS = {
    "fed": "the latents, as they were fed to the reasoner",
    "hidden": "the hidden states that the latents were made of, before noise",
    "tip": "the state after the last latent, at the end of a path that answers (one more row)",
    "answer": "the decoded answer, in canonical form, as the tokens of its text",
}


def vllm(two_heads: bool) -> str:
    """What is known of serving it by vLLM, and what is not."""
    return VLLM.format(more=TWO_LABELS if two_heads else "")


def write_card(
    facts: Mapping[str, Any],
    architecture: str,
    name: str,
    hub: str | None,
    difference: float,
    measured: str,
    version: str,
) -> str:
    """README.md. ``facts`` are what config.json says under "latent_prm"; ``hub`` is the name it is pushed to."""
    two, projected = "correctness" in facts["heads"], facts["projection"] is not None
    whose = " and ".join(f"{one['model']} (weights {one['weights']})" for one in facts.get("reasoners", ()))
    return CARD.format(
        name=name,
        architecture=architecture,
        version=version,
        reads=_reads(facts),
        width=facts["latent_dim"],
        longest=facts["max_seq_length"],
        projected=f" `{PROJECTION}` maps them to the model's {facts['hidden_size']}." if projected else "",
        learnt=f" It learnt from those of {whose}, and knows no others." if whose else "",
        heads=(
            "label 0, `value`: the sigmoid of its logit is the chance of ending right."
            + (" Label 1, `correctness`: the chance of being right so far." if two else "")
        ),
        code=code(facts, hub),
        difference=difference,
        vllm=vllm(two),
        measured=measured,
    )


def _reads(facts: Mapping[str, Any]) -> str:
    streams = [PARTS[part] for part in facts["reads"] if part in ("fed", "hidden")]
    parts = ["the question's text"] if facts["context"] == "question" else []
    parts += [" beside ".join(streams) + (" (one vector, twice as wide)" if len(streams) > 1 else "")]
    parts += [PARTS[part] for part in facts["reads"] if part in ("tip", "answer")]
    return "; ".join(parts)


def code(facts: Mapping[str, Any], hub: str | None) -> str:
    """Python that needs torch, transformers and safetensors only: ``embed`` and ``score``."""
    asks, answers = facts["context"] == "question", "answer" in facts["reads"]
    projected = " @ projection.T" if facts["projection"] is not None else ""
    parts = ["read(question)"] * asks + [f"latents[-{facts['max_seq_length']} :].float(){projected}"]
    lines = []
    if asks or answers:
        lines = ["    def read(text):"]
        lines += ['        return words(torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long))', ""]
    lines.append(f"    parts = [{', '.join(parts)}]")
    if answers:
        lines.append("    parts += [read(answer)] if answer else []  # only a path that is at its end has one")
    lines.append("    return torch.cat(parts)")
    arguments = ["question"] * asks + ["latents"] + ['answer=""'] * answers
    found = CODE.format(
        download="from huggingface_hub import snapshot_download\n" if hub else "",
        folder=f'snapshot_download("{hub}")' if hub else '"."  # where this file lies',
        tokenizer="tokenizer = AutoTokenizer.from_pretrained(folder)\n" if asks or answers else "",
        projection=f'projection = load_file(f"{{folder}}/{PROJECTION}")["weight"]\n' if projected else "",
        arguments=", ".join(arguments),
        width=facts["latent_dim"],
        hidden_size=facts["hidden_size"],
        embed="\n".join(lines) + "\n",
    )
    return found if projected else found.replace("from safetensors.torch import load_file\n", "")


# --- what was measured ----------------------------------------------------------------------------------------------


def measured(checkpoint: Path) -> str:
    """The tables of the evaluation that lies in a checkpoint's folder, in Markdown.

    Raises ``files.BadFile`` for one that is not `latent-prm evaluate`'s.
    """
    for path in (checkpoint / "evaluation" / "evaluation.json", checkpoint / "evaluation.json"):
        if path.is_file():
            found = load_json(path)
            try:
                return "\n\n".join(_table(task, each) for task, each in reversed(found["comparisons"].items()))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise BadFile(
                    f"{path}: not an evaluation of this version ({error!r}). Measure again, or move it."
                ) from error
    return "No evaluation.json lay beside the checkpoint: `latent-prm evaluate` writes one."


def _table(task: str, comparison: Mapping[str, Any]) -> str:
    sizes = table_sizes(int(comparison["num_paths"]))
    rows = [f"| {task} | " + " | ".join(f"N = {size}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for method in METHODS:
        if by_size := comparison["accuracy"].get(method):
            rows.append(f"| {LABELS[method]} | " + " | ".join(_share(by_size.get(str(size))) for size in sizes) + " |")
    said = [f"{int(comparison['num_questions']):,} questions; per cent answered right [95 % interval]."]
    if (auroc := comparison["discrimination"]["auroc"]) is not None:
        said.append(f"AUROC within questions {auroc['mean']:.2f} [{auroc['low']:.2f}, {auroc['high']:.2f}].")
    return "\n".join(rows) + "\n\n" + " ".join(said)


def _share(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else Interval(**interval).per_cent()
