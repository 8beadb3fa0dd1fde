"""What a stage left behind → one HTML file that opens offline, with a tree explorer.

latent-prm report checkpoints/qwen_prm_…

This room hides how it finds out what a folder is, and where trees and a PRM for the explorer are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latent_prm import chronicle, confidence, exhibits, files, kinship, preflight, sheet
from latent_prm.explorer import explorer_data, pick_trees
from latent_prm.files import load_json
from latent_prm.grading import question_digest
from latent_prm.model import QwenLatentPRM, checkpoint_folder
from latent_prm.options import BUILTIN, ReportOptions
from latent_prm.pretrained import pick_device
from latent_prm.shards import NoData, load_trees, nested_files, scan
from latent_prm.sheet import Explorer, Part, Section, Words
from latent_prm.tree import ReasoningTree

EVALUATION, STEERING = "evaluation.json", "steering.json"


@dataclass(kw_only=True)
class Place:
    """What a path holds."""

    path: Path
    folder: Path
    run: bool = False
    data: bool = False
    evaluation: Path | None = None
    steering: Path | None = None

    @property
    def words(self) -> str:
        """What it is."""
        kinds = {"training run": self.run, "data": self.data, "evaluation": self.evaluation, "steering": self.steering}
        return " and ".join(kind for kind, there in kinds.items() if there)


@dataclass(kw_only=True)
class Grove:
    """The trees that a report is about, and the PRM that they are shown with."""

    data_dir: str | None = None
    checkpoint: str | None = None
    named: bool = False
    """The checkpoint was typed, or what was found names it: that it does not fit is an error."""
    context: bool | None = None
    trees: list[ReasoningTree] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What there is to know of them, or why there are none."""


def main(options: ReportOptions) -> Path:
    """Run the stage: look, gather, write. Returns the file's path.

    Raises ValueError (or one of its kin) in plain words: plotly is missing, PATH is nothing of ours, a file is damaged.
    """
    logging.basicConfig(format="[Reporter] %(message)s")
    plotly = library()
    place = look(Path(options.path))
    target = output(place, options)
    sections = gather(place, options)
    title = f"{place.words[:1].upper()}{place.words[1:]}: {place.path.resolve().name}"
    text = sheet.page(title, str(place.path), sections, plotly)
    files.atomic_write(target, lambda file: file.write(text.encode()))
    print(f"Saved {target} ({len(text) / 1e6:.1f} MB). Open it in any browser; it needs nothing else.")
    return target


def library() -> str:
    """Plotly's source, as it is installed. Raises ValueError, saying what to type, when it is not."""
    if find_spec("plotly") is None:
        raise ValueError('latent-prm report needs plotly. Type: pip install "latent-prm[report]"')
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def look(path: Path) -> Place:
    """What a path is. Raises ValueError when it is nothing that a report can be made of."""
    if path.is_file() and path.name in (EVALUATION, STEERING):
        found = Place(path=path, folder=path.parent)
        found.evaluation, found.steering = (path if path.name == name else None for name in (EVALUATION, STEERING))
        return found
    kinds = "a training run, a folder of shards, or one with evaluation.json or steering.json"
    if not path.is_dir():
        there = "is no folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {there}. Type {kinds}: latent-prm report checkpoints/qwen_prm_…")
    if (path / "pytorch_model.bin").exists():
        raise ValueError(f"{path} is a checkpoint. Type its run: latent-prm report {path.parent}")
    found = Place(path=path, folder=path)
    found.run = any((path / name).is_file() for name in ("metrics.jsonl", "training_stats.json"))
    found.data = not found.run and any(scan(path))
    places = [path, path / "best" / "evaluation", path / "final" / "evaluation"][: 3 if found.run else 1]
    found.evaluation = next((own / EVALUATION for own in places if (own / EVALUATION).is_file()), None)
    found.steering = next((own / STEERING for own in places if (own / STEERING).is_file()), None)
    if not found.words:
        names = sorted(entry.name for entry in path.iterdir())
        there = ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "nothing"
        raise ValueError(f"There is nothing to report in {path} (there is {there}). Type {kinds}.")
    return found


def output(place: Place, options: ReportOptions) -> Path:
    """Where the file goes, named after what it shows. Raises ValueError for a folder, OSError where none is made."""
    if options.output:
        target = Path(options.output)
    elif place.data:
        target = Path("reports", f"{place.folder.resolve().name}.html")
    else:
        alone = place.words in ("evaluation", "steering")
        target = place.folder / f"{place.words if alone else 'report'}.html"
    if target.is_dir():
        raise ValueError(f"--output is {target}, which is a folder. Type a file: --output {target / 'report.html'}")
    preflight.can_write(target.parent, "Type another --output.")
    return target


# --- gathering --------------------------------------------------------------------------------------------------------


def gather(place: Place, options: ReportOptions) -> list[Section]:
    """All that there is to say of it, and the explorer last. Raises as `main`."""
    sections: list[Section] = []
    of_data: list[Section] = []
    grove = Grove(data_dir=options.data_dir, checkpoint=options.checkpoint, named=options.checkpoint is not None)
    if place.evaluation:
        found, evaluation = exhibits.load_evaluation(place.evaluation)
        sections += exhibits.evaluation_sections(found, evaluation)
        _of_evaluation(grove, found.get("options") or {}, options)
    if place.steering:
        said, reports = exhibits.load_steering(place.steering)
        sections += exhibits.steering_sections(said, reports)
        grove.checkpoint = grove.checkpoint or _text((said.get("options") or {}).get("checkpoint"))
    if place.run:
        sections = chronicle.run_sections(place.folder) + sections
        if not place.evaluation:
            _of_run(grove, place.folder, options)
    if place.data:
        _of_data(grove, place.folder, options)
    if grove.data_dir and not grove.trees and not grove.said:
        _plant(grove, options)
    if grove.data_dir and (place.data or grove.trees):
        of_data = chronicle.data_sections(Path(grove.data_dir), grove.trees)
    elif place.steering and not grove.data_dir:
        grove.said.append("A steering result keeps no trees, so there are none to look at. Name some with --data_dir.")
    looked_at = Section("trees", "Tree explorer", explore(grove, options))
    return [*of_data, looked_at] if place.data else [*sections, looked_at, *of_data]


def _of_data(grove: Grove, folder: Path, options: ReportOptions) -> None:
    grove.data_dir = str(folder)
    if nested_files(folder):
        grove.said.append(f"Another program's files. As shards: latent-prm convert {folder} --output_dir FOLDER")
    grove.trees = load_trees(folder, options.skip_bad_files, grove.said)
    grove.checkpoint = grove.checkpoint or BUILTIN


def _of_evaluation(grove: Grove, said: Mapping[str, Any], options: ReportOptions) -> None:
    """The trees that were measured, and the (first) PRM that measured them."""
    if grove.checkpoint is None:
        named = said.get("checkpoint")
        grove.checkpoint = named[0] if isinstance(named, list) and named else named if isinstance(named, str) else None
    grove.data_dir = grove.data_dir or _text(said.get("data_dir"))
    if said.get("context") in ("question", "none"):
        grove.context = said["context"] == "question"
    if _plant(grove, options) and grove.checkpoint and _there(grove.checkpoint):
        used = set().union(*_listed(grove.checkpoint).values())
        kept = [tree for tree in grove.trees if question_digest(tree.question) not in used]
        if kept and (seen := len(grove.trees) - len(kept)):
            grove.said.append(f"{seen} of {len(grove.trees)} questions were in the PRM's training, and are not here.")
            grove.trees = kept


def _of_run(grove: Grove, folder: Path, options: ReportOptions) -> None:
    """The validation questions, which are no more than shown to the PRM; where there are none, those of training."""
    config = folder / "config.json"
    said = load_json(config) if config.is_file() else {}
    grove.data_dir = grove.data_dir or _text((said.get("options") or {}).get("data_dir"))
    own = [str(folder / name) for name in ("best", "final") if (folder / name / "pytorch_model.bin").is_file()]
    grove.checkpoint = grove.checkpoint or next(iter(own), None)
    if grove.checkpoint is None:
        grove.said.append("This run has no best and no final checkpoint yet, so that no path has a value.")
    if not options.questions or not _plant(grove, options) or grove.checkpoint is None or not _there(grove.checkpoint):
        return
    digests = _listed(grove.checkpoint).get("validation", set())
    kept = [tree for tree in grove.trees if question_digest(tree.question) in digests]
    if kept:
        grove.said.append("These are the validation questions: by them the best checkpoint was picked.")
        grove.trees = kept
    else:
        grove.said.append("These questions were trained on, or it is unknown: the PRM may know them by heart.")


def _plant(grove: Grove, options: ReportOptions) -> bool:
    """Load the trees; where that cannot be done, say why. Raises BadFile for damaged shards."""
    if grove.data_dir is None:
        grove.said.append("It is not known which trees this is about. Name their folder with --data_dir.")
        return False
    if not Path(grove.data_dir).is_dir():
        grove.said.append(
            f"The trees were in {grove.data_dir}, which is not there. Name another place with --data_dir."
        )
        return False
    try:
        grove.trees = load_trees(grove.data_dir, options.skip_bad_files, grove.said)
    except NoData as error:
        if options.data_dir is not None:
            raise
        grove.said.append(str(error).splitlines()[0])
    return bool(grove.trees)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _listed(checkpoint: str) -> dict[str, set[str]]:
    """The digests of the questions that a PRM was trained on and validated on; nothing where that is not known."""
    path = checkpoint_folder(checkpoint) / "questions.json"
    return {side: set(digests) for side, digests in load_json(path).items()} if path.is_file() else {}


def _there(checkpoint: str) -> bool:
    return checkpoint_folder(checkpoint).is_dir()


# --- the explorer -----------------------------------------------------------------------------------------------------


def explore(grove: Grove, options: ReportOptions) -> Sequence[Part]:
    """The trees, with what the PRM says of them; in words why there are none. Raises ValueError as `judge`."""
    if not options.questions:
        return [Words(["No trees were asked for (--questions 0)."])]
    if not grove.trees:
        return [Words(grove.said or ["There are no trees to look at."])]
    shown = pick_trees(grove.trees, options.questions, options.seed)
    model, lines = judge(grove, shown[0], options), list(grove.said)
    calibrated = None
    if model is None:
        lines.append("Paths have no predicted value here, so they have no colour.")
    else:
        folder = checkpoint_folder(grove.checkpoint or BUILTIN)
        calibrated = confidence.load(folder) if (folder / confidence.FILE).is_file() else None
        here = kinship.growers(grove.data_dir) if grove.data_dir else ()
        lines.append(f"Values are predicted by {grove.checkpoint}.")
        calibrated = kinship.believed(grove.checkpoint or BUILTIN, model, calibrated, here, lines.append)
    if len(shown) < len(grove.trees):
        lines.append(f"{len(shown)} of {len(grove.trees):,} trees, mixed ones first (--questions for more).")
    return [Words(lines), Explorer(explorer_data(shown, len(grove.trees), model, calibrated, grove.context))]


def judge(grove: Grove, tree: ReasoningTree, options: ReportOptions) -> QwenLatentPRM | None:
    """The PRM, if there is one that reads these latents.

    Raises ValueError when the one that was typed does not, and BadFile or OSError when it cannot be loaded.
    """
    if grove.checkpoint is None:
        return None
    if not grove.named and not _there(grove.checkpoint):
        grove.said.append(f"The PRM was {grove.checkpoint}, which is not there. Name another with --checkpoint.")
        return None
    model = QwenLatentPRM.from_pretrained(grove.checkpoint, device=pick_device(options.device))
    width = tree.paths[0].latents.shape[-1]
    if width == model.thought_dim:
        if "hidden" in model.reads and any(path.hidden is None for path in tree.paths):
            wrong = f"{grove.checkpoint} reads the states before noise, which these trees do not have."
        else:
            return model
    else:
        wrong = f"{grove.checkpoint} reads latents {model.thought_dim} wide, but these are {width} wide."
    if grove.named:
        raise ValueError(f"--checkpoint: {wrong} Name the PRM of the reasoner that grew them, or leave it out.")
    grove.said.append(f"{wrong} Name the PRM of their reasoner with --checkpoint.")
    return None
