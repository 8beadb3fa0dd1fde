"""A client of ``latent-prm serve``: scores trees or plain arrays, and watches questions being answered.

This room hides how paths are sent (as safetensors: no number is rounded) and how answers come in (a line of JSON each).
It follows no redirect and asks no proxy, so that the token reaches nobody but the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from latent_prm.tree import Path, ReasoningTree

Latents = Float[Tensor, "T D"] | Float[np.ndarray, "T D"] | Sequence[Sequence[float]]
Event = dict[str, Any]


class Refused(RuntimeError):
    """What the server said instead of an answer."""

    def __init__(self, status: int, error: str, retry_after: float | None = None) -> None:
        super().__init__(f"{error} ({status})")
        self.status = status
        self.retry_after = retry_after
        """Seconds after which to ask again; None: asking again does not help."""


class Score(NamedTuple):
    """What a path is worth."""

    score: float
    """The PRM's: the chance of ending right, 0..1."""
    probability: float | None
    """The same, calibrated; None: the server's checkpoint has no calibration."""
    steps: list[float]
    """The score after each latent of the path's chain, root to tip."""


class Solved(NamedTuple):
    """A chosen answer."""

    answer: str
    """In canonical form; "" where no path gave one."""
    probability: float | None
    """That it is right, calibrated; None: nobody has calibrated it."""
    said: str
    """The same as a sentence."""
    remarks: list[str]
    events: list[Event]
    """All that was told on the way: started, a step for each latent, answers, chosen."""


@dataclass(frozen=True)
class Client:
    """Talks to the server at ``url``. The token is never shown."""

    url: str
    token: str
    timeout: float = 120.0
    """Seconds without a word after which the server is given up."""

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def score(self, paths: ReasoningTree | Sequence[Latents], question: str = "") -> list[Score]:
        """What each path of a tree is worth, or each of these chains of latents, which ``question`` was thought about.

        Where the PRM reads tips or hidden states (``reads`` in ``/v1/about``), only a tree has all of it. Raises
        `Refused` with the server's reason, OSError when it cannot be reached or is something else, and ValueError for
        a url or a token that is none.
        """
        tree = paths if isinstance(paths, ReasoningTree) else _bare(paths, question)
        with self._answer("POST", "/v1/score", packed(tree), "application/octet-stream") as answer:
            said = answer.read()
        with self._understood():
            return [Score(**path) for path in json.loads(said)["paths"]]

    def solve(
        self,
        question: str,
        *,
        task: str | None = None,
        num_paths: int | None = None,
        seed: int | None = None,
        watch: Callable[[Event], object] | None = None,
    ) -> Solved:
        """The server's answer; ``watch`` is called with every event as it comes. Raises as :meth:`score`."""
        asked = {"question": question, "task": task, "num_paths": num_paths, "seed": seed}
        events: list[Event] = []
        with self._answer("POST", "/v1/solve", json.dumps(asked).encode(), "application/json") as answer:
            for line in answer:
                with self._understood():
                    events.append({**json.loads(line)})
                if watch is not None:
                    watch(events[-1])
        last = events[-1] if events else {}
        if last.get("event") != "chosen":
            raise Refused(200, last.get("error") or "The server broke off before it had an answer.")
        with self._understood():
            return Solved(last["answer"], last["probability"], last["said"], last["remarks"], events)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Raises ConnectionError for an answer that no server of ours gives."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConnectionError(f"{self.url} is no latent-prm server, or one of another version.") from error

    @contextmanager
    def _answer(self, method: str, path: str, body: bytes, kind: str) -> Iterator[HTTPResponse]:
        where = urlsplit(self.url)
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ValueError(f"The url is {self.url!r}: type it as http://127.0.0.1:8000")
        if not re.fullmatch("[!-~]+", self.token):
            raise ValueError("The token has other signs than a header takes: give the one that latent-prm serve knows.")
        connect = HTTPSConnection if where.scheme == "https" else HTTPConnection
        connection = connect(where.hostname, where.port, timeout=self.timeout)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        try:
            try:
                connection.request(method, where.path.rstrip("/") + path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise  # else the server may have said why it would not read on
            answer = connection.getresponse()
            if answer.status != 200:
                raise _refused(answer)
            yield answer
        except HTTPException as error:
            raise ConnectionError(f"{self.url} broke off ({type(error).__name__}).") from error
        finally:
            connection.close()


def packed(tree: ReasoningTree) -> bytes:
    """A tree's question and paths as a safetensors body: ``0.latents``, ``0.tip``, ``0.hidden``, ``1.latents`` …

    The metadata holds the question, and as JSON what else is said of the paths. Of several answers the first is sent.
    """
    heads = [
        {
            "parent": path.parent,
            "answer": path.answers[0].value if path.answers else None,
            "noise_free": path.noise_free,
        }
        for path in tree.paths
    ]
    parts = {
        f"{i}.{name}": tensor.detach().cpu().contiguous().clone()
        for i, path in enumerate(tree.paths)
        for name in ("latents", "tip", "hidden")
        if (tensor := getattr(path, name)) is not None
    }
    return save(parts, {"question": tree.question, "paths": json.dumps(heads)})


def _bare(paths: Sequence[Latents], question: str) -> ReasoningTree:
    tensors = [one if isinstance(one, Tensor) else torch.as_tensor(np.asarray(one)) for one in paths]
    chains = [Path(latents=one.detach().cpu().float(), tip=None) for one in tensors]
    return ReasoningTree(question_id="", question=question, gold="", task="", paths=chains)


def _refused(answer: HTTPResponse) -> Refused:
    text = answer.read(65536).decode(errors="replace")
    try:
        said = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        said = text[:200] or answer.reason
    wait = answer.headers.get("Retry-After", "")
    return Refused(answer.status, said, float(wait) if wait.isdecimal() else None)
