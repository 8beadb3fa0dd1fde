"""The routes of the scoring server: hides FastAPI, and which thread does what. Needs the extra ``[serve]``.

Bodies are read in one thread, paths are scored in a second, questions are answered in a third, one at a time; the event
loop only waits. The third thread has a PRM of its own that shares the weights: whoever hooks or thins a model must not
be felt by others.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException

import latent_prm
from latent_prm import batching, describing, solver, wire
from latent_prm.batching import Batcher, Full, Scored, Size
from latent_prm.confidence import Confidence
from latent_prm.describing import BYTES, JSON, LINES
from latent_prm.gate import Gate
from latent_prm.growth import every_latent
from latent_prm.meters import Meters
from latent_prm.model import QwenLatentPRM
from latent_prm.options import ServeOptions, SolveOptions
from latent_prm.reading import Read
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import BUILT_IN, load_task
from latent_prm.telling import Event, Teller, line

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
SHELL = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/tree.css": ("tree.css", "text/css"),
    "/page/tree.js": ("tree.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The page without a word of what is asked of it: open, as /health."""
PATIENT = 4
"""Questions that may wait for the one that is being answered."""
EXAMPLES = 12

_T = TypeVar("_T")


class Gone(Exception):
    """Nobody listens any more, or it took too long."""


class Service:
    """A PRM, and a reasoner where questions are answered too, behind routes. :meth:`app` is what a server runs."""

    def __init__(
        self,
        options: ServeOptions,
        model: QwenLatentPRM,
        confidence: Confidence | None = None,
        reasoner: Reasoner | None = None,
    ) -> None:
        self.options, self.model, self.confidence, self.reasoner = options, model, confidence, reasoner
        self.meters = Meters()
        self._reading, self._solving = ThreadPoolExecutor(1, "reading"), ThreadPoolExecutor(1, "solving")
        shared: dict[int, Any] = {id(weights): weights for weights in chain(model.parameters(), model.buffers())}
        self._own_model = copy.deepcopy(model, shared)
        self._examples = {
            name: [question.text for question in islice(load_task(name).stream("test", options.seed), EXAMPLES)]
            for name in ("arithmetic", "search")
        }
        self._num_paths = None if reasoner is None else reasoner.growth(**options.growth()).num_paths
        self._solvers = 0
        self._last_took = 1.0
        self._closing = False

    def app(self, token: str) -> Gate:
        """The application, behind its gate."""
        app = FastAPI(
            title="latent-prm",
            version=latent_prm.__version__,
            description="Scores latent paths, and answers questions. Every route but /health asks for the token.",
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            lifespan=self._lifespan,
        )
        for path in SHELL:
            app.add_api_route(path, self.shell, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_api_route("/health", self.health, methods=["HEAD"], include_in_schema=False)
        self._add(app, "GET", "/health", self.health, "Whether it works. Open to all.")
        self._add(app, "GET", "/metrics", self.metrics, "Counts and times, as Prometheus reads them.")
        self._add(app, "GET", "/v1/about", self.about, "What is served, and questions to try.")
        said = "Paths → the score of each, calibrated too, and after each latent."
        self._add(app, "POST", "/v1/score", self.score, said, describing.body(wire.ScoreBody, BYTES), wire.ScoreReply)
        if self.reasoner is not None:
            said = "A question → its tree as it grows, a line of JSON per step, then the answers and the chosen one."
            self._add(app, "POST", "/v1/solve", self.solve, said, describing.body(wire.SolveBody))
        self._add(app, "GET", "/openapi.json", self.openapi, "This description.")
        self._add(app, "GET", "/docs", self.docs, "This description, to be read.")
        for kind in (AnyHTTPException, ValueError, Gone, Exception):
            app.add_exception_handler(kind, _said)
        return Gate(
            app,
            token,
            open={"/health", *SHELL},
            max_body=self.options.max_body_mb * 2**20,
            timeout=self.options.timeout,
            meters=self.meters,
        )

    def _add(
        self, app: FastAPI, method: str, path: str, route: Any, said: str, body: Any = None, response_model: Any = None
    ) -> None:
        app.add_api_route(
            path,
            route,
            methods=[method],
            summary=said,
            openapi_extra=body,
            response_model=response_model,
            operation_id=path.strip("/").replace("/", "_"),
        )

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        options = self.options
        self.batcher = Batcher(self._score, options.batch_tokens, options.queue_size, self.meters.scored)
        self.meters.watch_queue(lambda: self.batcher.waiting)
        self._scoring = asyncio.get_running_loop().create_task(self.batcher.run())
        try:
            yield
        finally:
            self._closing = True
            self._scoring.cancel()
            with suppress(asyncio.CancelledError):
                await self._scoring
            for thread in (self._reading, self._solving):
                thread.shutdown(wait=False, cancel_futures=True)

    # --- small routes -----------------------------------------------------------------------------------------------

    async def shell(self, request: Request) -> Response:
        name, kind = SHELL[request.url.path]
        return Response((PAGE / name).read_bytes(), media_type=kind)

    async def health(self) -> Response:
        well = not self._scoring.done()
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)

    async def metrics(self) -> Response:
        return Response(self.meters.text(), headers={"content-type": self.meters.kind})

    async def about(self) -> Response:
        options = self.options
        return JSONResponse(
            {
                "version": latent_prm.__version__,
                "checkpoint": options.checkpoint,
                "model_path": options.model_path if self.reasoner else None,
                "latent_dim": self.model.thought_dim,
                "reads": list(self.model.reads),
                "calibrated": self.confidence is not None,
                "task": options.task,
                "num_paths": self._num_paths,
                "seed": options.seed,
                "tasks": list(BUILT_IN),
                "examples": self._examples,
            }
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describing.schema(request.app))

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(describing.page(request.app))

    # --- scoring ----------------------------------------------------------------------------------------------------

    async def score(self, request: Request) -> Response:
        kind = _kind(request, JSON, BYTES)
        if self.batcher.full:  # before the trouble of reading
            raise _busy(CROWDED, 1)
        body = await request.body()
        read, size = await self._in_time(request, self._in(self._reading, self._readable, kind, body))
        try:
            scored = await self._in_time(request, self.batcher.submit(read, size))
        except Full:
            raise _busy(CROWDED, 1) from None
        values = np.array([path.score for path in scored])
        calibrated = [None] * len(scored) if self.confidence is None else self.confidence.path(values).tolist()
        paths = [
            {"score": path.score, "probability": probability, "steps": path.steps}
            for path, probability in zip(scored, calibrated, strict=True)
        ]
        return JSONResponse({"paths": paths})

    def _readable(self, kind: str, body: bytes) -> tuple[Read, Size]:
        tree = wire.from_json(body) if kind == JSON else wire.from_safetensors(body)
        wire.check_parts(tree, self.model.reads)
        (read,) = self.model.as_read([tree])
        return read, batching.size_of(self.model, read, self.options.batch_tokens)

    def _score(self, reads: Sequence[Read]) -> list[list[Scored]]:
        return batching.score(self.model, reads, self.options.batch_tokens)

    # --- answering --------------------------------------------------------------------------------------------------

    async def solve(self, request: Request) -> Response:
        _kind(request, JSON)
        said = wire.parsed(wire.SolveBody, await request.body())
        changed = said.model_dump(exclude={"question"}, exclude_none=True)
        options = self.options.asks(said.question, **changed)
        branches = self.options.branches
        if branches is not None and said.num_paths not in (None, self._num_paths):
            fixed = f"this server branches its paths as {branches}, {self._num_paths} in all: leave num_paths out."
            raise ValueError(f"num_paths is {said.num_paths}, but {fixed}")
        if self._solvers > PATIENT:
            raise _busy("Too many questions wait already: come again.", math.ceil(self._last_took * self._solvers))
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | Exception | None]()
        gone, deadline = threading.Event(), time.monotonic() + self.options.timeout

        def tell(event: Event) -> None:
            if gone.is_set() or self._closing or time.monotonic() > deadline:
                raise Gone(f"No answer within {self.options.timeout:g} seconds.")
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._solvers += 1
        work = loop.run_in_executor(self._solving, self._solve, options, tell)
        work.add_done_callback(lambda done: self._solved(done, events))
        try:
            first = await self._in_time(request, events.get())
        except BaseException:
            gone.set()
            raise
        if isinstance(first, Exception):
            raise first
        return StreamingResponse(_lines(first, events, gone), media_type=LINES)

    def _solved(self, work: asyncio.Future[float], events: asyncio.Queue[Event | Exception | None]) -> None:
        self._solvers -= 1
        error = None if work.cancelled() else work.exception()
        if error is None and not work.cancelled():
            self._last_took = work.result()
            self.meters.solved()
        elif isinstance(error, Exception) and not isinstance(error, ValueError | Gone):
            log.error("Answering failed.", exc_info=error)
        events.put_nowait(error if isinstance(error, Exception) else None)

    def _solve(self, options: SolveOptions, tell: Callable[[Event], None]) -> float:
        """Answer a question, telling how; returns the seconds it took."""
        assert self.reasoner is not None
        begun, teller, model = time.monotonic(), Teller(tell, self.confidence), self._own_model
        (question, _), growth = solver.put(options), self.reasoner.growth(**options.growth())
        try:
            self.reasoner.check_length(question, growth)
        except ValueError as error:
            needed = self.reasoner.positions(question, growth)
            said = f"The question is too long: with its thoughts and answer it takes {needed} positions, more than this"
            raise ValueError(f"{said} reasoner has. Send a shorter one.") from error
        asked = {"question": options.question, "task": options.task, "seed": options.seed}
        steps = sum(run.latent_steps > 0 for run in every_latent(growth).runs)
        tell({"event": "started", **asked, "num_paths": growth.num_paths, "steps": steps})
        grown = solver.grow(options, self.reasoner, model, self.confidence, teller.watch)
        teller.answers(grown)
        choice = solver.decide(options, grown, model, self.confidence)
        took = time.monotonic() - begun
        teller.chosen(choice, solver.said(grown, choice), solver.remarks(options, choice, self.confidence), took)
        return took

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _in(self, thread: ThreadPoolExecutor, work: Callable[..., _T], *args: Any) -> Awaitable[_T]:
        return asyncio.get_running_loop().run_in_executor(thread, work, *args)

    async def _in_time(self, request: Request, work: Awaitable[_T]) -> _T:
        """The result, unless it takes too long or nobody waits for it any more."""
        task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({task, leaving}, timeout=self.options.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            leaving.cancel()
            task.cancel()
        raise _busy(f"No answer within {self.options.timeout:g} seconds: come again.", 1)


async def _lines(
    first: Event | None, events: asyncio.Queue[Event | Exception | None], gone: threading.Event
) -> AsyncIterator[bytes]:
    event: Event | Exception | None = first
    try:
        while isinstance(event, dict):
            yield line(event)
            event = await events.get()
        if event is not None:
            known = isinstance(event, ValueError | Gone)
            yield line({"event": "error", "error": _short(event) if known else FAILED})
    finally:
        gone.set()


# --- errors ---------------------------------------------------------------------------------------------------------

CROWDED = "The queue is full: come again."
FAILED = "The server failed at this; its log says why."


def _busy(said: str, seconds: int) -> HTTPException:
    return HTTPException(503, said, {"retry-after": str(max(1, seconds))})


def _kind(request: Request, *known: str) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in known:
        raise HTTPException(415, f"The body's Content-Type must be {' or '.join(known)}.")
    return kind


async def _said(request: Request, error: Exception) -> Response:
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": _short(error.detail)}, error.status_code, dict(error.headers or {}))
    status = 422 if isinstance(error, ValueError) else 503 if isinstance(error, Gone) else 500
    return JSONResponse({"error": FAILED if status == 500 else _short(error)}, status)


def _short(error: object) -> str:
    return str(error)[:500]
