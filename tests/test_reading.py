"""What a PRM reads of a path, and whom it judges it beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as Folder
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_prm import reading, shards
from latent_prm.lessons import Lesson, lessons_of
from latent_prm.model import QwenLatentPRM
from latent_prm.options import TrainOptions
from latent_prm.packing import pack
from latent_prm.ranks import Ranks
from latent_prm.run import Run
from latent_prm.trainer import main as train
from latent_prm.trainer import validate
from latent_prm.tree import Path, ReasoningTree

Trees = Callable[..., ReasoningTree]
ALL = ("fed", "hidden", "tip", "answer")


def build(folder: Folder, *reads: str, sees: str = "chain", latent_dim: int | None = None) -> QwenLatentPRM:
    torch.manual_seed(0)
    model = QwenLatentPRM(folder, latent_dim, "last", reads=reads)
    torch.nn.init.normal_(model.head.weight)
    if model.projection is not None:
        torch.nn.init.normal_(model.projection.weight, std=0.3)
    model.see(sees)
    return model.eval()


def with_hidden(tree: ReasoningTree) -> ReasoningTree:
    draw = torch.Generator().manual_seed(9)
    paths = [replace(path, hidden=torch.randn(path.latents.shape, generator=draw)) for path in tree.paths]
    return replace(tree, paths=paths)


def by_hand(model: QwenLatentPRM, tree: ReasoningTree, i: int) -> Tensor:
    """The score of a chain as one plain sequence: question, latents (side by side with hidden states), tip, answer."""
    chain, rows = [tree.paths[p] for p in tree.chain(i)], []
    for path in chain:
        sides = [path.latents] if "fed" in model.reads else []
        sides += [path.hidden] if "hidden" in model.reads and path.hidden is not None else []
        rows.append(torch.cat(sides, 1))
    leaf = i in tree.leaves()
    if leaf and "tip" in model.reads and chain[-1].tip is not None:
        rows.append(torch.cat([chain[-1].tip] * len(sides))[None])
    x = torch.cat(rows)
    x = x if model.projection is None else x @ model.projection.weight.T
    embed, read = model.backbone.get_input_embeddings(), model.tokenizer
    parts = [embed(torch.tensor(read(tree.question)["input_ids"])), x]
    if leaf and "answer" in model.reads and chain[-1].answers:
        parts.append(embed(torch.tensor(read(chain[-1].answers[0].value)["input_ids"])))
    state = model.backbone(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0, -1]
    return (model.head.weight[0] @ state).sigmoid()


@pytest.mark.parametrize("reads", [("fed", "tip"), ("fed", "answer"), ("hidden",), ALL])
def test_scores_of_packed_trees_are_those_of_each_chain_alone(tiny_lm: Folder, make_tree: Trees, reads: tuple):
    model = build(tiny_lm, *reads)
    for shape in ({"branches": (4,)}, {"branches": (2, 2), "unexpanded": 0.5}):
        tree = with_hidden(make_tree(3, **shape))
        with torch.no_grad():
            expected = torch.stack([by_hand(model, tree, i) for i in range(len(tree.paths))])
        torch.testing.assert_close(model.score_trees([tree])[0], expected, rtol=0, atol=1e-5)


def test_what_is_not_read_changes_nothing_and_what_is_read_does(tiny_lm: Folder, make_tree: Trees):
    tree = make_tree(3, branches=(4,))
    other = replace(tree, paths=[replace(path, tip=torch.randn(16)) for path in tree.paths])
    for path in other.paths:
        path.answers = [replace(path.answers[0], value="19")]
    plain, full = build(tiny_lm, "fed"), build(tiny_lm, "fed", "tip", "answer")
    assert torch.equal(plain.score_trees([tree])[0], plain.score_trees([other])[0])
    assert (full.score_trees([tree])[0] - full.score_trees([other])[0]).abs().min() > 1e-3


def test_two_streams_begin_as_the_first_one_alone(tiny_lm: Folder, make_tree: Trees):
    tree = with_hidden(make_tree(3))
    torch.manual_seed(0)
    alone = QwenLatentPRM(tiny_lm, 16).eval()
    torch.manual_seed(0)
    both = QwenLatentPRM(tiny_lm, 16, reads=("fed", "hidden")).eval()
    both.head.weight.data.copy_(alone.head.weight.data)
    assert both.latent_dim == 32
    torch.testing.assert_close(both.score_trees([tree])[0], alone.score_trees([tree])[0], rtol=0, atol=1e-6)


def test_hidden_states_that_are_missing_are_asked_for(tiny_lm: Folder, make_tree: Trees):
    with pytest.raises(ValueError, match=r"question q3, path 0: it has no hidden states.*--keep_hidden"):
        build(tiny_lm, "hidden").score_trees([make_tree(3)])


# --- beside its siblings ----------------------------------------------------------------------------------------------


def test_who_sees_whom_in_a_tree_is_as_worked_by_hand():
    """Path 0 is noise-free: 1 latent. Paths 1 and 2 are roots: 2 latents and an answer of one token; 1 latent."""
    latents = torch.arange(4.0)[:, None].split([1, 2, 1])
    paths = [Path(latents=x, tip=None, noise_free=i == 0) for i, x in enumerate(latents)]
    tree = ReasoningTree(question_id="q", question="", gold="", task="", paths=paths)
    (batch,) = pack([tree], [[8]], tails=[{1: [7]}], siblings=True)
    assert batch.token_ids.tolist() == [[8, 0, 0, 0, 7, 0]]  # question, path 0, path 1 and its answer, path 2
    assert batch.positions.tolist() == [[0, 1, 1, 2, 3, 1]]
    assert batch.lengths.tolist() == [1, 3, 1]
    assert batch.chains.tolist() == [[1, 0, 0], [2, 3, 4], [5, 0, 0]]
    assert batch.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]
    assert batch.mask[0, 1].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1],  # the noise-free path looks at others of its depth, and nobody at it
        [1, 0, 1, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
        [1, 0, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1],
    ]


def test_a_path_beside_its_siblings_depends_on_them_but_never_on_other_trees(tiny_lm: Folder, make_tree: Trees):
    model = build(tiny_lm, "fed", "answer", sees="tree")
    tree, other = make_tree(3, branches=(4,)), make_tree(4, branches=(3, 2))
    scores = model.score_trees([tree])[0]
    torch.testing.assert_close(model.score_trees([other, tree])[1], scores, rtol=0, atol=1e-5)
    changed = replace(tree, paths=[*tree.paths[:-1], replace(tree.paths[-1], latents=-tree.paths[-1].latents)])
    moved = (model.score_trees([changed])[0] - scores).abs()
    assert moved[1:].min() > 1e-4  # all noisy paths
    alike = replace(tree, paths=[replace(tree.paths[0], latents=-tree.paths[0].latents), *tree.paths[1:]])
    assert torch.equal(model.score_trees([alike])[0][1:], scores[1:])  # the noise-free path is nobody's witness


def test_what_siblings_think_later_changes_no_earlier_score(tiny_lm: Folder, make_tree: Trees):
    model = build(tiny_lm, "fed", sees="tree")
    tree = make_tree(3, branches=(3,), latent_steps=(4, 4), noise_free=False)
    later = [replace(path, latents=torch.cat([path.latents[:3], -path.latents[3:]])) for path in tree.paths]
    scores = []
    for each in (tree, replace(tree, paths=later)):
        (batch,) = model.packs(model.as_read([each]))
        with torch.no_grad():
            scores.append(model(batch, True).value)
    torch.testing.assert_close(scores[0][:, :3], scores[1][:, :3], rtol=0, atol=1e-5)
    assert (scores[0][:, 3] - scores[1][:, 3]).abs().min() > 1e-4


def test_a_backbone_that_cannot_be_packed_cannot_see_trees(tmp_path: Folder, make_tree: Trees):
    from conftest import save_family

    model = QwenLatentPRM(save_family(tmp_path / "lm", "gemma3"))
    with pytest.raises(ValueError, match="Type --sees chain"):
        model.see("tree")


# --- training ---------------------------------------------------------------------------------------------------------


def test_where_the_answer_is_read_the_target_is_whether_it_is_right(make_tree: Trees):
    tree = make_tree(3, branches=(2, 2), answers=4)
    lesson, plain = Lesson.of(tree, answer=True), Lesson.of(tree)
    for i in plain.targets:
        if i in tree.leaves():
            assert lesson.targets[i] == float(tree.paths[i].answers[0].correct)
            assert lesson.counts[i] == (int(tree.paths[i].answers[0].correct), 1)
        else:
            assert (lesson.targets[i], lesson.counts[i]) == (plain.targets[i], plain.counts[i])
    assert lessons_of([tree], TrainOptions(reads="fed,answer"))[0].targets == lesson.targets


@pytest.mark.parametrize(
    "typed",
    [
        {"reads": "fed,hidden,tip,answer", "sees": "tree", "loss": "bce+listwise+order", "supervise": "steps"},
        {"reads": "answer,fed", "loss": "mse", "correctness_weight": 0.5},
    ],
)
def test_a_checkpoint_reads_and_sees_as_it_was_trained(
    tmp_path: Folder, tiny_lm: Folder, make_tree: Trees, typed: dict[str, Any]
):
    trees = [with_hidden(make_tree(n, branches=(3,), question=f"What is {n} + 2 ?")) for n in range(6)]
    for tree in trees:
        tree.back_up()
    shards.write_shard(trees, tmp_path / "data", "a", {})
    options = TrainOptions(
        model_path=str(tiny_lm),
        data_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "run"),
        num_epochs=1,
        val_size=0.34,
        report_to="none",
        **typed,
    )
    train(options)
    model = QwenLatentPRM.from_pretrained(tmp_path / "run" / "best")
    assert model.reads == options.read_parts() and model.sees == options.sees
    assert (model.score_trees(trees)[0][1:] >= 0).all()


def test_latents_stay_where_they_are_until_a_step_reads_them(tmp_path: Folder, tiny_lm: Folder, make_tree: Trees):
    trees = [with_hidden(make_tree(n, question=f"What is {n} + 2 ?")) for n in range(40)]
    options = TrainOptions(
        model_path=str(tiny_lm), data_dir=str(tmp_path), reads="fed,hidden,tip,answer", device="cpu", report_to="none"
    )
    run = Run(options, tmp_path, trees, [], Ranks(torch.device("cpu")))
    kept = [*run.train, *run.validation]
    assert {id(item.tree) for item in kept} == {id(tree) for tree in trees}  # their own, not copies
    assert all(item.context and item.tails for item in kept)
    wide = {batch.latents.shape[1] for batch, *_ in run.prepare(0, run.train[:3]).packs}
    assert wide == {32}


def test_validation_is_the_same_however_many_questions_are_read_at_once(
    tmp_path: Folder, tiny_lm: Folder, make_tree: Trees, monkeypatch: pytest.MonkeyPatch
):
    trees = [with_hidden(make_tree(n, question=f"What is {n} + 2 ?")) for n in range(9)]
    options = TrainOptions(
        model_path=str(tiny_lm), data_dir=str(tmp_path), reads="fed,tip", val_size=7, device="cpu", report_to="none"
    )
    run, found = Run(options, tmp_path, trees, [], Ranks(torch.device("cpu"))), []
    for together in (7, 2):
        monkeypatch.setattr(reading, "HANDFUL", together)
        found.append(validate(run))
    assert len(run.validation) == 7
    assert found[1] == pytest.approx(found[0], abs=1e-6)


@pytest.mark.parametrize(
    ("typed", "said"), [("fed,answr", "Did you mean answer"), ("answer", "Type fed,answer"), ("", "is none of fed")]
)
def test_what_cannot_be_read_is_named(typed: str, said: str):
    with pytest.raises(ValueError, match=said):
        TrainOptions(reads=typed)
