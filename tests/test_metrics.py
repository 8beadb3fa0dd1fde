"""The numbers of metrics.py, worked by hand or by trying out every subset."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from latent_prm.evaluator import evaluate, print_evaluation, verdict
from latent_prm.metrics import (
    CHOSEN,
    Bin,
    Comparison,
    Interval,
    Pool,
    auroc,
    bootstrap_interval,
    bootstrap_intervals,
    brier,
    calibration,
    calibration_error,
    compare,
    expected_accuracies,
    pooled_auroc,
    within_question_auroc,
)
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

# Four paths: "7" is right. 0.1 + 0.2 ties with 0.3, though not in floating point; the best-scored path has no answer.
FOUR = Pool(
    values=[["7", "7", "9", ""]],
    correct=[np.array([True, True, False, False])],
    scores=[np.array([0.1, 0.2, 0.3, 0.9])],
    noise_free=np.array([1.0]),
)


def random_pool(questions: int, paths: int, seed: int = 0) -> Pool:
    """Values 0..4 and "", of which 1 and 3 are right; scores in tenths, so that ties are frequent."""
    rng = np.random.default_rng(seed)
    values = [[str(v) if v < 5 else "" for v in rng.integers(6, size=paths)] for _ in range(questions)]
    return Pool(
        values=values,
        correct=[np.array([v in ("1", "3") for v in row]) for row in values],
        scores=[rng.integers(1, 10, size=paths) / 10 for _ in range(questions)],
        noise_free=rng.integers(2, size=questions).astype(float),
    )


def by_trying(pool: Pool, method: str, k: int, question: int = 0) -> float:
    """The expected accuracy the long way: every subset, one after the other."""
    values, correct, scores = pool.values[question], pool.correct[question], pool.scores[question]
    chances = []
    for subset in combinations(range(len(values)), k):
        answered = [i for i in subset if values[i]] or list(subset)
        if method == "random":
            winners = list(subset)
        elif method == "oracle":
            winners = [max(subset, key=lambda i: correct[i])]
        elif method == "best":
            winners = [i for i in answered if scores[i] == max(scores[answered])]
        else:
            weight = {i: 1.0 if method == "vote" else scores[i] for i in answered}
            tally = {i: round(sum(weight[j] for j in answered if values[j] == values[i]), 6) for i in answered}
            first = {values[i]: i for i in answered if tally[i] == max(tally.values())}
            winners = list(first.values())
        chances.append(np.mean(correct[winners]))
    return float(np.mean(chances))


@pytest.mark.parametrize(
    ("method", "k", "chance"),
    [
        ("random", 2, 1 / 2),
        ("oracle", 2, 5 / 6),
        ("oracle", 3, 1),
        # pairs 01 02 03 12 13 23
        ("vote", 2, (1 + 0.5 + 1 + 0.5 + 1 + 0) / 6),
        ("weighted_vote", 2, (1 + 0 + 1 + 0 + 1 + 0) / 6),
        ("best", 2, (1 + 0 + 1 + 0 + 1 + 0) / 6),
        # triples 012 013 023 123
        ("vote", 3, (1 + 1 + 0.5 + 0.5) / 4),
        ("weighted_vote", 3, (0.5 + 1 + 0 + 0) / 4),
        ("best", 3, (0 + 1 + 0 + 0) / 4),
        ("vote", 4, 1),
        ("weighted_vote", 4, 0.5),
        ("best", 4, 0),
        ("noise_free", 2, 1),
    ],
)
def test_accuracy_of_k_of_four_paths_is_as_worked_by_hand(method, k, chance):
    found = expected_accuracies(FOUR, method, k)
    assert found.exact
    assert found.per_question == pytest.approx([chance])


@pytest.mark.parametrize("method", ["random", "best", "vote", "weighted_vote", "oracle"])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_accuracy_equals_trying_every_subset(method, k):
    pool = random_pool(questions=6, paths=7)
    expected = [by_trying(pool, method, k, question) for question in range(6)]
    assert expected_accuracies(pool, method, k).per_question == pytest.approx(expected)


def test_with_one_path_every_choice_is_the_random_path():
    pool = random_pool(questions=5, paths=6)
    random = expected_accuracies(pool, "random", 1).per_question
    for method in ("best", "vote", "weighted_vote", "oracle"):
        assert expected_accuracies(pool, method, 1).per_question == pytest.approx(random)


def test_weights_of_zero_are_a_tie_among_the_values_that_are_there():
    pool = Pool([["1", "2", "", "3"]], [np.array([True, False, False, False])], [np.zeros(4)])
    assert expected_accuracies(pool, "weighted_vote", 4).per_question == pytest.approx([1 / 3])


def test_votes_over_too_many_subsets_are_sampled_with_a_seed_and_said_to_be():
    whole = random_pool(questions=1, paths=16, seed=3)
    found = expected_accuracies(whole, "vote", 8)
    assert not found.exact  # 12,870 subsets
    assert found.per_question == pytest.approx([by_trying(whole, "vote", 8)], abs=0.02)
    assert (found.per_question == expected_accuracies(whole, "vote", 8).per_question).all()
    assert (found.per_question != expected_accuracies(whole, "vote", 8, seed=1).per_question).any()
    assert expected_accuracies(whole, "vote", 4).exact  # 1,820
    assert expected_accuracies(whole, "best", 8).exact


def test_auroc_counts_ties_half():
    scores, correct = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert auroc(scores, correct) == 3.5 / 4
    assert auroc(scores, ~correct) == 0.5 / 4
    assert auroc(scores, np.ones(4, dtype=bool)) is None


def test_within_question_auroc_sees_no_difficulty_and_the_pooled_one_does():
    hard, easy = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    mixed = np.array([True, False])  # in both, the wrong path is scored higher
    pool = Pool(
        values=[["1", "2"]] * 4,
        correct=[mixed, mixed, np.array([False, False]), np.array([True, True])],
        scores=[hard, easy, hard, easy],
    )
    assert within_question_auroc(pool).tolist() == [0.0, 0.0]  # the other two have no right and wrong to tell apart
    assert pooled_auroc(pool) == (0.5 + 3 + 3 + 3.5) / 16  # 0.1, 0.8, 0.8, 0.9 against 0.2, 0.9, 0.1, 0.2


def test_brier_and_calibration_are_as_worked_by_hand():
    scores, correct = np.array([0.1, 0.15, 0.95, 1.0]), np.array([False, True, True, True])
    assert brier(scores, correct) == pytest.approx((0.01 + 0.7225 + 0.0025 + 0) / 4)
    bins = calibration(scores, correct)
    assert [(b.right, b.count) for b in bins] == [(0.5, 2), (1.0, 2)]
    assert [b.predicted for b in bins] == pytest.approx([0.125, 0.975])
    assert calibration_error(bins) == pytest.approx((2 * 0.375 + 2 * 0.025) / 4)


def test_calibration_takes_shares_of_right_answers_too():
    (low, high) = calibration(np.array([0.2, 0.25, 0.9]), np.array([0.0, 0.5, 0.75]))
    assert (low.predicted, low.right, low.count) == (pytest.approx(0.225), 0.25, 2)
    assert calibration_error([low, high]) == pytest.approx((2 * 0.025 + 0.15) / 3)


def test_the_bootstrap_interval_of_a_coin_is_its_standard_error():
    coin = np.array([0.0, 1.0] * 200)
    interval = bootstrap_interval(coin, 4000, seed=1)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.006)
    assert interval == bootstrap_interval(coin, 4000, seed=1)
    assert interval != bootstrap_interval(coin, 4000, seed=2)


def test_a_paired_difference_is_as_sure_as_its_questions_agree():
    rng = np.random.default_rng(0)
    a = rng.integers(2, size=300).astype(float)
    both = bootstrap_intervals(np.stack([a, a - 0.1]), 500, seed=0)
    assert both[0].high > both[1].low and both[0].low < both[1].high  # apart, nothing can be told
    difference = bootstrap_interval(a - (a - 0.1), 500, seed=0)
    assert difference.low == pytest.approx(0.1) and difference.high == pytest.approx(0.1)


def test_many_resamplings_in_chunks_are_the_same_as_few():
    wide = np.random.default_rng(0).random(300_000)  # six resamplings a chunk
    interval = bootstrap_interval(wide, 20, seed=0)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low < 4 * 0.29 / np.sqrt(300_000) * 1.5


def test_comparison_of_a_perfect_prm_closes_the_gap():
    pool = random_pool(questions=40, paths=5)
    perfect = Pool(pool.values, pool.correct, [c.astype(float) for c in pool.correct], pool.noise_free)
    found = compare(perfect, num_bootstrap=200)
    assert found.gap_recovered == {"best": pytest.approx(1.0), "weighted_vote": pytest.approx(1.0)}
    assert found.auroc is not None and found.auroc.mean == found.pooled_auroc == 1.0
    assert found.brier == found.calibration_error == 0
    assert found.accuracy["best"][5] == found.accuracy["oracle"][5]
    assert found.differences["best"]["vote"].low > 0
    assert found.table_sizes == [1, 4, 5]
    assert found.num_mixed == sum(0 < c.sum() < 5 for c in pool.correct)
    vote, best = (expected_accuracies(perfect, method, 5).per_question for method in ("vote", "best"))
    assert found.differences["best"]["vote"].mean == pytest.approx(float((best - vote).mean()))


def test_comparison_without_noise_free_paths_or_mixed_questions_says_none():
    pool = Pool([["1", "1"], ["2", "3"]], [np.array([True, True]), np.array([False, False])], [np.full(2, 0.5)] * 2)
    found = compare(pool, num_bootstrap=50)
    assert "noise_free" not in found.accuracy
    assert set(found.differences["best"]) == {"vote"}
    assert found.auroc is None and found.num_mixed == 0
    assert found.gap_recovered == dict.fromkeys(CHOSEN)
    assert found.table_sizes == [1, 2]


def test_the_fewest_paths_of_any_question_bound_the_curve():
    pool = Pool([["1"] * 3, ["2"] * 2], [np.ones(3, bool), np.ones(2, bool)], [np.ones(3), np.ones(2)])
    found = compare(pool, num_bootstrap=10)
    assert (found.num_paths, found.num_scored) == (2, 5)
    with pytest.raises(ValueError, match="k is 3"):
        expected_accuracies(pool, "vote", 3)


def test_a_curve_over_many_paths_is_drawn_at_few_sizes():
    found = compare(random_pool(questions=2, paths=70), num_bootstrap=10)
    assert list(found.accuracy["vote"]) == [*range(1, 17), 32, 64, 70]
    assert found.sampled and found.table_sizes == [1, 4, 16, 70]


@pytest.mark.parametrize("wrong", [1.1, -0.1, float("nan")])
def test_a_score_that_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Pool([["1"]], [np.array([True])], [np.array([wrong])])


def test_a_pool_without_questions_or_paths_is_refused():
    with pytest.raises(ValueError, match="no question"):
        Pool([], [], [])
    with pytest.raises(ValueError, match="0 values"):
        Pool([[]], [np.array([], dtype=bool)], [np.array([])])


def test_the_pictures_are_written(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is the extra [plot]")
    from latent_prm.plots import accuracy_curve, calibration_curve, loss_curve

    found: Comparison = compare(random_pool(questions=5, paths=6), num_bootstrap=20)
    accuracy_curve(found, tmp_path / "accuracy.png")
    calibration_curve([Bin(0.1, 0.2, 3)], tmp_path / "calibration.png")
    stats = [{"step": step, "loss": 1 / (1 + step)} for step in range(60)] + [{"step": 59, "val_loss": 0.1}]
    loss_curve(stats, tmp_path / "pictures" / "loss.png")
    loss_curve([], tmp_path / "empty.png")
    for picture in ("accuracy.png", "calibration.png", "pictures/loss.png", "empty.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("tasks", "rows"), [(1, 1), (3, 1), (5, 2)])
def test_the_picture_of_noise_has_a_panel_per_task_and_marks_the_chosen_one(tmp_path: Path, tasks: int, rows: int):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is the extra [plot]")
    from latent_prm.plots import NoiseLine, NoisePanel, noise_curve

    lines: dict[NoiseLine, list[Interval]] = {"mixed": [Interval(0.2, 0.1, 0.3), Interval(0.6, 0.5, 0.7)]}
    lines["random"] = [Interval(0.5, 0.4, 0.6), Interval(0.4, 0.3, 0.5)]
    panel = NoisePanel("a task", Interval(0.5, 0.4, 0.6), lines, marked=0.4, said="chosen: 0.4")
    noise_curve([0.1, 0.4], [panel] * tasks, tmp_path / "reports" / "noise.png")
    pixels = 255 * image.imread(tmp_path / "reports" / "noise.png")[..., :3]
    red = (abs(pixels - (0xD5, 0x5E, 0)).max(2) < 2).sum(0)  # per column of pixels
    marks = np.flatnonzero(red > 0.25 * pixels.shape[0])
    assert (np.diff(marks) > 5).sum() + 1 == min(tasks, 3)  # a vertical line in each panel
    blue = (abs(pixels - (0, 0x72, 0xB2)).max(2) < 2).sum()
    assert blue > 100 * tasks
    assert (pixels.shape[0] > 900) == (rows > 1)


def grown(task: str, number: int, noise_free: bool, answers: str) -> ReasoningTree:
    """A tree whose noise-free path answers "1" (right) or "0", and whose noisy paths give these answers."""

    def path(value: str, noise_free: bool = False) -> LatentPath:
        answer = Answer(text=value, value=value, correct=value == "1")
        return LatentPath(latents=torch.ones(1, 2), tip=None, noise_free=noise_free, answers=[answer])

    paths = [path("1" if noise_free else "0", noise_free=True), *map(path, answers)]
    return ReasoningTree(question_id=f"{task}-{number}", question="?", gold="1", task=task, paths=paths)


def test_trees_and_scores_become_a_comparison_per_task_and_one_of_all():
    trees = [grown("arithmetic", i, noise_free=i != 0, answers="2212") for i in range(3)]
    trees += [grown("search", 0, noise_free=True, answers="1111"), grown("search", 1, noise_free=True, answers="")]
    scores = [torch.tensor([0.5] + [0.9 if path.answers[0].correct else 0.1 for path in t.paths[1:]]) for t in trees]
    found = evaluate(trees, scores, num_bootstrap=100, skipped={"seen in training": 2})
    assert list(found.comparisons) == ["arithmetic", "search", "all tasks"]
    assert found.skipped == {"seen in training": 2, "no graded path": 1}
    at_four = {method: by_size[4].mean for method, by_size in found.comparisons["arithmetic"].accuracy.items()}
    assert at_four == pytest.approx(
        {"noise_free": 2 / 3, "random": 1 / 4, "vote": 0, "best": 1, "weighted_vote": 1, "oracle": 1}
    )
    assert found.overall.num_questions == 4
    assert verdict(found.comparisons["arithmetic"])[0] == (
        "With 4 paths, PRM best beats the majority and does not measurably differ from the noise-free path."
    )
    with pytest.raises(ValueError, match="no question"):
        evaluate(trees[-1:], scores[-1:])


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_printed_evaluation_fits_the_terminal_and_says_the_verdict(width):
    tree = grown("search", 0, noise_free=True, answers="1122")
    found = evaluate([tree] * 3, [torch.tensor([0.5, 0.9, 0.8, 0.2, 0.1])] * 3, num_bootstrap=100)
    console = Console(width=width, file=io.StringIO())
    print_evaluation(found, console=console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert all(len(line) <= width for line in printed.splitlines())
    assert "PRM best beats the majority" in " ".join(printed.split())
    assert width == 30 or "100.0 [100.0, 100.0]" in printed
