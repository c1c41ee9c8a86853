"""How often a decode step makes the host wait for the device: once, for the tokens it chose."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gpu_decode import make_module
from gpu_pages import Place, captured, filled, make_store
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_kv.attention.batch import Row
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.mailbox import SamplingParams
from adaptive_kv.engine.model import prepare
from adaptive_kv.engine.sampling import SamplingState, sample

_CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "drawn": SamplingParams(temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=1),
    "penalized": SamplingParams(repetition_penalty=1.1, presence_penalty=0.1, min_tokens=9),
    "with logprobs": SamplingParams(temperature=0.0, logprobs=3),
}
_MODES = ("full", "int4")
_NUM_STEPS = 3
_WAITING = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
)
"""Operators whose result the host looks at, or whose size depends on what is in their input."""
_READING = frozenset({"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__"})


def check_waits(place: Place) -> list[dict[str, Any]]:
    """Every way of sampling, replayed and layer by layer: the most waits of a step.

    Among the steps are ones that follow the last one, and ones that have a new page.
    """
    model = prepare(make_module(Place(place.device, is_dry=True), "Qwen2.5-0.5B"))
    graphs = captured(place, model, len(_MODES))
    store = make_store(place, model.groups)
    found = []
    for name, params in _CASES.items():
        for kind, some in (("replayed", graphs), ("layer by layer", None)):
            caches = [filled(store, mode, 158) for mode in _MODES]  # the second token ends a page
            states = [
                SamplingState.start(params, [1, 2], model.widths.vocab, place.device, [0])
                for _ in caches
            ]
            steps = _Steps(Forward(model, store, some), caches, states)
            steps.step()  # compiles, and sends everything
            most = max(_num_waits(place, steps.step) for _ in range(_NUM_STEPS))
            is_right = most == 1 and bool(some) == (kind == "replayed")
            found.append({"case": f"{name}, {kind}", "waits": most, "is_right": is_right})
            for cache in caches:
                cache.drop()
    return found


@dataclass(frozen=True, slots=True)
class _Steps:
    """What a worker does with sequences that decode."""

    forward: Forward
    caches: Sequence[SequenceCache]
    states: Sequence[SamplingState]

    def step(self) -> None:
        """One token more for everyone."""
        rows = [Row(cache, cache.num_stored, 1) for cache in self.caches]
        for cache in self.caches:
            cache.reserve(1)
        positions = [row.position for row in rows]
        logits = self.forward(rows, [3] * len(rows), positions, range(len(rows)))
        found = sample(logits, self.states)
        for cache, state, one in zip(self.caches, self.states, found, strict=True):
            cache.commit(1, is_exact=True)
            state.commit(one.token_id)


def _num_waits(place: Place, act: Callable[[], None]) -> int:
    if place.is_dry:
        seen_here: list[str] = []
        with _Watch(seen_here), _Operators(seen_here):
            act()
        return len(seen_here)
    with _told_of_waits() as seen:
        act()
    return sum("synchronizing" in str(one.message) for one in seen)


@contextmanager
def _told_of_waits() -> Iterator[list[warnings.WarningMessage]]:
    """What torch says of everything that waits for a GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield seen
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Watch(TorchFunctionMode):
    """Notes what Python reads of tensors, which on a GPU would wait."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked."""
        if getattr(func, "__name__", "") in _READING:
            self._seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Notes operators inside of others that would wait."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked."""
        if func.name().partition(".")[0] in _WAITING:
            self._seen.append(func.name())
        return func(*args, **(kwargs or {}))
