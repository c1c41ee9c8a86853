"""Progress shown where somebody looks: on a terminal, to systemd, or else in the log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from adaptive_kv.cli.notify import is_supervised, notify_news
from adaptive_kv.progress import Progress, Tell

_STATUS_S, _FIRST_LINE_S, _LINE_S = 1.0, 5.0, 10.0
_EXTENSION_S = 5 * 60
"""systemd gives up so long after the last progress, but not before `TimeoutStartSec`."""
_log = structlog.get_logger(__name__)


@contextmanager
def shown_progress() -> Iterator[Tell]:
    """Show what is told meanwhile; any thread may tell."""
    lock = threading.Lock()
    pace = Pace()
    with ExitStack() as shown:
        shows: list[Callable[[Progress, float | None], None]] = []
        if sys.stderr.isatty():
            shows.append(shown.enter_context(_on_terminal()))
        else:
            shows.append(_InLog())
        if is_supervised():
            shows.append(_ToSystemd())

        def tell(progress: Progress) -> None:
            with lock:
                left_s = pace.left_s(progress, time.monotonic())
                for show in shows:
                    show(progress, left_s)

        yield tell


class Pace:
    """Estimates the time left of a task from how it went so far."""

    def __init__(self) -> None:
        self._task, self._first_s, self._first = "", 0.0, 0.0

    def left_s(self, progress: Progress, now_s: float) -> float | None:
        """None where nobody can say yet."""
        if progress.task != self._task:
            self._task, self._first_s, self._first = progress.task, now_s, progress.done
        done = progress.done - self._first
        if progress.total is None or done <= 0:
            return None
        return (now_s - self._first_s) / done * max(0.0, progress.total - progress.done)


def describe(progress: Progress, left_s: float | None) -> str:
    """In a line: `downloading: 1.2 of 4.1 GiB, 3 min left`."""
    parts = [part for part in (_amount(progress), _left(left_s)) if part]
    return progress.task + (f": {', '.join(parts)}" if parts else "")


def _amount(progress: Progress) -> str:
    if not progress.total:
        return ""
    done, total = progress.done, progress.total
    if progress.unit == "seconds":
        return f"{100 * done / total:.0f} %"
    if progress.unit == "tokens":
        return f"{done:.0f} of {total:.0f} tokens"
    scale, unit = next(
        (2**power, unit)
        for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B"))
        if total >= 2**power
    )
    return f"{done / scale:.1f} of {total / scale:.1f} {unit}"


def _left(left_s: float | None) -> str:
    if left_s is None or left_s < 1:
        return ""
    return f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left"


@contextmanager
def _on_terminal() -> Iterator[Callable[[Progress, float | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def show(progress: Progress, left_s: float | None) -> None:
            text = describe(progress, left_s)
            bars.update(bar, description=text, completed=progress.done, total=progress.total)

        yield show


class _ToSystemd:
    """As STATUS=, with more time to start for as long as there is progress."""

    def __init__(self) -> None:
        self._task, self._told_s = "", 0.0

    def __call__(self, progress: Progress, left_s: float | None) -> None:
        now_s = time.monotonic()
        if progress.task == self._task and now_s - self._told_s < _STATUS_S:
            return
        self._task, self._told_s = progress.task, now_s
        text = describe(progress, left_s)
        notify_news(f"STATUS={text}\nEXTEND_TIMEOUT_USEC={_EXTENSION_S * 10**6}")


class _InLog:
    """A line now and then for what takes long; nothing for what is done in a moment."""

    def __init__(self) -> None:
        self._task, self._due_s = "", 0.0

    def __call__(self, progress: Progress, left_s: float | None) -> None:
        now_s = time.monotonic()
        if progress.task != self._task:
            self._task, self._due_s = progress.task, now_s + _FIRST_LINE_S
        elif now_s >= self._due_s:
            self._due_s = now_s + _LINE_S
            _log.info("progress", task=progress.task, text=describe(progress, left_s))
