"""The report of a run: one HTML file that needs nothing else."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from adaptive_kv.demo.charts import (
    Across,
    kind,
    latency_chart,
    memory_chart,
    modes_chart,
    squeeze_chart,
)
from adaptive_kv.demo.screen import describe
from adaptive_kv.demo.timeline import SWITCH_TYPE, Summary, Timeline

_MIB = 2**20
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2024; --faint: #687076; --line: #e4e7ea;
  --card: #f6f7f8; --free: #d4e4f4; --cache: #2f74b5; --held: #a58bc4; --floor: #b3364e;
  --full: #3f82bd; --int8: #e3ab2c; --int4: #d8702f; --window: #a8324c; --disabled: #74518f;
  --idle: #b9c0c6; --on: #fff; --p50: #2f74b5; --p95: #a9b4bd; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e9eb; --faint: #96a0a8;
  --line: #2a3036; --card: #1c2125; --free: #22384d; --cache: #5da3e2; --held: #8d76ad;
  --floor: #e8748b; --full: #4c93d1; --int8: #d8a533; --int4: #d3763c; --window: #c74d68;
  --disabled: #9a78b8; --idle: #59636b; --p50: #5da3e2; --p95: #5f6c76; } }
body { margin: 0 auto; padding: 28px 24px 60px; max-width: 1040px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 30px 0 6px; }
p { margin: 0 0 12px; color: var(--faint); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 6px; }
.tiles div { background: var(--card); border-radius: 8px; padding: 9px 14px; flex: 1 0 96px; }
.tiles b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.tiles span, .legend { color: var(--faint); font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin: 0 5px 0 14px; vertical-align: -1px; } .legend i:first-child { margin-left: 0; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .floor { stroke: var(--floor); stroke-width: 2; }
svg .axis { fill: var(--faint); text-anchor: end; }
svg .time { fill: var(--faint); text-anchor: middle; }
svg .mark { stroke: var(--faint); stroke-dasharray: 2 4; }
svg .phase { fill: var(--text); font-weight: 600; }
svg .on { fill: var(--on); font-weight: 600; } svg path { fill: none; }
svg .free { fill: var(--free); } svg .cache { fill: var(--cache); } svg .held { fill: var(--held); }
svg .p50 { stroke: var(--p50); stroke-width: 2; }
svg .p95 { stroke: var(--p95); stroke-width: 1.5; }
.full { fill: var(--full); background: var(--full); }
.int8 { fill: var(--int8); background: var(--int8); }
.int4 { fill: var(--int4); background: var(--int4); }
.window { fill: var(--window); background: var(--window); }
.disabled { fill: var(--disabled); background: var(--disabled); }
.waiting, .parked { fill: var(--idle); background: var(--idle); }
i.free { background: var(--free); } i.cache { background: var(--cache); }
i.held { background: var(--held); }
i.p50 { background: var(--p50); } i.p95 { background: var(--p95); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); }
td:first-child { font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--faint); }
"""


def write_report(file: Path, timeline: Timeline, summary: Summary) -> None:
    """Write `file`, replacing it."""
    file.write_text(make_report(timeline, summary), "utf-8")


def make_report(timeline: Timeline, summary: Summary) -> str:
    """The whole page."""
    across = Across(timeline.end_s)
    modes = {mode for sample in timeline.samples for mode in sample.modes.values()}
    shown = [mode for mode in summary.modes_seen if mode in modes]
    shown += sorted(modes.difference(shown))
    sections = (
        _section(
            "Memory above the floor",
            _legend([("cache", "the service's cache"), ("free", "free")]),
            memory_chart(timeline, across),
        ),
        _section("Taken by the second process", "", squeeze_chart(timeline, across)),
        _section(
            "Mode of every sequence",
            _legend((kind(mode), mode) for mode in shown),
            modes_chart(timeline, across),
        ),
        _section(
            "Wait for a token, as clients saw it",
            _legend([("p50", "median"), ("p95", "slowest twentieth")]),
            latency_chart(timeline, across),
        ),
        _section("What happened", "", _table(timeline)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>adaptive-kv: a squeeze</title><style>{_STYLE}</style></head><body>"
        f"<h1>adaptive-kv under a squeeze</h1><p>{escape(_headline(timeline))}</p>"
        f"{_tiles(summary, timeline)}{''.join(sections)}</body></html>\n"
    )


def _headline(timeline: Timeline) -> str:
    heard = (
        f"An MQTT subscriber heard {timeline.num_mqtt_states} states and "
        f"{timeline.num_mqtt_events} events."
        if timeline.has_broker
        else "No broker was there to listen."
    )
    return (
        f"Clients keep the service busy on {timeline.device or 'a device'} while a second process "
        f"takes the memory away and gives it back (measured by {timeline.memory_source}). {heard}"
    )


def _tiles(summary: Summary, timeline: Timeline) -> str:
    tiles = (
        (f"{summary.completed} / {summary.requests}", "requests completed"),
        (f"{summary.failed}", "failed"),
        (f"{summary.oom}", "out of memory"),
        (f"{summary.switches}", "switches"),
        (f"{timeline.most_running}", "sequences at once"),
        (f"{summary.peak_cache_bytes / _MIB:.0f} MiB", "cache at its peak"),
        (f"{summary.tokens_per_s:.0f}", "tokens/s"),
    )
    inside = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    return f'<div class="tiles">{inside}</div>'


def _section(title: str, legend: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{legend}{body}</section>"


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    marks = "".join(f'<i class="{escape(css)}"></i>{escape(label)}' for css, label in entries)
    return f'<div class="legend">{marks}</div>'


def _table(timeline: Timeline) -> str:
    """Phases and events in order; sequences that switched with the service are not listed."""
    told = [(phase.time_s, f"phase: {phase.name}") for phase in timeline.phases]
    told += [(h.time_s, describe(h)) for h in timeline.happenings if h.type != SWITCH_TYPE]
    rows = "".join(
        f"<tr><td>{time_s:.1f} s</td><td>{escape(text)}</td></tr>" for time_s, text in sorted(told)
    )
    return f"<table>{rows}</table>"
