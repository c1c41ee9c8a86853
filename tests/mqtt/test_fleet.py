"""What somebody who listens knows of the boxes, and which of them he should look at first."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statuses import EVERY_EVENT, INT4, make_status

from adaptive_kv.documents import EventDocument, event_document, info_document, state_document
from adaptive_kv.engine.status import Health
from adaptive_kv.events import Event, Recorded
from adaptive_kv.mqtt.fleet import Fleet, describe

GIB = 2**30


def state(node: str, *, boot: str = "a", seq: int = 1, **changes: Any) -> bytes:
    document = state_document(
        make_status(**changes), node=node, boot_id=boot, seq=seq, time=0.0, dropped_events=0
    )
    return document.to_json().encode()


def memory(free: float) -> Any:
    status = make_status().memory
    return type(status)(
        total_bytes=8 * GIB,
        free_bytes=int(free * GIB),
        floor_bytes=GIB,
        weights_bytes=GIB,
        cache_bytes=0,
        source="nvml",
        sample_age_s=0.0,
    )


def event(seq: int, happened: Event = EVERY_EVENT[0], boot: str = "a", **more: Any) -> bytes:
    document = event_document(Recorded(seq, 0.0, happened), node="edge-07", boot_id=boot)
    return json.dumps(json.loads(document.to_json()) | more).encode()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("adaptive-kv")


def take(fleet: Fleet, node: str, kind: str, payload: bytes) -> list[str]:
    notices = fleet.take(f"adaptive-kv/v1/{node}/{kind}", payload)
    return [f"{notice.node} {notice.what}" for notice in notices]


def test_who_is_in_trouble_comes_first_in_the_order_of_the_troubles(fleet: Fleet) -> None:
    boxes: dict[str, dict[str, Any]] = {
        "fine": {"memory": memory(7)},
        "busier": {"memory": memory(5)},
        "draining": {"memory": memory(7), "health": Health.DRAINING},
        "tight": {"memory": memory(1.5)},
        "broken": {"memory": memory(0.5)},
        "degraded": {"memory": memory(7), "health": Health.DEGRADED},
        "gone": {"memory": memory(7)},
        "failed": {"memory": memory(7), "health": Health.FAILED},
    }
    for node, changes in boxes.items():
        take(fleet, node, "availability", b"offline" if node == "gone" else b"online")
        take(fleet, node, "state", state(node, **changes))
    assert {box.node: box.troubles for box in fleet.by_trouble()} == {
        "failed": ("failed",),
        "gone": ("offline",),
        "degraded": ("degraded",),
        "broken": ("floor",),
        "tight": ("pressure",),
        "draining": ("draining",),
        "busier": (),
        "fine": (),
    }
    assert [box.node for box in fleet.by_trouble()] == list(reversed(boxes))


def test_troubles_of_one_box_are_named_worst_first(fleet: Fleet) -> None:
    take(fleet, "box", "state", state("box", health=Health.DEGRADED, memory=memory(0.5)))
    assert fleet.boxes["box"].troubles == ("degraded", "floor")


def test_comings_goings_and_healths_are_noticed_once(fleet: Fleet) -> None:
    assert take(fleet, "box", "availability", b"online") == ["box online"]
    assert take(fleet, "box", "availability", b"online") == []
    assert take(fleet, "box", "state", state("box")) == ["box ok"]
    assert take(fleet, "box", "state", state("box", seq=2, mode=INT4)) == []
    assert take(fleet, "box", "state", state("box", seq=3, health=Health.DEGRADED)) == [
        "box degraded"
    ]
    assert take(fleet, "box", "availability", b"offline") == ["box offline"]
    assert take(fleet, "box", "state", state("box", boot="b")) == ["box restarted"]


def test_an_older_state_of_the_same_boot_changes_nothing(fleet: Fleet) -> None:
    take(fleet, "box", "state", state("box", seq=5, mode=INT4))
    take(fleet, "box", "state", state("box", seq=4))
    shown = fleet.boxes["box"].state
    assert shown is not None
    assert (shown.seq, shown.mode) == (5, "int4")


def test_events_are_noticed_once_and_gaps_are_told(fleet: Fleet) -> None:
    for seq in (1, 2, 2, 1, 6, 7):
        take(fleet, "edge-07", "event", event(seq))
    assert len(fleet.notices) == 4
    missing = [notice.text.partition("[")[2] for notice in fleet.notices]
    assert missing == ["", "", "3 before it not told]", ""]
    take(fleet, "edge-07", "event", event(1, boot="b"))
    assert "[" not in fleet.notices[-1].text


@pytest.mark.parametrize("happened", EVERY_EVENT, ids=lambda happened: happened.type)
def test_every_event_is_described_in_a_line(happened: Event) -> None:
    text = describe(EventDocument.model_validate_json(event(1, happened)))
    assert text
    assert "\n" not in text
    assert "None" not in text


def test_a_switch_is_described_with_its_reason() -> None:
    text = describe(EventDocument.model_validate_json(event(1, freed_bytes=5 * 2**20)))
    assert text == "full → int4  pressure  (3 sequences, 5.0 MiB freed, 250.0 ms)"


def test_fields_that_came_later_are_borne(fleet: Fleet) -> None:
    """And so is one that was added since: an older box does not send it."""
    document = json.loads(state("box")) | {"later": {"a": 1}}
    document["memory"]["later"] = 1
    del document["suppressed_events"]
    take(fleet, "box", "state", json.dumps(document).encode())
    assert fleet.boxes["box"].state is not None
    take(fleet, "edge-07", "event", event(1, type="something_new", later=1))
    assert fleet.notices[-1].what == "something_new"


def test_what_cannot_be_read_is_said_to_be_so_until_it_can(fleet: Fleet) -> None:
    assert take(fleet, "box", "state", b"{}") == []
    assert fleet.boxes["box"].troubles == ("unreadable",)
    assert "state" in (fleet.boxes["box"].unreadable or "")
    take(fleet, "box", "state", state("box"))
    assert not fleet.boxes["box"].troubles


def test_an_empty_message_says_nothing(fleet: Fleet) -> None:
    take(fleet, "box", "state", state("box"))
    take(fleet, "box", "state", b"")
    assert fleet.boxes["box"].state is not None


def test_programs_get_everything(fleet: Fleet) -> None:
    take(fleet, "box", "availability", b"online")
    take(fleet, "box", "state", state("box"))
    info = info_document(
        node="box", boot_id="a", time=0.0, device="cpu", model="demo", memory_source="file",
        ladder=("full",),
    )  # fmt: skip
    take(fleet, "box", "info", info.to_json().encode())
    found = json.loads(json.dumps(fleet.boxes["box"].to_dict()))
    assert found["state"] == json.loads(state("box"))
    assert found["info"] == json.loads(info.to_json())
    assert (found["node"], found["availability"], found["troubles"]) == ("box", "online", [])


PAYLOADS = st.binary(max_size=60) | st.just(state("box")) | st.just(event(1))


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=8), PAYLOADS), max_size=20))
def test_whatever_comes_in_nothing_is_raised_and_little_is_kept(
    messages: list[tuple[str, str, bytes]],
) -> None:
    fleet = Fleet("adaptive-kv")
    for node, kind, payload in messages:
        for topic in (f"adaptive-kv/v1/{node}/{kind}", f"{node}/{kind}", kind):
            fleet.take(topic, payload)
        fleet.take("adaptive-kv/v1/box/state", payload)
        fleet.take("adaptive-kv/v1/box/event", payload)
    assert fleet.boxes.keys() <= {"box", *(node for node, _, _ in messages)}


def test_how_many_boxes_are_kept_is_bounded(fleet: Fleet) -> None:
    for number in range(5000):
        take(fleet, f"n{number}", "availability", b"online")
    assert len(fleet.boxes) == 4096
    assert len(fleet.notices) == 200
