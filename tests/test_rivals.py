"""Rivals: what each says of a few small paths, worked by hand. Controls: what is spoilt, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log, sqrt
from pathlib import Path as Folder

import numpy as np
import pytest
import torch
from conftest import random_tree

from latent_prm.metrics import auroc
from latent_prm.model import QwenLatentPRM
from latent_prm.probes import Encoder, Gate, fit_rivals, lengths
from latent_prm.rivals import (
    CONTROLS,
    RIVALS,
    controls,
    drowned,
    out_of_order,
    score_all,
    with_foreign_answers,
    with_foreign_latents,
    with_foreign_questions,
)
from latent_prm.tree import Answer, Path, ReasoningTree


def path(*latents: tuple[float, ...], parent: int | None = None, right: bool | None = None, **more) -> Path:
    answers = [] if right is None else [Answer(text="", value="5" if right else "6", correct=right)]
    return Path(
        latents=torch.tensor(latents, dtype=torch.float32), tip=torch.zeros(2), parent=parent, answers=answers, **more
    )


def tree(*paths: Path, question: str = "What is 2 + 3 ?") -> ReasoningTree:
    made = ReasoningTree(question_id=question, question=question, gold="5", task="text", paths=list(paths))
    made.back_up()
    return made


def said_by(name: str, made: ReasoningTree) -> list[float]:
    (scores,) = RIVALS[name]([made])
    assert scores.shape == (len(made.paths),)
    return scores.tolist()


# --- rivals that need no training -----------------------------------------------------------------------------------


def test_smoothness_is_the_mean_cosine_of_neighbours_along_the_chain() -> None:
    made = tree(path((1, 0)), path((0, 2), (0, 1), parent=0), path((3, 3), parent=0))
    assert said_by("smoothness", made) == pytest.approx([0, (0 + 1) / 2, 1 / sqrt(2)])


def test_step_length_is_minus_the_mean_distance_of_neighbours() -> None:
    made = tree(path((1, 0)), path((1, 3), (5, 0), parent=0))
    assert said_by("step length", made) == pytest.approx([0, -(3 + 5) / 2])


def test_norm_is_minus_the_root_mean_square_of_the_chain() -> None:
    assert said_by("norm", tree(path((1, 1)), path((1, 7), parent=0))) == pytest.approx([-1, -sqrt(52 / 4)])


def test_consistency_compares_latents_with_those_of_noisy_siblings_in_the_same_place() -> None:
    made = tree(path((1, 0), (0, 1)), path((0, 1), (0, 3)), path((2, 0)), path((0, 1), noise_free=True))
    # the third path has one latent; the noise-free one is compared, but nobody is compared with it
    assert said_by("consistency", made) == pytest.approx([(1 / 2 + 1) / 2, (0 + 1) / 2, 1 / 2, 1 / 3])


def test_consistency_leaves_parents_and_lonely_paths_out() -> None:
    made = tree(path((1, 0)), path((1, 1), parent=0), path((1, -1), parent=0))
    assert said_by("consistency", made) == pytest.approx([0, (1 + 0) / 2, (1 + 0) / 2])


def test_log_probability_is_that_of_the_first_answer_and_the_least_of_all_without_one() -> None:
    made = tree(path((1, 0), right=True), path((1, 0), right=False), path((1, 0)))
    made.paths[0].answers[0].log_probability = log(0.9)
    made.paths[1].answers[0].log_probability = log(0.2)
    assert said_by("log-probability", made) == pytest.approx([log(0.9), log(0.2), log(0.2)])


def test_log_probability_is_left_out_where_no_answer_knows_it() -> None:
    made = tree(path((1, 0), right=True))
    with pytest.raises(ValueError, match="Collect them again"):
        said_by("log-probability", made)
    assert list(score_all([made], RIVALS)) == [name for name in RIVALS if name != "log-probability"]
    made.paths[0].answers[0].log_probability = -1.0
    assert list(score_all([made], RIVALS)) == list(RIVALS)


def test_agreement_is_the_share_of_the_answers_that_are_the_same() -> None:
    made = tree(path((1, 0), right=True), path((1, 0), right=False), path((1, 0), right=False), path((1, 0)))
    assert said_by("agreement", made) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 0])


# --- rivals that learn ----------------------------------------------------------------------------------------------


def lesson(number: int, telling: bool = True) -> ReasoningTree:
    """Four noisy paths of 2 or 3 latents; the right ones (two of four) point up, if that is to be told by."""
    noise = torch.Generator().manual_seed(number)
    paths = []
    for k in range(4):
        latents = torch.randn(2 + k % 2, 6, generator=noise)
        if telling:
            latents[-1, 0] += 4.0 if k < 2 else -4.0
        paths.append(
            replace(path((0, 0), right=k < 2), latents=latents, tip=None),
        )
    paths.append(replace(paths[3], noise_free=True))
    return tree(*paths, question=f"What is {number} + 3 ?")


def areas(scores: list[np.ndarray], trees: list[ReasoningTree]) -> float:
    right = np.array([True, True, False, False])
    found = [auroc(each[:4], right) for each, _ in zip(scores, trees, strict=True)]
    return float(np.mean([area for area in found if area is not None]))


@pytest.fixture(scope="module")
def fitted():
    return fit_rivals([lesson(i) for i in range(40)], seed=3)


def test_every_rival_that_reads_latents_learns_what_there_is_to_learn(fitted) -> None:
    unseen = [lesson(100 + i) for i in range(20)]
    found = {name: areas(rival(unseen), unseen) for name, rival in fitted.items()}
    assert found.pop("question only") == 0.5
    assert found.pop("length probe") < 0.8, "up and down are equally long"
    assert len(found) == 5
    assert all(area > 0.9 for area in found.values()), found


def test_nothing_is_learned_from_nothing() -> None:
    rivals = fit_rivals([lesson(i, telling=False) for i in range(40)])
    unseen = [lesson(100 + i, telling=False) for i in range(60)]
    assert all(abs(areas(rival(unseen), unseen) - 0.5) < 0.12 for rival in rivals.values())


def test_rivals_fitted_twice_are_the_same_to_the_bit_and_leave_torchs_chance_alone(fitted) -> None:
    before = torch.random.get_rng_state()
    again = fit_rivals([lesson(i) for i in range(40)], seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    other = fit_rivals([lesson(i) for i in range(40)], seed=4)
    unseen = [lesson(100), lesson(101)]
    for name in fitted:
        for one, two in zip(fitted[name](unseen), again[name](unseen), strict=True):
            assert np.array_equal(one, two), name
    assert not np.array_equal(fitted["LTO encoder"](unseen)[0], other["LTO encoder"](unseen)[0])


def test_what_is_scored_beside_a_tree_does_not_matter_and_every_path_gets_a_score(fitted) -> None:
    trees = [lesson(100), random_tree(width=6), lesson(101)]
    for name, rival in fitted.items():
        together = rival(trees)
        assert [len(scores) for scores in together] == [len(t.paths) for t in trees]
        np.testing.assert_allclose(together[1], rival(trees[1:2])[0], atol=1e-5, err_msg=name)
        assert rival([]) == []


def test_rivals_refuse_latents_of_another_width_and_data_that_teach_nothing(fitted) -> None:
    with pytest.raises(ValueError, match="6 wide, but here are some 16 wide"):
        fitted["SWIFT gate"]([random_tree()])
    alike = tree(path((1, 0), right=True), path((1, 1), right=True), path((1, 0), right=False, noise_free=True))
    with pytest.raises(ValueError, match="of the 2 labelled paths none"):
        fit_rivals([alike])


def test_clue_is_nearer_to_the_mean_change_of_right_paths() -> None:
    # right ones move by (2, 0) on average, wrong ones by (0, 2)
    taught = tree(path((0, 0), (1, 0), right=True), path((1, 1), (4, 1), right=True), path((0, 0), (0, 2), right=False))
    other = replace(taught, question="What is 7 + 3 ?")
    scores = fit_rivals([taught, other])["CLUE centroid"]([tree(path((5, 5), (7, 5)), path((0, 0), (0, 2)))])
    assert scores[0].tolist() == pytest.approx([sqrt(8), -sqrt(8)])


def test_the_gates_logit_is_the_weighted_mean_of_rewards() -> None:
    gate = Gate(2, seed=0)
    with torch.no_grad():
        gate.both.weight.copy_(torch.eye(2))
        gate.both.bias.zero_()
    latents = torch.tensor([[[0.0, 1.0], [log(3), 5.0], [9.0, 9.0]]])  # gates 1/2 and 3/4; the third is padding
    logits = gate(latents, torch.tensor([[True, True, False]]))
    assert logits.item() == pytest.approx((0.5 * 1 + 0.75 * 5) / 1.25)


def test_the_encoder_reads_the_order_of_latents_and_no_padding() -> None:
    encoder = Encoder(5, seed=0)  # a width that no head divides
    latents = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    real = torch.ones(1, 3, dtype=torch.bool)
    logits = encoder(latents, real)
    padded = encoder(torch.cat([latents, torch.full((1, 2, 5), 7.0)], 1), torch.tensor([[True] * 3 + [False] * 2]))
    torch.testing.assert_close(logits, padded)
    assert (logits - encoder(latents.flip(1), real)).abs() > 1e-4


def test_the_length_probe_sees_lengths_only() -> None:
    found = lengths(torch.tensor([[1.0, 1.0], [5.0, 5.0], [3.0, -3.0]]))
    assert found.tolist() == pytest.approx([3, sqrt(8 / 3), 1, 5, 1, 3])
    assert lengths(torch.tensor([[2.0, 2.0]])).tolist() == [2, 0, 2, 2, 2, 2]


def test_the_question_only_model_tells_questions_apart_and_no_paths() -> None:
    easy = [tree(path((1, 0), right=True), path((1, 1), right=True), question=f"easy {i}") for i in range(5)]
    hard = [tree(path((1, 0), right=False), path((1, 1), right=True), question=f"hard {i}") for i in range(5)]
    one, other = fit_rivals([*easy, *hard])["question only"]([easy[0], hard[0]])
    assert one[0] == one[1] > other[0] == other[1]


# --- controls -------------------------------------------------------------------------------------------------------


def pool() -> list[ReasoningTree]:
    """Three solo trees of one shape, and one of another."""
    solo = [
        random_tree(seed, branches=(4,), latent_steps=(3, 3), question=f"What is {seed} + 2 ?") for seed in range(3)
    ]
    return [*solo, random_tree(7, branches=(2, 2), latent_steps=(2, 4), question="What is 7 + 7 ?")]


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def unspoilt(before: ReasoningTree, after: ReasoningTree) -> None:
    assert (before.question_id, before.task, len(before.paths)) == (after.question_id, after.task, len(after.paths))
    for one, other in zip(before.paths, after.paths, strict=True):
        assert (one.answers, one.noise_free, one.prm_score) == (other.answers, other.noise_free, other.prm_score)


def test_foreign_latents_are_those_of_the_same_path_of_a_tree_of_the_same_shape() -> None:
    trees = pool()
    swapped = with_foreign_latents(trees, seed=0)
    owners = []
    for before, after in zip(trees, swapped, strict=True):
        unspoilt(before, after)
        assert before.question == after.question
        assert [len(p.latents) for p in before.paths] == [len(p.latents) for p in after.paths]
        assert [p.parent for p in before.paths] == [p.parent for p in after.paths]
    for after in swapped[:3]:
        (owner,) = [k for k in range(3) if torch.equal(after.paths[0].latents, trees[k].paths[0].latents)]
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(after.paths, trees[owner].paths, strict=True))
        assert same(after.paths[2].tip, trees[owner].paths[2].tip)
        owners.append(owner)
    assert sorted(owners) == [0, 1, 2]
    assert all(owner != k for k, owner in enumerate(owners))
    foreign = torch.cat([p.latents for t in trees[:3] for p in t.paths])
    for p in swapped[3].paths:  # it has no equal: whoever is there lends it latents
        assert (p.latents[:1] == foreign).all(1).any()


def test_foreign_questions_leave_latents_alone() -> None:
    trees = pool()
    for before, after in zip(trees, with_foreign_questions(trees, seed=0), strict=True):
        unspoilt(before, after)
        assert before.paths is after.paths
        assert after.question != before.question
        assert after.question in {tree.question for tree in trees}


def test_trees_of_one_question_are_no_strangers_to_each_other() -> None:
    twins = [random_tree(seed, branches=(2,), latent_steps=(2, 2)) for seed in range(2)]
    other = random_tree(3, question="What is 9 + 2 ?", branches=(2,), latent_steps=(2, 2))
    for seed in range(5):
        assert [t.question for t in with_foreign_questions([*twins, other], seed)[:2]] == [other.question] * 2
    with pytest.raises(ValueError, match="two questions"):
        with_foreign_latents(twins, seed=0)


def test_out_of_order_chains_hold_the_same_latents_and_stand_alone() -> None:
    trees = pool()
    for t in trees:
        for p in t.paths:
            p.hidden = p.latents + 1
    for before, after in zip(trees, out_of_order(trees, seed=0), strict=True):
        unspoilt(before, after)
        for i, p in enumerate(after.paths):
            chain = before.chain_latents(i)
            assert p.parent is None
            assert (p.tip is None) == (i not in before.leaves())
            assert not torch.equal(p.latents, chain)
            assert torch.equal(p.latents.sort(0).values, chain.sort(0).values)
            assert same(p.hidden, p.latents + 1)


def test_a_single_latent_has_no_other_order() -> None:
    (after,) = out_of_order([tree(path((1, 2)))], seed=0)
    assert after.paths[0].latents.tolist() == [[1, 2]]


def test_noise_keeps_the_size_of_a_latent_and_nothing_else() -> None:
    latents = torch.cat([torch.full((2, 4000), 3.0), torch.full((1, 4000), 0.5)])
    made = replace(tree(path((0, 0))), paths=[replace(path((0, 0)), latents=latents, hidden=latents, tip=latents[0])])
    (after,) = drowned([made], seed=0)
    noise = after.paths[0]
    assert noise.hidden is not None and noise.tip is not None
    for found in (noise.latents, noise.hidden):
        assert found.pow(2).mean(1).sqrt().tolist() == pytest.approx([3, 3, 0.5], rel=0.05)
        assert abs(float(torch.cosine_similarity(found[0], latents[0], dim=0))) < 0.06
    assert noise.tip.shape == (4000,)
    assert abs(float(torch.cosine_similarity(noise.latents[0], noise.latents[1], dim=0))) < 0.06


@pytest.fixture(scope="module")
def prm(tiny_lm: Folder) -> QwenLatentPRM:
    torch.manual_seed(0)
    return QwenLatentPRM(model_path=str(tiny_lm)).eval()


def test_a_prm_that_reads_answers_is_given_foreign_ones_too(tiny_lm: Folder) -> None:
    torch.manual_seed(0)
    reader = QwenLatentPRM(model_path=str(tiny_lm), reads=("fed", "answer")).eval()
    trees = [
        tree(*(replace(path((n, i)), answers=[Answer(text=v, value=v, correct=False)]) for i, v in enumerate(said)))
        for n, said in enumerate((["3", "4"], ["5", "6"]))
    ]
    trees = [replace(one, question=f"What is {n} ?", question_id=str(n)) for n, one in enumerate(trees)]
    swapped = with_foreign_answers(trees, trees, seed=0)
    assert [[p.answers[0].value for p in one.paths] for one in swapped] == [["5", "6"], ["3", "4"]]
    assert all(torch.equal(a.paths[0].latents, b.paths[0].latents) for a, b in zip(swapped, trees, strict=True))
    wide = [replace(one, paths=[replace(p, latents=torch.randn(2, 16), tip=None) for p in one.paths]) for one in trees]
    found = controls(reader, wide, seed=0)
    assert tuple(found) == CONTROLS
    both = with_foreign_answers(with_foreign_latents(wide, 0), wide, 0)
    for scores, again in zip(found["all swapped"], reader.score_trees(both), strict=True):
        np.testing.assert_allclose(scores, again.numpy(), atol=1e-6)


def test_controls_are_the_models_own_scores_of_spoilt_trees(prm: QwenLatentPRM) -> None:
    trees = pool()
    found = controls(prm, trees, seed=5)
    assert tuple(found) == CONTROLS[:4]
    spoilt: dict[str, Callable] = {
        "latents swapped": with_foreign_latents,
        "question swapped": with_foreign_questions,
        "order shuffled": out_of_order,
        "noise only": drowned,
    }
    true = prm.score_trees(trees)
    for name, spoil in spoilt.items():
        for scores, again, unspoilt in zip(found[name], prm.score_trees(spoil(trees, 5)), true, strict=True):
            np.testing.assert_allclose(scores, again.numpy(), atol=1e-6)
            assert np.abs(scores - unspoilt.numpy()).max() > 1e-4, name


def test_without_a_question_to_read_none_is_swapped(prm: QwenLatentPRM) -> None:
    assert "question swapped" not in controls(prm, pool(), seed=5, context=False)
