"""Trees: value back-up and chains, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from rich.cells import cell_len

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
    counts = [(path.num_correct, path.num_answers) for path in tree.paths]
    assert counts == [(2, 4), (2, 3), (0, 1), (1, 1), (1, 2), (None, None)]
    # Votes: "7" twice, "8" twice, of four. Every answer agrees with half.
    assert [path.score for path in tree.paths] == [0.5, 0.5, 0.5, 0.5, 0.5, None]


def test_a_path_with_nothing_decoded_below_has_no_score_not_zero():
    tree = make_tree(make_path(), make_path(parent=0), make_path("8"))
    tree.paths[0].prm_score = tree.paths[0].score = 1.0  # left over from before: forgotten
    tree.paths[0].num_correct = tree.paths[0].num_answers = 1
    tree.back_up()
    assert [(path.num_correct, path.num_answers) for path in tree.paths] == [(None, None), (None, None), (0, 1)]
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
    assert (noisy.paths[0].num_correct, noisy.paths[0].num_answers) == (0, 1)
    free = make_tree(make_path(noise_free=True), make_path("7", parent=0, noise_free=True), make_path("8", parent=0))
    free.back_up()
    assert free.paths[0].prm_score == 0.5
    assert (free.paths[0].num_correct, free.paths[0].num_answers) == (1, 2)


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


def test_a_tree_is_shown_with_agents_latents_values_and_outcomes():
    tree = make_tree(
        make_path("8", noise_free=True, T=3),  # 0
        make_path(T=2),  # 1: of 2, 3 and 4
        make_path("7", "8", parent=1),  # 2
        make_path("7", parent=1),  # 3
        make_path(parent=1),  # 4: never expanded
        make_path("", parent=None),  # 5
    )
    tree.paths[1].agent = "planner"
    tree.paths[5].answers[0].truncated = True
    tree.back_up()
    assert tree.show().splitlines() == [
        "3 + 4?",
        "gold 7 · arithmetic · 6 paths, 5 leaves",
        "├─ solo · T 3 · noise-free  0.00 = 0/1  ✗ 8",
        "├─ planner · T 2            0.75 (2/3)",  # (1/2 + 1) / 2, which is not 2/3
        "│  ├─ solo · T 1            0.50 = 1/2  ✓ 7  ✗ 8",
        "│  ├─ solo · T 1            1.00 = 1/1  ✓ 7",
        "│  └─ solo · T 1            unknown",
        "└─ solo · T 1               0.00 = 0/1  ✗ cut off",
    ]


def test_of_many_siblings_the_rest_is_counted():
    tree = make_tree(*(make_path("7" if k % 3 == 0 else "8") for k in range(20)))
    tree.back_up()
    lines = tree.show().splitlines()
    assert len(lines) == 2 + 8 + 1
    assert lines[-1] == "└─ … 12 more: 4 right"  # 9, 12, 15, 18
    assert tree.show(siblings=20).count("T 1") == 20
    assert tree.show(siblings=19).count("T 1") == 20  # one line more is no longer than a line that says so
    for path in tree.paths:
        path.answers *= 2
    tree.back_up()
    assert tree.show().endswith("└─ … 12 more: 8 of 24 right")
    for path in tree.paths:
        path.answers = []
    tree.back_up()
    assert tree.show().endswith("└─ … 12 more")


def test_a_prm_score_without_counts_is_shown_alone():
    tree = make_tree(make_path())
    tree.paths[0].prm_score = 0.25
    assert tree.show().endswith("└─ solo · T 1  0.25")


@pytest.mark.parametrize("width", [20, 40, 100])
def test_no_line_is_wider_than_asked(width: int):
    chain = [make_path(parent=k - 1 if k else None) for k in range(60)]
    tree = make_tree(*chain, make_path(*["7"] * 30, "a long answer " * 9, parent=59))
    tree.question, tree.gold, tree.paths[0].agent = "三加四等于几" * 40, "七" * 60, "规划者" * 30
    tree.back_up()
    lines = tree.show(width).splitlines()
    assert len(lines) == 4 + 1 + 61
    assert max(map(cell_len, lines)) <= width
    assert lines[3].endswith("…")
    if width > 20:
        assert all("T 1" in line for line in lines[6:])  # of a line that is too deep, the name stays


def test_printed_a_tree_is_shown_and_in_a_list_it_is_a_line():
    tree = make_tree(make_path("7"), make_path("8", T=3))
    tree.back_up()
    assert str(tree) == tree.show()
    assert repr([tree]) == "[ReasoningTree('3 + 4?', gold 7 · arithmetic · 2 paths, 2 leaves)]"
    assert repr(tree.paths[1]) == "Path(agent='solo', parent=None, T=3, answers=['8'], prm_score=0.00)"


def test_what_a_terminal_would_obey_is_not_shown():
    tree = make_tree(make_path("7\x1b[2J"))
    tree.question, tree.paths[0].agent = "3 +\x1b[31m 4\n?\u202e", "solo\r"
    assert tree.show().splitlines()[0] == "3 +[31m 4 ?"
    assert all(letter.isprintable() for letter in tree.show().replace("\n", ""))
