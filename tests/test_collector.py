"""Collecting: the same seed is the same bytes, and whatever stops it, nothing grown is lost, doubled or mixed up."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_lm

from latent_prm import collector, files, memory, seals, shards
from latent_prm.__main__ import main
from latent_prm.options import CollectOptions
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import ArithmeticTask, Grade, Question, load_task

Collect = Callable[..., int]


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
    times = dict.fromkeys(("created", "seconds", "seal"))
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
    settings = {"num_paths": 2, "latent_steps": "2", "branches": "2", "noise": 0.5, "temperature": 0.0}
    settings |= {"max_new_tokens": 3, "pipeline": "solo", "diversity_strategy": "noise", "answers_per_leaf": 1}
    assert settings.items() <= first["settings"].items()
    assert (first["dtype"], first["weights"], first["revision"]) == ("float32", digest, None)
    assert (first["agents"], first["prompts"][1]) == (["solo"], None)
    assert set(first["accuracy"]) == set(shards.ACCURACIES)
    assert set(first["versions"]) == {"python", "torch", "transformers", "latent-prm"}
    trees = shards.read_shard(folder / first["data_file"])
    answers = [answer for tree in trees for path in tree.paths for answer in path.answers]
    assert first["truncated_answers"] == sum(answer.truncated for answer in answers)
    words = [len(answer.text.split()) + (not answer.truncated) for answer in answers]  # the end is decoded too
    assert first["answer_tokens"] == sum(words)
    assert first["latents"] == 5 * 3 * 2
    assert first["seconds"] > 0


def test_the_batch_size_changes_no_answer(collect: Collect, folder: Path, tmp_path: Path) -> None:
    assert collect(batch_size=1) == collect(batch_size=5, output_dir=tmp_path / "other") == 0
    for one, other in zip(shards.load_trees(folder), shards.load_trees(tmp_path / "other"), strict=True):
        for a, b in zip(one.paths, other.paths, strict=True):
            assert a.answers == b.answers
            torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)


def test_without_a_batch_size_the_budget_is_filled_but_with_at_most_64_questions(tiny_lm: Path) -> None:
    reasoner = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    short, long = Question("text-1", "What is 3 ?", "3"), Question("text-2", "Ann has 3 apples . " * 10, "3")
    assert collector.batch_size(reasoner, [short, long], reasoner.growth()) == 64
    growth = reasoner.growth(num_paths=999, latent_steps=10, max_new_tokens=440)
    one = reasoner.footprint(long, growth).total
    assert collector.batch_size(reasoner, [short, long], growth) == memory.CPU_BUDGET // one
    assert 1 < memory.CPU_BUDGET // one < 64
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
    newest = Path("checkpoints/qwen_prm_20260101_000000/best")
    for split, output_dir, command in (
        ("train", "prm_data", "latent-prm train"),
        ("train", "my data", "latent-prm train --data_dir 'my data'"),
        ("validation", "other", "latent-prm evaluate --checkpoint builtin --data_dir other"),
        ("train", "prm_data", "bash train_latent_prm.sh"),
        ("train", "my data", "DATA_DIR='my data' bash train_latent_prm.sh"),
        ("validation", "other", f"CHECKPOINT={newest} DATA_DIR=other bash evaluate_latent_prm.sh"),
    ):
        if command.endswith(".sh"):  # as in the project's own folder, after a training
            Path(command.split()[-1]).touch()
            newest.mkdir(parents=True, exist_ok=True)
        assert collect(split=split, output_dir=output_dir, max_samples=1) == 0
        printed = capsys.readouterr().out
        assert printed.endswith(f"\nNext: {command}\n")
        for title in collector.ROWS.values():
            assert re.search(rf"{title} +[01]\.\d\d\d", printed)


def test_the_bar_tells_how_fast_and_how_right_it_goes(collect: Collect, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect() == 0
    bar = capsys.readouterr().err
    assert re.search(r"12/12 \|.*\| [\d:]+<[\d:]+, \d+ paths/s, noise-free \d+, noisy \d+, mixed \d+ %", bar)
    longest = collector.BAR.format(
        n_fmt="1000", total_fmt="1000", bar="", elapsed="10:00", remaining="1:00:00",
        postfix=", 1760 paths/s, noise-free 100, noisy 85, mixed 30 %",
    )  # fmt: skip
    assert len(longest) < 80


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
    assert f"12 questions are already in {folder}." in caplog.messages


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
    def broken() -> None:
        raise ValueError("this verifier is broken")

    with monkeypatch.context() as patch:
        stop_at(patch, 26, broken)
        assert collect() == 1
    assert "this verifier is broken" in capsys.readouterr().err
    assert ids(folder) == questions_of(7)
    assert collect() == 0
    assert ids(folder) == questions_of(12)


def test_a_full_disk_is_told_with_what_is_kept_and_what_is_lost(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        stop_at(patch, 24, lambda: patch.setattr(files._HashingWriter, "flush", refuse))  # one shard is there by then
        assert collect() == 1
    assert "No space left on device: it needs" in capsys.readouterr().err
    assert f"Stopped: 5 of 12 questions are kept in {folder}." in caplog.messages
    assert "5 more were grown, but could not be kept." in caplog.messages
    assert ids(folder) == questions_of(5)
    assert collect() == 0
    assert ids(folder) == questions_of(12)


def test_a_full_memory_makes_smaller_batches_and_nothing_is_lost(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        stop_at(patch, 26, full)
        assert collect() == 0
    assert "The memory is too small for 2 questions at once: trying 1." in caplog.messages
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
    collect: Collect, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect() == 0
    damaged = folder / "arithmetic_train_seed42_00001.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert collect() == 1
    printed = capsys.readouterr().err
    assert str(damaged) in printed and "--skip_bad_files" in printed
    caplog.clear()
    assert collect(skip_bad_files=None) == 0
    assert any("the trees of 5 questions" in message for message in caplog.messages)  # what the disk is asked for
    assert "12 questions, 36 labelled paths" in capsys.readouterr().out
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
    assert "was grown with --" in printed and f"--{name} {then}, not {now}" in printed
    assert "Type that to carry on there, or another --output_dir" in printed
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


def test_the_same_weights_carry_on_however_their_folder_is_written(
    collect: Collect, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_lm(tmp_path / "lm", hidden_size=16)
    monkeypatch.chdir(tmp_path)
    for count, name in enumerate(("lm", "lm/", tmp_path / "lm", "./lm"), start=1):
        assert collect(max_samples=count, model_path=name) == 0
    assert ids(folder) == questions_of(4)


def test_shards_that_do_not_say_what_was_typed_are_carried_on(collect: Collect, folder: Path) -> None:
    assert collect(max_samples=5) == 0
    (path,) = folder.glob("*_metadata.json")
    assert {"latent_steps": 2, "batch_size": 2, "task": "arithmetic"}.items() <= metadata(folder)[0]["typed"].items()
    older = {name: value for name, value in metadata(folder)[0].items() if name not in ("typed", "seal")}
    seals.save_sealed(older, path)
    assert collect() == 0
    assert ids(folder) == questions_of(12)


def test_a_second_collector_in_the_same_folder_stops_and_names_the_first(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collector.only_collector(CollectOptions(output_dir=str(folder))):
        assert collect() == 1
        said = f"Another collector (pid {os.getpid()} on {socket.gethostname()}) is writing into {folder}."
        assert said in capsys.readouterr().err
    with open(folder / ".lock") as lock:  # whoever held it is gone, the file is not
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert collect(max_samples=1) == 0


# --- shares, streams, plans -----------------------------------------------------------------------------------------


def trees_by_id(*folders: Path) -> dict[str, Any]:
    return {tree.question_id: tree for folder in folders for tree in shards.load_trees(folder)}


def test_two_jobs_of_a_shared_folder_make_the_trees_of_one(collect: Collect, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert collect(output_dir=whole) == collect(shard="1/2") == collect(shard="2/2") == 0
    assert sorted(path.name for path in folder.glob("*.pt")) == [
        f"arithmetic_train_seed42_job{job}of2_0000{i}.pt" for job in (1, 2) for i in (0, 1)
    ]
    one, other = trees_by_id(folder), trees_by_id(whole)
    assert one.keys() == other.keys() == set(questions_of(12))
    for name, tree in one.items():
        for a, b in zip(tree.paths, other[name].paths, strict=True):
            assert a.answers == b.answers
            torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)
    assert collect() == 0  # and the whole command finds nothing left to do
    assert trees_by_id(folder).keys() == one.keys()


def test_jobs_work_beside_each_other_but_not_twice_nor_beside_the_whole(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collector.only_collector(CollectOptions(output_dir=str(folder), shard="1/2")):
        assert collect(shard="1/2") == 1
        assert f"(pid {os.getpid()} on" in capsys.readouterr().err
        assert collect() == 1
        assert collect(shard="2/2") == 0
    assert ids(folder) == questions_of(12)[1::2]


def test_jobs_that_cut_the_questions_into_another_number_of_parts_do_not_work_beside_each_other(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with collector.only_collector(CollectOptions(output_dir=str(folder), shard="1/2")):
        assert collect(shard="1/3") == 1
        said = capsys.readouterr().err
        assert f"--shard is 1/3, but a collector (pid {os.getpid()} on" in said and "as one of 2 jobs" in said
        assert collect(shard="2/2") == 0
    assert collect(shard="1/3") == 0  # nobody is there any more, and what is there is not asked again
    assert sorted(ids(folder)) == sorted({*questions_of(12)[1::2], *questions_of(12)[::3]})


def test_of_jobs_of_unlike_settings_that_begin_together_the_first_to_commit_goes_on_alone(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, 3, lambda: collect(shard="1/2"))  # begins and ends while the other grows its first question
    assert collect(shard="2/2", noise=0.25) == 1
    printed = capsys.readouterr().err
    assert "_job1of2_00000.pt was grown with --noise 0.5, not 0.25. Type that to carry on there" in printed
    assert f"Stopped: 0 of 6 questions are kept in {folder}." in caplog.messages
    assert "5 more were grown, but could not be kept." in caplog.messages
    assert ids(folder) == questions_of(12)[::2]


def test_more_jobs_than_questions_is_said(collect: Collect, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(max_samples=2, shard="3/3") == 1
    assert "has no questions in the split train for this job" in capsys.readouterr().err


def test_without_an_end_a_generated_task_goes_on_until_it_is_stopped(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    stop_at(monkeypatch, 50, interrupt)
    assert collect(max_samples=-1) == 130
    assert ids(folder) == questions_of(15)  # three shards of 5; the 17th question was not finished
    assert f"Stopped: 15 questions are kept in {folder}." in caplog.messages


def test_a_large_shard_is_closed_before_it_is_full(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "SHARD_BYTES", 4 * 3 * 2 * 16 * 4)  # four questions, 3 paths of 2 latents of 16
    assert collect(shard_size=100) == 0
    assert [facts["num_questions"] for facts in metadata(folder)] == [4, 4, 4]


def test_a_shard_that_takes_long_is_closed_too(collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "SHARD_SECONDS", 0)
    assert collect(shard_size=100) == 0
    assert [facts["num_questions"] for facts in metadata(folder)] == [2] * 6  # a batch each


@pytest.mark.slow
def test_memory_stays_bounded_while_more_is_written_than_it_may_hold(tmp_path: Path) -> None:
    """Latents of 640 MiB, with no more than 384 MiB of heap beside what was there after the first batch."""
    model = save_lm(tmp_path / "lm", hidden_size=512)
    program = """
import resource, sys
from latent_prm import collector, shards
from latent_prm.__main__ import main
collector.SHARD_BYTES = 64 * 2**20
add, limited = collector.ShardWriter.add, []
def limit(self, trees, spent):
    if not limited:
        held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + 384 * 2**20,) * 2)
        limited.append(held)
    add(self, trees, spent)
collector.ShardWriter.add = limit
sys.exit(main(sys.argv[1:]))
"""
    typed = [sys.executable, "-c", program, "collect", "--model_path", str(model), "--task", "arithmetic"]
    typed += ["--max_samples", "160", "--num_paths", "31", "--latent_steps", "64", "--max_new_tokens", "1"]
    typed += ["--batch_size", "4", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(typed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = metadata(tmp_path / "out")
    assert sum(part["num_questions"] for part in parts) == 160 and len(parts) > 8
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.pt")) > 640 * 2**20


def test_a_dry_run_prints_the_plan_and_a_prompt_and_leaves_nothing_behind(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(dry_run=None, pipeline="sequential", num_paths=4, max_new_tokens=8, max_samples=1000) == 0
    printed = capsys.readouterr().out
    for agent, branches, paths in (("planner", 2, 2), ("critic", 2, 4), ("refiner", 1, 4)):
        assert re.search(rf"{agent} +2 +{branches} +{paths}\n", printed)
    assert re.search(r"answers by the judger +1 +4\n", printed)
    for row in ("questions", "parameters", "memory: weights", "memory: KV cache", "memory at its peak", "disk"):
        assert re.search(rf"^ *{row} .*\d", printed, re.MULTILINE), row
    assert f"The first agent reads, for {questions_of(1)[0]}:" in printed
    assert load_task("arithmetic").questions("train", 42, 1)[0].text in printed
    assert not folder.exists()


def test_the_disk_that_a_dry_run_tells_is_what_the_shards_take(
    collect: Collect, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"num_paths": 8, "branches": "2,2,2", "latent_steps": 60, "keep_hidden": None, "shard_size": 500}
    assert collect(dry_run=None, **given) == 0
    told = re.search(r"disk +([\d.]+) (KiB|MiB), ", capsys.readouterr().out)
    assert told and collect(**given) == 0
    bytes_told = float(told[1]) * {"KiB": 2**10, "MiB": 2**20}[told[2]]
    assert sum(path.stat().st_size for path in folder.glob("*.pt")) == pytest.approx(bytes_told, rel=0.15)


def test_a_dry_run_refuses_what_a_real_one_would(collect: Collect, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(dry_run=None, max_new_tokens=600) == 1
    assert "but the reasoner has 512" in capsys.readouterr().err


def test_a_question_that_is_too_long_is_found_before_any_is_grown(
    collect: Collect, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*(f"What is {i} + 1 ?" for i in range(20)), "What is " + "1 + " * 600 + "1 ?"]
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"question": text, "answer": 1}) for text in asked))
    assert collect(task=file, max_samples=-1) == 1
    assert "but the reasoner has 512" in capsys.readouterr().err
    assert not list(folder.glob("*.pt"))


def test_a_question_that_is_long_in_tokens_though_not_in_characters_is_found_before_any_is_grown(
    collect: Collect, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*(f"What is {'x' * 3000} {i} ?" for i in range(120)), "What is " + "1+" * 600 + "1 ?"]
    assert len(asked[-1]) < min(map(len, asked[:-1]))
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"question": text, "answer": 1}) for text in asked))
    assert collect(task=file, max_samples=-1, batch_size=64) == 1
    assert "but the reasoner has 512" in capsys.readouterr().err
    assert not list(folder.glob("*.pt"))


def test_until_mixed_reports_what_it_saved(
    collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = set(questions_of(12)[::3])  # 4 of 12
    answered: dict[str, int] = {}

    def grade(self: ArithmeticTask, question: Question, text: str) -> Grade:
        answered[question.id] = answered.get(question.id, 0) + 1
        return Grade("1", question.id in mixed and answered[question.id] % 2 == 0)

    monkeypatch.setattr(ArithmeticTask, "grade", grade)
    assert collect(until_mixed=None, num_paths=4) == 0
    printed = capsys.readouterr().out
    assert "until_mixed: 8 questions stopped early, 4 went on: 40 paths grown instead of 48" in printed
    assert re.search(r"paths that are in such questions +0\.600", printed)
    assert sum(facts["num_leaves"] for facts in metadata(folder)) == 8 * 2 + 4 * 6


def test_agents_without_latents_and_other_settings_reach_the_trees(
    collect: Collect, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(
        "agents: [{name: a, prompt: '{question}', branches: 2}, {name: b, prompt: Check ., latent_steps: 0}]"
    )
    given = {"pipeline": file, "num_paths": 2, "answers_per_leaf": 3, "temperature": 1.0, "keep_hidden": None}
    assert collect(**given, no_noise_free=None, max_samples=4) == 0
    assert any("b has latent_steps 0: an ordinary text agent" in message for message in caplog.messages)
    for tree in shards.load_trees(folder):
        assert [(path.agent, len(path.answers), path.noise_free) for path in tree.paths] == [("a", 3, False)] * 2
        assert all(path.hidden is not None and path.hidden.shape == path.latents.shape for path in tree.paths)
    assert metadata(folder)[0]["agents"] == ["a", "b"]


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
            while "paths/s" not in running.stderr.readline(200) and running.poll() is None:
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
