"""An evaluation as text: tables that fit 100 columns, and what they say in words.

This room hides how numbers are rounded and when one may say "beats". First comes what everybody wants to know, for all
questions together and then per task; what only some want stands below it, for all together. Nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from latent_prm import screen
from latent_prm.comparison import Comparison, Discrimination, Rival
from latent_prm.evaluation import Evaluation
from latent_prm.metrics import CHOSEN, METHODS, MOST_SUBSETS, Interval, Method, rounded
from latent_prm.plots import LABELS
from latent_prm.predictions import Coverage
from latent_prm.step_truth import PRM, StepTruth

MAIN: tuple[Method, ...] = ("noise_free", "random", "vote", "best", "weighted_vote", "auto", "oracle")
"""The methods of the first table."""
GAINS: tuple[Method, ...] = ("best", "weighted_vote", "auto")
BASES: tuple[Method, ...] = ("vote", "noise_free")
ENOUGH = 10
"""Questions, mixed ones where paths are told apart. Intervals over fewer are too narrow for a verdict."""
SURE = 0.8
"""The threshold that is spoken of."""
VITAL = ("latents swapped", "noise only")
"""The controls without the paths' own thoughts: who is no better than these has learnt nothing from them."""
ALL_SWAPPED = "all swapped"
"""The control that is vital instead for a PRM that reads answers."""


def print_evaluation(evaluations: Evaluation | dict[str, Evaluation], console: Console | None = None) -> None:
    """Print, for all questions together and per task: the methods' accuracy, the PRM's gains, and what is true in
    words; then, of a single evaluation, the longer tables.

    Several evaluations, by the name of their PRM, of the same paths share their tables.
    """
    console = console or screen.console()
    if isinstance(evaluations, Evaluation):
        evaluations = {PRM: evaluations}
    first = next(iter(evaluations.values()))
    alone = len(evaluations) == 1
    *tasks, whole = first.comparisons
    for name in (whole, *tasks):
        by_prm = {prm: evaluation.comparisons[name] for prm, evaluation in evaluations.items()}
        console.print()
        console.print(_accuracy_table(by_prm, name, MAIN))
        console.print()
        console.print(_gain_table(by_prm))
        console.print()
        for prm, comparison in by_prm.items():
            heading = [] if alone else [f"{prm}:"]
            said = [*verdict(comparison, prm), *_about_scores(comparison)]
            if not alone or name != whole:  # else the tables below say it
                said += _about_probabilities(comparison)
            for line in (*heading, *said):
                console.print(line)
        for line in _remarks(evaluations) if name == whole else ():
            console.print(line)
    if alone:
        _print_details(first, console)
    for line in _left_out(first):
        console.print(line)


def _left_out(evaluation: Evaluation) -> list[str]:
    lines = [f"Questions left out ({reason}): {count}" for reason, count in evaluation.skipped.items() if count]
    if evaluation.calibrated_on is None:
        lines.append("There are too few questions to calibrate on: no calibrated probability, no auto rule.")
    return lines


def all_of(evaluation: Evaluation, name: str) -> tuple[list[Table], list[str]]:
    """Every table about one set of questions of an evaluation, and what there is to say of it in words."""
    comparison = evaluation.comparisons[name]
    found = [_accuracy_table({PRM: comparison}, name, MAIN), _gain_table({PRM: comparison})]
    parts = [*found, *_details(evaluation, name)]
    said = [*verdict(comparison), *_about_scores(comparison), *_about_probabilities(comparison)]
    if comparison is evaluation.overall:
        said += [*_remarks({PRM: evaluation}), *_left_out(evaluation)]
    said += [part for part in parts if isinstance(part, str)]
    return [part for part in parts if isinstance(part, Table)], said


def _print_details(evaluation: Evaluation, console: Console) -> None:
    """The longer tables, of all questions together."""
    name = list(evaluation.comparisons)[-1]
    where = " (each task's own: evaluation.json)" if len(evaluation.comparisons) > 1 else ""
    console.print(f"\n━━ In detail: {name}{where}")
    for part in _details(evaluation, name):
        if isinstance(part, Table):
            console.print()
        console.print(part)
    console.print()


def _details(evaluation: Evaluation, name: str) -> list[Table | str]:
    """The longer tables of one set of questions; how steps and outcome agree is known per task."""
    comparison = evaluation.comparisons[name]
    others: list[Method] = [method for method in METHODS if method in CHOSEN and method not in MAIN]
    whole = comparison is evaluation.overall
    truth = {task: found for task, found in evaluation.step_truth.items() if whole or task == name}
    return [
        _accuracy_table({PRM: comparison}, "other rules", others),
        *([_rival_table(comparison)] if comparison.rivals else []),
        *([_step_table(comparison.steps)] if comparison.steps else []),
        *([_truth_table(truth)] if truth else []),
        *(f"{task}: {found.agreement}" for task, found in truth.items()),
        _forecast_table(comparison, evaluation.calibrated_on),
        *([_error_table(comparison)] if any(each[0].answers > 1 for each in comparison.errors.values()) else []),
        *([_abstaining_table(comparison)] if comparison.abstaining else []),
    ]


# --- tables ---------------------------------------------------------------------------------------------------------


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    """A table that fits 100 columns where the numbers do."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _accuracy_table(by_prm: dict[str, Comparison], title: str, methods: Sequence[Method]) -> Table:
    first = next(iter(by_prm.values()))
    sizes = first.table_sizes
    title = f"{title}: {first.num_questions} questions, % answered right [95 % interval]"
    if first.num_prms > 1:
        title += f", mean of {first.num_prms} PRMs ± standard deviation"
    table = _table(title, "chosen by", [f"N = {size}" for size in sizes])
    for method in methods:
        for prm, comparison in by_prm.items() if method in CHOSEN else [("", first)]:
            if method in comparison.accuracy:
                shown = (comparison.accuracy[method][size].per_cent() for size in sizes)
                table.add_row(_label(method, prm), *shown)
    return table


def _bases(comparison: Comparison) -> list[Method]:
    return [base for base in BASES if base in comparison.accuracy]


def _gain_table(by_prm: dict[str, Comparison]) -> Table:
    first = next(iter(by_prm.values()))
    n, rivals = first.num_paths, _bases(first)
    table = _table("", f"gain at N = {n}", [*(f"over {LABELS[rival]}" for rival in rivals), "gap recovered, %"])
    for method in GAINS:
        for prm, comparison in by_prm.items():
            if method in comparison.accuracy:
                gap = comparison.gap_recovered[method].get(n)
                share = "no gap" if gap is None else gap.per_cent(digits=0)
                gains = (comparison.differences[method][rival].per_cent("+") for rival in rivals)
                table.add_row(_label(method, prm), *gains, share)
    return table


def _rival_table(comparison: Comparison) -> Table:
    """Each rival's and control's AUROC, and what the PRM has over it."""
    title = f"rivals and controls on the same paths, N = {comparison.num_paths}, and what the PRM gains over each"
    table = _table(title, "scored by", ["AUROC", "PRM's AUROC", "PRM's best, %", "PRM's vote, %"])
    own = (comparison.accuracy[method][comparison.num_paths] for method in ("best", "weighted_vote"))
    table.add_row("the PRM", _mean(comparison.auroc), "", *(rounded(100 * right.mean) for right in own))
    for name, rival in _in_sections(comparison, table):
        chosen = (rival.gains[method].per_cent("+") for method in ("best", "vote"))
        table.add_row(name, _mean(rival.auroc), _area(rival.gains.get("auroc"), "+"), *chosen)
    return table


def _in_sections(comparison: Comparison, table: Table) -> Iterator[tuple[str, Rival]]:
    """First the rivals, then the controls, each under a line that says so."""
    for control, heading in ((False, "rivals"), (True, "controls")):
        own = {name: rival for name, rival in comparison.rivals.items() if rival.control == control}
        if own:
            table.add_section()
            table.add_row(f"{heading}:")
        yield from own.items()


def _step_table(steps: Sequence[Discrimination]) -> Table:
    columns = ["AUROC", "pairs in order, %", "pooled AUROC", "mixed questions"]
    table = _table("scores after each latent, within questions", "latent", columns)
    for t, step in enumerate(steps, 1):
        pairs = "none" if step.pairwise is None else step.pairwise.per_cent()
        pooled = "none" if step.pooled is None else _three(step.pooled)
        table.add_row(str(t), _area(step.auroc), pairs, pooled, str(step.num_mixed))
    return table


def _truth_table(found: Mapping[str, StepTruth]) -> Table:
    """How well step scores say where paths first go wrong, a column per task, and how the PRM's change there."""
    apart = min(own.picked_on for own in found.values())
    where = "questions apart" if apart else "the other half"
    title = f"first wrong latent by step scores: F1, %, thresholds from {where}"
    table = _table(title, "scored by", found)
    each = list(found.values())
    for name in each[0].f1:
        table.add_row(f"the {name}" if name == PRM else name, *(own.f1[name].per_cent() for own in each))
    table.add_section()
    table.add_row("PRM over the best other", *(f"{own.best} {own.gain.per_cent('+')}" for own in each))
    for label, about in (("PRM's change there", "at_error"), ("at right latents", "elsewhere")):
        changes = (getattr(own.change, about) for own in each)
        table.add_row(label, *("none" if change is None else f"{change:+.3f}" for change in changes))
    return table


def _forecast_table(comparison: Comparison, calibrated_on: int | None) -> Table:
    """Brier and its parts before and after calibration; means over the PRMs."""
    where = {None: "", 0: ", calibrated: each half of the questions on the other"}
    title = "probabilities" + where.get(calibrated_on, f", calibrated on {calibrated_on} questions apart")
    columns = ["Brier", "= reliability", "- resolution", "+ uncertainty", "ECE", "skill"]
    table = _table(title, "of", columns)
    for about, each in comparison.forecasts.items():
        figures = [
            fmean(getattr(own, name) for own in each)
            for name in ("brier", "reliability", "resolution", "uncertainty", "calibration_error")
        ]
        skills = [own.skill for own in each if own.skill is not None]
        known = f"{fmean(skills):+.3f}" if skills else "none"
        table.add_row(about, *(f"{figure:.4f}" for figure in figures), known)
    return table


def _error_table(comparison: Comparison) -> Table:
    columns = ["paths", "answers each", "MSE", "noise floor", "MAE", "Spearman", "within questions"]
    table = _table("distance to values known from k of M answers", "value of", columns)

    def shown(values: Iterable[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{fmean(known):.3f}" if known else "unknown"

    for kind, each in comparison.errors.items():
        names = ("mse", "noise_floor", "mae", "spearman", "spearman_within")
        figures = (shown(getattr(own, name) for own in each) for name in names)
        table.add_row(kind, str(each[0].count), f"{each[0].answers:.1f}", *figures)
    return table


def _abstaining_table(comparison: Comparison) -> Table:
    title = f"answering only where sure enough{of_first(comparison)}"
    table = _table(title, "at least", ["answered, %", "of these right, %"])
    for point in comparison.abstaining:
        right = "none" if point.accuracy is None else f"{100 * point.accuracy:.1f}"
        table.add_row(f"{point.threshold:.2f}", f"{100 * point.coverage:.1f}", right)
    return table


# --- cells ----------------------------------------------------------------------------------------------------------


def _label(method: Method, prm: str) -> str:
    """A method's name; where several PRMs share a table, short and with the PRM's."""
    if prm in ("", "PRM") or method not in CHOSEN:
        return LABELS[method]
    return f"{ {'best': 'best', 'weighted_vote': 'vote'}.get(method, method) } by {prm}"


def _area(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "none"
    spread = "" if interval.spread is None else f" ±{_three(interval.spread)}"
    return f"{_three(interval.mean, sign)} [{_three(interval.low, sign)}, {_three(interval.high, sign)}]{spread}"


def _mean(interval: Interval | None) -> str:
    return "none" if interval is None else _three(interval.mean)


def _three(area: float, sign: str = "") -> str:
    return rounded(area, 3, sign).replace("0.", ".", 1)


# --- words ----------------------------------------------------------------------------------------------------------


def _about_scores(comparison: Comparison) -> list[str]:
    """How well the predicted scores tell right from wrong paths."""
    told, lines = comparison.discrimination, []
    if told.auroc is None or told.pairwise is None:
        lines.append("AUROC within questions: none, for no question has both right and wrong paths")
    else:
        pairs = f"pairs in order: {told.pairwise.per_cent()} %"
        lines.append(f"AUROC within questions: {_area(told.auroc)} ({told.num_mixed} mixed ones); {pairs}")
    if told.pooled is not None:
        lines.append(f"AUROC pooled over all paths: {_three(told.pooled)} (mostly how hard questions are)")
    if comparison.over_question is not None:
        lines.append(f"Brier skill over a model that reads the question only: {comparison.over_question:+.3f}")
    return lines


def _about_probabilities(comparison: Comparison) -> list[str]:
    """How good predicted probabilities are, of paths and of answers, before and after calibration."""
    lines = []
    for about in ("paths", "answers"):
        before = "paths" if about == "paths" else "answers, by share"
        if found := comparison.forecasts.get(before):
            after = comparison.forecasts.get(f"{about}, calibrated")
            brier, error = (fmean(getattr(own, n) for own in found) for n in ("brier", "calibration_error"))
            line = f"Probabilities of {about}: Brier {brier:.3f}, ECE {error:.3f}"
            if after:
                brier, error = (fmean(getattr(own, n) for own in after) for n in ("brier", "calibration_error"))
                line += f"; calibrated: {brier:.3f}, {error:.3f}"
            lines.append(line)
    sure = [point for point in comparison.abstaining if point.threshold == SURE]
    return [*lines, *(_about_abstaining(point, of_first(comparison)) for point in sure)]


def _about_abstaining(point: Coverage, of: str) -> str:
    right = "" if point.accuracy is None else f", {100 * point.accuracy:.1f} % of them right"
    return f"Answering only where {100 * SURE:.0f} % sure{of}: {100 * point.coverage:.1f} % of the questions{right}"


def of_first(comparison: Comparison) -> str:
    """What coverage and abstaining are of, where other figures are means over several PRMs."""
    return " (the first PRM, all paths)" if comparison.num_prms > 1 else ""


def _remarks(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """What a reader of the tables of all questions together has to know, if anything."""
    first, lines = next(iter(evaluations.values())).overall, []
    for prm, evaluation in evaluations.items():
        *tasks, _ = evaluation.comparisons
        bad = [task for task in tasks if _worthless(evaluation.comparisons[task])]
        if bad and not _worthless(evaluation.overall):
            lines.append(f"Yet the {prm} is WORTHLESS in {' and '.join(bad)}: see there.")
        if rules := evaluation.overall.rules:
            lines.append(f"{_label('auto', prm)}: {' or '.join(rules)}, as other questions recommend")
    if beside := [name for name, evaluation in evaluations.items() if evaluation.beside_siblings]:
        lines.append(
            f"The {' and the '.join(beside)} scores a path beside its siblings: with fewer than all paths, what it "
            "chooses was measured on each question's first ones, scored without the others, not on all sets of paths."
        )
    if any(size in first.sampled for size in first.table_sizes):
        lines.append(f"Votes are over a sample of {MOST_SUBSETS} sets of paths where there are more.")
    if "noise_free" not in first.accuracy:
        lines.append("Some questions have no noise-free path, so there is no row for it.")
    if first.num_scored > first.num_questions * first.num_paths:
        lines.append(f"Some questions have more than {first.num_paths} paths: N stops at the fewest of any.")
    return lines


def verdict(comparison: Comparison, prm: str = "PRM") -> list[str]:
    """In words, whether each way of listening to the PRM beats majority and the noise-free path, and what of rivals and
    controls the PRM does not beat.

    It beats another when the whole interval of the paired difference lies above zero; with fewer questions than
    `ENOUGH` nothing does.
    """
    if comparison.num_questions < ENOUGH:
        bases = " and ".join(f"the {LABELS[base]}" for base in _bases(comparison))
        ways = " or ".join(_label(method, prm) for method in GAINS[:2])
        few = f"There are too few questions ({comparison.num_questions}) to tell whether {ways} beats {bases}."
        return [few, *_about_others(comparison)]
    sentences = []
    for method in GAINS[:2]:
        against: dict[str, list[Method]] = {}
        for base in _bases(comparison):
            against.setdefault(_outcome(comparison.differences[method][base]), []).append(base)
        said = (f"{how} {' and '.join(f'the {LABELS[base]}' for base in bases)}" for how, bases in against.items())
        sentences.append(f"With {comparison.num_paths} paths, {_label(method, prm)} {' and '.join(said)}.")
    return [*sentences, *_about_others(comparison)]


def _outcome(difference: Interval) -> str:
    if difference.low > 0:
        return "beats"
    return "loses to" if difference.high < 0 else "does not measurably differ from"


def _about_others(comparison: Comparison) -> list[str]:
    """Whether the PRM tells right from wrong better than its rivals and controls, which only mixed questions show."""
    mixed = comparison.discrimination.num_mixed
    if mixed < ENOUGH and any(rival.auroc for rival in comparison.rivals.values()):
        return [f"There are too few mixed questions ({mixed}) to tell whether it beats its rivals and controls."]
    return [*_about_rivals(comparison), *_about_controls(comparison)]


def _about_rivals(comparison: Comparison) -> list[str]:
    rivals = {name: rival for name, rival in comparison.rivals.items() if not rival.control and rival.auroc}
    if not rivals:
        return []
    level = [name for name, rival in rivals.items() if rival.gains["auroc"].low <= 0]
    if not level:
        return [f"It tells right from wrong paths measurably better than each of {len(rivals)} rivals."]
    return [f"It does NOT tell right from wrong paths measurably better than: {'; '.join(level)}."]


def _worthless(comparison: Comparison) -> list[str]:
    """Which of the `VITAL` controls the PRM does not beat; none: it is worth something, or that cannot be told."""
    if comparison.discrimination.num_mixed < ENOUGH:
        return []
    controls = {name: rival.gains.get("auroc") for name, rival in comparison.rivals.items() if rival.control}
    vital = [ALL_SWAPPED] if ALL_SWAPPED in controls else VITAL
    return [name for name in vital if (gain := controls.get(name)) is not None and gain.low <= 0]


def _about_controls(comparison: Comparison) -> list[str]:
    """A PRM is worth nothing where it tells right from wrong no better without the paths' own thoughts."""
    controls = {name: rival for name, rival in comparison.rivals.items() if rival.control and rival.auroc}
    level = [name for name, rival in controls.items() if rival.gains["auroc"].low <= 0]
    mixed = f"{comparison.discrimination.num_mixed} mixed questions"
    if fatal := _worthless(comparison):
        said = f"as far as {mixed} can tell, it does no better than with {' or '.join(fatal)}"
        return [f"This PRM is WORTHLESS here: {said}."]
    if not controls:
        return []
    if not level:
        return [
            f"It beats every one of its {len(controls)} controls: it reads the latents, and reads them as thoughts."
        ]
    means = {
        "question swapped": "no use of the question could be measured",
        "order shuffled": "no use of the latents' order could be measured",
        "answers swapped": "no use of the answer could be measured",
        "latents swapped": "no use of the latents beside the answer could be measured",
        "noise only": "it is not measurably better than with noise for latents",
    }
    said = "; ".join(means.get(name, f"it is not measurably better than with {name}") for name in level)
    needs = "paths" if ALL_SWAPPED in controls else "paths' latents"
    return [f"It needs the {needs}, but {said} ({mixed}; controls that it does not beat: {', '.join(level)})."]
