"""The Python API: its names, the examples in its docstrings, and that it takes what a person would type."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import latent_prm
from latent_prm import Question, QwenLatentPRM, Reasoner, ReasoningTree, choose, load_task
from latent_prm.tasks import as_question
from latent_prm.tree import Answer
from latent_prm.tree import Path as LatentPath

Trees = Callable[..., ReasoningTree]
APPLES = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"
MOVES = "Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"

# What others have written programs with. A change here is a change for all of them.
SIGNATURES = {
    "Answer": "*, text, value, correct, truncated=False, log_probability=None",
    "Choice": "value, share, index, probability=None",
    "Client": "url, token, timeout=120.0",
    "Client.score": "self, paths, question=''",
    "Client.solve": "self, question, *, task=None, num_paths=None, seed=None, watch=None",
    "Path": "*, latents, tip, parent=None, agent='solo', noise_free=False, answers=<factory>, prm_score=None, "
    "score=None, num_correct=None, num_answers=None, hidden=None",
    "QwenLatentPRM": "model_path=None, latent_dim=None, pooling_strategy='mean', dropout_prob=0.1, *, "
    "second_head=False, reads=('fed',), backbone=None, tokenizer=None",
    "QwenLatentPRM.from_pretrained": "checkpoint, *, device='cpu'",
    "QwenLatentPRM.score": "self, trees, head='value', **settings",
    "QwenLatentPRM.score_trees": "self, trees, context=None, pack_tokens=16384, max_seq_length=None, head='value'",
    "QwenLatentPRM.predict_scores": "self, latent_sequence, attention_mask=None, questions=None, head='value'",
    "QwenLatentPRM.predict_step_scores": "self, latent_sequence, attention_mask=None, questions=None, head='value'",
    "Question": "id, text, gold, kind='text', steps=()",
    "Reasoner.from_pretrained": "model_path='builtin', *, device='auto', dtype='auto', revision=None, align=None, "
    "compiled=False, weights=True",
    "Reasoner.grow": "self, questions, task=None, growth=None, steer=None, roots=None, **settings",
    "Reasoner.growth": "self, *, pipeline='solo', num_paths=None, branches=None, latent_steps=None, "
    "answers_per_leaf=1, diversity_strategy='noise', noise=None, soft_temperature=None, dropout=None, noise_free=True, "
    "keep_hidden=False, until_mixed=False, think=False, temperature=0.0, top_p=1.0, max_new_tokens=None, seed=42",
    "ReasoningTree": "*, question_id, question, gold, task, paths, steps=()",
    "ReasoningTree.back_up": "self",
    "ReasoningTree.chain": "self, i",
    "ReasoningTree.children": "self, i",
    "ReasoningTree.leaves": "self",
    "ReasoningTree.offered": "self",
    "ReasoningTree.picture": "self, scores=None, siblings=8",
    "ReasoningTree.show": "self, width=100, siblings=8, scores=None",
    "choose": "tree, scores, how='weighted_vote', lower=None",
    "load_task": "spec",
    "load_trees": "folder, skip_bad_files=False, left_out=None",
}


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner.from_pretrained("builtin", device="cpu")


@pytest.fixture(scope="module")
def prm() -> QwenLatentPRM:
    return QwenLatentPRM.from_pretrained("builtin")


@pytest.fixture(scope="module")
def tree(reasoner: Reasoner) -> ReasoningTree:
    return reasoner.grow(MOVES, num_paths=4)


def test_the_stable_names_are_these() -> None:
    assert set(latent_prm.__all__) == {name.partition(".")[0] for name in SIGNATURES}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signature_of_a_stable_name_is_this(name: str) -> None:
    thing = latent_prm
    for part in name.split("."):
        thing = getattr(thing, part)
    assert callable(thing)
    typed = ", ".join(
        ("*, " if first else "") + re.sub(r": .*?(?= = |$)", "", str(parameter)).replace(" = ", "=")
        for parameter, first in with_star(inspect.signature(thing))
    )
    assert typed == SIGNATURES[name]


def with_star(signature: inspect.Signature) -> list[tuple[inspect.Parameter, bool]]:
    """Each parameter, and whether the bare star stands before it."""
    found, seen = [], False
    for parameter in signature.parameters.values():
        first = parameter.kind is parameter.KEYWORD_ONLY and not seen
        seen = seen or first
        found.append((parameter, first))
    return found


def test_the_examples_in_the_docstrings_are_true(reasoner: Reasoner, prm: QwenLatentPRM, tree: ReasoningTree) -> None:
    names = {"reasoner": reasoner, "prm": prm, "tree": tree, "as_question": as_question}
    documented = [latent_prm, as_question, choose, Reasoner.grow, QwenLatentPRM.score, QwenLatentPRM.from_pretrained]
    documented += [ReasoningTree.show, ReasoningTree.picture]
    for thing in documented:
        tests = doctest.DocTestFinder(recurse=False).find(thing, getattr(thing, "__qualname__", "latent_prm"), False)
        examples = [test for test in tests if test.examples]
        assert examples, thing
        for test in examples:
            test.globs = dict(names)
            said: list[str] = []
            assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_type_checkers_are_told_that_it_is_typed_and_python_finds_names_without_torch() -> None:
    assert (Path(latent_prm.__file__).parent / "py.typed").is_file()
    run = "import latent_prm as l, sys; l.Question, l.Choice, l.choose, l.load_task; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- growing ---------------------------------------------------------------------------------------------------------


def test_a_text_grows_the_tree_that_its_question_grows(reasoner: Reasoner) -> None:
    question, tree = as_question(APPLES), reasoner.grow(APPLES, num_paths=4)
    (same,) = reasoner.grow([question], load_task("arithmetic"), reasoner.growth(num_paths=4))
    assert (same.question_id, same.gold, same.task, same.steps) == (
        "arithmetic-" + question.id[-16:],
        "17",
        "arithmetic",
        ("17",),
    )
    assert (tree.question_id, tree.gold, tree.task, tree.steps) == (same.question_id, "17", "arithmetic", ("17",))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(tree.paths, same.paths, strict=True))
    assert [path.prm_score for path in tree.paths] == [path.prm_score for path in same.paths]


def test_a_list_grows_a_list_each_by_its_own_task(reasoner: Reasoner) -> None:
    drawn = load_task("search").questions("test", 0, 1)
    trees = reasoner.grow([APPLES, MOVES, *drawn], num_paths=2)
    assert [each.task for each in trees] == ["arithmetic", "search", "search"]
    assert all(each.graded and each.paths[0].prm_score is not None for each in trees)
    by_name = reasoner.grow(drawn, "search", num_paths=2)
    assert [path.answers for path in by_name[0].paths] == [path.answers for path in trees[2].paths]
    assert isinstance(reasoner.grow(drawn[0], num_paths=1), ReasoningTree)
    assert reasoner.grow([]) == []


def test_what_has_no_gold_is_neither_right_nor_wrong(reasoner: Reasoner) -> None:
    tree = reasoner.grow("What is 2 + 3 ?", num_paths=2)
    assert (tree.gold, tree.graded) == ("", False)
    assert {(path.prm_score, path.num_correct, path.num_answers) for path in tree.paths} == {(None, None, None)}
    assert "✗" not in tree.show() and "no gold" in tree.show() and "unknown" in tree.show()


def test_a_question_made_by_hand_is_graded_by_its_kind(reasoner: Reasoner) -> None:
    tree = reasoner.grow(Question("mine-1", APPLES, gold="17.0", kind="maths"), num_paths=1)
    assert tree.task == "mine"
    assert tree.paths[0].answers[0].correct == (tree.paths[0].answers[0].value == "17")


def test_what_would_be_ignored_is_refused(reasoner: Reasoner) -> None:
    with pytest.raises(ValueError, match="growth says how to grow, so num_paths, seed would be ignored"):
        reasoner.grow(APPLES, growth=reasoner.growth(), num_paths=4, seed=1)
    with pytest.raises(ValueError, match="unknown task 'arithmetik'"):
        reasoner.grow(APPLES, "arithmetik")
    with pytest.raises(ValueError, match="The question is empty"):
        reasoner.grow(" ")


# --- scoring and choosing --------------------------------------------------------------------------------------------


def test_a_tree_is_scored_as_among_others(prm: QwenLatentPRM, reasoner: Reasoner, tree: ReasoningTree) -> None:
    other = reasoner.grow(APPLES, num_paths=2)
    alone, both = prm.score(tree), prm.score([tree, other])
    assert torch.equal(alone, prm.score_trees([tree])[0])
    assert [len(each) for each in both] == [5, 3]
    assert torch.allclose(both[0], alone, atol=1e-6)
    assert torch.equal(prm.score(tree, context=False), prm.score_trees([tree], context=False)[0])


def test_choosing_by_a_prm_is_choosing_by_its_scores(prm: QwenLatentPRM, tree: ReasoningTree) -> None:
    scores = prm.score(tree)
    assert choose(tree, prm, "best") == choose(tree, scores, "best")
    assert choose(tree, prm).value == tree.paths[choose(tree, prm).index].answers[0].value == "10 20"
    with pytest.raises(ValueError, match="4 scores for 5 paths: give one for each"):
        choose(tree, scores[1:])


# --- showing ---------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags of a text that closes each of them, and what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.found: list[str] = []
        self.shown: list[str] = []
        self.feed(text)
        assert not self.opened

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)
        if tag != "br":
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def test_a_notebook_shows_every_path_and_scores_in_colours(make_tree: Trees) -> None:
    tree = make_tree(3, branches=(3, 2))
    tags = Tags(tree._repr_html_())
    assert (tags.found.count("circle"), tags.found.count("path")) == (10, 6)
    assert set(tags.found) <= {"div", "br", "small", "svg", "g", "title", "circle", "text", "path"}
    low, high = tree.picture(torch.zeros(10)), tree.picture(torch.ones(10))
    assert low.count('fill="rgb(213,94,0)"') == high.count('fill="rgb(0,114,178)"') == 10
    assert tree.picture(torch.full((10,), 0.5)).count('fill="rgb(190,190,190)"') == 10
    assert "1.00  ✗" in high and "1.00  ✓" in high
    assert high._repr_html_() == high


def test_a_picture_never_is_what_a_text_says(make_tree: Trees) -> None:
    evil = "<script>alert(1)</script><img src=x onerror='a()'>"
    tree = make_tree(0, question=evil)
    tree.paths[1].agent = '"><script>'
    tree.paths[0].answers = [Answer(text=evil, value=evil, correct=False)]
    tags = Tags(tree.picture())
    assert "script" not in tags.found and "img" not in tags.found
    assert any(evil in shown for shown in tags.shown)


def test_many_siblings_are_counted_and_a_deep_tree_is_drawn(make_tree: Trees) -> None:
    wide = make_tree(0, branches=(20,), noise_free=False)
    assert Tags(wide.picture()).found.count("circle") == 9 and "… 12 more" in wide.picture()
    paths = [LatentPath(latents=torch.zeros(1, 2), tip=None, parent=i - 1 if i else None) for i in range(1500)]
    deep = ReasoningTree(question_id="q", question="?", gold="", task="text", paths=paths)
    assert Tags(deep.picture()).found.count("circle") == 1500


def test_scores_that_do_not_fit_are_refused(make_tree: Trees) -> None:
    tree = make_tree(0)
    with pytest.raises(ValueError, match="3 scores for 10 paths: give one for each"):
        tree.show(scores=torch.zeros(3))
    assert tree.show(scores=torch.full((10,), 0.25)).count("p 0.25") == 10
    assert "p 0" not in tree.show()
