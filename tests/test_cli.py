"""``latent-prm COMMAND`` as a person types it: what it prints, where, and the exit code."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from latent_prm import __version__, options
from latent_prm.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent


def test_help_lists_every_command_with_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", listed, re.MULTILINE)


def test_no_command_at_all_shows_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: latent-prm COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latent-prm {__version__}\n"


def test_a_mistyped_command_exits_2_and_says_which_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["colect"]) == 2
    assert capsys.readouterr().err == '✗ ERROR: There is no command "colect". Did you mean "latent-prm collect"?\n'


def test_a_command_like_no_other_exits_2_and_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz"]) == 2
    assert f"Commands: {', '.join(COMMANDS)}." in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: latent-prm {command}" in capsys.readouterr().out


def test_a_mistyped_option_exits_2_and_says_which_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--learning_rat", "1"])
    assert end.value.code == 2
    assert "--learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "way_out"),
    [
        ("--num_epochs", "0", "at least 1"),
        ("--dropout_prob", "1.5", "from 0 up to"),
        ("--val_size", "1.5", "a whole number"),
        ("--lora_rank", "8", "only --tuning lora reads it"),
        ("--pooling_strategy", "men", "mean"),
    ],
)
def test_an_impossible_value_exits_2_and_says_what_to_type(
    option: str, value: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", option, value])
    assert end.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert option in printed and value in printed and way_out in printed


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--diversity_strategy dropout --noise 0.5",
            "does not read it. Leave it out, or type --diversity_strategy noise",
        ),
        ("--dropout 0.3", "--diversity_strategy noise does not read it"),
        ("--soft_temperature 2", "--diversity_strategy noise does not read it"),
        ("--top_p 0.9", "--temperature is 0, which always takes the likeliest token"),
        ("--revision abc", "builtin is a folder, which has only one"),
        ("--branches 4,x", "Type whole numbers from 1 with commas"),
        ("--num_workers 2", "only --engine ray has workers"),
        ("--max_samples -2", "type a number from 1, or -1 for all there are"),
        ("--shard 5/4", "Type i/N, with i from 1 to N"),
        ("--noise nan", "--noise is nan"),
    ],
)
def test_what_nobody_would_read_is_refused(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["collect", *typed.split()])
    assert end.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "18446744073709551616"])
@pytest.mark.parametrize("typed", ["collect", "train", "evaluate --checkpoint builtin --data_dir data", "report run"])
def test_a_seed_that_no_generator_takes_is_refused(
    typed: str, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*typed.split(), "--seed", seed])
    assert end.value.code == 2
    said = f"--seed is {seed}: type a whole number from 0 to 9223372036854775807."
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_options_are_typed_with_underscores_or_hyphens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--data_dir", "--data-dir"):
        assert main(["train", option, str(tmp_path / "nowhere")]) == 1
        assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_what_a_stage_refuses_is_one_sentence_on_stderr_and_exit_1(tmp_path: Path) -> None:
    done = latent_prm("train", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data"
    assert 'Run "latent-prm collect" first' in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "collect_training_data.sh").touch()  # as in the project's own folder
    assert 'Run "bash collect_training_data.sh" first' in latent_prm("train", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("command", "lower"), [("evaluate", "--pack_tokens"), ("steer", "--batch_size or --num_paths")]
)
def test_a_full_memory_is_a_sentence_in_every_stage(
    command: str, lower: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    typed = [command, "--checkpoint", "builtin", *["--data_dir", "data"] * (command == "evaluate")]
    monkeypatch.setattr(f"latent_prm.{COMMANDS[command].stage}.main", full)
    assert main(typed) == 1
    said = capsys.readouterr().err
    assert f"✗ ERROR: Out of memory. Type a lower {lower}, or --device cpu. (CUDA out of memory." in said
    assert "more" not in said and "Traceback" not in said

    def broken(options: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(f"latent_prm.{COMMANDS[command].stage}.main", broken)
    with pytest.raises(RuntimeError, match="something else"):
        main(typed)


def test_a_developer_may_ask_for_the_traceback(tmp_path: Path) -> None:
    done = latent_prm("train", cwd=tmp_path, LATENT_PRM_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "✗ ERROR: No .pt files found in prm_data" in done.stderr


def test_the_guides_trainer_is_the_train_command(tmp_path: Path) -> None:
    done = python("-m", "methods.latent_prm.trainer", "--num_epochs", "10", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data"


@pytest.mark.parametrize("typed", [("-m", "latent_prm", "train"), ("-m", "methods.latent_prm.trainer")])
def test_help_is_instant(typed: tuple[str, ...]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert python(*typed, "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # the least of three: another process may have the machine


def test_the_train_script_in_an_empty_folder_says_so_first(tmp_path: Path) -> None:
    done = script("train_latent_prm.sh", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data"
    assert done.stdout == ""


def test_the_evaluate_script_without_test_questions_says_how_to_get_them(tmp_path: Path) -> None:
    done = script("evaluate_latent_prm.sh", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data_test"
    assert "SPLIT=test OUTPUT_DIR=prm_data_test bash collect_training_data.sh" in done.stderr


def test_a_script_takes_true_or_false_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "unfinished.pt").touch()
    done = script("train_latent_prm.sh", cwd=tmp_path, DATA_DIR=".", USE_PRM_SCORE="yes")
    assert done.returncode == 2
    assert done.stderr == '✗ ERROR: USE_PRM_SCORE is "yes": type true or false.\n'


@pytest.mark.parametrize(("name", "option"), [("train", "--num_epochs"), ("evaluate", "--num_bootstrap")])
def test_a_script_helps_where_there_is_nothing_yet(name: str, option: str, tmp_path: Path) -> None:
    done = script(f"{name}_latent_prm.sh", "--help", cwd=tmp_path)
    assert done.returncode == 0 and option in done.stdout and not done.stderr


# Of collect: what few set stays out of its script, and goes at the end of its line.
RARE = """revision align dtype think soft_temperature dropout top_p max_new_tokens noise_free keep_hidden shard_size
    compile engine num_workers shard dry_run skip_bad_files"""
# Of train.
RARELY_TRAINED = """context context_dropout val_size val_steps early_stopping_patience pack_tokens skip_bad_files
    save_total_limit save_optimizer lora_rank train_embeddings weigh_labels correctness_weight report_to compile
    parallel deterministic plan"""

# Of evaluate.
RARELY_EVALUATED = "calibrate_on rivals_on rivals context pack_tokens skip_bad_files"


@pytest.mark.parametrize(
    ("name", "command", "left_out"),
    [
        ("collect_training_data.sh", "collect", set(RARE.split())),
        ("train_latent_prm.sh", "train", set(RARELY_TRAINED.split())),
        ("evaluate_latent_prm.sh", "evaluate", set(RARELY_EVALUATED.split())),
    ],
)
def test_a_script_names_its_stages_options_with_their_defaults(name: str, command: str, left_out: set[str]) -> None:
    lines = (ROOT / name).read_text("utf-8").split('eval "$given"')[0].splitlines()
    assigned = [line.split()[0].split("=") for line in lines if re.match("[A-Z_]+=", line)]
    set_in_script = {variable.lower(): value.strip('"') for variable, value in assigned}
    # Empty in the script: it chooses by what the machine has, or leaves the choice to the stage.
    chosen = {"checkpoint": "", "model_path": "", "task": "" if command == "collect" else None}
    defaults = {"data_dir": "prm_data_test"} if command == "evaluate" else {}
    for field in dataclasses.fields(getattr(options, COMMANDS[command].options)):
        if field.name in left_out:
            assert field.name not in set_in_script
            continue
        typed = set_in_script[field.name]
        expected = chosen.get(field.name, defaults.get(field.name, field.default))
        if isinstance(expected, float):
            assert float(typed) == expected, field.name
        else:
            words = "" if expected is None else str(expected)
            assert typed == (words.lower() if isinstance(expected, bool) else words), field.name


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    typed = [sys.executable, "-u", "-m", "latent_prm", "collect", "--max_samples", "100000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Where tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with subprocess.Popen(
            typed, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as running:
            assert running.stdout is not None
            said = running.stdout.read(1)  # it has begun to speak, so it is well under way
            running.send_signal(signal.SIGINT)
            said += running.stdout.read()
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.returncode == 130
    assert b"Ctrl-C" in said and b"Traceback" not in said


@pytest.mark.slow
def test_the_wheel_carries_the_command_the_types_and_the_built_in_models(tmp_path: Path) -> None:
    python("-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)).check_returncode()
    (wheel,) = tmp_path.glob("latent_prm-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {"latent_prm/py.typed", "methods/latent_prm/trainer.py"} <= packed
    demo = ROOT / "latent_prm" / "demo"
    shipped = [path for kind in ("json", "safetensors", "md") for path in demo.rglob(f"*.{kind}")]
    assert shipped
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= packed

    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    done = python("-m", "latent_prm", "--version", cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert done.stdout == f"latent-prm {__version__}\n"


def latent_prm(*typed: str, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "latent_prm", *typed, **settings)


def python(*typed: str, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, *typed], **{"PYTHONPATH": str(ROOT), **settings})


def script(name: str, *typed: str, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    return run(["bash", str(ROOT / name), *typed], **settings)


def run(typed: list[str], cwd: str | Path = ROOT, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with variables typed in front of it."""
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(typed, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300)
