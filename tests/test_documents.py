import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]
from schemas import validate
from statuses import EVERY_EVENT, FULL, INT4, WINDOW, make_status

from adaptive_kv.documents import (
    DocumentMaker,
    EventDocument,
    StateDocument,
    event_document,
    info_document,
    new_boot_id,
    rfc3339,
    state_document,
)
from adaptive_kv.documents.models import EVENTS
from adaptive_kv.engine.status import Health
from adaptive_kv.events import Event, Recorded
from adaptive_kv.policy import Latency

ROOT = Path(__file__).parents[1]
SWITCH_KEYS = {"from", "to", "reason", "duration_s", "freed_bytes", "sequences"}
HEADER = {"schema", "node", "boot_id", "seq", "time", "type"}


def event_json(event: Event, seq: int = 3) -> dict[str, Any]:
    recorded = Recorded(seq, 1_700_000_000.1239, event)
    document = event_document(recorded, node="edge-07", boot_id="00c0ffee").to_json()
    parsed: dict[str, Any] = json.loads(document)
    return parsed


def state_json(**changes: Any) -> dict[str, Any]:
    document = state_document(
        make_status(**changes),
        node="edge-07",
        boot_id="00c0ffee",
        seq=9,
        time=1_700_000_000.0,
        dropped_events=4,
    )
    parsed: dict[str, Any] = json.loads(document.to_json())
    return parsed


def test_the_state_says_what_the_status_says() -> None:
    assert state_json() == {
        "schema": "adaptive-kv.state/1",
        "node": "edge-07",
        "boot_id": "00c0ffee",
        "seq": 9,
        "time": "2023-11-14T22:13:20.000Z",
        "health": "ok",
        "mode": "full",
        "mode_age_s": 1.5,
        "pinned": False,
        "reason": {"code": "policy", "text": "room to spare"},
        "policy": {"name": "ladder", "status": "ok", "faults": 0},
        "memory": {
            "source": "file",
            "total_bytes": 1000,
            "free_bytes": 600,
            "floor_bytes": 100,
            "weights_bytes": 200,
            "cache_bytes": 64,
            "sample_age_s": 0.02,
        },
        "latency": {"token_p50_s": 0.01, "token_p95_s": None},
        "load": {"running": 2, "waiting": 1, "tokens_per_s": 100.0},
        "sequences": {"full": 1, "int4": 1},
        "dropped_events": 4,
        "suppressed_events": 0,
        "costs": {
            "full": {"bytes": 64, "token_s": 0.01, "exact": True},
            "int4": {"bytes": 16, "token_s": None, "exact": True},
        },
        "sequence_list": [
            {
                "id": "a",
                "state": "running",
                "mode": "full",
                "num_tokens": 5,
                "cache_bytes": 64,
                "exact": True,
            }
        ],
    }


def test_a_switch_of_the_service_has_all_keys_of_a_switch() -> None:
    assert event_json(EVERY_EVENT[0]) == {
        "schema": "adaptive-kv.event/1",
        "node": "edge-07",
        "boot_id": "00c0ffee",
        "seq": 3,
        "time": "2023-11-14T22:13:20.123Z",
        "type": "mode_changed",
        "from": "full",
        "to": "int4",
        "reason": "pressure",
        "duration_s": 0.25,
        "freed_bytes": 4096,
        "sequences": 3,
    }


def test_a_switch_of_one_sequence_names_it_and_counts_one() -> None:
    document = event_json(EVERY_EVENT[1])
    assert document.keys() == HEADER | SWITCH_KEYS | {"sequence"}
    assert (document["sequence"], document["sequences"]) == ("a", 1)


def test_an_event_has_no_field_that_is_not_its_own() -> None:
    assert event_json(EVERY_EVENT[-1]).keys() == HEADER | {"running"}
    assert event_json(EVERY_EVENT[3]).keys() == HEADER | {"sequence", "needed_bytes"}


@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: event.type)
def test_every_event_is_valid_and_can_be_read_back(event: Event) -> None:
    document = event_json(event)
    validate("event", document)
    assert EventDocument.model_validate(document).type == event.type


def test_the_schema_knows_every_event() -> None:
    assert {type(event) for event in EVERY_EVENT} == set(EVENTS)


def test_the_schema_asks_for_the_fields_of_a_type() -> None:
    document = event_json(EVERY_EVENT[1])
    del document["from"]
    with pytest.raises(ValidationError, match="'from' is a required property"):
        validate("event", document)


@pytest.mark.parametrize(
    "changes",
    [
        {"health": Health.FAILED},
        {"mode": WINDOW, "pinned": True},
        {"latency": Latency(token_s=None, p50_s=None, p95_s=None)},
        {"costs": {}, "num_sequences_by_mode": {}, "sequences": ()},
        {"num_sequences_by_mode": {WINDOW: 2, INT4: 0, FULL: 1}},
    ],
    ids=str,
)
def test_every_state_is_valid_and_can_be_read_back(changes: dict[str, Any]) -> None:
    document = state_json(**changes)
    validate("state", document)
    assert json.loads(StateDocument.model_validate(document).to_json()) == document


def test_info_is_valid_and_names_versions_and_schemas() -> None:
    document = info_document(
        node="edge-07",
        boot_id=new_boot_id(),
        time=0.0,
        device="cpu",
        model="demo",
        memory_source="meminfo",
        ladder=(FULL, INT4),
        has_graphs=True,
    )
    parsed = json.loads(document.to_json())
    validate("info", parsed)
    assert {"python", "adaptive-kv", "torch"} <= parsed["versions"].keys()
    assert parsed["ladder"] == ["full", "int4"]
    assert parsed["decode"] == "graphs"
    assert parsed["schemas"] == [
        "adaptive-kv.state/1",
        "adaptive-kv.event/1",
        "adaptive-kv.info/1",
    ]


def test_readers_must_bear_fields_that_were_added_later() -> None:
    validate("state", state_json() | {"later": 1})
    validate("event", event_json(EVERY_EVENT[0]) | {"later": 1})


def test_every_state_has_a_greater_seq_and_an_event_keeps_its_own() -> None:
    maker = DocumentMaker(make_status, node="a", boot_id="b", clock=lambda: 1.0)
    maker.dropped_events = 2
    first, second = maker.state(), maker.state()
    assert (first.seq, second.seq) == (1, 2)
    assert second.dropped_events == 2
    recorded = Recorded(5, 0.0, EVERY_EVENT[0])
    assert maker.event(recorded) == maker.event(recorded)
    assert maker.event(recorded).seq == 5


def test_time_is_utc_with_milliseconds() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1.0006) == "1970-01-01T00:00:01.000Z"


def test_every_start_has_its_own_boot_id() -> None:
    assert len({new_boot_id() for _ in range(50)}) == 50


def test_the_committed_schemas_are_what_the_models_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_schemas.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
