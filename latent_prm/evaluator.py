"""STAGE 3: checkpoint + shards → how much the PRM improves the choice among paths, on questions it never saw.

latent-prm evaluate --checkpoint checkpoints/qwen_prm_…/best --data_dir prm_data_test
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from latent_prm import confidence, kinship, preflight
from latent_prm.doubt import scores_and_bounds
from latent_prm.evaluation import Evaluation, Scored, Scores, evaluate, fewer_paths, first, judged, pool_of
from latent_prm.files import load_json, save_json
from latent_prm.foreign import UNKNOWN
from latent_prm.grading import question_digest
from latent_prm.model import QwenLatentPRM, checked_folder
from latent_prm.options import BUILTIN, EvaluateOptions
from latent_prm.plots import NoMatplotlib, accuracy_curve, calibration_curves, coverage_picture, steps_curve
from latent_prm.pretrained import pick_device, versions
from latent_prm.reasoner import Reasoner
from latent_prm.rivals import RIVALS, controls, fit_rivals, score_all
from latent_prm.shards import TEST_DATA, NoData, load_trees, no_data, scan
from latent_prm.step_truth import step_truth
from latent_prm.tables import of_first, print_evaluation, verdict
from latent_prm.tree import ReasoningTree
from latent_prm.truth import Steps, step_scores, sure_thoughts

__all__ = ["Evaluation", "evaluate", "main", "measure", "print_evaluation", "save", "verdict"]

EXAMPLE = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"

log = logging.getLogger(__name__)


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
    save_confidences(evaluation, options)
    print(f"Next: {next_command(options)}")
    return evaluation


def measure(options: EvaluateOptions) -> tuple[Evaluation, list[str]]:
    """Load, score and compare; also the files that were left out, in words. Raises as `main`."""
    folders, device = [checked_folder(checkpoint) for checkpoint in options.checkpoint], pick_device(options.device)
    own = [checkpoint for checkpoint in options.checkpoint if checkpoint != BUILTIN and options.calibrate_on]
    for place in (output_folder(options), *own):
        preflight.can_write(place)
    for name, folder in folders_of(options).items():
        if not any(scan(folder)):
            raise nothing_in(name, folder)
        for checkpoint in options.checkpoint if name != "rivals_on" else ():
            preflight.check_data(folder, checkpoint, f"--{name}")
    bad_files: list[str] = []
    trees, seen = unseen(load("data_dir", options, bad_files), folders)
    apart = others("calibrate_on", trees, options, folders)
    reasoner = thinker(options.data_dir) if options.rivals else None
    checked_apart = apart if reasoner is not None and apart and grown_by(reasoner, options.calibrate_on) else []
    here, of = (kinship.growers(place) if place else () for place in (options.data_dir, options.calibrate_on))
    said, said_apart, fitted = [], [], []
    for checkpoint, folder in zip(options.checkpoint, folders, strict=True):
        model = QwenLatentPRM.from_pretrained(folder, device=device)
        for name, tree in (("data_dir", trees[0]), *(("calibrate_on", tree) for tree in apart[:1])):
            check_width(model, tree, options, name)
        said.append(listen(model, trees, options))
        said_apart.append(after_each_latent(model, checked_apart, options))
        calibration = None
        if apart:
            pool = pool_of(apart, *_opinions(model, apart, options))
            fit = confidence.fit(pool, options.seed, options.num_bootstrap)
            calibration = replace(fit, reasoners=of, tasks=tuple(sorted({tree.task for tree in apart})))
            fitted.append(calibration)
        kinship.believed(checkpoint, model, calibration, here)
    chance = {"num_bootstrap": options.num_bootstrap, "seed": options.seed}
    scored, skipped = together(said, *rivals(trees, options, reasoner)), {"seen in training": seen}
    evaluation = evaluate(trees, scored, confidences=fitted or None, skipped=skipped, **chance)
    if reasoner is not None:
        steps = [own.steps for own in said]
        checked = step_truth(reasoner, trees, steps, checked_apart, said_apart, **chance)
        evaluation = replace(evaluation, step_truth=checked)
    return evaluation, bad_files


# --- scoring --------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What one PRM says of the paths."""

    scores: Scores
    lower: Scores | None
    steps: Steps
    controls: dict[str, Scores]
    fewer: dict[int, tuple[Scores, Scores | None]] | None
    """Scores and lower bounds of first paths alone; None where each path is scored by itself anyway."""


def listen(model: QwenLatentPRM, trees: Sequence[ReasoningTree], options: EvaluateOptions) -> Said:
    """What a PRM says of whole paths, of how low they may be, after each latent, and of spoilt evidence."""
    scores, lower = _opinions(model, trees, options)
    spoilt: dict[str, Scores] = {}
    if options.rivals and len({tree.question for tree in trees}) > 1:
        size = options.pack_tokens
        spoilt = dict(controls(model, trees, options.seed, context=_context(options), pack_tokens=size))
    fewer = None
    if model.sees == "tree":
        fewer = {k: _opinions(model, [first(tree, k) for tree in trees], options) for k in fewer_paths(trees)}
    return Said(scores, lower, after_each_latent(model, trees, options), spoilt, fewer)


def after_each_latent(model: QwenLatentPRM, trees: Sequence[ReasoningTree], options: EvaluateOptions) -> Steps:
    """`truth.step_scores`, as the options want it."""
    return step_scores(model, trees, context=_context(options), pack_tokens=options.pack_tokens)


def _opinions(
    model: QwenLatentPRM, trees: Sequence[ReasoningTree], options: EvaluateOptions
) -> tuple[Scores, Scores | None]:
    """The scores, and lower bounds of them; None where the PRM has no dropout or is not asked as it was trained."""
    if model.dropout.p and options.context is None:
        return scores_and_bounds(model, trees, seed=options.seed, pack_tokens=options.pack_tokens)
    return model.score_trees(trees, context=_context(options), pack_tokens=options.pack_tokens), None


def _context(options: EvaluateOptions) -> bool | None:
    return None if options.context is None else options.context == "question"


def together(said: Sequence[Said], rivals: dict[str, Scores], ordinal: frozenset[str]) -> Scored:
    """What all the PRMs and their rivals say. Raises ValueError where the PRMs differ in whom they see."""
    if len({own.fewer is None for own in said}) > 1:
        raise ValueError(
            "Some of these PRMs score a path alone and some beside its siblings, so they share no table: "
            "type a --checkpoint of one kind at a time."
        )
    names = [name for name in said[0].controls if all(name in own.controls for own in said)]
    fewer = [own.fewer for own in said if own.fewer is not None]
    return replace(
        _alike([(own.scores, own.lower) for own in said]),
        steps=[own.steps for own in said],
        fewer={k: _alike([own[k] for own in fewer]) for k in fewer[0]} if fewer else None,
        rivals=rivals,
        ordinal=ordinal,
        controls={name: [own.controls[name] for own in said] for name in names},
    )


def _alike(opinions: Sequence[tuple[Scores, Scores | None]]) -> Scored:
    lower = [low for _, low in opinions if low is not None]
    return Scored(prms=[scores for scores, _ in opinions], lower=lower if len(lower) == len(opinions) else None)


def rivals(
    trees: Sequence[ReasoningTree], options: EvaluateOptions, reasoner: Reasoner | None
) -> tuple[dict[str, Scores], frozenset[str]]:
    """What the rivals say of the trees, and which of them (all that need no training) only tell an order.

    Those that learn take part where there are questions for them to learn from; ``surety`` where the ``reasoner`` of
    the trees is there to read them.
    """
    known = dict(RIVALS) if options.rivals else {}
    if reasoner is not None:
        known["surety"] = sure_thoughts(reasoner)
    ordinal = frozenset(known)
    if options.rivals_on is not None:
        known |= fit_rivals(others("rivals_on", trees, options), options.seed)
    return dict(score_all(trees, known)), ordinal


# --- the built-in reasoner ------------------------------------------------------------------------------------------


def thinker(folder: str) -> Reasoner | None:
    """The built-in reasoner, whose latents can be read as numbers, where it alone grew the trees of a folder."""
    if BUILTIN not in {model for model, _ in _growers(folder)}:
        return None
    reasoner = Reasoner.from_pretrained(BUILTIN, device="cpu", dtype="float32")
    if not grown_by(reasoner, folder):
        log.warning("%s was not grown by this built-in reasoner alone: its steps are not checked.", folder)
        return None
    return reasoner


def grown_by(reasoner: Reasoner, folder: str | None) -> bool:
    """Whether all shards of a folder say that their trees are of this reasoner, and of its weights."""
    return folder is not None and _growers(folder) == {(reasoner.name, reasoner.digest())}


def _growers(folder: str) -> set[tuple[Any, Any]]:
    """Who grew the trees of a folder, as its shards say: model and weights."""
    return {(said.get("model"), said.get("weights")) for said in kinship.facts(folder)}


# --- loading ---------------------------------------------------------------------------------------------------------


SPLITS = {"data_dir": "test", "calibrate_on": "validation", "rivals_on": "train"}
"""Where the questions of a folder come from, by the option that names it."""


def folders_of(options: EvaluateOptions) -> dict[str, str]:
    """The folders that were typed, by option."""
    return {name: folder for name in SPLITS if (folder := getattr(options, name)) is not None}


def load(name: str, options: EvaluateOptions, left_out: list[str] | None = None) -> list[ReasoningTree]:
    """`shards.load_trees` of the folder that an option names; so does what it raises."""
    folder = folders_of(options)[name]
    try:
        return load_trees(folder, options.skip_bad_files, left_out)
    except NoData as error:
        raise nothing_in(name, folder) from error


def nothing_in(name: str, folder: str) -> NoData:
    """The error to raise where a folder that an option names has no trees."""
    return no_data(folder, f"type another --{name}", split=SPLITS[name], output_dir=folder)


def unseen(trees: list[ReasoningTree], checkpoints: Sequence[Path]) -> tuple[list[ReasoningTree], int]:
    """The trees whose question no PRM was trained or validated on, and how many others there were.

    A question is known by its text. Without a checkpoint's ``questions.json`` nothing can be told, said aloud.
    Raises ValueError when no unseen tree is left.
    """
    used: set[str] = set()
    for checkpoint in checkpoints:
        list_of_seen = checkpoint / "questions.json"
        if list_of_seen.is_file():
            used |= {digest for part in load_json(list_of_seen).values() for digest in part}
        else:
            said = "has no questions.json: whether the PRM was trained on these questions is unknown."
            log.warning("%s %s", checkpoint, said)
    fresh = [tree for tree in trees if question_digest(tree.question) not in used]
    seen = [tree.question_id for tree in trees if question_digest(tree.question) in used]
    if seen:
        named = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
        log.warning("%d of %d questions were in the PRM's training and are left out: %s", len(seen), len(trees), named)
    if not fresh:
        raise ValueError(
            f"All {len(trees)} questions were in the PRM's training, so nothing can be measured on them. "
            f"Collect others: latent-prm collect --split test --output_dir {TEST_DATA}"
        )
    return fresh, len(seen)


def others(
    name: str, trees: Sequence[ReasoningTree], options: EvaluateOptions, checkpoints: Sequence[Path] = ()
) -> list[ReasoningTree]:
    """The trees of another folder, which the option of this ``name`` says, that offer a choice; but for questions that
    ``trees`` ask and those seen in training.

    Raises ValueError when none is left.
    """
    if (folder := folders_of(options).get(name)) is None:
        return []
    asked = {question_digest(tree.question) for tree in trees}
    found = load(name, options)
    fresh = [tree for tree in found if question_digest(tree.question) not in asked]
    kept = [tree for tree in fresh if judged(tree)]
    for count, why in ((len(found) - len(fresh), "are of questions measured on"),
                       (len(fresh) - len(kept), "have no graded path")):  # fmt: skip
        if count:
            log.warning("%d of %d trees in %s %s: left out", count, len(found), folder, why)
    if not kept:
        none = f"None of the {len(fresh)} other questions in {folder} has a graded path"
        same = f"No question in {folder} is other than those of {options.data_dir}"
        raise ValueError(
            f"{none if fresh else same}. Collect some: "
            f"latent-prm collect --split {SPLITS[name]} --output_dir prm_data_{SPLITS[name]}"
        )
    return unseen(kept, checkpoints)[0] if checkpoints else kept


def check_width(model: QwenLatentPRM, tree: ReasoningTree, options: EvaluateOptions, name: str = "data_dir") -> None:
    """Raises ValueError when the folder's latents (all trees of a folder are alike) are not what the PRM reads."""
    width, of = tree.paths[0].latents.shape[-1], f"The latents in {folders_of(options)[name]}"
    way_out = f"Type the --{name} of the reasoner it was trained for"
    preflight.same_width(width, model.thought_dim, of, ", ".join(options.checkpoint), way_out)


# --- saving ---------------------------------------------------------------------------------------------------------


def output_folder(options: EvaluateOptions) -> Path:
    """Where the results go: of several checkpoints beside the first's."""
    if options.output_dir is not None:
        return Path(options.output_dir)
    first = options.checkpoint[0]
    return Path("reports") if first == BUILTIN else Path(first) / "evaluation"


def save(evaluation: Evaluation, folder: Path, facts: dict[str, object]) -> None:
    """Write evaluation.json (``facts`` say what was run) and, with matplotlib, the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {**facts, "versions": versions("numpy", "scipy", "scikit-learn"), **asdict(evaluation)}
    del found["confidences"]  # they have a file of their own
    save_json(found, folder / "evaluation.json")
    print(f"Saved {folder / 'evaluation.json'}")
    try:
        drawn = draw(evaluation, folder)
        print(f"Saved {', '.join(str(path) for path in drawn)}")
    except NoMatplotlib as missing:
        print(missing)


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """The pictures of all questions together: accuracy, calibration and, where known, coverage and steps."""
    overall = evaluation.overall
    drawn = [folder / "accuracy.png", folder / "calibration.png"]
    accuracy_curve(overall, drawn[0])
    bins = {about: each[0].bins for about, each in overall.forecasts.items()}
    panels = {"paths": {"the PRM": bins["paths"]}}
    if "paths, calibrated" in bins:
        panels["paths"]["calibrated"] = bins["paths, calibrated"]
        before, after = bins["answers, by share"], bins["answers, calibrated"]
        panels["chosen answers"] = {"share of the vote": before, "calibrated": after}
    calibration_curves(panels, drawn[1])
    if any(overall.coverage.values()):
        coverage_picture(overall.coverage, folder / "coverage.png", of_first(overall))
        drawn.append(folder / "coverage.png")
    if any(step.auroc for step in overall.steps):
        steps_curve(overall.steps, folder / "steps.png")
        drawn.append(folder / "steps.png")
    return drawn


def next_command(options: EvaluateOptions) -> str:
    """What to type after an evaluation: a question to the reasoner of these trees, and to the first of the PRMs."""
    models = {model for model, _ in _growers(options.data_dir) if type(model) is str and model != UNKNOWN}
    own = {"checkpoint": options.checkpoint[0], "model_path": models.pop() if len(models) == 1 else BUILTIN}
    typed = [f"--{name} {shlex.quote(value)}" for name, value in own.items() if value != BUILTIN]
    return " ".join(["latent-prm solve", *typed, f'"{EXAMPLE}"'])


def save_confidences(evaluation: Evaluation, options: EvaluateOptions) -> None:
    """Write what was learnt from questions apart as calibration.json, beside each checkpoint that is the user's.

    Not where the PRM read other than in its training, as it always does elsewhere: these are other scores.
    """
    for checkpoint, own in zip(options.checkpoint, evaluation.confidences, strict=False):
        trained = load_json(checked_folder(checkpoint) / "config.json")["latent_prm"].get("context", "question")
        if options.context not in (None, trained):
            said = "the calibration with --context %s is not saved: everywhere else it reads as it was trained (%s)."
            log.warning(f"%s: {said}", checkpoint, options.context, trained)
            continue
        folder = output_folder(options) if checkpoint == BUILTIN else Path(checkpoint)
        print(f"Saved {confidence.save(own, folder)}")
