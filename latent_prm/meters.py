"""What the server counts, for Prometheus: hides the names and the buckets. Needs the extra ``[serve]``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meters:
    """A registry of its own, so that two servers in a process count apart."""

    kind = CONTENT_TYPE_LATEST
    """The Content-Type of `text`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name, registry = "latent_prm_", self.registry
        self._requests = Counter(f"{name}requests", "Requests answered", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            f"{name}request_seconds", "Until answered", ["route"], buckets=SECONDS, registry=registry
        )
        self._waiting = Gauge(f"{name}queue_length", "Scoring requests that wait", registry=registry)
        powers = [2**n for n in range(15)]
        self._batch = Histogram(
            f"{name}batch_requests", "Requests scored together", buckets=powers[:8], registry=registry
        )
        self._tokens = Histogram(f"{name}batch_tokens", "Tokens scored together", buckets=powers[3:], registry=registry)
        self._solved = Counter(f"{name}solved", "Questions answered", registry=registry)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """Ask this for the queue's length whenever somebody looks."""
        self._waiting.set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, requests: int, tokens: int) -> None:
        """So many requests are scored together."""
        self._batch.observe(requests)
        self._tokens.observe(tokens)

    def solved(self) -> None:
        """A question has been answered."""
        self._solved.inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
