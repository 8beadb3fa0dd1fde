"""Another program's nested files: read as data, believed only where they can be, and turned into our shards."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_prm import foreign, shards
from latent_prm.__main__ import main
from latent_prm.files import BadFile
from latent_prm.grading import question_digest
from latent_prm.lessons import Lesson
from latent_prm.tree import ReasoningTree

T, H = 3, 4
AGENTS = ("Planner", "Critic", "Refiner", "Judger")


def make_path(path_id: int, agent: str, parent: int | None, prm_score: Any = None, **changes: Any) -> dict[str, Any]:
    """A path as that program saves it: numbers of numpy, latents [T, 1, H] in the reasoner's bfloat16."""
    noise = torch.Generator().manual_seed(path_id)
    path = {
        "path_id": path_id,
        "agent_name": agent,
        "agent_idx": AGENTS.index(agent),
        "parent_path_id": parent,
        "child_path_ids": [],
        "score": np.float64(0.6 + path_id / 100),
        "prm_score": prm_score,
        "metadata": {"base_score": np.float64(0.5), "temperature": 0.7, "batch_idx": 0, "agent_name": agent},
        "latent_history": torch.randn(T, 1, H, generator=noise).bfloat16(),
        "hidden_states": torch.randn(1, H, generator=noise).bfloat16(),
        "num_latent_steps": T,
    }
    return path | changes


def make_judger(path_id: int, parent: int, prm_score: Any, value: str | None, correct: Any = None) -> dict[str, Any]:
    """A Judger: no latents, and one answer in its metadata; none that was graded when ``correct`` is None."""
    metadata = {"decoded_answer": f"So \\boxed{{{value}}}.", "extracted_answer": value, "gold_answer": "7"}
    graded = {} if correct is None else {"is_correct": correct}
    nothing = {"latent_history": None, "num_latent_steps": 0, "metadata": metadata | graded}
    return make_path(path_id, "Judger", parent, prm_score, **nothing)


def make_question(*paths: dict[str, Any], text: str = "3 + 4?", gold: str = "7") -> dict[str, Any]:
    structure = {"nodes": [], "edges": [(0, 1)], "root_ids": [0], "max_depth": np.int64(2)}
    outcome = {"final_answer": "7", "is_correct": np.bool_(True), "tree_structure": structure}
    return {"question_id": "q_0", "question": text, "gold_answer": gold, **outcome, "paths": list(paths)}


def graded_question(**changes: Any) -> dict[str, Any]:
    """Planner 0 → Refiners 1 (right), 2 (never expanded, labelled 0) and 3 (wrong); its label is their mean: 1/3."""
    return make_question(
        make_path(0, "Planner", None, np.mean([1.0, 0.0, 0.0])),
        make_path(1, "Refiner", 0, 1.0),
        make_path(2, "Refiner", 0, 0.0),
        make_path(3, "Refiner", 0, 0.0),
        make_judger(4, 1, 1.0, "7.0", True),
        make_judger(5, 3, 0.0, "8", np.bool_(False)),
        **changes,
    )


def ungraded(question: dict[str, Any]) -> dict[str, Any]:
    """The same without ``is_correct`` on its Judgers: only the labels are left."""
    for path in question["paths"]:
        path["metadata"].pop("is_correct", None)
    return question


def save(folder: Path, name: str, *questions: dict[str, Any], metadata: dict[str, Any] | None = None) -> Path:
    """A batch file, with the metadata that program writes beside it when it is given."""
    folder.mkdir(exist_ok=True)
    batch = {"batch_name": name, "timestamp": "20250101_000000", "num_questions": len(questions)}
    torch.save(batch | {"questions": list(questions)}, folder / f"{name}.pt")
    if metadata is not None:
        (folder / f"{name}_metadata.json").write_text(json.dumps({"batch_name": name, "accuracy": 0.9} | metadata))
    return folder / f"{name}.pt"


def read(folder: Path, **settings: Any) -> foreign.Harvest:
    return foreign.read(sorted(folder.glob("*.pt")), **settings)


def labels(tree: ReasoningTree) -> list[float | None]:
    return [path.prm_score for path in tree.paths]


def test_answers_make_the_labels_and_a_path_never_expanded_has_none(tmp_path: Path):
    save(tmp_path, "batch", graded_question(), metadata={"task": "gsm8k", "model": "Qwen3-4B"})
    harvest = read(tmp_path)
    (tree,) = harvest.trees
    assert tree.question_id == f"gsm8k-{question_digest('3 + 4?')}"
    assert (tree.question, tree.gold, tree.task) == ("3 + 4?", "7", "gsm8k")
    assert [path.agent for path in tree.paths] == ["Planner", "Refiner", "Refiner", "Refiner"]
    assert [path.parent for path in tree.paths] == [None, 0, 0, 0]
    assert labels(tree) == [0.5, 1.0, None, 0.0]  # 1/3 came: the zero of path 2 was in it
    assert [(path.num_correct, path.num_answers) for path in tree.paths] == [(1, 2), (1, 1), (None, None), (0, 1)]
    assert [path.score for path in tree.paths] == [0.5, 0.5, None, 0.5]  # votes, not that program's guesses
    assert [answer.value for path in tree.paths for answer in path.answers] == ["7", "8"]
    assert tree.paths[1].answers[0].text == "So \\boxed{7.0}."
    assert all(path.tip is None for path in tree.paths)
    assert dict(harvest.table())["labels withdrawn"] == 1 and dict(harvest.table())["labels corrected"] == 1
    assert harvest.left_out == {} and harvest.bad == []


def test_latents_come_as_they_were_in_float32_whatever_form_they_have(tmp_path: Path):
    numbers = torch.arange(12.0).view(T, H) / 4  # exact in every dtype
    forms: list[Any] = [
        numbers[:, None].half(),
        numbers.bfloat16(),
        [row[None].double() for row in numbers],
        list(numbers),
        numbers.clone().requires_grad_(),
    ]
    paths = [make_path(k, "Planner", None, latent_history=form) for k, form in enumerate(forms)]
    save(tmp_path, "batch", make_question(*paths))
    (tree,) = read(tmp_path).trees
    for path in tree.paths:
        assert path.latents.dtype == torch.float32
        assert torch.equal(path.latents, numbers)


def test_a_file_of_one_question_is_read_as_well(tmp_path: Path):
    torch.save(graded_question() | {"metadata": {"question_idx": 3, "num_paths": 6}}, tmp_path / "question_000003.pt")
    harvest = read(tmp_path)
    assert labels(harvest.trees[0]) == [0.5, 1.0, None, 0.0]
    assert harvest.trees[0].question_id == f"unknown-{question_digest('3 + 4?')}"
    assert harvest.sources == [
        foreign.Source(
            "question_000003.pt", hashlib.sha256((tmp_path / "question_000003.pt").read_bytes()).hexdigest(), 1, {}
        )
    ]


def test_without_graded_answers_the_labels_are_kept_but_for_paths_never_expanded(tmp_path: Path):
    save(tmp_path, "batch", ungraded(graded_question()))
    harvest = read(tmp_path)
    (tree,) = harvest.trees
    assert labels(tree) == [0.5, 1.0, None, 0.0]
    assert [(path.score, path.num_answers) for path in tree.paths] == [(None, None)] * 4
    assert dict(harvest.table())["labels withdrawn"] == 1 and dict(harvest.table())["labels corrected"] == 1


def test_labels_that_no_unexpanded_path_went_into_are_kept_as_they_came(tmp_path: Path):
    question = make_question(
        make_path(0, "Planner", None, np.float64(0.75)),  # not the mean of what is there: it is theirs to know why
        make_path(1, "Refiner", 0, 1.0),
        make_judger(2, 1, np.float32(1.0), "7"),
    )
    save(tmp_path, "batch", question)
    assert labels(read(tmp_path).trees[0]) == [0.75, 1.0]


def test_a_judgers_half_stands_for_not_graded(tmp_path: Path):
    question = make_question(
        make_path(0, "Planner", None, 0.75),
        make_path(1, "Refiner", 0, 1.0),
        make_path(2, "Refiner", 0, 0.5),
        make_judger(3, 1, 1.0, "7"),
        make_judger(4, 2, 0.5, "8"),
    )
    save(tmp_path, "batch", question)
    harvest = read(tmp_path)
    assert labels(harvest.trees[0]) == [1.0, 1.0, None]
    assert [len(places) for places in harvest.left_out.values()] == [1]
    assert harvest.left_out["an answer that was not graded"][0].endswith("batch.pt: question 0, path 4")


def test_without_judgers_the_last_agent_stands_in_for_them(tmp_path: Path):
    question = make_question(
        make_path(0, "Planner", None, 0.5),
        make_path(1, "Planner", None, 0.0),  # never expanded
        make_path(2, "Refiner", 0, 1.0),
        make_path(3, "Refiner", 0, 0.0),
    )
    save(tmp_path, "batch", question)
    assert labels(read(tmp_path).trees[0]) == [0.5, None, 1.0, 0.0]


def test_an_answer_on_the_path_itself_counts_too(tmp_path: Path):
    answered = {"metadata": {"is_correct": True, "extracted_answer": 7}}
    save(tmp_path, "batch", make_question(make_path(0, "Refiner", None, None, **answered)))
    (tree,) = read(tmp_path).trees
    assert labels(tree) == [1.0]
    assert tree.paths[0].answers[0].value == "7"


def test_an_answer_in_the_middle_is_left_out_and_counted(tmp_path: Path):
    early = make_judger(3, 0, 1.0, "7", True)
    paths = [make_path(0, "Planner", None, 0.0), make_path(1, "Refiner", 0, 0.0), early]
    save(tmp_path, "batch", make_question(*paths, make_judger(4, 1, 0.0, "8", False)))
    harvest = read(tmp_path)
    (tree,) = harvest.trees
    assert labels(tree) == [0.0, 0.0] and tree.paths[0].answers == []
    assert harvest.left_out == {
        "an answer at a path that another carries on from": [f"{tmp_path}/batch.pt: question 0, path 3"]
    }
    assert any("an answer at a path that another carries on from: " in sentence for sentence in harvest.say())


def test_a_missing_label_is_censored_and_a_guess_is_never_one(tmp_path: Path):
    save(tmp_path, "batch", make_question(make_path(0, "Planner", None), make_path(1, "Refiner", 0)))
    (tree,) = read(tmp_path).trees
    assert [(path.prm_score, path.score) for path in tree.paths] == [(None, None)] * 2
    (asked,) = read(tmp_path, use_heuristic_scores=True).trees
    assert [(path.prm_score, path.score) for path in asked.paths] == [(None, 0.6), (None, 0.61)]
    assert Lesson.of(asked, use_prm_score=True).targets == {}
    assert list(Lesson.of(asked, use_prm_score=False).targets.values()) == pytest.approx([0.6, 0.61])


def test_one_text_in_two_files_is_one_question_and_the_very_same_growth_counts_once(tmp_path: Path):
    save(tmp_path, "a", graded_question(), metadata={"task": "gsm8k"})
    other = make_question(
        make_path(7, "Planner", None, 1.0), make_judger(8, 7, 1.0, "7", True), text=" 3 + 4 ?", gold="7.0"
    )
    save(tmp_path, "b", other, make_question(make_path(9, "Planner", None), text="5 + 5?", gold="10"))
    save(tmp_path, "c", graded_question())
    harvest = read(tmp_path)
    first, second = harvest.trees
    assert [path.parent for path in first.paths] == [None, 0, 0, 0, None]
    assert labels(first) == [0.5, 1.0, None, 0.0, 1.0]
    assert first.paths[1].score == pytest.approx(2 / 3)  # "7", "8" and "7" voted
    assert (first.gold, first.task, second.question) == ("7", "gsm8k", "5 + 5?")
    assert [str(tmp_path / "c.pt") in place for place in harvest.left_out["the same growth once more"]] == [True]
    assert dict(harvest.table())["growths"] == 3


def test_labels_that_are_kept_stay_beside_answers_of_another_growth(tmp_path: Path):
    save(tmp_path, "a", graded_question())
    save(tmp_path, "b", ungraded(make_question(make_path(7, "Planner", None, 0.25), make_judger(8, 7, 0.0, "8"))))
    (tree,) = read(tmp_path).trees
    assert labels(tree) == [0.5, 1.0, None, 0.0, 0.25]


def test_what_is_left_out_is_named_and_counted(tmp_path: Path):
    mixed_up = make_question(make_path(0, "Planner", None), text="Whose?")
    mixed_up["paths"].append(make_path(1, "Planner", None, metadata={"batch_idx": 1}))
    question = make_question(
        make_path(0, "Planner", None, 1.0, latent_history=torch.zeros(0, H)),  # an agent without latents
        make_path(1, "Refiner", 0, 1.0),  # … whose child carries on from the question
        make_path(2, "Refiner", 99, 1.0),  # from a merged path, which is not recorded
        make_path(3, "Refiner", 4, 1.0),
        make_path(4, "Refiner", 3, 1.0),  # in a circle
        make_judger(5, 1, 1.0, "7", True),
        make_judger(6, 0, 1.0, "7", True),  # nothing was thought before it
        make_judger(7, 2, 1.0, "7", True),
    )
    save(tmp_path, "batch", question, mixed_up, make_question(make_judger(0, 0, 1.0, "7", True), text="Empty?"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    harvest = read(tmp_path)
    (tree,) = harvest.trees
    assert [path.parent for path in tree.paths] == [None]
    assert labels(tree) == [1.0]
    told = {
        reason: [place.removeprefix(f"{tmp_path}/") for place in places] for reason, places in harvest.left_out.items()
    }
    assert told == {
        "no latents": ["batch.pt: question 0, path 0"],
        "no way to a root": [
            *(f"batch.pt: question 0, path {k}" for k in (2, 3, 4, 7)),
            "batch.pt: question 2, path 0",
        ],
        "an answer without latents before it": ["batch.pt: question 0, path 6"],
        "paths of several questions under the name of one": ["batch.pt: question 1"],
        "no path with latents": ["batch.pt: question 2"],
        "a file of another kind": ["model.pt"],
    }
    assert any("Left out, no way to a root: " in line and line.endswith(" and 4 more") for line in harvest.say())


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a label above 1": ({"prm_score": np.float64(1.5)}, "its prm_score is 1.5, but must be a number in 0..1"),
    "a label below 0": ({"prm_score": -0.1}, "its prm_score is -0.1"),
    "a label that is none": ({"prm_score": np.float64("nan")}, "its prm_score is nan"),
    "a label in words": ({"prm_score": "0.5"}, "its prm_score is '0.5'"),
    "NaN latents": ({"latent_history": torch.full((T, 1, H), float("nan"))}, "NaN or infinite"),
    "latents of a batch": ({"latent_history": torch.zeros(T, 2, H)}, r"is \[3, 2, 4\], but must be \[T, 1, H\]"),
    "latents in words": ({"latent_history": "many"}, "is not a tensor of real numbers"),
    "latents of integers": (
        {"latent_history": torch.zeros(T, H, dtype=torch.int64)},
        "is not a tensor of real numbers",
    ),
    "sparse latents": ({"latent_history": torch.eye(T, H).to_sparse()}, "is not a tensor of real numbers"),
    "latents of two widths": ({"latent_history": [torch.zeros(1, 4), torch.zeros(1, 5)]}, "is a list of .*5"),
    "one latent for all": ({"latent_history": torch.zeros(1).expand(10**6, 10**6)}, "more numbers than the file has"),
    "latents in a graph that are NaN": (
        {"latent_history": torch.full((T, 1, H), float("nan"), requires_grad=True)},
        "NaN or infinite",
    ),
    "no name": ({"path_id": None}, "its path_id is None"),
    "another's name": ({"path_id": 1}, "its path_id is 1"),
    "a parent that is none": ({"parent_path_id": [0]}, r"its parent is none: .*\[0\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_rule_is_refused_by_file_and_sample(tmp_path: Path, case: str):
    changes, why = BROKEN[case]
    odd = make_path(0, "Planner", None) | changes
    good = make_question(make_path(0, "Planner", None, 1.0), text="Fine?")
    save(tmp_path, "batch", good, make_question(make_path(1, "Planner", None), odd))
    with pytest.raises(BadFile, match=rf"batch\.pt: question 1, path \d: .*{why}.*\n.*--skip_bad_files"):
        shards.load_trees(tmp_path)


def test_half_a_character_is_refused_by_file_and_question(tmp_path: Path):
    for text, gold in (("3 + 4 \ud83d?", "7"), ("3 + 4?", "\ud83d")):
        save(tmp_path, "batch", make_question(make_path(0, "Planner", None, 1.0), text=text, gold=gold))
        with pytest.raises(BadFile, match=r"batch\.pt: question 0: half of a character"):
            shards.load_trees(tmp_path)


def test_a_guess_out_of_range_is_refused_only_where_it_is_asked_for(tmp_path: Path):
    save(tmp_path, "batch", make_question(make_path(0, "Planner", None, score=np.float64(1.2))))
    assert len(read(tmp_path).trees) == 1
    with pytest.raises(BadFile, match=r"batch\.pt: question 0, path 0: its score is 1\.2"):
        read(tmp_path, use_heuristic_scores=True)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    save(tmp_path, "a", graded_question())
    save(tmp_path, "b", graded_question(gold="9"))
    with pytest.raises(
        BadFile, match=r"b\.pt: question 0 is also .*a\.pt: question 0, but its gold answer is '9' here"
    ):
        read(tmp_path)
    wide = make_path(0, "Planner", None, latent_history=torch.zeros(1, 5))
    save(tmp_path, "b", make_question(wide, text="5 + 5?"))
    with pytest.raises(BadFile, match=r"b\.pt: question 0 has latents 5 wide, but those of .*a\.pt: question 0 are 4"):
        read(tmp_path)


def test_only_numpys_plain_numbers_are_made_and_nothing_is_run(tmp_path: Path):
    canary, allowed = tmp_path / "canary", torch.serialization.get_safe_globals()

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(canary), "w")

    for odd in (Canary(), np.zeros(3), np.str_("x"), np.array([None])[0:1], np.datetime64("2025-01-01")):
        save(tmp_path, "batch", make_question(make_path(0, "Planner", None, 1.0, metadata={"odd": odd})))
        (bad,) = read(tmp_path).bad
        assert bad.startswith(f"{tmp_path}/batch.pt: ")
    assert not canary.exists()
    numbers = {"a": np.float32(0.1), "b": np.int64(3), "c": np.bool_(True), "d": np.float16(0.5), "e": np.int32(-1)}
    save(tmp_path, "batch", make_question(make_path(0, "Planner", None, np.float64(1) / 3, metadata=numbers)))
    assert read(tmp_path).bad == []
    assert torch.serialization.get_safe_globals() == allowed  # more only while a file is read


def test_a_number_of_numpy_is_the_number_it_was(tmp_path: Path):
    save(tmp_path, "batch", make_question(make_path(0, "Refiner", None, np.float64(1) / 3)))
    assert labels(read(tmp_path).trees[0]) == [1 / 3]
    save(tmp_path, "batch", make_question(make_path(0, "Refiner", None, np.array([1 / 3], ">f8")[0])))
    assert labels(read(tmp_path).trees[0]) == [1 / 3]


def test_the_loader_takes_such_a_folder_directly_and_says_what_it_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save(tmp_path, "a", graded_question(), metadata={"task": "gsm8k"})
    torch.save(make_question(make_path(9, "Planner", None), text="5 + 5?"), tmp_path / "question_1.pt")
    with caplog.at_level(logging.WARNING):
        trees = shards.load_trees(tmp_path)
    assert [len(tree.paths) for tree in trees] == [4, 1]
    assert "nested files 2, questions 2, growths 2, paths 5, labelled 3, censored 2, labels withdrawn 1" in caplog.text
    assert "collects on the test split" in caplog.text


def test_damaged_files_are_skipped_only_when_asked_and_then_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save(tmp_path, "a", graded_question())
    bad = save(tmp_path, "b", graded_question(text="5 + 5?"), metadata={"task": "gsm8k"})
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(BadFile, match=r"b\.pt: not a file that torch\.save wrote"):
        shards.load_trees(tmp_path)
    left_out: list[str] = []
    assert len(shards.load_trees(tmp_path, skip_bad_files=True, left_out=left_out)) == 1
    assert len(left_out) == 1 and left_out[0].startswith(f"{bad}: ")
    assert f"Left out (--skip_bad_files): {bad}: " in caplog.text
    (tmp_path / "a.pt").unlink()
    with pytest.raises(shards.NoData):
        shards.load_trees(tmp_path, skip_bad_files=True)


def test_a_folder_with_shards_of_ours_is_read_as_before(tmp_path: Path):
    nested, ours = tmp_path / "nested", tmp_path / "ours"
    save(nested, "a", graded_question())
    assert main(["convert", str(nested), "--output_dir", str(ours)]) == 0
    save(ours, "single", graded_question(text="5 + 5?"))
    assert len(shards.load_trees(ours)) == 1  # without metadata: unfinished
    save(ours, "batch", graded_question(text="5 + 5?"), metadata={"task": "gsm8k"})
    with pytest.raises(BadFile, match=r"batch_metadata\.json: not the metadata of a shard.*\n.*latent-prm convert"):
        shards.load_trees(ours)


def test_a_file_that_is_neither_is_unfinished_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(shards.NoData, match=r"No intact and finished \.pt files found .*empty\.pt, model\.pt"):
        shards.load_trees(tmp_path)
    assert "model.pt: left out: it has no model_metadata.json" in caplog.text


def test_why_a_file_cannot_be_read_is_said_to_who_trains_and_who_looks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    save(tmp_path, "batch", make_question(make_path(0, "Planner", None, 1.0, latent_history=np.ones((2, 4)))))
    reason = "batch.pt: it holds something other than tensors and plain values"
    with pytest.raises(shards.NoData) as caught:
        shards.load_trees(tmp_path)
    assert reason in str(caught.value) and reason in caplog.text and "unfinished" not in caplog.text
    main(["inspect", str(tmp_path)])
    assert reason in capsys.readouterr().out


def test_converted_shards_hold_the_same_trees_and_say_where_they_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nested, output = tmp_path / "nested", tmp_path / "prm_data"
    one = save(nested, "one", graded_question(), metadata={"task": "gsm8k", "model": "Qwen3-4B", "method": "multi"})
    save(nested, "two", ungraded(graded_question(text="5 + 5?")), metadata={"task": "gsm8k", "model": "Qwen3-4B"})
    assert main(["convert", str(nested), "--output_dir", str(output)]) == 0
    said = capsys.readouterr().out
    rows = dict(re.findall(r"^  (\w[\w ]+?) +(\d+) ", said, re.MULTILINE))
    assert rows["paths"] == "8" and rows["labelled"] == "6" and rows["labels withdrawn"] == "2"
    assert "collects on the test split" in said and f"Next: latent-prm inspect {output} --show 3" in said

    back = shards.load_trees(output)
    for tree, same in zip(back, read(nested).trees, strict=True):
        assert (tree.question_id, tree.gold, labels(tree)) == (same.question_id, same.gold, labels(same))
        assert torch.equal(tree.chain_latents(3), same.chain_latents(3))
    (shard,) = shards.list_shards(output)
    metadata = shards.read_metadata(shard)
    assert {key: metadata[key] for key in ("task", "model", "split")} == {
        "task": "gsm8k",
        "model": "Qwen3-4B",
        "split": "unknown",
    }
    assert metadata["settings"]["use_heuristic_scores"] is False
    assert metadata["sources"][0] == {"file": "one.pt", "sha256": hashlib.sha256(one.read_bytes()).hexdigest()}
    assert metadata["conversion"]["labels withdrawn"] == 2

    before = shard.read_bytes()
    save(nested, "three", graded_question(text="6 + 6?"))  # the same command later: only what is new is written
    assert main(["convert", str(nested), "--output_dir", str(output)]) == 0
    assert "2 questions are in" in capsys.readouterr().out
    assert [path.name for path in shards.list_shards(output)] == ["converted_0000.pt", "converted_0001.pt"]
    assert shard.read_bytes() == before and len(shards.load_trees(output)) == 3


def test_training_questions_need_no_warning(tmp_path: Path):
    save(tmp_path, "a", graded_question(), metadata={"task": "gsm8k", "split": "train"})
    assert not any("test split" in line for line in read(tmp_path).say())
    save(tmp_path, "a", graded_question(), metadata={"task": "gsm8k", "split": "test"})
    assert any("test split" in line for line in read(tmp_path).say())


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "nothing there": (lambda folder: [str(folder / "none")], "No nested trees found in .*none: it has no .pt files"),
    "into itself": (lambda folder: [str(folder), "--output_dir", str(folder)], "Choose another folder"),
    "beside another width": (
        lambda folder: [str(folder), "--output_dir", str(folder.parent / "wide")],
        r"converted_0000\.pt has latents 5 wide, not 4\. Choose another --output_dir",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_said_in_words(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]):
    typed, why = REFUSED[case]
    wide = make_path(0, "Planner", None, latent_history=torch.zeros(1, 5))
    save(tmp_path / "other", "a", make_question(wide, text="5 + 5?"))
    assert main(["convert", str(tmp_path / "other"), "--output_dir", str(tmp_path / "wide")]) == 0
    save(tmp_path / "nested", "a", graded_question())
    capsys.readouterr()
    assert main(["convert", *typed(tmp_path / "nested")]) == 1
    said = capsys.readouterr().err
    assert re.search(why, said), said


def test_inspect_says_what_nested_files_hold_and_how_to_convert_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(tmp_path, "a", graded_question(), metadata={"task": "gsm8k"})
    assert main(["inspect", str(tmp_path), "--show", "1"]) == 0
    said = capsys.readouterr().out
    assert "nested files 1, questions 1" in said
    assert "├─ Refiner · T 3  1.00 = 1/1  ✓ 7" in said
    assert f"Next: latent-prm convert {tmp_path} --output_dir FOLDER" in said


def test_what_lies_among_our_shards_and_looks_foreign_is_to_be_converted(
    tmp_path: Path, make_tree: Callable[..., Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    shards.write_shard([make_tree(0)], tmp_path, "ours", {})
    shards.write_shard([make_tree(1)], tmp_path, "half", {})
    (tmp_path / "half_metadata.json").unlink()
    save(tmp_path, "theirs", graded_question())
    torch.save([torch.ones(2)], tmp_path / "odd.pt")
    way_out = f"looks like another program's. Type: latent-prm convert {tmp_path} --output_dir FOLDER"
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert len(shards.load_trees(tmp_path)) == 1
    for name, why in (("theirs", f"and {way_out}"), ("odd", f"and {way_out}"), ("half", "so it is unfinished.")):
        assert f"Not read: {name}.pt: it has no {name}_metadata.json, {why}" in said
        assert f"{tmp_path / name}.pt: left out: it has no {name}_metadata.json, {why}" in caplog.text


def test_a_run_trains_on_such_a_folder(tmp_path: Path, tiny_lm: Path):
    questions = [graded_question(text=f"{k} + 4?") for k in range(4)]
    save(tmp_path / "nested", "a", *questions, metadata={"task": "gsm8k"})
    options = ["--model_path", str(tiny_lm), "--output_dir", str(tmp_path / "run"), "--num_epochs", "1"]
    assert main(["train", "--data_dir", str(tmp_path / "nested"), *options, "--val_size", "0.25"]) == 0
    stats = json.loads((tmp_path / "run" / "training_stats.json").read_text())
    assert stats["samples"] == {"train": 9, "validation": 3}  # three labels a question, none for path 2
