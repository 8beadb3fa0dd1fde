"""``latent-prm doctor``: what it says of a sound machine, of a broken one, and of a hub that does not answer."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from latent_prm import doctor
from latent_prm.__main__ import main
from latent_prm.options import DoctorOptions

ROOT = Path(__file__).parent.parent


def test_a_sound_machine_is_told_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for line in (r"✓ torch +2\.", r"CPU +\d+ cores, .* GiB of memory", r"prm_data +[\d.]+ GiB free", r"\[plot\]"):
        assert re.search(line, said), line
    assert "not asked, for HF_HUB_OFFLINE is set" in said
    assert re.search(r"✓ built-in +thought, scored and answered 10 20 in", said)
    assert "✗" not in said


def test_what_the_core_needs_and_is_not_there_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=99", "no-such-thing>=1.5", "rich>=13"])
    monkeypatch.setattr(doctor, "_answer", lambda: 1 / 0)
    assert main(["doctor", "--timeout", "0"]) == 1
    printed = capsys.readouterr()
    assert re.search(r"✗ numpy +2\..*, but it must be >=99", printed.out)
    assert '✗ no-such-thing    missing. Type: pip install "no-such-thing>=1.5"' in printed.out
    assert re.search(r"✓ rich +\d", printed.out)
    assert "✗ built-in         does not work: ZeroDivisionError" in printed.out
    assert printed.err.startswith("✗ ERROR: Broken: numpy, no-such-thing, built-in. Type: pip install")


def test_a_missing_extra_is_no_failure_and_is_said_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2", 'no-such-thing; extra == "serve"', 'rich>=99; extra == "serve"', 'rich; extra == "plot"']
    monkeypatch.setattr(doctor, "requires", lambda _: asked)
    found = {finding.about: finding for finding in doctor.extras()}
    assert found["[serve]"].mark == "·" and found["[plot]"].mark == "✓"
    assert found["[serve]"].said.startswith("no-such-thing is missing, rich ")
    assert found["[serve]"].said.endswith('is too old: for latent-prm serve. Type: pip install "latent-prm[serve]"')
    assert [finding.about for finding in doctor.core()] == ["numpy"]


def test_every_extra_of_the_package_has_a_use() -> None:
    table = (
        (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2].partition("\n[")
    )
    assert set(re.findall(r"^(\w+) = \[", table[0], re.MULTILINE)) == {*doctor.EXTRAS, "dev", "docs"}


def test_where_a_part_is_missing_the_rest_is_still_looked_at() -> None:
    def half() -> Iterator[doctor.Finding]:
        yield doctor.Finding("CPU", "there")
        raise ImportError("No module named 'torch'")

    assert [finding.said for finding in doctor.seen(half())] == ["there", "No module named 'torch'"]


# --- the hub ---------------------------------------------------------------------------------------------------------


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of something on the loopback that answers every question with this status."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "mark", "said"), [(200, "✓", "answered in"), (403, "✓", "answered in"), (503, "·", "it answered 503")]
)
def test_a_hub_that_answers_is_reached(monkeypatch: pytest.MonkeyPatch, status: int, mark: str, said: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering(status) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        reached = next(doctor.hub(timeout=10))
    assert reached.about == "address" and reached.mark == mark and said in reached.said and address in reached.said


def test_a_hub_that_is_silent_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert doctor.ask(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2) in ("no answer in 0.2 s", "timed out")
    assert time.monotonic() - began < 5
    port = silent.getsockname()[1] if silent.fileno() >= 0 else 9
    assert "refused" in str(doctor.ask(f"http://127.0.0.1:{port}", 10)).lower()
    assert "no http address" in str(doctor.ask("file:///etc/hostname", 10))


def test_nobody_is_asked_without_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ask", lambda *_: pytest.fail("the hub was asked"))
    assert "HF_HUB_OFFLINE is set" in next(doctor.hub(timeout=5)).said
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert next(doctor.hub(timeout=0)).said == "not asked, for --timeout is 0"


def test_an_impossible_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="--timeout is -1, but it must be at least 0"):
        DoctorOptions(timeout=-1)
