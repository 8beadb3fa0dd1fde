"""Damaged, malicious, impossible, misplaced: refused by name; the torture's rows C1 to C5, reduced."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import hostile, oddities, trials
from benchmarks.trials import Case
from latent_prm import files, preflight, seals, shards
from latent_prm.checkpoint import verify_checkpoint
from latent_prm.files import BadFile
from latent_prm.model import QwenLatentPRM

# --- the rows ---------------------------------------------------------------------------------------------------------


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    said = hostile.damage(tmp_path, 1, count=60)
    for found in ("60 flipped bits", "15 truncations", "6 random files", "6 swapped files"):
        assert found in said


def test_no_pickle_runs_wherever_it_lies(tmp_path: Path) -> None:
    assert hostile.malice(tmp_path, 1, count=4) == "4 malicious pickles in 6 places: 24 refused, none ran"


@pytest.mark.slow
def test_what_cannot_be_is_refused_with_a_reason(tmp_path: Path) -> None:
    assert "each with its reason" in oddities.impossible(tmp_path, 1, count=20)


@pytest.mark.slow
def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    assert "nothing outside was touched" in oddities.elsewhere(tmp_path, 1, count=16)


@pytest.mark.slow
def test_hardly_anything_to_learn_from_is_said_in_words(tmp_path: Path) -> None:
    assert "commands on" in oddities.too_few(tmp_path, 1, count=2)


IMPOSSIBLE = ["sparse, indices outside latents in a shard", "T = 0 in a shard", 'score "0.5" in a nested file']
IMPOSSIBLE += ["NaN weight in pytorch_model.bin", "stride 0, 1e6 × 1e6 moment in optimizer.pt", "too large a model"]
IMPOSSIBLE += ["odd json of a checkpoint", "bad json"]
ELSEWHERE = ["a manifest that lists '../../outside/victim'", "a run with a link for .lock", "names of 255 bytes"]
ELSEWHERE += ["a run with a pipe for training.log", "a pipe for tokenizer.json", "a folder for tokenizer_config.json"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_file_is_refused(tmp_path: Path, name: str) -> None:
    _attempt(oddities._impossible(tmp_path), name)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_leads_elsewhere_is_not_followed(tmp_path: Path, name: str) -> None:
    _attempt(oddities._elsewhere(tmp_path), name)


def _attempt(cases: Iterator[Case], name: str) -> None:
    (found,) = [case for case in cases if case.name == name]
    assert found.attempt()


# --- a trial that goes wrong is a finding -----------------------------------------------------------------------------


def _dies() -> Iterator[Case]:
    yield Case("first", lambda: "well")
    yield Case("second", os.abort)  # type: ignore[reportArgumentType]


def _hangs() -> Iterator[Case]:
    yield Case("first", lambda: "well")
    yield Case("second", lambda: str(time.sleep(60)))


def _is_believed() -> Iterator[Case]:
    yield Case("first", lambda: trials.refused(lambda: None))
    yield Case("second", lambda: trials.refused(lambda: files.load_json("nothing.json"), "another reason"))
    yield Case("third", lambda: trials.refused(lambda: {}["missing"]))


def test_a_file_that_ends_the_process_is_told() -> None:
    with pytest.raises(AssertionError, match=r"second: the process died \(exit code -6\)"):
        trials.try_all(_dies)


def test_a_file_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "HANGS", 2.0)
    with pytest.raises(AssertionError, match="second: no end after 2 s"):
        trials.try_all(_hangs)


def test_a_file_that_is_believed_or_refused_without_words_is_told() -> None:
    with pytest.raises(
        AssertionError, match=r"3 went wrong: first: .*taken for sound; second: .*these words.*; third: Key"
    ):
        trials.try_all(_is_believed)


# --- seals ------------------------------------------------------------------------------------------------------------


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {
        "format": "x/1",
        "rate": 2e-05,
        "text": "é\t\u001f",
        "seconds": 10.0,
        "none": None,
        "files": {"a": [1, 2]},
    }
    seals.save_sealed(content, path)
    whole = path.read_bytes()
    assert seals.load_sealed(path) == content
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(BadFile, match=r"a\.json"):
            seals.load_sealed(path)


def test_what_has_no_seal_is_believed_and_what_was_edited_is_told_how(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.save_json({"format": "x/1", "accuracy": {}}, path)  # of a time before there were seals
    assert seals.load_sealed(path) == {"format": "x/1", "accuracy": {}}
    seals.save_sealed({"format": "x/1", "seed": 42}, path)
    path.write_text(path.read_text().replace("42", "43"))
    with pytest.raises(BadFile, match=r'changed since it was written.*take its last line \("seal"\) out'):
        seals.load_sealed(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-3], lines[-3].rstrip(","), "}"]))  # as it says
    assert seals.load_sealed(path) == {"format": "x/1", "seed": 43}


def test_a_shard_from_before_there_were_seals_is_read(tmp_path: Path) -> None:
    path = trials.shard(tmp_path, "one", trials.grown("a", "7"))
    facts = seals.load_sealed(shards.metadata_path(path))
    files.save_json(facts, shards.metadata_path(path))
    assert [tree.question_id for tree in shards.load_trees(tmp_path)] == ["a"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "scheduler.pt"])
def test_a_checkpoint_that_scores_is_held_against_its_manifest(tmp_path: Path, name: str) -> None:
    path = trials.checkpoint(tmp_path / "best") / name
    assert QwenLatentPRM.from_pretrained(path.parent).latent_dim == trials.WIDTH
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadFile, match=rf"best/{name}: (damaged or replaced|not valid JSON)"):
        QwenLatentPRM.from_pretrained(path.parent)


def test_scoring_does_without_optimizer_and_manifest(tmp_path: Path) -> None:
    folder = trials.checkpoint(tmp_path / "best")
    (folder / "optimizer.pt").unlink()
    assert QwenLatentPRM.from_pretrained(folder).latent_dim == trials.WIDTH
    (folder / "manifest.json").unlink()
    assert QwenLatentPRM.from_pretrained(folder).latent_dim == trials.WIDTH


def test_a_manifest_whose_sizes_are_not_those_is_refused(tmp_path: Path) -> None:
    folder = trials.checkpoint(tmp_path / "best")
    said, listed = seals.listed(folder / "manifest.json")
    listed["config.json"]["size"] += 1
    seals.save_sealed(said, folder / "manifest.json")
    with pytest.raises(BadFile, match=r"config\.json: it has \d+ bytes, but its manifest says \d+"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_code_of_the_hub_that_a_config_asks_for_is_never_fetched(tmp_path: Path, key: str) -> None:
    path = trials.checkpoint(tmp_path / "best") / "config.json"
    path.write_text(json.dumps(files.load_json(path) | {key: "someone/kernels"}))
    trials.vouch(path.parent)
    with pytest.raises(BadFile, match=r"config\.json asks for attention code from the hub, which is never run"):
        QwenLatentPRM.from_pretrained(path.parent)


# --- before a stage begins --------------------------------------------------------------------------------------------


def test_another_process_that_sweeps_the_folder_is_no_reason_to_stop(tmp_path: Path) -> None:
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            files.sweep(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(100):
            preflight.can_write(tmp_path)  # the lock tells who it was
    finally:
        done.set()
        sweeper.join()


@pytest.mark.parametrize("name", [".lock", ".lock-1of2", "training.log", "metrics.jsonl"])
def test_a_link_that_would_be_written_through_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=rf"run cannot be written to \({name} in it is not a regular file\)"):
        preflight.can_write(tmp_path / "run")
