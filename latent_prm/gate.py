"""The server's door: who may come in, how much may be brought, how long that may take. Needs the extra ``[serve]``.

This room hides the rules that hold for every route, before any of them sees a request: all is closed to who has no
token, but what is named open; bodies are counted while they stream; every refusal is a short JSON.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from latent_prm.meters import Meters

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LINGER = 1.0
"""Seconds in which the rest of a refused body is thrown away, so that whoever sends it gets to read why."""
LEFT = 499
"""What is counted where nobody waited for an answer."""
IN_HAND = 4
"""Bodies of the largest size whose bytes may be in memory together."""
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in."""

    status: int
    error: str
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """Ends the reading of a body; the gate has its own record of why."""


class Gate:
    """Wraps an application. ``open`` are the paths that a GET or HEAD reaches without the token."""

    def __init__(
        self, app: App, token: str, open: Collection[str], max_body: int, timeout: float, meters: Meters
    ) -> None:
        self.app, self.open, self.max_body, self.timeout, self.meters = app, open, max_body, timeout, meters
        self._token = token.encode()
        self._in_hand = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, visit = time.perf_counter(), _Visit(self, receive, send)
        try:
            if (refusal := self._look(scope)) is not None:
                visit.refusal = refusal
            else:
                await visit.through(scope)
            if visit.refusal is not None and not visit.status:
                await visit.refuse(visit.refusal, scope)
        finally:
            self._in_hand -= visit.size
            route = getattr(scope.get("route"), "path", None)
            status = visit.status or (LEFT if visit.left else 500)
            self.meters.answered(route or "none", status, time.perf_counter() - begun)

    def _look(self, scope: Message) -> Refusal | None:
        """At the head of a request."""
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in self.open
        if not is_open and not self._knows(scope):
            said = "This server asks for its token: send the header Authorization: Bearer TOKEN."
            return Refusal(401, said, (("www-authenticate", "Bearer"),))
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in scope["headers"]):
            return Refusal(415, "Bodies are read as they are: send it without Content-Encoding.")
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > self.max_body:
            return self.too_large()
        return None

    def _knows(self, scope: Message) -> bool:
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"

    def too_large(self) -> Refusal:
        """For a body that is longer than any may be."""
        return Refusal(413, f"The body is larger than {self.max_body} bytes: send it in parts, or raise --max_body_mb.")

    def take(self, size: int) -> bool:
        """Whether so many more bytes may be in memory."""
        if self._in_hand + size > IN_HAND * self.max_body:
            return False
        self._in_hand += size
        return True


class _Visit:
    """One request: its body as it comes, its answer as it goes."""

    def __init__(self, gate: Gate, receive: Receive, send: Send) -> None:
        self.gate, self._receive, self._send = gate, receive, send
        self.refusal: Refusal | None = None
        self.status = 0
        self.size = 0
        self.left = False
        """Whoever asked went before the body was whole."""
        self._whole = False
        self._deadline = asyncio.get_running_loop().time() + gate.timeout

    async def through(self, scope: Message) -> None:
        """Let the application answer. What it makes of a body that was refused is of no interest."""
        try:
            await self.gate.app(scope, self.receive, self.send)
        except Exception:
            if self.refusal is None and not self.left:
                raise

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # until whoever asked has gone
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            self._stop(Refusal(408, f"The body took longer than {self.gate.timeout:g} seconds to arrive."))
        if message["type"] != "http.request":
            self.left = True
            return message
        more = len(message.get("body", b""))
        if self.size + more > self.gate.max_body:
            self._stop(self.gate.too_large())
        if not self.gate.take(more):
            self._stop(Refusal(503, "Too many bodies at once: come again.", (("retry-after", "1"),)))
        self.size += more
        self._whole = not message.get("more_body", False)
        return message

    def _stop(self, refusal: Refusal) -> NoReturn:
        self.refusal = refusal
        raise Refused

    async def send(self, message: Message) -> None:
        if (self.refusal is not None or self.left) and not self.status:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in _HEADERS if pair[0] not in named)]
        await self._send(message)

    async def refuse(self, refusal: Refusal, scope: Message) -> None:
        """Say why; the rest of a body is not waited for, but whoever sends it is given time to read."""
        body = json.dumps({"error": refusal.error}).encode()
        brings = bool(_header(scope, b"transfer-encoding")) or _header(scope, b"content-length") not in (b"", b"0")
        hurried = brings and not self._whole
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), *refusal.headers]
        headers += [("connection", "close")] * hurried
        self.status = refusal.status
        raw = [(name.encode(), value.encode()) for name, value in headers] + _HEADERS
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body, "more_body": hurried})
        if hurried:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drain(), LINGER)
            await self._send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def _header(scope: Message, name: bytes) -> bytes:
    """A header's value; of one that came twice nothing is believed."""
    found = [value for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else b""
