"""Shards: trees come back as they were, the same trees are the same bytes, what is broken is refused by name."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_prm import columns, files, inspector, seals, shards
from latent_prm.__main__ import main
from latent_prm.files import BadFile
from latent_prm.options import InspectOptions
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

FACTS = {"task": "arithmetic", "model": "builtin", "split": "train", "seed": 42, "settings": {"noise": 0.2}}


def make_tree(name: str, *values: str, D: int = 4, seed: int = 0) -> ReasoningTree:
    """A noise-free path that answers "8", and one noisy path per value; "7" is right. Path k has k + 1 latents."""
    generator = torch.Generator().manual_seed(seed)
    paths = [
        LatentPath(
            latents=torch.randn(k + 1, D, generator=generator),
            tip=torch.randn(D, generator=generator),
            noise_free=k == 0,
            answers=[Answer(text=f"So {value}.", value=value, correct=value == "7")],
        )
        for k, value in enumerate(["8", *values])
    ]
    tree = ReasoningTree(question_id=name, question="3 + 4?", gold="7", task="arithmetic", paths=paths)
    tree.back_up()
    return tree


def make_deep_tree(name: str) -> ReasoningTree:
    """Root 0 → 1 (never expanded, no tip) and 2 → 3, which has two answers of which one is right."""
    tree = make_tree(name, "8", "8", "7")
    tree.paths = tree.paths[:4]
    for k, parent in enumerate([None, 0, 0, 2]):
        tree.paths[k].parent, tree.paths[k].noise_free, tree.paths[k].agent = parent, False, f"agent {k % 2}"
        tree.paths[k].answers = []
    tree.paths[1].tip = None
    tree.paths[3].answers = [
        Answer(text="7", value="7", correct=True),
        Answer(text="...", value="", correct=False, truncated=True),
    ]
    tree.back_up()
    return tree


def write(folder: Path, name: str = "train_0", trees: list[ReasoningTree] | None = None) -> Path:
    return shards.write_shard(trees or [make_tree("a", "7", "8"), make_tree("b", "7", seed=1)], folder, name, FACTS)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the columns of a shard and vouch for the new bytes: what only the schema can refuse."""
    data = torch.load(path, weights_only=True)
    changed = change(data)
    data = data if changed is None else changed
    metadata = seals.load_sealed(shards.metadata_path(path))
    metadata["sha256"] = files.save_tensors(data, path)
    metadata["size"] = path.stat().st_size
    seals.save_sealed(metadata, shards.metadata_path(path))


def as_values(tree: ReasoningTree) -> Any:
    paths = [
        (p.latents.tolist(), p.tip is not None and p.tip.tolist(), p.parent, p.agent, p.noise_free, p.answers)
        for p in tree.paths
    ]
    scores = [(p.prm_score, p.score, p.num_correct, p.num_answers) for p in tree.paths]
    return tree.question_id, tree.question, tree.gold, tree.task, paths, scores


def test_trees_come_back_as_they_were(tmp_path: Path):
    trees = [make_deep_tree("deep"), make_tree("a", "7", "7")]
    path = write(tmp_path, trees=trees)
    back = shards.read_shard(path)
    assert [as_values(tree) for tree in back] == [as_values(tree) for tree in trees]
    assert [p.prm_score for p in back[0].paths] == [0.5, None, 0.5, 0.5]
    assert [(p.num_correct, p.num_answers) for p in back[0].paths] == [(1, 2), (None, None), (1, 2), (1, 2)]
    assert all(p.hidden is None for tree in back for p in tree.paths)
    assert back[0].chain_latents(3).shape == (1 + 3 + 4, 4)


def test_the_file_is_one_flat_dict_that_plain_torch_reads_mapped(tmp_path: Path):
    data = torch.load(write(tmp_path), weights_only=True, mmap=True)
    assert data["format"] == "latent-prm/1"
    assert data["latents"].shape == (1 + 2 + 3 + 1 + 2, 4)
    assert data["latent_offsets"].tolist() == [0, 1, 3, 6, 7, 9]
    assert data["path_offsets"].tolist() == [0, 3, 5]
    assert data["question_ids"] == ["a", "b"]


def test_hidden_states_come_back_for_the_paths_that_have_them(tmp_path: Path):
    trees = [make_tree("a", "7", "8"), make_tree("b", "7")]
    trees[0].paths[2].hidden = torch.arange(12.0).view(3, 4)
    trees[1].paths[0].hidden = torch.full((1, 4), -1.0)
    path = write(tmp_path, trees=trees)
    back = [p.hidden for tree in shards.read_shard(path) for p in tree.paths]
    assert [None if hidden is None else hidden.tolist() for hidden in back] == [
        None,
        None,
        torch.arange(12.0).view(3, 4).tolist(),
        [[-1.0] * 4],
        None,
    ]
    assert shards.read_metadata(path)["stores_hidden"] is True
    rewrite(path, spoil("hidden_offsets", 3, 2))  # rows that belong to path 2 are given to the one after it
    with pytest.raises(BadFile, match="question 'a', path 2: it has 2 hidden states, but needs one per latent"):
        shards.read_shard(path)


def test_counts_of_an_inner_path_are_the_sums_of_its_children(tmp_path: Path):
    path = write(tmp_path, trees=[make_deep_tree("deep")])
    root = shards.read_shard(path)[0].paths[0]
    assert (root.num_correct, root.num_answers) == (1, 2)
    rewrite(path, spoil("num_correct", 0, 2))
    with pytest.raises(BadFile, match="question 'deep', path 0: its num_correct is 2, but that is not what"):
        shards.read_shard(path)


def test_a_label_may_stand_without_a_score_and_without_counts(tmp_path: Path):
    tree = make_tree("a", "7")
    for path in tree.paths:
        path.answers = []
    tree.back_up()
    tree.paths[0].prm_score, tree.paths[1].score = 0.25, 0.75
    (back,) = shards.read_shard(write(tmp_path, trees=[tree]))
    assert [(p.prm_score, p.score, p.num_answers) for p in back.paths] == [(0.25, None, None), (None, 0.75, None)]


def test_latents_and_hidden_states_are_views_of_the_file(tmp_path: Path):
    tree = make_tree("a", "7")
    for path in tree.paths:
        path.hidden = path.latents + 1
    (back,) = shards.read_shard(write(tmp_path, trees=[tree]))
    for one, other in ((back.paths[0].latents, back.paths[1].latents), (back.paths[0].hidden, back.paths[1].hidden)):
        assert one is not None and other is not None
        assert other.data_ptr() == one.data_ptr() + 4 * one.numel()  # in one block: nothing was copied


def test_the_same_trees_are_the_same_bytes_under_any_name(tmp_path: Path):
    one = write(tmp_path / "one", "first")
    trees = [make_tree("a", "7", "8"), make_tree("b", "7", seed=1)]
    for tree in trees:  # equal texts that are other objects
        tree.task, tree.question = "".join(["arith", "metic"]), "".join(["3 +", " 4?"])
        for path in tree.paths:
            path.answers[0].text = "".join(list(path.answers[0].text))
    two = write(tmp_path / "two", "second_name", trees)
    assert one.read_bytes() == two.read_bytes()
    first, second = (seals.load_sealed(shards.metadata_path(path)) for path in (one, two))
    for metadata in (first, second):
        del metadata["created"], metadata["data_file"]
    assert first == second
    again = write(tmp_path / "three", "x", shards.read_shard(one))
    assert again.read_bytes() == one.read_bytes()


def test_metadata_counts_what_is_there(tmp_path: Path):
    trees = [make_tree("a", "7", "7", "8"), make_tree("b", "8", "8", "7", ""), make_deep_tree("c")]
    metadata = shards.read_metadata(write(tmp_path, trees=trees))
    assert {key: metadata[key] for key in FACTS} == FACTS
    assert metadata["question_ids"] == ["a", "b", "c"]
    counted = {"latent_dim": 4, "num_questions": 3, "num_paths": 4 + 5 + 4, "num_labelled": 4 + 5 + 3}
    counted |= {"stores_hidden": False}
    assert {key: metadata[key] for key in counted} == counted
    # a: 0 1 1 0; b: 0 0 0 1 0; c: three times 0.5
    assert metadata["score_histogram"] == [6, 0, 0, 0, 0, 3, 0, 0, 0, 3]
    assert metadata["mixed_share"] == 1.0
    # Noise-free: wrong in a and b, none in c. Random: 2/3, 1/4, 1/2. Majority: right, wrong, right ("" stands back).
    assert metadata["accuracy"]["noise_free"] == 0.0
    assert metadata["accuracy"]["random_path"] == pytest.approx((2 / 3 + 1 / 4 + 1 / 2) / 3)
    assert metadata["accuracy"]["majority"] == pytest.approx(2 / 3)
    assert metadata["accuracy"]["any_path"] == 1.0


def test_metadata_is_written_after_the_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(obj: object, path: Path) -> None:
        assert (tmp_path / "train_0.pt").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train_0.pt"]
    assert shards.list_shards(tmp_path) == []
    monkeypatch.undo()
    path = write(tmp_path)  # the unfinished one is replaced
    assert shards.list_shards(tmp_path) == [path]


def test_a_pt_without_metadata_is_unfinished_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole, half = write(tmp_path, "whole"), write(tmp_path, "half", [make_tree("c", "7")])
    shards.metadata_path(half).unlink()
    assert shards.list_shards(tmp_path) == [whole]
    assert "half.pt: left out" in caplog.text
    assert [tree.question_id for tree in shards.load_trees(tmp_path)] == ["a", "b"]
    assert shards.finished_questions(tmp_path) == {"a", "b"}
    with pytest.raises(BadFile, match=r"half\.pt: it has no half_metadata\.json"):
        shards.read_shard(half)


def test_a_finished_shard_is_never_overwritten(tmp_path: Path):
    before = write(tmp_path).read_bytes()
    with pytest.raises(FileExistsError, match=r"train_0\.pt is a finished shard"):
        write(tmp_path, trees=[make_tree("c", "7")])
    assert (tmp_path / "train_0.pt").read_bytes() == before
    for name in ("", "../up", "a/b"):
        with pytest.raises(ValueError, match="cannot be named"):
            write(tmp_path, name)


def spoil(column: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[column][index] = value

    return change


def swap(column: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[column] = value

    return change


# The shard of write(): question 'a' with paths 0..2 of 1, 2, 3 latents, question 'b' with paths 0..1 of 1, 2.
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a plain torch file": (lambda data: {"weight": torch.zeros(3)}, "not a shard: it lacks format, question_ids"),
    "a lone tensor": (lambda data: torch.zeros(3), "not a shard: it holds a Tensor"),
    "a missing column": (
        lambda data: {name: data[name] for name in data if name != "tips"},
        "not a shard: it lacks tips",
    ),
    "an unknown column": (swap("extra", 1), "unknown columns extra"),
    "another format": (swap("format", "latent-prm/9"), "its format is 'latent-prm/9'"),
    "NaN latents": (spoil("latents", (4, 1), float("nan")), "question 'a', path 2: it has NaN or infinite latents"),
    "latents of minus infinity": (
        spoil("latents", (0, 3), -float("inf")),
        "question 'a', path 0: it has NaN or infinite latents",
    ),
    "an infinite tip": (spoil("tips", (4, 0), float("inf")), "question 'b', path 1: its tip is NaN or infinite"),
    "T = 0": (spoil("latent_offsets", 2, 1), "question 'a', path 1: it has T = 0 latents"),
    "falling offsets": (spoil("latent_offsets", 2, 0), "question 'a', path 1: it has T = -1 latents"),
    "offsets out of range": (spoil("latent_offsets", 2, 99), "latent_offsets must run from 0 to 9"),
    "offsets that stop early": (spoil("latent_offsets", -1, 8), "latent_offsets must run from 0 to 9"),
    "offsets that start late": (spoil("answer_offsets", 0, 1), "answer_offsets must run from 0 to 5"),
    "falling answer offsets": (spoil("answer_offsets", 2, 0), "question 'a', path 1: it has -1 answers"),
    "a question without paths": (spoil("path_offsets", 1, 0), "question 'a' has 0 paths"),
    "score 1.1": (spoil("prm_scores", 1, 1.1), "question 'a', path 1: its prm_score is 1.1, but must lie in 0..1"),
    "score -0.1": (spoil("scores", 3, -0.1), "question 'b', path 0: its score is -0.1, but must lie in 0..1"),
    "score NaN": (spoil("prm_scores", 3, float("nan")), "question 'b', path 0: its prm_score is nan"),
    "a score without counts": (
        swap("has_score", torch.zeros(5, dtype=torch.bool)),
        "path 0: it has 1 answers below it",
    ),
    "more right than there are": (
        spoil("num_correct", 1, 2),
        "question 'a', path 1: its num_correct is 2, but must lie",
    ),
    "fewer than none": (spoil("num_answers", 1, -1), "question 'a', path 1: its num_answers is -1"),
    "counts of other answers": (
        spoil("num_answers", 1, 2),
        "question 'a', path 1: its num_answers is 2, but that is not",
    ),
    "right answers that were wrong": (
        spoil("num_correct", 0, 1),
        "question 'a', path 0: its num_correct is 1, but that",
    ),
    "a label of other answers": (
        spoil("prm_scores", 1, 0.5),
        "question 'a', path 1: its prm_score is 0.5, but that is",
    ),
    "hidden states of no path": (swap("hidden", torch.zeros(2, 4)), "hidden_offsets must run from 0 to 2"),
    "hidden states of another width": (
        swap("hidden", torch.zeros(0, 3)),
        "hidden is float32[0, 3], but must be float32",
    ),
    "scores as texts": (swap("prm_scores", ["0.5"] * 5), "prm_scores is not a plain dense tensor"),
    "scores in double": (
        swap("prm_scores", torch.zeros(5).double()),
        "prm_scores is float64[5], but must be float32[5]",
    ),
    "a parent behind": (spoil("parents", 1, 2), "question 'a', path 1: its parent is 2"),
    "a parent below -1": (spoil("parents", 1, -2), "question 'a', path 1: its parent is -2"),
    "a parent in another tree": (spoil("parents", 3, 0), "question 'b', path 0: its parent is 0"),
    "an unknown agent": (spoil("agents", 0, 5), "question 'a', path 0: its agent 5 is not in agent_names"),
    "equal ids": (spoil("question_ids", 1, "a"), "question 'a' stands there 2 times"),
    "too few texts": (swap("golds", ["7"]), "golds has 1 texts, but must have 2"),
    "texts that are none": (swap("golds", [7, 7]), "golds is not a list of texts"),
    "tips of another width": (swap("tips", torch.zeros(5, 3)), "tips is float32[5, 3], but must be float32[5, 4]"),
    "one latent for all": (swap("latents", torch.zeros(1).expand(9, 4)), "latents does not own exactly the bytes"),
    "sparse latents": (swap("latents", torch.eye(9, 4).to_sparse()), "latents is not a plain dense tensor"),
    "complex latents": (swap("latents", torch.zeros(9, 4, dtype=torch.complex64)), "latents is complex64[9, 4]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_rule_is_refused_by_file_and_sample(tmp_path: Path, case: str):
    change, why = BROKEN[case]
    path = write(tmp_path)
    rewrite(path, change)
    with pytest.raises(BadFile) as caught:
        shards.read_shard(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_element_that_is_not_finite_is_found_wherever_it_stands(value: float):
    tree = make_tree("a", *["7"] * 30, D=37)  # paths of 1, 2, 3 … latents: 496 rows
    largest = torch.finfo(torch.float32).max
    tree.paths[0].latents = torch.tensor([[largest, -largest] * 18 + [0.0]])
    data = columns.pack([tree])
    columns.check("x.pt", data)
    for row, column, path in ((0, 36, 0), (255, 0, 22), (256, 17, 22), (495, 31, 30)):
        before, data["latents"][row, column] = float(data["latents"][row, column]), value
        with pytest.raises(BadFile, match=f"path {path}: it has NaN or infinite latents"):
            columns.check("x.pt", data)
        data["latents"][row, column] = before


def flip(content: bytes) -> bytes:
    return content[:900] + bytes([content[900] ^ 4]) + content[901:]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a flipped bit": (flip, "damaged or replaced: its sha256 is"),
    "cut short": (lambda content: content[:-1], "cut short or replaced"),
    "empty": (lambda content: b"", "cut short or replaced: it has 0 bytes"),
    "random bytes": (lambda content: bytes(i * 97 % 251 for i in range(len(content))), "damaged or replaced"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_name(tmp_path: Path, case: str):
    change, why = DAMAGE[case]
    path = write(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    for read in (shards.load_trees, shards.finished_questions):
        with pytest.raises(BadFile, match=rf"train_0\.pt: {why}.*\n.*--skip_bad_files"):
            read(tmp_path)


def test_swapped_shards_are_noticed(tmp_path: Path):
    one, two = write(tmp_path, "one"), write(tmp_path, "two", [make_tree("c", "7"), make_tree("d", "7", "8")])
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    for path in (one, two):
        with pytest.raises(BadFile, match=rf"{path.name}: (damaged|cut short) or replaced"):
            shards.read_shard(path)


def test_a_payload_in_a_vouched_for_shard_is_never_run(tmp_path: Path):
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(canary), "w")

    path = write(tmp_path)
    rewrite(path, swap("tasks", Canary()))
    with pytest.raises(BadFile, match=r"train_0\.pt: it holds something other than tensors"):
        shards.read_shard(path)
    path.write_bytes(pickle.dumps(Canary()))
    metadata = seals.load_sealed(shards.metadata_path(path))
    metadata |= {"size": path.stat().st_size, "sha256": files.hashlib.sha256(path.read_bytes()).hexdigest()}
    seals.save_sealed(metadata, shards.metadata_path(path))
    with pytest.raises(BadFile, match=r"train_0\.pt: not a file that torch\.save wrote"):
        shards.read_shard(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("format", "other/1", "not the metadata of a shard"),
        ("sha256", None, "lacks sha256"),
        ("sha256", "abc", "what it says of sha256 is malformed"),
        ("num_paths", 4.0, "lacks num_paths"),
        ("num_paths", 4, "what it says of num_paths is not what"),
        ("question_ids", ["a", "x"], "what it says of question_ids is not what"),
        ("question_ids", ["a", 1], "what it says of question_ids is malformed"),
        ("score_histogram", [1, 2], "what it says of score_histogram is malformed"),
        ("accuracy", {}, "what it says of accuracy is malformed"),
        ("stores_hidden", 0, "lacks stores_hidden"),
        ("stores_hidden", True, "what it says of stores_hidden is not what"),
    ],
)
def test_metadata_that_is_not_of_this_shard_is_refused_by_name(tmp_path: Path, key: str, value: Any, why: str):
    path = write(tmp_path)
    beside = shards.metadata_path(path)
    seals.save_sealed(seals.load_sealed(beside) | {key: value}, beside)
    with pytest.raises(BadFile, match=rf"train_0_metadata\.json: {why}"):
        shards.read_shard(path)


def test_bad_metadata_json_is_refused_by_name(tmp_path: Path):
    shards.metadata_path(write(tmp_path)).write_text("{")
    with pytest.raises(BadFile, match=r"train_0_metadata\.json: not valid JSON"):
        shards.load_trees(tmp_path)


def test_trees_that_break_a_rule_are_never_written(tmp_path: Path):
    broken: dict[str, Callable[[ReasoningTree], None]] = {
        "path 1: it has T = 0 latents": lambda tree: setattr(tree.paths[1], "latents", torch.zeros(0, 4)),
        "path 1: it has NaN": lambda tree: setattr(tree.paths[1], "latents", torch.full((1, 4), float("nan"))),
        r"path 1: its latents are \[1, 3\]": lambda tree: setattr(tree.paths[1], "latents", torch.zeros(1, 3)),
        "path 1: it has some of prm_score, score and counts": lambda tree: setattr(tree.paths[1], "score", None),
        "path 1: it has some of prm_score": lambda tree: setattr(tree.paths[1], "num_correct", None),
        "path 1: its num_answers is 3": lambda tree: setattr(tree.paths[1], "num_answers", 3),
        r"path 1: its hidden states are \[1, 4\], but must be \[2, 4\]": lambda tree: setattr(
            tree.paths[1], "hidden", torch.zeros(1, 4)
        ),
        "path 1: it has NaN or infinite hidden states": lambda tree: setattr(
            tree.paths[1], "hidden", torch.full((2, 4), float("inf"))
        ),
        "path 1: its prm_score is 1.1": lambda tree: setattr(tree.paths[1], "prm_score", 1.1),
        "path 1: its parent is 1": lambda tree: setattr(tree.paths[1], "parent", 1),
    }
    for why, change in broken.items():
        tree = make_tree("a", "7", "8")
        change(tree)
        with pytest.raises(ValueError, match=f"question 'a', {why}"):
            write(tmp_path, trees=[tree])
    with pytest.raises(ValueError, match="question 'a' stands there 2 times"):
        write(tmp_path, trees=[make_tree("a", "7"), make_tree("a", "8")])
    for text in ("half \ud83d", "half \udc00 too"):
        with pytest.raises(ValueError, match=r"question '.*': half of a character"):
            write(tmp_path, "x", [make_tree(text, "7")])
    with pytest.raises(ValueError, match="no tree with a path"):
        shards.write_shard([], tmp_path, "x", FACTS)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_another_width_are_refused_by_name(tmp_path: Path):
    write(tmp_path, "a")
    write(tmp_path, "b", [make_tree("c", "7", D=3)])
    for skip in (False, True):
        with pytest.raises(BadFile, match=r"b\.pt: its latents are 3 wide, but those of .*a\.pt are 4"):
            shards.load_trees(tmp_path, skip_bad_files=skip)


def test_a_question_in_two_shards_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "a")
    write(tmp_path, "b", [make_tree("b", "7")])
    with pytest.raises(BadFile, match=r"b\.pt: question 'b' is also in .*a\.pt"):
        shards.load_trees(tmp_path)


def test_skip_bad_files_names_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good, bad = write(tmp_path, "good"), write(tmp_path, "bad", [make_tree("c", "7")])
    bad.write_bytes(flip(bad.read_bytes()))
    left_out: list[str] = []
    with caplog.at_level(logging.WARNING):
        trees = shards.load_trees(tmp_path, skip_bad_files=True, left_out=left_out)
    assert [tree.question_id for tree in trees] == ["a", "b"]
    assert shards.finished_questions(tmp_path, skip_bad_files=True) == {"a", "b"}
    assert len(left_out) == 1 and left_out[0].startswith(f"{bad}: damaged")
    assert f"Left out (--skip_bad_files): {bad}: damaged" in caplog.text
    with pytest.raises(BadFile, match=f"Type: latent-prm verify {tmp_path} --repair, or pass --skip_bad_files"):
        shards.load_trees(tmp_path)
    with pytest.raises(BadFile, match=f"Type: latent-prm verify {tmp_path} --repair$"):
        inspector.main(InspectOptions(path=str(tmp_path)))
    assert "Left out 1 of 2 shards" in caplog.text
    good.write_bytes(flip(good.read_bytes()))
    with pytest.raises(shards.NoData, match=r"No intact and finished \.pt files found .*bad\.pt, good\.pt"):
        shards.load_trees(tmp_path, skip_bad_files=True)


def test_an_empty_or_missing_folder_is_said_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # missing, then empty
        with pytest.raises(shards.NoData) as caught:
            shards.load_trees("prm_data")
        said = 'No .pt files found in prm_data\nRun "latent-prm collect" first, or pass --data_dir.'
        assert str(caught.value) == said
        assert shards.finished_questions("prm_data") == set()
        assert shards.list_shards("prm_data") == []
        assert main(["inspect", "prm_data"]) == 1
        assert capsys.readouterr().err.splitlines()[0] == "✗ ERROR: No .pt files found in prm_data"
        Path("prm_data").mkdir(exist_ok=True)


def test_a_shard_in_place_of_its_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, "one", [make_tree("a", "8")])
    for typed in (["inspect", str(path)], ["train", "--data_dir", str(path)]):
        assert main(typed) == 1
        assert capsys.readouterr().err.endswith(f"✗ ERROR: {path} is a file. Type its folder: {tmp_path}\n")


def test_inspect_prints_a_row_per_shard_a_total_and_what_is_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path, "one", [make_tree("a", "7", "7", "8")])
    write(tmp_path, "two", [make_tree("b", "8"), make_tree("c", "8"), make_tree("d", "8")])
    shards.metadata_path(write(tmp_path, "half", [make_tree("e", "7")])).unlink()
    inspector.main(InspectOptions(path=str(tmp_path)))
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    # questions, paths, labelled, width, mixed, noise-free, random, majority, any, then scores 0 and 1
    assert rows["one"][1:] == ["1", "4", "4", "4", "1.00", "0.00", "0.67", "1.00", "1.00", "█", "█"]
    assert rows["two"][1:] == ["3", "6", "6", "4", "0.00", "0.00", "0.00", "0.00", "0.00", "█"]
    assert rows["total:"][2:] == ["4", "10", "10", "4", "0.25", "0.00", "0.17", "0.25", "0.25", "█", "▂"]
    assert "Not read: half.pt: it has no half_metadata.json, so it is unfinished." in out


def test_inspect_names_the_shards_however_narrow_the_terminal_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, "one", [make_tree("a", "7", "7", "8")])
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "60")
    inspector.main(InspectOptions(path=str(tmp_path)))
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["one"]]
    assert row[1:11] == ["1", "4", "4", "4", "1.00", "0.00", "0.67", "1.00", "1.00", "█"]


def test_inspect_shows_trees_after_the_table_mixed_ones_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "one", [make_tree("a", "8"), make_tree("b", "7", "8")])
    write(tmp_path, "two", [make_tree("c", "8", "8", "8", "7"), make_tree("d", "7")])
    inspector.main(InspectOptions(path=str(tmp_path), show=3))
    table, *shown = capsys.readouterr().out.split("\n3 + 4?\n")
    assert "total: 2" in table
    assert [text.splitlines()[0] for text in shown] == [  # b and c are mixed, a is not
        "gold 7 · arithmetic · 3 paths, 3 leaves",
        "gold 7 · arithmetic · 5 paths, 5 leaves",
        "gold 7 · arithmetic · 2 paths, 2 leaves",
    ]
    assert "└─ solo · T 2               0.00 = 0/1  ✗ 8" in shown[2]
    assert main(["inspect", str(tmp_path), "--show", "1"]) == 0
    assert capsys.readouterr().out.count("\n3 + 4?\n") == 1


def test_inspect_names_what_is_damaged_after_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "one")
    bad = write(tmp_path, "two", [make_tree("c", "7")])
    bad.write_bytes(flip(bad.read_bytes()))
    with pytest.raises(BadFile, match=r"two\.pt: damaged"):
        inspector.main(InspectOptions(path=str(tmp_path)))
    out = capsys.readouterr().out
    assert "total: 1" in out and "Damaged: 1 of 2 shards" in out


def test_a_histogram_bar_is_empty_only_for_nothing():
    assert inspector.histogram([0, 1, 500, 1000]) == " ▁▄█"
    assert inspector.histogram([0, 0]) == "  "
