"""What the page is shown of the minutes before it was opened."""

import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from adaptive_kv.engine.status import Status

PERIOD_S = 2.0
_NUM_KEPT = 300


class History:
    """A few figures of every other second of the last ten minutes; one thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._samples: deque[str] = deque(maxlen=_NUM_KEPT)

    def note(self, status: Status) -> None:
        """Keep what `status` says."""
        self._samples.append(json.dumps(_sample(status, self._clock()), separators=(",", ":")))

    def to_json(self, **facts: str | int | None) -> str:
        """`facts` that do not change, and the samples, oldest first."""
        return f'{json.dumps(facts)[:-1]}, "samples": [{",".join(self._samples)}]}}'


def _sample(status: Status, time_s: float) -> dict[str, Any]:
    """The words of the state document, and the mode of every sequence that holds a place."""
    shown = (sequence for sequence in status.sequences if sequence.state != "waiting")
    return {
        "time_s": round(time_s, 3),
        "mode": status.mode,
        "free_bytes": status.memory.free_bytes,
        "floor_bytes": status.memory.floor_bytes,
        "cache_bytes": status.memory.cache_bytes,
        "token_p50_s": status.latency.p50_s,
        "token_p95_s": status.latency.p95_s,
        "modes": {s.id: "parked" if s.state == "parked" else s.mode for s in shown},
    }
