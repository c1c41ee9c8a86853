"""Anything may happen between two steps: pages, floor, budget and answers stay right."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import (
    KIB,
    LADDER,
    MIB,
    Faults,
    Memory,
    Stand,
    check,
    check_empty,
    faulty_attention,
    make_stand,
    wanted,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models import prompt

from adaptive_kv.engine.mailbox import Finished
from adaptive_kv.engine.sequence import Sequence

_IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
_MAX_TOKENS = 48
_FLOOR_BYTES = 128 * KIB
_MODES = (*LADDER, "window:64", "window:64+int8")
_LENGTHS = (1, 2, 15, 16, 17, 40, 64, 81, 120, 160, 200)
_ALLOWS = (None, None, None, None, ("full",), ("full", "disabled"), ("int8", "int4"), ("disabled",))
_STEPS = st.integers(1, 5)
_ALIKE = prompt(max(_LENGTHS), seed=1)
"""What prompts begin with that may share pages."""


@dataclass(frozen=True)
class Promise:
    """A sequence that lost something and is exact again, healed or recomputed, before a step."""

    sequence: Sequence
    tokens: tuple[int, ...]
    num_exact: int

    def check(self) -> None:
        """Its next token, unless sampled in a lossy mode after all, is that of a fresh run."""
        new = tuple(self.sequence.tokens[len(self.tokens) :])
        if new and _num_exact(self.sequence) > self.num_exact:
            assert list(new) == wanted(self.tokens, 1)


def exact_again(stand: Stand) -> list[Promise]:
    """Of all that say so now."""
    return [
        Promise(s, tuple(s.tokens), _num_exact(s))
        for s in stand.scheduler.everyone
        if s.is_exact and not s.usage().exact
    ]


def _num_exact(sequence: Sequence) -> int:
    """How many tokens were sampled in a mode that loses nothing."""
    return sum(num for mode, num in sequence.tokens_by_mode.items() if mode.is_exact)


class AnythingHappens(RuleBasedStateMachine):
    """Requests come and go, modes change, memory is taken and given, allocations fail."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.memory = Memory(Path(self.folder.name) / "memory.json", 4 * MIB)
        self.held_before_bytes = 0
        """At the beginning of the step."""
        self.faults = Faults(on_slab=self.check_floor)
        self.patch = faulty_attention(self.faults)
        self.patch.__enter__()
        self.stand = make_stand(
            faults=self.faults,
            memory={"source": f"file:{self.memory.path}", "floor": _FLOOR_BYTES},
            cache={"ladder": LADDER},
            policy={"name": "ladder", "options": {"hold_s": 0}},
            server={"max_tokens_per_step": 80, "max_running": 4, "max_wait_s": 1e5},
        )
        self.stand.memory = self.memory
        self.cancelled: set[str] = set()

    def check_floor(self) -> None:
        """A slab that we took leaves the floor to others, or takes less than we have given back."""
        held_bytes = self.stand.store.held_bytes
        is_above = self.memory.free_bytes(held_bytes) >= _FLOOR_BYTES
        assert is_above or held_bytes <= self.held_before_bytes

    @property
    def alive(self) -> list[str]:
        return sorted(self.stand.unfinished - self.cancelled)

    @initialize()
    def begin(self) -> None:
        for num_prompt in (160, 40, 120):
            self.stand.post(prompt(num_prompt, seed=num_prompt), _MAX_TOKENS)
        self.stand.post(_ALIKE, 1)

    @precondition(lambda self: len(self.alive) < 7)
    @rule(
        num_prompt=st.sampled_from(_LENGTHS),
        num_tokens=st.integers(1, _MAX_TOKENS),
        allow=st.sampled_from(_ALLOWS),
        priority=st.integers(-1, 1),
        is_alike=st.booleans(),
    )
    def admit(
        self,
        num_prompt: int,
        num_tokens: int,
        allow: tuple[str, ...] | None,
        priority: int,
        *,
        is_alike: bool,
    ) -> None:
        ids = _ALIKE[:num_prompt] if is_alike else prompt(num_prompt, seed=num_prompt)
        self.stand.post(ids, num_tokens, allow=allow, priority=priority)

    @precondition(lambda self: bool(self.alive))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self.alive))
        self.stand.cancel(id_)
        self.cancelled.add(id_)

    @rule(mode=st.sampled_from(_MODES), num_steps=_STEPS)
    def pin(self, mode: str, num_steps: int) -> None:
        self.stand.pin(mode)
        self.steps(num_steps)

    @rule(num_steps=_STEPS)
    def unpin(self, num_steps: int) -> None:
        self.stand.unpin()
        self.steps(num_steps)

    @rule(num_steps=st.integers(10, 20))
    def pressure_is_gone(self, num_steps: int) -> None:
        """Long enough that who has lost something may be healed."""
        self.neighbour_goes()
        self.stand.pin("full")
        self.steps(num_steps)

    @rule(taken_kib=st.integers(0, 4096), num_steps=_STEPS)
    def neighbour_takes(self, taken_kib: int, num_steps: int) -> None:
        left_bytes = self.memory.total_bytes - self.stand.store.held_bytes
        self.memory.neighbour_bytes = min(taken_kib * KIB, left_bytes)
        self.steps(num_steps)

    @rule(left_kib=st.integers(0, 3000), num_steps=_STEPS)
    def budget_shrinks(self, left_kib: int, num_steps: int) -> None:
        budget = self.stand.store.budget
        budget.limit_bytes = budget.used_bytes + left_kib * KIB
        self.steps(num_steps)

    @rule(k=st.integers(1, 40), num=st.sampled_from([1, 1, 1, 2, 5]), num_steps=_STEPS)
    def allocation_fails(self, k: int, num: int, num_steps: int) -> None:
        first = self.faults.num_calls + k
        self.faults.failing = lambda n: first <= n < first + num
        self.steps(num_steps)

    def neighbour_goes(self) -> None:
        """All memory is there again."""
        self.faults.failing = lambda _: False
        self.memory.neighbour_bytes = 0
        self.stand.store.budget.limit_bytes = None

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            promised = exact_again(self.stand)
            self.held_before_bytes = self.stand.store.held_bytes
            self.stand.step()
            check(self.stand)
            for promise in promised:
                promise.check()

    @invariant()
    def pages_and_answers_are_right(self) -> None:
        check(self.stand)
        for id_, request in self.stand.requests.items():
            end = self.stand.ends.get(id_)
            if isinstance(end, Finished) and end.usage.exact:
                tokens = wanted(request.prompt_ids, _MAX_TOKENS)
                assert self.stand.output(id_) == tokens[: request.sampling.max_tokens]

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.patch.__exit__(None, None, None)
            self.folder.cleanup()

    def drain(self) -> None:
        """Once memory is there again everyone who still waits is answered."""
        self.neighbour_goes()
        self.stand.unpin()
        for _ in range(300):
            if not self.alive:
                break
            self.steps(1)
        assert not self.alive, "a request is lost"
        self.stand.step()
        self.pages_and_answers_are_right()
        for id_ in set(self.stand.requests) - self.cancelled:
            usage = self.stand.finished(id_).usage
            assert usage.num_output_tokens == self.stand.requests[id_].sampling.max_tokens
            assert sum(usage.tokens_by_mode.values()) == usage.num_output_tokens
        check_empty(self.stand)


TestAnythingHappens: Any = AnythingHappens.TestCase
TestAnythingHappens.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    derandomize=_IN_CI,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
