"""What policies cost a token: consulting one, and the gaps between tokens under good and bad ones.

Every policy serves eight sequences of the embedded model in turn, several rounds; a hostile one is
measured from the start of the service to past its replacement. To consult is to make the reading,
ask the policy, and ask the guard; it is timed after every step, so that the reading is a new one.

    python benchmarks/policies.py                         rewrites docs/benchmarks/policies.*
    python benchmarks/policies.py --rounds 1 --steps 50 --output here.json --document here.md
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import machine
from policies_report import render
from running import file_parser, publish

from adaptive_kv.config import load_settings
from adaptive_kv.engine.loading import LoadedModel, load_model
from adaptive_kv.engine.mailbox import Request, SamplingParams
from adaptive_kv.engine.service import Engine, build_engine
from adaptive_kv.events import EventLog

_NUM_SEQUENCES, _PROMPT_TOKENS = 8, 256
_SHIPPED = ("fixed", "ladder", "latency_guard", "forecast", "fair")
_BODIES = {
    "well": "return None",
    "raises": "1 / 0",
    "spins": "while True: pass",
    "sleeps": "time.sleep(1000)",
    "answers NaN": "return float('nan')",
    "unknown mode": "return Decision('int5')",
    "flaps": "calls.append(1); return Decision(('int8', 'full')[len(calls) % 2])",
    "eats memory": "while True: calls.append(b'x' * 2**24)",
    "exits": "os._exit(1)",
}


@dataclass(slots=True)
class _Seen:
    """Seconds under one policy, of all rounds."""

    gaps_s: list[float] = field(default_factory=list)
    consults_s: list[float] = field(default_factory=list)
    consults_cpu_s: list[float] = field(default_factory=list)


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON, then the document."""
    parser = file_parser(__doc__, "policies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    publish(parser.parse_args(arguments), _measure, render)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    settings = load_settings(default_file=Path("/nonexistent"))
    loaded = load_model(settings.model)
    with tempfile.TemporaryDirectory() as folder:
        policies = {name: name for name in _SHIPPED} | dict(_written(Path(folder)))
        seen = {name: _Seen() for name in policies}
        for _ in range(options.rounds):
            for name, policy in policies.items():
                with _serving(loaded, policy) as engine:
                    _run(engine, options.steps, seen[name])
    return {
        "machine": machine(),
        "num_rounds": options.rounds,
        "num_steps": options.steps,
        "num_sequences": _NUM_SEQUENCES,
        "prompt_tokens": _PROMPT_TOKENS,
        "ladder": list(settings.cache.ladder),
        "policies": {name: _figures(name, figures) for name, figures in seen.items()},
    }


def _written(folder: Path) -> Iterator[tuple[str, str]]:
    for name, body in _BODIES.items():
        file = folder / f"{name.replace(' ', '_')}.py"
        file.write_text(
            "import os, time\nfrom adaptive_kv import Decision\ncalls = []\n\n"
            f"def decide(now):\n    {body}\n"
        )
        yield name, f"{file}:decide"


@contextmanager
def _serving(loaded: LoadedModel, policy: str) -> Iterator[Engine]:
    flags = {"policy": {"name": policy}, "memory": {"floor": 0}}
    settings = load_settings(flags=flags, default_file=Path("/nonexistent"))
    engine = build_engine(settings, loaded, EventLog())
    engine.sensor.start()
    try:
        yield engine
    finally:
        engine.stop()


def _run(engine: Engine, num_steps: int, seen: _Seen) -> None:
    """Steps that give every sequence one token, and consulting after each of them."""
    worker, controller = engine.worker, engine.controller
    _fill(engine, num_steps)
    for number in range(num_steps):
        began_s = time.perf_counter()
        worker.step()
        stepped_s, stepped_cpu_s = time.perf_counter(), time.thread_time()
        controller.decide(worker._read(time.monotonic()))  # noqa: SLF001 - the step does the same
        ended_s, ended_cpu_s = time.perf_counter(), time.thread_time()
        if number:  # the first is as slow as a first time is
            seen.gaps_s.append(stepped_s - began_s)
            seen.consults_s.append(ended_s - stepped_s)
            seen.consults_cpu_s.append(ended_cpu_s - stepped_cpu_s)


def _fill(engine: Engine, num_steps: int) -> None:
    """Bring all sequences to where they decode."""
    sampling = SamplingParams(max_tokens=num_steps + 100, temperature=0, ignore_eos=True)
    for number in range(_NUM_SEQUENCES):
        ids = tuple(range(5 + number, 5 + number + _PROMPT_TOKENS))
        engine.mailbox.post(Request(id=str(number), prompt_ids=ids, sampling=sampling))
    engine.worker.step()
    while any(s.num_tokens <= _PROMPT_TOKENS for s in engine.mailbox.status.sequences):
        engine.worker.step()


def _figures(name: str, seen: _Seen) -> Mapping[str, Any]:
    gaps, consults = _percentiles(seen.gaps_s), _percentiles(seen.consults_s)
    return {
        "is_in_process": name in _SHIPPED,
        "gap_p50_ms": round(gaps[0] * 1e3, 2),
        "gap_p99_ms": round(gaps[1] * 1e3, 2),
        "consult_p50_us": round(consults[0] * 1e6, 1),
        "consult_p99_us": round(consults[1] * 1e6, 1),
        "consult_cpu_p50_us": round(_percentiles(seen.consults_cpu_s)[0] * 1e6, 1),
    }


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    main(sys.argv[1:])
