"""Tuning the noise: the curve is counted as by hand, the rule chooses what it says, and a run cut short still tells."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from latent_prm import tuner
from latent_prm.__main__ import main
from latent_prm.metrics import Interval
from latent_prm.options import TuneNoiseOptions
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import ArithmeticTask, load_task
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath
from latent_prm.tuner import Curve, Outcome, best, choose, measured, outcome, print_curves

Tune = Callable[..., int]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """`latent-prm tune-noise` of the built-in reasoner into ``tmp_path/reports``, small; returns the exit code."""

    def run(**given: Any) -> int:
        options = {"max_samples": 30, "num_paths": 4, "noises": "0.1,0.4", "max_loss": 0.5, "device": "cpu"}
        options |= {"output_dir": tmp_path / "reports", **given}
        return main(["tune-noise", *chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())])

    return run


def grown(answers: str, noise_free: str | None = None, task: str = "arithmetic") -> ReasoningTree:
    """A tree whose noisy paths give these answers, and its noise-free path, if any, that one; "1" is right."""

    def path(value: str, noise_free: bool = False) -> LatentPath:
        answer = Answer(text=value, value=value, correct=value == "1")
        return LatentPath(latents=torch.ones(1, 2), tip=None, noise_free=noise_free, answers=[answer])

    paths = [path(noise_free, noise_free=True)] if noise_free else []
    return ReasoningTree(question_id="q", question="?", gold="1", task=task, paths=[*paths, *map(path, answers)])


def saved(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "reports" / "noise.json").read_text())


# --- counting -------------------------------------------------------------------------------------------------------


def test_a_tree_is_counted_as_by_hand() -> None:
    assert outcome(grown("1122", noise_free="1")) == Outcome("arithmetic", 1, mixed=1, random=0.5, vote=0.5, oracle=1)
    assert outcome(grown("1223", noise_free="2")) == Outcome("arithmetic", 0, mixed=1, random=0.25, vote=0, oracle=1)
    assert outcome(grown("1111")) == Outcome("arithmetic", None, mixed=0, random=1, vote=1, oracle=1)
    assert outcome(grown("23", task="search")) == Outcome("search", None, mixed=0, random=0, vote=0, oracle=0)


def test_the_curves_of_each_task_and_of_all_are_means_over_their_questions() -> None:
    found = {
        0.1: [grown("1111", "1"), grown("1112", "1", task="search"), grown("2222", "2")],
        0.5: [grown("1112"), grown("2222", task="search"), grown("1222")],
    }
    curves = choose({noise: list(map(outcome, trees)) for noise, trees in found.items()}, max_loss=0.05, seed=0)
    assert list(curves) == ["arithmetic", "search", "all tasks"]
    arithmetic, search, overall = curves.values()
    assert [curve.num_questions for curve in curves.values()] == [2, 1, 3]
    assert means(arithmetic) == {
        "noise_free": 1 / 2, "mixed": [0, 1], "random": [1 / 2, 1 / 2], "vote": [1 / 2, 1 / 2], "oracle": [1 / 2, 1],
        "loss": [0, 0],
    }  # fmt: skip
    assert (arithmetic.chosen, arithmetic.bounded) == (0.5, True)
    assert means(search) == {
        "noise_free": 1, "mixed": [1, 0], "random": [3 / 4, 0], "vote": [1, 0], "oracle": [1, 0], "loss": [1 / 4, 1],
    }  # fmt: skip
    assert (search.chosen, search.bounded) == (0.1, False)
    expected = {
        "noise_free": 2 / 3, "mixed": [1 / 3, 2 / 3], "random": [7 / 12, 1 / 3], "vote": [2 / 3, 1 / 3],
        "oracle": [2 / 3, 2 / 3], "loss": [1 / 12, 1 / 3],
    }  # fmt: skip
    assert means(overall) == {name: pytest.approx(value) for name, value in expected.items()}


def means(curve: Curve) -> dict[str, Any]:
    lines = {**curve.lines, "loss": curve.loss}
    return {"noise_free": curve.noise_free.mean, **{name: [i.mean for i in line] for name, line in lines.items()}}


def test_the_loss_is_paired_question_by_question() -> None:
    """Hard and easy questions make accuracies uncertain, but each loses exactly a quarter: so much is certain."""
    easy, hard = Outcome("a", 1.0, 1, 0.75, 1, 1), Outcome("a", 0.25, 1, 0.0, 0, 0)
    curve = choose({0.1: [easy, hard] * 10}, max_loss=0.05, seed=0)["a"]
    (loss,) = curve.loss
    assert (loss.mean, loss.low, loss.high) == pytest.approx((0.25, 0.25, 0.25))
    assert curve.noise_free.high - curve.noise_free.low > 0.2
    assert curve.lines["mixed"][0].low == pytest.approx(1)


# --- choosing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixed", "losses", "chosen"),
    [
        ([0.2, 0.5, 0.9], [0.0, 0.04, 0.06], (0.2, True)),  # the third mixes most, but loses too much
        ([0.2, 0.5, 0.9], [0.0, 0.04, 0.15 - 0.1], (0.4, True)),  # 0.04999...: allowed
        ([0.2, 0.5, 0.9], [0.0, 0.04, 0.3 - 0.25], (0.4, True)),  # 0.0500...04: as good as 0.05
        ([0.5, 0.1 + 0.2, 0.5], [0.0, 0.0, 0.0], (0.1, True)),  # of equals the weaker
        ([0.1, 0.3, 0.1 + 0.2], [0.0, 0.0, 0.0], (0.2, True)),  # equal, but for rounding
        ([0.2, 0.5, 0.9], [-0.1, 0.2, -0.2], (0.4, True)),  # a gain is no loss
        ([0.2, 0.5, 0.9], [0.3, 0.1, 0.2], (0.2, False)),  # none: the least loss
        ([0.2, 0.5, 0.9], [0.2, 0.1, 0.1], (0.2, False)),
    ],
)
def test_the_most_mixed_of_those_that_lose_little_is_chosen(
    mixed: list[float], losses: list[float], chosen: tuple[float, bool]
) -> None:
    assert best([0.1, 0.2, 0.4], mixed, losses, max_loss=0.05) == chosen


def curve_of(mixed: list[float], losses: list[float], max_loss: float = 0.05) -> Curve:
    """Of one question at noises 0.1, 0.2 and so on doubled; its noise-free path is right."""
    noises = [0.1 * 2**i for i in range(len(mixed))]
    found = {n: [Outcome("a", 1.0, m, 1 - x, 1, 1)] for n, m, x in zip(noises, mixed, losses, strict=True)}
    return choose(found, max_loss, seed=0)["a"]


@pytest.mark.parametrize(
    ("mixed", "losses", "said"),
    [
        ([0.2, 0.5, 0.4], [0, 0, 0], None),
        ([0.2, 0.5, 0.9], [0, 0, 1], None),
        ([0.2, 0.5, 0.9], [0, 0, 0], "It is the strongest that was tried; a stronger one may be better. "
         "To go on, type --noises 0.4,0.6,0.8,1.2"),
        ([0.9, 0.5, 0.2], [0, 0, 0], "It is the weakest that was tried; a neighbour may be better. "
         "To go on, type --noises 0.025,0.05,0.1,0.15"),
        ([0.9], [0], "It is the only one that was tried. To go on, type --noises 0.05,0.1,0.2"),
        ([0, 0, 0], [0, 0, 0], "No question is mixed at any of them; a stronger one may do it. "
         "To go on, type --noises 0.8,1.6,3.2"),
        ([0.2, 0.5, 0.9], [1, 1, 1], "A weaker one may lose less. "
         "To go on, type --noises 0.0125,0.025,0.05, or a higher --max_loss"),
    ],
)  # fmt: skip
def test_the_best_at_the_edge_of_what_was_tried_comes_with_what_to_type(
    mixed: list[float], losses: list[float], said: str | None
) -> None:
    lines = tuner.verdict(curve_of(mixed, losses), 0.05)
    assert lines[1:] == ([said] if said else [])
    assert all(TuneNoiseOptions(noises=line.split("--noises ")[1].split(", or")[0]).strengths() for line in lines[1:])


def test_the_verdict_says_the_rule_and_that_point_estimates_decide() -> None:
    assert tuner.verdict(curve_of([0.2, 0.5, 0.9], [0, 0, 1]), 0.05) == [
        "Chosen: noise 0.2. Of those that lose at most 5 points of the noise-free accuracy (point estimates), it mixes "
        "most: 50.0 %."
    ]
    assert tuner.verdict(curve_of([0.2, 0.5], [0.25, 0.5]), 0.05)[0] == (
        "Every noise loses more than 5 points of the noise-free accuracy (point estimates). 0.1 loses least: 25.0."
    )


@pytest.mark.parametrize(
    ("given", "losses", "command"),
    [
        ({}, [0, 0], "latent-prm collect --task arithmetic,search --noise 0.2"),
        (
            {"task": "my questions.jsonl", "num_paths": 8, "think": True, "diversity_strategy": "hybrid", "seed": 7},
            [0, 0],
            "latent-prm collect --task 'my questions.jsonl' --think --num_paths 8 --diversity_strategy hybrid "
            "--noise 0.2 --seed 7",
        ),
        ({"split": "train", "output_dir": "x", "max_samples": 3, "batch_size": 2, "max_loss": 0.01}, [0, 0],
         "latent-prm collect --task arithmetic,search --noise 0.2"),
        ({"split": "train", "max_samples": 3, "noises": "0.1,0.2"}, [1, 1],
         "latent-prm tune-noise --task arithmetic,search --split train --max_samples 3 --noises 0.0125,0.025,0.05"),
    ],
)  # fmt: skip
def test_the_next_command_carries_the_settings_that_were_typed(
    given: dict[str, Any], losses: list[float], command: str
) -> None:
    curves = {"a": curve_of([0.2, 0.5], [0, 0]), "all tasks": curve_of([0.2, 0.5], losses)}
    assert tuner.next_command(curves, TuneNoiseOptions(**given)) == command


# --- the whole stage ------------------------------------------------------------------------------------------------


def test_the_stage_prints_saves_and_draws_what_it_found(
    tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is the extra [plot]")
    assert tune(noises="0.4,0.05,0.1", max_loss=0.06) == 0
    out, err = capsys.readouterr()
    assert "Tuning: 100%" in err and "90/90" in err and "noise 0.4" in err
    found = saved(tmp_path)
    assert (found["task"], found["model"], found["split"], found["seed"]) == (
        "arithmetic,search", "builtin", "validation", 42,
    )  # fmt: skip
    assert found["options"]["max_loss"] == 0.06
    assert (found["settings"]["num_paths"], found["settings"]["diversity_strategy"]) == (4, "noise")
    assert set(found["versions"]) == {"python", "torch", "transformers", "latent-prm"}
    assert found["weights"] == Reasoner.from_pretrained("builtin", device="cpu").digest()
    assert list(found["curves"]) == ["arithmetic", "search", "all tasks"]
    for name, curve in found["curves"].items():
        assert curve["noises"] == [0.05, 0.1, 0.4]
        assert f"{name}: {curve['num_questions']} questions, %" in out
        for number, noise in enumerate(curve["noises"]):
            shown = [curve["lines"][line][number] for line in tuner.LINES] + [curve["loss"][number]]
            row = f"{noise:g} " + " ".join(tuner._per_cent(Interval(**interval)) for interval in shown)
            assert row in " ".join(out.split())
        assert f"→ {curve['chosen']:g} " in out
    assert "any of 4" in out
    last = out.splitlines()[-1]
    assert last.startswith("Next: latent-prm ") and "--num_paths 4" in shlex.join(shlex.split(last))
    assert f"Saved {tmp_path / 'reports' / 'noise.png'}" in out
    pixels = image.imread(tmp_path / "reports" / "noise.png")[..., :3]
    assert pixels.shape[1] > 2 * pixels.shape[0]  # three panels side by side
    thirds = [pixels[:, i * pixels.shape[1] // 3 : (i + 1) * pixels.shape[1] // 3].reshape(-1, 3) for i in range(3)]
    colours = [(0, 0x72, 0xB2), (0, 0x9E, 0x73), (0xE6, 0x9F, 0), (0x7F, 0x7F, 0x7F), (0xD5, 0x5E, 0)]
    for third in thirds:
        for colour in colours:
            assert (abs(255 * third - colour).max(1) < 2).sum() > 20, colour


def test_every_strength_is_what_growing_with_it_alone_gives(tune: Tune, tmp_path: Path) -> None:
    """The same questions, the same seed, and the noise-free path too, though it is grown at one strength only."""
    assert tune(batch_size=7) == 0
    task, reasoner = load_task("arithmetic,search"), Reasoner.from_pretrained("builtin", device="cpu")
    overall = saved(tmp_path)["curves"]["all tasks"]
    for number, noise in enumerate((0.1, 0.4)):
        questions = task.questions("validation", 42, 30)
        trees = reasoner.grow(questions, task, reasoner.growth(num_paths=4, noise=noise, seed=42))
        alone = means(choose({noise: list(map(outcome, trees))}, 0.5, seed=0)["all tasks"])
        assert alone["noise_free"] == pytest.approx(overall["noise_free"]["mean"])
        for line in tuner.LINES:
            assert alone[line] == pytest.approx([overall["lines"][line][number]["mean"]])
        assert alone["loss"] == pytest.approx([overall["loss"][number]["mean"]])


def test_more_noise_mixes_more_and_a_bound_on_the_loss_holds_it_back(tune: Tune, tmp_path: Path) -> None:
    chosen = {}
    for max_loss in (1.0, 0.02):
        assert tune(task="search", noises="0.05,0.2,0.8", max_loss=max_loss, num_paths=8) == 0
        curve = saved(tmp_path)["curves"]["search"]
        mixed = [interval["mean"] for interval in curve["lines"]["mixed"]]
        assert mixed[0] < mixed[1] < mixed[2]
        chosen[max_loss] = curve["chosen"]
    assert chosen[1.0] == 0.8 > chosen[0.02]


def test_a_random_model_of_any_task_goes_through_it_and_nothing_mixed_is_said(
    tune: Tune, tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {n} ?", "answer": "nowhere"}) + "\n" for n in range(3)))
    assert tune(model_path=tiny_lm, task=file, latent_steps=2, max_new_tokens=3, diversity_strategy="hybrid") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "own: 3 questions" in out and "all tasks" not in out
    assert "Nothing can be chosen: on every question all paths are alike, mostly wrong." in out
    assert "Next: latent-prm tune-noise" in out
    assert "No question is mixed at any of them; a stronger one may do it. To go on, type --noises 0.8,1.6,3.2" in out
    assert saved(tmp_path)["curves"]["own"]["num_questions"] == 3


def test_tasks_that_differ_are_told_so() -> None:
    curves = {"a": curve_of([0.2, 0.5], [0, 0]), "b": curve_of([0.5, 0.2], [0, 0]), "all tasks": curve_of([1], [0])}
    assert "The tasks differ (a 0.2, b 0.1): collect each by itself to give each its own --noise." in printed(curves)
    assert "The tasks differ" not in printed({**curves, "b": curves["a"]})


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    found = [Outcome("a", 1.0, 1, 0.5, 1, 1)] * 3 + [Outcome("a", 0.0, 0, 0.0, 0, 1)] * 3
    text = printed(choose({0.05: found, 0.15: found}, 0.05, 0), width)
    assert all(len(line) <= width for line in text.splitlines())
    row = "→ 0.05 50.0 [17,83] 25.0 [8,42] 50.0 [17,83] 100.0 [100,100] 25.0 [8,42]"
    assert width == 30 or row in [" ".join(line.split()) for line in text.splitlines()]


def printed(curves: dict[str, Curve], width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False, markup=False)
    print_curves(curves, 16, 0.05, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_matplotlib_it_says_how_to_install_it_and_goes_on(
    tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert tune(max_samples=2) == 0
    out = capsys.readouterr().out
    assert 'Pictures need matplotlib. Type: pip install "latent-prm[plot]"' in out and "\nNext: " in out
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["noise.json"]


# --- stopped --------------------------------------------------------------------------------------------------------


def test_a_run_cut_short_keeps_the_questions_known_at_every_strength_or_else_the_strengths_that_are_done() -> None:
    a, b, c, d = (Outcome("a", 1.0, i, 1, 1, 1) for i in range(4))
    assert measured({0.1: [a, b, c, d], 0.2: [a, b, c, d], 0.4: [a, b]}) == {n: [a, b] for n in (0.1, 0.2, 0.4)}
    assert measured({0.1: [a, b], 0.2: [a, b], 0.4: []}) == {0.1: [a, b], 0.2: [a, b]}
    assert measured({0.1: [], 0.2: []}) == {}


@pytest.mark.parametrize(
    ("answer", "said", "tables"),
    [
        # 5 noise-free and 20 noisy answers at the first strength, 20 at the second: 45 a batch of 5 questions.
        (100, "Stopped: measured on 10 of 30 questions at 2 of 2 strengths; nothing is saved.", ["10 questions"]),
        (30, "Stopped: measured on 5 of 30 questions at 1 of 2 strengths; nothing is saved.", ["5 questions"]),
        (3, "Stopped: measured on 0 of 30 questions at 0 of 2 strengths; nothing is saved.", []),
    ],
)
def test_ctrl_c_leaves_what_has_been_measured_printed(
    tune: Tune,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    answer: int,
    said: str,
    tables: list[str],
) -> None:
    grade, calls = ArithmeticTask.grade, [0]

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == answer:
            os.kill(os.getpid(), signal.SIGINT)
        return grade(*arguments)

    monkeypatch.setattr(ArithmeticTask, "grade", counted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run in the background
    try:
        assert tune(task="arithmetic", batch_size=5) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert said in caplog.messages
    assert [table for table in ("5 questions", "10 questions") if f"arithmetic: {table}" in out] == tables
    assert "Next:" not in out and not (tmp_path / "reports").exists()


# --- questions and mistakes -----------------------------------------------------------------------------------------


def test_questions_of_the_test_split_come_with_a_warning(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    warning = "These questions are from the test split: tune on others."
    assert tune(max_samples=2) == 0
    assert warning not in caplog.messages
    assert tune(split="test", max_samples=2) == 0
    assert warning in caplog.messages


def test_fewer_questions_than_wanted_are_told_and_none_is_an_error(
    tune: Tune, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"question": "Ann has 3 apples.", "answer": "3"}))
    assert tune(task=file) == 0
    assert "Only 1 of 30 questions are there." in caplog.messages
    file.write_text("")
    assert tune(task=file) == 1
    assert f"{file}" in capsys.readouterr().err


def test_a_question_that_is_too_long_is_told_before_anything_is_grown(
    tune: Tune, tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jsonl"
    texts = ["What is 3 ?", "What is 3 ? " * 200]
    file.write_text("\n".join(json.dumps({"question": text, "answer": "3"}) for text in texts))
    assert tune(model_path=tiny_lm, task=file, batch_size=1) == 1
    err = capsys.readouterr().err
    assert "but the reasoner has 512" in err and "Tuning" not in err


@pytest.mark.parametrize("noises", ["", "0.1,x", "0", "-0.1,0.2", "nan", "inf", "0.1,,0.2"])
def test_wrong_noises_are_a_plain_sentence(tune: Tune, capsys: pytest.CaptureFixture[str], noises: str) -> None:
    with pytest.raises(SystemExit) as end:
        tune(noises=noises)
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"--noises is {noises!r}. Type numbers above 0 with commas: --noises 0.1,0.2,0.4" in said


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match="--noise is what is looked for"):
        TuneNoiseOptions(noise=0.1)
    with pytest.raises(ValueError, match="has no noise to tune"):
        TuneNoiseOptions(diversity_strategy="dropout")
    assert TuneNoiseOptions(noises=" 0.4, 0.1,0.4").strengths() == [0.1, 0.4]
