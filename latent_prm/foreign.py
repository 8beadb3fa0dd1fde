"""Trees that another program grew, in the nested layout: hides which of its labels are believed, and why.

- An answer (of a Judger, or of the path itself) belongs to the path it was decoded from, and labels are worked out from
  the answers, as for our own trees. ``final_answer`` and ``is_correct`` of a question are about no single path.
- A question without a graded answer keeps the ``prm_score`` it came with, but for paths from which no Judger was
  reached: they were never expanded, and their 0 is no label. Nor is a Judger's 0.5: it stands for "not graded". A mean
  that such numbers went into is taken anew without them. Where no Judger was recorded, the last agent stands in for it.
- ``score`` is a guess of that program. It becomes our ``score`` only when asked for, and never a ``prm_score``.
- ``question_id`` is "q_0" for most, so one text is one question. What was grown for it in several files becomes one
  tree of several roots; the very same growth counts once.
- ``hidden_states`` are not aligned, so no path has a tip.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from latent_prm import files, nested
from latent_prm.files import BadFile
from latent_prm.grading import canonical, question_digest
from latent_prm.nested import Entry, Node
from latent_prm.tree import Path, ReasoningTree

UNKNOWN = "unknown"
"""The task of questions whose metadata names none."""


class Source(NamedTuple):
    """A file that was read."""

    name: str
    sha256: str
    num_questions: int
    said: dict[str, str]
    """What the metadata beside it says of task, method, model and split."""


@dataclass(slots=True, kw_only=True)
class Harvest:
    """What a set of files holds, and what became of it."""

    trees: list[ReasoningTree] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    num_nested: int = 0
    """Files of this layout, also those in ``bad``."""
    counts: Counter[str] = field(default_factory=Counter)
    """growths; and of the paths: labelled, withdrawn (the label it came with was none), corrected (it was another)."""
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By reason: where each thing stood that was left out."""
    bad: list[str] = field(default_factory=list)
    """The files that could not be read, in words."""

    def say(self) -> list[str]:
        """What was read and what was not, in sentences."""
        numbers = ", ".join(f"{name} {number}" for name, number in self.table())
        left_out = [
            f"Left out, {reason}: {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
            for reason, places in self.left_out.items()
        ]
        return [numbers, *left_out, *self.doubts()]

    def table(self) -> list[tuple[str, int]]:
        """What was counted, by name."""
        paths, counts = sum(len(tree.paths) for tree in self.trees), self.counts
        return [
            ("nested files", len(self.sources)),
            ("questions", len(self.trees)),
            ("growths", counts["growths"]),
            ("paths", paths),
            ("labelled", counts["labelled"]),
            ("censored", paths - counts["labelled"]),
            ("labels withdrawn", counts["withdrawn"]),
            ("labels corrected", counts["corrected"]),
        ]

    def doubts(self) -> list[str]:
        """What nobody can tell from the files, in sentences."""
        shared = "That program let siblings share one cache, so a label may partly be that of the siblings before it."
        untold = "Nothing says that these are training questions, and that program collects on the test split."
        return [shared] + [untold] * any(source.said.get("split") != "train" for source in self.sources)


@dataclass(slots=True, kw_only=True)
class _Growth:
    """One question as it was grown once."""

    where: str
    question: str
    gold: str
    nodes: list[Node]
    """Those that became paths."""
    paths: list[Path]
    believed: list[float | None] | None
    """What is to be believed of the labels that came; None: the answers are."""
    task: str = UNKNOWN

    @property
    def fingerprint(self) -> str:
        """Equal for the same paths and answers in the same order."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.parent} {path.agent} {path.answers} {list(path.latents.shape)}".encode())
            digest.update(path.latents.numpy().data)
        return digest.hexdigest()


def beside(path: FilePath) -> dict[str, Any] | None:
    """What the metadata of a nested file says; {} where there is none. None: it is of another kind of file."""
    metadata = path.with_name(f"{path.stem}_metadata.json")
    if not metadata.exists():
        return {}
    try:
        found = files.load_json(metadata)
    except BadFile:
        return None
    return found if type(found) is dict and "format" not in found else None


def looks_foreign(path: FilePath) -> bool:
    """Whether a file holds something else than a shard of ours; not where it cannot be read."""
    try:
        if nested.load(path) is not None:
            return True
        found = files.load_tensors(path)
    except BadFile:
        return False
    return type(found) is not dict or "format" not in found


def unreadable(path: FilePath) -> str:
    """Why a file cannot be read as data, naming it; "" where it can."""
    try:
        nested.load(path)
    except BadFile as error:
        return str(error)
    return ""


def read(paths: Iterable[FilePath], use_heuristic_scores: bool = False) -> Harvest:
    """The trees of all nested files among these, labelled as the top of this room says.

    A file that cannot be read is left out and named in ``bad``: whether that may be is the caller's to say. With
    ``use_heuristic_scores`` a path's ``score`` is that program's guess, else the share of agreeing answers (None in a
    question without answers).

    Raises:
        BadFile: two files do not belong together: they differ in a question's gold answer or in the latents' width. Or
            a guess that was asked for is not in 0..1.
    """
    harvest, growths = Harvest(), defaultdict[str, list[_Growth]](list)
    for path in paths:
        try:
            if (questions := nested.load(path)) is None:
                harvest.left_out["a file of another kind"].append(str(path))
                continue
            harvest.num_nested += 1
            entries = nested.check(path, questions)
        except BadFile as error:
            harvest.bad.append(str(error))
            continue
        facts = beside(path) or {}
        said = {key: str(facts[key]) for key in ("task", "method", "model", "split") if facts.get(key)}
        harvest.sources.append(Source(path.name, _sha256(path), len(entries), said))
        for growth in filter(None, (_growth(entry, harvest.left_out) for entry in entries)):
            growth.task = said.get("task", UNKNOWN)
            growths[question_digest(growth.question)].append(growth)
    for digest, grown in growths.items():
        first = next(iter(growths.values()))[0]
        harvest.trees.append(_tree(digest, grown, first, use_heuristic_scores, harvest))
    return harvest


# --- a question -----------------------------------------------------------------------------------------------------


def _growth(entry: Entry, left_out: dict[str, list[str]]) -> _Growth | None:
    """Nodes with latents as paths, parents first, and every answer at the last of them on its chain."""
    if len(entry.batch_indices) > 1:
        left_out["paths of several questions under the name of one"].append(entry.where)
        return None
    chains = {name: chain for name in entry.nodes if (chain := _chain(entry.nodes, name))}
    growth = _Growth(where=entry.where, question=entry.question, gold=entry.gold, nodes=[], paths=[], believed=None)
    index: dict[Any, int] = {}
    graded: list[tuple[int, Node]] = []
    for name in sorted(entry.nodes, key=lambda name: len(chains.get(name, ()))):
        node, above = entry.nodes[name], [index[k] for k in chains.get(name, ()) if k in index]
        if name not in chains:
            left_out["no way to a root"].append(node.where)
            continue
        if node.latents is not None:
            index[name] = len(growth.paths)
            growth.nodes.append(node)
            parent = above[-1] if above else None
            growth.paths.append(Path(latents=node.latents, tip=None, parent=parent, agent=node.agent))
            above.append(index[name])
        elif not node.judger:
            left_out["no latents"].append(node.where)
        elif not above:
            left_out["an answer without latents before it"].append(node.where)
        elif node.answer is None and _label(node) is None:
            left_out["an answer that was not graded"].append(node.where)
        if node.answer is not None and above:
            graded.append((above[-1], node))
    carried_on = {path.parent for path in growth.paths}
    for place, node in graded:
        if place in carried_on:
            left_out["an answer at a path that another carries on from"].append(node.where)
        elif node.answer is not None:
            growth.paths[place].answers.append(node.answer)
    if not growth.paths:
        left_out["no path with latents"].append(entry.where)
        return None
    if not any(path.answers for path in growth.paths):
        labels = _believed(entry.nodes, chains)
        growth.believed = [labels[name] for name in index]
    return growth


def _chain(nodes: dict[int | str, Node], name: int | str) -> list[int | str] | None:
    """From the root to this one; None where a parent is not there, or is its own ancestor."""
    chain = [name]
    while (parent := nodes[chain[-1]].parent) is not None:
        if parent not in nodes or len(chain) == len(nodes):
            return None
        chain.append(parent)
    return chain[::-1]


def _label(node: Node) -> float | None:
    return None if node.judger and node.prm_score == 0.5 else node.prm_score


def _believed(nodes: dict[int | str, Node], chains: dict[int | str, list[int | str]]) -> dict[int | str, float | None]:
    """The labels that came, but for those of unexpanded paths, and with the means that these went into taken anew."""
    judgers = [name for name in chains if nodes[name].judger]
    last = max((nodes[name].agent_idx for name in chains), default=0)
    ends = judgers or [name for name in chains if nodes[name].agent_idx == last]
    reached = {k for name in ends if _label(nodes[name]) is not None for k in chains[name]}
    children = defaultdict(list)
    for name in chains:
        children[nodes[name].parent].append(name)
    labels: dict[int | str, float | None] = {}
    anew: set[int | str] = set()
    for name in sorted(chains, key=lambda name: -len(chains[name])):  # children before parents
        labels[name] = _label(nodes[name]) if name in reached else None
        if any(k not in reached or k in anew for k in children[name]):
            known = [label for k in children[name] if (label := labels[k]) is not None]
            labels[name] = sum(known) / len(known) if known else None
            anew.add(name)
    return labels


# --- a tree ---------------------------------------------------------------------------------------------------------


def _tree(
    digest: str, growths: list[_Growth], first: _Growth, use_heuristic_scores: bool, harvest: Harvest
) -> ReasoningTree:
    """One tree of all growths of a question, labelled."""
    different: dict[str, _Growth] = {}
    for growth in growths:
        _check_kin(growth, growths[0], first)
        if different.setdefault(growth.fingerprint, growth) is not growth:
            harvest.left_out["the same growth once more"].append(growth.where)
    task = next((growth.task for growth in growths if growth.task != UNKNOWN), UNKNOWN)
    text, gold = growths[0].question, growths[0].gold
    tree = ReasoningTree(question_id=f"{task}-{digest}", question=text, gold=gold, task=task, paths=[])
    for growth in different.values():
        roots_at = len(tree.paths)
        for path in growth.paths:
            path.parent = None if path.parent is None else path.parent + roots_at
            tree.paths.append(path)
    tree.back_up()
    harvest.counts["growths"] += len(different)
    for growth in different.values():
        for k, (node, path) in enumerate(zip(growth.nodes, growth.paths, strict=True)):
            if growth.believed is not None:
                path.prm_score = growth.believed[k]
            if use_heuristic_scores and (guess := nested.share(node.where, "score", node.guess)) is not None:
                path.score = guess
            came, label = node.prm_score, path.prm_score
            harvest.counts["labelled"] += label is not None
            harvest.counts["withdrawn"] += came is not None and label is None
            harvest.counts["corrected"] += came is not None and label is not None and abs(came - label) > 1e-6
    return tree


def _check_kin(growth: _Growth, same: _Growth, first: _Growth) -> None:
    if growth.gold != same.gold and canonical(growth.gold) != canonical(same.gold):
        raise BadFile(
            f"{growth.where} is also {same.where}, but its gold answer is {growth.gold!r} here and {same.gold!r} "
            "there. Move one of the two elsewhere."
        )
    width = first.paths[0].latents.shape[1]
    if odd := [path.latents.shape[1] for path in growth.paths if path.latents.shape[1] != width]:
        raise BadFile(
            f"{growth.where} has latents {odd[0]} wide, but those of {first.where} are {width}. Keep the files of one "
            "reasoner in one folder: move one of the two."
        )


def _sha256(path: FilePath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
