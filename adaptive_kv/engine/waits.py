"""How long clients wait: for the first token of a request, and for each one after it."""

from adaptive_kv.engine.tally import Durations

FIRST_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NEXT_BOUNDS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Waits:
    """Fed as replies arrive, in one thread; times are monotonic seconds."""

    def __init__(self) -> None:
        self.first = Durations(FIRST_BOUNDS_S)
        self.next = Durations(NEXT_BOUNDS_S)
        self._posted_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}

    @property
    def num_waiting(self) -> int:
        """How many requests may still get a token."""
        return len(self._posted_s | self._last_s)

    def begin(self, request_id: str, now_s: float) -> None:
        """A request was posted."""
        self._posted_s[request_id] = now_s

    def token(self, request_id: str, now_s: float) -> None:
        """A token of it came; of a request that has ended it counts for nothing."""
        if (posted_s := self._posted_s.pop(request_id, None)) is not None:
            self.first.add(now_s - posted_s)
        elif (last_s := self._last_s.get(request_id)) is not None:
            self.next.add(now_s - last_s)
        else:
            return
        self._last_s[request_id] = now_s

    def end(self, request_id: str) -> None:
        """Nothing more comes of it."""
        self._posted_s.pop(request_id, None)
        self._last_s.pop(request_id, None)
