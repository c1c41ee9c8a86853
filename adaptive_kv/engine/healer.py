"""The way back: what a lossy mode has left is recomputed from token ids, in idle capacity.

    tokens    0 ................................................ T
    cache     | exact | what int4 or a window has left ........ |   decodes on
    shadow    | full, exact: a few tokens per step ... >          takes its place once it is there

One sequence at a time gets a shadow, a full cache that begins at its first token: so neither gaps
nor the model's own windows need care. It is given back before anybody goes without anything.
"""

import time
from collections import deque
from collections.abc import Callable

from adaptive_kv.cache import switch
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.batch import check_shortage
from adaptive_kv.engine.gauge import Gauge
from adaptive_kv.engine.scheduler import Chunk, Scheduler
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.events import Event, Healed
from adaptive_kv.policy import Reading

_MAX_TOKENS = 16
"""More are not recomputed in a step that also decodes, however quick they are."""
_MIN_TOKENS = 2
"""With fewer it would never catch up: one more comes with each step."""
_FIRST_TOKENS = 4
"""Of a sequence, until it is known what they take."""
_ROUND = 16
"""Of so many steps one is quiet, which shows what a step takes without healing."""
_NUM_QUIET = 3
"""So many quiet steps come first; of the newest the quickest counts, as whatever else this box does
only ever adds to one."""
_MAX_REST_S = 600.0


class Healer:
    """Gives sequences shadows and swaps them in; `clock` gives monotonic seconds.

    Steps take longer by `max_share` of what they take otherwise: as many tokens are recomputed in
    each as that leaves time for.

    It begins where nobody waits or is prefilled, and memory above the floor has room for twice
    the shadow; and, after the last change of mode, no sooner than after `least_rest_s`. Where
    others put an end to it, it rests that long, and twice as long each further time.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        store: PageStore,
        gauge: Gauge,
        emit: Callable[[Event], None],
        *,
        is_on: bool,
        max_share: float,
        least_rest_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._gauge = gauge
        self._emit = emit
        self._is_on = is_on
        self._max_share = max_share
        self._pace = float(_MAX_TOKENS)
        self._quiet_s: deque[float] = deque(maxlen=_NUM_QUIET)
        self._num_before_quiet = 0
        self._num_new: int | None = None
        """Of the step under way; 0 for a quiet one, None for one that is neither."""
        self._tended_s = 0.0
        self._least_rest_s = least_rest_s
        self._next_rest_s = 0.0
        self._clock = clock
        self._sequence: Sequence | None = None
        self._started_s = 0.0
        self._rests_until_s = float("-inf")

    def tend(self, reading: Reading) -> None:
        """Begin, give way or finish, as `reading` and those who run and wait permit."""
        if not self._is_on:
            return
        self._keep_pace()
        sequence = self._sequence
        if sequence is None:
            self._begin(reading)
        elif sequence.shadow is None or not self._may_go_on(sequence, reading):
            self._give_way(sequence)
        elif self._is_idle and self._num_left(sequence) <= self._step_tokens():
            self._swap_in(sequence, sequence.shadow)

    def chunks(self, max_tokens: int) -> list[Chunk]:
        """What a step may recompute besides its other work, of at most `max_tokens`; reserved."""
        sequence = self._sequence
        if sequence is None or sequence.shadow is None or not self._is_idle:
            return []
        if self._num_before_quiet == 0:
            self._num_new = 0
            return []
        # The last token is left to the sequence itself, which samples after it.
        num_new = min(int(self._pace), max_tokens, self._num_left(sequence) - 1)
        if num_new < 1:
            return []
        switch.advance(sequence.shadow)  # the model's own windows have moved on
        try:
            sequence.shadow.reserve(num_new)
        except RuntimeError as error:
            check_shortage(error)
            sequence.drop_shadow()
            return []
        self._num_new = num_new
        return [Chunk(sequence, sequence.shadow, sequence.shadow.num_stored, num_new)]

    def _keep_pace(self) -> None:
        """Recompute more or less in the next step, by what it took in the last one.

        Some of that comes with the first token, so a few more are never as dear as it looks.
        """
        num_new, took_s = self._num_new, self._clock() - self._tended_s
        self._num_new, self._tended_s = None, self._tended_s + took_s
        if num_new == 0:
            self._quiet_s.append(took_s)
            self._num_before_quiet = _ROUND - 1 if len(self._quiet_s) == _NUM_QUIET else 0
        elif num_new is not None:
            self._num_before_quiet -= 1
            usual_s = min(self._quiet_s)
            more_s, may_s = took_s - usual_s, self._max_share * usual_s
            factor = 2.0 if more_s <= 0 else min(max(may_s / more_s, 0.5), 2.0)
            self._pace = min(max(num_new * factor, _MIN_TOKENS), _MAX_TOKENS)

    @property
    def _is_idle(self) -> bool:
        """Whether every sequence that runs only decodes."""
        return all(sequence.num_pending == 1 for sequence in self._scheduler.running)

    def _begin(self, reading: Reading) -> None:
        now_s = self._clock()
        is_calm = reading.mode_age_s >= self._least_rest_s() and now_s >= self._rests_until_s
        if not is_calm or self._scheduler.waiting or not self._is_idle:
            return
        for sequence in self._scheduler.running:
            if self._needs(sequence) and self._has_room(sequence, reading, 2):
                sequence.shadow = SequenceCache(self._store, sequence.mode, sequence.tokens)
                sequence.shadow.adopt()
                self._sequence, self._started_s = sequence, now_s
                self._pace = min(self._pace, _FIRST_TOKENS)
                self._quiet_s.clear()
                self._num_before_quiet = 0
                return

    def _needs(self, sequence: Sequence) -> bool:
        """Whether it should be exact, is not, and lives long enough to gain from it."""
        cache = sequence.cache
        is_settled = cache.settled_until is not None
        if not cache.mode.is_exact or cache.is_exact or not is_settled:
            return False
        return _num_to_come(sequence) > self._num_steps(len(sequence.tokens))

    def _may_go_on(self, sequence: Sequence, reading: Reading) -> bool:
        return not self._scheduler.waiting and self._has_room(sequence, reading, 1)

    def _has_room(self, sequence: Sequence, reading: Reading, times: int) -> bool:
        """Whether a whole shadow fits, `times` of them above the floor."""
        num_more = min(self._num_steps(self._num_left(sequence)), _num_to_come(sequence))
        whole_bytes = self._gauge.chunk_bytes(len(sequence.tokens) + num_more)
        if times * whole_bytes > reading.memory.headroom_bytes:
            return False
        left_bytes = max(0, whole_bytes - sequence.shadow_bytes) + self._store.slab_bytes
        num_new = _MAX_TOKENS + len(self._scheduler.running)
        return self._store.has_room(left_bytes, self._gauge.step_bytes(num_new))

    def _num_left(self, sequence: Sequence) -> int:
        """How many tokens its shadow lacks."""
        num_stored = 0 if sequence.shadow is None else sequence.shadow.num_stored
        return len(sequence.tokens) - num_stored

    def _step_tokens(self) -> int:
        """How many tokens of one sequence a step takes beside the decodes of the others."""
        num_others = len(self._scheduler.running) - 1
        return min(int(self._pace), self._gauge.step_tokens() - num_others)

    def _num_steps(self, num_tokens: int) -> int:
        """How many steps it takes to catch up so many tokens while one more comes with each."""
        return -(-num_tokens // (int(self._pace) - 1))

    def _swap_in(self, sequence: Sequence, shadow: SequenceCache) -> None:
        """The few tokens that are left go through the model before the next one is sampled."""
        sequence.cache.drop()
        sequence.cache, sequence.shadow = shadow, None
        self._sequence, self._next_rest_s = None, 0.0
        self._emit(
            Healed(
                sequence=sequence.id,
                num_tokens=len(sequence.tokens),
                duration_s=self._clock() - self._started_s,
            )
        )

    def _give_way(self, sequence: Sequence) -> None:
        sequence.drop_shadow()
        self._sequence = None
        if sequence in self._scheduler.running:
            rest_s = max(self._next_rest_s, self._least_rest_s())
            self._rests_until_s = self._clock() + rest_s
            self._next_rest_s = min(2 * rest_s, _MAX_REST_S)


def _num_to_come(sequence: Sequence) -> int:
    """How many tokens it may still be given."""
    return sequence.request.sampling.max_tokens - sequence.num_output
