"""`latent_prm.client.Client` against a real server, and against one that is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_tree
from serving import TOKEN, Running, serving

from latent_prm.client import Client, Refused
from latent_prm.model import QwenLatentPRM

QUESTION = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(max_body_mb=1) as found:
        yield found


def test_a_tree_gets_a_score_for_every_path_as_the_library_gives_it(running: Running) -> None:
    tree = random_tree(5, width=128, question=QUESTION)
    scores = running.client.score(tree)
    wanted = QwenLatentPRM.from_pretrained("builtin").score_trees([tree])[0]
    assert [one.score for one in scores] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert [len(one.steps) for one in scores] == [tree.chain_length(i) for i in range(len(tree.paths))]
    assert all(one.probability is not None and 0 <= one.probability <= 1 for one in scores)


def test_plain_arrays_are_chains_of_their_own(running: Running) -> None:
    latents = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    as_tensor, as_array, as_lists = running.client.score([latents, latents.numpy(), latents.tolist()], QUESTION)
    assert as_tensor.score == pytest.approx(as_array.score, abs=1e-6) == pytest.approx(as_lists.score, abs=1e-6)
    assert running.client.score([latents])[0].score != pytest.approx(as_tensor.score, abs=1e-3)  # no question


def test_a_tensor_may_be_of_any_float_and_have_a_gradient(running: Running) -> None:
    latents = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain = running.client.score([latents.float()])[0]
    assert running.client.score([latents])[0] == plain
    assert running.client.score([latents.float().requires_grad_()])[0] == plain


def test_a_question_is_watched_and_answered(running: Running) -> None:
    seen: list[str] = []
    solved = running.client.solve(QUESTION, num_paths=4, seed=1, watch=lambda event: seen.append(event["event"]))
    assert seen == ["started", *["step"] * 5, "answers", "chosen"] == [event["event"] for event in solved.events]
    assert solved.answer in solved.said and solved.probability is not None and 0 < solved.probability < 1
    assert solved.events[0]["num_paths"] == 4 and solved.remarks


def test_a_refusal_says_what_the_server_said(running: Running) -> None:
    with pytest.raises(Refused, match="asks for its token") as refused:
        replace(running.client, token="wrong").score([np.zeros((1, 128))])
    assert refused.value.status == 401 and refused.value.retry_after is None
    with pytest.raises(Refused, match=r"7 wide, but this PRM reads latents 128 wide. \(422\)"):
        running.client.score([np.zeros((1, 7))])
    with pytest.raises(Refused, match="larger than 1048576 bytes"):
        running.client.score([np.zeros((4000, 128))])
    with pytest.raises(Refused, match="not a search question"):
        running.client.solve("Why?", task="search")


def answering(words: bytes) -> tuple[str, threading.Thread]:
    """A server that answers one request with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(words)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", Refused, "302"),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nBusy", Refused, "Busy"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Refused, "broke off before it had an answer"),
        (b"", ConnectionError, "RemoteDisconnected"),
        (b"220 mail.example ESMTP\r\n", ConnectionError, "BadStatusLine"),
    ],
)
def test_what_is_no_answer_is_an_error_and_a_redirect_is_not_followed(
    words: bytes, error: type[Exception], said: str
) -> None:
    url, thread = answering(words)
    with pytest.raises(error, match=said) as found:
        Client(url, TOKEN, timeout=5).solve("Why?")
    thread.join(5)
    if isinstance(found.value, Refused) and found.value.status == 503:
        assert found.value.retry_after == 7


def said(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


@pytest.mark.parametrize("text", [b"<html>hello</html>", b"[]", b"5", b"\xff", b'{"event": "chosen"}', b'"paths"'])
def test_who_answers_otherwise_is_no_server_of_ours(text: bytes) -> None:
    asks = (lambda client: client.score([np.zeros((1, 128))]), lambda client: client.solve("Why?"))
    for ask in asks:
        url, thread = answering(said(text))
        with pytest.raises(ConnectionError, match="is no latent-prm server"):
            ask(Client(url, TOKEN, timeout=5))
        thread.join(5)


def test_what_a_watcher_raises_is_its_own(running: Running) -> None:
    with pytest.raises(KeyError, match="started"):
        running.client.solve(QUESTION, num_paths=1, watch=lambda event: {}[event["event"]])


def test_the_token_is_not_shown_and_the_url_is_checked() -> None:
    assert TOKEN not in repr(Client("http://127.0.0.1:1", TOKEN))
    for token in ("", "знак", "two words", "line\nbreak"):
        with pytest.raises(ValueError, match="other signs than a header takes"):
            Client("http://127.0.0.1:1", token).solve("Why?")
    for url in ("127.0.0.1:8000", "ftp://127.0.0.1", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="type it as http://127"):
            Client(url, TOKEN).solve("Why?")
    with pytest.raises(OSError, match="refused"):
        Client("http://127.0.0.1:1", TOKEN).solve("Why?")
