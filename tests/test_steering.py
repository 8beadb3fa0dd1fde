"""Steered thinking: who goes on, with which noise, at what cost; and stopping when the answer is settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_tree, save_family

from latent_prm import rules
from latent_prm.growth import Growth, every_latent
from latent_prm.model import QwenLatentPRM
from latent_prm.prompts import Agent, Pipeline
from latent_prm.reasoner import Reasoner
from latent_prm.rules import Turn, merged
from latent_prm.scorers import HeuristicScorer, OracleScorer, PrmScorer, RandomScorer, parameters, score_ends
from latent_prm.settling import Settled, by_agreement, by_prm, paths_used
from latent_prm.steering import NAMES, Anytime, Grown, Steering, from_name, joined
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree

SHORT = Question("text-1", "What is 3 + 4 ?", "7")
MIDDLE = Question("text-2", "Ann has 12 apples . She buys 5 more . How many apples has Ann ?", "17")
BOTH = [SHORT, MIDDLE]
TASK = load_task("text")


@pytest.fixture(scope="module")
def reasoner(tiny_lm: Path) -> Reasoner:
    return Reasoner.from_pretrained(str(tiny_lm), device="cpu")


@pytest.fixture(scope="module")
def growth(reasoner: Reasoner) -> Growth:
    return reasoner.growth(num_paths=6, latent_steps=4, noise=0.5, max_new_tokens=4)


class ByHand:
    """Scores by hand: of any path, its place among the leaves asked for / 10, the last one best."""

    name, reads_hidden, apart = "hand", False, True

    def __init__(self) -> None:
        self.cost, self.asked = 0.0, []

    def __call__(self, trees: Sequence[ReasoningTree]) -> list[np.ndarray]:
        found = []
        for tree in trees:
            values = np.zeros(len(tree.paths))
            leaves = tree.leaves()
            self.asked.append(len(leaves))
            values[leaves] = np.arange(len(leaves)) / 10
            found.append(values)
        return found


def steered(reasoner: Reasoner, growth: Growth, name: str, **settings: Any) -> list[Grown]:
    return from_name(name, ByHand(), **settings).grow(reasoner, BOTH, TASK, growth)


def by_depth(tree: ReasoningTree) -> list[int]:
    """How many noisy paths there are at every depth."""
    depths = [len(tree.chain(i)) for i, path in enumerate(tree.paths) if not path.noise_free]
    return [depths.count(depth) for depth in range(1, max(depths) + 1)]


def same(one: ReasoningTree, other: ReasoningTree) -> None:
    assert len(one.paths) == len(other.paths)
    for a, b in zip(one.paths, other.paths, strict=True):
        assert a.tip is not None and b.tip is not None
        assert torch.equal(a.latents, b.latents) and torch.equal(a.tip, b.tip)
        assert (a.parent, a.noise_free, a.answers, a.prm_score) == (b.parent, b.noise_free, b.answers, b.prm_score)


# --- rules ----------------------------------------------------------------------------------------------------------

SCORES = np.array([0.1, 0.9, 0.5, 0.7])
APART = np.eye(4)
TURN = Turn(width=4, progress=0.0, spent=4, left=3, whole=16, lot=0.5)


@pytest.mark.parametrize(
    ("rule", "settings", "counts"),
    [
        ("none", {}, [1, 1, 1, 1]),
        ("topk", {"keep": 0.5}, [0, 1, 0, 1]),
        ("adaptive", {"first": 0.5}, [0, 1, 0, 1]),
        ("adaptive", {"first": 0.01}, [0, 1, 0, 0]),  # somebody always goes on
        ("diversity", {"keep": 0.5}, [0, 1, 0, 1]),
        ("budget", {"share": 0.5}, [0, 1, 0, 0]),  # 8 of 16 latents, 4 are spent, 3 to go: one path
        ("budget", {"share": 0.75}, [0, 1, 0, 1]),  # (12 - 4) / 3
        ("beam", {"keep": 0.5}, [0, 2, 0, 2]),
        ("beam", {"keep": 0.75}, [0, 2, 1, 1]),  # what is left over goes to the best
        ("uncertain", {"band": 0.2, "times": 2}, [1, 1, 2, 2]),
        ("uncertain", {"band": 0.2, "times": 1}, [1, 1, 1, 1]),  # there are as many as there may be
    ],
)
def test_a_rule_counts_who_goes_on(rule: str, settings: dict[str, float], counts: list[int]) -> None:
    assert getattr(rules, rule)(SCORES, APART, TURN, **settings).tolist() == counts


def test_adaptive_keeps_more_and_more() -> None:
    scores, thoughts = np.arange(10) / 10, np.eye(10)
    kept = [rules.adaptive(scores, thoughts, TURN._replace(progress=at)).sum() for at in (0.0, 0.5, 1.0)]
    assert kept == [3, 6, 8]  # 30 %, 55 % (to even) and 80 % of ten


def test_diversity_prefers_another_thought_to_a_better_score() -> None:
    thoughts = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert rules.diversity(SCORES, thoughts, TURN, keep=0.5).tolist() == [0, 1, 1, 0]


def test_particles_go_on_in_proportion_to_their_weight() -> None:
    def counts(lot: float, temperature: float = 1.0, width: int = 8) -> list[int]:
        scores = np.array([0.1, 0.2, 0.5])
        turn = TURN._replace(lot=lot, width=width)
        return rules.particles(scores, np.eye(3), turn, temperature=temperature).tolist()

    assert counts(0.5) == [1, 2, 5]  # shares 1/8, 2/8, 5/8 of eight places in the middle of eighths
    assert counts(0.5, temperature=1e9) in ([3, 2, 3], [2, 3, 3])  # nearly alike
    assert counts(0.5, temperature=0.05) == [0, 0, 8]
    mean = np.mean([counts(lot, width=1) for lot in np.arange(0.0005, 1, 0.001)], axis=0)
    assert mean == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=2e-3)  # one place is drawn fairly


def test_near_paths_become_one_with_the_best_of_them() -> None:
    thoughts = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.5]])
    assert merged(SCORES, thoughts, 0.99) == [1, 1, 2, 3]
    assert merged(np.ones(4), thoughts, 0.85) == [0, 0, 2, 0]
    assert merged(SCORES, thoughts, 1.01) == [0, 1, 2, 3]


# --- growing --------------------------------------------------------------------------------------------------------


def test_a_growth_is_cut_into_single_latents_and_one_of_several_agents_is_not(reasoner: Reasoner) -> None:
    cut = every_latent(reasoner.growth(num_paths=6, latent_steps=4), 0.5)
    assert [(run.latent_steps, run.branches, run.prompt is None) for run in cut.runs] == [(1, 3, False)] + [
        (1, 1, True)
    ] * 3
    team = Pipeline("team", (Agent("a", "{question}"), Agent("b", "Check {question}")), None)
    growth = reasoner.growth(pipeline=team, branches=(4, 2), latent_steps=3)
    assert every_latent(growth) == growth


def test_a_steer_that_lets_all_go_on_changes_no_bit(reasoner: Reasoner, growth: Growth) -> None:
    plain = reasoner.grow(BOTH, TASK, every_latent(growth))
    for grown, tree in zip(steered(reasoner, growth, "none"), plain, strict=True):
        same(grown.tree, tree)


def test_what_is_pruned_stays_censored_and_who_goes_on_is_as_without_pruning(
    reasoner: Reasoner, growth: Growth
) -> None:
    whole = reasoner.grow(BOTH, TASK, every_latent(growth))
    for (tree, scores, votes), full in zip(steered(reasoner, growth, "topk", keep=0.5), whole, strict=True):
        assert by_depth(tree) == [6, 3, 3, 3]
        pruned = [i for i in tree.leaves() if not tree.paths[i].answers]
        assert len(pruned) == 3 and all(tree.paths[i].prm_score is None for i in pruned)
        assert not scores[pruned].any() and not votes[pruned].any() and votes.sum() == 3
        assert [i for i in tree.leaves() if tree.paths[i].noise_free and tree.paths[i].answers]  # the rival goes on
        for own, other in zip(tree.offered(), full.offered()[3:], strict=True):  # the last three scored best
            assert torch.equal(tree.chain_latents(own), full.chain_latents(other))
            assert tree.paths[own].answers == full.paths[other].answers


@pytest.mark.parametrize("name", ["beam", "particles"])
def test_the_width_stays_and_copies_differ(reasoner: Reasoner, growth: Growth, name: str) -> None:
    for grown in steered(reasoner, growth, name):
        assert by_depth(grown.tree) == [6, 6, 6, 6]
        copied = [kids for i in range(len(grown.tree.paths)) if len(kids := grown.tree.children(i)) > 1]
        assert copied
        for kids in copied:
            latents = torch.stack([grown.tree.paths[kid].latents[0] for kid in kids])
            assert (torch.pdist(latents) > 1e-2).all()
        at_end = torch.stack([grown.tree.paths[i].latents[0] for i in grown.tree.offered()])
        assert (torch.pdist(at_end) > 1e-2).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_no_batch_mate_is_felt_and_the_same_comes_again(reasoner: Reasoner, growth: Growth, name: str) -> None:
    together = from_name(name, RandomScorer(1)).grow(reasoner, BOTH, TASK, growth)
    alone = from_name(name, RandomScorer(1)).grow(reasoner, [MIDDLE], TASK, growth)[0]
    assert [path.parent for path in alone.tree.paths] == [path.parent for path in together[1].tree.paths]
    for path, other in zip(alone.tree.paths, together[1].tree.paths, strict=True):
        torch.testing.assert_close(path.latents, other.latents, rtol=0, atol=1e-5)
    assert alone.scores.tolist() == together[1].scores.tolist() and alone.votes.tolist() == together[1].votes.tolist()


def test_merged_paths_vote_together(reasoner: Reasoner, growth: Growth) -> None:
    grown = steered(reasoner, growth, "merge", merge=-1.0)[0]  # whatever the thoughts: all become one
    assert by_depth(grown.tree) == [6, 1, 1, 1] and grown.votes.sum() == 6 and grown.votes.max() == 6
    _, values, _, scores = grown.ballots()
    assert len(values) == 6 and len(set(values)) == 1 and len(scores) == 6
    assert grown.choose("vote").index == grown.tree.offered()[0]
    kept = steered(reasoner, growth, "topk", merge=-1.0, keep=1.0)[0]
    assert kept.votes.sum() == 6


def test_uncertain_begins_with_few_and_branches(reasoner: Reasoner, growth: Growth) -> None:
    eight = replace(growth, runs=(replace(growth.runs[0], branches=8),))
    grown = steered(reasoner, eight, "uncertain", band=0.5)[0]
    assert by_depth(grown.tree) == [2, 4, 8, 8]


def test_after_says_when(reasoner: Reasoner, growth: Growth) -> None:
    assert by_depth(steered(reasoner, growth, "topk", after=(2,), keep=0.5)[0].tree) == [6, 6, 3, 3]
    with pytest.raises(ValueError, match=r"Nothing can be steered after 4 latents: runs end, .* after 1, 2, 3"):
        steered(reasoner, growth, "topk", after=(4,))


def test_turns_are_spread_evenly(reasoner: Reasoner, growth: Growth) -> None:
    six = reasoner.growth(num_paths=10, latent_steps=6, noise=0.5, max_new_tokens=4)
    assert by_depth(steered(reasoner, six, "adaptive")[0].tree) == [10, 10, 3, 3, 2, 2]  # 30 %, then 80 %
    assert by_depth(steered(reasoner, growth, "adaptive")[0].tree) == [6, 2, 2, 2]  # after 1 and 3 of 4


def test_several_agents_are_steered_at_their_boundaries(reasoner: Reasoner) -> None:
    team = Pipeline("team", (Agent("a", "{question}"), Agent("b", "Check {question}", 0), Agent("c", None)), None)
    growth = reasoner.growth(pipeline=team, branches=(4, 2), latent_steps=3, noise=0.5, max_new_tokens=3)
    scorer = ByHand()
    tree = from_name("topk", scorer, keep=0.5).grow(reasoner, [MIDDLE], TASK, growth)[0].tree
    assert by_depth(tree) == [4, 4] and scorer.asked == [4, 4]  # two of four go on, each with two branches; and the end
    assert len(tree.offered()) == 4


def nobody(
    trees: Sequence[ReasoningTree], frontiers: Sequence[Sequence[int]], growth: Growth, run: int
) -> list[list[int]]:
    return [[0] * len(frontiers[0])]


def test_a_steer_that_leaves_nobody_is_refused(reasoner: Reasoner, growth: Growth) -> None:
    with pytest.raises(ValueError, match="Steering left no path of question 'text-1'"):
        reasoner.grow([SHORT], TASK, every_latent(growth), steer=nobody)
    with pytest.raises(ValueError, match="--until_mixed decides by itself"):
        reasoner.grow([SHORT], TASK, replace(growth, until_mixed=True), roots=range(2))


# --- scorers --------------------------------------------------------------------------------------------------------


def test_only_living_chains_are_shown() -> None:
    tree = random_tree(branches=(2, 2, 1), noise_free=True)
    shown, places = tree.chains(tree.leaves()[2:4])
    assert [path.parent for path in shown.paths] == [None, None, 0, 1, 2, 3][: len(shown.paths)] or len(shown.paths) < 6
    for leaf, place in zip(tree.leaves()[2:4], places, strict=True):
        assert torch.equal(tree.chain_latents(leaf), shown.chain_latents(place))
    assert shown.leaves() == places


def test_the_prm_costs_what_it_reads(reasoner: Reasoner, tiny_backbone_24: Path) -> None:
    model = QwenLatentPRM(tiny_backbone_24, latent_dim=16)
    scorer = PrmScorer(model, reasoner)
    tree = random_tree(branches=(2, 2), latent_steps=(3, 3))
    leaves = tree.offered()
    found = score_ends(scorer, [tree], [leaves[:2]])[0]
    read = len(model.read_questions([tree.question])[0]) + 3 * 3  # a root and its two children
    each = (parameters(model.backbone) + 16 * 24) / parameters(reasoner.model.base_model)
    assert scorer.cost == pytest.approx(read * each)
    np.testing.assert_allclose(found, model.score_trees([tree])[0][leaves[:2]], atol=1e-6)
    assert score_ends(scorer, [tree, tree], [[], []])[0].size == 0 and scorer.cost == pytest.approx(read * each)


def test_parameters_leave_the_embedding_out(reasoner: Reasoner) -> None:
    model = reasoner.model.base_model
    layers = sum(weights.numel() for weights in model.layers.parameters())
    assert parameters(model) == layers + 16  # and the last norm


def test_the_heuristic_is_one_less_the_share_of_the_entropy(reasoner: Reasoner, growth: Growth) -> None:
    tree = reasoner.grow([SHORT], TASK, growth)[0]
    scorer = HeuristicScorer(reasoner)
    found = score_ends(scorer, [tree], [[1, 2]])[0]
    shares = reasoner.model.get_output_embeddings()(tree.paths[1].tip).softmax(-1).double()
    entropy = torch.distributions.Categorical(shares).entropy() / np.log(len(shares))
    assert found[0] == pytest.approx(1 - float(entropy), abs=1e-5)
    assert scorer.cost == pytest.approx(2 * len(shares) * 16 / parameters(reasoner.model.base_model))


def test_the_heuristic_knows_how_a_model_scales_its_logits(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "lm", "granite", logits_scaling=8.0)
    granite = Reasoner.from_pretrained(str(folder), device="cpu", align="none")
    tree = granite.grow(SHORT, TASK, num_paths=2, latent_steps=2, max_new_tokens=2)
    tips = torch.stack([path.tip for path in tree.paths if path.tip is not None])
    shares = (granite.model.lm_head(tips) / 8).double().softmax(-1)
    expected = 1 + (shares * shares.log()).sum(-1) / np.log(shares.shape[-1])
    np.testing.assert_allclose(HeuristicScorer(granite)([tree])[0], expected.numpy(), atol=1e-6)


def test_lots_follow_from_seed_and_question() -> None:
    trees = [random_tree(1), random_tree(2)]
    one, other = RandomScorer(1)(trees), RandomScorer(1)(trees[::-1])[::-1]
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert (one[0] != one[1]).any() and (one[0] != RandomScorer(2)(trees)[0]).any()
    assert all(((scores >= 0) & (scores < 1)).all() for scores in one) and RandomScorer(1).cost == 0


def test_the_oracle_foresees_what_a_path_would_answer_without_further_noise(reasoner: Reasoner) -> None:
    """The noise-free path's beginnings end as it does; a whole path has the answer that it has."""
    growth = every_latent(reasoner.growth(num_paths=3, latent_steps=3, noise=0.5, max_new_tokens=4))
    trees = reasoner.grow(BOTH, TASK, growth)
    asked = [
        replace(q, gold=tree.paths[tree.leaves()[0]].answers[0].value) for q, tree in zip(BOTH, trees, strict=True)
    ]
    before = dict(reasoner.spent)
    for depth in range(3):
        free = [[[i for i, path in enumerate(tree.paths) if path.noise_free][depth]] for tree in trees]
        right, _ = reasoner.foresee(asked, TASK, growth, trees, free)
        assert right == [[TASK.grade(q, tree.paths[tree.leaves()[0]].answers[0].text).correct]
                         for q, tree in zip(asked, trees, strict=True)]  # fmt: skip
    leaves = [tree.leaves() for tree in trees]
    right, spent = reasoner.foresee(asked, TASK, growth, trees, leaves)
    expected = [[TASK.grade(q, tree.paths[i].answers[0].text).correct for i in tree.leaves()]
                for q, tree in zip(asked, trees, strict=True)]  # fmt: skip
    assert right == expected
    words = sum(len(tree.paths[i].answers[0].text.split()) + (not tree.paths[i].answers[0].truncated)
                for tree in trees for i in tree.leaves())  # fmt: skip
    prompts = sum(len(reasoner.tokenizer(reasoner.prompt(q, growth))["input_ids"]) for q in asked)
    assert spent == prompts + 8 * 3 + words
    assert dict(reasoner.spent) == before  # it is the oracle's bill, not the growth's


def test_who_knows_the_truth_steers_to_it() -> None:
    exact = Reasoner.from_pretrained("builtin", device="cpu")
    task = load_task("arithmetic,search")
    questions = task.questions("validation", 3, 24)
    growth = exact.growth(num_paths=8, noise=0.4)

    def right(name: str) -> float:
        grown = from_name(name, OracleScorer(exact, task, growth, questions)).grow(exact, questions, task, growth)
        return float(np.mean([each.tree.paths[each.choose("vote").index].answers[0].correct for each in grown]))

    unsteered = right("none")
    assert right("beam") > unsteered + 0.1 and right("particles") > unsteered + 0.1


# --- cost of growing ------------------------------------------------------------------------------------------------


def test_steered_latents_are_counted(tiny_lm: Path) -> None:
    counting = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    growth = counting.growth(num_paths=6, latent_steps=4, noise=0.5, max_new_tokens=4, noise_free=False)
    from_name("topk", ByHand(), keep=0.5).grow(counting, [SHORT], TASK, growth)
    assert counting.spent["latents"] == 6 + 3 * 3 and counting.spent["prompt_tokens"] == 6


# --- anytime --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [by_agreement, by_prm])
def test_rounds_grow_the_first_paths_of_the_whole_tree(tiny_lm: Path, settled: Settled) -> None:
    counting = Reasoner.from_pretrained(str(tiny_lm), device="cpu")
    for branches in ((6,), (6, 1), (3, 2)):
        growth = counting.growth(branches=branches, latent_steps=3, noise=0.5, max_new_tokens=4)
        whole = counting.grow(BOTH, TASK, growth)
        never = from_name("anytime", ByHand(), confidence=1.1, first=2, more=2, settled=settled)
        for grown, full in zip(never.grow(counting, BOTH, TASK, growth), whole, strict=True):
            assert sorted(map(len, (grown.tree.chain(i) for i in grown.tree.offered()))) == sorted(
                map(len, (full.chain(i) for i in full.offered()))
            )
            for own, other in zip(grown.tree.offered(), full.offered(), strict=True):
                torch.testing.assert_close(grown.tree.chain_latents(own), full.chain_latents(other), rtol=0, atol=1e-5)
                assert grown.tree.paths[own].answers == full.paths[other].answers
                assert grown.tree.paths[own].score == pytest.approx(full.paths[other].score)  # backed up together


def test_anytime_stops_as_simulated(reasoner: Reasoner, growth: Growth) -> None:
    whole = reasoner.grow(BOTH, TASK, growth)
    guide = Anytime(RandomScorer(), confidence=0.7, settled=by_agreement, first=2, more=1)
    for grown, full in zip(guide.grow(reasoner, BOTH, TASK, growth), whole, strict=True):
        values = [full.paths[i].answers[0].value for i in full.offered()]
        assert len(grown.tree.offered()) == paths_used(values, np.ones(6), 0.7, by_agreement)
        assert sum(path.noise_free for path in grown.tree.paths) == 1
        assert grown.votes.sum() == len(grown.tree.offered()) and (grown.scores > 0).sum() == grown.votes.sum()


def test_a_scorer_that_compares_paths_scores_all_anew(reasoner: Reasoner, growth: Growth) -> None:
    apart, beside = ByHand(), ByHand()
    beside.apart = False
    for scorer in (apart, beside):
        Anytime(scorer, confidence=1.1, first=2, more=2).grow(reasoner, [SHORT], TASK, growth)
    assert apart.asked == [2, 2, 2] and beside.asked == [2, 4, 6]


def test_joined_trees_are_backed_up_anew() -> None:
    one, other = random_tree(3), random_tree(4, noise_free=False)
    both = joined(one, other)
    assert len(both.paths) == len(one.paths) + len(other.paths)
    assert both.chain(len(both.paths) - 1)[0] >= len(one.paths)


def test_what_has_no_gold_gets_no_label_by_being_grown_in_rounds(reasoner: Reasoner, growth: Growth) -> None:
    nobody_knows = replace(SHORT, gold="", id="mine-1")
    never = from_name("anytime", ByHand(), confidence=1.1, first=1, more=1)
    tree = never.grow(reasoner, [nobody_knows], TASK, growth)[0].tree
    assert len(tree.offered()) == growth.num_paths
    assert {(path.prm_score, path.num_answers) for path in tree.paths} == {(None, None)}


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_name_makes_a_guide_and_wrong_ones_are_told() -> None:
    for name in NAMES:
        assert from_name(name, ByHand()).name == name
    assert [from_name(name, ByHand()).num_paths for name in ("conservative", "balanced", "aggressive", "fast")] == [
        3,
        5,
        10,
        3,
    ]
    with pytest.raises(ValueError, match="There is no steering 'beams': type one of none, topk"):
        from_name("beams", ByHand())
    with pytest.raises(ValueError, match="beam has no setting 'temperature': it has keep"):
        from_name("beam", ByHand(), temperature=1)
    with pytest.raises(ValueError, match="anytime has no setting 'keep'"):
        from_name("anytime", ByHand(), keep=1)
    with pytest.raises(ValueError, match="particles makes copies of paths"):
        from_name("particles", ByHand(), merge=0.9)
    assert isinstance(from_name("beam", ByHand(), keep=0.5, after=[2, 3]), Steering)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("anytime", {"after": [2]}, "anytime has no setting 'after': it has confidence"),
        ("anytime", {"merge": 0.9}, "anytime has no setting 'merge'"),
        ("anytime", {"begin": 0.5}, "anytime has no setting 'begin'"),
        ("anytime", {"more": 0}, "anytime has more 0, but it must be above 0: give 1"),
        ("anytime", {"first": -1}, "anytime has first -1"),
        ("particles", {"temperature": 0}, "particles has temperature 0, but it must be above 0"),
        ("quality", {"temperature": float("nan")}, "quality has temperature nan"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_grows(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        from_name(name, ByHand(), **settings)


def test_where_nothing_can_be_steered_it_is_said_once(reasoner: Reasoner, caplog: pytest.LogCaptureFixture) -> None:
    short = reasoner.growth(num_paths=4, latent_steps=1, max_new_tokens=4)
    for name in ("topk", "merge", "none", "anytime"):
        guide = from_name(name, ByHand())
        for question in BOTH:
            guide.grow(reasoner, [question], TASK, short)
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["topk steers nothing", "merge steers nothing"]
