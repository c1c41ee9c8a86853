"""What a listener knows of all nodes from what they publish: how each is, and what happened lately.

Nothing that comes in is trusted: unknown fields are borne, what cannot be read is said to be so,
and how much is kept is bounded.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from adaptive_kv.documents import Document, EventDocument, InfoDocument, StateDocument, rfc3339
from adaptive_kv.mqtt.topics import is_node

_TROUBLES = ("failed", "offline", "unreadable", "degraded", "floor", "pressure", "draining")
"""What is looked at first comes first."""
_HIGH_PRESSURE = 0.9
_MAX_BOXES = 4096
_MAX_NOTICES = 200
_MAX_HISTORY = 120
_MIB = 2**20
DocumentT = TypeVar("DocumentT", bound=Document)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth a line. `time` is RFC 3339, by the clock of the node."""

    time: str
    node: str
    what: str
    """An event's type, `online`, `offline`, a health, or `restarted`."""
    text: str


@dataclass(slots=True)
class Box:
    """One node, as far as it has been heard."""

    node: str
    availability: str | None = None
    info: InfoDocument | None = None
    state: StateDocument | None = None
    heard_s: float = 0.0
    """When the state came, by the listener's monotonic clock."""
    unreadable: str | None = None
    """Why its last document could not be read."""
    history: deque[tuple[str, float]] = field(default_factory=lambda: deque(maxlen=_MAX_HISTORY))
    """Modes with pressures of the last states, oldest first."""
    last_event: tuple[str, int] | None = None
    """`boot_id` and `seq`."""

    @property
    def pressure(self) -> float:
        """As policies see it: over 1 when the floor is broken; 0 while nothing is known."""
        return _pressure(self.state) if self.state is not None else 0.0

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong, the worst first."""
        found = {"unreadable"} if self.unreadable else set[str]()
        if self.availability == "offline":
            found.add("offline")
        if self.state is not None:
            found |= {self.state.health.value}
        if "offline" not in found:
            found |= {"floor"} if self.pressure > 1 else set()
            found |= {"pressure"} if _HIGH_PRESSURE <= self.pressure <= 1 else set()
        return tuple(trouble for trouble in _TROUBLES if trouble in found)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "node": self.node,
            "troubles": list(self.troubles),
            "availability": self.availability,
            "info": self.info and self.info.model_dump(mode="json"),
            "state": self.state and self.state.model_dump(mode="json"),
        }


class Fleet:
    """Every node that was heard below `base`."""

    def __init__(self, base: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        """The newest last."""
        self.boxes: dict[str, Box] = {}
        self._prefix = f"{base}/v1/"
        self._clock = clock
        self._takers: dict[str, Callable[[Box, bytes], list[Notice]]] = {
            "availability": _take_availability,
            "info": _take_info,
            "state": self._take_state,
            "event": _take_event,
        }

    def by_trouble(self) -> list[Box]:
        """The boxes, those first that somebody should look at."""
        return sorted(self.boxes.values(), key=_urgency)

    def take(self, topic: str, payload: bytes) -> list[Notice]:
        """A message that was heard; answers what is new about it."""
        node, _, kind = topic.removeprefix(self._prefix).partition("/")
        if not topic.startswith(self._prefix) or kind not in self._takers or not is_node(node):
            return []
        if node not in self.boxes and len(self.boxes) >= _MAX_BOXES:
            return []
        box = self.boxes.setdefault(node, Box(node))
        try:
            notices = self._takers[kind](box, payload) if payload else []
            box.unreadable = None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            box.unreadable, notices = f"{kind} {place}: {first['msg']}", []
        self.notices.extend(notices)
        return notices

    def _take_state(self, box: Box, payload: bytes) -> list[Notice]:
        before, now = box.state, _read(StateDocument, payload)
        if before is not None and before.boot_id == now.boot_id and before.seq > now.seq:
            return []
        box.state, box.heard_s = now, self._clock()
        box.history.append((now.mode, _pressure(now)))
        if before is not None and before.boot_id != now.boot_id:
            return [Notice(now.time, box.node, "restarted", _health_text(now))]
        if before is None or before.health != now.health:
            return [Notice(now.time, box.node, now.health.value, _health_text(now))]
        return []


def _take_availability(box: Box, payload: bytes) -> list[Notice]:
    before, now = box.availability, "online" if payload == b"online" else "offline"
    box.availability = now
    return [] if before == now else [Notice(rfc3339(time.time()), box.node, now, "")]


def _take_info(box: Box, payload: bytes) -> list[Notice]:
    box.info = _read(InfoDocument, payload)
    return []


def _take_event(box: Box, payload: bytes) -> list[Notice]:
    event = _read(EventDocument, payload)
    boot_id, seq = box.last_event or ("", 0)
    if boot_id == event.boot_id and event.seq <= seq:
        return []  # told twice, as its confirmation was lost
    num_missing = event.seq - seq - 1 if boot_id == event.boot_id else 0
    box.last_event = event.boot_id, event.seq
    missing = f" [{num_missing} before it not told]" if num_missing else ""
    return [Notice(event.time, box.node, event.type, describe(event) + missing)]


def describe(event: EventDocument) -> str:
    """What happened, in a line without the event's type."""
    words = [event.source or event.policy or ""]
    if event.to is not None:
        words.append(f"{event.from_} → {event.to}" if event.from_ else f"to {event.to}")
    words += [event.reason or "", event.code or "", event.error or ""]
    figures = {
        "sequences": event.sequences if event.sequence is None else None,
        "tokens": event.num_tokens,
        "running": event.running,
        "faults": event.faults,
        "MiB freed": _scaled(event.freed_bytes, 1 / _MIB),
        "MiB needed": _scaled(event.needed_bytes, 1 / _MIB),
        "ms": _scaled(event.duration_s, 1e3),
        "s parked": _scaled(event.parked_s, 1.0),
    }
    told = ", ".join(f"{figure} {name}" for name, figure in figures.items() if figure is not None)
    whose = event.sequence or event.request or ""
    return "  ".join(filter(None, [*words, told and f"({told})", whose]))


def _scaled(figure: float | None, factor: float) -> float | None:
    return None if figure is None else round(figure * factor, 1) + 0.0  # and no -0.0


def local_time(stamp: str) -> str:
    """`HH:MM:SS` on the clock of whoever looks."""
    moment = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return moment.astimezone().strftime("%H:%M:%S")


def _urgency(box: Box) -> tuple[int, float, str]:
    troubles = box.troubles
    rank = _TROUBLES.index(troubles[0]) if troubles else len(_TROUBLES)
    return rank, -box.pressure, box.node


def _pressure(state: StateDocument) -> float:
    memory = state.memory
    usable_bytes = memory.total_bytes - memory.floor_bytes
    used_bytes = memory.total_bytes - memory.free_bytes
    return used_bytes / usable_bytes if usable_bytes > 0 else math.inf


def _health_text(state: StateDocument) -> str:
    return f"{state.mode}, {state.reason.text}"


def _read(model: type[DocumentT], payload: bytes) -> DocumentT:
    """Bears fields that this version does not know. Raises `ValidationError`."""
    return model.model_validate_json(payload, extra="ignore")
