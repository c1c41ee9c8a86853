"""The document about publishing, made of the figures alone."""

from collections.abc import Mapping
from typing import Any

_BAR_US = 1000.0
_FLAT_MIB = 4.0

_INTRODUCTION = """\
The worker publishes nothing itself: it replaces the status and appends to the event log, and a
publisher in another thread tells the broker. Here it does so {changes_per_s} times a second, each
time with another mode, for {seconds:g} s each with a real mosquitto that is well, that is frozen
(SIGSTOP), and that is not there. The log keeps 1024 events and drops the oldest; what is dropped is
counted, and subscribers see the gap. CPU is of the whole process, documents and MQTT included."""

_METHOD = """\
{cpu}, Python {python}. The machine was not idle: the greatest figures are those of a thread that
was not let run."""


def render(report: Mapping[str, Any]) -> str:
    """`docs/benchmarks/mqtt.md` for the report that `mqtt.py` wrote."""
    rows = report["brokers"]
    heads = ("broker", "enqueue p50", "p99", "p99.9", "max", "memory, settled", "at the end", "CPU")
    lines = [
        f"| {' | '.join((*heads, 'told', 'dropped'))} |",
        "|---" * (len(heads) + 2) + "|",
        *(_row(name, row) for name, row in rows.items()),
    ]
    parts = [
        "# What publishing costs the worker",
        "<!-- made of mqtt.json by `make bench`; do not edit -->",
        _INTRODUCTION.format(**report),
        _METHOD.format(**report["machine"]),
        "\n".join(lines),
        _verdict(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, row: Mapping[str, Any]) -> str:
    costs = (row[f"enqueue_{key}_us"] for key in ("p50", "p99", "p999", "max"))
    cells = [
        name,
        *(f"{cost_us:.0f} µs" for cost_us in costs),
        f"{row['rss_settled_mib']} MiB",
        f"{row['rss_end_mib']} MiB",
        f"{row['cpu_share']:.0%}",
        f"{row['events_told']} of {row['events']}",
        str(row["events_dropped"]),
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(rows: Mapping[str, Any]) -> str:
    slow = [name for name, row in rows.items() if row["enqueue_p999_us"] >= _BAR_US]
    grown = [
        name
        for name, row in rows.items()
        if row["rss_end_mib"] - row["rss_settled_mib"] >= _FLAT_MIB
    ]
    bars = {
        f"p99.9 under {_BAR_US / 1e3:g} ms per enqueue": slow,
        f"memory flat within {_FLAT_MIB:g} MiB": grown,
    }
    told = (
        f"{bar}: not with a broker that is {', '.join(missed)}" if missed else f"{bar}: met"
        for bar, missed in bars.items()
    )
    return "The bars. " + "; ".join(told) + "."
