import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kv import CacheMode, Decision
from adaptive_kv.errors import UnknownModeError
from adaptive_kv.policy import Memory, SequenceInfo
from adaptive_kv.testing import make_reading

FORMS = ["full", "int8", "int4", "window:64", "window:64+int8", "window:64+int4", "disabled"]


@pytest.mark.parametrize("text", FORMS)
def test_a_mode_is_its_string(text: str) -> None:
    mode = CacheMode(text)
    assert mode == text
    assert hash(mode) == hash(text)
    assert json.dumps({"mode": mode}) == f'{{"mode": "{text}"}}'
    assert pickle.loads(pickle.dumps(mode)) == mode


@pytest.mark.parametrize(
    "text",
    ["", "FULL", "int2", "window", "window:", "window:0", "window:-1", "window:01", "window:8+full",
     "full+int8", "window:64+int8+int4", " full", "full\n", "window:1234567890", None, 4],
)  # fmt: skip
def test_any_other_string_is_an_unknown_mode(text: str) -> None:
    with pytest.raises(UnknownModeError, match="use full, int8") as caught:
        CacheMode(text)
    assert caught.value.mode == text


@pytest.mark.parametrize(
    ("text", "window", "page_format", "is_disabled", "is_exact"),
    [
        ("full", None, "full", False, True),
        ("int8", None, "int8", False, False),
        ("int4", None, "int4", False, False),
        ("window:64", 64, "full", False, False),
        ("window:64+int8", 64, "int8", False, False),
        ("window:64+int4", 64, "int4", False, False),
        ("disabled", None, "full", True, True),
    ],
)
def test_what_a_mode_means(
    text: str, window: int | None, page_format: str, is_disabled: bool, is_exact: bool
) -> None:
    mode = CacheMode(text)
    assert (mode.window, mode.page_format) == (window, page_format)
    assert (mode.is_disabled, mode.is_exact) == (is_disabled, is_exact)


@given(st.text(max_size=24))
def test_no_string_breaks_the_parser(text: str) -> None:
    try:
        assert CacheMode(text) == text
    except UnknownModeError as error:
        assert error.mode == text


def test_a_decision_reads_strings_and_refuses_unknown_ones() -> None:
    decision = Decision("int4", sequences={"a": "full"})
    assert isinstance(decision.mode, CacheMode)
    assert isinstance(decision.sequences["a"], CacheMode)
    with pytest.raises(UnknownModeError):
        Decision("int5")
    with pytest.raises(UnknownModeError):
        Decision("full", sequences={"a": "nonsense"})


def test_a_decision_does_not_change_with_what_it_was_made_from() -> None:
    modes = {"a": "full"}
    decision = Decision("int4", sequences=modes)
    modes["a"] = "int8"
    assert decision.sequences == {"a": "full"}
    with pytest.raises(TypeError):
        decision.sequences["a"] = CacheMode("int8")  # type: ignore[index]


@given(total=st.integers(1, 1000), free=st.integers(0, 1000), floor=st.integers(0, 999))
def test_pressure_is_over_one_exactly_when_the_floor_is_broken(
    total: int, free: int, floor: int
) -> None:
    free, floor = min(free, total), min(floor, total - 1)
    reading = make_reading(total_bytes=total, free_bytes=free, floor_bytes=floor)
    assert (reading.pressure > 1) == (reading.memory.headroom_bytes < 0)
    assert reading.pressure >= 0


def test_pressure_without_room_above_the_floor_is_infinite() -> None:
    assert make_reading(total_bytes=10, free_bytes=10, floor_bytes=10).pressure == float("inf")


def test_a_sequence_permits_what_its_request_allows() -> None:
    free = SequenceInfo(id="a", num_tokens=1, mode=CacheMode("full"), cache_bytes=0)
    bound = SequenceInfo(
        id="b", num_tokens=1, mode=CacheMode("full"), cache_bytes=0,
        allow=frozenset({CacheMode("full")}),
    )  # fmt: skip
    assert free.permits("int4")
    assert bound.permits("full")
    assert not bound.permits("int4")


def test_readings_are_immutable() -> None:
    memory: Memory = make_reading().memory
    with pytest.raises(FrozenInstanceError):
        memory.free_bytes = 0  # type: ignore[misc]
