"""What a switch costs whoever waits for the next token of a long sequence.

For every pair of modes a live sequence decodes in one, is switched to the other, and decodes on;
the time between two tokens until the switch is over is held against what it was before. The past is
noise instead of a prefill. Healing, which computes in idle capacity what was lost, is measured too.

    python benchmarks/switches.py                       about 3 minutes on an idle core
    python benchmarks/switches.py --modes full int4 --keep
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from decode_contenders import Ours
from decode_models import Pair, load_pair
from page import Report
from running import make_parser, run
from switches_report import render

_MODES = ("full", "int8", "int4", "window:1024", "window:1024+int4")
_HEALED = "int4 to full, healing"
_MAX_STEPS = 5000


@dataclass(slots=True)
class _Gaps:
    """Seconds between two tokens: on the clock, and of the worker's CPU time."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add_step(self, ours: Ours) -> None:
        before = len(ours.outputs[0])
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        ours.step()
        self.wall_s.append(time.perf_counter() - wall_s)
        self.cpu_s.append(time.thread_time() - cpu_s)
        assert len(ours.outputs[0]) == before + 1, "the sequence stood still"


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every pair, then the page."""
    parser = make_parser(__doc__, "switches", 4)
    parser.add_argument("--modes", nargs="+", default=_MODES)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--heal-context", type=int, default=2048)
    parser.add_argument("--quiet-steps", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.quick:
        options.modes, options.rounds, options.quiet_steps = ("full", "int4"), 2, 4
        options.context, options.heal_context = 512, 256
    run(options, _measure, render)


def _measure(options: argparse.Namespace) -> Iterator[Report]:
    pair = load_pair("tiny" if options.quick else "llama-62m")
    for from_mode, to_mode in itertools.permutations(options.modes, 2):
        quiet, during = _Gaps(), _Gaps()
        for _ in range(options.rounds):
            ours = _start(pair, from_mode, options.context, options.modes, heal=False)
            _decode(ours, options.quiet_steps, quiet)
            _switch(ours, to_mode, during, lambda ours: ours.is_settled)
            ours.close()
        name = f"{from_mode} to {to_mode}"
        yield {"name": name, "context": options.context, **_figures(quiet, during)}
    if {"full", "int4"} <= set(options.modes):
        yield _heal(pair, options)


def _heal(pair: Pair, options: argparse.Namespace) -> Report:
    quiet, during = _Gaps(), _Gaps()
    ours = _start(pair, "int4", options.heal_context, ("full", "int4"), heal=True)
    _switch(ours, "full", _Gaps(), lambda ours: ours.is_settled)
    _switch(ours, "full", during, lambda ours: ours.are_exact)
    _decode(ours, options.quiet_steps, quiet)  # of the same form as while it was healed
    ours.close()
    return {"name": _HEALED, "context": options.heal_context, **_figures(quiet, during)}


def _start(pair: Pair, mode: str, context: int, ladder: Sequence[str], *, heal: bool) -> Ours:
    sections = {
        "cache": {"ladder": tuple(dict.fromkeys(("full", *ladder))), "heal": heal},
        "policy": {"name": "fixed", "options": {"mode": mode}, "min_dwell_s": 0.0},
    }
    ours = Ours(pair.ours, mode, [[5] * context], 2 * context, is_filled=True, sections=sections)
    assert ours.modes == {mode}, "it decodes in another mode"
    return ours


def _decode(ours: Ours, num_steps: int, gaps: _Gaps) -> None:
    for _ in range(num_steps):
        gaps.add_step(ours)


def _switch(ours: Ours, mode: str, gaps: _Gaps, is_over: Callable[[Ours], bool]) -> None:
    """Every step from the one that begins the switch to the one that ends it."""
    ours.pin(mode)
    for _ in range(_MAX_STEPS):
        gaps.add_step(ours)
        if ours.modes == {mode} and is_over(ours):
            return
    raise AssertionError(f"the switch to {mode} does not end")


def _figures(quiet: _Gaps, during: _Gaps) -> Report:
    wall_s, cpu_s = statistics.median(quiet.wall_s), statistics.median(quiet.cpu_s)
    return {
        "num_steps": len(during.wall_s),
        "quiet_p50_ms": round(wall_s * 1e3, 2),
        "p50_ms": round(_quantile(during.wall_s, 0.5) * 1e3, 2),
        "p99_ms": round(_quantile(during.wall_s, 0.99) * 1e3, 2),
        "p99_of_quiet": {
            "wall": round(_quantile(during.wall_s, 0.99) / wall_s, 3),
            "cpu": round(_quantile(during.cpu_s, 0.99) / cpu_s, 3),
        },
    }


def _quantile(values: Sequence[float], share: float) -> float:
    """The least value that so many are not above: of few steps the slowest."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main(sys.argv[1:])
