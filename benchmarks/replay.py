"""What the shipped policies make of the recorded traces, and how long it takes to replay a day.

The day is the recorded traces one after the other until 24 hours are full, one moment a second, as
a service that works without a pause records it at its default of one a second.

    python benchmarks/replay.py                            rewrites docs/benchmarks/replay.*
    python benchmarks/replay.py --hours 0.1 --output here.json --document here.md
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import machine
from page import DOCS
from replay_report import render
from running import file_parser, publish

from adaptive_kv.loader import load_policy
from adaptive_kv.replay import Figures, replay
from adaptive_kv.trace import Trace, read_trace
from adaptive_kv.trace.copying import write_trace
from adaptive_kv.trace.moment import Moment

_POLICIES = ("ladder", "forecast", "fair", "latency_guard")
_PERIOD_S = 1.0


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON, then the document."""
    parser = file_parser(__doc__, "replay")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--rounds", type=int, default=3)
    publish(parser.parse_args(arguments), _measure, render)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    traces = {file.name.split(".")[0]: file for file in sorted(DOCS.glob("traces/*.jsonl.gz"))}
    figures = {name: _figures(read_trace(file), _POLICIES) for name, file in traces.items()}
    with tempfile.TemporaryDirectory() as folder:
        day = Path(folder) / "day.jsonl.gz"
        recorded = [read_trace(file) for file in traces.values()]
        write_trace(day, recorded[0].header, _day(recorded, options.hours * 3600))
        seconds: dict[str, list[float]] = {name: [] for name in _POLICIES}
        for _ in range(options.rounds):
            for name in _POLICIES:
                began_s = time.perf_counter()
                found = _figures(read_trace(day), [name])
                seconds[name].append(time.perf_counter() - began_s)
    return {
        "machine": machine(),
        "hours": options.hours,
        "num_rounds": options.rounds,
        "day": found["recorded"],
        "day_s": {name: round(statistics.median(each), 2) for name, each in seconds.items()},
        "traces": figures,
    }


def _figures(trace: Trace, policies: Sequence[str]) -> dict[str, Any]:
    found = replay(trace, [(name, load_policy(name, {})[0]) for name in policies])
    each: list[Figures] = [replayed.figures for replayed in found]
    return {figures.policy: figures.to_dict() for figures in each}


def _day(traces: Sequence[Trace], duration_s: float) -> Iterator[Moment]:
    """The traces over and over, with other sequences each time."""
    began_s = 0.0
    for turn in itertools.count():
        due_s = last_s = 0.0
        for moment in traces[turn % len(traces)].moments():
            if began_s + moment.time_s > duration_s:
                return
            if moment.time_s >= due_s:
                due_s, last_s = moment.time_s + _PERIOD_S, moment.time_s
                yield _shifted(moment, began_s, turn * 100_000)
        began_s += last_s + _PERIOD_S


def _shifted(moment: Moment, by_s: float, by_number: int) -> Moment:
    sequences = tuple(each._replace(number=each.number + by_number) for each in moment.sequences)
    return replace(moment, time_s=round(moment.time_s + by_s, 3), sequences=sequences)


if __name__ == "__main__":
    main(sys.argv[1:])
