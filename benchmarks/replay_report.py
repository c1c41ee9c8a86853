"""The document about replays, made of the figures alone."""

from collections.abc import Callable, Mapping
from typing import Any

from page import table

_BAR_S = 10.0
_MIB = 2**20
_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "tokens in full": lambda each: f"{each['share_by_mode'].get('full', 0):.1%}",
    "tokens of exact sequences": lambda each: f"{each['exact_share']:.1%}",
    "tokens late": lambda each: f"{each['late_share']:.1%}",
    "under the floor": lambda each: f"{each['under_floor_s']:.2f} s",
    "rescues": lambda each: _number(each["rescues"]),
    "parked": lambda each: _number(each["parked"]),
    "rejected": lambda each: _number(each["rejected"]),
    "switches down": lambda each: str(each["switches_down"]),
    "switches up": lambda each: str(each["switches_up"]),
    "mean cache": lambda each: f"{each['mean_cache_bytes'] / _MIB:.0f} MiB",
}

_INTRODUCTION = """\
Each trace in [docs/traces](../traces) was recorded from the service while it was really squeezed
(`tools/record_traces.py`). Replays close the loop: what a policy decides changes what memory it
sees next. What was recorded is how the service fared under `ladder`; a replay of `ladder` differs a
little, because it knows memory only where a moment was recorded. The same as a table or a picture:

    adaptive-kv replay docs/traces/sudden.jsonl.gz --policy ladder --policy fair"""

_DAY = """\
{hours:g} hours of the traces one after the other, a moment every second, {tokens} tokens: a service
that never rests, recorded at the default rate. {cpu}, Python {python}, median of {num_rounds}."""


def render(report: Mapping[str, Any]) -> str:
    """`docs/benchmarks/replay.md` for the report that `replay.py` wrote."""
    parts = [
        "# What policies make of recorded traces",
        "<!-- made of replay.json by `make bench`; do not edit -->",
        _INTRODUCTION,
    ]
    for name, figures in report["traces"].items():
        parts += [f"## {name}", _table(figures)]
    day = {**report, **report["machine"], "tokens": report["day"]["tokens"]}
    parts += ["## How long a day takes", _DAY.format(**day), _days(report["day_s"])]
    return "\n\n".join(parts) + "\n"


def _table(figures: Mapping[str, Any]) -> str:
    rows = ([label, *map(cell, figures.values())] for label, cell in _ROWS.items())
    return table(["", *figures], rows)


def _days(seconds: Mapping[str, float]) -> str:
    rows = ([name, f"{each:.1f}"] for name, each in seconds.items())
    slow = [name for name, each in seconds.items() if each > _BAR_S]
    end = f"not met by: {', '.join(slow)}." if slow else "met by every policy."
    return table(["policy", "seconds"], rows) + f"\n\nThe bar, {_BAR_S:g} s, is {end}"


def _number(number: int | None) -> str:
    return "-" if number is None else str(number)
