"""A client that goes, or does not read, costs nobody anything."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server.scripted import PATIENT_S, TEXT, Served, serving

from adaptive_kv.server.service import Patience


@contextmanager
def asking(served: Served, prompt: str, *, is_stream: bool) -> Iterator[socket.socket]:
    body = json.dumps({"prompt": prompt, "stream": is_stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENT_S)
        connection.connect(served.address)
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield connection


@pytest.mark.parametrize("is_stream", [False, True])
def test_leaving_before_the_first_token_cancels(served: Served, is_stream: bool) -> None:
    with asking(served, "HANG", is_stream=is_stream):
        request = served.next_request()
    assert served.next_cancelled() == request.id


def test_leaving_in_mid_stream_cancels(served: Served) -> None:
    with asking(served, "BABBLE", is_stream=True) as connection:
        request = served.next_request()
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert served.next_cancelled() == request.id


def test_leaving_while_the_whole_answer_is_gathered_cancels(served: Served) -> None:
    with asking(served, "BABBLE", is_stream=False):
        request = served.next_request()
    assert served.next_cancelled() == request.id


def test_leaving_cancels_every_choice(served: Served) -> None:
    stream = served.http.stream(
        "POST", "/v1/completions", json={"prompt": "BABBLE", "n": 3, "stream": True}
    )
    with stream as answer:
        assert answer.status_code == 200
        asked = {served.next_request().id for _ in range(3)}
    assert {served.next_cancelled() for _ in range(3)} == asked


def test_a_finished_request_is_not_cancelled(served: Served) -> None:
    assert served.post("/v1/completions", prompt="x").is_success
    served.next_request()
    with asking(served, "HANG", is_stream=False):
        request = served.next_request()
    assert served.next_cancelled() == request.id


def test_a_slow_reader_is_given_up_and_holds_nobody_up() -> None:
    with serving(patience=Patience(send_s=0.3)) as served:
        with asking(served, "BABBLE", is_stream=True):
            request = served.next_request()
            answer = served.post("/v1/completions", prompt="x").json()
            assert answer["choices"][0]["text"] == TEXT
            assert served.next_cancelled() == request.id
        assert served.client.num_in_flight == 0


def test_a_body_that_never_comes_is_given_up() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
    with (
        serving(patience=Patience(body_s=0.1)) as served,
        socket.create_connection(served.address, timeout=PATIENT_S) as connection,
    ):
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_stopping_ends_what_runs_too_long() -> None:
    with serving(drain_timeout_s=0.1) as served, asking(served, "HANG", is_stream=False):
        request = served.next_request()
        served.stop()
        assert served.next_cancelled() == request.id
