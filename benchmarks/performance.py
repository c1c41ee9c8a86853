"""Makes all pages anew from their figures, and fills the bars into docs/performance.md.

Nothing is measured. What is written by hand around the marked table of the bars stays.

    python benchmarks/performance.py                    rewrites the pages
    python benchmarks/performance.py --check            exit status 1 where a bar is not met
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import contexts_report
import curve_report
import served_report
import streams_report
import switches_report
from page import DOCS, FOLDER, Report, table, times

_BLOCK = re.compile(r"(<!-- bars -->\n).*?(<!-- /bars -->)", re.DOTALL)
_PACKED = ("int8", "int4")
_MODES = ("full", *_PACKED)
_BATCHING = "transformers serve, batching"
_FASTER = 1.005
"""From here on two decimals show more than one."""

_PAGES = {
    "contexts": contexts_report.render,
    "curve": curve_report.render,
    "streams": streams_report.render,
    "served": served_report.render,
    "switches": switches_report.render,
}

Cases = Mapping[str, Report]
"""Of one benchmark, by name."""
Ratio = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked for, and what was measured; `is_met` is None where nothing was."""

    asked: str
    figure: str = "not measured"
    is_met: bool | None = None


def main(arguments: Sequence[str]) -> int:
    """Rewrite the pages that there are figures for, and the table between the marks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", type=Path, default=FOLDER)
    parser.add_argument("--pages", type=Path, default=FOLDER)
    parser.add_argument("--document", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--check", action="store_true", help="fail where a bar is not met")
    options = parser.parse_args(arguments)
    reports = dict(_read(options.figures))
    for name, report in reports.items():
        page = options.pages / f"{name}.md"
        page.write_text(_PAGES[name](report, page), "utf-8")
    bars = all_bars(reports)
    text = options.document.read_text("utf-8")
    filled = _BLOCK.sub(lambda found: f"{found[1]}{_table(bars)}\n{found[2]}", text)
    options.document.write_text(filled, "utf-8")
    missed = [bar for bar in bars if bar.is_met is False]
    for bar in missed:
        print(f"not met: {bar.asked}: {bar.figure}")
    return int(options.check and bool(missed))


def _read(folder: Path) -> Iterator[tuple[str, Report]]:
    for name in _PAGES:
        file = folder / f"{name}.json"
        if file.exists():
            yield name, json.loads(file.read_text("utf-8"))


def all_bars(reports: Mapping[str, Report]) -> list[Bar]:
    """Every bar of the CPU, in the order of the document."""
    bars: list[Bar] = []
    for name, made in _BARS.items():
        cases = reports.get(name, {"cases": []})["cases"]
        bars += made({case["name"]: case for case in cases})
    return bars


def _contexts(cases: Cases) -> Iterator[Bar]:
    def against(context: int, mode: str, other: str | None) -> Ratio | None:
        found: Ratio | None = cases.get(str(context), {}).get("ratios", {}).get(mode, {}).get(other)
        return found

    step = "decode step, one sequence:"
    at_16k = cases.get("16384")
    best = contexts_report.best_quantized(at_16k) if at_16k else None
    for least, context in ((2.0, 16384), (1.0, 1024)):
        asked = f"{step} `full` at least {least:g}x `DynamicCache` at {context // 1024}k"
        yield _at_least(asked, least, {"full": against(context, "full", "DynamicCache")})
    longer = [context for context in map(int, cases) if context >= 2048]
    for mode in _PACKED:
        found = {f"{c // 1024}k": against(c, mode, "full") for c in longer}
        yield _at_least(f"{step} `{mode}` not slower than our `full` from 2k up", 1.0, found)
    packed = {mode: against(16384, mode, "DynamicCache") for mode in _PACKED}
    yield _at_least(f"{step} packed at least 2.5x `DynamicCache` at 16k", 2.5, packed)
    packed = {mode: against(16384, mode, best) for mode in _PACKED}
    yield _at_least(f"{step} packed at least 3.5x the best `QuantizedCache` at 16k", 3.5, packed)


def _streams(cases: Cases) -> Iterator[Bar]:
    ratios = cases.get("8", {}).get("ratios", {})
    found = {mode: ratios.get(mode, {}).get("continuous batching") for mode in _MODES}
    asked = "8 streams: at least 1.5x transformers' continuous batching in tokens per CPU second"
    yield _at_least(asked, 1.5, found)


def _served(cases: Cases) -> Iterator[Bar]:
    def against(case: str, mode: str, other: str) -> Ratio | None:
        ratios = cases.get(case, {}).get("ratios", {})
        found: Ratio | None = ratios.get(f"ours, {mode}", {}).get(other)
        return found

    for case in ("float32, alone", "float32, 8 streams"):
        found = {mode: against(case, mode, _BATCHING) for mode in _MODES}
        asked = f"served, {case}: at least 1.5x `transformers serve` with continuous batching"
        yield _at_least(asked, 1.5, found)
    found = {mode: against("bfloat16, 8 streams", mode, "vLLM") for mode in _MODES}
    yield _at_least("served, bfloat16, 8 streams: at least vLLM", 1.0, found)
    for case in ("float32, alone, 6k", "bfloat16, alone, 6k"):
        found = {mode: against(case, mode, "ours, full") for mode in _PACKED}
        yield _at_least(f"served, {case}: packed modes faster than our `full`", _FASTER, found)


def _switches(cases: Cases) -> Iterator[Bar]:
    asked = "p99 between two tokens during a switch within 2x of the quiet median"
    ratios = {name: case["p99_of_quiet"] for name, case in cases.items()}
    if not ratios:
        yield Bar(asked)
        return
    above = [name for name, ratio in ratios.items() if ratio["cpu"] > 2.0]
    worst = max(ratios, key=lambda name: ratios[name]["cpu"])
    figure = f"worst: {worst}, {times(ratios[worst])}; above: {len(above)} of {len(ratios)} kinds"
    yield Bar(asked, figure, not above)


_BARS: Mapping[str, Callable[[Cases], Iterator[Bar]]] = {
    "contexts": _contexts,
    "streams": _streams,
    "served": _served,
    "switches": _switches,
}
"""By the benchmark whose figures they are made of."""


def _at_least(asked: str, least: float, found: Mapping[str, Ratio | None]) -> Bar:
    """A bar that CPU time decides."""
    seen = {name: ratio for name, ratio in found.items() if ratio is not None}
    if not seen:
        return Bar(asked)
    figure = ", ".join(f"{name} {times(ratio)}" for name, ratio in seen.items())
    return Bar(asked, figure, all(ratio["cpu"] >= least for ratio in seen.values()))


def _table(bars: Sequence[Bar]) -> str:
    verdicts = {True: "met", False: "**not met**", None: ""}
    rows = ([bar.asked, bar.figure, verdicts[bar.is_met]] for bar in bars)
    return table(["bar", "measured", ""], rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
