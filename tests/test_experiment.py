"""grid.py, findings.py and experiment.py: from a YAML file to a table, and what is not done twice."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from rich.console import Console

from latent_prm import collector, experiment, trainer
from latent_prm.__main__ import main as command
from latent_prm.demo import reader_folder
from latent_prm.experiment import main
from latent_prm.findings import Cell, Figure, Measured, better, csv_of, find, lines_of, markdown_of, tables_of
from latent_prm.grid import FIGURES, load_grid
from latent_prm.metrics import Interval, gap_recovered, paired_difference
from latent_prm.options import ExperimentOptions
from latent_prm.reporter import look
from latent_prm.run import Run

ROOT = Path(__file__).parent.parent

TINY = """
pools:
  train: {task: search, max_samples: 8, seed: 3, num_paths: 3, dtype: float32}
  validation: {task: search, split: validation, max_samples: 6, seed: 3, num_paths: 3, dtype: float32}
base: {num_epochs: 1, batch_size: 12, gradient_accumulation_steps: 1, val_size: 2,
  mixed_precision: false, report_to: none}
evaluate: [validation]
seeds: [1]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a YAML file: the tiny one, with more, or with parts replaced."""

    def into(more: str = "", name: str = "tiny", **replaced: str) -> Path:
        text = TINY + more
        for before, after in replaced.items():
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, "utf-8")
        return path

    monkeypatch.chdir(tmp_path)
    return into


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often pools are grown and PRMs trained."""
    counts = {"collector": 0, "trainer": 0}
    for stage in (collector, trainer):
        own, name = stage.main, stage.__name__.rpartition(".")[2]

        def run(options: Any, own: Callable[..., Any] = own, name: str = name, **more: Any) -> Any:
            counts[name] += 1
            return own(options, **more)

        monkeypatch.setattr(stage, "main", run)
    return counts


def lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text("utf-8").splitlines()))


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_grid(path)
    assert str(path) in str(error.value)
    return str(error.value).replace(str(path), "FILE")


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_grid_is_run_once_and_only_what_changed_is_run_again(
    write: Write, counted: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("reports/tiny")
    main(ExperimentOptions(path=str(write("arms: {bce: {loss: bce}, few: {questions: 5}}"))))
    assert counted == {"collector": 2, "trainer": 3}
    printed = capsys.readouterr().out
    assert "to do  3 of 3 trainings: 21 questions to read, 18 to score" in printed
    assert "[2/3] bce, seed 1: " in printed and "; 1 left" in printed
    after = printed.partition("[3/3] few, seed 1: ")[2]
    assert re.search(r"On validation: 6 questions, N = 3.*\nbase +[–\d]", after, re.DOTALL)
    assert "\nAlso in results.md: brier, ece\n" in after  # were asked for, and have no room above
    *_, saved, following = printed.strip().splitlines()
    assert saved.startswith("Saved reports/tiny/results.csv, reports/tiny/results.md")
    assert printed.count("Next: ") == 1 and following.startswith("Next: latent-prm report reports/tiny/runs/")
    assert look(Path(following.rpartition(" ")[2])).words == "training run"
    assert [(row["arm"], row["train_questions"]) for row in lines(folder)] == [
        ("base", "8"),
        ("bce", "8"),
        ("few", "5"),
    ]
    table = (folder / "results.md").read_text("utf-8")
    assert "## On validation: 6 questions, N = 3" in table and "Less base:" in table and "Not finished" not in table
    assert (folder / "experiment.yaml").read_text("utf-8") == Path("tiny.yaml").read_text("utf-8")
    runs = sorted(folder.glob("runs/*"))
    assert [sorted(path.name for path in run.iterdir() if path.is_dir()) for run in runs] == [["best"]] * 3
    few = next(run for run in runs if run.name.startswith("few-seed1-"))
    assert len(list(Path("reports/pools").glob("train-*-first5/*.pt"))) == 1
    assert '"questions": {\n    "train": 3,\n    "validation": 2' in (few / "training_stats.json").read_text("utf-8")

    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/measured-*.json")}
    main(ExperimentOptions(path="tiny.yaml"))  # nothing is done twice
    assert counted == {"collector": 2, "trainer": 3}
    assert "to do  0 of 3 trainings" in capsys.readouterr().out
    assert (folder / "results.md").read_text("utf-8") == table

    # An arm of another name and one of another kind; base and a renamed arm are known again, and the pool grows on.
    write("arms: {crossed: {loss: bce}, pairs: {loss: pairwise}}")
    main(ExperimentOptions(path="tiny.yaml"))
    assert counted == {"collector": 2, "trainer": 4}
    assert [row["arm"] for row in lines(folder)] == ["base", "crossed", "pairs"]
    assert before.items() <= {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/measured-*.json")}.items()

    # More questions to learn from: the pool grows on from where it is, and all is trained anew, for all is changed
    # but for the arm that learns from the same first five. Of that, another pool needs only measuring.
    more = {"max_samples: 8": "max_samples: 9", "base:": "  strong: {split: test, max_samples: 4, noise: 0.8}\nbase:"}
    write("arms: {few: {questions: 5}}", **more, **{"[validation]": "[validation, strong]"})
    main(ExperimentOptions(path="tiny.yaml"))
    assert counted == {"collector": 4, "trainer": 5}
    assert [(row["arm"], row["pool"]) for row in lines(folder)] == [
        (arm, pool) for arm in ("base", "few") for pool in ("validation", "strong")
    ]
    assert "| arm | validation | strong |" in (folder / "results.md").read_text("utf-8")


def test_a_killed_training_goes_on_and_becomes_the_one_that_never_stopped(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write("arms: {}", **{"batch_size: 12": "batch_size: 3, num_paths: 3, save_steps: 2"}))
    main(ExperimentOptions(path=path, output_dir="whole"))
    real, steps = trainer.optimizer_step, []

    def struck(run: Run, work: Any) -> Any:
        steps.append(run.state.step)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, in the fifth of six steps
        return real(run, work)

    monkeypatch.setattr(trainer, "optimizer_step", struck)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where tests run in the background, it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            main(ExperimentOptions(path=path, output_dir="cut"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path("cut/tiny/results.md").exists()
    told = "".join(capsys.readouterr())
    assert "SIGINT: stopped after step 5" in told and "--resume" not in told  # which an experiment does not have
    main(ExperimentOptions(path=path, output_dir="cut"))
    assert steps == [0, 1, 2, 3, 4, 5]
    whole, cut = (next(Path(name).glob("tiny/runs/*/best/pytorch_model.bin")) for name in ("whole", "cut"))
    assert hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(cut.read_bytes()).digest()
    for row, other in zip(lines(Path("whole/tiny")), lines(Path("cut/tiny")), strict=True):
        assert row | {"minutes": ""} == other | {"minutes": ""}


def test_a_cell_that_fails_is_named_and_stops_no_other_and_is_tried_again(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], counted: dict[str, int]
) -> None:
    path = str(write("arms: {far: {learning_rate: 3e-3}, nowhere: {model_path: ./no/such}}\n"))
    real = experiment.measure

    def full(*given: Any) -> NoReturn:
        raise OSError(28, "No space left on device", "results")

    with pytest.raises(ValueError, match=r"^arm 'nowhere': No model in \./no/such"):  # before anything is grown
        main(ExperimentOptions(path=path))
    assert counted == {"collector": 0, "trainer": 0} and not Path("reports").exists()
    path = str(write("arms: {far: {learning_rate: 3e-3}}\n"))
    monkeypatch.setattr(experiment, "measure", full)
    assert command(["experiment", path]) == 1
    told = capsys.readouterr()
    assert "[1/2] base, seed 1: ✗" in told.out and "No space left" in told.out
    assert "2 of 2 trainings failed: base, seed 1; far, seed 1." in told.err
    monkeypatch.setattr(experiment, "measure", real)
    calls = []
    monkeypatch.setattr(
        experiment, "measure", lambda *given: calls.append(given) or full() if not calls else real(*given)
    )
    assert command(["experiment", path]) == 1
    assert [row["arm"] for row in lines(Path("reports/tiny"))] == ["far"]
    assert "Not finished, and not in these figures: base, seed 1." in Path("reports/tiny/results.md").read_text("utf-8")
    assert command(["experiment", path]) == 0
    assert counted == {"collector": 2, "trainer": 2}  # what was trained was not trained again
    assert [row["arm"] for row in lines(Path("reports/tiny"))] == ["base", "far"]


def test_a_dry_run_does_nothing_and_axes_make_every_combination(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("axes: {questions: [2, 4], noise: [0.2, 0.5], loss: [mse, bce+0.5*listwise]}")
    main(ExperimentOptions(path=str(path), dry_run=True))
    printed = capsys.readouterr().out
    assert not Path("reports").exists()
    assert "to do  8 of 8 trainings: 24 questions to read, 48 to score" in printed
    assert "noise 0.5: 8 questions, 8 to grow" in printed
    arms = load_grid(path).arms
    assert (
        arms[0].name == "questions=2, noise=0.2, loss=bce+0.5*listwise"
    )  # the base's loss, and the first of what it does not say
    assert {(arm.questions, arm.pool.noise, arm.train.loss) for arm in arms} == {
        (n, noise, loss) for n in (2, 4) for noise in (0.2, 0.5) for loss in ("mse", "bce+0.5*listwise")
    }


def test_a_random_start_has_the_backbones_shape_its_own_weights_and_any_depth(tmp_path: Path) -> None:
    from transformers import AutoModel

    shallow, again = (experiment.random_start(tmp_path, "builtin", 2, seed=1) for _ in range(2))
    other = experiment.random_start(tmp_path, "builtin", None, seed=2)
    assert shallow == again != other
    small, whole = AutoModel.from_pretrained(shallow), AutoModel.from_pretrained(other)
    trained = AutoModel.from_pretrained(reader_folder())
    assert len(small.layers) == 2 and len(whole.layers) == len(trained.layers)
    weights = (model.layers[0].mlp.up_proj.weight for model in (small, whole, trained))
    one, two, three = (weight.detach().float().numpy() for weight in weights)
    assert one.shape == two.shape == three.shape
    assert abs(np.corrcoef(two.ravel(), three.ravel())[0, 1]) < 0.1 and not np.array_equal(one, two)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "replaced", "said"),
    [
        ("arms: {a: {los: bce}}", {}, "FILE: arm 'a': unknown key 'los' (did you mean loss?)."),
        ("arms: {a: {loss: bcee}}", {}, "FILE: arm 'a': --loss is 'bcee', but 'bcee' is none of"),
        ("arms: {a: {num_epochs: two}}", {}, "FILE: arm 'a': num_epochs is 'two'. Type a whole number."),
        ("arms: {a: {num_epochs: true}}", {}, "FILE: arm 'a': num_epochs is True. Type a whole number."),
        ("arms: {a: {sees: forest}}", {}, "FILE: arm 'a': sees is 'forest'. Type chain, tree."),
        ("arms: {a: {seed: 3}}", {}, "FILE: arm 'a': seed is not for an arm to say: type \"seeds: [1, 2]\""),
        ("arms: {a: {pool: trian}}", {}, "FILE: arm 'a': there is no pool 'trian' (did you mean train?)."),
        ("arms: {a: {questions: 9}}", {}, "FILE: arm 'a': questions is 9, but pool train has 8."),
        ("arms: {a: {noise: -1}}", {}, "FILE: arm 'a': --noise is -1.0, but it must be at least 0."),
        ("arms: {a: {depth: 3}}", {}, "FILE: arm 'a': depth is 3: it must be at least 1, and needs \"start: random\"."),
        ("arms: {a: {loss: bce+0.5*listwise}}", {}, "FILE: arms 'base' and 'a' are the same training."),
        ("arms: {a: {reads: hidden}}", {}, "FILE: arm 'a' reads hidden, but the pool it learns from has no hidden"),
        ("arms: {a: {keep_hidden: true, reads: hidden}}", {}, "but validation has no hidden states."),
        ("arms: {a: {loss: bce}, a: {loss: mse}}", {}, "'a' is there twice"),
        ("arms: {base: {loss: bce}}", {}, "FILE: arm 'base': type another name"),
        ("arms: [bce]", {}, "FILE: arms is ['bce']. Type a name for each"),
        ("", {}, 'FILE: type "arms:"'),
        ("arms: {}\naxes: {loss: [bce]}", {}, 'FILE: type "arms:"'),
        ("axes: {loss: bce}", {}, "FILE: axes: loss is 'bce'. Type the values to try"),
        ("axes: {loss: [bce, bce]}", {}, "FILE: axes: loss: 'bce' is there twice."),
        ("arms: {}\nfigures: [auroc, gap]", {}, "FILE: figures: no 'gap'"),
        ("arms: {}", {"evaluate: [validation]": "evaluate: [test]"}, "FILE: evaluate: there is no pool 'test'"),
        ("arms: {}", {"evaluate: [validation]": ""}, "FILE: evaluate is None. Type some of the pools"),
        ("arms: {}", {"seeds: [1]": "seeds: 3"}, "FILE: seeds is 3. Type whole numbers: [1, 2]"),
        (
            "arms: {}",
            {"num_paths: 3": "num_path: 3"},
            "FILE: pools: 'train': unknown key 'num_path' (did you mean num_p",
        ),
        ("arms: {}", {"split: validation": "split: valid"}, "split is 'valid'. Type train, validation, test."),
        ("arms: {}", {"seed: 3, num": "output_dir: x, num"}, "output_dir is not for a file to say"),
        ("arms: {}\nname: ../up", {}, "FILE: name is '../up'. It becomes a folder"),
        ("arms: {}\nepochs: 3", {}, "FILE: unknown key 'epochs'"),
        ("arms: !!python/object/apply:os.getcwd []", {}, "FILE: not readable as YAML"),
    ],
)
def test_what_cannot_be_is_refused_by_name(more: str, replaced: dict[str, str], said: str, write: Write) -> None:
    assert said in refused(write(more, **replaced))


def test_what_only_the_questions_can_tell_is_refused_before_anything_is_grown(
    write: Write, counted: dict[str, int]
) -> None:
    same = write("arms: {}", **{"split: validation, max_samples: 6": "max_samples: 6"})
    with pytest.raises(ValueError, match="arm 'base' would learn from all 6 questions of pool 'validation'"):
        main(ExperimentOptions(path=str(same)))
    with pytest.raises(ValueError, match="unknown task 'serch' "):
        main(ExperimentOptions(path=str(write("arms: {}", **{"{task: search, max": "{task: serch, max"}))))
    with pytest.raises(ValueError, match=r"No such experiment file: nowhere\.yaml"):
        main(ExperimentOptions(path="nowhere.yaml"))
    assert counted == {"collector": 0, "trainer": 0} and not Path("reports").exists()


def test_numbers_and_words_that_yaml_takes_for_something_else_are_understood(write: Write) -> None:
    train = (
        load_grid(write("arms: {a: {learning_rate: 3e-4, compile: off, report_to: none, val_size: 0}}")).arms[1].train
    )
    assert (train.learning_rate, train.compile, train.report_to, train.val_size) == (3e-4, "off", "none", 0)


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.yaml")), ids=lambda path: path.stem)
def test_the_grids_that_come_with_the_project_are_sound(path: Path) -> None:
    grid = load_grid(path)
    assert grid.name == path.stem and len(grid.arms) > 2 and len(grid.seeds) >= 2
    assert all(pool.split == "validation" for pool in grid.evaluate.values())


# --- figures ----------------------------------------------------------------------------------------------------------


def measured(best: list[float], auroc: list[float | None] | None = None, first: int = 0, ece: float = 0.1) -> Measured:
    n = len(best)
    rows: dict[str, list[float | None]] = {"best": [*best], "vote": [0.0, 1.0] * (n // 2), "oracle": [1.0] * n}
    rows |= {"noise_free": [0.0] * n, "auroc": auroc or [None] * n, "brier": [0.25] * n}
    return Measured(questions=[f"q{first + i}" for i in range(n)], num_paths=4, rows=rows, ece=ece)


def test_figures_are_means_over_seeds_with_both_kinds_of_intervals() -> None:
    base = [measured([1, 0, 1, 0], [0.6, None, 0.8, None]), measured([1, 1, 1, 0], [0.8, None, 1.0, None], ece=0.3)]
    better_one = [measured([1, 1, 1, 1]), measured([1, 1, 1, 0])]
    cells = [Cell("base", s, "test", own, {}) for s, own in enumerate(base)]
    cells += [Cell("new", s, "test", own, {}) for s, own in enumerate(better_one)]
    found = find(cells, ["base", "new"], FIGURES, num_bootstrap=500)["test"]
    best = found["base"]["best"]
    assert best.seeds == [0.5, 0.75] and best.mean == 0.625 and best.gain is None
    assert best.spread == pytest.approx(np.std([0.5, 0.75], ddof=1))
    means = np.array([1, 0.5, 1, 0]), np.array([1, 1, 1, 0.5])
    assert found["new"]["best"].gain == paired_difference(means[1], means[0], 500, 42)
    assert found["base"]["auroc"].seeds == pytest.approx([0.7, 0.9]) and "auroc" not in found["new"]
    assert found["base"]["ece"].mean == pytest.approx(0.2) and found["base"]["ece"].interval is None
    gap = found["new"]["gap_best"]  # majority is right in half; of the other half the best are 1 and 1/2
    expected = gap_recovered(means[1], np.ones(4), [np.array([0.0, 1, 0, 1]), np.zeros(4)], 500, 42)
    assert gap.interval == expected and gap.mean == 0.75 and gap.seeds == [1, 0.5]
    assert gap.gain is not None and gap.gain.mean == 0.75 - 0.25
    assert set(found["base"]) == {"best", "gap_best", "auroc", "brier", "ece", "noise_free", "vote", "oracle"}


def test_arms_are_compared_on_the_questions_that_all_were_measured_on() -> None:
    cells = [
        Cell("base", 1, "test", measured([1, 1, 0, 0]), {}),
        Cell("new", 1, "test", measured([0, 1, 1, 1], first=2), {}),
    ]
    found = find(cells, ["base", "new"], ["best"], num_bootstrap=50)["test"]
    assert (found["base"]["best"].mean, found["new"]["best"].mean) == (0, 0.5)  # q2 and q3
    rows = list(csv.DictReader(csv_of(cells, ["best"]).splitlines()))
    assert [(row["test_questions"], float(row["best"])) for row in rows] == [("4", 0.5), ("4", 0.75)]


def test_only_what_is_measurably_better_is_bold() -> None:
    n = 40
    cells = [Cell("base", 1, "test", measured([0.0, 1.0] * (n // 2)), {})]
    cells += [Cell("lucky", 1, "test", measured([1.0, 1.0] + [0.0, 1.0] * (n // 2 - 1)), {})]
    names = ["best", "brier"]
    table = markdown_of(find(cells, ["base", "lucky"], names), cells, names, "base")
    assert "| lucky | 1 | 52.5 [" in table and "**" not in table
    assert "| lucky | +2.5 [+0.0, +7.5] | +0.0 [+0.0, +0.0] |" in table
    cells += [Cell("new", 1, "test", measured([1.0] * n), {}), Cell("new", 1, "strong", measured([1.0] * n), {})]
    table = markdown_of(find(cells, ["base", "lucky", "new"], names), cells, names, "base")
    assert "| new | 1 | **100.0 [100.0, 100.0]** |" in table
    assert "| arm | test | strong |" in table  # several pools: one table of all
    low = Figure(seeds=[0.1], mean=0.1, interval=None, gain=Interval(-0.2, -0.3, -0.1))
    assert better("brier", low) and not better("best", low)


def test_the_terminal_s_table_fits_100_columns_however_many_figures_there_are() -> None:
    arms = ["questions=16000, loss=bce+0.5*listwise", "questions=16000, loss=bce+0.25*pairwise"]
    n = 40
    cells = [Cell(arms[0], 1, "test", measured([0.0] * n), {}), Cell(arms[1], 1, "test", measured([1.0] * n), {})]
    (table,) = tables_of(find(cells, arms, FIGURES), cells, FIGURES, arms[0])
    told = io.StringIO()
    Console(file=told, width=100, highlight=False, markup=False).print(table)
    assert "On test: 40 questions, N = 4" in told.getvalue() and "+100.0 [+100.0, +100.0]" in told.getvalue()


def test_a_picture_needs_an_axis_with_numbers(tmp_path: Path) -> None:
    cells = [Cell(f"{n} {loss}", 1, "test", measured([1, 0, 1, 1]), {}) for n in (250, 4000) for loss in ("mse", "bce")]
    places = {f"{n} {loss}": {"questions": n, "loss": loss} for n in (250, 4000) for loss in ("mse", "bce")}
    found = find(cells, list(places), ["gap_best"], num_bootstrap=20)
    along = lines_of(found, places, "gap_best")
    assert along is not None and along[0] == "questions"
    assert {label: [x for x, _ in points] for label, points in along[1].items()} == {
        "loss=mse": [250, 4000],
        "loss=bce": [250, 4000],
    }
    pytest.importorskip("matplotlib")
    experiment.axis_curve(*along, "gap_best", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    words = {arm: {"loss": place["loss"]} for arm, place in places.items()}
    assert (
        lines_of(found, words, "gap_best") is None and lines_of(found, {arm: {} for arm in places}, "gap_best") is None
    )
