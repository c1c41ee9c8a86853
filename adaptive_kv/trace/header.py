"""The first line of every segment: what does not change, and what a sequence weighs in a mode."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptive_kv.policy import CacheMode
from adaptive_kv.trace.curve import Curve, from_steps

SCHEMA = "adaptive-kv.trace/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a replay has to know besides the moments. Nothing in it names the box."""

    version: str
    """Of the software that recorded."""
    model: str
    policy: str
    """That was in charge at the start."""
    ladder: tuple[CacheMode, ...]
    curves: Mapping[CacheMode, Curve]
    """For every mode that a replay may use, those of the ladder included."""
    slab_bytes: int
    """Unit in which the cache takes memory."""
    budget_bytes: int | None
    """Cap on weights, cache and a step's workspace; None where there was none."""
    max_running: int
    max_wait_s: float
    min_dwell_s: float
    max_age_s: float
    began_s: float = 0.0
    """Seconds since the epoch at time 0, so that the segments of several runs have an order."""

    def to_json(self) -> str:
        """One line."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["curves"] = {mode: _curve_values(curve) for mode, curve in self.curves.items()}
        return json.dumps({"schema": SCHEMA} | values, separators=(",", ":"))


def header_from_json(line: str) -> Header:
    """The header of `Header.to_json`. Raises `ValueError`, `KeyError` or `TypeError`."""
    values: dict[str, Any] = json.loads(line)
    if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
        raise ValueError(f"it does not begin with a header of {SCHEMA}")
    values["ladder"] = tuple(map(CacheMode, values["ladder"]))
    values["curves"] = {CacheMode(m): from_steps(**each) for m, each in values["curves"].items()}
    if not values["ladder"] or not set(values["ladder"]) <= values["curves"].keys():
        raise ValueError("its header does not say what the modes of its ladder weigh")
    return Header(**values)


def _curve_values(curve: Curve) -> dict[str, Any]:
    return {
        "steps": curve.steps(),
        "num_tokens": len(curve.table),
        "period_tokens": curve.period_tokens,
        "growth_bytes": curve.growth_bytes,
    }
