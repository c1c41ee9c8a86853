"""The worker: one thread, one loop, one step at a time.

A step reads as a sentence: take mail, read, decide, switch, admit, heal, schedule, forward, sample,
emit. It either commits whole or leaves no trace: what a sequence has stored and said only advances
after the forward and the sampling returned, so a step that ran out of memory is simply run again.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import structlog

from adaptive_kv.cache.slab import MemoryLimitError
from adaptive_kv.cache.store import PageStore
from adaptive_kv.controller import Controller, Orders
from adaptive_kv.engine.admission import Admission
from adaptive_kv.engine.batch import Batch, OutOfMemory, check_shortage, make_batch, roll_back
from adaptive_kv.engine.desk import Desk
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.gauge import Gauge
from adaptive_kv.engine.healer import Healer
from adaptive_kv.engine.herald import health_of, make_status
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.engine.meter import Meter
from adaptive_kv.engine.rescue import Rescue
from adaptive_kv.engine.sampling import LogitsError, Sampled, sample
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.engine.status import Health
from adaptive_kv.engine.switcher import Switcher
from adaptive_kv.engine.tally import Tally
from adaptive_kv.policy import Reading

_IDLE_S = 0.1
_TELL_S = 0.02
"""A status in which nothing but numbers have moved is renewed no more often."""
_log = structlog.get_logger(__name__)


class Worker:
    """Owns model, pages and sequences. `step` is called by `run` in its thread, or by a test."""

    def __init__(
        self,
        forward: Forward,
        store: PageStore,
        *,
        controller: Controller,
        gauge: Gauge,
        scheduler: Scheduler,
        switcher: Switcher,
        meter: Meter,
        desk: Desk,
        admission: Admission,
        rescue: Rescue,
        healer: Healer,
        mailbox: Mailbox,
        tally: Tally,
        max_age_s: float,
        switch_share: float,
        note: Callable[[Reading, Orders], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward = forward
        self._store = store
        self._controller = controller
        self._gauge = gauge
        self._scheduler = scheduler
        self._switcher = switcher
        self._meter = meter
        self._desk = desk
        self._admission = admission
        self._rescue = rescue
        self._healer = healer
        self._mailbox = mailbox
        self._tally = tally
        self._max_age_s = max_age_s
        self._switch_share = switch_share
        self._note = note
        self._clock = clock
        self._switched_s = 0.0
        self._decode_s = 0.0
        """What the last step that only decoded took besides converting pages."""
        self._prefill_s = 0.0
        """The same, of the last one with a prefill."""
        self._num_steps = 0
        self._told_gist: tuple[object, ...] = ()
        self._told_s = 0.0
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
        read_s = self._clock()
        orders = self._controller.decide(reading)
        self._tally.add_decision(self._clock() - read_s)
        if self._note is not None:
            self._note(reading, orders)
        self._switch(orders, reading)
        self._admit(orders)
        self._healer.tend(reading)
        if batch := self._schedule():
            self._forward_sample_emit(batch, started_s)
        self._publish(reading, orders)
        self._num_steps += 1

    def _publish(self, reading: Reading, orders: Orders) -> None:
        """Show the truth of now: after every step that changes who runs or how, else often."""
        now_s, scheduler, controller = self._clock(), self._scheduler, self._controller
        is_draining = self._desk.is_draining
        health = health_of(reading, controller, scheduler, is_draining, self._max_age_s)
        num_sequences = len(scheduler.running), len(scheduler.waiting)
        gist = health, orders.mode, orders.reason_code, controller.is_pinned, num_sequences
        if gist == self._told_gist and now_s - self._told_s < _TELL_S:
            return
        self._told_gist, self._told_s = gist, now_s
        self._mailbox.status = make_status(
            reading,
            orders,
            controller,
            scheduler,
            health=health,
            memory=self._gauge.memory(now_s),
            load=self._gauge.load(now_s),
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

    def _make_room(self, shortage: OutOfMemory, *, is_step: bool = True) -> None:
        self._rescue.make_room(shortage, lambda: self._read(self._clock()), is_step=is_step)

    def _switch(self, orders: Orders, reading: Reading) -> None:
        """Set modes, and convert a step's share of pages."""
        self._rescue.order(orders, reading)
        started_s = self._clock()
        try:
            self._switcher.advance(self._scheduler.running, max_s=self._switch_s())
            self._switched_s = self._clock() - started_s
            return
        except RuntimeError as error:
            check_shortage(error)
        shortage = OutOfMemory(self._gauge.chunk_bytes(1), is_of_pages=True)
        self._make_room(shortage, is_step=False)  # a way up ends one rung lower

    def _switch_s(self) -> float | None:
        """A step's share for converting pages, of what one took before; None, all at once, where
        memory is gone.

        On the way to a larger form the rest of a step takes longer, too, for up to half the share.
        """
        if self._rescue.is_short:
            return None
        usual_s = self._meter.usual_s() or math.inf
        if any(sequence.num_pending > 1 for sequence in self._scheduler.running):
            return self._switch_share * max(usual_s, self._prefill_s)
        share_s = self._switch_share * usual_s
        return min(share_s, max(usual_s + share_s - self._decode_s, share_s / 2))

    # Schedule

    def _admit(self, orders: Orders) -> None:
        self._admission.expire(self._desk.refuse)
        if orders.admit and not (self._rescue.is_short and self._scheduler.running):
            self._admission.admit(orders.mode)

    def _schedule(self) -> Batch | None:
        """Reserve pages for the next chunks; makes room and tries once more where that fails."""
        outcome = self._try_schedule()
        if isinstance(outcome, OutOfMemory):
            self._make_room(outcome)
            outcome = self._try_schedule()
        if isinstance(outcome, OutOfMemory):
            self._rescue.park_last(outcome.needed_bytes, is_by_limit=outcome.is_by_limit)
            return None
        return outcome

    def _try_schedule(self) -> Batch | OutOfMemory | None:
        num_tokens = self._gauge.step_tokens()
        chunks = self._scheduler.chunks(num_tokens)
        try:
            for chunk in chunks:
                if not chunk.cache.mode.is_disabled:
                    chunk.cache.reserve(chunk.num_new)
        except RuntimeError as error:
            check_shortage(error)
            is_by_limit = isinstance(error, MemoryLimitError)
        else:
            chunks += self._healer.chunks(num_tokens - len(chunks))
            return make_batch(chunks) if chunks else None
        roll_back(chunks)
        stored = [chunk for chunk in chunks if not chunk.cache.mode.is_disabled]
        needed_bytes = sum(self._gauge.chunk_bytes(chunk.num_new) for chunk in stored)
        return OutOfMemory(needed_bytes, is_of_pages=True, is_by_limit=is_by_limit)

    # Forward, sample, emit

    def _forward_sample_emit(self, batch: Batch, started_s: float) -> None:
        outcome = self._try(batch)
        if isinstance(outcome, OutOfMemory) and batch.is_healing:
            batch = self._without_healing(batch, outcome)
            outcome = self._try(batch)
        if isinstance(outcome, OutOfMemory):
            roll_back(batch.chunks)
            self._make_room(outcome)
            again = self._schedule()
            if again is None:
                return
            batch, outcome = again, self._try(again)
        if isinstance(outcome, OutOfMemory):
            roll_back(batch.chunks)
            self._rescue.park_last(outcome.needed_bytes, is_by_limit=outcome.is_by_limit)
            return
        if isinstance(outcome, LogitsError):
            roll_back(batch.chunks)
            self._desk.refuse_broken([batch.sampled[row].sequence for row in outcome.rows])
            return
        self._commit(batch)
        now_s = self._clock()
        decoded = Counter(c.sequence.mode for c in batch.sampled)
        only_decodes = all(chunk.num_new == 1 for chunk in batch.chunks)
        if only_decodes:
            self._decode_s = now_s - started_s - self._switched_s
        elif not batch.is_healing:
            self._prefill_s = now_s - started_s - self._switched_s
        is_typical = only_decodes and not self._switcher.is_busy
        self._meter.add_step(now_s, now_s - started_s, decoded, is_typical=is_typical)
        self._tally.add_step(now_s - started_s, decoded)
        for sequence in self._desk.emit(batch.sampled, outcome):
            self._finish(sequence)

    def _try(self, batch: Batch) -> list[Sampled] | OutOfMemory | LogitsError:
        """Forward and sample; nothing is kept of a try that failed."""
        ids, positions, last = batch.layout()
        needed_bytes = self._gauge.workspace_bytes(len(ids), len(last), batch.longest)
        try:
            with self._store.budget.workspace(needed_bytes):
                logits = self._forward(batch.rows, ids, positions, last)
                return sample(logits, [chunk.sequence.sampling for chunk in batch.sampled])
        except LogitsError as error:
            return error.with_traceback(None)
        except RuntimeError as error:
            check_shortage(error)
            if isinstance(error, MemoryLimitError):
                return OutOfMemory(needed_bytes - error.left_bytes, is_by_limit=True)
            return OutOfMemory(needed_bytes)

    def _without_healing(self, batch: Batch, shortage: OutOfMemory) -> Batch:
        others = [chunk for chunk in batch.chunks if not chunk.is_healing]
        self._rescue.stop_healing(shortage)
        return make_batch(others)

    def _commit(self, batch: Batch) -> None:
        self._rescue.settle()
        self._scheduler.end_turn()
        for chunk, row, is_exact in zip(batch.chunks, batch.rows, batch.are_exact, strict=True):
            chunk.sequence.was_always_exact &= is_exact
            if row.is_stored:
                row.cache.commit(chunk.num_new, is_exact=is_exact)

    def _finish(self, sequence: Sequence) -> None:
        sequence.retire()
        self._switcher.forget(sequence)
        self._scheduler.remove(sequence)
