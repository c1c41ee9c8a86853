"""The way back: what a lossy mode has left is recomputed from token ids, in idle capacity.

    tokens    0 ................................................ T
    cache     | exact | what int4 or a window has left ........ |   decodes on
    shadow    | full, exact: 16 tokens per step ... >             takes its place once it is there

One sequence at a time gets a shadow, a full cache that begins at its first token: so neither gaps
nor the model's own windows need care. It is given back before anybody goes without anything.
"""

import time
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

_STEP_TOKENS = 16
"""How much is recomputed in a step that also decodes. On one CPU core such a step takes 1.2 to 1.9
times as long with a model of 4M parameters, 1.4 to 2.5 times with one of 62M (1 or 4 sequences of
256 to 2048 tokens); twice the tokens make it 1.4 to 2.3 and 1.7 to 3.4 times."""
_MAX_REST_S = 600.0


class Healer:
    """Gives sequences shadows and swaps them in; `clock` gives monotonic seconds.

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
        least_rest_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._gauge = gauge
        self._emit = emit
        self._is_on = is_on
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
        # The last token is left to the sequence itself, which samples after it.
        num_new = min(_STEP_TOKENS, max_tokens, self._num_left(sequence) - 1)
        if num_new < 1:
            return []
        switch.advance(sequence.shadow)  # the model's own windows have moved on
        try:
            sequence.shadow.reserve(num_new)
        except RuntimeError as error:
            check_shortage(error)
            sequence.drop_shadow()
            return []
        return [Chunk(sequence, sequence.shadow, sequence.shadow.num_stored, num_new)]

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
                return

    def _needs(self, sequence: Sequence) -> bool:
        """Whether it should be exact, is not, and lives long enough to gain from it."""
        cache = sequence.cache
        is_settled = cache.settled_until is not None
        if not cache.mode.is_exact or cache.is_exact or not is_settled:
            return False
        num_left = sequence.request.sampling.max_tokens - sequence.num_output
        return num_left > _num_steps(len(sequence.tokens))

    def _may_go_on(self, sequence: Sequence, reading: Reading) -> bool:
        return not self._scheduler.waiting and self._has_room(sequence, reading, 1)

    def _has_room(self, sequence: Sequence, reading: Reading, times: int) -> bool:
        """Whether a whole shadow fits, `times` of them above the floor."""
        num_tokens = len(sequence.tokens) + _num_steps(self._num_left(sequence))
        whole_bytes = self._gauge.chunk_bytes(num_tokens)
        if times * whole_bytes > reading.memory.headroom_bytes:
            return False
        left_bytes = max(0, whole_bytes - sequence.shadow_bytes) + self._store.slab_bytes
        num_new = _STEP_TOKENS + len(self._scheduler.running)
        return self._store.has_room(left_bytes, self._gauge.step_bytes(num_new))

    def _num_left(self, sequence: Sequence) -> int:
        """How many tokens its shadow lacks."""
        num_stored = 0 if sequence.shadow is None else sequence.shadow.num_stored
        return len(sequence.tokens) - num_stored

    def _step_tokens(self) -> int:
        """How many tokens of one sequence a step takes beside the decodes of the others."""
        num_others = len(self._scheduler.running) - 1
        return min(_STEP_TOKENS, self._gauge.step_tokens() - num_others)

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


def _num_steps(num_tokens: int) -> int:
    """How many steps it takes to catch up so many tokens while one more comes with each."""
    return -(-num_tokens // (_STEP_TOKENS - 1))
