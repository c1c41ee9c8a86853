"""A real engine over a tiny model, stepped by hand, with memory that a test controls."""

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from models import prepared, stock
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adaptive_kv.attention.batch import RaggedBatch
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.config import Settings, load_settings
from adaptive_kv.engine import forward, service
from adaptive_kv.engine.graphs import DecodeGraphs
from adaptive_kv.engine.loading import LoadedModel, embedded_model
from adaptive_kv.engine.mailbox import (
    Cancel,
    Delta,
    Failed,
    Finished,
    PinMode,
    Reply,
    Request,
    SamplingParams,
    UnpinMode,
)
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.sequence import Sequence as Live
from adaptive_kv.engine.service import Engine, build_engine
from adaptive_kv.engine.speed import Speed
from adaptive_kv.engine.status import Status
from adaptive_kv.events import Event, EventLog
from adaptive_kv.policy import CacheMode

EventT = TypeVar("EventT", bound=Event)

EOS = 2
STEP_S = 0.25
"""How long a step takes by a stand's clock, at least."""
KIB = 2**10
MIB = 2**20
EXACT = {"ladder": ("full", "disabled")}
LADDER = ("full", "int8", "int4", "window:64+int4", "disabled")


class Clock:
    """The real monotonic clock, which sensors use too, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() + self.ahead_s


@dataclass
class Faults:
    """Counts what asks for memory; the calls in `failing` are told that there is none."""

    failing: Callable[[int], bool] = lambda _: False
    num_calls: int = 0
    on_slab: Callable[[], None] = lambda: None
    """Called whenever a slab was taken."""

    def ask(self) -> None:
        """One more call. Raises `torch.OutOfMemoryError` where it shall fail."""
        self.num_calls += 1
        if self.failing(self.num_calls):
            raise torch.OutOfMemoryError("out of memory, because the test says so")


class FaultyBudget(Budget):
    """A budget whose device may refuse what the budget permits."""

    faults: Faults

    @contextmanager
    def workspace(self, num_bytes: int) -> Iterator[None]:
        """As any budget's, if the device agrees."""
        self.faults.ask()
        with super().workspace(num_bytes):
            yield

    def take_slab(self, num_bytes: int, *, is_exchange: bool = False) -> None:
        """As any budget's, if the device agrees."""
        self.faults.ask()
        super().take_slab(num_bytes, is_exchange=is_exchange)
        self.faults.on_slab()


class Memory:
    """The box's memory, shared with a neighbour: a file says, honestly, what is free."""

    def __init__(self, path: Path, total_bytes: int) -> None:
        self.path = path
        self.total_bytes = total_bytes
        self.neighbour_bytes = 0
        """What the neighbour has taken; a test sets it."""
        self.write(0)

    def free_bytes(self, held_bytes: int) -> int:
        """What is free while we hold so much; negative where the neighbour took too much."""
        return self.total_bytes - self.neighbour_bytes - held_bytes

    def write(self, held_bytes: int) -> None:
        """State what is free while we hold so much."""
        free_bytes = max(0, self.free_bytes(held_bytes))
        text = json.dumps({"total_bytes": self.total_bytes, "free_bytes": free_bytes})
        self.path.write_text(text)


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The embedded model's: its first 97 tokens are special ones and single characters."""
    auto: Any = AutoTokenizer
    found = auto.from_pretrained(str(embedded_model()))
    assert isinstance(found, PreTrainedTokenizerBase)
    return found


def make_settings(**sections: dict[str, Any]) -> Settings:
    """Defaults that suit a tiny model, however slow the machine: small slabs, nobody waits."""
    base: dict[str, dict[str, Any]] = {
        "server": {"max_tokens_per_step": 96},
        "memory": {"source": "meminfo", "floor": 0, "max_age_s": 1e6},
        "cache": {
            "ladder": LADDER,
            "sinks": 16,
            "recent": 32,
            "slab": 32 * KIB,
            "switch_share": 1e6,
        },
        "policy": {"name": "fixed", "min_dwell_s": 0.0, "deadline_s": 1e3},
    }
    for name, changes in sections.items():
        base[name] = {**base.get(name, {}), **changes}
    return load_settings(flags=base, default_file=Path("/nonexistent.toml"))


@dataclass
class Stand:
    """An engine on the workbench: post, step, look."""

    engine: Engine
    events: EventLog
    clock: Clock
    faults: Faults
    memory: Memory | None = None
    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    ends: dict[str, Finished | Failed] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    num_steps: int = 0

    @property
    def store(self) -> PageStore:
        """The engine's pages."""
        return self.engine.worker._store

    @property
    def scheduler(self) -> Scheduler:
        """The engine's sequences."""
        return self.engine.worker._scheduler

    @property
    def status(self) -> Status:
        """What was published last."""
        return self.engine.mailbox.status

    def post(
        self,
        prompt_ids: Sequence[int],
        num_tokens: int = 8,
        *,
        allow: Sequence[str] | None = None,
        priority: int = 0,
        **sampling: Any,
    ) -> str:
        """Send a greedy request that ignores the end of sequence, and answer its id."""
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        request = Request(
            id=f"r{len(self.requests)}",
            prompt_ids=tuple(prompt_ids),
            sampling=replace(params, **sampling),
            allow=None if allow is None else frozenset(map(CacheMode, allow)),
            priority=priority,
        )
        self.requests[request.id] = request
        self.engine.mailbox.post(request)
        return request.id

    def cancel(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        self.engine.mailbox.post(Cancel(request_id))

    def pin(self, mode: str) -> None:
        """Hold a mode."""
        self.engine.mailbox.post(PinMode(CacheMode(mode)))

    def unpin(self) -> None:
        """Back to the policy."""
        self.engine.mailbox.post(UnpinMode())

    def step(self, num_steps: int = 1) -> None:
        """Steps of the worker, each on the newest sample of memory."""
        for _ in range(num_steps):
            if self.memory is not None:
                self.memory.write(self.store.held_bytes)
            self.engine.sensor.poll()
            self.engine.worker.step()
            self.clock.ahead_s += STEP_S
            self.num_steps += 1

    def run(self, max_steps: int = 400) -> None:
        """Step until everyone has ended, which must take no more than `max_steps`."""
        for _ in range(max_steps):
            if not self.unfinished:
                break
            self.step()
        assert not self.unfinished, f"no end after {max_steps} steps: {self.unfinished}"

    @property
    def unfinished(self) -> set[str]:
        """Requests without a last reply."""
        return set(self.requests) - set(self.ends)

    def sequence(self, request_id: str) -> Live:
        """What the engine knows of a request."""
        found = self.scheduler.find(request_id)
        assert found is not None
        return found

    def output(self, request_id: str) -> list[int]:
        """The token ids that came so far."""
        return [i for delta in self.deltas.get(request_id, ()) for i in delta.token_ids]

    def text(self, request_id: str) -> str:
        """The text that came so far."""
        return "".join(delta.text for delta in self.deltas.get(request_id, ()))

    def finished(self, request_id: str) -> Finished:
        """How it ended; it must have ended well."""
        end = self.ends[request_id]
        assert isinstance(end, Finished), end
        return end

    def failed(self, request_id: str) -> Failed:
        """How it failed."""
        end = self.ends[request_id]
        assert isinstance(end, Failed), end
        return end

    def of_type(self, kind: type[EventT]) -> list[EventT]:
        """The events of one type, oldest first."""
        records, _ = self.events.since(0)
        return [record.event for record in records if isinstance(record.event, kind)]

    def deliver(self, replies: Sequence[Reply]) -> None:
        """Take the replies of a step."""
        for reply in replies:
            assert reply.request_id not in self.ends, "a reply after the last one"
            if isinstance(reply, Delta):
                self.deltas.setdefault(reply.request_id, []).append(reply)
            else:
                self.ends[reply.request_id] = reply


def make_stand(
    model: Model | None = None,
    *,
    faults: Faults | None = None,
    eos_ids: Sequence[int] = (EOS,),
    speed: Speed | None = None,
    graphs: DecodeGraphs | None = None,
    **sections: dict[str, Any],
) -> Stand:
    """An engine over the tiny llama (or `model`) that nobody steps yet; `sections` as settings."""
    faults = Faults() if faults is None else faults
    loaded = LoadedModel(
        name="tiny",
        model=prepared() if model is None else model,
        tokenizer=tokenizer(),
        eos_ids=frozenset(eos_ids),
    )
    events, clock = EventLog(capacity=100_000), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "Budget", type("Budget", (FaultyBudget,), {"faults": faults}))
        engine = build_engine(
            make_settings(**sections), loaded, events, clock, speed=speed, graphs=graphs
        )
    stand = Stand(engine, events, clock, faults)
    engine.mailbox.on_replies(stand.deliver)
    return stand


@contextmanager
def faulty_attention(faults: Faults) -> Iterator[None]:
    """Let every layer's attention ask `faults` for memory, too."""

    class FaultyBatch(RaggedBatch):
        def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            faults.ask()
            return super().attend(call, queries, keys, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "RaggedBatch", FaultyBatch)
        yield


@contextmanager
def slow_attention(clock: Clock, took_s: Callable[[int], float]) -> Iterator[None]:
    """Let a step of so many tokens take that much longer."""

    class SlowBatch(RaggedBatch):
        def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if call.layer == 0:
                clock.ahead_s += took_s(queries.shape[1])
            return super().attend(call, queries, keys, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "RaggedBatch", SlowBatch)
        yield


@functools.cache
def wanted(prompt_ids: tuple[int, ...], num_tokens: int, family: str = "llama") -> list[int]:
    """What `generate` of a tiny model answers greedily, the end of sequence ignored."""
    model: Any = stock(family)
    with torch.no_grad():
        answer: Tensor = model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return answer[0, len(prompt_ids) :].tolist()


def is_as_wanted(stand: Stand, request_id: str) -> bool:
    """Whether a request's output so far is what `generate` answers."""
    request, output = stand.requests[request_id], stand.output(request_id)
    return output == wanted(request.prompt_ids, request.sampling.max_tokens)[: len(output)]


def weights_bytes() -> int:
    """Of the tiny llama."""
    return prepared().weights_bytes


def check(stand: Stand) -> None:
    """What must hold between any two steps."""
    store, scheduler = stand.store, stand.scheduler
    store.check()
    everyone = scheduler.everyone
    caches = [cache for s in everyone for cache in (s.cache, s.shadow) if cache is not None]
    assert sum(cache.used_bytes for cache in caches) == store.used_bytes
    assert all(s.cache.used_bytes == s.shadow_bytes == 0 for s in scheduler.waiting)
    assert all(s.shadow is None or s.shadow.is_exact for s in everyone)
    held = [(cache, page) for cache in caches for page in pages_of(cache)]
    assert all(p.num_tokens for _, p in held), "a step left pages behind that it did not fill"
    check_holders(held)
    assert all(s.permits(s.mode) for s in everyone)
    assert len({s.id for s in everyone}) == len(everyone)
    limit_bytes = store.budget.limit_bytes
    assert limit_bytes is None or store.budget.used_bytes <= limit_bytes
    assert store.budget.workspace_bytes == 0
    assert not {s.id for s in everyone} & set(stand.ends)


def pages_of(cache: SequenceCache) -> list[Page]:
    """Of all groups."""
    groups = range(len(cache.store.groups))
    return [page for group in groups for page in cache.pages(group)]


def check_holders(held: Sequence[tuple[SequenceCache, Page]]) -> None:
    """Who holds a page has it among its own, and the other way round."""
    holders: dict[Page, set[SequenceCache]] = {}
    for cache, page in held:
        holders.setdefault(page, set()).add(cache)
    for page, found in holders.items():
        if page.block is None:
            assert len(found) == 1, "a page of two sequences, and neither knows"
        else:
            assert set(page.block.holders) == found
            assert len(page.block.holders) == len(found)
            assert page in page.block.pages
            assert all(each in holders for each in page.block.pages)


def check_rest(stand: Stand, request_id: str, num_steps: int) -> None:
    """Down and up again: healing begins after so many steps of rest, and no sooner."""
    stand.pin("int4")
    stand.step(2)
    stand.pin("full")
    stand.step(num_steps - 1)
    assert stand.sequence(request_id).shadow is None
    stand.step(3)
    assert stand.sequence(request_id).shadow is not None


def check_empty(stand: Stand) -> None:
    """What must hold once everyone has ended: what is held is retained, and goes when asked for."""
    check(stand)
    assert stand.scheduler.is_idle
    assert stand.store.used_bytes == 0
    stand.store.prefixes.shrink(0)
    assert stand.store.held_bytes == 0


def lengths(num: int, first: int = 5, step: int = 23) -> list[int]:
    """Ragged lengths of prompts."""
    return list(itertools.islice(itertools.count(first, step), num))
