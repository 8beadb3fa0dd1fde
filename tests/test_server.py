"""`latent-prm serve` on a real socket: who may come in, what is answered, and what is refused with how few words."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from conftest import random_tree
from safetensors.torch import save
from serving import TOKEN, Running, read_all, serving

from latent_prm import batching, server, solver, wire
from latent_prm.__main__ import main
from latent_prm.api import Service
from latent_prm.batching import Batcher, Full, Scored, Size
from latent_prm.client import packed
from latent_prm.confidence import FILE
from latent_prm.demo import prm_folder
from latent_prm.describing import BYTES
from latent_prm.model import QwenLatentPRM
from latent_prm.options import ServeOptions
from latent_prm.patience import patient
from latent_prm.reading import Read
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import BUILT_IN
from latent_prm.tree import ReasoningTree
from latent_prm.wire import Unreadable

QUESTION = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"
OPEN = {"/health", "/", "/page/page.css", "/page/page.js", "/page/tree.css", "/page/tree.js", "/page/icon.svg"}
CLOSED = {
    "/metrics",
    "/openapi.json",
    "/docs",
    "/v1/about",
    "/v1/score",
    "/v1/solve",
    "/nothing",
    "//health",
    "/health/",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(max_body_mb=1, batch_tokens=512, timeout=25.0) as found:
        yield found


@pytest.fixture(scope="module")
def prm() -> QwenLatentPRM:
    return QwenLatentPRM.from_pretrained("builtin")


def thought(seed: int = 0, count: int = 3) -> list[list[float]]:
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(seed)).tolist()


def score_body(**changes: Any) -> dict[str, Any]:
    return {"question": QUESTION, "paths": [{"latents": thought(), "answer": "17"} | changes]}


# --- who may come in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(OPEN | CLOSED))
def test_only_health_and_the_pages_shell_are_open(running: Running, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
        for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper()):
            refused = running.ask(method, path, token=token).status == 401
            assert refused is not (path in OPEN and method in ("GET", "HEAD")), (method, token)
        assert running.ask(method, path).status != 401


@pytest.mark.parametrize(
    "header", [TOKEN, f"Basic {TOKEN}", f"Bearer{TOKEN}", f"Bearer {TOKEN} x", "Bearer", "Bearer \xff"]
)
def test_the_token_is_only_taken_as_a_bearers(running: Running, header: str) -> None:
    assert running.ask("GET", "/metrics", token=None, Authorization=header).status == 401


def test_of_what_is_open_the_head_can_be_had_alone(running: Running) -> None:
    for path in sorted(OPEN):
        head, whole = (running.ask(method, path, token=None) for method in ("HEAD", "GET"))
        assert head.status == whole.status == 200 and head.body == b""
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_of_two_tokens_none_counts(running: Running) -> None:
    line = f"Authorization: Bearer {TOKEN}\r\n"
    with running.connect(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{line}{line}Connection: close\r\n\r\n".encode()) as one:
        assert read_all(one).startswith(b"HTTP/1.1 401")


def test_every_answer_says_what_a_browser_may_do_with_it(running: Running) -> None:
    for path, token in (("/", None), ("/v1/about", TOKEN), ("/metrics", None)):
        headers = running.ask("GET", path, token=token).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_token_of_ones_own_must_be_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.TOKEN, "short")
    with pytest.raises(ValueError, match="has 5 characters: it takes 16 or more"):
        server.find_token()
    monkeypatch.setenv(server.TOKEN, "has a space in the middle")
    with pytest.raises(ValueError, match="without spaces"):
        server.find_token()
    monkeypatch.setenv(server.TOKEN, TOKEN)
    assert server.find_token() == (TOKEN, False)
    monkeypatch.delenv(server.TOKEN)
    first, second = server.find_token(), server.find_token()
    assert first != second and len(first[0]) >= 32 and first[1]


def test_the_token_is_printed_only_where_nobody_else_knows_it_and_the_network_is_warned_of() -> None:
    said = "\n".join(server.greeting(ServeOptions(), 8000, "secret"))
    assert "http://127.0.0.1:8000/#token=secret" in said and "WARNING" not in said
    said = "\n".join(server.greeting(ServeOptions(host="0.0.0.0"), 8000, None))
    assert "#token=$LATENT_PRM_TOKEN" in said and "WARNING: --host 0.0.0.0 is open to the network" in said
    assert "http://[::1]:8000/" in "\n".join(server.greeting(ServeOptions(host="::1"), 8000, None))


# --- scoring --------------------------------------------------------------------------------------------------------


def test_json_and_safetensors_give_the_scores_of_the_library(running: Running, prm: QwenLatentPRM) -> None:
    tree = random_tree(1, width=128, question=QUESTION)
    wanted = prm.score_trees([tree])[0]
    body = {
        "question": tree.question,
        "paths": [
            {
                "latents": path.latents.tolist(),
                "parent": path.parent,
                "answer": path.answers[0].value if path.answers else None,
                "noise_free": path.noise_free,
            }
            for path in tree.paths
        ],
    }
    as_json = running.ask("POST", "/v1/score", body).json["paths"]
    as_bytes = running.ask("POST", "/v1/score", packed(tree), "application/octet-stream").json["paths"]
    assert as_json == as_bytes
    assert [path["score"] for path in as_json] == pytest.approx(wanted.tolist(), abs=1e-6)
    for i, path in enumerate(as_json):
        assert len(path["steps"]) == tree.chain_length(i)
        assert 0 <= path["probability"] <= 1
        if (parent := tree.paths[i].parent) is not None:  # what stands above a path is worth what it was
            assert path["steps"][: len(as_json[parent]["steps"])] == pytest.approx(as_json[parent]["steps"], abs=1e-6)


def test_a_step_is_worth_what_a_path_that_ends_there_is(running: Running) -> None:
    latents = thought(2, 5)
    whole = running.ask("POST", "/v1/score", score_body(latents=latents, answer=None)).json["paths"][0]
    for end in range(1, 6):
        part = running.ask("POST", "/v1/score", score_body(latents=latents[:end], answer=None)).json["paths"][0]
        assert part["score"] == pytest.approx(whole["steps"][end - 1], abs=1e-6)
    assert whole["score"] == whole["steps"][-1]


def test_without_a_calibration_there_is_no_probability_and_without_a_reasoner_no_answer(tmp_path: Path) -> None:
    bare = tmp_path / "best"
    shutil.copytree(prm_folder(), bare, ignore=shutil.ignore_patterns(FILE))
    with serving(checkpoint=str(bare), solve=False) as found:
        assert found.ask("POST", "/v1/score", score_body()).json["paths"][0]["probability"] is None
        assert found.ask("POST", "/v1/solve", {"question": QUESTION}).status == 404
        assert found.ask("GET", "/v1/about").json["model_path"] is None


def test_a_prm_that_reads_the_tip_or_hidden_states_is_not_asked_without(tiny_lm: Path) -> None:
    model = QwenLatentPRM(model_path=str(tiny_lm), reads=("hidden", "tip")).eval()
    found = Service(ServeOptions(solve=False, device="cpu"), model)
    tree = random_tree(1, noise_free=False)
    for path in tree.paths:
        path.hidden = path.latents
    found._readable(BYTES, packed(tree))
    tree.paths[0].tip = None  # of no leaf: nobody reads it
    found._readable(BYTES, packed(tree))
    last = len(tree.paths) - 1
    tree.paths[last].tip = None
    with pytest.raises(Unreadable, match=f"Path {last} ends here, but has no tip, which this PRM reads: send it as"):
        found._readable(BYTES, packed(tree))
    tree.paths[1].hidden = None
    with pytest.raises(Unreadable, match="Path 1 has no hidden states, which this PRM reads: send them as hidden"):
        found._readable(BYTES, packed(tree))


REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "EOF while parsing"),
    "no object": (b"[]", "Input should be an object"),
    "deep": (b"[" * 100_000, "recursion limit"),
    "NaN": (b'{"question":"","paths":[{"latents":[[NaN]]}]}', "paths.0.latents.0.0: Input should be a finite number"),
    "infinite": (b'{"question":"","paths":[{"latents":[[1e999]]}]}', "finite"),
    "no paths": ({"question": "", "paths": []}, "at least 1 item"),
    "no question": ({"paths": [{"latents": thought()}]}, "question: Field required"),
    "long question": ({"question": "a" * 20_001, "paths": [{"latents": thought()}]}, "at most 20000"),
    "text": (score_body(latents=[["0.5"] * 128]), "paths.0.latents.0.0: Input should be a valid number"),
    "bool": (score_body(latents=[[True] * 128]), "valid number"),
    "ragged": (score_body(latents=[[1.0] * 128, [1.0]]), "rows differ in length"),
    "narrow": (score_body(latents=[[1.0] * 64]), "its latents are 64 wide, but this PRM reads latents 128 wide"),
    "empty": (score_body(latents=[]), "[T, D], T and D at least 1"),
    "beyond float32": (score_body(latents=[[1e39] * 128]), "finite numbers in float32"),
    "own parent": (score_body(parent=0), "carries on from path 0, but parents stand before"),
    "unknown field": (score_body(latent=1), "paths.0.latent: Extra inputs are not permitted"),
    "wide tip": (score_body(tip=[1.0] * 5), "its tip: the shape is [5]"),
    "long chain": (score_body(latents=[[0.0] * 128] * 513), "513 latents, but this PRM reads 512"),
    "many tokens": ({"question": "", "paths": [{"latents": [[0] * 128] * 9}] * 60}, "540 tokens, too many"),
    "surrogate": (b'{"question":"\\ud800","paths":[{"latents":[[1]]}]}', "hex escape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_body_is_said_in_a_few_words(running: Running, name: str) -> None:
    body, said = REFUSED[name]
    reply = running.ask("POST", "/v1/score", body)
    assert reply.status == 422 and said in reply.json["error"]
    assert len(reply.body) < 600


def test_a_body_that_is_wrong_everywhere_is_refused_as_quickly_and_shortly(running: Running) -> None:
    reply = running.ask("POST", "/v1/score", score_body(latents=[["x"] * 1000] * 200))
    assert reply.status == 422 and len(reply.body) < 200


SHAPES = {"0.latents": torch.zeros(2, 128)}
HEADS = json.dumps([{"parent": None}])


def raw(tensors: dict[str, torch.Tensor], **metadata: str) -> bytes:
    return save(tensors, {"question": QUESTION, "paths": HEADS} | metadata)


BAD_BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "Not a safetensors body"),
    "no header": (struct.pack("<Q", 10) + b"x", "Not a safetensors body"),
    "endless header": (struct.pack("<Q", 2**63) + b"{}", "longer than 1048576"),
    "large header": (struct.pack("<Q", 2**20 + 1) + b" " * (2**20 + 1), "larger than"),  # the body is, too
    "no JSON": (struct.pack("<Q", 2) + b"{]", "Not a safetensors body"),
    "deep": (struct.pack("<Q", 90_000) + b"[" * 90_000, "Not a safetensors body"),
    "no metadata": (save(SHAPES), 'needs "question" and "paths"'),
    "paths no JSON": (raw(SHAPES, paths="x"), "paths: "),
    "no latents": (raw({"0.tip": torch.zeros(128)}), "Path 0 has no latents"),
    "stray tensor": (raw(SHAPES | {"7.latents": torch.zeros(1, 128)}), "No path has a '7.latents'"),
    "integers": (raw({"0.latents": torch.zeros(2, 128, dtype=torch.int64)}), "is of torch.int64"),
    "complex": (raw({"0.latents": torch.zeros(2, 128, dtype=torch.complex64)}), "complex64"),
    "one axis": (raw({"0.latents": torch.zeros(128)}), "the shape is [128]"),
    "NaN": (raw({"0.latents": torch.full((2, 128), math.nan)}), "finite"),
    "hidden of another length": (
        raw(SHAPES | {"0.hidden": torch.zeros(3, 128)}),
        "hidden states: the shape is [3, 128]",
    ),
    "cut short": (raw(SHAPES)[:-8], "Not a safetensors body"),
    "a pickle": (b"\x80\x04\x95" + b"x" * 50, "Not a safetensors body"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_safetensors_are_checked_before_they_are_believed(running: Running, name: str) -> None:
    body, said = BAD_BYTES[name]
    reply = running.ask("POST", "/v1/score", body, "application/octet-stream")
    assert reply.status == (413 if name == "large header" else 422) and said in reply.json["error"]
    assert len(reply.body) < 600


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_may_come_in_other_floats(running: Running, dtype: torch.dtype) -> None:
    reply = running.ask(
        "POST", "/v1/score", raw({"0.latents": torch.ones(2, 128, dtype=dtype)}), "application/octet-stream"
    )
    assert reply.status == 200


def test_other_kinds_of_bodies_are_refused(running: Running) -> None:
    for kind in (None, "text/plain", "application/x-pickle", "multipart/form-data; boundary=x"):
        assert running.ask("POST", "/v1/score", b"{}", kind).status == 415
    assert running.ask("POST", "/v1/score", b"{}", Content_Encoding="gzip").status == 415
    assert running.ask("GET", "/v1/score").status == 405


def test_numbers_out_of_all_proportion_never_become_a_nan_of_json_nor_spoil_what_they_are_scored_with(
    prm: QwenLatentPRM,
) -> None:
    sound, huge = random_tree(3, width=128), random_tree(4, width=128)
    for path in huge.paths:
        path.latents = path.latents * 1e38
    outcomes = batching.apart(lambda some: batching.score(prm, some, 512), prm.as_read([sound, huge]))
    wanted = prm.score_trees([sound])[0].tolist()
    assert not isinstance(outcomes[0], Exception)
    assert [path.score for path in outcomes[0]] == pytest.approx(wanted, abs=1e-6)
    if isinstance(outcomes[1], Exception):
        assert "its score is not a number" in str(outcomes[1])
    else:
        assert all(0 <= path.score <= 1 for path in outcomes[1])


# --- waiting together -----------------------------------------------------------------------------------------------


class ByHand:
    """Scores each path by the place of its batch, and begins a batch when it is told to."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Semaphore(0)

    def __call__(self, reads: Sequence[Read]) -> list[list[Scored]]:
        assert self.go.acquire(timeout=10)
        self.batches.append(len(reads))
        if any(read.tree.question == "bad" for read in reads):
            raise ValueError("a bad one")
        return [[Scored(len(self.batches) / 10, [])] for _ in reads]


def read(question: str = "") -> Read:
    return Read(ReasoningTree(question_id="", question=question, gold="", task="", paths=[]), [], {})


def test_who_waits_is_scored_together_as_many_as_fit_and_one_more_is_turned_away() -> None:
    async def go() -> None:
        by_hand, told = ByHand(), []
        batcher = Batcher(by_hand, 10, 4, lambda *batch: told.append(batch))
        running = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.submit(read(), Size(9, 1, 1)))
        while batcher.waiting or not told:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit(read(), Size(tokens, 1, 1))) for tokens in (4, 4, 4, 1)]
        await asyncio.sleep(0.01)
        with pytest.raises(Full):
            await batcher.submit(read(), Size(1, 1, 1))
        others[1].cancel()  # who leaves makes room
        await asyncio.sleep(0.01)
        others.append(asyncio.create_task(batcher.submit(read(), Size(1, 1, 1))))
        await asyncio.sleep(0.01)
        by_hand.go.release(9)
        assert await first == [Scored(0.1, [])]
        assert [(await one)[0].score for one in others[:1] + others[2:]] == [0.2, 0.2, 0.2, 0.2]
        assert by_hand.batches == [1, 4] and told == [(1, 9), (4, 10)]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(go())


def test_a_deep_tree_counts_for_all_the_scores_that_are_read_off_it() -> None:
    assert batching._fits([Size(64, 64, 8)], 64) and not batching._fits([Size(64, 64, 9)], 64)
    assert not batching._fits([Size(10, 60, 1), Size(10, 4, 9)], 64)


def test_the_batch_mates_of_a_bad_request_do_not_feel_it() -> None:
    by_hand = ByHand()
    by_hand.go.release(9)
    outcomes = batching.apart(by_hand, [read(), read("bad"), read()])
    assert by_hand.batches == [3, 1, 1, 1]
    assert outcomes[0] == [Scored(0.2, [])] and outcomes[2] == [Scored(0.4, [])]
    assert str(outcomes[1]) == "a bad one"


def test_a_full_queue_says_when_to_come_again() -> None:
    with serving(queue_size=1, solve=False) as found:
        body = json.dumps(score_body(latents=thought(0, 400))).encode()
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda _: found.ask("POST", "/v1/score", body), range(24)))
        assert {reply.status for reply in replies} == {200, 503}
        refused = next(reply for reply in replies if reply.status == 503)
        assert refused.headers["retry-after"] == "1" and "queue is full" in refused.json["error"]
        assert found.ask("POST", "/v1/score", body).status == 200
        text = found.ask("GET", "/metrics").body.decode()
        assert 'latent_prm_requests_total{route="/v1/score",status="503"}' in text
        assert "latent_prm_queue_length 0.0" in text


# --- bodies and connections -----------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_declared_or_not(running: Running) -> None:
    reply = running.ask("POST", "/v1/score", b"x" * (2**20 + 1))
    assert reply.status == 413 and "larger than 1048576 bytes" in reply.json["error"]
    assert reply.headers["connection"] == "close"
    _, said = running.chunked("/v1/score", b"x" * 2**16, 1000)
    assert said.startswith(b"HTTP/1.1 413") and said.endswith(b'or raise --max_body_mb."}')
    assert running.ask("POST", "/v1/score", score_body()).status == 200


def test_who_has_no_token_cannot_make_it_read_a_body(running: Running) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    begun = time.monotonic()
    with running.connect(head + b"x" * 1000) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 401")
    assert time.monotonic() - begun < 3


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with serving(timeout=0.3, solve=False) as found:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        with found.connect(head.encode() + b"{") as connection:
            assert b"took longer than 0.3 seconds" in read_all(connection)


def test_who_leaves_before_the_body_is_whole_is_no_error(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with running.connect(head.encode() + b"{"):
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while b'route="/v1/score",status="499"' not in running.ask("GET", "/metrics").body:
        assert time.monotonic() < deadline
    assert not caplog.records


def test_only_so_many_bytes_are_held_at_once(running: Running) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {2**20}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running.connect(head.encode() + b" " * (2**20 - 1)))
        time.sleep(0.3)
        reply = running.ask("POST", "/v1/score", score_body(latents=thought(0, 40)))
        assert reply.status == 503 and "Too many bodies" in reply.json["error"]
    deadline = time.monotonic() + 5
    while running.ask("POST", "/v1/score", score_body(latents=thought(0, 40))).status != 200:
        assert time.monotonic() < deadline


@contextmanager
def impatient(app: Any, **patience: Any) -> Iterator[int]:
    """The port of a server of another application, whose patience is short."""
    with server.listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, http=patient(**patience), ws="none", lifespan="off", log_level="critical")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(10)


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(100):
        await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_who_neither_talks_nor_listens_is_left() -> None:
    with impatient(large, head=0.3, stall=0.3) as port:
        for words in ([b""], [b"GET / HTTP/1.1\r\n", b"A: b\r\n", b"C: d\r\n"]):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                begun = time.monotonic()
                for word in words:  # one now and then does not buy time
                    connection.sendall(word)
                    time.sleep(0.05)
                assert read_all(connection) == b""
                assert time.monotonic() - begun < 2
        with socket.create_connection(("127.0.0.1", port), timeout=5) as deaf:
            deaf.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(1)
            assert 0 < len(read_all(deaf)) < 100 * 2**20


def test_the_silent_make_room_for_who_comes() -> None:
    with impatient(large, silent=3) as port, ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(5)]
        assert [read_all(connection) for connection in connections[:2]] == [b"", b""]
        for connection in connections[2:]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_refused(running: Running) -> None:
    for words in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000):
        with running.connect(words) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert running.ask("GET", "/health").json == {"status": "ok"}


# --- answering ------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_step_by_step(running: Running) -> None:
    reply = running.ask("POST", "/v1/solve", {"question": QUESTION, "num_paths": 5, "seed": 3})
    assert reply.headers["content-type"] == "application/x-ndjson"
    started, *steps, answers, chosen = reply.lines
    assert started == {
        "event": "started",
        "question": QUESTION,
        "task": "arithmetic",
        "seed": 3,
        "num_paths": 5,
        "steps": 6,
    }
    assert [step["event"] for step in steps] == ["step"] * 5 and answers["event"] == "answers"
    paths = [path for event in (*steps, answers) for path in event["paths"]]
    assert [path["id"] for path in paths] == list(range(6 * 6))
    for before, event in pairwise([*steps, answers]):
        assert [path["parent"] for path in event["paths"]] == [path["id"] for path in before["paths"]]
    assert all(0 < path["score"] < 1 for path in paths)
    assert [path["votes"] for path in answers["paths"]] == [0, 1, 1, 1, 1, 1]
    given = {path["id"]: path["answers"][0]["value"] for path in answers["paths"]}
    assert chosen["event"] == "chosen" and given[chosen["path"]] == chosen["answer"]
    assert 0 < chosen["probability"] < 1 and chosen["said"].startswith(f"I think {chosen['answer']}, right with")
    again = running.ask("POST", "/v1/solve", {"question": QUESTION, "num_paths": 5, "seed": 3}).lines
    assert again[:-1] == reply.lines[:-1] and again[-1] | {"seconds": 0} == chosen | {"seconds": 0}


def test_what_is_told_of_an_unfinished_path_is_what_it_would_be_scored(running: Running) -> None:
    events = running.ask("POST", "/v1/solve", {"question": QUESTION, "num_paths": 2}).lines
    (reasoner, model) = Reasoner.from_pretrained(device="cpu"), QwenLatentPRM.from_pretrained("builtin")
    tree = solver.grow(
        ServeOptions(device="cpu").asks(QUESTION, num_paths=2), reasoner, model, None, lambda *_: None
    ).tree
    for event in events[1:6]:
        for path in event["paths"]:
            alone = model.predict_scores(tree.chain_latents(path["id"])[None], questions=[QUESTION])
            assert path["score"] == pytest.approx(alone.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"question": " "}, "question is empty"),
        ({"question": ""}, "at least 1 character"),
        ({"question": QUESTION, "task": "riddles"}, "task: Input should be 'arithmetic', 'search', 'maths', 'choice'"),
        ({"question": QUESTION, "task": "gsm8k"}, "task: Input should be 'arithmetic', 'search', 'maths', 'choice'"),
        ({"question": QUESTION, "task": "search"}, "not a search question"),
        ({"question": QUESTION, "num_paths": 65}, "less than or equal to 64"),
        ({"question": QUESTION, "num_paths": 0}, "greater than or equal to 1"),
        ({"question": QUESTION, "seed": -1}, "greater than or equal to 0"),
        ({"question": QUESTION, "steer": "topk"}, "Extra inputs"),
        ({"question": "apples " * 600}, "positions"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_first_line(running: Running, body: Any, said: str) -> None:
    reply = running.ask("POST", "/v1/solve", body)
    assert reply.status == 422 and said in reply.json["error"] and len(reply.body) < 600
    assert "--" not in reply.json["error"] and "latent-prm" not in reply.json["error"]  # nobody sits at a terminal


def test_every_built_in_task_may_be_asked_for() -> None:
    (choices, _) = wire.SolveBody.model_json_schema()["properties"]["task"]["anyOf"]
    assert set(choices["enum"]) == set(BUILT_IN)


def test_what_a_request_leaves_out_is_as_the_server_was_started(running: Running) -> None:
    about = running.ask("GET", "/v1/about").json
    assert (about["num_paths"], about["seed"], about["reads"]) == (16, 42, ["fed", "answer"])
    with serving(branches="3,2", seed=7, latent_steps=2) as found:
        about = found.ask("GET", "/v1/about").json
        started = found.ask("POST", "/v1/solve", {"question": QUESTION}).lines[0]
        assert (about["num_paths"], about["seed"]) == (6, 7) == (started["num_paths"], started["seed"])
        reply = found.ask("POST", "/v1/solve", {"question": QUESTION, "num_paths": 5})
        said = "num_paths is 5, but this server branches its paths as 3,2, 6 in all: leave num_paths out."
        assert reply.status == 422 and reply.json["error"] == said


def test_only_a_few_questions_wait_and_nobody_is_forgotten(running: Running) -> None:
    asked = {"question": QUESTION, "num_paths": 16}
    with ThreadPoolExecutor(9) as pool:
        replies = list(pool.map(lambda _: running.ask("POST", "/v1/solve", asked), range(9)))
    assert {reply.status for reply in replies} == {200, 503}
    assert all(reply.lines[-1]["event"] == "chosen" for reply in replies if reply.status == 200)
    refused = next(reply for reply in replies if reply.status == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert running.ask("POST", "/v1/solve", asked).status == 200


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with serving(timeout=0.01) as found:
        for _ in range(3):
            reply = found.ask("POST", "/v1/solve", {"question": QUESTION, "num_paths": 64})
            said = reply.json if reply.status == 503 else reply.lines[-1]
            assert "No answer within 0.01 seconds" in said["error"]


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_it_describes_itself(running: Running) -> None:
    said = running.ask("GET", "/openapi.json").json
    assert set(said["paths"]) == {
        "/health",
        "/metrics",
        "/v1/about",
        "/v1/score",
        "/v1/solve",
        "/openapi.json",
        "/docs",
    }
    assert {"ScoreBody", "PathBody", "SolveBody", "ScoreReply"} <= set(said["components"]["schemas"])
    refers = re.findall(r"#/components/schemas/(\w+)", json.dumps(said))
    assert set(refers) <= set(said["components"]["schemas"])
    page = running.ask("GET", "/docs").body.decode()
    assert "POST /v1/score" in page and "<script" not in page and "http://" not in page


def test_it_counts(running: Running) -> None:
    running.ask("POST", "/v1/score", score_body())
    text = running.ask("GET", "/metrics").body.decode()
    for name in ("requests_total", "request_seconds_bucket", "queue_length", "batch_requests_sum", "batch_tokens_sum"):
        assert f"latent_prm_{name}" in text
    assert TOKEN not in text and 'route="/v1/score",status="200"' in text


def test_examples_are_questions_of_the_built_in_tasks(running: Running) -> None:
    examples = running.ask("GET", "/v1/about").json["examples"]
    assert {name: len(questions) for name, questions in examples.items()} == {"arithmetic": 12, "search": 12}
    assert running.ask("POST", "/v1/solve", {"question": examples["search"][0], "task": "search"}).status == 200


# --- starting and stopping ------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_with_what_to_type(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "NEEDS", ("fastapi", "no_such_module"))
    assert main(["serve"]) == 1
    assert 'needs no-such-module. Type: pip install "latent-prm[serve]"' in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error_with_the_way_out(capsys: Any) -> None:
    with server.listen("127.0.0.1", 0) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "Type another --port (0: any that is free)" in capsys.readouterr().err
    assert main(["serve", "--host", "no.such.host.invalid"]) == 1
    assert "is no address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [({"port": 70000}, "--port is 70000"), ({"timeout": 0.0}, "--timeout is 0.0"), ({"queue_size": 0}, "--queue_size")],
)
def test_options_that_make_no_sense_are_refused(typed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServeOptions(**typed)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_typed_it_serves_until_it_is_told_to_stop(sent: int, code: int) -> None:
    typed = [sys.executable, "-m", "latent_prm", "serve", "--port", "0", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != server.TOKEN}
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        port, token = re.findall(r":(\d+)/#token=(\S+)", second)[0]
        assert f"Serving builtin at http://127.0.0.1:{port}" in first
        found = Running(int(port), None)
        assert found.ask("GET", "/v1/about", token=token).json["task"] == "arithmetic"
        assert found.ask("GET", "/v1/about", token=None).status == 401
        process.send_signal(sent)
        assert process.wait(20) == code
        assert token not in process.stderr.read()
