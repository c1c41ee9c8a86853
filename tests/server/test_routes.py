"""Health, truth, events, metrics and the pin."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from server.scripted import Served, comes_true, make_status, sequence_status, serving

from adaptive_kv.engine.status import Health
from adaptive_kv.events import Drain, EventLog
from adaptive_kv.policy import Load
from adaptive_kv.server.service import Patience

BUSY = Load(running=1, waiting=0, tokens_per_s=0.0)


@pytest.fixture
def own() -> Iterator[Served]:
    """A server whose state a test may change."""
    with serving(max_running=2, max_waiting=1) as served:
        yield served


def code_of(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize("path", ["/healthz", "/health"])
def test_alive_while_the_worker_moves_or_idles(own: Served, path: str) -> None:
    own.mailbox.status = make_status(load=BUSY)
    assert own.http.get(path).status_code == 200
    own.mailbox.status = make_status(time_s=time.monotonic() - 1000)
    assert own.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "changes", [{"load": BUSY, "time_s": -1000.0}, {"health": Health.FAILED}], ids=str
)
def test_dead_when_the_worker_hangs_or_failed(own: Served, changes: dict[str, Any]) -> None:
    own.mailbox.status = make_status(**changes)
    answer = own.http.get("/healthz")
    assert answer.status_code == 503
    assert code_of(answer) == "stalled"
    assert own.http.get("/readyz").status_code == 503


NOT_READY = [
    ({"is_ready": False}, "not_ready"),
    ({"health": Health.DRAINING, "is_ready": False}, "draining"),
    ({"health": Health.FAILED}, "failed"),
]


@pytest.mark.parametrize(("changes", "code"), NOT_READY, ids=str)
def test_what_is_not_ready_takes_no_request(
    own: Served, changes: dict[str, Any], code: str
) -> None:
    own.mailbox.status = make_status(**changes)
    for answer in (own.http.get("/readyz"), own.post("/v1/completions", prompt="x")):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert code_of(answer) == code
    assert own.worker.requests.empty()


def test_degraded_still_takes_requests(own: Served) -> None:
    own.mailbox.status = make_status(health=Health.DEGRADED)
    assert own.http.get("/readyz").status_code == 200
    assert own.post("/v1/completions", prompt="x").status_code == 200


def test_overload_is_told_and_passes(own: Served) -> None:
    hanging = own.http.stream(
        "POST", "/v1/completions", json={"prompt": "BABBLE", "n": 3, "stream": True}
    )
    with hanging as answer:
        assert answer.status_code == 200
        refused = own.post("/v1/completions", prompt="x")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert code_of(refused) == "overloaded"
    assert len({own.next_cancelled() for _ in range(3)}) == 3
    assert own.post("/v1/completions", prompt="x").status_code == 200
    assert own.events.since(0)[0][0].event.type == "request_rejected"


def test_models_show_the_context(own: Served) -> None:
    (model,) = own.http.get("/v1/models").json()["data"]
    assert model == own.http.get("/v1/models/demo").json()
    assert model["max_model_len"] == 512


def test_status_is_the_state_document(own: Served) -> None:
    own.mailbox.status = make_status(mode="int4")
    assert own.http.get("/status").json() == {"mode": "int4"}


def test_the_page_links_to_the_status(own: Served) -> None:
    assert 'href="status"' in own.http.get("/").text


def test_a_pin_holds_until_it_is_taken_back(own: Served) -> None:
    pinned = own.http.put("/admin/mode", json={"mode": "int4"})
    assert pinned.json() == {"pinned": True, "mode": "int4", "active_mode": "int4"}
    assert own.http.get("/status").json() == {"mode": "int4"}
    returned = own.http.delete("/admin/mode")
    assert returned.json() == {"pinned": False, "mode": None, "active_mode": "full"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"mode": "int3"}', "invalid_mode"),
        (b'{"mode": 4}', "invalid_mode"),
        (b'{"mode": "int8"}', "mode_not_supported"),
        (b"{}", "missing_required_parameter"),
        (b'{"mode": "int4", "for": 3}', "unknown_parameter"),
        (b"int4", "invalid_json"),
    ],
)
def test_a_wrong_pin_is_refused(own: Served, body: bytes, code: str) -> None:
    answer = own.http.put("/admin/mode", content=body)
    assert answer.status_code == 400
    assert code_of(answer) == code
    assert own.mailbox.status.pinned is False


def test_metrics_count_by_mode_and_outcome(own: Served) -> None:
    own.mailbox.status = make_status(sequences=(sequence_status("parked"),))
    own.post("/v1/completions", prompt="x")
    own.post("/v1/completions", prompt="FAIL")
    own.post("/v1/completions", prompt="")
    lines = own.http.get("/metrics").text.splitlines()
    assert {
        'adaptive_kv_memory_free_bytes{source="file"} 600.0',
        'adaptive_kv_cache_bytes{format="full"} 32.0',
        'adaptive_kv_cache_bytes{format="int4"} 16.0',
        'adaptive_kv_cache_bytes{format="free"} 16.0',
        'adaptive_kv_mode_info{mode="full"} 1.0',
        'adaptive_kv_sequences{state="parked"} 1.0',
        'adaptive_kv_sequences{state="running"} 0.0',
        'adaptive_kv_tokens_total{mode="full"} 2.0',
        'adaptive_kv_tokens_total{mode="int4"} 1.0',
        'adaptive_kv_requests_total{outcome="completed"} 1.0',
        'adaptive_kv_requests_total{outcome="failed"} 1.0',
        'adaptive_kv_requests_total{outcome="rejected"} 1.0',
    } <= set(lines)


@contextmanager
def following(served: Served, path: str = "/events", **headers: str) -> Iterator[Iterator[str]]:
    with served.http.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.iter_lines()


def ids_of(lines: Iterator[str], num_events: int) -> list[int]:
    seen: list[int] = []
    for line in lines:
        if line.startswith("id: "):
            seen.append(int(line.removeprefix("id: ")))
        if len(seen) == num_events:
            break
    return seen


def record(events: EventLog, num_events: int) -> None:
    for running in range(num_events):
        events.append(Drain(running=running))


def test_events_are_followed_from_now_on(own: Served) -> None:
    record(own.events, 2)
    with following(own) as lines:
        record(own.events, 2)
        assert ids_of(lines, 2) == [3, 4]
        assert next(lines) == 'data: {"seq": 4, "type": "drain"}'


@pytest.mark.parametrize(
    ("path", "headers"), [("/events", {"last-event-id": "1"}), ("/events?since=1", {})]
)
def test_events_are_resumed(own: Served, path: str, headers: dict[str, str]) -> None:
    record(own.events, 3)
    with following(own, path, **headers) as lines:
        assert ids_of(lines, 2) == [2, 3]


def test_events_are_given_again_after_a_restart(own: Served) -> None:
    record(own.events, 2)
    with following(own, **{"last-event-id": "99"}) as lines:
        assert ids_of(lines, 2) == [1, 2]


def test_a_follower_learns_how_many_events_it_missed(own: Served) -> None:
    record(own.events, 10)
    with following(own, "/events?since=0") as lines:
        assert next(lines) == ": 2 events are no longer kept"
        assert ids_of(lines, 1) == [3]


@pytest.mark.parametrize("since", ["-1", "x", "", "1" * 19])
def test_an_event_id_that_is_none_is_refused(own: Served, since: str) -> None:
    answer = own.http.get("/events", params={"since": since})
    assert answer.status_code == 400
    assert code_of(answer) == "invalid_value"


def test_asking_only_for_the_head_of_events_ends(own: Served) -> None:
    answer = own.http.head("/events")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_silence_on_events_is_broken() -> None:
    with serving(patience=Patience(keep_alive_s=0.01)) as served, following(served) as lines:
        assert next(lines) == ": keep-alive"


def test_following_ends_when_the_server_stops(own: Served) -> None:
    with following(own) as lines:
        own.stop()
        assert list(lines) == []


def test_a_follower_that_left_is_forgotten(own: Served) -> None:
    with following(own, "/events?since=0") as lines:
        record(own.events, 1)
        assert ids_of(lines, 1) == [1]
    assert comes_true(lambda: own.events._listeners == [])
