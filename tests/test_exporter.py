"""Exported PRMs: the same logits from transformers alone, what is refused and why, the card, and the hub."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_family
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from latent_prm import confidence, exporter, files
from latent_prm.__main__ import main
from latent_prm.demo import prm_folder
from latent_prm.model import QwenLatentPRM
from latent_prm.options import ExportOptions
from latent_prm.tree import ReasoningTree

Trees = Callable[..., ReasoningTree]
ROOT = Path(__file__).parent.parent
TOKEN = "hf_" + "x" * 30


def build(backbone: Path, **settings: Any) -> QwenLatentPRM:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = QwenLatentPRM(model_path=backbone, pooling_strategy="last", **settings).eval()
        torch.nn.init.normal_(model.head.weight)  # large, so that a wrong state is seen
    return model


def checkpoint(model: QwenLatentPRM, folder: Path) -> Path:
    folder.mkdir(parents=True)
    model.save_description(folder)
    files.save_tensors(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def logits(model: QwenLatentPRM, tree: ReasoningTree) -> torch.Tensor:
    """Of every path, as the model says them: packed."""
    found = torch.zeros(len(tree.paths))
    with torch.no_grad():
        for batch in model.packs(model.as_read([tree]), max_seq_length=model.max_seq_length):
            found[[path for _, path in batch.paths]] = model(batch).value
    return found


def card_code(folder: Path) -> dict[str, Any]:
    """What the card's code defines, run where the card lies."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert "latent_prm" not in code
    names: dict[str, Any] = {}
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), names)
    return names


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "longest", "context"),
    [
        ({}, 512, "question"),
        ({"latent_dim": 20, "reads": ("fed", "tip", "answer")}, 4, "question"),
        ({"reads": ("fed", "hidden", "answer"), "second_head": True}, 5, "none"),
    ],
)
def test_the_card_alone_gives_our_logits(
    tmp_path: Path, tiny_lm: Path, make_tree: Trees, settings: dict[str, Any], longest: int, context: str
) -> None:
    model = build(tiny_lm, **settings)
    model.max_seq_length, model.context = longest, context
    assert exporter.export(model, tmp_path / "out") < 1e-5
    tree = make_tree(2, width=settings.get("latent_dim", 16))
    for path in tree.paths:
        path.hidden = torch.randn(path.latents.shape, generator=torch.Generator().manual_seed(len(path.latents)))
    names, chains = card_code(tmp_path / "out"), []
    (read,) = model.as_read([tree])
    for i, path in enumerate(tree.paths):
        answer = [path.answers[0].value] if "answer" in model.reads and i in tree.leaves() else []
        question = [tree.question] if context == "question" else []
        chains.append(names["embed"](*question, read.tree.chain_latents(i), *answer))
    assert len({len(chain) for chain in chains}) > 2  # so that there is padding
    assert torch.allclose(names["score"](chains).logit(), logits(model, tree), atol=1e-5, rtol=0)
    one_by_one = torch.cat([names["score"]([chain]) for chain in chains])
    assert torch.allclose(one_by_one, names["score"](chains), atol=1e-6)


def test_the_built_in_prm_is_exported_with_its_calibration(
    tmp_path: Path, make_tree: Trees, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint", "builtin", "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Qwen3ForSequenceClassification. Its logits differ from the checkpoint's by" in printed
    assert "--runner pooling" in printed and "None of this was run at the export" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["pad_token_id"]) == (["Qwen3ForSequenceClassification"], 100)
    assert (config["id2label"], config["problem_type"]) == ({"0": "value"}, "multi_label_classification")
    kept = confidence.load(prm_folder()).paths
    calibration = config["latent_prm"]["calibration"]
    assert calibration.pop("method") == "isotonic"
    assert confidence.Isotonic(**{name: tuple(value) for name, value in calibration.items()}) == kept
    loaded, load_info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(load_info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded).__name__ == "Qwen3ForSequenceClassification"
    assert str(AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id) == "100"
    tree, model, code = make_tree(0, width=128), QwenLatentPRM.from_pretrained("builtin"), card_code(tmp_path / "out")
    chains = [
        code["embed"](tree.question, tree.chain_latents(i), tree.paths[i].answers[0].value) for i in tree.leaves()
    ]
    assert torch.allclose(code["score"](chains).logit(), logits(model, tree)[tree.leaves()], atol=1e-5, rtol=0)


def test_text_in_a_batch_is_read_to_its_end_although_the_backbone_named_no_padding(tmp_path: Path) -> None:
    model = build(save_family(tmp_path / "lm", "qwen3", pad_token_id=None))
    exporter.export(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    with torch.no_grad():
        batch, alone = loaded(ids).logits, loaded(ids[1:, :2]).logits
    assert torch.allclose(batch[1:], alone, atol=1e-6)


def test_two_heads_are_two_labels(tmp_path: Path, tiny_lm: Path) -> None:
    model = build(tiny_lm, second_head=True)
    exporter.export(model, tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "value", 1: "correctness"}
    assert model.correctness_head is not None
    assert torch.equal(loaded.score.weight, torch.cat([model.head.weight, model.correctness_head.weight]))
    assert "Label 1, `correctness`" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_other_backbones_of_the_same_make_are_exported_too(tmp_path: Path, family: str) -> None:
    model = build(save_family(tmp_path / "lm", family))
    assert exporter.export(model, tmp_path / "out") < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].lower() == f"{family}forsequenceclassification"


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_no_classifier_computes_is_refused_with_the_reason(tmp_path: Path, tiny_lm: Path) -> None:
    for pooling in ("mean", "max"):
        other = QwenLatentPRM(model_path=tiny_lm, pooling_strategy=pooling)
        with pytest.raises(ValueError, match=f"pools by {pooling}, but .* Train one with --pooling_strategy last"):
            exporter.export(other, tmp_path / "out")
    beside = build(tiny_lm)
    beside.see("tree")
    with pytest.raises(ValueError, match=r"beside its siblings.* Train one with --sees chain"):
        exporter.export(beside, tmp_path / "out")
    with pytest.raises(ValueError, match="backbone is a GPT2Model, of which transformers makes no classifier"):
        exporter.export(build(save_family(tmp_path / "lm", "gpt2")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_the_checkpoints_is_never_left_behind(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_lm)
    honest = exporter.weights
    monkeypatch.setattr(exporter, "weights", lambda model: {n: w * 1.1 for n, w in honest(model).items()})
    with pytest.raises(ValueError, match="so that it is not what was trained"):
        exporter.export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_not_replaced_and_an_export_is(tmp_path: Path, tiny_lm: Path) -> None:
    best = checkpoint(build(tiny_lm), tmp_path / "best")
    with pytest.raises(ValueError, match=r"best, which holds something else. Type a folder that is not there yet"):
        exporter.main(ExportOptions(checkpoint=str(best), output_dir=str(best)))
    assert (best / "pytorch_model.bin").is_file()
    for _ in range(2):
        exporter.main(ExportOptions(checkpoint=str(best), output_dir=str(tmp_path / "out")))
    assert (tmp_path / "out" / "model.safetensors").is_file()


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_has_the_evaluation_that_lies_beside_the_checkpoint(tmp_path: Path, tiny_lm: Path) -> None:
    best = checkpoint(build(tiny_lm), tmp_path / "best")
    interval = {"mean": 0.25, "low": 0.2, "high": 0.3}
    overall = {
        "num_questions": 1200,
        "num_paths": 8,
        "accuracy": {"vote": {"1": interval, "4": interval, "8": {"mean": 0.5, "low": 0.4, "high": 0.625}}},
        "discrimination": {"auroc": {"mean": 0.8, "low": 0.7, "high": 0.9}},
    }
    (best / "evaluation").mkdir()
    files.save_json({"comparisons": {"all tasks": overall}}, best / "evaluation" / "evaluation.json")
    exporter.main(ExportOptions(checkpoint=str(best), output_dir=str(tmp_path / "out")))
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| all tasks | N = 1 | N = 4 | N = 8 |" in card
    assert "| majority | 25.0 [20.0, 30.0] | 25.0 [20.0, 30.0] | 50.0 [40.0, 62.5] |" in card
    assert "1,200 questions" in card and "AUROC within questions 0.80 [0.70, 0.90]" in card
    files.save_json({"comparisons": {"all tasks": {"num_paths": 8}}}, best / "evaluation" / "evaluation.json")
    with pytest.raises(files.BadFile, match=r"evaluation\.json: not an evaluation of this version"):
        exporter.main(ExportOptions(checkpoint=str(best), output_dir=str(tmp_path / "out")))


def test_without_an_evaluation_the_card_says_how_to_get_one_and_names_no_folder(tmp_path: Path, tiny_lm: Path) -> None:
    best = checkpoint(build(tiny_lm), tmp_path / "best")
    exporter.main(ExportOptions(checkpoint=str(best), output_dir=str(tmp_path / "out")))
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"`latent-prm evaluate` writes one" in written
    assert str(tmp_path).encode() not in written and str(tiny_lm).encode() not in written


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [
        ("me/prm", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("me/prm", {"HF_HUB_OFFLINE": "0"}, "there is no access token. Type: hf auth login"),
        ("no name at all", {"HF_HUB_OFFLINE": "0"}, "which is no name for the hub"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, environment: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(exporter, "get_token", lambda: None)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        exporter.main(ExportOptions(checkpoint="builtin", output_dir=str(tmp_path / "out"), push_to_hub=name))
    assert not (tmp_path / "out").exists()


def test_public_without_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match="type --push_to_hub OWNER/NAME too"):
        ExportOptions(checkpoint="builtin", output_dir="out", public=True)


@contextmanager
def hub(public: bool = False) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A hub on the loopback, as far as one commit needs it: its address, and what it was asked."""
    asked: list[tuple[str, str, bytes]] = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            path = self.path.partition("?")[0]
            asked.append((self.headers.get("Authorization") or "", path, body))
            said: dict[str, Any] = {"id": "me/prm", "private": not public, "siblings": [], "tags": []}
            if path == "/api/repos/create":
                said = {"url": f"{address}/me/prm"}
            elif "/preupload/" in path:
                each = {"uploadMode": "regular", "shouldIgnore": False}
                said = {"files": [{"path": file["path"], **each} for file in json.loads(body)["files"]]}
            elif "/commit/" in path:
                said = {"commitUrl": f"{address}/me/prm/commit/1", "commitOid": "1", "success": True}
            content = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield address, asked
        finally:
            server.shutdown()


READ: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}


def environment(tmp_path: Path, address: str) -> dict[str, str]:
    """As of somebody with a token, whose hub is at this address."""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    return env | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}


@pytest.mark.slow
def test_a_pushed_folder_is_private_and_whole(tmp_path: Path) -> None:
    typed = ["export", "--checkpoint", "builtin", "--output_dir", "out", "--push_to_hub", "me/prm"]
    with hub() as (address, asked):
        run = [sys.executable, "-m", "latent_prm", *typed]
        done = subprocess.run(run, env=environment(tmp_path, address), cwd=tmp_path, **READ)
    assert done.returncode == 0, done.stderr
    assert f"Pushed to {address}/me/prm" in done.stdout
    writes = [token for token, path, _ in asked if re.search("create|preupload|commit", path)]
    assert len(writes) >= 3 and set(writes) == {f"Bearer {TOKEN}"}
    (created,) = [json.loads(body) for _, path, body in asked if path == "/api/repos/create"]
    assert (created["name"], created["organization"]) == ("prm", "me")
    assert created.get("private") is True or created.get("visibility") == "private"
    (commit,) = [body for _, path, body in asked if "/commit/" in path]
    sent = [json.loads(line)["value"] for line in commit.splitlines() if b'"file"' in line]
    for each in sent:
        assert base64.b64decode(each["content"]) == (tmp_path / "out" / each["path"]).read_bytes()
    assert {each["path"] for each in sent} == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_a_hub_that_has_it_public_or_is_not_there_takes_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("x")
    with hub(public=True) as (address, asked):
        there = refused(tmp_path, address)
    assert "is there already, and public. Type --public to write into it" in there
    assert [path for token, path, _ in asked if token] == ["/api/repos/create", "/api/models/me/prm"]
    gone = refused(tmp_path, address)
    assert gone.startswith("The hub did not take me/prm: ")
    assert gone.endswith("type: hf upload me/prm out --private\n")  # what is there can be typed, and stays private
    assert refused(tmp_path, address, "out q3", public=True).endswith("type: hf upload me/prm 'out q3'\n")


def refused(tmp_path: Path, address: str, folder: str = "out", public: bool = False) -> str:
    """What ``push`` raises ValueError with."""
    push = f"push({folder!r}, 'me/prm', {public})"
    code = f"from latent_prm.exporter import push\ntry: {push}\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, address), cwd=tmp_path, **READ)
    assert done.returncode == 0, done.stderr
    return done.stdout
