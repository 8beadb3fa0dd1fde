"""Step truth of whole evaluations: thresholds from other questions, PRMs beside baselines, intervals over questions."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_tree

from latent_prm.model import QwenLatentPRM
from latent_prm.reasoner import Reasoner
from latent_prm.step_truth import step_truth
from latent_prm.tasks import load_task
from latent_prm.tree import ReasoningTree
from latent_prm.truth import Steps, f1, judged, localise, said, sound, step_scores


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner.from_pretrained("builtin", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def grown(reasoner: Reasoner) -> list[ReasoningTree]:
    trees = [random_tree(width=128)]
    trees[0].task = "text"  # nothing is known of its steps
    for name, noise in (("arithmetic", 0.15), ("search", 0.4)):
        task = load_task(name)
        settings = reasoner.growth(num_paths=4, noise=noise)
        trees += reasoner.grow(task.questions("validation", 42, 24), task, settings)
    return trees


def knowing(reasoner: Reasoner, trees: list[ReasoningTree], sure: float = 1.0) -> Steps:
    """What somebody says who knows the truth, or mistrusts every path from its first latent on."""
    found: Steps = []
    for tree in trees:
        if tree.task == "text":
            found.append([np.ones(len(tree.chain_latents(i))) for i in range(len(tree.paths))])
        else:
            found.append([sure * right.astype(float) for right in sound(tree, said(reasoner, tree))])
    return found


def test_a_prm_is_held_against_truth_and_baselines_task_by_task(reasoner: Reasoner, grown: list[ReasoningTree]) -> None:
    prm = QwenLatentPRM.from_pretrained("builtin")
    trees, apart = [grown[0], *grown[1::2]], grown[2::2]
    steps, apart_steps = step_scores(prm, trees), step_scores(prm, apart)
    found = step_truth(reasoner, trees, [steps], apart, [apart_steps], num_bootstrap=200)
    assert list(found) == ["arithmetic", "search"]
    for task, own in found.items():
        assert list(own.f1) == ["PRM", "always none", "random latent", "smoothness", "surety"]
        assert (own.num_questions, own.picked_on) == (12, 12)
        assert sum(own.first_errors) == 12 * 4
        assert own.first_errors[-1] == own.agreement.sound_right + own.agreement.sound_wrong
        assert (
            own.f1["always none"].mean
            == 0
            < own.f1[own.best].mean
            == max(interval.mean for name, interval in own.f1.items() if name != "PRM")
        )
        assert own.gain.mean == pytest.approx(own.f1["PRM"].mean - own.f1[own.best].mean)
        assert own.gain.low <= own.gain.mean <= own.gain.high
        sides = []
        for side, scores in ((trees, steps), (apart, apart_steps)):
            which = [q for q, tree in enumerate(side) if tree.task == task]
            for each in (scores, [sound(tree, said(reasoner, tree)) if tree.task == task else [] for tree in side]):
                sides.append([[each[q][i] for i in judged(side[q])] for q in which])
        assert own.f1["PRM"].mean == pytest.approx(float(f1(localise(*sides).counts.sum(0))))


def test_who_knows_the_truth_finds_every_first_error_and_of_several_the_mean_counts(
    reasoner: Reasoner, grown: list[ReasoningTree]
) -> None:
    knows, blind = knowing(reasoner, grown), knowing(reasoner, grown, sure=0.0)
    for own in step_truth(reasoner, grown, [knows], num_bootstrap=50).values():
        assert own.picked_on == 0 and own.num_questions == 24
        perfect = own.f1["PRM"]
        assert perfect.mean == perfect.low == perfect.high == 1 and perfect.spread is None
        assert own.gain.low > 0 and (own.change.at_error, own.change.elsewhere) == (-1, 0)
    for own in step_truth(reasoner, grown, [knows, blind], num_bootstrap=50).values():
        assert own.f1["PRM"].mean == 0.5 and own.f1["PRM"].spread == pytest.approx(0.5**0.5)
        assert own.change.at_error == -0.5


def test_a_task_is_missing_where_there_is_nothing_to_pick_a_threshold_on(
    reasoner: Reasoner, grown: list[ReasoningTree]
) -> None:
    steps = knowing(reasoner, grown)
    assert step_truth(reasoner, grown[:1], [steps[:1]]) == {}
    assert step_truth(reasoner, grown[:2], [steps[:2]]) == {}  # one question has no other half
