"""Which noise is best to collect with: enough that right and wrong paths mix, little enough that paths stay right.

latent-prm tune-noise --task arithmetic --noises 0.1,0.2,0.4

This room hides how strengths are compared: on the same questions, with the same draws of noise made weaker or stronger,
so that the curve is smooth and every difference is paired.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from latent_prm import preflight, screen
from latent_prm.files import save_json
from latent_prm.growth import Growth
from latent_prm.metrics import Interval, bootstrap_intervals, rounded
from latent_prm.options import GrowthOptions, TuneNoiseOptions
from latent_prm.plots import NoiseLine, NoisePanel, NoMatplotlib, noise_curve
from latent_prm.pretrained import find_device, versions
from latent_prm.reasoner import Reasoner, batch_size
from latent_prm.shards import outcomes
from latent_prm.stopping import ending_on_sigterm
from latent_prm.tasks import Question, Task, load_task
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

ALL = "all tasks"
LINES: tuple[NoiseLine, ...] = ("mixed", "random", "vote", "oracle")
NUM_BOOTSTRAP = 2000
_TIE = 1e-9  # Shares that differ by less are equal: the same sum in another order differs by rounding.


class Outcome(NamedTuple):
    """How one question came out at one strength; the accuracies are expected ones, 0..1."""

    task: str
    noise_free: float | None
    """None where the noise-free path was not grown: it is the same at every strength."""
    mixed: float
    random: float
    vote: float
    oracle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What every strength does to a set of questions. All numbers are shares (0..1), not per cent."""

    noises: list[float]
    """Weakest first."""
    num_questions: int
    noise_free: Interval
    """How often the noise-free path is right."""
    lines: dict[NoiseLine, list[Interval]]
    """Per noise: the share of mixed questions, and the accuracy of a single noisy path, their majority and any."""
    loss: list[Interval]
    """Per noise: the noise-free accuracy less the single path's, paired over questions."""
    chosen: float
    bounded: bool
    """Whether the chosen noise loses no more than it may. False: none does, and it is the one that loses least."""

    @property
    def mixes(self) -> bool:
        """Whether any noise makes any question mixed."""
        return any(share.mean for share in self.lines["mixed"])


def main(options: TuneNoiseOptions) -> dict[str, Curve]:
    """Run the stage: draw, load, grow every strength, choose, report. Returns a curve per task, and of all, last.

    Raises ValueError (or one of its kin) in plain words, KeyboardInterrupt on Ctrl-C and SystemExit(143) on SIGTERM.
    """
    logging.basicConfig(format="[Tuner] %(message)s")
    logging.getLogger("latent_prm").setLevel(logging.INFO)
    with ending_on_sigterm():
        began = time.monotonic()
        preflight.can_write(options.output_dir)
        find_device(options.device)
        task = load_task(options.task)
        questions = draw(options, task)
        reasoner, growth = load(options, questions)
        found = grow(questions, reasoner, task, growth, options)
        curves = choose(found, options.max_loss, options.seed)
        report(curves, growth, options, {**reasoner.describe(), "seconds": round(time.monotonic() - began, 1)})
    return curves


def draw(options: TuneNoiseOptions, task: Task) -> list[Question]:
    """The questions, as many as wanted or all there are. Raises ValueError when there are none."""
    if options.split == "test":
        log.warning("These questions are from the test split: tune on others.")
    questions = list(islice(task.stream(options.split, options.seed), options.max_samples))
    if not questions:
        raise ValueError(f"{options.task} has no questions in the split {options.split}. Type another --split.")
    if len(questions) < options.max_samples:
        log.info("Only %d of %d questions are there.", len(questions), options.max_samples)
    return questions


def load(options: TuneNoiseOptions, questions: Sequence[Question]) -> tuple[Reasoner, Growth]:
    """The reasoner, and how it is to grow but for the noise. Raises ValueError for a question that is too long."""
    reasoner = Reasoner.from_pretrained(**options.reasoner())
    growth = reasoner.growth(**options.growth())
    for question in questions:  # now, not after an hour
        reasoner.check_length(question, growth)
    return reasoner, growth


# --- growing --------------------------------------------------------------------------------------------------------


def grow(
    questions: list[Question], reasoner: Reasoner, task: Task, growth: Growth, options: TuneNoiseOptions
) -> dict[float, list[Outcome]]:
    """How each question came out at every strength. What ends it early first prints what has been measured.

    Batch by batch each is grown at all strengths, so that a run cut short has the whole curve of fewer questions.
    """
    strengths = options.strengths()
    found: dict[float, list[Outcome]] = {strength: [] for strength in strengths}
    size = options.batch_size or batch_size(reasoner, questions, growth)
    try:
        with screen.bar(total=len(questions) * len(strengths), desc="Tuning", unit=" trees") as bar:
            for start in range(0, len(questions), size):
                batch = questions[start : start + size]
                for strength in strengths:
                    bar.set_postfix_str(f"noise {strength:g}")
                    once = replace(growth, noise=strength, noise_free=strength == strengths[0])
                    found[strength] += map(outcome, reasoner.grow(batch, task, once))
                    bar.update(len(batch))
    except BaseException:
        if known := measured(found):
            print_curves(choose(known, options.max_loss, options.seed), growth.num_paths, options.max_loss)
        done = max(map(len, known.values()), default=0)
        log.warning(
            "Stopped: measured on %d of %d questions at %d of %d strengths; nothing is saved.",
            *(done, len(questions), len(known), len(found)),
        )
        raise
    return found


def outcome(tree: ReasoningTree) -> Outcome:
    """How a tree came out, counted as in a shard's metadata."""
    found = outcomes([tree])
    single, majority, any_path = (found["accuracy"][name] for name in ("random_path", "majority", "any_path"))
    return Outcome(tree.task, found["accuracy"]["noise_free"], found["mixed_share"], single, majority, any_path)


def measured(found: dict[float, list[Outcome]]) -> dict[float, list[Outcome]]:
    """The questions known at every strength; while there are none, the strengths that are done with the first batch."""
    done = min(map(len, found.values())) or max(map(len, found.values()))
    return {strength: known[:done] for strength, known in found.items() if len(known) >= done > 0}


# --- choosing -------------------------------------------------------------------------------------------------------


def choose(found: dict[float, list[Outcome]], max_loss: float, seed: int) -> dict[str, Curve]:
    """The curve and the best noise of each task and, where there are several, of all together, which stands last.

    ``found`` has the same questions, in the same order, at every strength, and their noise-free outcomes at the first.
    """
    tasks = [outcome.task for outcome in next(iter(found.values()))]
    groups = {name: [i for i, task in enumerate(tasks) if task == name] for name in sorted(set(tasks))}
    if len(groups) > 1:
        groups[ALL] = list(range(len(tasks)))
    return {
        name: _curve({strength: [known[i] for i in group] for strength, known in found.items()}, max_loss, seed)
        for name, group in groups.items()
    }


def _curve(found: dict[float, list[Outcome]], max_loss: float, seed: int) -> Curve:
    noises = sorted(found)
    free = np.array([outcome.noise_free for outcome in found[noises[0]]], dtype=float)
    rows = {
        line: [np.array([getattr(o, line) for o in found[noise]], dtype=float) for noise in noises] for line in LINES
    }
    losses = [free - single for single in rows["random"]]
    every = np.stack([free, *losses, *(row for line in LINES for row in rows[line])])
    first, *rest = bootstrap_intervals(every, NUM_BOOTSTRAP, seed)
    loss, *lines = (rest[i : i + len(noises)] for i in range(0, len(rest), len(noises)))
    mixed = [interval.mean for interval in lines[0]]
    chosen, bounded = best(noises, mixed, [interval.mean for interval in loss], max_loss)
    return Curve(
        noises=noises,
        num_questions=len(free),
        noise_free=first,
        lines=dict(zip(LINES, lines, strict=True)),
        loss=loss,
        chosen=chosen,
        bounded=bounded,
    )


def best(
    noises: Sequence[float], mixed: Sequence[float], losses: Sequence[float], max_loss: float
) -> tuple[float, bool]:
    """The noise with the most mixed questions of those that lose no more than allowed, and True; of equals the weaker.

    Where all lose more: the one that loses least, and False. Point estimates decide, whatever their intervals.
    """
    allowed = [i for i, loss in enumerate(losses) if loss <= max_loss + _TIE]
    if allowed:
        most = max(mixed[i] for i in allowed)
        return min(noises[i] for i in allowed if mixed[i] >= most - _TIE), True
    least = min(losses)
    return min(noise for noise, loss in zip(noises, losses, strict=True) if loss <= least + _TIE), False


def onward(curve: Curve) -> tuple[str, list[float]]:
    """Why the best noise may lie beyond those that were tried, in words, and which to try next; "" if it does not."""
    chosen, weakest, strongest = curve.chosen, curve.noises[0], curve.noises[-1]
    if not curve.bounded:
        return "A weaker one may lose less.", [weakest / 8, weakest / 4, weakest / 2]
    if max(interval.mean for interval in curve.lines["mixed"]) == 0:
        return "No question is mixed at any of them; a stronger one may do it.", [strongest * k for k in (2, 4, 8)]
    if weakest == strongest:
        return "It is the only one that was tried.", [chosen / 2, chosen, chosen * 2]
    if chosen == strongest:
        return "It is the strongest that was tried; a stronger one may be better.", [chosen * k for k in (1, 1.5, 2, 3)]
    if chosen == weakest:
        between = (chosen + curve.noises[1]) / 2
        return "It is the weakest that was tried; a neighbour may be better.", [chosen / 4, chosen / 2, chosen, between]
    return "", []


# --- reporting ------------------------------------------------------------------------------------------------------


def report(curves: dict[str, Curve], growth: Growth, options: TuneNoiseOptions, facts: dict[str, Any]) -> None:
    """Print the tables and what is chosen, write noise.json and noise.png, and say what to type next."""
    print_curves(curves, growth.num_paths, options.max_loss)
    print()
    save(curves, growth, options, facts)
    screen.console().print(f"\nNext: {next_command(curves, options)}", soft_wrap=True)


def print_curves(curves: dict[str, Curve], num_paths: int, max_loss: float, console: Console | None = None) -> None:
    """Print a table per task, the chosen noise marked in it, and why it is chosen."""
    console = console or screen.console()
    for name, curve in curves.items():
        console.print()
        console.print(_table(name, curve, num_paths))
        console.print()
        for line in verdict(curve, max_loss):
            console.print(line)
    own = {name: curve.chosen for name, curve in curves.items() if name != ALL and curve.bounded}
    if len(set(own.values())) > 1:
        told = ", ".join(f"{name} {noise:g}" for name, noise in own.items())
        console.print(f"\nThe tasks differ ({told}): collect each by itself to give each its own --noise.")


def _table(name: str, curve: Curve, num_paths: int) -> Table:
    title = f"{name}: {curve.num_questions} questions, % [95 % interval over questions]"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("noise", "mixed", "single path", "majority", f"any of {num_paths}", "loss"):
        table.add_column(column, justify="right")
    table.add_row("none", "", _per_cent(curve.noise_free), "", "", "")
    for i, noise in enumerate(curve.noises):
        cells = [_per_cent(curve.lines[line][i]) for line in LINES] + [_per_cent(curve.loss[i])]
        marked = noise == curve.chosen
        table.add_row(f"{'→ ' if marked else ''}{noise:g}", *cells, style="bold" if marked else "")
    return table


def _per_cent(interval: Interval) -> str:
    """The mean to a tenth, its interval to a whole: what so few questions tell, and what fits 80 columns."""
    mean, low, high = (100 * share for share in (interval.mean, interval.low, interval.high))
    return f"{rounded(mean)} [{rounded(low, 0)},{rounded(high, 0)}]"


def verdict(curve: Curve, max_loss: float) -> list[str]:
    """In words: which noise is chosen, why, and what to type when a better one may lie beyond those that were tried."""
    i = curve.noises.index(curve.chosen)
    loss, mixed = 100 * curve.loss[i].mean, 100 * curve.lines["mixed"][i].mean
    points = f"{100 * max_loss:g} points of the noise-free accuracy (point estimates)"
    if not curve.mixes:
        alike = "right" if curve.noise_free.mean > 0.5 else "wrong"
        said = f"Nothing can be chosen: on every question all paths are alike, mostly {alike}."
    elif curve.bounded:
        said = f"Chosen: noise {curve.chosen:g}. Of those that lose at most {points}, it mixes most: {mixed:.1f} %."
    else:
        said = f"Every noise loses more than {points}. {curve.chosen:g} loses least: {loss:.1f}."
    why, noises = onward(curve)
    or_else = "" if curve.bounded else ", or a higher --max_loss"
    return [said, f"{why} To go on, type --noises {_spell(noises)}{or_else}"] if why else [said]


def _spell(noises: Sequence[float]) -> str:
    return ",".join(f"{noise:.3g}" for noise in noises)


def next_command(curves: dict[str, Curve], options: TuneNoiseOptions) -> str:
    """What to type after this: the collection with the noise chosen for all tasks, else a search among weaker ones."""
    overall = list(curves.values())[-1]
    if overall.bounded and overall.mixes:
        return _typed("collect", GrowthOptions, options, noise=f"{overall.chosen:g}")
    return _typed("tune-noise", TuneNoiseOptions, options, noises=_spell(onward(overall)[1]))


def _typed(command: str, kind: type[GrowthOptions], options: TuneNoiseOptions, **given: str) -> str:
    """The command with the task, what is given, and whatever of this kind of options was typed here."""
    words = ["latent-prm", command, "--task", options.task]
    for field in fields(kind):
        value = given.get(field.name, getattr(options, field.name))
        if field.name != "task" and value != field.default:
            words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return shlex.join(words)


def save(curves: dict[str, Curve], growth: Growth, options: TuneNoiseOptions, facts: dict[str, Any]) -> None:
    """Write noise.json (``facts`` say what it was measured with) and, with matplotlib, noise.png."""
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(growth).items() if name not in ("noise", "noise_free", "seed")}
    found = {
        **{"task": options.task, "model": options.model_path, "split": options.split, "seed": options.seed, **facts},
        "options": asdict(options),
        "settings": settings | {"num_paths": growth.num_paths},
        "versions": versions(),
        "curves": {name: asdict(curve) for name, curve in curves.items()},
    }
    save_json(found, folder / "noise.json")
    print(f"Saved {folder / 'noise.json'}")
    panels = [
        NoisePanel(
            title=f"{name}, {curve.num_questions} questions",
            noise_free=curve.noise_free,
            lines=curve.lines,
            marked=curve.chosen,
            said=f"{'chosen' if curve.bounded else 'least loss'}: {curve.chosen:g}",
        )
        for name, curve in curves.items()
    ]
    try:
        noise_curve(options.strengths(), panels, folder / "noise.png")
        print(f"Saved {folder / 'noise.png'}")
    except NoMatplotlib as missing:
        print(missing)
