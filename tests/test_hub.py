"""Hub datasets: every entry reads its real columns, local folders and the hub give the same, errors say what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latent_prm.hub import DATASETS, Source
from latent_prm.tasks import load_task

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "tests" / "fixtures" / "hub"
"""Three rows in the format of each dataset; their contents are our own."""

GOLDS = {
    "gsm8k": ["84", "1,250", "-6"],
    "math": [r"\frac{5}{8}", r"2\sqrt{3}", "3"],  # the last box, nested braces, a box without any
    "math500": ["100", r"\left( 2, \frac{\pi}{2} \right)", "54"],
    "aime2024": ["33", "280", "0"],  # 033, 280, 000
    "aime2025": ["36", r"90^\circ", "499"],
    "arc_easy": ["A", "C", "B"],  # the second is labelled 1 to 4
    "arc_challenge": ["D", "A", "E"],
    "medqa": ["B", "A", "D"],
    "multiarith": ["37", "6", "34"],
    "gsm_hard": ["12511068", "250000.25", "-7340001"],
    "svamp": ["7", "144.0", "5"],
}
CHOICES = {"gpqa", "arc_easy", "arc_challenge", "medqa"}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text("utf-8").splitlines()]


def write(path: Path, *written: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    return path


@pytest.mark.parametrize("name", GOLDS)
def test_every_dataset_gives_the_golds_of_its_rows(name: str) -> None:
    task = load_task(f"{name}:{ROWS / name}.jsonl")
    questions = task.questions("test", 0, -1)
    assert [question.gold for question in questions] == GOLDS[name]
    assert {question.kind for question in questions} == {"choice" if name in CHOICES else "maths"}
    assert all(re.fullmatch(rf"{name}-[0-9a-f]{{16}}", question.id) for question in questions)
    assert all(task.grade(question, rf"So it is \boxed{{{question.gold}}}.").correct for question in questions)
    assert not any(task.grade(question, r"\boxed{Z}").correct for question in questions)


def test_every_entry_has_a_fixture_a_source_and_a_commit() -> None:
    assert {path.stem for path in ROWS.iterdir()} == set(DATASETS) == {*GOLDS, "gpqa"}
    for dataset in DATASETS.values():
        assert dataset.read_at.startswith("https://") and re.fullmatch(r"[0-9a-f]{40}", dataset.revision)
        assert set(dataset.splits) <= {"train", "validation", "test"}


def test_texts_are_put_together_from_all_that_belongs_to_them() -> None:
    def first(name: str) -> str:
        return load_task(f"{name}:{ROWS / name}.jsonl").questions("test", 0, 1)[0].text

    assert first("svamp") == "There are 12 swans on a lake and 5 of them fly off. How many swans stay on the lake?"
    assert first("multiarith").endswith("How many jars did she pack?")  # a blank at the end of the row goes
    assert first("arc_easy") == "Which of these melts at room temperature?\nA. ice\nB. iron\nC. stone\nD. glass"


def test_the_letters_of_gpqa_are_fixed_by_the_question_and_not_by_the_order_of_its_row(tmp_path: Path) -> None:
    questions = load_task(f"gpqa:{ROWS / 'gpqa.jsonl'}").questions("test", 0, -1)
    for question, row in zip(questions, rows("gpqa"), strict=True):
        assert f"{question.gold}. {row['Correct Answer']}" in question.text.split("\n")
    assert len({question.gold for question in questions}) > 1
    turned = [{**row, "Incorrect Answer 1": row["Incorrect Answer 3"]} for row in rows("gpqa")]
    for row, other in zip(turned, rows("gpqa"), strict=True):
        row["Incorrect Answer 3"] = other["Incorrect Answer 1"]
    assert load_task(f"gpqa:{write(tmp_path / 'gpqa.jsonl', *turned)}").questions("test", 1, -1) == questions


@pytest.mark.parametrize(
    ("name", "row", "wrong"),
    [
        ("gsm8k", {"question": "3 + 4?"}, "has no column 'answer': there are question"),
        ("gsm8k", {"question": "3 + 4?", "answer": "7"}, "has no answer after ####"),
        ("gsm8k", {"question": "3 + 4?", "answer": 7}, "has a column of another type than it should"),
        ("math", {"problem": "3 + 4?", "solution": "It is 7."}, "has no answer, only ''"),
        ("gsm_hard", {"input": "3 + 4?", "target": None}, "has no answer, only None"),
        ("gsm_hard", {"input": "3 + 4?", "target": float("nan")}, "has no answer, only nan"),
        ("svamp", {"Body": "", "Question": " ", "Answer": "7"}, "has an empty question or answer"),
        (
            "arc_easy",
            {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
            "has the answer 'C', but choices A, B",
        ),
    ],
)
def test_a_row_that_makes_no_question_is_named(tmp_path: Path, name: str, row: dict[str, Any], wrong: str) -> None:
    path = write(tmp_path / "rows.jsonl", rows(name)[0], row)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2 {re.escape(wrong)}"):
        load_task(f"{name}:{path}").stream("test", 0)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    one, two, three = rows("gsm8k")
    write(tmp_path / "main" / "train-00000-of-00002.jsonl", one)
    write(tmp_path / "main" / "train-00001-of-00002.jsonl", two)
    write(tmp_path / "main" / "test-00000-of-00001.jsonl", three)
    write(tmp_path / "socratic" / "train-00000-of-00001.jsonl", {"not": "ours"})  # another configuration
    task = load_task(f"gsm8k:{tmp_path}")
    assert [question.gold for question in task.questions("train", 0, -1)] == ["84", "1,250"]
    assert [question.gold for question in task.questions("test", 0, -1)] == ["-6"]
    with pytest.raises(ValueError, match="has no validation split; it has train and test"):
        task.stream("validation", 0)


def test_the_subjects_of_math_are_read_one_after_the_other(tmp_path: Path) -> None:
    for row, subject in zip(rows("math"), ("geometry", "algebra", "precalculus"), strict=True):
        write(tmp_path / subject / "test-00000-of-00001.jsonl", row)
    assert [q.gold for q in load_task(f"math:{tmp_path}").questions("test", 0, -1)] == [
        r"2\sqrt{3}",
        r"\frac{5}{8}",
        "3",
    ]


def test_a_download_of_json_files_is_read_without_what_describes_it(tmp_path: Path) -> None:
    one, two, three = rows("multiarith")
    (tmp_path / "train.json").write_text(json.dumps([one, two]))
    (tmp_path / "test.json").write_text(json.dumps([three]))
    (tmp_path / "dataset_infos.json").write_text('{"train": 2}')
    task = load_task(f"multiarith:{tmp_path}")
    assert [len(task.questions(split, 0, -1)) for split in ("train", "test")] == [2, 1]
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "rows.json").write_text(json.dumps(rows("gsm_hard")))
    (tmp_path / "hard" / "dataset_infos.json").write_text("{}")
    assert len(load_task(f"gsm_hard:{tmp_path / 'hard'}").questions("test", 0, -1)) == 3


def test_files_that_name_no_split_are_the_one_that_there_is(tmp_path: Path) -> None:
    write(tmp_path / "gsmhardv2.jsonl", *rows("gsm_hard"))
    assert len(load_task(f"gsm_hard:{tmp_path}").questions("test", 0, -1)) == 3
    with pytest.raises(ValueError, match="has no train split; it has test"):
        load_task(f"gsm_hard:{tmp_path}").stream("train", 0)
    write(tmp_path / "svamp" / "all.jsonl", *rows("svamp"))
    with pytest.raises(ValueError, match="has no train split; it has none that its files name"):
        load_task(f"svamp:{tmp_path / 'svamp'}").stream("train", 0)


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy", "medqa", "gsm_hard"])
def test_parquet_gives_what_jsonl_gives(tmp_path: Path, name: str) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra [data]")
    from pyarrow import parquet

    split = DATASETS[name].splits["test"]
    (tmp_path / "data").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows(name)), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    expected = load_task(f"{name}:{ROWS / name}.jsonl").questions("test", 0, -1)
    assert load_task(f"{name}:{tmp_path}").questions("test", 0, -1) == expected


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such question file: .*nowhere"):
        load_task(f"gsm8k:{tmp_path / 'nowhere'}").stream("test", 0)


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_split_that_a_dataset_has_not_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ValueError, match=r"gpqa has no train split; it has test\. Type one of these as --split\."):
        load_task("gpqa").stream("train", 0)
    assert Source(None, "arc_easy").splits == ("train", "validation", "test")


def test_without_the_library_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'gsm8k is fetched by the library datasets.*pip install "latent-prm\[data\]"'):
        load_task("gsm8k").stream("test", 0)


CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
---
"""


@contextmanager
def hub() -> Iterator[str]:
    """The address of a hub on this machine; it says what the real one says to those who fetch a dataset. Once it is
    overloaded."""
    data = (ROWS / "gsm8k.jsonl").read_bytes()
    files = {"README.md": CARD.encode(), "main/test.jsonl": data, "main/train.jsonl": data.splitlines(True)[0]}
    commit, busy = DATASETS["gsm8k"].revision, ["main/test.jsonl"]

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            if f"/{DATASETS['gpqa'].repo}/" in path:
                self.say(403, {"X-Error-Code": "GatedRepo"})
            elif path == f"/api/datasets/openai/gsm8k/revision/{commit}":
                self.say_json(
                    {"id": "openai/gsm8k", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                )
            elif path == f"/api/datasets/openai/gsm8k/tree/{commit}/main":
                names = [name for name in files if name.startswith("main/")]
                self.say_json([{"type": "file", "path": n, "size": len(files[n]), "oid": "0" * 40} for n in names])
            elif (
                name := path.removeprefix(f"/datasets/openai/gsm8k/resolve/{commit}/")
            ) in busy and self.command == "GET":
                busy.remove(name)
                self.say(503, {})
            elif name in files:
                self.say(200, {"ETag": f'"{len(files[name]):040}"', "X-Repo-Commit": commit}, files[name])
            else:
                self.say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

        do_GET = do_HEAD = answer

        def say_json(self, value: object) -> None:
            self.say(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked(spec: str, home: Path, **environment: str) -> str:
    """The golds of a task's test split as another Python reads them, or what it says instead."""
    code = f"""
from latent_prm.tasks import load_task
try: print([question.gold for question in load_task({spec!r}).stream("test", 0)])
except ValueError as error: print(error)"""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_hub_is_asked_once_and_then_its_cache_will_do(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets comes with the extra [data]")
    with hub() as address:
        assert asked("gsm8k", tmp_path, HF_ENDPOINT=address) == "['84', '1,250', '-6']"
        gated = asked("gpqa", tmp_path, HF_ENDPOINT=address)
    terms = "https://huggingface.co/datasets/Idavidrein/gpqa"
    assert gated.startswith(f"Idavidrein/gpqa is gated: accept its terms on {terms}, then set HF_TOKEN")
    assert asked("gsm8k", tmp_path, HF_HUB_OFFLINE="1") == "['84', '1,250', '-6']"
    offline = asked("svamp", tmp_path, HF_HUB_OFFLINE="1")
    assert "ChilleD/SVAMP cannot be fetched (HF_HUB_OFFLINE is set, and it is not in the cache)" in offline
    assert "hf download --repo-type dataset ChilleD/SVAMP" in offline and "--task svamp:FOLDER" in offline
