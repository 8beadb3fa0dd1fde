"""Packing: who sees whom, at which depth, and that nothing is computed twice or lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as Folder

import pytest
import torch

from latent_prm.model import QwenLatentPRM
from latent_prm.packing import PackedBatch, pack
from latent_prm.tree import Path, ReasoningTree

Trees = Callable[..., ReasoningTree]

FORESTS: list[dict] = [
    {"branches": (4,), "latent_steps": (3, 3)},
    {"branches": (3, 2), "latent_steps": (1, 5)},
    {"branches": (2, 2, 2), "latent_steps": (1, 3), "noise_free": False, "unexpanded": 0.5},
    {"branches": (1, 1, 1, 1), "latent_steps": (2, 2)},
]


def small_tree() -> ReasoningTree:
    """Path 0 has the latents 0, 1; its children are path 1 with latent 2 and path 2 with 3, 4; path 3 is a root: 5."""
    latents = torch.arange(6.0)[:, None].split([2, 1, 2, 1])
    paths = [Path(latents=x, tip=None, parent=p) for x, p in zip(latents, (None, 0, 0, None), strict=True)]
    return ReasoningTree(question_id="q", question="", gold="", task="", paths=paths)


def one(batches: Sequence[PackedBatch] | object) -> PackedBatch:
    (batch,) = batches  # type: ignore[reportGeneralTypeIssues]
    return batch


def test_a_small_tree_is_laid_out_as_worked_by_hand():
    batch = one(pack([small_tree()], [[8, 9]]))
    assert batch.token_ids.tolist() == [[8, 9, 0, 0, 0, 0, 0, 0]]
    assert batch.is_latent.tolist() == [[False, False, True, True, True, True, True, True]]
    assert batch.latents[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 2]]  # both children stand at depth 4, the other root at 2
    assert batch.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 0, 1],
    ]
    assert batch.paths == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert batch.lengths.tolist() == [2, 3, 4, 1]
    assert batch.chains.tolist() == [[2, 3, 0, 0], [2, 3, 4, 0], [2, 3, 5, 6], [7, 0, 0, 0]]
    assert batch.num_tokens == 8


def test_only_what_leads_to_a_wanted_path_is_computed():
    batch = one(pack([small_tree()], [[]], wanted=[iter([2])]))
    assert batch.latents[:, 0].tolist() == [0, 1, 3, 4]
    assert batch.paths == ((0, 2),) and batch.chains.tolist() == [[0, 1, 2, 3]]
    assert list(pack([small_tree()], [[]], wanted=[[]])) == []
    assert list(pack([], [])) == []


def test_whole_trees_stay_in_one_batch_where_every_path_stands_by_itself():
    batches = list(pack([small_tree(), small_tree()], [[], [9]], pack_tokens=1, shared=False, whole=True))
    assert [batch.paths for batch in batches] == [tuple((i, p) for p in range(4)) for i in range(2)]
    assert [tuple(batch.token_ids.shape) for batch in batches] == [(4, 4), (4, 5)]


def test_a_long_chain_loses_its_root_end_and_stands_by_itself():
    batch = one(pack([small_tree()], [[9]], max_seq_length=2))
    # Paths 0 and 3 fit; of path 1 the latents 1, 2 are left, of path 2 the latents 3, 4.
    assert batch.latents[:, 0].tolist() == [0, 1, 1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [[0, 1, 2, 1, 2, 1, 2, 1]]
    assert batch.lengths.tolist() == [2, 2, 2, 1]
    assert batch.mask[0, 0, 4].int().tolist() == [1, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pack_tokens", [1, 40, 200, 10_000])
def test_every_path_reads_and_sees_its_own_chain_and_nothing_else(make_tree: Trees, shared: bool, pack_tokens: int):
    trees = [make_tree(seed, width=2, **shape) for seed, shape in enumerate(FORESTS * 3)]
    contexts = [list(range(1, 1 + n % 4)) for n in range(len(trees))]
    met: list[tuple[int, int]] = []
    for batch in pack(trees, contexts, pack_tokens=pack_tokens, shared=shared):
        met += batch.paths
        columns = batch.token_ids.shape[1]
        latents = torch.zeros(batch.token_ids.numel(), 2)
        latents[batch.is_latent.flatten()] = batch.latents
        for (tree, path), chain, length in zip(batch.paths, batch.chains, batch.lengths, strict=True):
            chain = chain[:length]
            assert torch.equal(latents[chain], trees[tree].chain_latents(path))
            row, at = int(chain[0]) // columns, chain % columns
            assert set((chain // columns).tolist()) == {row}
            depth = len(contexts[tree])
            assert batch.positions[row, at].tolist() == list(range(depth, depth + int(length)))
            for t in range(int(length)):
                seen = batch.mask[row, 0, at[t]].nonzero()[:, 0]
                assert seen[depth:].tolist() == at[: t + 1].tolist()
                assert batch.token_ids[row, seen[:depth]].tolist() == contexts[tree]
                assert not batch.is_latent[row, seen[:depth]].any()
    assert sorted(met) == [(n, i) for n, tree in enumerate(trees) for i in range(len(tree.paths))]


def test_nothing_shared_is_computed_twice_and_packs_stay_within_their_budget(make_tree: Trees):
    trees = [make_tree(seed, width=2, **shape) for seed, shape in enumerate(FORESTS * 3)]
    contexts = [[1, 2, 3]] * len(trees)
    sizes = [3 + sum(len(path.latents) for path in tree.paths) for tree in trees]
    for pack_tokens in (1, 100, 10_000):
        batches = list(pack(trees, contexts, pack_tokens=pack_tokens))
        assert sum(batch.num_tokens for batch in batches) == sum(sizes)
        for batch in batches:
            assert batch.token_ids.numel() <= max(pack_tokens, max(sizes))
    assert len(list(pack(trees, contexts, pack_tokens=1))) > 1
    assert any(row > 1 for batch in pack(trees, contexts, pack_tokens=10_000) for row in trees_in_rows(batch))


def trees_in_rows(batch: PackedBatch) -> list[int]:
    """How many trees stand in each row."""
    rows: dict[int, set[int]] = {}
    for (tree, _), chain in zip(batch.paths, batch.chains, strict=True):
        rows.setdefault(int(chain[0]) // batch.token_ids.shape[1], set()).add(tree)
    return [len(trees) for trees in rows.values()]


def test_padding_is_seen_by_itself_alone(make_tree: Trees):
    trees = [make_tree(seed, width=2, branches=(seed + 1,)) for seed in range(3)]
    for batch in pack(trees, [[]] * 3, pack_tokens=10_000):
        padding = batch.positions < 0
        own = torch.eye(padding.shape[1], dtype=torch.bool)
        for row in range(len(padding)):
            assert torch.equal(batch.mask[row, 0][padding[row]], own[padding[row]])
            assert not batch.mask[row, 0][~padding[row]][:, padding[row]].any()


def test_the_layout_depends_on_the_trees_alone(make_tree: Trees):
    trees = [make_tree(seed, width=2) for seed in range(5)]
    first, again = (list(pack(trees, [[1]] * 5, pack_tokens=60)) for _ in range(2))
    for one_batch, same in zip(first, again, strict=True):
        assert one_batch.paths == same.paths
        assert torch.equal(one_batch.mask, same.mask) and torch.equal(one_batch.latents, same.latents)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_even_widths_are_padded_and_no_score_changes(make_tree: Trees, tiny_lm: Folder, shared: bool):
    model, trees = QwenLatentPRM(tiny_lm).eval(), [make_tree(seed) for seed in range(3)]
    model.shares = shared
    found: list[dict[tuple[int, int], float]] = []
    for multiple in (1, 64):
        packs = list(pack(trees, [[3, 4, 5]] * 3, shared=shared, pack_tokens=80, multiple=multiple))
        assert all(batch.positions.shape[1] % multiple == 0 for batch in packs)
        with torch.no_grad():
            found.append({p: s for b in packs for p, s in zip(b.paths, model(b).value.tolist(), strict=True)})
    assert found[0] == pytest.approx(found[1], abs=1e-5)
