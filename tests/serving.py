"""A real server in a thread, and requests as no library would send them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple

from latent_prm import server
from latent_prm.client import Client
from latent_prm.options import ServeOptions

TOKEN = "a-token-of-the-tests"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda name: 1 / 0)  # NaN is no JSON

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Running(NamedTuple):
    """A server that answers."""

    port: int
    server: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        return Client(self.url, TOKEN, timeout=30)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str | None = "application/json",
        token: str | None = TOKEN,
        **headers: str,
    ) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None and kind is not None:
            sent["Content-Type"] = kind
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict | list) else body, sent)
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A bare connection on which something was said."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        found.sendall(sent)
        return found

    def chunked(self, path: str, chunk: bytes, count: int) -> tuple[int, bytes]:
        """Sends a body of so many chunks, as long as the server reads. The bytes that were sent, and all it said."""
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        whole = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
        with self.connect((head + "Transfer-Encoding: chunked\r\n\r\n").encode()) as connection:
            sent = 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(count):
                    connection.sendall(whole)
                    sent += len(chunk)
                connection.sendall(b"0\r\n\r\n")
            return sent, read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            said += more
    return said


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Running]:
    """`latent-prm serve` with these options, until the end of the block."""
    with server.listen("127.0.0.1", 0) as listener:
        running = server.make_server(ServeOptions(port=0, device="cpu", **options), TOKEN)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Running(listener.getsockname()[1], running)
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
