"""How the hub is reached, against a server on this machine that stumbles, is silent, or breaks a transfer off."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from latent_prm import reaching
from latent_prm.reaching import fleeting, patiently

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789" * 4


class Hub:
    """A hub with one model; how often, and from which byte on, each of its files was fetched is written down."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.address = files, ""
        self.fetched: list[tuple[str, str | None]] = []
        self.busy: dict[str, int] = {}
        """Files of which the next so many fetches find the server overloaded."""
        self.cut: set[str] = set()
        """Files whose next transfer is broken off in the middle."""
        self.silent = threading.Event()
        """While this is set, no question is answered."""
        self.closed = threading.Event()


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            while hub.silent.is_set() and not hub.closed.wait(0.05):
                pass
            name = self.path.partition("?")[0].rpartition("/")[2]
            if "/resolve/" not in self.path or name not in hub.files:
                return self.say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content = hub.files[name]
            if self.command == "GET":
                hub.fetched.append((name, self.headers["Range"]))
                if hub.busy.get(name, 0):
                    hub.busy[name] -= 1
                    return self.say(503, {})
            begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            headers = {"ETag": f'"{len(content):040}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            self.say(206 if begin else 200, headers, content[begin:], cut=self.command == "GET" and name in hub.cut)

        do_GET = do_HEAD = answer

        def say(self, status: int, headers: dict[str, str], body: bytes = b"", cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # whoever asked has lost patience
                self.wfile.write(b"" if self.command == "HEAD" else body[: len(body) // 2] if cut else body)
            if cut:
                hub.cut.clear()
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
        hub.closed.set()
        server.shutdown()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may ask a hub on this machine, and does not wait between two tries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_what_the_hubs_library_says_is_printed_once() -> None:
    ours = logging.StreamHandler(io.StringIO())  # as a stage has one, for all loggers that hand on what they say
    logging.root.addHandler(ours)
    try:
        assert patiently(lambda: 1, "me/it") == 1
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")  # printed by its own handler
    finally:
        logging.root.removeHandler(ours)
    assert ours.stream.getvalue() == ""


CONTENT = bytes(range(256)) * 400


def fetched(hub: Hub, folder: Path, name: str = "weights.bin") -> bytes:
    def ask() -> str:
        return huggingface_hub.hf_hub_download("me/it", name, endpoint=hub.address, cache_dir=folder)

    return Path(patiently(ask, "me/it")).read_bytes()


# --- what is asked for again ------------------------------------------------------------------------------------------


def test_a_server_that_is_overloaded_twice_gives_the_file_at_the_third_time(
    tmp_path: Path, online: None, caplog: pytest.LogCaptureFixture
) -> None:
    with serving({"weights.bin": CONTENT}) as hub:
        hub.busy["weights.bin"] = 2
        assert fetched(hub, tmp_path) == CONTENT
    assert len(hub.fetched) == 3
    said = [record.getMessage() for record in caplog.records if record.name == reaching.log.name]
    assert [line[: len("me/it: Server error '503")] for line in said] == ["me/it: Server error '503"] * 2
    assert said[0].endswith("Asking again in 2 s.") and said[1].endswith("Asking again in 4 s.")


def test_a_server_that_stays_overloaded_is_asked_four_times_and_no_more(tmp_path: Path, online: None) -> None:
    with serving({"weights.bin": CONTENT}) as hub:
        hub.busy["weights.bin"] = 100
        with pytest.raises(HfHubHTTPError, match="503"):
            fetched(hub, tmp_path)
    assert len(hub.fetched) == 4


def test_a_transfer_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # bytes that are written at a time
    with serving({"weights.bin": CONTENT}) as hub:
        hub.cut.add("weights.bin")
        assert fetched(hub, tmp_path) == CONTENT
    assert hub.fetched == [("weights.bin", None), ("weights.bin", f"bytes={len(CONTENT) // 2}-")]


def test_what_is_not_there_is_asked_for_once(tmp_path: Path, online: None) -> None:
    asked = []

    def ask(error: Exception) -> None:
        asked.append(error)
        raise error

    with serving({"weights.bin": CONTENT}) as hub:
        with pytest.raises(HfHubHTTPError, match="404"):
            fetched(hub, tmp_path, "other.bin")
        assert not hub.fetched
    for error in (OfflineModeIsEnabled("offline"), LocalEntryNotFoundError("gone"), ValueError("no"), KeyError("no")):
        asked.clear()
        with pytest.raises(type(error)):
            patiently(lambda error=error: ask(error), "me/it")
        assert len(asked) == 1


def test_what_led_to_an_error_tells_whether_the_next_try_may_do() -> None:
    def after(cause: BaseException) -> OSError:
        error = OSError("as transformers puts it")
        error.__cause__ = cause
        return error

    assert (
        fleeting(after(ConnectionResetError()))
        and fleeting(after(TimeoutError()))
        and fleeting(after(after(BrokenPipeError())))
    )
    assert not fleeting(after(LocalEntryNotFoundError("x"))) and not fleeting(OSError(28, "No space left on device"))
    inner = LocalEntryNotFoundError("the hub was asked five times")
    inner.__cause__ = ConnectionResetError()
    assert not fleeting(after(inner))  # huggingface_hub has tried long enough


# --- who is silent ----------------------------------------------------------------------------------------------------


def test_no_question_waits_forever(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    patiently(lambda: None, "me/it")  # from now on there are limits
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.2)
    with serving({}) as hub:
        hub.silent.set()
        began = time.monotonic()
        with pytest.raises(Exception, match="timed out") as caught:
            huggingface_hub.HfApi(endpoint=hub.address).model_info("me/it")  # of itself it has no limit at all
        assert time.monotonic() - began < 5 and fleeting(caught.value)


@pytest.mark.parametrize("typed", [None, "7"])
def test_limits_that_somebody_has_set_stay(typed: str | None) -> None:
    code = """
from latent_prm.reaching import patiently
patiently(lambda: None, "")
from huggingface_hub import constants
print(constants.HF_HUB_DOWNLOAD_TIMEOUT)"""
    settings = {name: value for name, value in os.environ.items() if name != "HF_HUB_DOWNLOAD_TIMEOUT"}
    settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": typed} if typed else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.stdout.strip() == (typed or str(reaching.SILENCE)), done.stderr


# --- a model of the hub -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reasoner_comes_from_a_hub_that_stumbles_and_a_silent_one_ends_in_words(
    tiny_lm: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_lm.iterdir() if path.is_file()}
    with serving(files) as hub:
        hub.busy["model.safetensors"], hub.cut = 1, {"tokenizer.json"}
        said = loaded(hub, tmp_path / "one")
        assert said.splitlines()[-1] == "16", said
        assert "me/it: " in said and "Asking again in 0.01 s." in said
        ranges = [begin for name, begin in hub.fetched if name == "tokenizer.json"]
        assert ranges == [None, "bytes=1024-"]  # of 2502, cut off in the middle
        hub.silent.set()
        assert "me/it is not on this machine, and the hub was not reached" in loaded(hub, tmp_path / "two")
        hub.silent.clear()
        del files["config.json"]
        hub.fetched.clear()
        assert "me/it is there, but holds no model that can be loaded: " in loaded(hub, tmp_path / "three")


def loaded(hub: Hub, home: Path) -> str:
    """What another Python says that loads the model of a hub."""
    code = f"""
import logging, time
logging.basicConfig()
from huggingface_hub import constants
from latent_prm import reaching
constants.DOWNLOAD_CHUNK_SIZE = 1024
reaching.WAITS, time.sleep = (0.01,) * 3, lambda seconds: None
from latent_prm.reasoner import Reasoner
try: print(Reasoner.from_pretrained({json.dumps("me/it")}, device="cpu").latent_dim)
except ValueError as error: print(error)"""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    settings |= {"HF_ENDPOINT": hub.address, "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    return done.stderr + done.stdout.strip()
