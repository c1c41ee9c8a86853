"""Builds the reading: one immutable snapshot of memory, latency, load and costs."""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from adaptive_kv.cache import costs
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.weigher import Weigher
from adaptive_kv.controller import Controller
from adaptive_kv.engine.meter import Meter
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.prices import Prices
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.seen import Seen
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.engine.speed import Speed
from adaptive_kv.policy import CacheMode, Load, Memory, Reading
from adaptive_kv.sensors.base import MemorySample
from adaptive_kv.sensors.poller import SensorPoller
from adaptive_kv.sensors.trend import seconds_to_floor
from adaptive_kv.tables import CostTable, SequenceTable

_FULL = CacheMode("full")

MIN_STEP_TOKENS = 64
"""Prefill goes on in chunks of at least about this many tokens, however tight memory is."""


@dataclass(slots=True)
class _Seen:
    """The newest sample, and what of the cache's memory it surely counts as taken."""

    sample: MemorySample
    cache_bytes: int


class Gauge:
    """Reads for the worker; everything it needs is handed in, time included."""

    def __init__(
        self,
        model: Model,
        store: PageStore,
        scheduler: Scheduler,
        meter: Meter,
        *,
        sensor: SensorPoller,
        floor_bytes: int,
        speed: Speed | None = None,
    ) -> None:
        self._model = model
        self._store = store
        self._scheduler = scheduler
        self._meter = meter
        self._weigher = Weigher(model.groups, store.keep)
        self._sensor = sensor
        self._floor_bytes = floor_bytes
        self._speed = speed
        self._seen = _Seen(sensor.latest(), store.held_bytes)
        self._last_held_bytes = store.held_bytes
        self._trend: tuple[Seq[MemorySample], float | None] = ((), None)

    def read(self, now_s: float, step: int, controller: Controller) -> Reading:
        """The reading of this moment."""
        memory = self._memory_without_idle(now_s)
        seen = Seen(self._scheduler.running)
        return Reading(
            time_s=now_s,
            step=step,
            memory=memory,
            seconds_to_floor=self._seconds_to_floor(),
            latency=self._meter.latency(),
            load=self.load(now_s),
            device=self._sensor.device().seen_at(now_s),
            mode=controller.mode,
            mode_age_s=max(0.0, now_s - controller.mode_since_s),
            ladder=controller.ladder,
            costs=CostTable(_modes(controller), self._prices(seen).cost),
            sequences=SequenceTable(seen.requests, seen.infos),
        )

    def set_floor(self, floor_bytes: int) -> None:
        """Leave so much free for others from the next reading on."""
        self._floor_bytes = floor_bytes
        self._trend = ((), None)

    def memory(self, now_s: float) -> Memory:
        """Free memory as sampled, less what the cache has taken since."""
        sample = self._sensor.latest()
        held_bytes = self._store.held_bytes
        if sample is not self._seen.sample:
            # It came between two looks: what was taken between them may not be in it.
            self._seen = _Seen(sample, min(held_bytes, self._last_held_bytes))
        self._last_held_bytes = held_bytes
        taken_since_bytes = held_bytes - self._seen.cache_bytes
        return Memory(
            total_bytes=sample.total_bytes,
            free_bytes=max(0, sample.free_bytes - taken_since_bytes),
            floor_bytes=self._floor_bytes,
            weights_bytes=self._model.weights_bytes,
            cache_bytes=held_bytes,
            source=sample.source,
            sample_age_s=max(0.0, now_s - sample.time_s),
        )

    def _memory_without_idle(self, now_s: float) -> Memory:
        """Healing and retained pages give way to all: nobody has to decide because of them."""
        memory = self.memory(now_s)
        idle_bytes = self._scheduler.shadow_bytes + self._store.budget.reclaimable_bytes
        if not idle_bytes:
            return memory
        return replace(
            memory,
            free_bytes=memory.free_bytes + idle_bytes,
            cache_bytes=memory.cache_bytes - idle_bytes,
        )

    def load(self, now_s: float) -> Load:
        """How much work there is."""
        return Load(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            tokens_per_s=self._meter.tokens_per_s(now_s),
        )

    def _prices(self, seen: Seen) -> Prices:
        return Prices(
            seen,
            weigher=self._weigher,
            workspace_bytes=self.workspace_bytes,
            speed=self._speed,
            seen_s=self._meter.token_s_by_mode(),
            sinks=self._store.keep.sinks,
        )

    def _seconds_to_floor(self) -> float | None:
        """The trend of free memory, computed once per sample: there are many steps between two.

        What admitted work will still take counts as taken, what is retained counts as free.
        """
        history = self._sensor.history()
        if history is not self._trend[0]:
            self._trend = (history, self._forecast_s(history))
        return self._trend[1]

    def _forecast_s(self, history: Seq[MemorySample]) -> float | None:
        missing_bytes = self._store.missing_bytes(self.promised_bytes())
        reclaimable_bytes = self._store.budget.reclaimable_bytes
        reserved_bytes = self._floor_bytes + missing_bytes - reclaimable_bytes
        if missing_bytes and history[-1].free_bytes < reserved_bytes:
            return 0.0  # without anybody else's help
        return seconds_to_floor(history, reserved_bytes)

    def pages_bytes(self, mode: CacheMode, sequence: Sequence) -> int:
        """What one sequence's pages would weigh in a mode, all its tokens stored and settled."""
        return self._weigher.bytes(mode, len(sequence.tokens), sequence.cache.gap_stops)

    def alone_bytes(self, mode: CacheMode, sequence: Sequence) -> int:
        """What a mode would cost if nobody else ran, by which the guard goes down."""
        return self._prices(Seen([sequence])).cost(mode).bytes

    def new_bytes(self, mode: CacheMode, sequence: Sequence) -> int:
        """What the pages of one that has none would weigh besides what it would share for good."""
        num_shared = sequence.cache.num_shared(mode)
        gap_stops = (num_shared,) * len(self._model.groups)
        return self._weigher.bytes(mode, len(sequence.tokens), gap_stops)

    def growth_bytes(self, mode: CacheMode, sequence: Sequence, num_tokens: int) -> int:
        """What so many more tokens will weigh, or as many as it may still generate."""
        gap_stops, num_now = sequence.cache.gap_stops, len(sequence.tokens)
        num_then = num_now + min(num_tokens, sequence.num_left)
        then_bytes = self._weigher.bytes(mode, num_then, gap_stops)
        return max(0, then_bytes - self._weigher.bytes(mode, num_now, gap_stops))

    def workspace_bytes(self, num_new: int, num_logits: int, longest: int) -> int:
        """A bound of what a step needs besides pages."""
        return costs.workspace_bytes(
            self._model.widths, self._model.groups, num_new, num_logits, longest
        )

    def promised_bytes(self) -> int:
        """What the pages of running sequences will weigh beyond what they weigh now."""
        return sum(self._promised_bytes(sequence) for sequence in self._scheduler.running)

    def _promised_bytes(self, sequence: Sequence) -> int:
        """Of one sequence. While more is to come, what is stored counts for no more than its mode
        says: what weighs more may be shared with somebody who keeps it so, and never make room."""
        cache = sequence.cache
        stored_bytes = cache.used_bytes + cache.borrowed_bytes
        if sequence.num_pending > 1:
            stored_bytes -= self.excess_bytes(sequence)
        return max(0, self.pages_bytes(cache.mode, sequence) - stored_bytes)

    def excess_bytes(self, sequence: Sequence) -> int:
        """How much more its pages weigh than once they are as its mode wants them."""
        cache = sequence.cache
        settled_bytes = self._weigher.bytes(cache.mode, cache.num_stored, cache.gap_stops)
        return max(0, cache.used_bytes + cache.borrowed_bytes - settled_bytes)

    def chunk_bytes(self, num_tokens: int) -> int:
        """What new tokens weigh until they may be packed."""
        return self._weigher.bytes(_FULL, num_tokens, (0,) * len(self._model.groups))

    def step_bytes(self, num_tokens: int, sequence: Sequence | None = None) -> int:
        """A bound of what a step of `num_tokens` needs besides pages, `sequence` taking part."""
        parts = [*self._scheduler.running, *([] if sequence is None else [sequence])]
        longest = max((len(part.tokens) for part in parts), default=0)
        return self.workspace_bytes(min(longest, num_tokens), len(parts), longest)

    def wasted_bytes(self, reserve_bytes: int) -> int:
        """What of the room no page can have, at least, while none is in use.

        Slabs come whole, and with them a spare page and places for scales.
        """
        room_bytes = self._store.budget.room_bytes(reserve_bytes)
        groups = [pages for pages in self._store.groups if not pages.pages.num_live]
        if math.isinf(room_bytes) or not groups:
            return 0
        besides_bytes = sum(pages.sides.slab_bytes for pages in groups)
        spare_bytes = sum(pages.pages.shape.num_bytes for pages in groups)
        left_bytes = int(room_bytes) - besides_bytes
        return besides_bytes + spare_bytes + left_bytes % min(p.pages.slab_bytes for p in groups)

    def step_tokens(self) -> int:
        """How many tokens a step may take: less than configured where memory is tight."""
        num_tokens = self._scheduler.max_tokens
        while num_tokens > MIN_STEP_TOKENS:
            pages_bytes = self.chunk_bytes(num_tokens) + self._store.slab_bytes
            if self._store.has_room(pages_bytes, self.step_bytes(num_tokens)):
                break
            num_tokens //= 2
        return num_tokens


def _modes(controller: Controller) -> tuple[CacheMode, ...]:
    """The modes whose costs a policy or the guard may ask for."""
    return (*controller.ladder, controller.mode, controller.pinned or controller.mode)
