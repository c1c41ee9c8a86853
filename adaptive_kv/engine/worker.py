"""The worker: one thread, one loop, one step at a time.

A step reads as a sentence: take mail, read, decide, switch, schedule, forward, sample, emit. It
either commits whole or leaves no trace: what a sequence has stored and said only advances after
the forward and the sampling returned, so a step that ran out of memory is simply run again.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import structlog
import torch

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache.store import PageStore
from adaptive_kv.controller import Controller, Orders
from adaptive_kv.engine.desk import Desk
from adaptive_kv.engine.gauge import MIN_STEP_TOKENS, Gauge
from adaptive_kv.engine.herald import make_status
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.engine.meter import Meter
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.sampling import LogitsError, Sampled, sample
from adaptive_kv.engine.scheduler import Chunk, Scheduler
from adaptive_kv.engine.sequence import Sequence, State
from adaptive_kv.engine.status import Health
from adaptive_kv.engine.switcher import Switcher
from adaptive_kv.events import Event, OomAverted, SequenceParked, SequenceResumed
from adaptive_kv.policy import CacheMode, Reading

_IDLE_S = 0.1
_RETRY_S = 1.0
"""How long a sequence that did not fit even alone waits before it is tried again."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A step that did not happen: what it asked for in vain, free pages or the device's memory."""

    needed_bytes: int
    is_of_pages: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward does: chunks of sequences, laid out as a ragged batch."""

    chunks: tuple[Chunk, ...]
    rows: tuple[Row, ...]
    are_exact: tuple[bool, ...]

    @property
    def sampled(self) -> list[Chunk]:
        """The chunks after which a token is sampled."""
        return [chunk for chunk in self.chunks if chunk.is_last]


class Worker:
    """Owns model, pages and sequences. `step` is called by `run` in its thread, or by a test."""

    def __init__(
        self,
        model: Model,
        store: PageStore,
        *,
        controller: Controller,
        gauge: Gauge,
        scheduler: Scheduler,
        switcher: Switcher,
        meter: Meter,
        desk: Desk,
        mailbox: Mailbox,
        emit: Callable[[Event], None],
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._store = store
        self._controller = controller
        self._gauge = gauge
        self._scheduler = scheduler
        self._switcher = switcher
        self._meter = meter
        self._desk = desk
        self._mailbox = mailbox
        self._emit = emit
        self._max_age_s = max_age_s
        self._clock = clock
        self._num_steps = 0
        self._is_short = False
        """Whether something was parked since the last step that went well."""
        self._stopping = threading.Event()

    def run(self) -> None:
        """Step until `stop`; a fault that no step survives is published and raised."""
        try:
            while not self._stopping.is_set():
                self.step(idle_s=_IDLE_S)
        except BaseException:
            _log.critical("worker_failed", exc_info=True)
            self._fail()
            raise

    def stop(self) -> None:
        """Let `run` return after the present step; any thread."""
        self._stopping.set()

    def step(self, idle_s: float = 0.0) -> None:
        """One step; waits up to `idle_s` for mail where nothing runs."""
        self._desk.take_mail(0.0 if self._scheduler.running else idle_s)
        started_s = self._clock()
        reading = self._read(started_s)
        orders = self._controller.decide(reading)
        self._switch(orders, reading)
        self._admit(orders)
        if batch := self._schedule():
            self._forward_sample_emit(batch, started_s)
        self._publish(reading, orders)
        self._num_steps += 1

    def _publish(self, reading: Reading, orders: Orders) -> None:
        now_s = self._clock()
        self._mailbox.status = make_status(
            reading,
            orders,
            self._controller,
            self._scheduler,
            memory=self._gauge.memory(now_s),
            load=self._gauge.load(now_s),
            is_draining=self._desk.is_draining,
            max_age_s=self._max_age_s,
        )

    def _fail(self) -> None:
        """The last act of a worker that cannot go on."""
        self._mailbox.status = replace(
            self._mailbox.status, health=Health.FAILED, is_ready=False, time_s=self._clock()
        )
        self._desk.fail_everyone()

    # Decide

    def _read(self, now_s: float) -> Reading:
        return self._gauge.read(now_s, self._num_steps, self._controller)

    def _switch(self, orders: Orders, reading: Reading) -> None:
        """Set modes, and convert a step's share of pages."""
        self._order(orders, reading)
        try:
            self._switcher.advance(self._scheduler.running, is_urgent=False)
            return
        except RuntimeError as error:
            _check_shortage(error)
        self._make_room(OutOfMemory(1, is_of_pages=True))  # a way up ends one rung lower

    def _order(self, orders: Orders, reading: Reading) -> None:
        missing_bytes = min(0, reading.memory.headroom_bytes)
        self._store.budget.allowance_bytes = orders.allowance_bytes or missing_bytes
        modes = {s: orders.modes.get(s.id, s.mode) for s in self._scheduler.running}
        self._switcher.order(orders.mode, modes, orders.reason_text)

    # Schedule

    def _admit(self, orders: Orders) -> None:
        self._desk.expire()
        if not orders.admit or (self._is_short and self._scheduler.running):
            return
        for sequence in self._scheduler.admit(lambda s: self._fits(s, orders.mode)):
            if sequence.state is State.PARKED:
                self._report_resumed(sequence)
            sequence.state = State.RUNNING
            mode = self._controller.mode_for(sequence.request.allow, orders.mode)
            assert mode is not None, "refused when it came in"
            sequence.cache.mode = mode

    def _fits(self, sequence: Sequence, mode: CacheMode) -> bool:
        """Whether a sequence fits beside those that run, with what these still need and a slab.

        Alone it may start if it would fit in any mode below: making room is then a matter of
        going down.
        """
        if sequence.is_stuck and self._clock() - sequence.stuck_s < _RETRY_S:
            return False
        own = self._controller.mode_for(sequence.request.allow, mode)
        assert own is not None, "refused when it came in"
        if self._scheduler.running:
            spare_bytes = self._store.slab_bytes + self._gauge.promised_bytes()
            return self._fits_in(own, sequence, spare_bytes)
        below = [m for m in self._controller.ladder if sequence.permits(m)]
        return any(self._fits_in(m, sequence, 0) for m in (own, *below))

    def _fits_in(self, mode: CacheMode, sequence: Sequence, spare_bytes: int) -> bool:
        """Whether pages and a step's workspace of a sequence fit in a mode, `spare_bytes` apart."""
        num_new, needed_bytes = MIN_STEP_TOKENS, spare_bytes
        if mode.is_disabled:
            num_new = max(num_new, len(sequence.tokens))
        else:
            chunk_bytes = self._gauge.chunk_bytes(MIN_STEP_TOKENS)
            needed_bytes += self._gauge.pages_bytes(mode, sequence) + chunk_bytes
        return self._store.has_room(needed_bytes, self._gauge.step_bytes(num_new, sequence))

    def _schedule(self) -> Batch | None:
        """Reserve pages for the next chunks; makes room and tries once more where that fails."""
        outcome = self._try_schedule()
        if isinstance(outcome, OutOfMemory):
            self._make_room(outcome)
            outcome = self._try_schedule()
        if isinstance(outcome, OutOfMemory):
            self._park_last(outcome.needed_bytes)
            return None
        return outcome

    def _try_schedule(self) -> Batch | OutOfMemory | None:
        chunks = self._scheduler.chunks(self._gauge.step_tokens())
        try:
            for chunk in chunks:
                if not chunk.sequence.mode.is_disabled:
                    chunk.sequence.cache.reserve(chunk.num_new)
        except RuntimeError as error:
            _check_shortage(error)
        else:
            rows = tuple(Row(c.sequence.cache, c.position, c.num_new) for c in chunks)
            exact = tuple(row.is_exact for row in rows)
            return Batch(tuple(chunks), rows, exact) if chunks else None
        self._roll_back(chunks)
        stored = [chunk for chunk in chunks if not chunk.sequence.mode.is_disabled]
        needed_bytes = sum(self._gauge.chunk_bytes(chunk.num_new) for chunk in stored)
        return OutOfMemory(needed_bytes, is_of_pages=True)

    # Forward, sample, emit

    def _forward_sample_emit(self, batch: Batch, started_s: float) -> None:
        outcome = self._try(batch)
        if isinstance(outcome, OutOfMemory):
            self._roll_back(batch.chunks)
            self._make_room(outcome)
            again = self._schedule()
            if again is None:
                return
            batch, outcome = again, self._try(again)
        if isinstance(outcome, OutOfMemory):
            self._roll_back(batch.chunks)
            self._park_last(outcome.needed_bytes)
            return
        if isinstance(outcome, LogitsError):
            self._roll_back(batch.chunks)
            self._desk.refuse_broken([batch.sampled[row].sequence for row in outcome.rows])
            return
        self._commit(batch)
        now_s = self._clock()
        decoded = Counter(c.sequence.mode for c in batch.sampled)
        self._meter.add_step(now_s, now_s - started_s, decoded)
        for sequence in self._desk.emit(batch.sampled, outcome):
            self._finish(sequence)

    def _try(self, batch: Batch) -> list[Sampled] | OutOfMemory | LogitsError:
        """Forward and sample; nothing is kept of a try that failed."""
        ids, positions, last = _layout(batch.chunks)
        longest = max(chunk.position + chunk.num_new for chunk in batch.chunks)
        needed_bytes = self._gauge.workspace_bytes(len(ids), len(last), longest)
        try:
            with self._store.budget.workspace(needed_bytes):
                ragged = RaggedBatch(self._store, batch.rows)
                logits = self._model.forward(ids, positions, last, ragged)
                return sample(logits, [chunk.sequence.sampling for chunk in batch.sampled])
        except LogitsError as error:
            return error.with_traceback(None)
        except RuntimeError as error:
            _check_shortage(error)
            return OutOfMemory(needed_bytes - getattr(error, "left_bytes", 0))

    def _commit(self, batch: Batch) -> None:
        self._is_short = False
        self._scheduler.end_turn()
        for chunk, row, is_exact in zip(batch.chunks, batch.rows, batch.are_exact, strict=True):
            chunk.sequence.is_exact &= is_exact
            if row.is_stored:
                row.cache.commit(chunk.num_new, is_exact=is_exact)

    def _roll_back(self, chunks: Seq[Chunk]) -> None:
        for chunk in chunks:
            chunk.sequence.cache.roll_back()

    def _finish(self, sequence: Sequence) -> None:
        sequence.cache.drop()
        self._switcher.forget(sequence)
        self._scheduler.remove(sequence)

    # Out of memory

    def _make_room(self, shortage: OutOfMemory) -> None:
        """Go down the ladder, all pages at once, as far as it goes or until that much is freed."""
        before_bytes, freed_bytes = self._taken_bytes(shortage), 0
        while freed_bytes < shortage.needed_bytes:
            reading = self._read(self._clock())
            orders = self._controller.step_down(reading)
            if orders is None:
                break
            self._order(orders, reading)
            self._convert_everything()
            freed_bytes = before_bytes - self._taken_bytes(shortage)
        self._emit(
            OomAverted(
                to_mode=self._controller.mode,
                needed_bytes=shortage.needed_bytes,
                freed_bytes=freed_bytes,
            )
        )

    def _taken_bytes(self, shortage: OutOfMemory) -> int:
        """How much is taken of what was short."""
        return self._store.used_bytes if shortage.is_of_pages else self._store.held_bytes

    def _convert_everything(self) -> None:
        try:
            self._switcher.advance(self._scheduler.running, is_urgent=True)
        except RuntimeError as error:
            _check_shortage(error)

    def _park_last(self, needed_bytes: int) -> None:
        """Drop the pages of the sequence that is last in line; it waits and resumes later."""
        sequence = self._scheduler.last_in_line()
        if sequence is None:
            return
        freed_bytes = sequence.cache.used_bytes
        sequence.cache.drop()
        self._switcher.forget(sequence)
        self._scheduler.park(sequence, self._clock())
        self._store.compact(needed_bytes)
        self._is_short = True
        self._emit(
            SequenceParked(
                sequence=sequence.id,
                num_tokens=len(sequence.tokens),
                freed_bytes=freed_bytes,
                reason="memory",
            )
        )

    def _report_resumed(self, sequence: Sequence) -> None:
        self._emit(
            SequenceResumed(
                sequence=sequence.id,
                num_tokens=len(sequence.tokens),
                parked_s=self._clock() - sequence.since_s,
            )
        )


def _layout(chunks: Seq[Chunk]) -> tuple[list[int], list[int], list[int]]:
    """Packed token ids, their positions, and the rows whose logits are wanted."""
    ids: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    for chunk in chunks:
        stop = chunk.position + chunk.num_new
        ids += chunk.sequence.tokens[chunk.position : stop]
        positions += range(chunk.position, stop)
        if chunk.is_last:
            last.append(len(ids) - 1)
    return ids, positions, last


def _check_shortage(error: RuntimeError) -> None:
    """Raise any error again that does not say that memory ran out."""
    is_cpu_allocator = "can't allocate memory" in str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not is_cpu_allocator:
        raise error
