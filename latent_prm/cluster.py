"""Growing in several processes at once, on the GPUs of one machine or of many, through Ray (extra ``[cluster]``).

This room hides Ray: who starts it, how batches are handed out and brought back into order, and what becomes of those of
a worker that is lost. Workers only grow; the trees travel to whoever asked, who alone writes them. What a tree is like
depends on its question and the growth alone, so it matters neither which worker grows it nor how often it is begun.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import latent_prm
from latent_prm.growth import Growth
from latent_prm.memory import budget
from latent_prm.reasoner import Reasoner
from latent_prm.stopping import undisturbed
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree

log = logging.getLogger(__name__)

QUEUE = 2
"""Batches a worker has at most, so that it need not wait for the next while its last one travels."""
AHEAD = 4
"""Batches per worker that may be grown or growing and not yet asked for: what bounds the memory they take."""
DEATHS = 3
"""A batch that takes so many workers with it is not tried again."""
STORE_BYTES = 2**30
"""Of shared memory, for trees on their way, where Ray is started here; what does not fit goes through the disk."""
SLICE = 0.2
"""Seconds of waiting after which Ctrl-C is heard."""
PATIENCE = 60.0
"""Seconds without any worker before the log says what is waited for."""
HANDED_ON = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Of the environment, to workers on whatever machine; those started here have all of it."""

Grown = tuple[list[ReasoningTree], Counter[str]]


class _Actor:
    """What runs in a worker's process. It loads outside ``__init__``: an error there would reach us as text only."""

    def load(self, reasoner_options: dict[str, Any], task_spec: str, folder: str) -> tuple[dict[str, Any], int]:
        with suppress(OSError):  # so that relative paths mean the same; on another machine it may not exist
            os.chdir(folder)
        self.reasoner, self.task = Reasoner.from_pretrained(**reasoner_options), load_task(task_spec)
        return self.reasoner.describe(), budget(self.reasoner.device)

    def grow(self, batch: list[Question], growth: Growth) -> Grown:
        before = Counter(self.reasoner.spent)
        trees = self.reasoner.grow(batch, self.task, growth)
        for path in (path for tree in trees for path in tree.paths):
            for name in ("latents", "tip", "hidden"):  # a view would take the tensor of the whole batch along
                value = getattr(path, name)
                setattr(path, name, None if value is None else value.clone())
        return trees, self.reasoner.spent - before


@dataclass(eq=False)
class _Job:
    """A batch and its place in the order in which results are given."""

    number: int
    batch: list[Question]
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    """An actor as seen from here."""

    actor: Any
    queue: deque[tuple[_Job | None, Any]] = field(default_factory=deque)
    """What it has been told to do, in the order in which it does it, each with Ray's promise; None: to load."""
    loaded: bool = False

    @property
    def suspects(self) -> bool:
        """Whether it does what a worker has ended over. It is given nothing else, so that nothing else is blamed."""
        return any(job.deaths for job, _ in self.queue if job)


class RayEngine:
    """Grows batches on Ray workers, each with a reasoner and task of its own; a context manager, or call ``close``.

    Joins the cluster that ``RAY_ADDRESS`` names (or to which this process is connected), else starts one on this
    machine. Every worker has one GPU where there are any (and ``device`` is not ``cpu``), else some of the CPUs.

    Args:
        reasoner_options: as ``Reasoner.from_pretrained`` takes them.
        task_spec: as ``load_task`` takes it.
        growth: what every batch is asked for.
        num_workers: None: one per GPU, without any one per machine.

    Raises ValueError when Ray is not installed, the cluster cannot be joined or has no room for so many workers.
    """

    def __init__(
        self, reasoner_options: dict[str, Any], task_spec: str, growth: Growth, num_workers: int | None = None
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"--num_workers is {num_workers}. Type 1 or more, or leave it out for one per GPU.")
        self.told, self.growth = (reasoner_options, task_spec, os.getcwd()), growth
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._facts: dict[str, Any] | None = None
        self._room = sys.maxsize
        self._began: float | None = time.monotonic()
        self._ray = _import_ray()
        self._connected_here = _connect(self._ray, num_workers)
        try:
            count, self._needs = _share(self._ray, str(reasoner_options.get("device", "auto")), num_workers)
            log.info("Ray: %d workers, each with %s", count, " and ".join(f"{k} {n:g}" for k, n in self._needs.items()))
            self._workers = [self._start() for _ in range(count)]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray where it was started here. What has not been given yet is lost."""
        with suppress(Exception):  # whatever Ray still has to say, nobody waits for it now
            for worker in self._workers:
                self._ray.kill(worker.actor)
        self._workers = []
        if self._connected_here:
            self._connected_here = False
            self._ray.shutdown()

    def describe(self) -> dict[str, Any]:
        """As ``Reasoner.describe`` of the reasoner in the workers; waits for the first of them to load it.

        Raises what loading it raises.
        """
        while self._facts is None:
            self._wait({}, deque())
        return self._facts

    @property
    def room(self) -> int:
        """Bytes that a batch may take in any of the workers that have loaded; waits for the first of them."""
        self.describe()
        return self._room

    def grow(self, batches: Iterable[list[Question]]) -> Iterator[Grown]:
        """The trees of each batch, in the order of the batches, with what they have cost (as ``Reasoner.spent``).

        Batches are taken from the iterable as workers become free. Raises what the reasoner raises in a worker; and
        ValueError naming the questions of a batch that has ended ``DEATHS`` workers.
        """
        coming = (_Job(number, batch) for number, batch in enumerate(batches))
        again: deque[_Job] = deque()
        done: dict[int, Grown] = {}
        taken = given = 0
        more = True
        try:
            while more or given < taken:
                while worker := self._free_worker(alone=bool(again)):
                    if not again and more and taken - given < AHEAD * len(self._workers):
                        again.extend(found := list(islice(coming, 1)))
                        more, taken = bool(found), taken + len(found)
                    if not again:
                        break
                    job = again.popleft()
                    worker.queue.append((job, worker.actor.grow.remote(job.batch, self.growth)))
                if given in done:
                    yield done.pop(given)
                    given += 1
                elif more or given < taken:
                    self._wait(done, again)
        finally:
            for worker in self._workers:  # what nobody asks for any more
                worker.queue = deque(told for told in worker.queue if told[0] is None)

    def _start(self) -> _Worker:
        env = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        paths = [str(Path(latent_prm.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        env["PYTHONPATH"] = os.pathsep.join(paths)  # so that it finds this very package
        actor = self._ray.remote(_Actor).options(**self._needs, runtime_env={"env_vars": env}).remote()
        return _Worker(actor, deque([(None, actor.load.remote(*self.told))]))

    def _free_worker(self, alone: bool) -> _Worker | None:
        most = 1 if alone else QUEUE
        free = (
            worker for worker in self._workers if worker.loaded and not worker.suspects and len(worker.queue) < most
        )
        return min(free, key=lambda worker: len(worker.queue), default=None)

    def _wait(self, done: dict[int, Grown], again: deque[_Job]) -> None:
        """For one more thing to be through, loading included, or a worker to be lost; or for a moment."""
        # Workers do things in order: the first they were told is the first that is through.
        heads = {worker.queue[0][1]: worker for worker in self._workers if worker.queue}
        with undisturbed():  # a signal that Ray meets while it waits becomes an exit with code 1
            through, _ = self._ray.wait(list(heads), timeout=SLICE)
        if not through:
            if self._began and time.monotonic() - self._began > PATIENCE and not any(w.loaded for w in self._workers):
                log.info("Still waiting for Ray to give a worker what it needs (`ray status`), or for it to load.")
                self._began = None
            return
        worker = heads[through[0]]
        job = worker.queue[0][0]
        try:
            with undisturbed():
                result = self._ray.get(through[0])
        except self._ray.exceptions.RayTaskError as error:  # it was raised in there, not by Ray
            raise (error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error))) from error
        except self._ray.exceptions.RayError as error:
            again.extendleft(self._replace(worker, error))
            return
        worker.queue.popleft()
        if job:
            done[job.number] = result
            return
        worker.loaded, self._failed_starts = True, 0
        facts, room = result
        self._facts, self._room = self._facts or facts, min(self._room, room)
        if facts != self._facts:
            raise ValueError(
                f"Two workers have loaded different reasoners, {self._facts} and {facts}. Give all machines the same "
                "--model_path, --revision and --dtype."
            )

    def _replace(self, lost: _Worker, error: Exception) -> list[_Job]:
        """Start another worker instead of the lost one and return what that one had to do, last first."""
        reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[-1], 200)
        with suppress(Exception):  # it may only be out of reach, and would keep its GPU
            self._ray.kill(lost.actor)
        left = [job for job, _ in lost.queue if job]
        if not lost.loaded:
            self._failed_starts += 1
            if self._failed_starts == DEATHS:
                raise ValueError(
                    f"{DEATHS} workers have ended while they loaded the reasoner, the last one so: {reason}"
                )
        for job in left:
            job.deaths += 1  # whose fault it was nobody knows: what the first had done may be lost with the worker
            if job.deaths == DEATHS:  # twice it was alone
                ids = ", ".join(question.id for question in job.batch)
                raise ValueError(
                    f"{DEATHS} workers have ended while they grew the questions {ids}. Mostly that is too little "
                    f"memory: type a lower --batch_size, or leave these questions out. The last one: {reason}"
                ) from error
        log.warning("A worker was lost; its batches (%d) are grown by others.", len(left))
        self._workers[self._workers.index(lost)] = self._start()
        return left[::-1]


# --- Ray itself -----------------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report its use over the network
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ValueError('--engine ray needs Ray. Type: pip install "latent-prm[cluster]"') from None


def _connect(ray: Any, num_workers: int | None) -> bool:
    """Whether this process was connected by this call, so that somebody has to disconnect it."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    with _own_sigterm():
        if address:
            try:
                _knock(address)
                ray.init(address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"RAY_ADDRESS is {address}, but no Ray cluster could be joined there ({reason}). Start one "
                    "(ray start --head), or unset RAY_ADDRESS to grow on this machine."
                ) from error
        else:
            crowd = num_workers if (num_workers or 0) > (os.cpu_count() or 1) else None  # they take turns on the CPUs
            ray.init("local", num_cpus=crowd, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
    return True


def _knock(address: str) -> None:
    """Raises OSError where nobody answers: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts its own handler in place of ours, by which a stage commits what it has."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _share(ray: Any, device: str, num_workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, and what Ray is to keep for each of them."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if ":" in device:
        raise ValueError(f"--device is {device}, but Ray gives every worker a GPU of its own. Type --device cuda.")
    if device == "cuda" or (device == "auto" and gpus):
        if (num_workers or 1) > gpus:
            way_out = f"Type --num_workers {gpus}." if gpus else "Type --device cpu."
            raise ValueError(f"--num_workers is {num_workers or 1}, but Ray has {gpus} GPUs, one per worker. {way_out}")
        return num_workers or gpus, {"num_gpus": 1, "num_cpus": 1}
    cpus = [n for n in (int(machine.get("CPU", 0)) for machine in machines) if n]
    count = num_workers or max(1, len(cpus))
    for each in range(max(cpus, default=0), 0, -1):  # as many as leave room for all of them
        if sum(n // each for n in cpus) >= count:
            return count, {"num_cpus": each}
    raise ValueError(f"--num_workers is {count}, but Ray has {sum(cpus)} CPUs. Type at most that many.")
