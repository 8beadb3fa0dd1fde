"""Trees: value back-up and chains, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from latent_prm.tree import Answer, Path, ReasoningTree


def make_path(*values: str, parent: int | None = None, noise_free: bool = False, T: int = 1) -> Path:
    """A path whose answers have these values; "7" is right."""
    answers = [Answer(text=f"So {value}.", value=value, correct=value == "7") for value in values]
    return Path(latents=torch.zeros(T, 2), tip=None, parent=parent, noise_free=noise_free, answers=answers)


def make_tree(*paths: Path) -> ReasoningTree:
    return ReasoningTree(question_id="q", question="3 + 4?", gold="7", task="arithmetic", paths=list(paths))


def test_a_leaf_scores_its_share_of_correct_answers():
    tree = make_tree(make_path("7", "7", "8", "7"))
    tree.back_up()
    assert tree.paths[0].prm_score == 0.75
    # Of the four noisy answers three are "7" and one is "8": (3/4 + 3/4 + 1/4 + 3/4) / 4.
    assert tree.paths[0].score == 0.625


def test_an_inner_path_is_the_mean_of_its_scored_children():
    tree = make_tree(
        make_path(),  # 0: root of 1 and 2
        make_path(parent=0),  # 1: of 3, 4 and 5
        make_path("8", parent=0),  # 2
        make_path("7", parent=1),  # 3
        make_path("7", "8", parent=1),  # 4
        make_path(parent=1),  # 5: never expanded
    )
    tree.back_up()
    # 3: 1. 4: 1/2. 1: (1 + 1/2) / 2 = 3/4, for 5 is unknown and not zero. 2: 0. 0: (3/4 + 0) / 2.
    assert [path.prm_score for path in tree.paths] == [0.375, 0.75, 0.0, 1.0, 0.5, None]
    # Votes: "7" twice, "8" twice, of four. Every answer agrees with half.
    assert [path.score for path in tree.paths] == [0.5, 0.5, 0.5, 0.5, 0.5, None]


def test_a_path_with_nothing_decoded_below_has_no_score_not_zero():
    tree = make_tree(make_path(), make_path(parent=0), make_path("8"))
    tree.paths[0].prm_score = tree.paths[0].score = 1.0  # left over from before: forgotten
    tree.back_up()
    assert [path.prm_score for path in tree.paths] == [None, None, 0.0]
    assert [path.score for path in tree.paths] == [None, None, 1.0]


def test_the_noise_free_path_is_scored_but_does_not_vote():
    tree = make_tree(make_path("7", noise_free=True), make_path("8"), make_path("8"), make_path("7"))
    tree.back_up()
    assert [path.prm_score for path in tree.paths] == [1.0, 0.0, 0.0, 1.0]
    # Three noisy answers: "8", "8", "7".
    assert [path.score for path in tree.paths] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_a_noise_free_child_does_not_count_for_a_noisy_parent_only():
    noisy = make_tree(make_path(), make_path("7", parent=0, noise_free=True), make_path("8", parent=0))
    noisy.back_up()
    assert noisy.paths[0].prm_score == 0.0
    free = make_tree(make_path(noise_free=True), make_path("7", parent=0, noise_free=True), make_path("8", parent=0))
    free.back_up()
    assert free.paths[0].prm_score == 0.5


def test_an_empty_value_agrees_with_nothing_but_is_counted():
    tree = make_tree(make_path(""), make_path(""), make_path("7"), make_path("8"))
    tree.back_up()
    assert [path.score for path in tree.paths] == [0.0, 0.0, 0.25, 0.25]
    assert [path.prm_score for path in tree.paths] == [0.0, 0.0, 1.0, 0.0]


def test_with_noise_free_answers_only_there_is_nobody_to_agree_with():
    tree = make_tree(make_path("7", noise_free=True))
    tree.back_up()
    assert (tree.paths[0].prm_score, tree.paths[0].score) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "mixed"), [(["7", "8"], True), (["7", "7"], False), (["8", "9"], False), ([], False)]
)
def test_mixed_looks_at_noisy_leaves_only(values: list[str], mixed: bool):
    tree = make_tree(make_path("7", noise_free=True), make_path("8", noise_free=True), *map(make_path, values))
    assert tree.mixed is mixed


def test_chains_run_from_the_root_to_the_path():
    tree = make_tree(make_path(T=2), make_path(T=1), make_path(parent=0, T=3), make_path(parent=2, T=1))
    for i, path in enumerate(tree.paths):
        path.latents = torch.full_like(path.latents, float(i))
    assert [tree.chain(i) for i in range(4)] == [[0], [1], [0, 2], [0, 2, 3]]
    assert tree.chain_latents(3).tolist() == [[0.0] * 2] * 2 + [[2.0] * 2] * 3 + [[3.0] * 2]
    assert [tree.children(i) for i in range(4)] == [[2], [], [3], []]
    assert tree.leaves() == [1, 3]


def test_a_parent_behind_its_child_is_refused_by_name():
    tree = make_tree(make_path("7", parent=1), make_path())
    with pytest.raises(ValueError, match="question 'q', path 0: its parent is 1"):
        tree.back_up()
    with pytest.raises(ValueError, match="question 'q', path 0: its parent is 1"):
        tree.chain(0)
