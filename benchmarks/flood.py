"""Rows E1 and E2 of the torture: the server under those who send too much, nonsense, slowly or without a token.

python benchmarks/torture.py --rows E1,E2

The server runs in a process of its own, as it is typed; what is sent to it is written byte by byte.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import torch

from latent_prm import batching
from latent_prm.client import packed
from latent_prm.model import POOLINGS, QwenLatentPRM
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import load_task
from latent_prm.tree import Answer, ReasoningTree
from latent_prm.tree import Path as LatentPath

TOKEN = "the-token-of-the-flood"
JSON, BYTES = "application/json", "application/octet-stream"
MIB = 2**20
MAX_BODY = 4
"""MiB."""
CLIENTS, CAPACITIES = 64, 10
RECOVERS, SERVED = 2.0, 2.0
"""Seconds in which it serves again after the load, and a healthy client beside the slow ones."""
SLOW = 500
OPEN = ("/health", "/", *(f"/page/{name}" for name in ("page.css", "page.js", "tree.css", "tree.js", "icon.svg")))
CLOSED = ("/metrics", "/openapi.json", "/docs", "/v1/about", "/v1/score", "/v1/solve", "/nothing", "//health", "/page/")
QUESTION = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, path: str, body: bytes | None = None, kind: str = JSON, token: str | None = TOKEN
    ) -> tuple[int, bytes]:
        """GET, or POST where there is a body; the status and what was said."""
        connection = self.connection()
        try:
            return said(connection, path, body, kind, token)
        finally:
            connection.close()

    def rss(self) -> int:
        """Bytes of memory that it holds."""
        return psutil.Process(self.process.pid).memory_info().rss

    def check(self) -> None:
        """Raises AssertionError when it has ended."""
        assert self.process.poll() is None, f"the server ended with code {self.process.returncode}"


def said(
    connection: HTTPConnection, path: str, body: bytes | None, kind: str = JSON, token: str | None = TOKEN
) -> tuple[int, bytes]:
    """What is answered on a connection that may be used again."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if body is not None:
        headers["Content-Type"] = kind
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """`latent-prm serve` with these options; it has to live to the end, and to end when it is told to."""
    typed = [sys.executable, "-m", "latent_prm", "serve", "--port", "0", "--device", "cpu", *options]
    environment = os.environ | {"LATENT_PRM_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with (
        open(folder / "server.log", "w") as log,
        subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            port = re.search(r"http://127\.0\.0\.1:(\d+)", first)
            assert port, f"it began with {first!r}"
            served = Served(process, int(port[1]))
            assert served.ask("/health")[0] == 200
            yield served
            served.check()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == -signal.SIGTERM, f"it ended with code {process.returncode}"
        finally:
            process.kill()


# --- E1 -------------------------------------------------------------------------------------------------------------


def flood(folder: Path, seed: int, *, count: int = 5000, seconds: float = 60.0) -> str:
    """E1: too large, too many, nonsense, too slow, and without the token."""
    draw = random.Random(seed)
    options = ("--max_body_mb", str(MAX_BODY), "--queue_size", "8", "--batch_tokens", "4096", "--timeout", "15")
    slow = SLOW if count >= SLOW else count
    with serving(folder, *options) as served:
        parts = (
            too_large(served, int(1024 * min(1.0, count / 5000)) * MIB),
            too_many(served, seconds),
            nonsense(served, draw, count),
            too_slow(served, slow, min(seconds, 14.0)),
            tokens(served),
        )
    return "; ".join(parts)


def too_large(served: Served, size: int) -> str:
    """A body in chunks, never declared."""
    before, sent = served.rss(), 0
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {JSON}\r\n"
    chunk = f"{MIB:x}\r\n".encode() + b"[" * MIB + b"\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < size:
                connection.sendall(chunk)
                sent += MIB
            connection.sendall(b"0\r\n\r\n")
        with suppress(ConnectionResetError):
            while more := connection.recv(65536):
                answer += more
    grown = (served.rss() - before) / MIB
    served.check()
    assert answer.startswith(b"HTTP/1.1 413"), f"{sent / MIB:.0f} MiB in chunks were answered {answer[:60]!r}"
    assert grown < 8 * MAX_BODY, f"{sent / MIB:.0f} MiB in chunks took {grown:.0f} MiB of memory"
    return (
        f"{size // MIB} MiB in chunks: 413 ({sent // MIB} MiB taken off the wire, {max(0.0, grown):.0f} MiB of memory)"
    )


def too_many(served: Served, seconds: float) -> str:
    """64 clients that offer ten times what can be scored."""
    tree = _tree("she buys 5. " * 60, [torch.randn(2, 128) * 0.1 for _ in range(16)])
    for path in tree.paths:  # much to compute, and little to send: what is measured is the server, not the wire
        path.answers = [Answer(text="", value="17 " * 80, correct=False)]
    body = packed(tree)
    capacity = _scored_a_second(served, body, min(4.0, seconds))
    statuses: Counter[str] = Counter()
    pause, end = CLIENTS / (1.5 * CAPACITIES * capacity), time.monotonic() + seconds

    def client(number: int) -> None:
        connection, due = served.connection(), time.monotonic() + pause * number / CLIENTS
        while (now := time.monotonic()) < end:
            if now < due:
                time.sleep(min(due - now, end - now))
                continue
            due = max(due + pause, now - pause)  # who had to wait does not make up for all of it
            try:
                statuses[str(said(connection, "/v1/score", body, BYTES)[0])] += 1
            except (OSError, HTTPException) as error:
                statuses[type(error).__name__] += 1
                connection.close()
                connection = served.connection()
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    begun = time.monotonic()
    status = served.ask("/v1/score", body, BYTES)[0]
    recovered = time.monotonic() - begun
    served.check()
    offered = sum(statuses.values()) / seconds / capacity
    counts = ", ".join(f"{number} x {name}" for name, number in sorted(statuses.items()))
    assert set(statuses) <= {"200", "429", "503"}, f"under load: {counts}"
    assert statuses["200"] > 0 and (statuses["503"] > 0 or seconds < 5), f"under load: {counts}"
    assert status == 200 and recovered <= RECOVERS, f"after the load: {status} after {recovered:.1f} s"
    assert offered >= CAPACITIES or seconds < 5, f"only {offered:.1f} times the capacity could be offered"
    return (
        f"{CLIENTS} clients, {seconds:.0f} s, {offered:.0f} x the {capacity:.0f} a second it can do: {counts}; "
        f"served again after {recovered:.2f} s"
    )


def _scored_a_second(served: Served, body: bytes, seconds: float) -> float:
    """With as many clients as keep it busy."""
    end, done = time.monotonic() + seconds, Counter[int]()

    def client(_: int) -> None:
        connection = served.connection()
        while time.monotonic() < end:
            done[said(connection, "/v1/score", body, BYTES)[0]] += 1
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))
    assert set(done) == {200}, f"unhurried, it answered {dict(done)}"
    return done[200] / seconds


def nonsense(served: Served, draw: random.Random, count: int) -> str:
    """So many spoilt bodies, each 4xx. What a few changed bytes leave sound is answered, and does not count."""
    tree = _tree(QUESTION, [torch.randn(3, 128) * 0.1, torch.randn(2, 128) * 0.1])
    score = {"question": QUESTION, "paths": [{"latents": path.latents.tolist()} for path in tree.paths]}
    sound = {
        "/v1/score": [(JSON, json.dumps(score).encode()), (BYTES, packed(tree))],
        "/v1/solve": [(JSON, json.dumps({"question": QUESTION, "num_paths": 1}).encode())],
    }
    refused = still_sound = 0
    connection = served.connection()
    while refused < count:
        assert still_sound <= count, f"only {refused} of {refused + still_sound} bodies were spoilt enough"
        number = refused + still_sound
        path = "/v1/solve" if number % 5 == 4 else "/v1/score"
        kind, body = draw.choice(sound[path])
        spoil, broken = draw.choice(SPOILERS)
        sent = spoil(draw, body)
        try:
            status, answer = said(connection, path, sent, kind)
        except (OSError, HTTPException) as error:
            raise AssertionError(f"body {number} ({spoil.__name__}, {sent[:80]!r}): {type(error).__name__}") from error
        assert 400 <= status < 500 or (status == 200 and (not broken or sent == body)), (
            f"body {number} ({spoil.__name__}, {sent[:80]!r}): {status} {answer[:200]!r}"
        )
        assert status == 200 or len(answer) < 1024, f"body {number}: an error of {len(answer)} bytes"
        assert not re.search(rb"\bNaN\b|Infinity", answer), f"body {number}: {answer[:200]!r}"
        refused, still_sound = refused + (status != 200), still_sound + (status == 200)
    connection.close()
    served.check()
    return f"{refused} fuzzed bodies: all 4xx ({still_sound} more were still sound, and answered)"


def cut(draw: random.Random, body: bytes) -> bytes:
    return body[: draw.randrange(len(body) - 1)]


def noise(draw: random.Random, body: bytes) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 7, 8, 9, 100, 5000)))


def deep(draw: random.Random, body: bytes) -> bytes:
    return draw.choice((b"[", b'{"a":', b'{"paths":[')) * draw.choice((10, 1000, 100_000))


def swapped(draw: random.Random, body: bytes) -> bytes:
    """A value of another kind in the place of the question."""
    value = draw.choice((b"null", b"1", b"[]", b"{}", b"true", b"NaN", b"1e999", b'"\\ud800"'))
    return b'{"question":' + value + b',"paths":[{"latents":[[1]]}]}'


def numbers(draw: random.Random, body: bytes) -> bytes:
    """Latents that are none."""
    row = draw.choice(("NaN", "Infinity", "1e999", '"1"', "null", "true", "[1]", "{}", "1e39", ""))
    return b'{"question":"","paths":[{"latents":[[' + ",".join([row] * 128).encode() + b"]]}]}"


def headed(draw: random.Random, body: bytes) -> bytes:
    """A safetensors body with a header of lies."""
    lies = (
        {"0.latents": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 8]}},
        {"0.latents": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 10**15]}},
        {"0.latents": {"dtype": "F99", "shape": [1, 2], "data_offsets": [0, 8]}},
        {"0.latents": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}},
        {"0.latents": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"__metadata__": {"question": "", "paths": "[{}]" * draw.randrange(3)}},
        {"__metadata__": 7},
        [],
    )
    header = json.dumps(draw.choice(lies)).encode()
    size = draw.choice((len(header), len(header) + 8, 2**40, 2**63, 0))
    return size.to_bytes(8, "little") + header + b"\0" * 8


def flipped(draw: random.Random, body: bytes) -> bytes:
    found = bytearray(body)
    for _ in range(draw.randrange(1, 9)):
        found[draw.randrange(min(len(found), draw.choice((16, 300, 10**6))))] ^= 1 << draw.randrange(8)
    return bytes(found)


def shuffled(draw: random.Random, body: bytes) -> bytes:
    """Some bytes moved or doubled."""
    at, length, to = draw.randrange(len(body)), draw.randrange(1, 40), draw.randrange(len(body))
    return body[:to] + body[at : at + length] + body[to:]


Spoiler = Callable[[random.Random, bytes], bytes]
SPOILERS: Sequence[tuple[Spoiler, bool]] = (
    *((one, True) for one in (cut, noise, deep, swapped, numbers, headed)),
    *((one, False) for one in (flipped, shuffled)),
)
"""Ways to spoil a body, and whether nothing sound can come of it."""


def too_slow(served: Served, count: int, seconds: float) -> str:
    """Connections that send a byte now and then, half of them a head, half of them a body."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * count + 256)), hard))
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {JSON}\r\n"
    body = (head + "Content-Length: 100000\r\n\r\n").encode()
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(count)]
    for number, connection in enumerate(slow):
        connection.sendall(body if number % 2 else b"POST /v1/score HTTP/1.1\r\n")
    stop, sound = threading.Event(), packed(_tree(QUESTION, [torch.randn(3, 128) * 0.1]))

    def drip() -> None:
        while not stop.wait(0.5):
            for number, connection in enumerate(slow):
                with suppress(OSError):
                    connection.send(b" " if number % 2 else b"a")

    dripping = threading.Thread(target=drip)
    dripping.start()
    waits, end = [], time.monotonic() + seconds
    try:
        while time.monotonic() < end or not waits:
            begun = time.monotonic()
            status, _ = served.ask("/v1/score", sound, BYTES)
            waits.append(time.monotonic() - begun)
            assert status == 200, f"beside {count} slow connections a healthy client got {status}"
            time.sleep(0.2)
    finally:
        stop.set()
        dripping.join()
        for connection in slow:
            connection.close()
    served.check()
    assert max(waits) <= SERVED, f"beside {count} slow connections a healthy client waited {max(waits):.1f} s"
    return (
        f"{count} slow connections, {seconds:.0f} s: {len(waits)} of {len(waits)} healthy requests served, "
        f"the slowest in {max(waits):.2f} s"
    )


def tokens(served: Served) -> str:
    """Every route with no, a wrong and the right token."""
    described = json.loads(served.ask("/openapi.json")[1])["paths"]
    assert set(described) <= {*OPEN, *CLOSED}, f"routes that nobody has tried: {sorted(described)}"
    tried = 0
    for path in (*OPEN, *CLOSED):
        for body in (None, b"{}"):
            for token in (None, "", "wrong", TOKEN[:-1], TOKEN + "x"):
                status, _ = served.ask(path, body, token=token)
                let_in = path in OPEN and body is None
                assert (status == 200) if let_in else (status == 401), f"{path} without the right token: {status}"
                tried += 1
            status, _ = served.ask(path, body)
            assert status not in (401, 500), f"{path} with the token: {status}"
            tried += 1
    served.check()
    return f"{len(OPEN) + len(CLOSED)} routes, {tried} tries of tokens: open are {', '.join(OPEN)} alone"


# --- E2 -------------------------------------------------------------------------------------------------------------


def alone_and_together(folder: Path, seed: int, *, count: int = 256) -> str:
    """E2: each path by itself, and in batches of 32, with every pooling."""
    draw, task = random.Random(seed), load_task("arithmetic")
    reasoner = Reasoner.from_pretrained(device="cpu")
    questions = task.questions("test", seed, max(1, count // 16))
    trees = reasoner.grow(questions, task, reasoner.growth(num_paths=16, noise_free=False, seed=seed))
    chains = [tree.chains([leaf])[0] for tree in trees for leaf in tree.leaves()][:count]
    for chain in chains:  # of all lengths
        path = chain.paths[-1]
        path.latents = path.latents.repeat(draw.randint(1, 8), 1)[draw.randrange(len(path.latents)) :]
    torch.manual_seed(seed)
    models = {"the built-in PRM": QwenLatentPRM.from_pretrained("builtin")}
    models |= {
        pooling: QwenLatentPRM("builtin", pooling_strategy=pooling, reads=("fed", "answer")) for pooling in POOLINGS
    }
    worst: dict[str, float] = {}
    for name, model in models.items():
        reads = model.as_read(chains)
        alone = [batching.score(model, [read], 4096)[0][0] for read in reads]
        together = []
        for start in range(0, len(reads), 32):
            together += [each[0] for each in batching.score(model, reads[start : start + 32], 10**6)]
        differ = [abs(one.score - other.score) for one, other in zip(alone, together, strict=True)]
        for one, other in zip(alone, together, strict=True):
            differ += [abs(a - b) for a, b in zip(one.steps, other.steps, strict=True)]
        worst[name] = max(differ)
        assert worst[name] <= 1e-5, f"{name}: a score alone and in a batch of 32 differ by {worst[name]:.1e}"
    said = ", ".join(f"{name} {difference:.0e}" for name, difference in worst.items())
    return f"{len(chains)} paths alone and in batches of 32, their steps too, differ at most by: {said}"


def _tree(question: str, chains: list[torch.Tensor]) -> ReasoningTree:
    paths = [LatentPath(latents=chain, tip=None) for chain in chains]
    return ReasoningTree(question_id="", question=question, gold="", task="", paths=paths)


ROWS: dict[str, Callable[[Path, int], str]] = {"E1": flood, "E2": alone_and_together}
