"""Collecting: the same seed is the same bytes, and whatever stops it, nothing grown is lost, doubled or mixed up."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_lm

from latent_prm import collector, shards
from latent_prm.__main__ import main
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import ArithmeticTask, Grade, Question, load_task

Collect = Callable[..., int]


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """A stage sets how much our loggers say, for good: here only until the end of the test."""
    log = logging.getLogger("latent_prm")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture
def collect(tiny_lm: Path, tmp_path: Path) -> Collect:
    """`latent-prm collect` into ``tmp_path/prm_data`` with tiny settings; returns the exit code.

    What is given wins; None is for an option that is typed without a value.
    """

    def run(**given: Any) -> int:
        options = {"model_path": tiny_lm, "task": "arithmetic", "max_samples": 12, "output_dir": tmp_path / "prm_data"}
        options |= {"num_paths": 2, "latent_steps": 2, "noise": 0.5, "max_new_tokens": 3, "device": "cpu"}
        options |= {"batch_size": 2, "shard_size": 5, **given}
        typed = [(f"--{name}", str(value)) if value is not None else (f"--{name}",) for name, value in options.items()]
        return main(["collect", *chain.from_iterable(typed)])

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prm_data"


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int, stop: Callable[[], Any]) -> None:
    """Have ``stop`` called in the middle of growing: when an answer is graded for the ``call``-th time."""
    grade, calls = ArithmeticTask.grade, [0]

    def counted(self: ArithmeticTask, question: Question, text: str) -> Grade:
        calls[0] += 1
        if calls[0] == call:
            stop()
        return grade(self, question, text)

    monkeypatch.setattr(ArithmeticTask, "grade", counted)


def ids(folder: Path) -> list[str]:
    """The questions of all finished shards; `load_trees` itself refuses one that stands there twice."""
    return [tree.question_id for tree in shards.load_trees(folder)]


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.*") if path.is_file()}


def metadata(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*_metadata.json"))]


def questions_of(count: int) -> list[str]:
    return [question.id for question in load_task("arithmetic").questions("train", 42, count)]


# --- what it leaves behind ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_metadata_but_for_its_times(collect: Collect, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert collect(output_dir=one) == collect(output_dir=other) == 0
    assert [path.name for path in sorted(one.glob("*.pt"))] == [f"arithmetic_train_seed42_{i:05d}.pt" for i in range(3)]
    assert {path.name: path.read_bytes() for path in one.glob("*.pt")} == {
        path.name: path.read_bytes() for path in other.glob("*.pt")
    }
    times = dict.fromkeys(("created", "seconds"))
    assert [facts | times for facts in metadata(one)] == [facts | times for facts in metadata(other)]


def test_shards_hold_the_tasks_questions_in_order_and_say_how_they_were_made(
    collect: Collect, folder: Path, tiny_lm: Path
) -> None:
    assert collect() == 0
    assert ids(folder) == questions_of(12)
    first, _, last = metadata(folder)
    assert (first["num_questions"], last["num_questions"], first["num_paths"]) == (5, 2, 5 * 3)
    assert (first["task"], first["split"], first["seed"], first["model"]) == ("arithmetic", "train", 42, str(tiny_lm))
    digest = Reasoner.from_pretrained(str(tiny_lm), device="cpu").digest()
    settings = {"num_paths": 2, "latent_steps": 2, "noise": 0.5, "temperature": 0.0, "max_new_tokens": 3}
    assert first["settings"] == settings | {"dtype": "float32", "weights": digest}
    assert set(first["accuracy"]) == set(shards.ACCURACIES)
    assert set(first["versions"]) == {"python", "torch", "transformers", "latent-prm"}
    trees = shards.read_shard(folder / first["data_file"])
    answers = [answer for tree in trees for path in tree.paths for answer in path.answers]
    assert first["truncated_answers"] == sum(answer.truncated for answer in answers)
    assert first["answer_tokens"] == sum(len(answer.text.split()) for answer in answers)
    assert first["latents"] == 5 * 3 * 2
    assert first["seconds"] > 0


def test_the_batch_size_changes_no_answer(collect: Collect, folder: Path, tmp_path: Path) -> None:
    assert collect(batch_size=1) == collect(batch_size=5, output_dir=tmp_path / "other") == 0
    for one, other in zip(shards.load_trees(folder), shards.load_trees(tmp_path / "other"), strict=True):
        for a, b in zip(one.paths, other.paths, strict=True):
            assert a.answers == b.answers
            torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)


def test_without_a_batch_size_two_gib_of_cache_are_filled_but_at_most_64_questions(tiny_lm: Path) -> None:
    reasoner = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    short, long = Question("text-1", "What is 3 ?", "3"), Question("text-2", "Ann has 3 apples . " * 10, "3")
    assert collector.batch_size(reasoner, [short, long], reasoner.growth()) == 64
    growth = reasoner.growth(num_paths=999, latent_steps=10, max_new_tokens=440)
    one = (50 + 10 + 440) * 1000 * 128  # the longest has 50 tokens; 128 bytes each
    assert collector.batch_size(reasoner, [short, long], growth) == 2 * 2**30 // one == 33
    assert collector.batch_size(reasoner, [long], reasoner.growth(num_paths=10**6)) == 1


def test_several_tasks_make_a_name_that_is_safe_for_files(collect: Collect, folder: Path) -> None:
    assert collect(task="arithmetic,search", max_samples=3) == 0
    assert [path.name for path in folder.glob("*.pt")] == ["arithmetic-search_train_seed42_00000.pt"]
    assert {tree.task for tree in shards.load_trees(folder)} == {"arithmetic", "search"}


def test_a_file_of_questions_like_gsm8k_works_from_end_to_end(
    collect: Collect, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "数学 gsm8k.jsonl"
    lines = [{"question": f"Ann has {n} apples .", "answer": f"So <<{n}={n}>>\n#### {n},000"} for n in range(1, 4)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    assert collect(task=file, max_samples=-1) == 0
    assert [path.name for path in folder.glob("*.pt")] == ["gsm8k_train_seed42_00000.pt"]
    trees = shards.load_trees(folder)
    assert [(tree.question, tree.gold) for tree in trees] == [(f"Ann has {n} apples .", f"{n},000") for n in (1, 2, 3)]
    assert "3 questions, 9 labelled paths" in capsys.readouterr().out


def test_the_end_is_a_table_and_the_next_command(
    collect: Collect, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, output_dir, command in (
        ("train", "prm_data", "bash train_latent_prm.sh"),
        ("train", "my data", "DATA_DIR='my data' bash train_latent_prm.sh"),
        ("validation", "other", "DATA_DIR=other bash evaluate_latent_prm.sh"),
    ):
        assert collect(split=split, output_dir=output_dir, max_samples=1) == 0
        printed = capsys.readouterr().out
        assert printed.endswith(f"\nNext: {command}\n")
        for title in collector.ROWS.values():
            assert re.search(rf"{title} +[01]\.\d\d\d", printed)


def test_the_bar_tells_how_fast_and_how_right_it_goes(collect: Collect, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect() == 0
    bar = capsys.readouterr().err
    assert re.search(r"12/12 .* questions/s, noise-free [\d.]+, one noisy path [\d.]+, mixed [\d.]+", bar)


# --- warnings -------------------------------------------------------------------------------------------------------


def test_questions_of_the_test_split_come_with_a_warning(collect: Collect, caplog: pytest.LogCaptureFixture) -> None:
    assert collect(split="test", max_samples=1) == 0
    assert "These questions are from the test split: do not train on them." in caplog.messages


def test_outcomes_that_are_all_equal_and_few_paths_are_said_in_words(
    collect: Collect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArithmeticTask, "grade", lambda self, question, text: Grade("1", False))
    assert collect() == 0
    assert any(message.startswith("All paths are wrong: a PRM cannot learn") for message in caplog.messages)
    assert any(message.startswith("Only 36 labelled paths") for message in caplog.messages)


def test_outcomes_that_differ_and_many_paths_need_no_warning(
    collect: Collect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArithmeticTask, "grade", lambda self, question, text: Grade(text, len(text) % 2 == 0))
    assert collect(num_paths=9) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- stopped, and carried on ----------------------------------------------------------------------------------------


def test_the_same_command_again_asks_nothing_twice(collect: Collect, folder: Path, caplog: Any) -> None:
    assert collect() == 0
    before = sums(folder)
    assert collect() == 0
    assert sums(folder) == before
    assert f"12 of 12 questions are already in {folder}." in caplog.messages


def test_more_questions_can_be_asked_later(collect: Collect, folder: Path) -> None:
    assert collect(max_samples=5) == 0
    before = sums(folder)
    assert collect(max_samples=9, batch_size=3, shard_size=100) == 0
    assert before.items() <= sums(folder).items()
    assert ids(folder) == questions_of(9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_has_been_grown_and_the_same_command_carries_on(
    collect: Collect, folder: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before_test = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run in the background
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 26, lambda: os.kill(os.getpid(), number))  # the 9th question: a shard of 5 and a batch of 2
            assert exit_code(collect) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before_test)
    assert f"Stopped: 7 of 12 questions are kept in {folder}." in caplog.messages
    assert "Type the same command again to carry on." in caplog.messages
    assert [facts["num_questions"] for facts in metadata(folder)] == [5, 2]
    kept = sums(folder)
    assert collect() == 0
    assert kept.items() <= sums(folder).items()
    assert ids(folder) == questions_of(12)


def exit_code(collect: Collect) -> int | str | None:
    try:
        return collect()
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_during_a_commit_wait_for_its_end(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write, before_test = shards.write_shard, signal.signal(signal.SIGINT, signal.default_int_handler)

    def write_disturbed(*arguments: Any) -> Path:
        for _ in range(3):
            signal.raise_signal(number)
        return write(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(shards, "write_shard", write_disturbed)
            assert exit_code(collect) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before_test)
    assert ids(folder) == questions_of(5)
    assert collect() == 0
    assert ids(folder) == questions_of(12)


def test_handlers_are_as_before_afterwards(collect: Collect) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert collect(max_samples=1) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_error_keeps_what_has_been_grown_too(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        stop_at(patch, 26, full)
        assert collect() == 1
    assert "The memory is too small for 2 questions at once. Type --batch_size 1." in capsys.readouterr().err
    assert ids(folder) == questions_of(7)
    assert collect(batch_size=1) == 0
    assert ids(folder) == questions_of(12)


def test_what_a_kill_leaves_is_named_never_trusted_and_in_nobodys_way(
    collect: Collect, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert collect(max_samples=10) == 0
    unfinished, torn, foreign = (
        folder / name for name in ("arithmetic_train_seed42_00001.pt", ".tmp-1234-0123abcd", ".tmp-notes")
    )
    shards.metadata_path(unfinished).unlink()
    unfinished.write_bytes(unfinished.read_bytes()[:-9])
    torn.write_bytes(b"half")
    foreign.write_bytes(b"not ours")
    assert collect() == 0
    assert any(message.startswith(f"{unfinished}: left out") for message in caplog.messages)
    assert not torn.exists() and foreign.exists()
    assert sorted(ids(folder)) == sorted(questions_of(12))


def test_a_damaged_shard_stops_it_by_name_or_is_left_out_on_request(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect() == 0
    damaged = folder / "arithmetic_train_seed42_00001.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert collect() == 1
    printed = capsys.readouterr().err
    assert str(damaged) in printed and "--skip_bad_files" in printed
    assert collect(skip_bad_files=None) == 0
    found = [tree.question_id for tree in shards.load_trees(folder, skip_bad_files=True)]
    assert sorted(found) == sorted(questions_of(12))
    assert damaged.read_bytes() == content


# --- one folder, one collection -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("seed", 42, 43),
        ("noise", 0.5, 0.25),
        ("latent_steps", 2, 3),
        ("num_paths", 2, 3),
        ("temperature", 0.0, 0.7),
        ("max_new_tokens", 3, 4),
        ("task", "arithmetic", "search"),
        ("split", "train", "test"),
        ("dtype", "float32", "bfloat16"),
    ],
)
def test_other_settings_in_the_same_folder_are_an_error_that_names_them(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str], name: str, then: Any, now: Any
) -> None:
    assert collect(max_samples=2) == 0
    before = sums(folder)
    assert collect(max_samples=2, **{name: now}) == 1
    printed = capsys.readouterr().err
    assert f"was grown with --{name} {then}, not {now}. Type that to carry on there, or another --output_dir" in printed
    assert sums(folder) == before


def test_another_model_in_the_same_folder_is_an_error_even_under_the_same_name(
    collect: Collect, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_lm(tmp_path / "lm", hidden_size=16)
    assert collect(max_samples=2, model_path=model) == 0
    save_lm(tmp_path / "lm", hidden_size=16, seed=1)
    assert collect(max_samples=2, model_path=model) == 1
    said = rf"was grown with --model_path {model} \(weights [0-9a-f]{{16}}\), not {model} \(weights"
    assert re.search(said, capsys.readouterr().err)


def test_a_second_collector_in_the_same_folder_stops_and_names_the_first(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collector.only_collector(folder):
        assert collect() == 1
        assert f"Another collector (pid {os.getpid()}) is writing into {folder}." in capsys.readouterr().err
    with open(folder / ".lock") as lock:  # whoever held it is gone, the file is not
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert collect(max_samples=1) == 0


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_is_a_plain_sentence_and_leaves_no_folder_behind(
    collect: Collect, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for given, sentence in (
        ({"model_path": tmp_path}, f"No model in {tmp_path}"),
        ({"task": tmp_path / "none.jsonl"}, f"No such question file: {tmp_path / 'none.jsonl'}"),
        ({"task": empty, "max_samples": -1}, f"{empty} has no questions"),
        ({"task": "arithmatic"}, "unknown task 'arithmatic'"),
        ({"max_samples": -1}, "say how many with --max_samples"),
    ):
        assert collect(**given) == 1
        printed = capsys.readouterr().err
        assert "✗ ERROR: " in printed and sentence in printed
    assert not folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_a_plain_sentence(collect: Collect, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(device="cuda") == 1
    assert "--device is cuda, but no CUDA device was found. Type --device cpu, or auto." in capsys.readouterr().err


@pytest.mark.slow
def test_kills_at_any_moment_lose_and_double_nothing(tiny_lm: Path, folder: Path, tmp_path: Path) -> None:
    typed = [sys.executable, "-m", "latent_prm", "collect", "--model_path", str(tiny_lm), "--task", "arithmetic"]
    typed += ["--max_samples", "1500", "--shard_size", "50", "--batch_size", "10", "--max_new_tokens", "3"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    kept: dict[str, str] = {}
    for kill in range(8):
        with subprocess.Popen(typed, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            while "questions/s" not in running.stderr.readline(200) and running.poll() is None:
                pass
            time.sleep(0.05 * kill)
            running.kill()
        now = sums(folder)
        committed = [path for path in shards.scan(folder)[0] if shards.read_shard(path)]
        assert {name: now[name] for name in kept} == kept
        kept = {path.name: now[path.name] for path in committed}
    assert subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True).returncode == 0
    assert kept.items() <= sums(folder).items()
    assert sorted(ids(folder)) == sorted(questions_of(1500))
