"""How long the server waits for somebody who neither talks nor listens. Needs the extra ``[serve]``.

uvicorn by itself waits for ever for a request's head, and for a reader that does not read; and its limit of concurrency
counts those who are silent, so that they would keep out everybody else.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 10.0
"""Seconds from a connection, or an answer, to the end of the next request's head."""
STALL = 30.0
"""Seconds in which a reader has to make room for more."""
SILENT = 512
"""Connections whose request has not come yet, at most: one more takes the place of that which has waited longest."""


def patient(head: float = HEAD, stall: float = STALL, silent: int = SILENT) -> type[asyncio.Protocol]:
    """uvicorn's protocol with an end to its patience, for one server."""
    waiting: dict[Patient, asyncio.TimerHandle] = {}

    class Patient(H11Protocol):
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._busy():
                self._heard()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._busy():
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._heard()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(stall, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            self._heard()
            waiting[self] = self.loop.call_later(head, self.transport.abort)
            if len(waiting) > silent:
                longest = next(iter(waiting))
                waiting.pop(longest).cancel()
                longest.transport.abort()

        def _heard(self) -> None:
            if timer := waiting.pop(self, None):
                timer.cancel()

    return Patient
