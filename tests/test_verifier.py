"""verify: what is damaged is named whatever it is, and with --repair the real stage carries on from what is sound."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from latent_prm import seals, shards, trainer
from latent_prm.__main__ import main
from latent_prm.checkpoint import load_state
from latent_prm.inventory import judge, look
from latent_prm.options import TrainOptions
from latent_prm.tree import ReasoningTree

Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """`latent-prm verify`; returns the exit code and all that it says."""

    def run(*typed: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["verify", *map(str, typed)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """A folder of three shards, of 5, 5 and 2 questions, as `latent-prm collect` leaves it."""
    folder = tmp_path_factory.mktemp("grown") / "prm_data"
    assert main(collection(folder, tiny_lm)) == 0
    return folder


def collection(folder: Path, model: Path) -> list[str]:
    typed = (
        f"collect --model_path {model} --task arithmetic --max_samples 12 --num_paths 2 --latent_steps 2 --noise 0.5"
    )
    return f"{typed} --max_new_tokens 3 --device cpu --batch_size 2 --shard_size 5 --output_dir {folder}".split()


@pytest.fixture
def data(grown: Path, tmp_path: Path) -> Path:
    """A copy of them, beside which stand files of somebody else."""
    folder = tmp_path / "prm_data"
    shutil.copytree(grown, folder)
    foreign_files(folder)
    return folder


def foreign_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / ".tmp-notes").write_text("mine too")
    (folder / ".mine.old").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "a.txt").write_text("and mine")


def are_untouched(folder: Path) -> bool:
    texts = [(folder / name).read_text() for name in ("notes.txt", ".tmp-notes", "mine/a.txt")]
    return texts == ["mine", "mine too", "and mine"] and (folder / ".mine.old").is_dir()


def sums(folder: Path, pattern: str = "*.pt") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files but for locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def flip(path: Path, at: float = 0.5) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".aside"))
    other.rename(one)
    one.with_suffix(".aside").rename(other)


@contextmanager
def locked(path: Path, said: str = "4711 on elsewhere", shared: bool = False) -> Iterator[None]:
    """As a stage at work holds it."""
    path.write_text(said + "\n")
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def next_command(said: str) -> list[str]:
    found = re.search(r"^Next[^\n]*?: latent-prm (.*)$", said, re.MULTILINE)
    assert found, said
    return shlex.split(found[1])


# --- shards -----------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (f"arithmetic_train_seed42_{i:05d}" for i in range(3))
GONE = "metadata that are gone"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda f: flip(f / f"{FIRST}.pt"), rf"{FIRST}\.pt: damaged or replaced"),
    "a truncated file": (lambda f: cut(f / f"{SECOND}.pt"), rf"{SECOND}\.pt: cut short or replaced"),
    "metadata with a flipped bit": (lambda f: flip(f / f"{FIRST}_metadata.json"), rf"{FIRST}_metadata\.json: "),
    GONE: (lambda f: (f / f"{FIRST}_metadata.json").unlink(), rf"{FIRST}\.pt: it has no .*_metadata"),
    "a file that is gone": (lambda f: (f / f"{THIRD}.pt").unlink(), rf"{THIRD}_metadata\.json: the shard .* is gone"),
    "a folder in its place": (
        lambda f: ((f / f"{THIRD}.pt").unlink(), (f / f"{THIRD}.pt").mkdir()),
        rf"{THIRD}\.pt: (not a regular file|cut short)",
    ),
}  # fmt: skip


def test_a_sound_folder_is_shown_with_what_is_in_it_and_nothing_is_written(data: Path, verify: Verify) -> None:
    before = sorted(path.name for path in data.iterdir())
    code, said = verify(data)
    assert code == 0 and "All is sound." in said
    for name, questions in ((FIRST, 5), (SECOND, 5), (THIRD, 2)):
        assert re.search(rf"{name}\.pt +shard +sound +{questions} questions, {3 * questions} paths", said)
    assert re.search(r"notes\.txt +not ours, left alone", said)
    assert sorted(path.name for path in data.iterdir()) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_set_aside_and_grown_again(
    damage: str, data: Path, grown: Path, tiny_lm: Path, verify: Verify
) -> None:
    do, why = DAMAGES[damage]
    do(data)
    code, said = verify(data)
    assert code == 1 and re.search(rf"^Damaged: .*{why}", said, re.MULTILINE), said
    assert f"Type: latent-prm verify {data} --repair" in said
    code, said = verify(data, "--repair")
    assert code == 0 and f"Set aside in {data / 'damaged'}: " in said and "All is sound." in said
    assert len(sums(data)) == 2 and list((data / "damaged").iterdir())  # nothing but that one shard is gone
    assert verify(data)[0] == 0
    assert main(collection(data, tiny_lm)) == 0  # refuses a folder with a damaged shard
    assert sums(data) == sums(grown) and are_untouched(data)


def test_the_command_that_it_says_to_type_grows_what_is_lost(data: Path, grown: Path, verify: Verify) -> None:
    cut(data / f"{FIRST}.pt")
    typed = next_command(verify(data, "--repair")[1])
    assert main(typed) == 0
    again = {tree.question_id for tree in shards.load_trees(data)}
    assert again == {tree.question_id for tree in shards.load_trees(grown)} and len(again) == 12
    assert sums(data)[f"{FIRST}.pt"] == sums(grown)[f"{FIRST}.pt"]


def test_the_command_repeats_what_was_typed_of_task_pipeline_and_alignment(
    tmp_path: Path, tiny_lm: Path, verify: Verify
) -> None:
    data, asked, pair = tmp_path / "prm_data", tmp_path / "q.jsonl", tmp_path / "p.yaml"
    asked.write_text("\n".join(json.dumps({"question": f"What is {i} + 1 ?", "answer": i + 1}) for i in range(12)))
    pair.write_text("agents: [{name: a, prompt: '{question}', branches: 2}, {name: b, prompt: Check .}]")
    typed = " ".join(collection(data, tiny_lm)).replace("--task arithmetic", f"--task {asked} --pipeline {pair}")
    assert main([*typed.split(), "--align", "rescale"]) == 0
    before = sums(data)
    (first, *_) = sorted(data.glob("*.pt"))
    cut(first)
    again = next_command(verify(data, "--repair")[1])
    assert sums(data) != before
    assert main(again) == 0
    assert sums(data) == before


def test_the_command_grows_what_a_job_lost_and_not_what_other_jobs_ask(
    tmp_path: Path, tiny_lm: Path, verify: Verify
) -> None:
    data = tmp_path / "prm_data"
    for shard in ("1/3", "2/3"):  # the questions of 3/3 stand elsewhere
        assert main([*collection(data, tiny_lm), "--shard", shard]) == 0
    before = sums(data)
    cut(data / "arithmetic_train_seed42_job2of3_00000.pt")
    assert main(next_command(verify(data, "--repair")[1])) == 0
    assert sums(data) == before


def test_what_was_grown_again_beside_a_damaged_shard_is_not_lost(
    data: Path, grown: Path, tiny_lm: Path, verify: Verify
) -> None:
    flip(data / f"{FIRST}.pt")
    assert main([*collection(data, tiny_lm), "--skip_bad_files"]) == 0
    said = verify(data, "--repair")[1]
    assert "Set aside" in said and "Next" not in said
    assert len(shards.load_trees(data)) == 12
    cut(data / f"{SECOND}.pt")
    assert main(next_command(verify(data, "--repair")[1])) == 0
    assert sorted(sums(data).values()) == sorted(sums(grown).values())


def test_the_command_for_shards_that_do_not_say_what_was_typed_is_made_of_their_settings(
    data: Path, grown: Path, verify: Verify
) -> None:
    for path in data.glob("*_metadata.json"):
        said = json.loads(path.read_text())
        seals.save_sealed({name: value for name, value in said.items() if name not in ("typed", "seal")}, path)
    cut(data / f"{FIRST}.pt")
    assert main([*next_command(verify(data, "--repair")[1]), "--batch_size", "2"]) == 0  # rounding depends on it
    assert sums(data)[f"{FIRST}.pt"] == sums(grown)[f"{FIRST}.pt"]


def test_shards_that_were_swapped_are_put_back_where_they_belong(data: Path, grown: Path, verify: Verify) -> None:
    exchange(data / f"{FIRST}.pt", data / f"{SECOND}.pt")
    code, said = verify(data)
    assert code == 1 and f"{FIRST}.pt: " in said and f"{SECOND}.pt: " in said
    code, said = verify(data, "--repair")
    assert code == 0 and f"Put back {FIRST}.pt: its bytes were whole, under another name." in said
    assert "Next" not in said  # nothing is lost
    assert sums(data) == sums(grown) and sums(data, "*.json") == sums(grown, "*.json") and are_untouched(data)


def test_a_shard_that_stands_there_twice_or_is_of_another_width_is_damage(
    data: Path, verify: Verify, make_tree: Callable[..., ReasoningTree]
) -> None:
    for end in (".pt", "_metadata.json"):
        shutil.copyfile(data / f"{FIRST}{end}", data / f"copy{end}")
    metadata = json.loads((data / "copy_metadata.json").read_text())
    shards.write_shard([make_tree(width=24)], data, "a_wide_one", {"settings": metadata["settings"]})
    code, said = verify(data)
    assert code == 1 and re.search(r"Damaged: .*a_wide_one\.pt: its latents are 24 wide, .* shards here are 16", said)
    assert re.search(rf"Damaged: .*copy\.pt: question .* is also in |Damaged: .*{FIRST}\.pt: question", said)
    assert verify(data, "--repair")[0] == verify(data)[0] == 0
    assert len(shards.load_trees(data)) == 12


def test_every_flipped_bit_of_a_shard_and_of_its_metadata_is_found(data: Path) -> None:
    for name in (f"{THIRD}.pt", f"{THIRD}_metadata.json"):
        whole = (data / name).read_bytes()
        for k in range(25):
            flip(data / name, k / 25)
            folder = look(data)
            assert folder is not None
            wrong = [verdict.said for verdict in map(judge, folder.parts) if not verdict.sound]
            assert len(wrong) == 1 and THIRD in wrong[0], (name, k)
            (data / name).write_bytes(whole)


def test_what_killed_writes_left_is_no_damage_and_is_removed(data: Path, verify: Verify) -> None:
    torn = [data / ".tmp-12-0123abcd", data / ".tmp-13-0123abcd"]
    torn[0].write_text("half")
    torn[1].mkdir()
    code, said = verify(data)
    assert code == 0 and re.search(r"\.tmp-12-0123abcd +left by a killed write", said)
    assert all(path.exists() for path in torn)
    code, said = verify(data, "--repair")
    assert code == 0 and f"Removed {torn[0]}: a write that was cut off." in said
    assert not any(path.exists() for path in torn) and are_untouched(data)


@pytest.mark.parametrize("job", [False, True])
def test_a_folder_in_which_a_stage_is_at_work_is_judged_but_not_repaired(job: bool, data: Path, verify: Verify) -> None:
    flip(data / f"{FIRST}.pt")
    (data / f"{SECOND}_metadata.json").unlink()  # as a collector has it for a moment
    (data / ".tmp-12-0123abcd").write_text("half")
    before = snapshot(data)
    held = [(".lock", "1 on gone", True), (".lock-1of2", "4711 on elsewhere", False)]  # the first is what jobs share
    with ExitStack() as stack:
        for name, said, shared in held if job else [(".lock", "4711 on elsewhere", False)]:
            stack.enter_context(locked(data / name, said, shared))
        code, said = verify(data, "--repair")
    assert code == 1 and "a stage is at work there (pid 4711 on elsewhere)" in said
    assert "being written" in said and f"{SECOND}.pt: it has no" not in said
    assert "Still damaged" in said and snapshot(data) == before


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, make_tree: Callable[..., ReasoningTree]) -> Path:
    """A finished run of two epochs, four steps each, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("learned")
    trees = [make_tree(i, branches=(4,), question=f"What is {i} + {i} ?") for i in range(10)]
    shards.write_shard(trees, folder / "data", "trees", {})
    settings: dict[str, Any] = {"num_epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 5, "save_steps": 1}
    settings |= {"val_size": 0.2, "learning_rate": 1e-3, "mixed_precision": False, "report_to": "none"}
    places = {"model_path": str(tiny_lm), "data_dir": str(folder / "data"), "output_dir": str(folder / "run")}
    return trainer.main(TrainOptions(**places, **settings, device="cpu", log_level="WARNING"))


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Path:
    """A copy of it, with bytes shared between equal checkpoints as there, beside files of somebody else."""
    folder, copies = tmp_path / "run", dict[int, str]()

    def copy(source: str, target: str) -> None:
        first = copies.setdefault(os.stat(source).st_ino, target)
        shutil.copyfile(source, target) if first == target else os.link(first, target)

    shutil.copytree(learned, folder, copy_function=copy)
    foreign_files(folder)
    return folder


def weights(run: Path) -> dict[str, str]:
    found = run.glob("*/pytorch_model.bin")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def unfinished(run: Path) -> Path:
    """As a kill in the second epoch leaves it."""
    (run / "training_stats.json").unlink()
    last = load_state(run / "final").step
    for path in [one for one in run.iterdir() if (one / "training_state.json").exists()]:
        if path.name in ("final", "epoch_2", f"checkpoint-{last}"):
            shutil.rmtree(path)
    kept = load_state(max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))).best
    assert kept is not None
    if load_state(run / "best").step == last:
        shutil.rmtree(run / "best")
        shutil.copytree(run / kept["kept_as"], run / "best")
    return run


def newest(run: Path) -> Path:
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_a_sound_run_is_shown_with_its_checkpoints(run: Path, verify: Verify) -> None:
    code, said = verify(run)
    assert code == 0 and re.search(r"final +checkpoint +sound +step 8, epoch 2", said)
    assert re.search(r"notes\.txt +not ours", said) and re.search(r"training\.log +log +unchecked", said)


TORN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda c: flip(c / "pytorch_model.bin"), r"pytorch_model\.bin: damaged or replaced"),
    "a truncated file": (lambda c: cut(c / "optimizer.pt"), r"optimizer\.pt: damaged or replaced"),
    "a missing file": (lambda c: (c / "scheduler.pt").unlink(), r"scheduler\.pt: cannot be read"),
    "a missing manifest": (lambda c: (c / "manifest.json").unlink(), r"manifest\.json: cannot be read"),
    "a manifest with a flipped bit": (lambda c: flip(c / "manifest.json", 0.3), r"manifest\.json: "),
    "an empty folder": (lambda c: [path.unlink() for path in c.iterdir()], r"manifest\.json: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("damage", TORN)
def test_a_damaged_checkpoint_is_named_and_set_aside(damage: str, run: Path, verify: Verify) -> None:
    do, why = TORN[damage]
    last = newest(unfinished(run))
    do(last)
    code, said = verify(run)
    assert code == 1 and re.search(rf"^Damaged: .*{last.name}/{why}", said, re.MULTILINE), said
    code, said = verify(run, "--repair")
    assert code == 0 and f"Set aside in {run / 'damaged'}: {last.name}" in said, said
    assert not last.exists() and (run / "damaged" / last.name).is_dir()
    assert verify(run)[0] == 0 and are_untouched(run)


def test_a_run_goes_on_from_before_a_damaged_checkpoint(run: Path, learned: Path, verify: Verify) -> None:
    flip(newest(unfinished(run)) / "pytorch_model.bin")
    assert main([*next_command(verify(run, "--repair")[1]), "--log_level", "WARNING"]) == 0
    assert weights(run) == weights(learned)


def test_best_is_made_anew_of_the_checkpoint_of_its_step(run: Path, learned: Path, verify: Verify) -> None:
    best = run / "best" / "pytorch_model.bin"
    whole = best.read_bytes()
    best.unlink()  # its own bytes from here on
    best.write_bytes(whole)
    flip(best)
    code, said = verify(run, "--repair")
    step = load_state(learned / "best").step
    assert code == 0 and re.search(rf"Made {run / 'best'} anew of \S+, the same step \({step}\)", said)
    assert "Next" not in said and (run / "training_stats.json").exists()  # the run is as whole as it was
    assert weights(run) == weights(learned) and flipped(run / "damaged" / "best", whole)


def flipped(checkpoint: Path, whole: bytes) -> bool:
    return (checkpoint / "pytorch_model.bin").read_bytes() != whole


def test_what_a_finished_run_has_lost_at_its_end_it_learns_again(run: Path, learned: Path, verify: Verify) -> None:
    flip(run / "final" / "pytorch_model.bin")  # and with it all that shares these bytes
    lost = {name for name in weights(run) if weights(run)[name] != weights(learned)[name]}
    assert {"final", "epoch_2"} <= lost
    code, said = verify(run)
    assert code == 1 and all(f"{run / name / 'pytorch_model.bin'}: damaged" in said for name in lost)
    code, said = verify(run, "--repair")
    assert code == 0 and "Nothing is left of what final held." in said
    assert "training_stats.json, so that the run can go on" in said
    assert main([*next_command(said), "--log_level", "WARNING"]) == 0
    assert weights(run) == weights(learned) and verify(run)[0] == 0


def test_a_best_model_of_which_nothing_is_left_is_learned_again_from_before_it(
    run: Path, learned: Path, verify: Verify
) -> None:
    best = load_state(run / "best").step
    same = [path for path in run.iterdir() if (path / "manifest.json").exists() and load_state(path).step == best]
    for path in same:
        (path / "config.json").unlink()
    code, said = verify(run, "--repair")
    assert code == 0 and "Nothing is left of" in said, said
    assert main([*next_command(said), "--log_level", "WARNING"]) == 0
    assert weights(run)["best"] == weights(learned)["best"] and verify(run)[0] == 0


def test_a_finished_run_without_its_best_is_damage(run: Path, verify: Verify) -> None:
    shutil.rmtree(run / "best")
    code, said = verify(run)
    assert code == 1 and "best: the run is finished, but this is gone" in said
    assert verify(run, "--repair")[0] == 0 and (run / "best" / "manifest.json").exists()


def test_facts_of_a_run_that_cannot_be_read_are_set_aside_and_written_again(run: Path, verify: Verify) -> None:
    (run / "training_stats.json").write_text("{")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    code, said = verify(run)
    assert (
        code == 1 and "training_stats.json: not valid JSON" in said and "metrics.jsonl: a line of it is no JSON" in said
    )
    code, said = verify(run, "--repair")
    assert code == 0 and main([*next_command(said), "--log_level", "WARNING"]) == 0
    assert verify(run)[0] == 0 and json.loads((run / "training_stats.json").read_text())["total_steps"] == 8


def test_a_checkpoint_whose_replacement_was_never_written_comes_back(run: Path, verify: Verify) -> None:
    (run / "best").rename(run / ".best.old")
    (run / "training_stats.json").unlink()
    assert verify(run)[0] == 0
    code, said = verify(run, "--repair")
    assert code == 0 and f"Put back {run / 'best'}" in said and (run / "best" / "manifest.json").exists()
    assert are_untouched(run)


def test_a_run_that_is_being_trained_is_left_alone(run: Path, verify: Verify) -> None:
    flip(run / "checkpoint-2" / "pytorch_model.bin")
    before = snapshot(run)
    with locked(run / ".lock"):
        code, said = verify(run, "--repair")
    assert code == 1 and "a stage is at work there (pid 4711 on elsewhere)" in said and snapshot(run) == before


def test_a_checkpoint_alone_is_judged_and_mended_with_its_run(run: Path, tmp_path: Path, verify: Verify) -> None:
    assert verify(run / "best")[0] == 0
    shutil.copytree(run / "checkpoint-2", tmp_path / "alone")
    for place, way_out in ((run / "checkpoint-2", f"verify {run} --repair"), (tmp_path / "alone", "Copy it again")):
        flip(place / "pytorch_model.bin")
        code, said = verify(place, "--repair")
        assert code == 1 and f"{place} is left as it is" in said and way_out in said
        assert (place / "pytorch_model.bin").exists()


# --- more than one ----------------------------------------------------------------------------------------------------


def test_a_folder_of_folders_is_searched_and_only_what_is_damaged_is_touched(
    run: Path, data: Path, tmp_path: Path, verify: Verify
) -> None:
    root = tmp_path / "root"
    (root / "somebody").mkdir(parents=True)
    (root / "somebody" / "model.pt").write_bytes(b"theirs")
    run.rename(root / "run")
    data.rename(root / "prm_data")
    flip(root / "prm_data" / f"{FIRST}.pt")
    before = snapshot(root / "run")
    code, said = verify(root)
    assert code == 1 and re.search(r"somebody +not ours", said) and "training run" in said and "shards" in said
    assert verify(root, "--repair")[0] == verify(root)[0] == 0
    assert snapshot(root / "run") == before and (root / "somebody" / "model.pt").read_bytes() == b"theirs"


def test_results_that_cannot_be_read_are_set_aside(run: Path, verify: Verify) -> None:
    results = run / "best" / "evaluation"
    results.mkdir()
    (results / "evaluation.json").write_text('{"overall": ')
    (run / "best" / "calibration.json").write_text("{}")
    code, said = verify(run)
    assert code == 1 and "evaluation.json: not valid JSON" in said and "calibration.json" in said
    before = weights(run)
    code, said = verify(run, "--repair")
    assert code == verify(run)[0] == 0 and weights(run) == before, said
    assert (results / "damaged" / "evaluation.json").exists() and (
        run / "best" / "damaged" / "calibration.json"
    ).exists()


def test_an_experiment_is_repaired_from_its_pools_to_its_runs_unless_it_is_at_work(
    run: Path, data: Path, tmp_path: Path, verify: Verify
) -> None:
    folder = tmp_path / "reports" / "choosing"
    (folder / "runs").mkdir(parents=True)
    (folder / "experiment.yaml").write_text("name: choosing")
    run.rename(folder / "runs" / "base-seed1-0123456789ab")
    data.rename(tmp_path / "reports" / "pools")
    cell = folder / "runs" / "base-seed1-0123456789ab"
    (cell / "measured-0123456789ab.json").write_text("{")
    flip(tmp_path / "reports" / "pools" / f"{FIRST}.pt")
    with locked(folder / ".lock"):
        code, said = verify(tmp_path / "reports", "--repair")
    assert code == 1 and "a stage is at work there" in said and (cell / "measured-0123456789ab.json").exists()
    assert not (tmp_path / "reports" / "pools" / f"{FIRST}.pt").exists()  # it is nobody's at this moment
    assert verify(tmp_path / "reports", "--repair")[0] == verify(tmp_path / "reports")[0] == 0
    assert not (cell / "measured-0123456789ab.json").exists() and are_untouched(cell)


def test_a_damaged_copy_of_a_part_of_a_pool_goes_as_a_whole(data: Path, tmp_path: Path, verify: Verify) -> None:
    part = tmp_path / "pools" / "train-0123456789ab-first12"
    part.parent.mkdir()
    data.rename(part)
    flip(part / f"{SECOND}.pt")
    code, said = verify(part.parent, "--repair")
    assert code == verify(part.parent)[0] == 0 and "the experiment again, which copies it from its pool" in said
    assert not part.exists() and are_untouched(part.parent / "damaged" / part.name)


@pytest.mark.parametrize("place", ["run", "run/best"])
def test_shards_that_lie_in_a_run_or_a_checkpoint_are_verified_and_set_aside_too(
    place: str, run: Path, grown: Path, tmp_path: Path, tiny_lm: Path, verify: Verify
) -> None:
    folder = tmp_path / place
    for path in grown.glob("arithmetic_*"):
        shutil.copyfile(path, folder / path.name)
    code, said = verify(run)
    assert code == 0 and len(re.findall(r"\.pt +shard +sound", said)) == 3
    before = weights(run)
    flip(folder / f"{FIRST}.pt")
    (folder / f"{SECOND}_metadata.json").unlink()
    code, said = verify(run)
    assert code == 1 and f"{FIRST}.pt: damaged or replaced" in said and f"{SECOND}.pt: it has no" in said
    code, said = verify(folder, "--repair")
    assert code == verify(run)[0] == 0 and weights(run) == before, said
    assert f"move these, with their metadata, into {folder}-shards" in said
    assert not list(folder.glob(f"{FIRST}*")) and (folder / f"{THIRD}.pt").exists()
    for path in folder.glob(f"{THIRD}*"):
        (tmp_path / f"{place}-shards").mkdir(exist_ok=True)
        path.rename(tmp_path / f"{place}-shards" / path.name)
    assert main(next_command(said)) == 0
    assert sums(tmp_path / f"{place}-shards").keys() <= sums(grown).keys()
    assert len(shards.finished_questions(tmp_path / f"{place}-shards")) >= 5


# --- what is not ours -------------------------------------------------------------------------------------------------


def test_what_cannot_be_verified_is_said_in_words(tmp_path: Path, verify: Verify) -> None:
    (tmp_path / "a.txt").write_text("")
    os.mkfifo(tmp_path / "pipe.pt")
    for path, why in (
        (tmp_path, f"Nothing in {tmp_path} is of this program"),
        (tmp_path / "a.txt", f"a file. Type its folder: latent-prm verify {tmp_path}"),
        (tmp_path / "nowhere", "There is no folder"),
    ):
        code, said = verify(path)
        assert code == 1 and why in said


def test_nothing_is_repaired_where_nothing_is_damaged(data: Path, verify: Verify) -> None:
    before = snapshot(data)
    code, said = verify(data, "--repair")
    assert code == 0 and "There was nothing to repair." in said and snapshot(data) == before
