"""The status after a step: the reading, the orders and the sequences in one immutable value."""

from collections import Counter

from adaptive_kv.controller import Controller, Orders
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.sequence import State
from adaptive_kv.engine.status import Health, PolicyStatus, Status
from adaptive_kv.policy import Latency, Load, Memory, Reading

_MAX_SEQUENCES = 64


def make_status(
    reading: Reading,
    orders: Orders,
    controller: Controller,
    scheduler: Scheduler,
    *,
    health: Health,
    memory: Memory,
    load: Load,
) -> Status:
    """What publishers show until the next step; `memory` and `load` are those after this one."""
    shown = scheduler.everyone[:_MAX_SEQUENCES]
    return Status(
        time_s=reading.time_s,
        step=reading.step,
        health=health,
        is_ready=health is not Health.DRAINING,
        mode=controller.mode,
        mode_age_s=max(0.0, reading.time_s - controller.mode_since_s),
        pinned=controller.is_pinned,
        reason_code=orders.reason_code,
        reason_text=orders.reason_text,
        policy=PolicyStatus(
            name=controller.name, status=controller.policy_status, faults=controller.num_faults
        ),
        memory=memory,
        latency=reading.latency,
        load=load,
        costs=reading.costs,
        num_sequences_by_mode=Counter(sequence.mode for sequence in scheduler.running),
        sequences=tuple(sequence.status() for sequence in shown),
    )


def starting_status(memory: Memory, controller: Controller, now_s: float) -> Status:
    """What is shown before the first step."""
    return Status(
        time_s=now_s,
        step=0,
        health=Health.OK,
        is_ready=False,
        mode=controller.mode,
        mode_age_s=0.0,
        pinned=controller.is_pinned,
        reason_code="starting",
        reason_text="no step was taken yet",
        policy=PolicyStatus(name=controller.name),
        memory=memory,
        latency=Latency(token_s=None, p50_s=None, p95_s=None),
        load=Load(running=0, waiting=0, tokens_per_s=0.0),
        costs={},
        num_sequences_by_mode={},
    )


def health_of(
    reading: Reading,
    controller: Controller,
    scheduler: Scheduler,
    is_draining: bool,
    max_age_s: float,
) -> Health:
    """Whether all is well with a worker that steps."""
    if is_draining:
        return Health.DRAINING
    is_blind = reading.memory.sample_age_s > max_age_s
    has_parked = any(sequence.state is State.PARKED for sequence in scheduler.waiting)
    is_fine = controller.policy_status == "ok" and not is_blind and not has_parked
    return Health.OK if is_fine else Health.DEGRADED
