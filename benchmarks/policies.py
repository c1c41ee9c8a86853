"""What a policy costs a token: gaps between tokens, good policies and hostile ones taking turns.

Every policy serves the embedded model in turn, several rounds; a hostile one is measured from the
start of the service to past its replacement. `consult` is the controller alone.

    python benchmarks/policies.py
    python benchmarks/policies.py --rounds 3 --tokens 200
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptive_kv.config import load_settings
from adaptive_kv.engine.loading import LoadedModel, load_model
from adaptive_kv.engine.mailbox import Request, SamplingParams
from adaptive_kv.engine.service import Engine, build_engine
from adaptive_kv.events import EventLog

_PROMPT_IDS = tuple(range(5, 69))
_NUM_WARM_STEPS = 20
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


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=400)
    arguments = parser.parse_args()
    loaded = load_model(load_settings(default_file=Path("/nonexistent")).model)
    with tempfile.TemporaryDirectory() as folder:
        policies = {"ladder (in this process)": "ladder"} | dict(_written(Path(folder)))
        gaps_s: dict[str, list[float]] = {name: [] for name in policies}
        consult_s: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(arguments.rounds):
            for name, policy in policies.items():
                with _serving(loaded, policy) as engine:
                    gaps_s[name] += _gaps_s(engine, arguments.tokens)
                    consult_s[name] += _consult_s(engine, arguments.tokens)
    print(f"{'policy':<28}{'gap p50':>10}{'gap p99':>10}{'consult p50':>13}{'consult p99':>13}")
    for name, seen in gaps_s.items():
        figures = (*_percentiles(seen), *_percentiles(consult_s[name]))
        gaps = "".join(f"{figure * 1e3:8.2f}ms" for figure in figures[:2])
        consults = "".join(f"{figure * 1e6:11.0f}us" for figure in figures[2:])
        print(f"{name:<28}{gaps}{consults}")


def _written(folder: Path) -> Iterator[tuple[str, str]]:
    for name, body in _BODIES.items():
        file = folder / f"{name.replace(' ', '_')}.py"
        file.write_text(
            "import os, time\nfrom adaptive_kv import Decision\ncalls = []\n\n"
            f"def decide(now):\n    {body}\n"
        )
        yield f"{name} (in a child)", f"{file}:decide"


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


def _gaps_s(engine: Engine, num_tokens: int) -> list[float]:
    """Seconds of each step that gave one sequence one token."""
    sampling = SamplingParams(
        max_tokens=num_tokens + _NUM_WARM_STEPS + 8, temperature=0, ignore_eos=True
    )
    engine.mailbox.post(Request(id="0", prompt_ids=_PROMPT_IDS, sampling=sampling))
    for _ in range(_NUM_WARM_STEPS):
        engine.worker.step()
    gaps_s = []
    for _ in range(num_tokens):
        began_s = time.perf_counter()
        engine.worker.step()
        gaps_s.append(time.perf_counter() - began_s)
    return gaps_s


def _consult_s(engine: Engine, num: int) -> list[float]:
    """Seconds of a step with nothing to do: reading, policy, guard, status."""
    took_s = []
    while engine.mailbox.status.load.running:
        engine.worker.step()
    for _ in range(num):
        began_s = time.perf_counter()
        engine.worker.step()
        took_s.append(time.perf_counter() - began_s)
    return took_s


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    main()
