"""An evaluation as text: tables that fit 80 to 100 columns, and what they say in words.

This room hides how numbers are rounded and when one may say "beats". First comes what everybody wants to know, per task
and for all together; what only some want stands below it, for all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from latent_prm.comparison import Comparison, Discrimination, Rival
from latent_prm.evaluation import Evaluation
from latent_prm.metrics import CHOSEN, METHODS, MOST_SUBSETS, Interval, Method
from latent_prm.plots import LABELS
from latent_prm.predictions import Coverage

MAIN: tuple[Method, ...] = ("noise_free", "random", "vote", "best", "weighted_vote", "auto", "oracle")
"""The methods of the first table."""
GAINS: tuple[Method, ...] = ("best", "weighted_vote", "auto")
BASES: tuple[Method, ...] = ("vote", "noise_free")
SURE = 0.8
"""The threshold that is spoken of."""
VITAL = ("latents swapped", "noise only")
"""The controls without the paths' own thoughts: who is no better than these has learnt nothing from them."""


def print_evaluation(evaluations: Evaluation | dict[str, Evaluation], console: Console | None = None) -> None:
    """Print, per task and for all together: the methods' accuracy, the PRM's gains, and what is true in words; then, of
    a single evaluation, the longer tables.

    Several evaluations, by the name of their PRM, of the same paths share their tables.
    """
    console = console or Console(highlight=False, markup=False)
    if isinstance(evaluations, Evaluation):
        evaluations = {"PRM": evaluations}
    first = next(iter(evaluations.values()))
    for name in first.comparisons:
        by_prm = {prm: evaluation.comparisons[name] for prm, evaluation in evaluations.items()}
        console.print()
        console.print(_accuracy_table(by_prm, name, MAIN))
        console.print()
        console.print(_gain_table(by_prm))
        console.print()
        for prm, comparison in by_prm.items():
            heading = [f"{prm}:"] if len(by_prm) > 1 else []
            said = [*_about_scores(comparison), *_remarks(comparison), *verdict(comparison, prm)]
            for line in (*heading, *said):
                console.print(line)
    if len(evaluations) == 1:
        _print_details(first, console)
    for line in _left_out(first):
        console.print(line)


def _left_out(evaluation: Evaluation) -> list[str]:
    lines = [f"Questions left out ({reason}): {count}" for reason, count in evaluation.skipped.items() if count]
    if evaluation.calibrated_on is None:
        lines.append("There are too few questions to calibrate on: no calibrated probability, no auto rule.")
    return lines


def _print_details(evaluation: Evaluation, console: Console) -> None:
    """The longer tables, of all questions together."""
    comparison, name = evaluation.overall, list(evaluation.comparisons)[-1]
    console.print(f"\n━━ In detail: {name} (each task's own: evaluation.json)")
    tables = [
        _accuracy_table({"PRM": comparison}, "every rule", [m for m in METHODS if m == "vote" or m in CHOSEN]),
        *([_rival_table(comparison), _best_table(comparison)] if comparison.rivals else []),
        *([_step_table(comparison.steps)] if comparison.steps else []),
        _forecast_table(comparison, evaluation.calibrated_on),
        *([_error_table(comparison)] if any(each[0].answers > 1 for each in comparison.errors.values()) else []),
        *([_abstaining_table(comparison)] if comparison.abstaining else []),
    ]
    for table in tables:
        console.print()
        console.print(table)
    console.print()


# --- tables ---------------------------------------------------------------------------------------------------------


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    """A table that fits 80 columns where the numbers do."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _accuracy_table(by_prm: dict[str, Comparison], title: str, methods: Sequence[Method]) -> Table:
    first = next(iter(by_prm.values()))
    sizes = first.table_sizes
    title = f"{title}: {first.num_questions} questions, answered right, % [95 % interval over questions]"
    if first.num_prms > 1:
        title += f", mean of {first.num_prms} PRMs ± their standard deviation"
    table = _table(title, "chosen by", [f"N = {size}" for size in sizes])
    for method in methods:
        for prm, comparison in by_prm.items() if method in CHOSEN else [("", first)]:
            if method in comparison.accuracy:
                shown = (_per_cent(comparison.accuracy[method][size]) for size in sizes)
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
                share = "no gap" if gap is None else _per_cent(gap, digits=0)
                gains = (_per_cent(comparison.differences[method][rival], "+") for rival in rivals)
                table.add_row(_label(method, prm), *gains, share)
    return table


def _rival_table(comparison: Comparison) -> Table:
    """The vote by each rival and control, its AUROC, and the PRM's gains."""
    title = f"rivals and controls on the same paths at N = {comparison.num_paths}, and what the PRM has over them"
    table = _table(title, "scored by", ["vote, %", "PRM gains", "AUROC", "PRM gains"])
    own = comparison.accuracy["weighted_vote"][comparison.num_paths]
    table.add_row("the PRM", f"{100 * own.mean:.1f}", "", _mean(comparison.auroc), "")
    for name, rival in _in_sections(comparison, table):
        gain = rival.gains.get("auroc")
        shown = [f"{100 * rival.vote.mean:.1f}", _per_cent(rival.gains["vote"], "+"), _mean(rival.auroc)]
        table.add_row(name, *shown, _area(gain, "+"))
    return table


def _in_sections(comparison: Comparison, table: Table) -> Iterator[tuple[str, Rival]]:
    """First the rivals, then the controls, each under a line that says so."""
    for control, heading in ((False, "rivals"), (True, "controls")):
        own = {name: rival for name, rival in comparison.rivals.items() if rival.control == control}
        if own:
            table.add_section()
            table.add_row(f"{heading}:")
        yield from own.items()


def _best_table(comparison: Comparison) -> Table:
    """The best path by each rival and control, and its AUROC's interval."""
    title = f"best path by rivals and controls, of N = {comparison.num_paths}"
    table = _table(title, "scored by", ["best, %", "PRM gains", "AUROC"])
    for name, rival in _in_sections(comparison, table):
        gain = _per_cent(rival.gains["best"], "+")
        table.add_row(name, _per_cent(rival.best), gain, _area(rival.auroc))
    return table


def _step_table(steps: Sequence[Discrimination]) -> Table:
    columns = ["AUROC", "pairs in order, %", "pooled AUROC", "mixed questions"]
    table = _table("scores after each latent, within questions", "latent", columns)
    for t, step in enumerate(steps, 1):
        pairs = "none" if step.pairwise is None else _per_cent(step.pairwise)
        pooled = "none" if step.pooled is None else f"{step.pooled:.3f}"
        table.add_row(str(t), _area(step.auroc), pairs, pooled, str(step.num_mixed))
    return table


def _forecast_table(comparison: Comparison, calibrated_on: int | None) -> Table:
    """Brier and its parts before and after calibration; means over the PRMs."""
    where = {None: "", 0: "; calibrated: each half of the questions on the other"}
    title = "probabilities: Brier = reliability - resolution + uncertainty (+ a rest within bins)"
    title += where.get(calibrated_on, f"; calibrated on {calibrated_on} questions apart")
    columns = ["Brier", "reliability", "resolution", "uncertainty", "ECE", "skill"]
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
    title = "answering only where the calibrated probability is high enough"
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


def _per_cent(interval: Interval, sign: str = "", digits: int = 1) -> str:
    return _shown(interval, lambda share: format(round(100 * share, digits) + 0.0, f"{sign}.{digits}f"))


def _area(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "none"
    return _shown(interval, lambda area: format(round(area, 3) + 0.0, f"{sign}.3f").replace("0.", ".", 1))


def _shown(interval: Interval, rounded: Callable[[float], str]) -> str:
    """``+ 0.0`` in both: never "-0.0"."""
    spread = "" if interval.spread is None else f" ±{rounded(interval.spread).lstrip('+')}"
    return f"{rounded(interval.mean)} [{rounded(interval.low)}, {rounded(interval.high)}]{spread}"


def _mean(interval: Interval | None) -> str:
    return "none" if interval is None else f"{interval.mean:.3f}"


# --- words ----------------------------------------------------------------------------------------------------------


def _about_scores(comparison: Comparison) -> list[str]:
    """How well the predicted scores tell right from wrong paths, and how well they predict."""
    told, lines = comparison.discrimination, []
    if told.auroc is None or told.pairwise is None:
        lines.append("AUROC within questions: none, for no question has both right and wrong paths")
    else:
        lines.append(f"AUROC within questions: {_area(told.auroc)}, mean of the {told.num_mixed} mixed ones")
        lines.append(f"Pairs of a right and a wrong path in order: {_per_cent(told.pairwise)} %")
    if told.pooled is not None:
        lines.append(f"AUROC pooled over all paths (mostly how hard questions are): {told.pooled:.3f}")
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
    lines += [_about_abstaining(point) for point in comparison.abstaining if point.threshold == SURE]
    if comparison.over_question is not None:
        lines.append(f"Brier skill over a model that reads the question only: {comparison.over_question:+.3f}")
    return lines


def _about_abstaining(point: Coverage) -> str:
    right = "" if point.accuracy is None else f", {100 * point.accuracy:.1f} % of them right"
    return f"Answering only where {SURE:.0%} sure: {100 * point.coverage:.1f} % of the questions{right}"


def _remarks(comparison: Comparison) -> list[str]:
    """What a reader of the tables has to know, if anything."""
    lines = []
    if comparison.rules:
        lines.append(f"The auto rule, best on other questions: {', '.join(comparison.rules)}")
    if any(size in comparison.sampled for size in comparison.table_sizes):
        lines.append(f"Votes are over a sample of {MOST_SUBSETS} sets of paths where there are more.")
    if "noise_free" not in comparison.accuracy:
        lines.append("Some questions have no noise-free path, so there is no row for it.")
    if comparison.num_scored > comparison.num_questions * comparison.num_paths:
        lines.append(f"Some questions have more than {comparison.num_paths} paths: N stops at the fewest of any.")
    return lines


def verdict(comparison: Comparison, prm: str = "PRM") -> list[str]:
    """In words, whether each way of listening to the PRM beats majority and the noise-free path, and what of rivals and
    controls the PRM does not beat.

    It beats another when the whole interval of the paired difference lies above zero.
    """
    sentences = []
    for method in GAINS[:2]:
        against = comparison.differences[method]
        said = [f"{_outcome(against[base])} the {LABELS[base]}" for base in _bases(comparison)]
        sentences.append(f"With {comparison.num_paths} paths, {_label(method, prm)} {' and '.join(said)}.")
    return [*sentences, *_about_rivals(comparison), *_about_controls(comparison)]


def _outcome(difference: Interval) -> str:
    if difference.low > 0:
        return "beats"
    return "loses to" if difference.high < 0 else "does not measurably differ from"


def _about_rivals(comparison: Comparison) -> list[str]:
    rivals = {name: rival for name, rival in comparison.rivals.items() if not rival.control and rival.auroc}
    if not rivals:
        return []
    level = [name for name, rival in rivals.items() if rival.gains["auroc"].low <= 0]
    if not level:
        return [f"It tells right from wrong paths measurably better than each of {len(rivals)} rivals."]
    return [f"It does NOT tell right from wrong paths measurably better than: {', '.join(level)}."]


def _about_controls(comparison: Comparison) -> list[str]:
    """A PRM is worth nothing where it tells right from wrong no better without the paths' own thoughts."""
    controls = {name: rival for name, rival in comparison.rivals.items() if rival.control and rival.auroc}
    level = [name for name, rival in controls.items() if rival.gains["auroc"].low <= 0]
    if fatal := [name for name in level if name in VITAL]:
        said = (
            f"as far as {comparison.num_questions} questions can tell, it does no better than with {' or '.join(fatal)}"
        )
        return [f"This PRM is WORTHLESS here: {said}."]
    if not controls:
        return []
    if not level:
        return [
            f"It beats every one of its {len(controls)} controls: it reads the latents, and reads them as thoughts."
        ]
    means = {
        "question swapped": "it makes no use of the question",
        "order shuffled": "it makes no use of the latents' order",
    }
    said = "; ".join(means.get(name, f"it does as well with {name}") for name in level)
    return [f"It needs the paths' latents, but {said} (controls that it does not beat: {', '.join(level)})."]
