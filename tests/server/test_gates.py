"""Who is let in, and how much they may bring."""

import socket
from collections.abc import Iterator

import httpx
import pytest
from server.scripted import PATIENT_S, Served, serving

TOKEN = "correct horse"
PATHS = ("/", "/v1/models", "/readyz", "/status", "/events", "/metrics", "/health", "/nowhere")
MAX_BODY = 2000


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """Asks for a token and takes small bodies only."""
    with serving(token=TOKEN, max_body=MAX_BODY, allowed_hosts=("box.example",)) as served:
        served.http.headers["authorization"] = f"Bearer {TOKEN}"
        yield served


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ü"]
)
def test_every_route_needs_the_token(guarded: Served, path: str, authorization: str | None) -> None:
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    with httpx.Client(trust_env=False, headers=headers) as stranger:
        answer = stranger.get(guarded.url + path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_health_needs_no_token(guarded: Served) -> None:
    answer = guarded.http.get("/healthz", headers={"authorization": ""})
    assert answer.status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens(guarded: Served, scheme: str) -> None:
    answer = guarded.http.get("/v1/models", headers={"authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:9", "[::1]", "box.example", "box.example."],
)
def test_our_names_are_let_in(guarded: Served, host: str) -> None:
    assert guarded.http.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "", "[", "a b", "*"]
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/models"])
def test_a_foreign_host_is_refused(guarded: Served, path: str, host: str) -> None:
    answer = guarded.http.get(path, headers={"host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_host"


def test_a_wildcard_address_is_reached_by_any_address_but_by_no_foreign_name() -> None:
    with serving(host="0.0.0.0", token=TOKEN) as served:
        statuses = [
            served.http.get("/healthz", headers={"host": host}).status_code
            for host in ("10.0.0.1:8787", "[fe80::1]", "evil.example")
        ]
    assert statuses == [200, 200, 400]


def test_any_host_may_be_allowed_explicitly() -> None:
    with serving(allowed_hosts=("*",)) as served:
        assert served.http.get("/healthz", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil"])
def test_a_foreign_page_changes_nothing(guarded: Served, origin: str) -> None:
    answer = guarded.http.put("/admin/mode", json={"mode": "int4"}, headers={"origin": origin})
    assert answer.status_code == 403
    assert guarded.mailbox.status.pinned is False


def test_our_own_page_may_ask(guarded: Served) -> None:
    headers = {"origin": guarded.url}
    answer = guarded.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 200


def test_no_other_page_may_read_answers(guarded: Served) -> None:
    answer = guarded.http.get("/status", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_huge_body_is_refused_before_any_of_it_is_sent(guarded: Served) -> None:
    head = f"authorization: Bearer {TOKEN}\r\ncontent-length: {300 * 2**20}\r\n\r\n"
    answer = raw_answer(guarded, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "body_too_large"' in answer


def test_a_body_in_chunks_is_refused_when_it_gets_too_large(guarded: Served) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    head = f"authorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = raw_answer(guarded, head.encode() + chunk * 3)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_all_of_a_huge_body_still_reads_the_refusal(guarded: Served) -> None:
    answer = guarded.http.post("/v1/completions", content=b" " * 2**24)
    assert answer.status_code == 413
    assert guarded.http.get("/healthz").status_code == 200


def test_a_body_at_the_limit_is_read(guarded: Served) -> None:
    body = b'{"prompt": "x"}'.ljust(MAX_BODY)
    assert guarded.http.post("/v1/completions", content=body).status_code == 200
    assert guarded.http.post("/v1/completions", content=body + b" ").status_code == 413


def test_a_wrong_token_is_told_before_a_huge_body(guarded: Served) -> None:
    answer = raw_answer(guarded, b"content-length: 999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


def raw_answer(served: Served, rest: bytes) -> bytes:
    """Head and body of the answer to a completion whose head ends with `rest`."""
    with socket.create_connection(served.address, timeout=PATIENT_S) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + rest)
        answer = b""
        while b'"code"' not in answer or not answer.endswith(b"}}"):
            received = connection.recv(65536)
            assert received, answer
            answer += received
    return answer
