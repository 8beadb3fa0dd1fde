"""reporter.py and its rooms: what becomes of every kind of path, that nothing in it runs, and the page in a browser."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_tree

from latent_prm import charts, contest, evaluator, exhibits, reporter, sheet
from latent_prm.chronicle import typed
from latent_prm.evaluation import Evaluation, Scored, Scores, evaluate
from latent_prm.explorer import explorer_data, pick_trees
from latent_prm.files import BadFile, save_json
from latent_prm.grading import question_digest
from latent_prm.metrics import Interval
from latent_prm.model import QwenLatentPRM
from latent_prm.options import ReportOptions
from latent_prm.plots import ComputeCurve
from latent_prm.reviving import Unlike, revive
from latent_prm.shards import write_shard
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

pytest.importorskip("plotly", reason='plotly is the extra [report]: pip install "latent-prm[report]"')

EVIL = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> & "quoted"'
WIDTH, COUNT = 128, 44
"""Of the built-in PRM's latents; questions, enough to calibrate on."""


def asked(number: int, answers: str, task: str = "search", question: str | None = None) -> ReasoningTree:
    """A tree of a noise-free path that answers "1" (right), and of noisy ones with these answers."""
    noise = torch.Generator().manual_seed(number)

    def path(value: str, noise_free: bool = False) -> LatentPath:
        latents = torch.randn(3, WIDTH, generator=noise)
        given = Answer(text=value, value=value, correct=value == "1")
        return LatentPath(latents=latents, tip=latents[0], noise_free=noise_free, answers=[given])

    paths = [path("1", noise_free=True), *map(path, answers)]
    text = question or f"What is {number} + {number} ?"
    tree = ReasoningTree(question_id=f"{task}-{number}", question=text, gold="1", task=task, paths=paths)
    tree.back_up()
    return tree


def drawn(count: int, seed: int = 0) -> list[ReasoningTree]:
    """Two tasks; the first question means harm."""
    rng = np.random.default_rng(seed)
    rows = ["".join(rng.choice(["1", "2", "3"], 6, p=[0.4, 0.35, 0.25])) for _ in range(count)]
    trees = [asked(i, row, ("search", "arithmetic")[i % 2]) for i, row in enumerate(rows)]
    return [asked(0, "112223", question=EVIL), *trees[1:]]


@pytest.fixture(scope="module")
def trees() -> list[ReasoningTree]:
    return drawn(COUNT)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, trees: list[ReasoningTree]) -> Path:
    """A folder of shards."""
    folder = tmp_path_factory.mktemp("data") / "prm_data"
    facts = {"task": "arithmetic,search", "model": EVIL, "seed": 7, "settings": {"noise": 0.2}, "seconds": 61.5}
    write_shard(trees[:40], folder, "first", facts | {"truncated_answers": 3, "latents": 100})
    write_shard(trees[40:], folder, "second", facts | {"truncated_answers": 4, "latents": 50})
    return folder


@pytest.fixture(scope="module")
def found(trees: list[ReasoningTree]) -> Evaluation:
    """An evaluation by somebody who knows a little."""
    rng = np.random.default_rng(1)
    scores = []
    for tree in trees:
        right = np.array([float(path.answers[0].correct) for path in tree.paths])
        scores.append(np.clip(0.3 + 0.3 * right + 0.2 * rng.standard_normal(len(right)), 0, 1))
    steps = [[np.linspace(0.4, own, 3) for own in row] for row in scores]
    rivals: dict[str, Scores] = {"lots": [rng.random(len(row)) for row in scores]}
    return evaluate(trees, Scored(prms=[scores], steps=[steps], rivals=rivals), num_bootstrap=30)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, found: Evaluation, data: Path) -> Path:
    """The folder of an evaluation, whose trees are still there."""
    folder = tmp_path_factory.mktemp("evaluated")
    options = {"checkpoint": ["builtin"], "data_dir": str(data), "seed": 3, "num_bootstrap": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "draw", lambda *_: [])  # seconds, and nothing here looks at the pictures
        evaluator.save(found, folder, {"options": options, "bad_files": [], "seconds": 75.0})
    return folder


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a steering result."""
    folder, half = tmp_path_factory.mktemp("steered"), Interval(0.5, 0.25, 0.75)
    costs = {"prompts": 9.0, "latents": 6.0, "answers": 3.0, "scorer": 0.0, "total": 18.0}
    gains = {"gain": half, "at_equal_latents": (4, half), "at_equal_total": (3, half)}
    lines = [
        contest.Line(name="noise-free path", scorer="", right=half, costs=costs, paths=0.0),
        contest.Line(name="beam", scorer="prm", right=Interval(0.625, 0.5, 0.75), costs=costs, paths=4.0, **gains),
    ]
    curve = ComputeCurve("unsteered, vote", [6.0, 12.0], [18.0, 30.0], [half, half])
    stop = contest.Stop(
        scorer="prm", by="scores", confidence=0.9, share=half, right=half, gains={"weighted_vote": half, "best": half}
    )
    report = contest.Report(num_questions=8, lines=lines, curves=[curve], stops=[stop])
    options = {"methods": "beam", "model_path": "builtin", "checkpoint": "builtin", "seed": 42}
    save_json({"options": options, "seconds": 2.0, "reports": {"search": asdict(report)}}, folder / "steering.json")
    return folder


def run_folder(folder: Path, data: Path) -> Path:
    """What a training leaves behind, but for its checkpoints."""
    folder.mkdir()
    entries = [
        {"step": 10, "epoch": 1, "loss": 0.25, "lr": 1e-4, "grad_norm": 1.5},
        {"step": 20, "epoch": 1, "train_loss": 0.24, "val_loss": 0.21, "val_auroc": 0.6, "val_ece": 0.1},
        {"step": 30, "epoch": 2, "loss": 0.2, "lr": 0.0, "grad_norm": None},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 40, "ep')  # the last line was cut off
    best = {"loss": 0.21, "by": "validation", "epoch": 1, "step": 20}
    save_json({"total_steps": 30, "best": best, "training_time": 3700.0}, folder / "training_stats.json")
    options = {"data_dir": str(data), "learning_rate": 1e-4, "num_epochs": 2, "mixed_precision": False}
    save_json({"options": options, "resolved": {"device": "cpu"}, "versions": {"torch": "2"}}, folder / "config.json")
    return folder


class Read(HTMLParser):
    """A report, as a browser would read it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(file.read_text("utf-8"))
        self.text = "\n".join(self.words)
        self.data = json.loads(next(one for one in self.scripts if one.startswith('{"charts"')))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style" and data.strip():
            self.words.append(data.strip())


def reported(path: Path, target: Path, **options: Any) -> Read:
    return Read(reporter.main(ReportOptions(path=str(path), output=str(target), device="cpu", **options)))


# --- every kind of path -----------------------------------------------------------------------------------------------


def test_an_evaluation_s_numbers_are_in_the_file_as_they_are_in_evaluation_json(
    evaluated: Path, found: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Read(reporter.main(ReportOptions(path=str(evaluated), device="cpu")))
    assert "open it in any browser" in capsys.readouterr().out.lower()
    saved = json.loads((evaluated / "evaluation.json").read_text())["comparisons"]
    traces = [trace for figure in page.data["charts"] for trace in figure["data"]]

    def shown(name: str) -> list[tuple[list[float], list[float]]]:
        return [(trace["x"], trace["y"]) for trace in traces if trace.get("name") == name]

    for comparison in saved.values():
        votes = comparison["accuracy"]["vote"]
        assert ([int(size) for size in votes], [one["mean"] for one in votes.values()]) in shown("majority")
        bins = comparison["forecasts"]["paths"][0]["bins"]
        assert ([one["predicted"] for one in bins], [one["right"] for one in bins]) in shown("the PRM")
        areas = [step["auroc"]["mean"] for step in comparison["steps"]]
        assert ([1, 2, 3], areas) in shown("score after this latent")
        assert [comparison["rivals"]["lots"]["gains"]["auroc"]["mean"]] in [trace["x"] for trace in traces]
    auto = found.overall.accuracy["auto"][6]
    assert f"{100 * auto.mean:.1f} %" in page.words and "1 min 15 s" in page.words
    assert {"all tasks", "arithmetic", "search"} <= set(page.words)  # the tabs
    assert "latent-prm evaluate --checkpoint builtin --data_dir" in " ".join(page.words)
    assert "--num_bootstrap 30" in page.words and "rivals:" in page.words
    trees = page.data["trees"]
    assert len(trees["questions"]) == COUNT and trees["valued"] and trees["of"] == COUNT
    assert "The value along each path" in page.words


def test_what_a_path_is_is_found_out_by_what_is_in_it(
    data: Path, evaluated: Path, steered: Path, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", data)
    assert reporter.look(run).words == "training run"
    assert reporter.look(data).words == "data"
    assert reporter.look(evaluated).words == reporter.look(evaluated / "evaluation.json").words == "evaluation"
    assert reporter.look(steered / "steering.json").words == "steering"
    (run / "best" / "evaluation").mkdir(parents=True)
    (run / "best" / "evaluation" / "evaluation.json").write_bytes((evaluated / "evaluation.json").read_bytes())
    assert reporter.look(run).words == "training run and evaluation"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"nothing to report in .*odd \(there is notes.txt\). Type a training run"):
        reporter.look(tmp_path / "odd")
    with pytest.raises(ValueError, match="elsewhere does not exist"):
        reporter.look(tmp_path / "elsewhere")
    (run / "best" / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"is a checkpoint. Type its run: latent-prm report .*run$"):
        reporter.look(run / "best")


def test_a_folder_of_shards_says_what_it_holds_and_what_it_cost(data: Path, tmp_path: Path) -> None:
    page = reported(data, tmp_path / "report.html", questions=5)
    accounts = dict(zip(page.words, page.words[1:], strict=False))
    assert accounts["answers cut off at the longest length"] == "7" and accounts["latents thought"] == "150"
    assert accounts["seconds of growing, over all workers"] == "123" and accounts["paths"] == "308"
    assert "2 shards in" in page.text and "mixed questions" in page.words
    values, rates = (figure["layout"]["xaxis"] for figure in page.data["charts"][:2])
    assert values["tickangle"] == -40 and "tickangle" not in rates  # 0.0–0.10.1–0.2 would run together
    leaves = page.data["charts"][0]["data"][0]
    assert leaves["name"] == "leaves" and sum(leaves["y"]) == 308
    assert len(page.data["trees"]["questions"]) == 5
    assert all(question["mixed"] for question in page.data["trees"]["questions"])
    assert "5 of 44 trees" in page.text and "Values are predicted by builtin." in page.words
    with pytest.raises(ValueError, match=r"which is a folder\. Type a file"):
        reporter.output(reporter.look(data), ReportOptions(path=str(data), output=str(tmp_path)))


def test_a_file_is_named_after_what_it_shows_and_none_replaces_another(
    data: Path, evaluated: Path, steered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    for folder, name in ((evaluated, "evaluation.json"), (steered, "steering.json")):
        Path("reports", name).write_bytes((folder / name).read_bytes())
    run_folder(tmp_path / "run", data)
    paths = [str(data), "reports/steering.json", "reports/evaluation.json", "reports", "run"]
    targets = [str(reporter.output(reporter.look(Path(path)), ReportOptions(path=path))) for path in paths]
    names = ["prm_data", "steering", "evaluation", "report"]  # the folder itself shows both
    assert targets == [*(f"reports/{name}.html" for name in names), "run/report.html"]
    assert reporter.main(ReportOptions(path="reports/steering.json")) == Path("reports/steering.html")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which not even root may write")
def test_that_the_file_cannot_be_written_is_said_before_the_work(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "gather", lambda *_: pytest.fail("it worked first"))
    with pytest.raises(OSError, match=r"^/proc cannot be written to \(.+\)\. Type another --output\.$"):
        reported(data, Path("/proc/report.html"))


def test_a_run_shows_its_curves_and_marks_the_best_checkpoint(data: Path, tmp_path: Path) -> None:
    page = reported(run_folder(tmp_path / "run", data), tmp_path / "report.html", questions=4)
    by_name = {trace["name"]: trace for figure in page.data["charts"] for trace in figure["data"]}
    assert by_name["training"]["x"] == [10, 30] and by_name["training"]["y"] == [0.25, 0.2]
    assert by_name["best checkpoint"]["x"] == [20] and by_name["best checkpoint"]["y"] == [0.21]
    assert by_name["training"]["mode"] == "lines" and by_name["Gradient norm"]["mode"] == "lines+markers"  # of one
    assert by_name["Gradient norm"]["y"] == [1.5] and by_name["Learning rate"]["y"] == [1e-4, 0.0]
    assert "1 h 1 min" in page.words and "--learning_rate 0.0001" in page.words and "--no-mixed_precision" in page.words
    assert "no best and no final checkpoint yet" in page.text and not page.data["trees"]["valued"]


def test_of_a_run_the_validation_questions_are_shown(data: Path, trees: list[ReasoningTree], tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", data)
    (run / "best").mkdir()
    for name in ("config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"):
        (run / "best" / name).write_bytes((reporter.checkpoint_folder("builtin") / name).read_bytes())
    kept = [question_digest(tree.question) for tree in trees[:3]]
    save_json({"train": [], "validation": kept}, run / "best" / "questions.json")
    page = reported(run, tmp_path / "report.html")
    assert len(page.data["trees"]["questions"]) == 3 and page.data["trees"]["valued"]
    assert "These are the validation questions" in page.text


def test_steering_is_drawn_against_compute(steered: Path, tmp_path: Path) -> None:
    page = reported(steered, tmp_path / "report.html")
    latents, total, stops = (figure["data"] for figure in page.data["charts"])
    assert [trace["y"] for trace in latents if trace.get("name") == "beam, by prm"] == [[0.625]]
    assert [trace["x"] for trace in total if trace.get("name") == "unsteered, vote"] == [[18.0, 30.0]]
    assert [trace["x"] for trace in stops if trace.get("name") == "scores · prm"] == [[0.5]]
    assert "beam · prm" in page.words and "keeps no trees" in page.text and page.data["trees"] is None


def test_trees_beside_a_steering_result_are_shown_with_the_prm_that_steered(
    steered: Path, data: Path, tmp_path: Path
) -> None:
    page = reported(steered, tmp_path / "report.html", data_dir=str(data), questions=2)
    assert "Values are predicted by builtin." in page.words and page.data["trees"]["valued"]


# --- what is missing, and what is wrong -------------------------------------------------------------------------------


def test_what_is_missing_is_said_and_the_rest_is_there(
    evaluated: Path, data: Path, make_tree: Any, tmp_path: Path
) -> None:
    said = json.loads((evaluated / "evaluation.json").read_text())
    said["options"] |= {"data_dir": "gone", "checkpoint": ["nowhere"]}
    save_json(said, tmp_path / "evaluation.json")
    page = reported(tmp_path, tmp_path / "report.html")
    assert "The trees were in gone, which is not there. Name another place with --data_dir." in page.words
    assert page.data["trees"] is None and len(page.data["charts"]) > 5
    page = reported(tmp_path, tmp_path / "report.html", data_dir=str(data))
    assert "The PRM was nowhere, which is not there. Name another with --checkpoint." in page.words
    assert page.data["trees"]["valued"] is False and "Paths have no predicted value here" in page.text
    assert "The value along each path" not in page.text  # a head with nothing below it
    write_shard([make_tree(1), make_tree(2, question="Another ?")], tmp_path / "narrow", "trees", {})
    page = reported(tmp_path / "narrow", tmp_path / "report.html")
    assert "builtin reads latents 128 wide, but these are 16 wide." in page.text
    with pytest.raises(ValueError, match="--checkpoint: builtin reads latents 128 wide"):
        reported(tmp_path / "narrow", tmp_path / "report.html", checkpoint="builtin")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").touch()
    page = reported(bare, tmp_path / "report.html")
    assert "There is no config.json" in page.text and "Nothing was logged" in page.text
    assert "It is not known which trees this is about" in page.text
    assert reported(data, tmp_path / "report.html", questions=0).data["trees"] is None


def test_a_file_that_is_not_ours_or_of_an_older_version_is_named(evaluated: Path, tmp_path: Path) -> None:
    said = json.loads((evaluated / "evaluation.json").read_text())
    del said["comparisons"]["search"]["num_prms"]
    save_json(said, tmp_path / "evaluation.json")
    with pytest.raises(BadFile, match=r"says nothing of comparisons\.search\.num_prms\. It may be of an older version"):
        reporter.main(ReportOptions(path=str(tmp_path)))
    save_json({"reports": {"all": {"num_questions": "many"}}}, tmp_path / "steering.json")
    with pytest.raises(BadFile, match="num_questions is 'many', but must be of the kind int"):
        exhibits.load_steering(tmp_path / "steering.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n')
    with pytest.raises(BadFile, match="loss in step 1 is no number"):
        reporter.chronicle.metrics(tmp_path / "metrics.jsonl")
    assert not (tmp_path / "report.html").exists()


def test_without_plotly_it_is_said_what_to_type(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs plotly. Type: pip install "latent-prm\[report\]"'):
        reporter.main(ReportOptions(path=str(evaluated)))


def test_what_json_made_of_a_dataclass_becomes_that_again(found: Evaluation, evaluated: Path) -> None:
    again = revive(Evaluation, json.loads((evaluated / "evaluation.json").read_text()))
    assert again == replace(found, confidences=[])
    cases: list[tuple[Any, Any]] = [(dict[int, float], {"one": 1.0}), (tuple[int, float], [1]), (list[bool], [1])]
    for kind, wrong in (*cases, (int | None, "1")):
        with pytest.raises(Unlike):
            revive(kind, wrong)
    assert revive(tuple[float, ...], [1, 2.5]) == (1.0, 2.5)


# --- safety -----------------------------------------------------------------------------------------------------------


def test_what_is_said_can_neither_end_its_place_nor_run(data: Path, tmp_path: Path) -> None:
    page = reported(data, tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_text("utf-8")
    assert EVIL not in raw and "window.hacked = 1</script>" not in raw
    assert not [tag for tag, _ in page.tags if tag == "img"]
    texts = [question["text"] for question in page.data["trees"]["questions"]]
    assert EVIL in texts and EVIL in page.text.replace("\n", "")
    assert not [attribute for _, own in page.tags for attribute in own if attribute.startswith("on")]
    assert not [own for tag, own in page.tags if tag in ("script", "link") and ("src" in own or "href" in own)]
    assert sheet.embedded({"a": "</script><!--\u2028"}) == '{"a":"\\u003c/script\\u003e\\u003c!--\\u2028"}'
    assert json.loads(sheet.embedded(["<&>"])) == ["<&>"]
    assert charts.text("<b>") == "&lt;b&gt;"


def test_only_the_scripts_of_the_file_itself_may_run_and_nothing_is_fetched(steered: Path, tmp_path: Path) -> None:
    page = reported(steered, tmp_path / "report.html")
    policy = next(own["content"] for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy and "http" not in policy
    programs = [one for one in page.scripts if not one.startswith('{"charts"')]
    assert len(programs) == 2  # plotly, and our own
    for program in programs:
        assert b64encode(hashlib.sha256(program.encode()).digest()).decode() in policy
    own = sheet.page("t", "s", [], "")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", own)


# --- trees ------------------------------------------------------------------------------------------------------------


def test_mixed_trees_come_first_and_the_seed_says_which() -> None:
    trees = [asked(i, "11" if i % 2 else "12") for i in range(40)]
    few = pick_trees(trees, 5, seed=1)
    assert len(few) == 5 and all(tree.mixed for tree in few)
    assert few == pick_trees(trees, 5, seed=1) != pick_trees(trees, 5, seed=2)
    many = pick_trees(trees, 30, seed=1)
    assert [tree.mixed for tree in many] == [True] * 20 + [False] * 10


def test_what_the_explorer_says_of_a_tree_is_what_the_prm_says() -> None:
    tree, model = random_tree(3, width=WIDTH, branches=(2, 3)), QwenLatentPRM.from_pretrained("builtin")
    data = explorer_data([tree], 9, model)
    (question,) = data["questions"]
    scores = model.score_trees([tree])[0].tolist()
    assert [path["s"] for path in question["paths"]] == [round(score, 3) for score in scores]
    assert [path["n"] for path in question["paths"]] == [len(path.latents) for path in tree.paths]
    assert all(len(path["v"]) == path["n"] for path in question["paths"])
    assert [path.get("p") for path in question["paths"]] == [path.parent for path in tree.paths]
    votes: dict[str, float] = {}
    for i in tree.offered():
        votes[tree.paths[i].answers[0].value] = votes.get(tree.paths[i].answers[0].value, 0) + scores[i]
    winner = max(votes, key=votes.__getitem__)
    assert question["choice"]["value"] == winner and question["choice"]["right"] is (winner == "5")
    assert data["rule"] == "weighted vote" and data["of"] == 9
    blind = explorer_data([tree], 1, None)["questions"][0]
    assert "choice" not in blind and "s" not in blind["paths"][0] and blind["vote"]["value"] in votes


def test_to_read_results_nothing_is_loaded_that_makes_them() -> None:
    code = "import sys, latent_prm.reporter; print(*sorted(name for name in sys.modules if 'latent_prm' in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "latent_prm.contest" in loaded
    assert not {f"latent_prm.{room}" for room in ("steerer", "steering", "scorers", "rules")} & set(loaded)


def test_a_line_as_typed_can_be_typed_again() -> None:
    options = {"checkpoint": ["a", "b c"], "rivals": False, "plan": True, "resume": None}
    assert typed("evaluate", options) == "latent-prm evaluate --checkpoint a 'b c' --no-rivals --plan"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(browser: Any, evaluated: Path) -> Iterator[Any]:
    """The evaluation's report in a browser without a net; nothing may be complained of on its console."""
    file = reporter.main(ReportOptions(path=str(evaluated), output=str(evaluated / "page.html"), device="cpu"))
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith("file:") else None)
    page.goto(file.as_uri())
    yield page
    assert [one for one in complaints if not one.startswith(("blob:", "data:"))] == []
    context.close()


def shown(page: Any) -> list[str]:
    """The questions that are listed."""
    return page.locator("#questions li .ask").all_inner_texts()


def test_charts_are_drawn_and_the_tabs_change_them(opened: Any) -> None:
    page = opened
    page.locator("#results").scroll_into_view_if_needed()
    page.wait_for_selector(".plot .main-svg")
    assert page.locator("[role=tabpanel]:visible").count() == 1
    page.locator("[role=tab]", has_text="arithmetic").click()
    panel = page.locator("[role=tabpanel]:visible")
    assert panel.locator("h3").inner_text() == "" or "arithmetic" in panel.inner_text()
    panel.locator(".plot .main-svg").first.wait_for()
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "search"


def test_the_toolbar_stands_above_what_is_drawn_in_the_page_s_colours_and_uploads_nothing(opened: Any) -> None:
    plot = opened.locator(".plot:has(.main-svg):visible").first
    bar, drawn = (plot.locator(one).first.bounding_box() for one in (".modebar", ".nsewdrag"))
    assert bar["y"] + bar["height"] <= drawn["y"] and bar["y"] >= plot.bounding_box()["y"]
    colour = "one => getComputedStyle(one).backgroundColor"
    group = plot.locator(".modebar-group").first
    assert group.evaluate(colour) == opened.locator(".chart").first.evaluate(colour) == "rgb(255, 255, 255)"
    titles = plot.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
    assert "Zoom in" in titles and not any("hare" in title for title in titles)


def test_a_question_that_means_harm_is_only_text(opened: Any) -> None:
    page = opened
    page.fill("#text", "window.hacked")
    assert page.locator("#question").inner_text() == EVIL
    assert page.evaluate("window.hacked") is None
    page.fill("#text", "")


def test_filters_show_what_they_say(opened: Any, trees: list[ReasoningTree]) -> None:
    page = opened
    questions = page.evaluate("JSON.parse(document.getElementById('everything').textContent).trees.questions")
    whole = page.locator("#count").inner_text()
    assert whole == "44 of 44 questions"
    wanted = {
        "disagree": [q for q in questions if q["choice"]["value"] != q["vote"]["value"]],
        "mistakes": [q for q in questions if not q["choice"]["right"]],
        "mixed": [q for q in questions if q["mixed"]],
    }
    for name, those in wanted.items():
        page.select_option("#show", name)
        assert shown(page) == [q["text"] for q in those] and 0 < len(those) < COUNT
    page.select_option("#show", "all")
    page.select_option("#task", "arithmetic")
    assert len(shown(page)) == COUNT / 2
    page.select_option("#task", "")
    page.fill("#text", "7 + 7")
    assert shown(page) == ["What is 7 + 7 ?"]
    page.fill("#text", "nothing like it")
    assert "none is like this" in page.locator("#count").inner_text() and page.locator("#shown").is_hidden()
    page.fill("#text", "")
    assert page.locator("#shown").is_visible()


def test_questions_and_paths_are_walked_with_arrow_keys(opened: Any) -> None:
    page = opened
    page.locator("#questions li").nth(2).click()
    page.locator("#questions").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#where").inner_text() == "4 of 44"
    selected = page.locator("#questions li[aria-selected=true]")
    assert selected.get_attribute("id") == page.locator("#questions").get_attribute("aria-activedescendant")
    page.locator("#next").click()
    assert page.locator("#where").inner_text() == "5 of 44"
    paths = page.locator("#tree [role=treeitem]")
    assert paths.count() == 7 and page.locator("#tree").get_attribute("role") == "tree"
    paths.nth(1).locator(".said").click()
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("Path 3, predicted 0.") and "answer" in focused
    assert page.locator("#picked").inner_text().startswith("Path 3,")
    assert page.locator("#tree .path.selected").get_attribute("aria-selected") == "true"
    assert page.locator("#values .front").count() == 1
    page.locator("#as-table summary").click()
    assert page.locator("#rows tbody tr").count() == 7
    page.locator("#as-table summary").click()


def test_it_fits_a_phone_and_the_dark(opened: Any) -> None:
    page = opened
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    width = "document.documentElement.scrollWidth"
    for _ in range(100):  # charts and tree are drawn anew; wait_for_function would be stopped by the file's policy
        if page.evaluate(width) <= 390:
            break
        page.wait_for_timeout(100)
    assert page.evaluate(width) <= 390
    assert 300 < page.evaluate("document.getElementById('tree').getBoundingClientRect().width") < 390
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
