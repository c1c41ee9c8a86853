"""Readings and answers as JSON, exactly: what comes out equals what went in."""

import json
from dataclasses import fields
from typing import Any

from adaptive_kv.policy import (
    CacheMode,
    Cost,
    Decision,
    Device,
    Latency,
    Load,
    Memory,
    Reading,
    SequenceInfo,
)

_PARTS = {"memory": Memory, "latency": Latency, "load": Load, "device": Device}
_PLAIN = [
    field.name
    for field in fields(Reading)
    if field.name not in {*_PARTS, "mode", "ladder", "costs", "sequences"}
]


def reading_to_json(reading: Reading) -> str:
    """One line of JSON, floats to the last bit; `NaN` and `Infinity` as Python writes them."""
    values = _values(reading)
    values |= {part: _values(values[part]) for part in _PARTS}
    values["costs"] = {mode: _values(cost) for mode, cost in reading.costs.items()}
    values["sequences"] = [_sequence_values(sequence) for sequence in reading.sequences]
    return json.dumps(values, separators=(",", ":"))


def reading_from_json(line: str | bytes) -> Reading:
    """The reading of `reading_to_json`. Raises `ValueError`, `KeyError` or `TypeError`."""
    values = json.loads(line)
    return Reading(
        **{name: values[name] for name in _PLAIN},
        **{name: part(**values[name]) for name, part in _PARTS.items()},
        mode=CacheMode(values["mode"]),
        ladder=tuple(CacheMode(mode) for mode in values["ladder"]),
        costs={CacheMode(mode): Cost(**cost) for mode, cost in values["costs"].items()},
        sequences=tuple(_sequence(each) for each in values["sequences"]),
    )


def decision_values(decision: Decision) -> dict[str, Any]:
    """The decision as JSON has it. Raises `TypeError` for what is no decision."""
    if not isinstance(decision, Decision):
        raise TypeError(f"answered a {type(decision).__name__}, not a Decision or None")
    return _values(decision) | {"sequences": dict(decision.sequences)}


def decision_from_values(values: dict[str, Any]) -> Decision:
    """The decision of `decision_values`. Raises `ValueError` or `TypeError` for anything else."""
    return Decision(**values)


def _values(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__dataclass_fields__}


def _sequence_values(sequence: SequenceInfo) -> dict[str, Any]:
    allow = None if sequence.allow is None else sorted(sequence.allow)
    return _values(sequence) | {"allow": allow}


def _sequence(values: dict[str, Any]) -> SequenceInfo:
    allow = values.pop("allow")
    return SequenceInfo(
        mode=CacheMode(values.pop("mode")),
        allow=None if allow is None else frozenset(map(CacheMode, allow)),
        **values,
    )
