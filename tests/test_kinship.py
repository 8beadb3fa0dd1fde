"""Latents of another reasoner than those a PRM learnt from may be as wide: they are told apart, and that is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_tree
from safetensors.torch import load_file, save_file

from latent_prm import confidence, kinship, reporter, shards, steerer, trainer
from latent_prm.__main__ import main
from latent_prm.demo import prm_folder, reasoner_folder
from latent_prm.evaluator import measure
from latent_prm.files import BadFile
from latent_prm.model import QwenLatentPRM
from latent_prm.options import EvaluateOptions, ReportOptions, SteerOptions, TrainOptions
from latent_prm.reasoner import Reasoner
from latent_prm.sheet import Explorer, Words

ANN, BOB = {"model": "ann/lm", "weights": "a" * 16}, {"model": "bob", "weights": "b" * 16}
OTHERS = "The PRM in builtin learnt from latents of builtin (weights "
QUESTION = "Ann has 12 apples. On Monday she buys 5. On Tuesday she eats 3. How many apples does Ann have?"

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reasoner with the built-in one's words and width, but other weights."""
    folder = tmp_path_factory.mktemp("other") / "cousin"
    shutil.copytree(reasoner_folder(), folder)
    held = load_file(folder / "model.safetensors")
    shifted = {name: value * 1.02 if "layers.0." in name else value for name, value in held.items()}
    save_file(shifted, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture
def train(tmp_path: Path, tiny_lm: Path) -> Train:
    """Trains on a shard of each of these facts; returns the run folder."""

    def run(*facts: dict[str, Any], **changes: Any) -> Path:
        for i, said in enumerate(facts):
            trees = [random_tree(10 * i + k, question=f"What is {10 * i} + {k} ?") for k in range(3)]
            shards.write_shard(trees, tmp_path / "data", f"trees_{i}", said)
        plain = {"num_epochs": 1, "mixed_precision": False, "device": "cpu", "report_to": "none", "val_size": 0.0}
        places = {"model_path": str(tiny_lm), "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
        return trainer.main(TrainOptions(**{**plain, **places, **changes}))

    return run


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))["latent_prm"]


# --- what a checkpoint says -------------------------------------------------------------------------------------------


def test_a_checkpoint_names_the_reasoners_whose_trees_it_learnt_from_and_an_export_too(
    train: Train, tmp_path: Path
) -> None:
    run = train(BOB, ANN | {"model": "/home/me/ann"}, BOB, pooling_strategy="last")
    wanted = [{"model": "ann", "weights": "a" * 16}, BOB]  # where a folder lay is nobody's business
    for name in ("best", "final"):
        assert described(run / name)["reasoners"] == wanted
    assert list(QwenLatentPRM.from_pretrained(run / "best").reasoners) == wanted
    assert main(["export", "--checkpoint", str(run / "best"), "--output_dir", str(tmp_path / "plain")]) == 0
    assert described(tmp_path / "plain")["reasoners"] == wanted
    card = (tmp_path / "plain" / "README.md").read_text("utf-8")
    assert f"It learnt from those of ann (weights {'a' * 16}) and bob (weights {'b' * 16})" in card


@pytest.mark.parametrize("unsure", [{}, {"model": "bob"}, BOB | {"dtype": "float16"}])
def test_where_one_shard_does_not_say_whose_it_is_nothing_is_said(train: Train, unsure: dict[str, str]) -> None:
    run = train(ANN, unsure)
    assert "reasoners" not in described(run / "best") and QwenLatentPRM.from_pretrained(run / "best").reasoners == ()


@pytest.mark.parametrize("said", ["x", {}, ["x"], [{"model": "a"}], [{"model": 1, "weights": "a"}], [{**ANN, "x": ""}]])
def test_a_config_that_names_them_badly_is_refused(said: Any, tmp_path: Path) -> None:
    shutil.copytree(prm_folder(), tmp_path / "prm")
    path = tmp_path / "prm" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["latent_prm"]["reasoners"] = said
    path.write_text(json.dumps(config))
    with pytest.raises(BadFile, match="does not describe a latent PRM"):
        QwenLatentPRM.from_pretrained(tmp_path / "prm")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_built_in_prm_knows_its_reasoner_in_any_arithmetic(dtype: str) -> None:
    here = kinship.grower(Reasoner.from_pretrained("builtin", device="cpu", dtype=dtype))
    assert QwenLatentPRM.from_pretrained("builtin").reasoners == here


def test_half_precision_which_rounds_weights_tells_nothing() -> None:
    assert kinship.grower(Reasoner.from_pretrained("builtin", device="cpu", dtype="float16")) == ()


# --- what the stages say ----------------------------------------------------------------------------------------------


@pytest.fixture
def solve(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[str, str]]:
    """`latent-prm solve`; what it prints, and what it warns of."""

    def run(*options: str, code: int = 0) -> tuple[str, str]:
        caplog.clear()
        assert main(["solve", QUESTION, "--num_paths", "4", "--device", "cpu", *options]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err, caplog.text

    return run


def test_solve_warns_of_another_reasoner_and_takes_no_probability_for_calibrated(solve: Any, other: str) -> None:
    said, warned = solve("--model_path", other)
    assert warned.count(OTHERS) == 1 and "but these are of cousin (weights " in warned
    assert "its scores and probabilities are not calibrated for them" in warned
    assert "This probability is not calibrated." in said and "Chosen by" not in said
    assert "has no probability calibrated for" in solve("--model_path", other, "--abstain", "0.5", code=1)[0]


def test_solve_is_silent_where_the_reasoner_is_the_same_or_unknown(solve: Any, other: str, tmp_path: Path) -> None:
    shutil.copytree(reasoner_folder(), tmp_path / "elsewhere")
    unknown = tmp_path / "best"
    shutil.copytree(prm_folder(), unknown)
    config = json.loads((unknown / "config.json").read_text("utf-8"))
    del config["latent_prm"]["reasoners"]
    (unknown / "config.json").write_text(json.dumps(config))
    same, old = ("--model_path", str(tmp_path / "elsewhere")), ("--model_path", other, "--checkpoint", str(unknown))
    for typed in (same, old):
        said, warned = solve(*typed)
        assert "learnt from" not in warned and "Chosen by" in said and "not calibrated" not in said


def test_a_calibration_on_paths_of_another_reasoner_is_for_that_one(solve: Any, other: str, tmp_path: Path) -> None:
    checkpoint, data = tmp_path / "best", tmp_path / "data"
    shutil.copytree(prm_folder(), checkpoint)
    cousin = Reasoner.from_pretrained(other, device="cpu", dtype="float32")
    facts = {"model": other, **cousin.describe()}
    for name in ("data", "apart"):
        trees = [random_tree(i, width=128, question=f"{name} {i} ?") for i in range(4)]
        shards.write_shard(trees, tmp_path / name, "trees", facts)
    typed = f"evaluate --checkpoint {checkpoint} --data_dir {data} --calibrate_on {tmp_path / 'apart'} --no-rivals"
    assert main(f"{typed} --num_bootstrap 20 --device cpu".split()) == 0
    calibrated = confidence.load(checkpoint)
    assert calibrated.reasoners == kinship.grower(cousin) and calibrated.tasks == ("arithmetic",)
    said, warned = solve("--checkpoint", str(checkpoint), "--model_path", other)
    assert "its scores were not trained for them" in warned and "not calibrated" not in warned + said
    said, warned = solve("--checkpoint", str(checkpoint))
    assert "This probability is not calibrated." in said and "learnt from" not in warned


@pytest.mark.parametrize("known", [True, False])
def test_evaluate_warns_of_trees_of_another_reasoner(
    known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards.write_shard([random_tree(i, width=128) for i in range(2)], tmp_path, "trees", BOB if known else {})
    measure(EvaluateOptions(checkpoint=("builtin",), data_dir=str(tmp_path), num_bootstrap=20, rivals=False))
    assert caplog.text.count(OTHERS) == known == caplog.text.count("but these are of bob")


@pytest.mark.parametrize("known", [True, False])
def test_a_report_warns_of_trees_of_another_reasoner_and_shows_no_probability(known: bool, tmp_path: Path) -> None:
    shards.write_shard([random_tree(i, width=128) for i in range(2)], tmp_path, "trees", BOB if known else {})
    options = ReportOptions(path=str(tmp_path), device="cpu")
    trees = shards.load_trees(tmp_path)
    words, explorer = reporter.explore(
        reporter.Grove(data_dir=str(tmp_path), checkpoint="builtin", trees=trees), options
    )
    assert isinstance(words, Words) and isinstance(explorer, Explorer)
    warned = [line for line in words.lines if line.startswith(OTHERS)]
    assert len(warned) == known and all("but these are of bob (weights bbbb" in line for line in warned)
    for question in explorer.data["questions"]:
        assert ("probability" in question["choice"]) is not known


def test_steer_warns_of_another_reasoner_and_stops_by_no_calibration_of_the_first(
    other: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"max_samples": 2, "split": "validation", "device": "cpu", "select": "logit_vote"}
    bench = steerer.Bench(SteerOptions(model_path=other, **plain))
    assert caplog.text.count(OTHERS) == 1 and list(bench.settled("prm")) == ["agreement", "scores"]
    caplog.clear()
    bench = steerer.Bench(SteerOptions(**plain))
    assert "learnt from" not in caplog.text and list(bench.settled("prm"))[-1] == "regret"


def test_serve_warns_of_another_reasoner_and_tells_no_probability(other: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fastapi")
    from serving import serving

    with serving(model_path=other) as running:
        assert caplog.text.count(OTHERS) == 1
        assert running.ask("GET", "/v1/about").json["calibrated"] is False
        body = {"question": "?", "paths": [{"latents": torch.zeros(2, 128).tolist()}]}
        assert running.ask("POST", "/v1/score", body).json["paths"][0]["probability"] is None


# --- whose questions, and whose folder --------------------------------------------------------------------------------


def test_training_on_the_test_split_is_said_once(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train({"split": "train"}, {"split": "test"})
    assert caplog.text.count("are from the test split") == 1
    assert "1 of 2 shards in" in caplog.text and "measured there afterwards is worth nothing" in caplog.text


def test_training_on_the_training_split_says_nothing_of_the_test_split(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train({"split": "train"}, {})
    assert "test split" not in caplog.text


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_does_not_land_among_shards(train: Train, tmp_path: Path, resume: str | None) -> None:
    with pytest.raises(ValueError, match=r"data, which holds something else: shards\. Type a folder"):
        train(ANN, output_dir=str(tmp_path / "data"), resume=resume)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["trees_0.pt", "trees_0_metadata.json"]


@pytest.mark.parametrize("place", ["run", "run/best"])
def test_shards_do_not_land_in_a_run(
    place: str, train: Train, tmp_path: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(ANN)
    before = sorted(tmp_path.rglob("*"))
    folder = tmp_path / place
    assert main(f"collect --model_path {tiny_lm} --max_samples 2 --device cpu --output_dir {folder}".split()) == 1
    assert f"--output_dir is {folder}, which holds something else (" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
