"""What really happened, in the same figures as a replay."""

from adaptive_kv.policy import CacheMode
from adaptive_kv.replay.course import Course
from adaptive_kv.replay.figures import Figures, Ledger
from adaptive_kv.trace import Header, Moment


class Record:
    """Adds up the moments of a trace as they were recorded."""

    def __init__(self, header: Header, course: Course | None = None) -> None:
        self._header = header
        self._course = course
        self._ledger = Ledger()
        self._last: Moment | None = None

    def step(self, moment: Moment) -> None:
        """The next moment."""
        last, self._last = self._last, moment
        if last is not None:
            self._compare(last, moment)
        if self._course is not None:
            modes = [each.mode for each in moment.sequences]
            place = (moment.time_s, moment.free_bytes, moment.floor_bytes, moment.cache_bytes)
            self._course.add(*place, modes)

    def figures(self) -> Figures:
        """What it came to so far."""
        return self._ledger.figures("recorded", self._header.ladder, is_record=True)

    def _compare(self, last: Moment, moment: Moment) -> None:
        ledger = self._ledger
        ledger.spend(
            moment.time_s - last.time_s,
            (last.free_bytes - last.floor_bytes, moment.free_bytes - moment.floor_bytes),
            (last.cache_bytes, moment.cache_bytes),
        )
        ledger.counts["mode_changes"] += moment.mode != last.mode
        before = {each.number: each for each in last.sequences}
        for now in moment.sequences:
            then = before.get(now.number)
            if then is None:
                continue
            ledger.generate(max(0, now.num_tokens - then.num_tokens), now.mode, is_exact=now.exact)
            if now.mode != then.mode:
                is_up = self._place(now.mode) < self._place(then.mode)
                ledger.counts["switches_up" if is_up else "switches_down"] += 1

    def _place(self, mode: CacheMode) -> int:
        ladder = self._header.ladder
        return ladder.index(mode) if mode in ladder else len(ladder)
