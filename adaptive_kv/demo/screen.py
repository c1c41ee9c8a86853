"""What a run looks like in the terminal, on stderr: live on a terminal, lines otherwise."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adaptive_kv.demo.timeline import Happening, Timeline

MIB = 2**20
_LINE_EVERY_S = 3.0
_BAR_WIDTH = 48
_NUM_EVENTS = 6
STYLES = {"full": "green", "int8": "yellow", "int4": "dark_orange", "window": "red"}


class Screen:
    """Tells and shows; knows no process and no service."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._next_line_s = 0.0
        self._num_told = 0

    def tell(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(Text(text, style="bold"))
        else:
            sys.stderr.write(f"demo: {text}\n")

    def show(self, timeline: Timeline) -> None:
        """The newest sample and what happened lately."""
        if self._live is not None:
            self._live.update(_picture(timeline))
            return
        now = timeline.samples[-1]
        for happening in _changes(timeline)[self._num_told :]:
            sys.stderr.write(f"demo: {happening.time_s:5.1f} s  {describe(happening)}\n")
            self._num_told += 1
        if now.time_s >= self._next_line_s:
            self._next_line_s = now.time_s + _LINE_EVERY_S
            sys.stderr.write(f"demo: {now.time_s:5.1f} s  {_line(timeline)}\n")


@contextmanager
def showing() -> Iterator[Screen]:
    """A screen for as long as a run lasts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Screen(None)
        return
    with Live(console=console, refresh_per_second=5, transient=True) as live:
        yield Screen(live)


def describe(happening: Happening) -> str:
    """An event in words."""
    document = happening.document
    match happening.type:
        case "mode_changed":
            return (
                f"{document['from']} to {document['to']}: {document['sequences']} sequences, "
                f"{abs(document['freed_bytes']) // MIB} MiB "
                f"{'freed' if document['freed_bytes'] >= 0 else 'taken'} "
                f"in {document['duration_s'] * 1000:.0f} ms ({document['reason']})"
            )
        case "oom_averted":
            return f"out of memory averted, now {document['to']}"
        case "sequence_parked":
            return f"a sequence of {document['num_tokens']} tokens is parked"
        case "sequence_resumed":
            return f"a parked sequence runs again after {document['parked_s']:.1f} s"
        case type_:
            return type_.replace("_", " ")


def _changes(timeline: Timeline) -> list[Happening]:
    """What is told one by one: sequences that switched with all others are not."""
    return [h for h in timeline.happenings if h.type != "sequence_switched"]


def _line(timeline: Timeline) -> str:
    now = timeline.samples[-1]
    counts = Counter(now.modes.values())
    modes = ", ".join(f"{count} {mode}" for mode, count in counts.items()) or "idle"
    free_bytes = now.free_bytes - now.floor_bytes
    return (
        f"{modes}; cache {now.cache_bytes // MIB} MiB, {free_bytes // MIB} MiB free above the "
        f"floor, squeeze holds {now.held_bytes // MIB} MiB; {now.tokens_per_s:.0f} tokens/s, "
        f"{len(timeline.answers)} answers"
    )


def _picture(timeline: Timeline) -> RenderableType:
    now = timeline.samples[-1]
    table = Table.grid(padding=(0, 2))
    free_bytes = max(0, now.free_bytes - now.floor_bytes)
    top_bytes = max(s.cache_bytes + max(0, s.free_bytes - s.floor_bytes) for s in timeline.samples)
    held_bytes = max(1, *(s.held_bytes for s in timeline.samples))
    phase = timeline.phases[-1].name if timeline.phases else ""
    table.add_row("squeeze", _bar("magenta", now.held_bytes, held_bytes), _mib(now.held_bytes))
    table.add_row("free", _bar("blue", free_bytes, top_bytes), f"{_mib(free_bytes)} above floor")
    table.add_row("cache", _bar("cyan", now.cache_bytes, top_bytes), _mib(now.cache_bytes))
    for mode, count in sorted(Counter(now.modes.values()).items()):
        style = STYLES.get(mode.partition(":")[0], "bright_black")
        table.add_row(mode, Text("■ " * count, style=style), f"{count} sequences")
    told = [
        Text(f"{h.time_s:6.1f} s  {describe(h)}", style="dim")
        for h in _changes(timeline)[-_NUM_EVENTS:]
    ]
    head = f"{now.time_s:5.1f} s  {phase}: {now.mode}, {now.tokens_per_s:.0f} tokens/s, "
    return Group(Text(f"{head}{len(timeline.answers)} answers", style="bold"), table, *told)


def _bar(style: str, part: int, whole: int) -> Text:
    return Text("█" * round(_BAR_WIDTH * min(1.0, part / max(1, whole))), style=style)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes // MIB} MiB"
