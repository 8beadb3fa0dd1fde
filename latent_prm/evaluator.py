"""STAGE 3: checkpoint + shards → how much the PRM improves the choice among paths, on questions it never saw.

latent-prm evaluate --checkpoint checkpoints/qwen_prm_…/best --data_dir prm_test
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from latent_prm.files import load_json, save_json
from latent_prm.grading import question_digest
from latent_prm.metrics import CHOSEN, METHODS, MOST_SUBSETS, Comparison, Interval, Method, Pool, compare
from latent_prm.model import QwenLatentPRM
from latent_prm.options import BUILTIN, EvaluateOptions
from latent_prm.plots import LABELS, NoMatplotlib, accuracy_curve, calibration_curve
from latent_prm.pretrained import pick_device
from latent_prm.selector import candidates
from latent_prm.shards import load_trees
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

ALL = "all tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate` found."""

    comparisons: dict[str, Comparison]
    """One per task; where there are several, also one of all together, which stands last."""
    skipped: dict[str, int]
    """Why questions were left out, and how many."""

    @property
    def overall(self) -> Comparison:
        """All questions together."""
        return list(self.comparisons.values())[-1]


def main(options: EvaluateOptions) -> Evaluation:
    """Run the stage: measure, show, save.

    Raises ValueError (or one of its kin) in plain words: no shard, no unseen question, latents of another width.
    """
    logging.basicConfig(format="[Evaluator] %(message)s")
    started = time.time()
    evaluation, bad_files = measure(options)
    print_evaluation(evaluation)
    facts = {"options": asdict(options), "bad_files": bad_files, "seconds": round(time.time() - started, 1)}
    save(evaluation, output_folder(options), facts)
    return evaluation


def measure(options: EvaluateOptions) -> tuple[Evaluation, list[str]]:
    """Load, score and compare; also the files that were left out, in words. Raises as `main`."""
    checkpoint = checkpoint_folder(options)
    bad_files: list[str] = []
    trees, seen = unseen(load_trees(options.data_dir, options.skip_bad_files, bad_files), checkpoint)
    model = QwenLatentPRM.from_pretrained(checkpoint, device=pick_device(options.device))
    check_width(model, trees[0], options)
    context = None if options.context is None else options.context == "question"
    scores = model.score_trees(trees, context=context, pack_tokens=options.pack_tokens)
    skipped = {"seen in training": seen}
    return evaluate(trees, scores, num_bootstrap=options.num_bootstrap, seed=options.seed, skipped=skipped), bad_files


def evaluate(
    trees: Sequence[ReasoningTree],
    scores: Sequence[Float[Tensor, " _"]],
    *,
    num_bootstrap: int = 2000,
    seed: int = 42,
    skipped: dict[str, int] | None = None,
) -> Evaluation:
    """Compare the ways of choosing, per task and over all tasks. Nothing is read or written.

    ``scores`` holds one predicted score per path of every tree, as `QwenLatentPRM.score_trees` returns them. Trees
    without a graded noisy path are left out and counted, on top of what was ``skipped`` before.
    Raises ValueError when no tree is left.
    """
    found = [(tree, candidates(tree, s)) for tree, s in zip(trees, scores, strict=True)]
    kept = [(tree, offered) for tree, offered in found if offered.paths]
    names = sorted({tree.task for tree, _ in kept})
    groups = {name: [pair for pair in kept if pair[0].task == name] for name in names}
    if len(groups) != 1:
        groups[ALL] = kept
    return Evaluation(
        comparisons={
            name: compare(
                Pool(
                    values=[offered.values for _, offered in group],
                    correct=[np.array(offered.correct) for _, offered in group],
                    scores=[np.array(offered.scores) for _, offered in group],
                    noise_free=_noise_free([tree for tree, _ in group]),
                ),
                num_bootstrap,
                seed,
            )
            for name, group in groups.items()
        },
        skipped={**(skipped or {}), "no graded path": len(found) - len(kept)},
    )


def _noise_free(trees: Sequence[ReasoningTree]) -> Float[np.ndarray, " Q"] | None:
    """Whether each tree's noise-free path is right; None unless all trees have one that was graded."""
    leaves = [[tree.paths[i] for i in tree.leaves() if tree.paths[i].noise_free] for tree in trees]
    if not all(paths and paths[0].answers for paths in leaves):
        return None
    return np.array([float(paths[0].answers[0].correct) for paths in leaves])


# --- loading ---------------------------------------------------------------------------------------------------------


def checkpoint_folder(options: EvaluateOptions) -> Path:
    """Where the PRM is."""
    if options.checkpoint != BUILTIN:
        return Path(options.checkpoint)
    from latent_prm.demo import prm_folder

    return prm_folder()


def unseen(trees: list[ReasoningTree], checkpoint: Path) -> tuple[list[ReasoningTree], int]:
    """The trees whose question the PRM was neither trained nor validated on, and how many others there were.

    A question is known by its text. Without the checkpoint's ``questions.json`` nothing can be told, said aloud.
    Raises ValueError when no unseen tree is left.
    """
    list_of_seen = checkpoint / "questions.json"
    if not list_of_seen.is_file():
        log.warning("%s has no questions.json: whether the PRM was trained on these questions is unknown.", checkpoint)
        return trees, 0
    used = {digest for part in load_json(list_of_seen).values() for digest in part}
    fresh = [tree for tree in trees if question_digest(tree.question) not in used]
    seen = [tree.question_id for tree in trees if question_digest(tree.question) in used]
    if seen:
        named = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
        log.warning("%d of %d questions were in the PRM's training and are left out: %s", len(seen), len(trees), named)
    if not fresh:
        raise ValueError(
            f"All {len(trees)} questions were in the PRM's training, so nothing can be measured on them. "
            "Collect others: latent-prm collect --split test --output_dir prm_test"
        )
    return fresh, len(seen)


def check_width(model: QwenLatentPRM, tree: ReasoningTree, options: EvaluateOptions) -> None:
    """Raises ValueError when the folder's latents (all trees of a folder are alike) are not what the PRM reads."""
    width = tree.paths[0].latents.shape[-1]
    if width != model.latent_dim:
        raise ValueError(
            f"The latents in {options.data_dir} are {width} wide, but the PRM in {options.checkpoint} reads latents "
            f"{model.latent_dim} wide. Type the --data_dir of the reasoner it was trained for, or another --checkpoint."
        )


# --- showing --------------------------------------------------------------------------------------------------------


def print_evaluation(evaluations: Evaluation | dict[str, Evaluation], console: Console | None = None) -> None:
    """Print, per task and for all together: every method's accuracy, the PRM's gains, and what is true in words.

    Several evaluations, by the name of their PRM, of the same paths share their tables.
    """
    console = console or Console(highlight=False, markup=False)
    if isinstance(evaluations, Evaluation):
        evaluations = {"PRM": evaluations}
    first = next(iter(evaluations.values()))
    for name in first.comparisons:
        by_prm = {prm: evaluation.comparisons[name] for prm, evaluation in evaluations.items()}
        console.print()
        console.print(_accuracy_table(by_prm, name))
        console.print()
        console.print(_gain_table(by_prm))
        console.print()
        for prm, comparison in by_prm.items():
            heading = [f"{prm}:"] if len(by_prm) > 1 else []
            for line in (*heading, *_about_scores(comparison), *_remarks(comparison), *verdict(comparison, prm)):
                console.print(line)
    for reason, count in first.skipped.items():
        if count:
            console.print(f"Questions left out ({reason}): {count}")


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    """A table that fits 80 columns where the numbers do."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _accuracy_table(by_prm: dict[str, Comparison], title: str) -> Table:
    first = next(iter(by_prm.values()))
    sizes = first.table_sizes
    title = f"{title}: {first.num_questions} questions, answered right, % [95 % interval over questions]"
    table = _table(title, "chosen by", [f"N = {size}" for size in sizes])
    for method in METHODS:
        for prm, comparison in by_prm.items() if method in CHOSEN else [("", first)]:
            if method in comparison.accuracy:
                shown = (_per_cent(comparison.accuracy[method][size]) for size in sizes)
                table.add_row(_label(method, prm), *shown)
    return table


def _gain_table(by_prm: dict[str, Comparison]) -> Table:
    first = next(iter(by_prm.values()))
    rivals = list(next(iter(first.differences.values())))
    columns = [*(f"over {LABELS[rival]}" for rival in rivals), "gap recovered"]
    table = _table("", f"gain at N = {first.num_paths}", columns)
    for method in CHOSEN:
        for prm, comparison in by_prm.items():
            gap = comparison.gap_recovered[method]
            share = "no gap" if gap is None else f"{100 * gap:.0f} %"
            gains = (_per_cent(interval, "+") for interval in comparison.differences[method].values())
            table.add_row(_label(method, prm), *gains, share)
    return table


def _label(method: Method, prm: str) -> str:
    """A method's name; where several PRMs share a table, short and with the PRM's."""
    if prm in ("", "PRM") or method not in CHOSEN:
        return LABELS[method]
    return f"{'best' if method == 'best' else 'vote'} by {prm}"


def _per_cent(interval: Interval, sign: str = "") -> str:
    shares = (interval.mean, interval.low, interval.high)
    mean, low, high = (format(round(100 * share, 1) + 0.0, f"{sign}.1f") for share in shares)  # + 0.0: never "-0.0"
    return f"{mean} [{low}, {high}]"


def _about_scores(comparison: Comparison) -> list[str]:
    """How well the predicted scores tell right from wrong paths, and how well they predict."""
    lines = ["AUROC within questions: none, for no question has both right and wrong paths"]
    if comparison.auroc is not None:
        area = f"{comparison.auroc.mean:.3f} [{comparison.auroc.low:.3f}, {comparison.auroc.high:.3f}]"
        lines = [f"AUROC within questions: {area}, mean of the {comparison.num_mixed} mixed ones"]
    if comparison.pooled_auroc is not None:
        lines.append(f"AUROC pooled over all paths (mostly how hard questions are): {comparison.pooled_auroc:.3f}")
    return [*lines, f"Brier {comparison.brier:.3f}, calibration error (ECE) {comparison.calibration_error:.3f}"]


def _remarks(comparison: Comparison) -> list[str]:
    """What a reader of the table has to know, if anything."""
    lines = []
    if any(size in comparison.sampled for size in comparison.table_sizes):
        lines.append(f"Votes are over a sample of {MOST_SUBSETS} sets of paths where there are more.")
    if "noise_free" not in comparison.accuracy:
        lines.append("Some questions have no noise-free path, so there is no row for it.")
    if comparison.num_scored > comparison.num_questions * comparison.num_paths:
        lines.append(f"Some questions have more than {comparison.num_paths} paths: N stops at the fewest of any.")
    return lines


def verdict(comparison: Comparison, prm: str = "PRM") -> list[str]:
    """In words, a sentence per way of listening to the PRM: whether it beats majority and the noise-free path.

    It beats a rival when the whole interval of the paired difference lies above zero.
    """
    sentences = []
    for method, by_rival in comparison.differences.items():
        said = [f"{_outcome(interval)} the {LABELS[rival]}" for rival, interval in by_rival.items()]
        sentences.append(f"With {comparison.num_paths} paths, {_label(method, prm)} {' and '.join(said)}.")
    return sentences


def _outcome(difference: Interval) -> str:
    if difference.low > 0:
        return "beats"
    return "loses to" if difference.high < 0 else "does not measurably differ from"


# --- saving ---------------------------------------------------------------------------------------------------------


def output_folder(options: EvaluateOptions) -> Path:
    """Where the results go."""
    if options.output_dir is not None:
        return Path(options.output_dir)
    return Path("reports") if options.checkpoint == BUILTIN else Path(options.checkpoint) / "evaluation"


def save(evaluation: Evaluation, folder: Path, facts: dict[str, object]) -> None:
    """Write evaluation.json (``facts`` say what was run) and, with matplotlib, accuracy.png and calibration.png."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {**facts, "versions": _versions(), **asdict(evaluation)}
    save_json(found, folder / "evaluation.json")
    print(f"Saved {folder / 'evaluation.json'}")
    try:
        accuracy_curve(evaluation.overall, folder / "accuracy.png")
        calibration_curve(evaluation.overall.bins, folder / "calibration.png")
        print(f"Saved {folder / 'accuracy.png'} and {folder / 'calibration.png'}")
    except NoMatplotlib as missing:
        print(missing)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("latent-prm", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a folder of sources
            found[package] = "not installed"
    return found
