"""The Ray engine: the trees of one process, whoever is killed; in order, few at a time, and errors in plain words.

One Ray on this machine serves these tests; what an engine starts by itself is tried in processes of its own.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latent_prm import cluster
from latent_prm.cluster import AHEAD, RayEngine
from latent_prm.memory import CPU_BUDGET
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question, load_task
from latent_prm.tree import ReasoningTree

ROOT = Path(__file__).parent.parent
BATCHES = [
    [
        Question(f"text-{i}{k}", f"Ann has {i} apples . She buys {k} more . " * (1 + k), str(i + k))
        for k in range(1 + i % 3)
    ]
    for i in range(9)
]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray on this machine, small, to which this process is connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = pytest.importorskip("ray")
    found.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def reasoner(tiny_lm: Path) -> Reasoner:
    return Reasoner.from_pretrained(str(tiny_lm), device="cpu")


def settings(reasoner: Reasoner, **changed: Any) -> Any:
    return reasoner.growth(**{"num_paths": 3, "latent_steps": 3, "noise": 0.3, "max_new_tokens": 12, **changed})


def engine(reasoner: Reasoner, num_workers: int, **changed: Any) -> RayEngine:
    return RayEngine({"model_path": reasoner.name, "device": "cpu"}, "text", settings(reasoner, **changed), num_workers)


def same_as_one_process(grown: list[tuple[list[ReasoningTree], Counter[str]]], reasoner: Reasoner) -> None:
    """The trees and costs of one process, in the order of the batches."""
    assert [[tree.question_id for tree in trees] for trees, _ in grown] == [[q.id for q in batch] for batch in BATCHES]
    for batch, (trees, spent) in zip(BATCHES, grown, strict=True):
        before = Counter(reasoner.spent)
        here = reasoner.grow(batch, load_task("text"), settings(reasoner))
        assert spent == reasoner.spent - before
        for one, other in zip(here, trees, strict=True):
            for a, b in zip(one.paths, other.paths, strict=True):
                torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)
                assert (a.answers, a.prm_score, a.noise_free) == (b.answers, b.prm_score, b.noise_free)


def pids(ray: Any, engine: RayEngine) -> list[int]:
    """Of the workers' processes, once they have started."""
    return [ray.get(worker.actor.__ray_call__.remote(lambda actor: os.getpid())) for worker in engine._workers]


def ended(pid: int, patience: float = 20.0) -> bool:
    """Whether a process is gone (or only waits for its parent to notice) before that many seconds are over."""
    stat = Path(f"/proc/{pid}/stat")
    while patience > 0 and stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.1)
        patience -= 0.1
    return patience > 0


# --- the same trees -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_grow_the_trees_of_one_process_in_order(ray: Any, reasoner: Reasoner) -> None:
    with engine(reasoner, 2) as growing:
        processes = pids(ray, growing)
        assert growing.describe() == reasoner.describe()
        assert growing.room == CPU_BUDGET  # of a worker's device, whatever is here
        same_as_one_process(list(growing.grow(BATCHES)), reasoner)
        same_as_one_process(list(growing.grow(BATCHES)), reasoner)  # and again
    assert len({os.getpid(), *processes}) == 3
    assert all(map(ended, processes))
    assert ray.is_initialized()  # it was there before


@pytest.mark.slow
def test_a_worker_that_is_killed_half_way_costs_nothing(
    ray: Any, reasoner: Reasoner, caplog: pytest.LogCaptureFixture
) -> None:
    def batches() -> Iterator[list[Question]]:
        for number, batch in enumerate(BATCHES):
            if number == 4:
                os.kill(processes[0], signal.SIGKILL)
            yield batch

    with engine(reasoner, 2) as growing:
        processes = pids(ray, growing)
        same_as_one_process(list(growing.grow(batches())), reasoner)
        assert "A worker was lost" in caplog.text
        assert len(set(pids(ray, growing)) - set(processes)) == 1  # another one has taken its place


@pytest.fixture
def replace_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives workers, which find it on PYTHONPATH, this code for a method of theirs."""

    def replace(method: str) -> None:
        source = f"import os\nfrom latent_prm.cluster import _Actor\nclass Odd(_Actor):\n    {method}\n"
        (tmp_path / "odd_actor.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "odd_actor", raising=False)
        monkeypatch.setattr(cluster, "_Actor", importlib.import_module("odd_actor").Odd)

    return replace


@pytest.mark.slow
def test_a_batch_that_ends_three_workers_is_named(
    ray: Any, reasoner: Reasoner, replace_actor: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    replace_actor("def grow(self, b, g): return os._exit(1) if b[0].id == 'text-40' else super().grow(b, g)")
    grown = []
    with engine(reasoner, 1) as growing, pytest.raises(ValueError, match=r"3 workers .* questions text-40, text-41\. "):
        for trees, _ in growing.grow(BATCHES):
            grown += [tree.question_id for tree in trees]
    assert grown == [question.id for batch in BATCHES[:4] for question in batch]  # what came before it is not lost
    assert caplog.text.count("A worker was lost") == 2


@pytest.mark.slow
def test_workers_that_cannot_even_load_are_given_up(
    ray: Any, reasoner: Reasoner, replace_actor: Callable[[str], None]
) -> None:
    replace_actor("def load(self, *told): os._exit(1)")
    with engine(reasoner, 1) as growing, pytest.raises(ValueError, match="3 workers have ended while they loaded"):
        next(growing.grow(BATCHES))


@pytest.mark.slow
def test_workers_with_different_weights_are_refused(
    ray: Any, reasoner: Reasoner, replace_actor: Callable[[str], None]
) -> None:
    replace_actor("def load(self, *told): return {'weights': os.getpid()}, super().load(*told)[1]")
    with engine(reasoner, 2) as growing, pytest.raises(ValueError, match="Two workers have loaded different reasoners"):
        list(growing.grow([BATCHES[0]] * 1000))


# --- few at a time --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_more_batches_are_taken_than_workers_can_be_busy_with(ray: Any, reasoner: Reasoner) -> None:
    taken = []

    def endless() -> Iterator[list[Question]]:
        while True:
            taken.append(len(taken))
            yield BATCHES[0]

    with engine(reasoner, 2) as growing:
        ahead = []
        for given, _ in enumerate(growing.grow(endless())):
            time.sleep(0.05)  # a slow reader: the workers are faster
            ahead.append(len(taken) - given)
            if given == 20:
                break
        assert 2 < max(ahead) <= 2 * AHEAD
        assert len(next(growing.grow([BATCHES[1]]))[0]) == 2  # what nobody asked for any more is no hindrance


def test_a_path_travels_without_those_grown_beside_it(reasoner: Reasoner) -> None:
    actor = cluster._Actor()
    actor.load({"model_path": reasoner.name, "device": "cpu"}, "text", os.getcwd())

    def size(paths: int) -> float:
        trees, _ = actor.grow(BATCHES[2], settings(reasoner, num_paths=paths, keep_hidden=True, latent_steps=20))
        return len(pickle.dumps(trees)) / paths

    assert size(64) < 1.1 * size(8)


# --- errors in words ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_worker_refuses_arrives_as_it_was_said(ray: Any, reasoner: Reasoner, tmp_path: Path) -> None:
    with engine(reasoner, 1, max_new_tokens=512) as growing, pytest.raises(ValueError) as refused:
        next(growing.grow(BATCHES))
    assert type(refused.value) is ValueError
    assert re.fullmatch(r"Question 'text-00' needs \d+ positions .* or leave the question out\.", str(refused.value))
    nowhere = {"model_path": str(tmp_path), "device": "cpu"}
    with RayEngine(nowhere, "text", settings(reasoner), 1) as growing, pytest.raises(ValueError, match=r"^No model in"):
        next(growing.grow(BATCHES))


def test_without_ray_it_is_said_what_to_install(reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=re.escape('pip install "latent-prm[cluster]"')):
        engine(reasoner, 2)


def test_no_workers_at_all_are_refused(reasoner: Reasoner) -> None:
    with pytest.raises(ValueError, match="--num_workers is 0"):
        engine(reasoner, 0)


def test_every_worker_gets_a_gpu_or_as_many_cpus_as_leave_room_for_all() -> None:
    def share(device: str, num_workers: int | None, *machines: dict[str, float]) -> tuple[int, dict[str, float]]:
        nodes = [{"Alive": True, "Resources": machine} for machine in machines]
        return cluster._share(SimpleNamespace(nodes=lambda: nodes), device, num_workers)

    plain, large, gpu = {"CPU": 8.0}, {"CPU": 6.0}, {"CPU": 16.0, "GPU": 4.0}
    assert share("auto", None, gpu, gpu, plain) == (8, {"num_gpus": 1, "num_cpus": 1})
    assert share("cuda", 3, gpu) == (3, {"num_gpus": 1, "num_cpus": 1})
    assert share("auto", None, plain, large) == (2, {"num_cpus": 6})  # one on each machine
    assert share("auto", 5, plain, large) == (5, {"num_cpus": 2})  # with 3 each only four would fit
    assert share("cpu", 2, gpu) == (2, {"num_cpus": 8})
    with pytest.raises(ValueError, match=r"is 5, but Ray has 4 GPUs, one per worker\. Type --num_workers 4"):
        share("auto", 5, gpu)
    with pytest.raises(ValueError, match=r"Ray has 0 GPUs, one per worker\. Type --device cpu"):
        share("cuda", None, plain)
    with pytest.raises(ValueError, match="Type --device cuda"):
        share("cuda:1", None, gpu)
    with pytest.raises(ValueError, match="--num_workers is 15, but Ray has 14 CPUs"):
        share("cpu", 15, plain, large)


# --- who starts Ray, and who ends it --------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from transformers.utils import logging
from latent_prm.cluster import RayEngine
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question

def asked():
    while True:
        yield [Question("text-1", "What is 3 + 4 ?", "7")]

def main():
    logging.disable_progress_bar()
    def mine(*_):
        sys.exit(143)
    signal.signal(signal.SIGTERM, mine)
    growth = Reasoner.from_pretrained("lm", device="cpu").growth(num_paths=2, max_new_tokens=8)
    with RayEngine({"model_path": "lm", "device": "cpu"}, "text", growth, 2) as engine:
        assert signal.getsignal(signal.SIGTERM) is mine
        import ray
        look = lambda actor: (os.getpid(), os.environ["OMP_NUM_THREADS"], __import__("torch").get_num_threads())
        print(*ray.get([worker.actor.__ray_call__.remote(look) for worker in engine._workers]), flush=True)
        for number, (trees, _) in enumerate(engine.grow(asked())):
            if number == 3:
                print(trees[0].question_id, flush=True)
                if len(sys.argv) > 1:
                    break

try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
except ValueError as error:
    sys.exit(str(error))
"""


def script(tmp_path: Path, tiny_lm: Path, *typed: str, **environment: str) -> subprocess.Popen[str]:
    """``SCRIPT``, run where ``lm`` is a folder and the package is not."""
    (tmp_path / "lm").symlink_to(tiny_lm)
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "error", **environment}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Where tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([sys.executable, "script.py", *typed], cwd=tmp_path, env=env, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_what_was_started_and_nothing_of_ray_is_printed(
    sent: signal.Signals, code: int, tmp_path: Path, tiny_lm: Path
) -> None:
    pytest.importorskip("ray")
    with script(tmp_path, tiny_lm) as run:
        assert run.stdout
        workers = re.findall(r"\((\d+), '2', 2\)", run.stdout.readline())  # OMP_NUM_THREADS as it was set
        assert run.stdout.readline() == "text-1\n"
        run.send_signal(sent)
        rest, errors = run.communicate(timeout=60)
    assert len(workers) == 2 and all(ended(int(pid)) for pid in workers)
    assert (run.returncode, rest, errors) == (code, "", "")


@pytest.mark.slow
def test_a_running_cluster_is_joined_by_its_address_and_left_running(ray: Any, tmp_path: Path, tiny_lm: Path) -> None:
    with script(tmp_path, tiny_lm, "and stop", RAY_ADDRESS=ray.get_runtime_context().gcs_address) as run:
        said, errors = run.communicate(timeout=120)
    assert (run.returncode, errors) == (0, "")
    first, second = said.splitlines()
    assert second == "text-1" and all(ended(int(pid)) for pid in re.findall(r"\((\d+), '2', 2\)", first))
    assert ray.cluster_resources()["CPU"] == 2


@pytest.mark.slow
def test_an_address_where_nobody_answers_is_named(tmp_path: Path, tiny_lm: Path) -> None:
    pytest.importorskip("ray")
    with script(tmp_path, tiny_lm, RAY_ADDRESS="127.0.0.1:1") as run:
        _, errors = run.communicate(timeout=200)
    assert run.returncode == 1
    assert errors.startswith("RAY_ADDRESS is 127.0.0.1:1, but no Ray cluster could be joined there")
