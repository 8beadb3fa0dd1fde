"""An evaluation and a steering result as parts of a report: what evaluation.json and steering.json hold, drawn.

This room hides which figure is drawn how. The tables and the words are those of the terminal, so that nothing is said
in two ways; the pictures hold the numbers as they stand in the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as TextTable
from rich.text import Text

from latent_prm import contest, tables
from latent_prm.charts import COLOURS, DASHES, MARKERS, Axis, Line, Look, chart, dots
from latent_prm.chronicle import command, duration
from latent_prm.comparison import Comparison
from latent_prm.evaluation import Evaluation
from latent_prm.files import BadFile, load_json
from latent_prm.metrics import Interval, Method, rounded
from latent_prm.plots import LABELS
from latent_prm.predictions import Bin, Coverage
from latent_prm.reviving import Unlike, revive
from latent_prm.sheet import Chart, Part, Section, Table, Tabs, Tiles, Words

LOOKS: dict[Method, Look] = {
    "noise_free": Look("--ink", "dash"),
    "random": Look("--muted", "dot"),
    "vote": Look("--orange", "solid", "square"),
    "best": Look("--blue", "solid", "triangle-up"),
    "weighted_vote": Look("--red", "solid", "circle"),
    "auto": Look("--purple", "dash", "diamond"),
    "oracle": Look("--green", "dashdot"),
}
RIGHT = Axis(title="questions answered right", shows="share")
PROBABILITY = Axis(title="predicted probability", shows="area", range=(0, 1))


# --- an evaluation ----------------------------------------------------------------------------------------------------


def load_evaluation(path: Path) -> tuple[dict[str, Any], Evaluation]:
    """What an evaluation.json says of how it was made, and what was found. Raises BadFile when it is none."""
    found = _object(path)
    try:
        evaluation: Evaluation = revive(Evaluation, found)
    except Unlike as error:
        again = "It may be of an older version: run latent-prm evaluate again."
        raise BadFile(f"{path}: not a whole evaluation: {error}. {again}") from error
    if not evaluation.comparisons:
        raise BadFile(f"{path}: an evaluation of nothing: it holds no comparison.")
    return found, evaluation


def evaluation_sections(found: Mapping[str, Any], evaluation: Evaluation) -> list[Section]:
    """What was run, and everything that was found."""
    options, overall = found.get("options") or {}, evaluation.overall
    facts = {
        "PRM": options.get("checkpoint"),
        "data": options.get("data_dir"),
        "calibrated on": options.get("calibrate_on") or _halves(evaluation),
        "rivals that learn, on": options.get("rivals_on"),
        "questions": overall.num_questions,
        "paths of each": overall.num_paths,
        "paths in all": overall.num_scored,
        "PRMs": overall.num_prms if overall.num_prms > 1 else None,
        "questions left out": evaluation.skipped,
        "files left out": found.get("bad_files"),
        "time": duration(found.get("seconds")),
        "seed": options.get("seed"),
        "versions": found.get("versions"),
    }
    panels = {name: _comparison(evaluation, name) for name in _whole_first(evaluation.comparisons)}
    parts = [_tiles(overall), *command("evaluate", "EvaluateOptions", options, facts)]
    return [
        Section("evaluation", "Evaluation", parts),
        Section("results", "What choosing gives", [Tabs("Results by task", panels)]),
    ]


def _halves(evaluation: Evaluation) -> str:
    if evaluation.calibrated_on is None:
        return "nothing: there are too few questions"
    return "each half of the questions, for the other" if evaluation.calibrated_on == 0 else "questions apart"


def _tiles(comparison: Comparison) -> Tiles:
    n = comparison.num_paths
    rule: Method = "auto" if "auto" in comparison.accuracy else "weighted_vote"
    own, vote = comparison.accuracy[rule][n], comparison.accuracy["vote"][n]
    gain = comparison.differences[rule]["vote"]
    figures = [
        (f"majority of {n}", _share(vote.mean), _between(vote)),
        (f"{LABELS[rule]} of {n}", _share(own.mean), _between(own)),
        ("gain over majority, points", rounded(100 * gain.mean, sign="+"), _between(gain, "+")),
    ]
    if (gap := comparison.gap_recovered.get(rule, {}).get(n)) is not None:
        figures.append(("gap recovered", _share(gap.mean, 0), "of the way to any path"))
    if (area := comparison.auroc) is not None:
        figures.append(("AUROC within questions", f"{area.mean:.3f}", f"{area.low:.3f} to {area.high:.3f}"))
    return Tiles([*figures, ("questions", f"{comparison.num_questions:,}", f"{n} paths of each")])


def _comparison(evaluation: Evaluation, name: str) -> list[Part]:
    comparison = evaluation.comparisons[name]
    shown, said = tables.all_of(evaluation, name)
    return [Words(said), *_charts(comparison), *map(as_table, shown)]


def _charts(comparison: Comparison) -> list[Chart]:
    """All that can be drawn of it."""
    found = [_accuracy_chart(comparison)]
    if any(comparison.gap_recovered.values()):
        found.append(_gap_chart(comparison))
    bins = {about: each[0].bins for about, each in comparison.forecasts.items()}
    before = {"the PRM": bins["paths"]}
    if "paths, calibrated" in bins:
        before["calibrated"] = bins["paths, calibrated"]
    found.append(_reliability("Reliability: of paths", before))
    if "answers, calibrated" in bins:
        answers = {"share of the vote": bins["answers, by share"], "calibrated": bins["answers, calibrated"]}
        found.append(_reliability("Reliability: of chosen answers", answers))
    if any(comparison.coverage.values()):
        title = f"Answering only when sure{tables.of_first(comparison)}"
        found.append(_coverage_chart(title, comparison.coverage))
    if any(step.auroc for step in comparison.steps):
        found.append(_steps_chart(comparison))
    gains = {name: rival.gains["auroc"] for name, rival in comparison.rivals.items() if "auroc" in rival.gains}
    if gains:
        said = "Right of zero: the PRM tells right from wrong paths better (95 % interval over questions)."
        found.append(dots("The PRM against rivals and controls", gains, Axis(title="AUROC gained", shows="area"), said))
    return found


def _accuracy_chart(comparison: Comparison) -> Chart:
    lines = [
        Line.of(LABELS[method], list(by_size), list(by_size.values()), LOOKS[method])
        for method, by_size in comparison.accuracy.items()
        if method in LOOKS
    ]
    ticks = [k for k in comparison.accuracy["vote"] if k & (k - 1) == 0 or k == comparison.num_paths]
    size = Axis(title="paths per question (N)", log=True, ticks=ticks)
    said = "Bands: 95 % intervals over questions. Every choice is averaged over the sets of N paths."
    return chart("Accuracy against the number of paths", lines, size, RIGHT, said)


def _gap_chart(comparison: Comparison) -> Chart:
    lines = [
        Line.of(LABELS[method], list(by_size), list(by_size.values()), LOOKS[method])
        for method, by_size in comparison.gap_recovered.items()
        if method in LOOKS and by_size
    ]
    size = Axis(title="paths per question (N)", log=True, ticks=comparison.table_sizes)
    said = "Of the way from the better of majority and noise-free path to any path being right."
    share = Axis(title="gap recovered", shows="share")
    return chart("Gap recovered", lines, size, share, said, at={"no gain": 0})


def _reliability(title: str, curves: Mapping[str, Sequence[Bin]]) -> Chart:
    looks = (Look("--blue", "solid", "circle"), Look("--red", "dash", "square"))
    lines = [Line(label="perfect", x=[0, 1], y=[0, 1], look=Look("--muted", "dot"))]
    for (label, bins), look in zip(curves.items(), looks, strict=False):
        most = max(b.count for b in bins)
        lines.append(
            Line(
                label=label,
                x=[b.predicted for b in bins],
                y=[b.right for b in bins],
                look=look,
                sizes=[6 + 12 * (b.count / most) ** 0.5 for b in bins],
                notes=[f"of {b.count:,}" for b in bins],
            )
        )
    said = "A larger mark stands for more of them."
    return chart(title, lines, PROBABILITY, Axis(title="share that was right", shows="area", range=(0, 1)), said)


def _coverage_chart(title: str, curves: Mapping[str, Sequence[Coverage]]) -> Chart:
    lines = []
    for (label, points), look in zip(curves.items(), (Look("--red"), Look("--orange", "dash")), strict=False):
        given = [point for point in points if point.accuracy is not None]
        notes = [f"at {point.threshold:.2f} or more" for point in given]
        x, y = [point.coverage for point in given], [point.accuracy for point in given]
        lines.append(Line(label=f"sure by {label}", x=x, y=y, look=look, notes=notes))
    answered = Axis(title="questions answered, the surest first", shows="share", range=(0, 1.02))
    return chart(title, lines, answered, Axis(title="answers that are right", shows="share"))


def _steps_chart(comparison: Comparison) -> Chart:
    known = [(t, step.auroc) for t, step in enumerate(comparison.steps, 1) if step.auroc is not None]
    look = Look("--blue", "solid", "circle")
    line = Line.of("score after this latent", [t for t, _ in known], [area for _, area in known], look)
    latent = Axis(title="latent", ticks=[t for t, _ in known])
    area = Axis(title="AUROC within questions", shows="area")
    return chart("When the PRM knows", [line], latent, area, at={"chance": 0.5})


# --- steering ---------------------------------------------------------------------------------------------------------


def load_steering(path: Path) -> tuple[dict[str, Any], dict[str, contest.Report]]:
    """What a steering.json says of how it was made, and its report per task. Raises BadFile when it is none."""
    found = _object(path)
    try:
        reports: dict[str, contest.Report] = revive(dict[str, contest.Report], found.get("reports"), "reports")
    except Unlike as error:
        again = "It may be of an older version: run latent-prm steer again."
        raise BadFile(f"{path}: not a whole steering result: {error}. {again}") from error
    if not reports:
        raise BadFile(f"{path}: it holds no report.")
    return found, reports


def steering_sections(found: Mapping[str, Any], reports: Mapping[str, contest.Report]) -> list[Section]:
    """What was run, and accuracy against compute."""
    options = found.get("options") or {}
    facts = {
        "reasoner": options.get("model_path"),
        "its weights": found.get("weights"),
        "PRM": options.get("checkpoint"),
        "questions": {name: report.num_questions for name, report in reports.items()},
        "time": duration(found.get("seconds")),
        "seed": options.get("seed"),
        "versions": found.get("versions"),
    }
    panels = {name: _steering(name, reports[name]) for name in _whole_first(reports)}
    return [
        Section("steering", "Steering", command("steer", "SteerOptions", options, facts)),
        Section("compute", "Accuracy against compute", [Tabs("Steering by task", panels)]),
    ]


def _steering(name: str, report: contest.Report) -> list[Part]:
    found: list[Part] = [
        _compute_chart(report, "latents", "latent steps"),
        _compute_chart(report, "total", "all compute"),
    ]
    if report.stops:
        found.append(_stops_chart(report))
    return [*found, *map(as_table, contest.tables_of(name, report))]


def _compute_chart(report: contest.Report, of: str, title: str) -> Chart:
    lines = []
    for i, curve in enumerate(report.curves):
        look = Look(("--orange", *COLOURS)[i % 8], DASHES[i % len(DASHES)], "circle")
        lines.append(Line.of(curve.label, getattr(curve, of), curve.right, look))
    points = [line for line in report.lines if not line.name.startswith(contest.UNSTEERED)]
    names, scorers = ([*dict.fromkeys(getattr(p, key) for p in points)] for key in ("name", "scorer"))
    for point in points:
        colour = ("--ink", "--blue", "--muted", "--green", "--red")[scorers.index(point.scorer) % 5]
        look = Look(colour, "solid", MARKERS[names.index(point.name) % len(MARKERS)])
        label = point.name + (f", by {point.scorer}" if point.scorer else "")
        lines.append(Line.of(label, [point.costs[of]], [point.right], look, apart=True))
    said = "A line: unsteered votes of more and more paths. A mark: a method, with its 95 % interval."
    named = f"{title} per question" + (", in latent steps" if of == "total" else "")
    cost = Axis(title=named, log=True, ticks=_doubling([value for line in lines for value in line.x]))
    return chart(f"Accuracy against {title}", lines, cost, RIGHT, said)


def _doubling(values: Sequence[float]) -> list[float]:
    """The powers of two among which they lie."""
    known = [value for value in values if value > 0] or [1.0]
    return [2.0**power for power in range(math.floor(math.log2(min(known))), math.ceil(math.log2(max(known))) + 1)]


def _stops_chart(report: contest.Report) -> Chart:
    ways = list(dict.fromkeys((stop.by, stop.scorer) for stop in report.stops))
    lines = []
    for i, (by, scorer) in enumerate(ways):
        own = [stop for stop in report.stops if (stop.by, stop.scorer) == (by, scorer)]
        look = Look(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        notes = [f"at {stop.confidence:g}" for stop in own]
        x = [stop.share.mean for stop in own]
        lines.append(Line.of(f"{by} · {scorer}", x, [stop.right for stop in own], look, notes=notes))
    used = Axis(title="paths used, of all", shows="share")
    return chart("Stopping when the answer is settled", lines, used, RIGHT)


# --- what both need ---------------------------------------------------------------------------------------------------


def as_table(table: TextTable) -> Table:
    """A terminal's table as one of a page."""
    columns = [_flat(column.header) for column in table.columns]
    cells = [[_flat(cell) for cell in column.cells] for column in table.columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(_flat(table.title or ""), columns, rows)


def _flat(cell: Any) -> str:
    return (cell.plain if isinstance(cell, Text) else str(cell)).strip()


def _whole_first(names: Mapping[str, Any]) -> list[str]:
    """What is of all together stands last in the files."""
    *tasks, whole = names
    return [whole, *tasks]


def _object(path: Path) -> dict[str, Any]:
    found = load_json(path)
    if not isinstance(found, dict):
        raise BadFile(f"{path}: not an object, so not one of ours.")
    return found


def _share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _between(interval: Interval, sign: str = "") -> str:
    return f"{rounded(100 * interval.low, sign=sign)} to {rounded(100 * interval.high, sign=sign)}"
