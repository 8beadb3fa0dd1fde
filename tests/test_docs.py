"""The guides: every command in them runs on the built-in reasoner as it stands there; both languages say the same."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from benchmarks.trials import nested
from latent_prm import load_trees
from latent_prm.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("README*.md")])
ENGLISH = sorted(path for path in DOCS.glob("*.md") if not path.name.endswith(".zh.md"))
BLOCK = re.compile(r"(?:^<!-- (?P<mark>\w+) -->\n)?^```(?P<kind>bash|python)\n(?P<text>.*?)^```$", re.M | re.S)
TOKEN = "a token of thirty-two characters".replace(" ", "-")

# What a guide leaves at its default is made small; what it types stands.
SMALL = {"MAX_SAMPLES": "24", "NUM_PATHS": "4", "NUM_EPOCHS": "1", "TASK": "arithmetic", "DEVICE": "cpu",
         "MODEL_PATH": "builtin", "NUM_BOOTSTRAP": "100", "LEARNING_RATE": "3e-4"}  # fmt: skip
# What needs a GPU and the hub is typed with these instead.
INSTEAD = {"Qwen/Qwen3-0.6B": "builtin", "--task gsm8k": "--task arithmetic", "--max_samples 1000": "--max_samples 8",
           "--max_samples -1": "--num_paths 4 --max_samples 60", "1 2 3 4 5 6 7 8 9": "1 2",
           "tune-noise": "tune-noise --max_samples 12 --noises 0.1,0.3",
           "--resume auto": "--num_epochs 1 --no-mixed_precision", "--rivals_on": "--num_bootstrap 100 --rivals_on",
           "--num_workers 8": "--num_workers 1 --max_samples 8", "--nproc_per_node 8": "--nproc_per_node 2",
           "--parallel": "--data_dir prm_data --num_epochs 1 --device cpu --no-mixed_precision --parallel"}  # fmt: skip


class Block(NamedTuple):
    """A piece of a guide that is to be typed."""

    mark: str | None
    """gpu: typed with what stands in `INSTEAD`; server: as long as it serves; install: once, before all this."""
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Line by line; a here-document is one with its command."""
        found = re.finditer(r"^[^\n]*<<'(\w+)'\n.*?^\1$|^[^\n]+$", self.text, re.M | re.S)
        return [match.group() for match in found]


def blocks(path: Path) -> list[Block]:
    """What a guide says is to be typed."""
    return [Block(match["mark"], match["kind"], match["text"]) for match in BLOCK.finditer(path.read_text("utf-8"))]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to type in, with all that was set put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LATENT_PRM_TOKEN", TOKEN)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    nested(tmp_path / "other_program" / "prm_data", "run", "3 + 4?")
    small_grid(ROOT / "experiments" / "choosing.yaml", tmp_path / "experiments")
    handlers, level = logging.root.handlers[:], logging.getLogger("latent_prm").level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.getLogger("latent_prm").setLevel(level)


def small_grid(grid: Path, folder: Path) -> None:
    """A documented grid with few questions, one seed and its first two arms."""
    said = yaml.safe_load(grid.read_text("utf-8"))
    for pool in said["pools"].values():
        pool |= {"max_samples": 16, "num_paths": 4}
    said |= {"seeds": [1], "arms": dict(list(said["arms"].items())[:2])}
    folder.mkdir()
    (folder / grid.name).write_text(json.dumps(said), "utf-8")  # which is YAML too


def run(command: str) -> str:
    """Type a line; what it printed. Our own command runs in this process, which has loaded everything already."""
    if command.startswith("latent-prm "):
        words = shlex.split(command, comments=True)[1:]
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        assert code == 0, f"{command}\nended with {code}"
        return ""
    command = command.replace("bash ", f"bash {ROOT}/") if ".sh" in command else command
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@contextmanager
def serving(command: str) -> Iterator[None]:
    """A server as it is typed, until it is no longer needed."""
    words = shlex.split(command)[1:]
    process = subprocess.Popen([sys.executable, "-m", "latent_prm", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "Stop it with Ctrl-C." in (
            process.stdout.readline() + process.stdout.readline() + process.stdout.readline()
        )
        yield
    finally:
        process.terminate()
        process.communicate()


def small(command: str) -> str:
    """What is typed where there is neither a GPU nor the hub."""
    for said, instead in INSTEAD.items():
        command = command.replace(said, instead)
    return command


@pytest.mark.slow
@pytest.mark.parametrize("guide", [path for path in ENGLISH if blocks(path)], ids=lambda path: path.stem)
def test_every_command_of_a_guide_runs(guide: Path, shell: Path) -> None:
    if guide.stem in ("troubleshooting", "scaling-out", "python", "serving"):  # which begin where data are
        run("latent-prm collect --max_samples 24 --num_paths 4")
    with ExitStack() as until_the_end, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = {
            "8000": f"{free.getsockname()[1]}",
            "checkpoints/qwen_prm_20251226_120000/best": "checkpoints/mine/best",
        }
        free.close()
        for block in blocks(guide):
            text = re.sub("|".join(map(re.escape, here)), lambda match: here[match.group()], block.text)
            if block.kind == "python":
                known = {"token": TOKEN, "tree": load_trees("prm_data")[0]} if block.mark else {}
                exec(compile(text, guide.name, "exec"), known)
            elif block.mark != "install":
                for command in block._replace(text=text).commands:
                    if command.startswith("latent-prm serve"):
                        until_the_end.enter_context(serving(command))
                    elif printed := run(small(command) if block.mark == "gpu" else command):
                        assert "curl" not in command or json.loads(printed.splitlines()[-1])["event"] == "chosen"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_nothing_stands_behind_the_language_of_a_block(page: Path) -> None:
    """The site takes it for no block at all then."""
    assert not re.findall(r"^```\w+ .*$", page.read_text("utf-8"), re.M)


@pytest.mark.parametrize("guide", [ROOT / "README.md", *ENGLISH], ids=lambda path: path.stem)
def test_the_chinese_guide_types_the_same(guide: Path) -> None:
    chinese = guide.with_suffix(".zh.md")
    assert blocks(chinese) == blocks(guide)
    if guide.stem == "README":  # all of it, also what is not marked as a language
        fenced = [re.findall(r"^```.*?^```$", page.read_text("utf-8"), re.M | re.S) for page in (guide, chinese)]
        assert fenced[0] == fenced[1]
    headings = [len(re.findall(r"^#+ ", page.read_text("utf-8"), re.M)) for page in (guide, chinese)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere_and_commands_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for command in re.findall(r"latent-prm ([a-z][a-z-]*)", text):
        assert command in COMMANDS or command in ("is",), command
