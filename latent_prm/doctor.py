"""What is installed, what this machine has, and what is missing for what: ``latent-prm doctor``.

This room hides where each of these is asked. What is needed and what is extra is read from the package's own metadata;
whether the core works is found out by using it. Where a part of the core is missing the rest is still looked at.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from rich.console import Console

from latent_prm import __version__
from latent_prm.options import DoctorOptions

PACKAGE = "latent-prm"
EXTRAS = {
    "plot": "the pictures of train, evaluate, tune-noise, steer and experiment",
    "data": "questions from the hub's datasets, and .parquet files",
    "gym": "--task gym:NAME",
    "tasks": "all questions that are not built in",
    "cluster": "collect --engine ray",
    "lora": "train --tuning lora",
    "lowmem": "train --optimizer adamw8bit or adamw_bf16_sr",
    "serve": "latent-prm serve",
    "report": "latent-prm report",
}
"""What each extra is for. Those for whoever works on the package itself are not named."""
FOLDERS = ("prm_data", "checkpoints", "reports")
HUB = "https://huggingface.co"
QUESTION = "Start at 7. Moves: add 3, double. Reach 20 in 2 moves. Which numbers do you visit?"


class Finding(NamedTuple):
    """One line of what was found."""

    about: str
    said: str
    mark: str = " "
    """✓ there, · missing but not needed, ✗ needed and not there, or nothing."""


def main(options: DoctorOptions) -> None:
    """Print everything. Raises ValueError when something that the core needs is broken."""
    console, broken = Console(highlight=False, markup=False, soft_wrap=True), []
    for title, findings in sections(options):
        console.print(title, style="bold")
        for about, said, mark in findings:
            console.print(f"  {mark} {about:<16} {said}")
            broken += [about] if mark == "✗" else []
    if broken:
        raise ValueError(f'Broken: {", ".join(broken)}. Type: pip install --upgrade --force-reinstall "{PACKAGE}"')


def sections(options: DoctorOptions) -> Iterator[tuple[str, list[Finding]]]:
    """All that is looked at, by headline, each looked at when its turn comes."""
    yield f"{PACKAGE} {__version__}", [*place(), *core()]
    yield "Devices", seen(devices())
    yield "Disk", seen(disk())
    yield "Model hub", seen(hub(options.timeout))
    yield "Extras", [*extras()]
    yield "Trial", [trial()]


def seen(findings: Iterator[Finding]) -> list[Finding]:
    """The findings, as far as they can be had without what is missing."""
    found = []
    try:
        found.extend(findings)
    except ImportError as error:
        found.append(Finding("unknown", str(error), "·"))
    return found


def place() -> Iterator[Finding]:
    """Python, and where the command is."""
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    found = shutil.which("latent-prm")
    yield Finding("command", found or f"latent-prm is not on the PATH: type python -m {__package__} instead.")


def core() -> Iterator[Finding]:
    """Whether everything is installed that is needed, and new enough."""
    if not needed():
        yield Finding("package", "not installed: what it needs is unknown. In its folder, type: pip install -e .", "·")
    for requirement in needed():
        if (found := installed(requirement)) is None:
            yield Finding(requirement.name, f'missing. Type: pip install "{requirement}"', "✗")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                requirement.name, f'{found}, but it must be {requirement.specifier}: see "{requirement}"', "✗"
            )
        else:
            yield Finding(requirement.name, found, "✓")


def extras() -> Iterator[Finding]:
    """What is installed of each extra, and what the rest is missing for."""
    for extra, use in EXTRAS.items():
        asked = needed(extra)
        missing = [each.name for each in asked if installed(each) is None]
        old = [f"{each.name} {found}" for each in asked if (found := too_old(each))]
        if not asked:
            yield Finding(f"[{extra}]", f"unknown to the installed {PACKAGE}: install it again", "·")
        elif missing or old:
            reason = ", ".join([*(f"{name} is missing" for name in missing), *(f"{name} is too old" for name in old)])
            yield Finding(f"[{extra}]", f'{reason}: for {use}. Type: pip install "{PACKAGE}[{extra}]"', "·")
        else:
            yield Finding(f"[{extra}]", ", ".join(f"{each.name} {installed(each)}" for each in asked), "✓")


def needed(extra: str = "") -> list[Requirement]:
    """What the installed package asks for here, by itself or in one of its extras; empty where it is not installed."""
    try:
        asked = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return []
    return [each for each in asked if _in(each, extra) and (not extra or not _in(each, ""))]


def _in(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed(requirement: Requirement) -> str | None:
    """Its version here; None: it is not here."""
    try:
        return version(requirement.name)
    except PackageNotFoundError:
        return None


def too_old(requirement: Requirement) -> str | None:
    """The version here, where it is not one of those that are asked for."""
    found = installed(requirement)
    return None if found is None or requirement.specifier.contains(found, prereleases=True) else found


def devices() -> Iterator[Finding]:
    """What can compute, with its memory."""
    import psutil
    import torch

    from latent_prm.memory import spell

    memory = psutil.virtual_memory()
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use"
    yield Finding("CPU", f"{cores}; {spell(memory.total)} of memory, {spell(memory.available)} free")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(f"cuda:{index}", f"{name}; {spell(total)} of memory, {spell(free)} free", "✓")
    if not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch"
        )
        way_out = "but finds no such GPU" if torch.version.cuda else f"({torch.__version__}) is built without it"
        yield Finding("CUDA", f"none: {built} {way_out}", "·")
    if torch.backends.mps.is_available():
        yield Finding(
            "mps", f"{spell(torch.mps.recommended_max_memory())} of memory; --device auto leaves it alone", "·"
        )


def disk() -> Iterator[Finding]:
    """What is free where the stages write, and where models come to lie."""
    from latent_prm import preflight
    from latent_prm.memory import spell

    for name, folder in {
        **{name: name for name in FOLDERS},
        "hub cache": cache(),
        "temporary": tempfile.gettempdir(),
    }.items():
        where = "" if name == folder else f" at {folder}"
        try:
            preflight.can_write(folder, "")
            yield Finding(name, f"{spell(preflight.free_space(folder))} free{where}")
        except OSError as error:
            yield Finding(name, str(error).strip(), "·")


def hub(timeout: float) -> Iterator[Finding]:
    """Whether the hub answers in time, and whether there is a token for it."""
    from huggingface_hub import get_token

    address = os.environ.get("HF_ENDPOINT") or HUB
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("address", f"not asked, for HF_HUB_OFFLINE is set: only what lies in {cache()} is found", "·")
    elif not timeout:
        yield Finding("address", "not asked, for --timeout is 0", "·")
    else:
        began, problem = time.perf_counter(), ask(address, timeout)
        took = f"{address} answered in {time.perf_counter() - began:.1f} s"
        way_out = "The built-in models need no hub; others: hf download NAME --local-dir FOLDER where there is one."
        yield Finding("address", f"{address}: {problem}. {way_out}" if problem else took, "·" if problem else "✓")
    token = "there is one" if get_token() else "none: gated and private models are not to be had"
    yield Finding("token", token)


def cache() -> str:
    """Where downloaded models lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def ask(address: str, timeout: float) -> str | None:
    """Why nothing answered there in time; None: something did. Looking up a name knows no limit, but a thread does."""
    found: list[str | None] = [f"no answer in {timeout:g} s"]

    def work() -> None:
        try:
            if not address.startswith(("http://", "https://")):
                raise URLError(f"{address!r} is no http address")
            with urlopen(Request(address, method="HEAD"), timeout=timeout):
                found[0] = None
        except HTTPError as error:
            found[0] = None if error.code < 500 else f"it answered {error.code}"
        except (OSError, ValueError) as error:
            found[0] = str(getattr(error, "reason", error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout)
    return found[0]


def trial() -> Finding:
    """Whether the built-in models think, score and choose."""
    began = time.perf_counter()
    try:
        choice = _answer()
    except Exception as error:  # whatever a broken installation raises
        return Finding("built-in", f"does not work: {type(error).__name__}: {str(error).partition(chr(10))[0]}", "✗")
    return Finding(
        "built-in", f"thought, scored and answered {choice.value} in {time.perf_counter() - began:.1f} s", "✓"
    )


def _answer() -> Any:
    from latent_prm import QwenLatentPRM, Reasoner, choose

    tree = Reasoner.from_pretrained("builtin", device="cpu").grow(QUESTION, num_paths=4)
    return choose(tree, QwenLatentPRM.from_pretrained("builtin"))
