"""How `watch` looks: a table of boxes, details where there is but one, and the last events."""

import time
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from adaptive_kv.documents import StateDocument
from adaptive_kv.mqtt.fleet import Box, Fleet, Notice, local_time

_GIB, _MIB = 2**30, 2**20
_BLOCKS = "▁▂▃▄▅▆▇█"
_NOT_NARROW, _WIDE = 96, 118
"""Columns from which on more, and everything, is shown."""
_BAR, _TREND = 12, 16
_MIN_EVENTS = 5
_NUM_HEAD_LINES, _NUM_DETAIL_LINES = 8, 9
_STYLES = {
    "failed": "bold red",
    "offline": "bold red",
    "unreadable": "red",
    "degraded": "yellow",
    "floor": "red",
    "pressure": "yellow",
    "draining": "cyan",
    "ok": "green",
}
_WORDS = {"floor": "floor broken", "pressure": "high pressure"}
_MODES = {
    "full": "green",
    "int8": "cyan",
    "int4": "bright_blue",
    "window": "magenta",
    "disabled": "red",
}
_BAD = {"oom", "oom_averted", "policy_fault", "sensor_fault", "request_rejected", "sequence_parked"}


def view(fleet: Fleet, url: str, why_not: str | None, size: ConsoleDimensions) -> RenderableType:
    """The whole screen; `why_not` is why the broker is not heard at this moment."""
    boxes = fleet.by_trouble()
    shown = boxes[: max(1, size.height // 2)]
    parts: list[RenderableType] = [_header(url, boxes, why_not)]
    num_taken = _NUM_HEAD_LINES + len(shown)
    if shown:
        parts.append(_table(shown, size.width))
    if len(boxes) == 1:
        parts.append(_detail(boxes[0], size.width))
        num_taken += _NUM_DETAIL_LINES
    parts.append(_events(list(fleet.notices)[-max(_MIN_EVENTS, size.height - num_taken) :]))
    return Group(*parts)


def line(notice: Notice) -> str:
    """One notice for a log or a pipe."""
    return clean(f"{notice.time} {notice.node} {notice.what}  {notice.text}".rstrip())


def clean(text: str) -> str:
    """What came over the network, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _header(url: str, boxes: list[Box], why_not: str | None) -> Text:
    num_troubled = sum(bool(box.troubles) for box in boxes)
    number = "1 box" if len(boxes) == 1 else f"{len(boxes)} boxes"
    header = Text.assemble(("adaptive-kv ", "bold"), f"{clean(url)}  {number}")
    if num_troubled:
        header.append(f", {num_troubled} in trouble", "yellow")
    if why_not is not None:
        header.append(f"  broker away: {clean(why_not)}", "bold red")
    elif not boxes:
        header.append("  nobody has been heard yet", "dim")
    return header


def _table(boxes: Iterable[Box], width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=width >= _WIDE)
    for name in ("box", "health", "mode", "memory free"):
        table.add_column(name, no_wrap=True)
    if width >= _NOT_NARROW:
        table.add_column("p50, p95 ms", no_wrap=True)
        table.add_column("run, wait", no_wrap=True)
    if width >= _WIDE:
        table.add_column("pressure", no_wrap=True, width=_TREND)
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for box in boxes:
        cells = _cells(box)[: len(table.columns)]
        table.add_row(*cells, style="dim" if "offline" in box.troubles else None)
    return table


def _cells(box: Box) -> list[Text]:
    """What matters most comes first."""
    names = [Text(box.node, "bold"), _health(box)]
    if box.state is None:
        return names
    state = box.state
    load = Text(f"{state.load.running}, {state.load.waiting}")
    measured = [_mode(state), _memory(box, state), _latency(state), load]
    return [*names, *measured, trend(box, _TREND), Text(clean(state.reason.text))]


def _health(box: Box) -> Text:
    troubles = box.troubles
    if not troubles:
        return Text("ok" if box.state is not None else "?", _STYLES["ok"])
    words = [Text(_WORDS.get(trouble, trouble), _STYLES[trouble]) for trouble in troubles]
    return Text(", ").join(words)


def _mode(state: StateDocument) -> Text:
    mode = Text(state.mode, _style(state.mode))
    if state.pinned:
        mode.append(" held", "bold")
    return mode


def _style(mode: str) -> str:
    return _MODES[mode.partition(":")[0]]


def _memory(box: Box, state: StateDocument) -> Text:
    """A bar of what is used, what is free, and what is to be left free."""
    memory = state.memory
    total = max(1, memory.total_bytes)
    used = min(_BAR, max(0, round(_BAR * (total - memory.free_bytes) / total)))
    floor = min(_BAR - used, round(_BAR * memory.floor_bytes / total))
    worst = next((trouble for trouble in box.troubles if trouble in {"floor", "pressure"}), "ok")
    bar = Text("█" * used, _STYLES[worst])
    bar.append("·" * (_BAR - used - floor)).append("░" * floor, "dim")
    return bar.append(f" {_size(memory.free_bytes)}")


def _latency(state: StateDocument) -> Text:
    figures = (state.latency.token_p50_s, state.latency.token_p95_s)
    return Text(", ".join("-" if figure is None else f"{figure * 1e3:.0f}" for figure in figures))


def trend(box: Box, width: int) -> Text:
    """Pressure over the last states, each in the color of its mode; the newest to the right."""
    shown = Text()
    for mode, pressure in list(box.history)[-width:]:
        level = min(len(_BLOCKS) - 1, max(0, int(pressure * len(_BLOCKS))))
        shown.append(_BLOCKS[level], _style(mode))
    return shown


def _detail(box: Box, width: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for label, text in _details(box, width):
        grid.add_row(label, text)
    return grid


def _details(box: Box, width: int) -> Iterable[tuple[str, Text]]:
    if box.info is not None:
        info = box.info
        model = (
            f"{info.model} on {info.device}, adaptive-kv {info.versions.get('adaptive-kv', '?')}"
        )
        yield "model", Text(clean(model))
        yield "ladder", Text(", ").join(Text(mode, _style(mode)) for mode in info.ladder)
    if box.unreadable is not None:
        yield "unreadable", Text(clean(box.unreadable), _STYLES["unreadable"])
    if box.state is None:
        return
    state, memory = box.state, box.state.memory
    held = "held by hand" if state.pinned else f"as {state.policy.name} decides"
    yield "mode", Text(clean(f"{state.mode} for {_duration(state.mode_age_s)}, {held}"))
    yield "policy", Text(clean(f"{state.policy.status}, {state.policy.faults} faults so far"))
    counts = [f"{count} in {mode}" for mode, count in state.sequences.items() if count]
    yield "sequences", Text(", ".join(counts) or "none")
    sizes = [f"{_size(memory.cache_bytes)} cache", f"{_size(memory.weights_bytes)} weights"]
    sizes += [f"{_size(memory.floor_bytes)} floor", f"{_size(memory.total_bytes)} in all"]
    source = f"says {memory.source}, {memory.sample_age_s:.1f} s ago"
    yield "memory", Text(clean(f"{', '.join(sizes)}; {source}"))
    untold = f"{state.dropped_events} dropped, {state.suppressed_events} suppressed"
    heard = f"heard {time.monotonic() - box.heard_s:.0f} s ago"
    yield "events", Text(f"{untold}; state {state.seq} of boot {clean(state.boot_id)}, {heard}")
    yield "pressure", trend(box, max(10, width - 14))


def _events(notices: Iterable[Notice]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("at", "box", "what"):
        table.add_column(name, no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for notice in notices:
        what = notice.what
        style = "red" if what in _BAD else _STYLES.get(what, "")
        cells = (Text(local_time(notice.time), "dim"), Text(notice.node), Text(clean(what), style))
        table.add_row(*cells, Text(clean(notice.text)))
    return table


def _size(num_bytes: int) -> str:
    if abs(num_bytes) >= _GIB:
        return f"{num_bytes / _GIB:.1f} GiB"
    return f"{num_bytes / _MIB:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
