"""What pip installs: the wheel, made from the sdist, has all that the package is, works alone, and says what it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from latent_prm import __version__

ROOT = Path(__file__).parent.parent
TRIAL = """
import latent_prm
tree = latent_prm.Reasoner.from_pretrained("builtin", device="cpu").grow("What is 2 + 3 ?", num_paths=1)
print(latent_prm.__file__, len(latent_prm.QwenLatentPRM.from_pretrained("builtin").score(tree)))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was made of it."""
    folder = tmp_path_factory.mktemp("dist")
    run = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"latent_prm-{__version__}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("latent_prm", "methods")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert {f"latent_prm/demo/{name}" for name in ("reasoner/model.safetensors", "prm/pytorch_model.bin")} < held
    assert {"latent_prm/py.typed", "latent_prm/page/index.html", "latent_prm/demo/reader/model.safetensors"} < held


@pytest.mark.slow
def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        about = f"latent_prm-{__version__}.dist-info"
        said = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
        assert b"latent-prm = latent_prm.__main__:main" in archive.read(f"{about}/entry_points.txt")
        assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("latent-prm", __version__, "Apache-2.0")
    assert said["Requires-Python"] == ">=3.10" and said["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert {"serve", "report", "tasks", "lora", "lowmem", "dev"} < set(said.get_all("Provides-Extra", []))
    payload = said.get_payload()
    assert isinstance(payload, str) and payload.strip() == (ROOT / "README.md").read_text("utf-8").strip()


@pytest.mark.slow
def test_the_sdist_has_what_the_tests_and_the_guides_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = "Makefile README.md constraints.txt pyproject.toml tests/conftest.py collect_training_data.sh LICENSE"
    assert set(wanted.split()) <= held
    assert not {name for name in held if "__pycache__" in name or name.startswith((".venv", ".git/", "prm_data"))}


@pytest.mark.slow
def test_what_is_installed_thinks_and_scores_without_the_sources(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = [sys.executable, "-c", TRIAL]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(tmp_path / "site" / "latent_prm" / "__init__.py"), "2"], done.stderr
