"""The guides: every command in them runs on the built-in reasoner as it stands there; both languages say the same."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from latent_prm.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ENGLISH = sorted(path for path in DOCS.glob("*.md") if not path.name.endswith(".zh.md"))
BLOCK = re.compile(r"^```bash(?P<mark> \w+)?\n(?P<text>.*?)^```$", re.M | re.S)

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

    mark: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Line by line; a here-document is one with its command."""
        found = re.finditer(r"^[^\n]*<<'(\w+)'\n.*?^\1$|^[^\n]+$", self.text, re.M | re.S)
        return [match.group() for match in found]


def blocks(path: Path) -> list[Block]:
    """What a guide says is to be typed."""
    return [Block((match["mark"] or "").strip(), match["text"]) for match in BLOCK.finditer(path.read_text("utf-8"))]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to type in, with all that was set put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    handlers, level = logging.root.handlers[:], logging.getLogger("latent_prm").level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.getLogger("latent_prm").setLevel(level)


def run(command: str) -> None:
    """Type a line. Our own command runs in this process, which has loaded everything already."""
    if command.startswith("latent-prm "):
        words = shlex.split(command, comments=True)[1:]
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        assert code == 0, f"{command}\nended with {code}"
        return
    command = command.replace("bash ", f"bash {ROOT}/") if ".sh" in command else command
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


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
    for block in blocks(guide):
        if block.mark == "skip":
            continue
        for command in block.commands:
            run(small(command) if block.mark == "gpu" else command)
    for code in re.findall(r"^```python\n(.*?)^```$", guide.read_text("utf-8"), re.M | re.S):
        best = "checkpoints/mine/best"  # the guide's name has the time in it
        exec(compile(code.replace("checkpoints/qwen_prm_20251226_120000/best", best), guide.name, "exec"), {})


@pytest.mark.parametrize("guide", ENGLISH, ids=lambda path: path.stem)
def test_the_chinese_guide_types_the_same(guide: Path) -> None:
    chinese = guide.with_suffix(".zh.md")
    assert blocks(chinese) == blocks(guide)
    fences = [re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S) for page in (guide, chinese)]
    assert fences[0] == fences[1]
    headings = [len(re.findall(r"^#+ ", page.read_text("utf-8"), re.M)) for page in (guide, chinese)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere_and_commands_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for command in re.findall(r"latent-prm ([a-z][a-z-]*)", text):
        assert command in COMMANDS or command in ("is",), command
