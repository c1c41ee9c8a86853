import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from loader.strategies import decisions, readings

from adaptive_kv.loader.wire import (
    decision_from_values,
    decision_values,
    reading_from_json,
    reading_to_json,
)
from adaptive_kv.policy import CacheMode, Decision, Reading
from adaptive_kv.testing import make_reading


@given(readings)
def test_a_reading_comes_out_as_it_went_in(reading: Reading) -> None:
    line = reading_to_json(reading)
    again = reading_from_json(line)
    assert "\n" not in line
    assert again == reading
    assert reading_to_json(again) == line


def test_the_types_come_out_too() -> None:
    again = reading_from_json(reading_to_json(make_reading()))
    assert isinstance(again.mode, CacheMode)
    assert {type(mode) for mode in (*again.ladder, *again.costs)} == {CacheMode}
    assert isinstance(again.costs, Mapping)
    assert isinstance(again.sequences, tuple)


def test_what_is_no_number_stays_what_it_is() -> None:
    reading = make_reading(sample_age_s=float("nan"), tokens_per_s=float("inf"))
    again = reading_from_json(reading_to_json(reading))
    assert again.memory.sample_age_s != again.memory.sample_age_s
    assert again.load.tokens_per_s == float("inf")


@given(decisions)
def test_a_decision_comes_out_as_it_went_in(decision: Decision) -> None:
    again = decision_from_values(json.loads(json.dumps(decision_values(decision))))
    assert again == decision


@pytest.mark.parametrize("answer", ["full", float("nan"), 3, {"mode": "full"}])
def test_what_is_no_decision_is_refused(answer: object) -> None:
    with pytest.raises(TypeError, match="not a Decision"):
        decision_values(answer)  # type: ignore[arg-type]
