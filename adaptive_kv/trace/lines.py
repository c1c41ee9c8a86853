"""Moments as lines of JSON. A line holds what differs from the line before, a first one all."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from adaptive_kv.controller import Orders
from adaptive_kv.policy import CacheMode, Device, Latency, Reading, SequenceInfo
from adaptive_kv.trace.moment import Moment, Seen

_MAX_REASON_CHARS = 160
_MAX_NUMBERS = 4096
_OFTEN = {"t", "n", "free", "cache", "age", "seqs"}
_mode = cache(CacheMode)


class Numbers:
    """Stands a number for every id of a sequence; forgets those seen longest ago."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = 0

    def of(self, id_: str) -> int:
        """The number of `id_`."""
        number = self._numbers.pop(id_, None)
        if number is None:
            number, self._next = self._next, self._next + 1
            if len(self._numbers) >= _MAX_NUMBERS:
                del self._numbers[next(iter(self._numbers))]
        self._numbers[id_] = number  # the newest comes last
        return number


def moment_of(reading: Reading, orders: Orders, start_s: float, numbers: Numbers) -> Moment:
    """What is kept of a reading. Evaluates its cost table."""
    memory, latency = reading.memory, reading.latency
    costs = sorted(reading.costs.items())
    return Moment(
        time_s=round(reading.time_s - start_s, 3),
        step=reading.step,
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        floor_bytes=memory.floor_bytes,
        weights_bytes=memory.weights_bytes,
        cache_bytes=memory.cache_bytes,
        source=memory.source.partition(":")[0],  # where a file lies is the box's own business
        sample_age_s=_rounded(memory.sample_age_s, 3) or 0.0,
        latency=Latency(
            token_s=_rounded(latency.token_s, 5),
            p50_s=_rounded(latency.p50_s, 5),
            p95_s=_rounded(latency.p95_s, 5),
        ),
        waiting=reading.load.waiting,
        tokens_per_s=round(reading.load.tokens_per_s, 1),
        device=Device(
            temperature_c=_rounded(reading.device.temperature_c, 0),
            throttled=reading.device.throttled,
            utilization=_rounded(reading.device.utilization, 2),
        ),
        mode=reading.mode,
        step_bytes={mode: cost.transient_bytes for mode, cost in costs},
        token_s={mode: _rounded(cost.token_s, 5) for mode, cost in costs},
        sequences=tuple(_seen(sequence, numbers) for sequence in reading.sequences),
        ordered=orders.mode,
        code=orders.reason_code,
        reason=orders.reason_text[:_MAX_REASON_CHARS],
        admit=orders.admit,
    )


def _seen(sequence: SequenceInfo, numbers: Numbers) -> Seen:
    return Seen(
        numbers.of(sequence.id),
        sequence.num_tokens,
        sequence.mode,
        sequence.cache_bytes,
        sequence.exact,
        sequence.priority,
        sequence.allow,
    )


class Encoder:
    """Turns moments into lines, each against the one before."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._known: set[int] = set()

    def line(self, moment: Moment) -> str:
        """The next line."""
        values = _values(moment)
        new = [each for each in moment.sequences if each.number not in self._known]
        self._known = {each.number for each in moment.sequences}
        changed = {k: v for k, v in values.items() if k == "t" or self._last.get(k, ...) != v}
        if new:
            changed["new"] = [[each.number, each.priority, _listed(each.allow)] for each in new]
        self._last = values
        return json.dumps(changed, separators=(",", ":"))


class Decoder:
    """Turns the lines of an `Encoder` back into equal moments."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._known: dict[int, tuple[int, frozenset[CacheMode] | None]] = {}
        self._parts: dict[str, Any] = {}
        self._sequences: tuple[Seen, ...] = ()

    def moment(self, line: str | bytes) -> Moment:
        """The next moment. Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError`."""
        changed: dict[str, Any] = json.loads(line)
        for number, priority, allow in changed.pop("new", ()):
            self._known[number] = (priority, _permitted(allow))
        last = self._last
        last.update(changed)
        if changed.keys() - _OFTEN:
            self._parts = _parts(last)
        if "seqs" in changed:
            self._sequences = self._seen(changed["seqs"])
        return Moment(
            time_s=last["t"],
            step=last["n"],
            free_bytes=last["free"],
            cache_bytes=last["cache"],
            sample_age_s=last["age"],
            sequences=self._sequences,
            **self._parts,
        )

    def _seen(self, rows: Sequence[Sequence[Any]]) -> tuple[Seen, ...]:
        found = tuple(
            Seen(number, num_tokens, _mode(mode), num_bytes, bool(exact), *self._known[number])
            for number, num_tokens, mode, num_bytes, exact in rows
        )
        if len(self._known) > len(found):
            self._known = {each.number: (each.priority, each.allow) for each in found}
        return found


def _values(moment: Moment) -> dict[str, Any]:
    """All of a moment but what does not change about its sequences."""
    latency, device = moment.latency, moment.device
    return {
        "t": moment.time_s,
        "n": moment.step,
        "free": moment.free_bytes,
        "cache": moment.cache_bytes,
        "age": moment.sample_age_s,
        "box": [moment.total_bytes, moment.floor_bytes, moment.weights_bytes, moment.source],
        "lat": [latency.token_s, latency.p50_s, latency.p95_s],
        "load": [moment.waiting, moment.tokens_per_s],
        "dev": [device.temperature_c, device.throttled, device.utilization],
        "mode": moment.mode,
        "step": dict(moment.step_bytes),
        "tok": dict(moment.token_s),
        "to": [moment.ordered, moment.code, moment.reason, moment.admit],
        "seqs": [
            [each.number, each.num_tokens, each.mode, each.cache_bytes, +each.exact]
            for each in moment.sequences
        ],
    }


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What need not be made anew for every moment."""
    total_bytes, floor_bytes, weights_bytes, source = values["box"]
    ordered, code, reason, admit = values["to"]
    token_s, p50_s, p95_s = values["lat"]
    temperature_c, throttled, utilization = values["dev"]
    waiting, tokens_per_s = values["load"]
    return {
        "total_bytes": total_bytes,
        "floor_bytes": floor_bytes,
        "weights_bytes": weights_bytes,
        "source": source,
        "latency": Latency(token_s=token_s, p50_s=p50_s, p95_s=p95_s),
        "waiting": waiting,
        "tokens_per_s": tokens_per_s,
        "device": Device(temperature_c=temperature_c, throttled=throttled, utilization=utilization),
        "mode": _mode(values["mode"]),
        "step_bytes": {_mode(mode): num_bytes for mode, num_bytes in values["step"].items()},
        "token_s": {_mode(mode): seconds for mode, seconds in values["tok"].items()},
        "ordered": _mode(ordered),
        "code": code,
        "reason": reason,
        "admit": admit,
    }


def _listed(allow: frozenset[CacheMode] | None) -> list[CacheMode] | None:
    return None if allow is None else sorted(allow)


def _permitted(allow: list[str] | None) -> frozenset[CacheMode] | None:
    return None if allow is None else frozenset(map(_mode, allow))


def _rounded(value: float | None, digits: int) -> float | None:
    """`value` with so many digits after the point; what is not finite is not known."""
    return round(value, digits) if value is not None and math.isfinite(value) else None
