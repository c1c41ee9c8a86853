"""How fast this box decodes this model: measured at start-up, so that no cost is a guess.

A step is taken as a sum: reading the weights, a share for every further sequence, and for every
token that attention looks at what its format takes. The lengths that are needed for this are made
without a prefill: pages are taken, filled with noise, and counted as stored.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from adaptive_kv.attention.batch import Row
from adaptive_kv.cache import costs, switch
from adaptive_kv.cache.formats import FORMAT_NAMES
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.batch import check_shortage
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.graphs import DecodeGraphs
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.noise import noisy_cache
from adaptive_kv.policy import CacheMode
from adaptive_kv.progress import Progress, Tell, untold

_LONG, _SHORT, _LEAST = 2048, 16, 256
_NUM_ROWS = 4
_NUM_NEW = 128
_ENOUGH_S = 1.0
"""Steps are repeated for so long: many of a quick model, one of a slow one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds that a step is made of."""

    step_s: float
    """One sequence without a past."""
    row_s: float
    """Every further sequence."""
    context_token_s: Mapping[str, float]
    """By format: every stored token of a sequence."""
    new_token_s: float
    """Every further token of a sequence that goes through the model in the same step."""
    convert_bytes_per_s: float | None = None
    """Bytes of pages that a switch reads and writes per second; None where a clock sees by itself
    how long one takes, because nothing is left to a device."""

    def token_s(self, mode: CacheMode, lengths: Sequence[int], sinks: int) -> float:
        """What a token takes, as each of the sequences of `lengths` tokens sees it, all in `mode`.

        In `disabled` whole prefixes take turns: a sequence waits for those of all others.
        """
        step_s = self.step_s + self.row_s * max(0, len(lengths) - 1)
        if mode.is_disabled:
            return step_s + self.new_token_s * sum(lengths)
        most = sinks + mode.window if mode.window is not None else max(lengths, default=0)
        per_token_s = self.context_token_s.get(mode.page_format, self.context_token_s["full"])
        return step_s + per_token_s * sum(min(length, most) for length in lengths)


def measure_speed(
    model: Model,
    *,
    keep: Keep,
    slab_bytes: int,
    budget: Budget,
    graphs: DecodeGraphs | None = None,
    tell: Tell = untold,
) -> Speed | None:
    """Time steps as they will be run; takes from `budget`, and gives it all back.

    Where memory is short, shorter sequences are timed; None where even they do not fit.
    """
    num_tokens = min(_LONG, model.max_context - 1)
    while num_tokens >= _LEAST:
        store = PageStore(
            model.groups, keep=keep, slab_bytes=slab_bytes, budget=budget, device=model.device
        )
        try:
            return _Timer(model, store, graphs, tell).measure(num_tokens)
        except RuntimeError as error:
            check_shortage(error)
        num_tokens //= 2
    return None


class _Timer:
    """Times steps on caches of its own store."""

    def __init__(
        self, model: Model, store: PageStore, graphs: DecodeGraphs | None, tell: Tell
    ) -> None:
        self._model = model
        self._store = store
        self._forward = Forward(model, store, graphs)
        self._tell = tell
        self._caches: list[SequenceCache] = []

    def measure(self, num_tokens: int) -> Speed:
        """Raises what an allocator says where memory is short; no page is kept."""
        family = self._model.model_type
        formats = [name for name in FORMAT_NAMES if permits(family, CacheMode(name))]
        try:
            best_s = self._best_s(
                {
                    "short": self._decodes("full", [_SHORT]),
                    "rows": self._decodes("full", [_SHORT] * _NUM_ROWS),
                    "new": [Row(self._filled("disabled", 0), 0, _NUM_NEW)],
                    **{name: self._decodes(name, [num_tokens]) for name in formats},
                }
            )
            bytes_per_s = None
            if self._model.device.type == "cuda":
                cache = self._filled("full", num_tokens)
                bytes_per_s = convert_speed(cache, [*formats[1:], "full"])
        finally:
            for cache in self._caches:
                cache.drop()

        def more_s(name: str) -> float:
            return max(0.0, best_s[name] - best_s["short"])

        return Speed(
            step_s=best_s["short"],
            row_s=more_s("rows") / (_NUM_ROWS - 1),
            context_token_s={name: more_s(name) / (num_tokens - _SHORT) for name in formats},
            new_token_s=more_s("new") / _NUM_NEW,
            convert_bytes_per_s=bytes_per_s,
        )

    def _decodes(self, mode: str, lengths: Sequence[int]) -> list[Row]:
        """The next token of sequences that hold so many."""
        return [Row(self._filled(mode, length), length, 1) for length in lengths]

    def _filled(self, mode: str, length: int) -> SequenceCache:
        """A settled cache of so many tokens, and room for the next."""
        self._caches.append(noisy_cache(self._store, CacheMode(mode), length))
        return self._caches[-1]

    def _best_s(self, steps: Mapping[str, Sequence[Row]]) -> dict[str, float]:
        """The quickest of each, taking turns: what others do on this box only ever adds to one."""
        self._tell(Progress(task="measuring speed"))
        for rows in steps.values():
            self._step_s(rows)
        best_s = {name: self._step_s(rows) for name, rows in steps.items()}
        spent_s = sum(best_s.values())
        while spent_s < _ENOUGH_S:
            self._tell(Progress(task="measuring speed", done=spent_s, total=_ENOUGH_S))
            for name, rows in steps.items():
                took_s = self._step_s(rows)
                spent_s += took_s
                best_s[name] = min(best_s[name], took_s)
        return best_s

    def _step_s(self, rows: Sequence[Row]) -> float:
        positions = [row.position + i for row in rows for i in range(row.num_new)]
        last = [stop - 1 for stop in accumulate(row.num_new for row in rows)]
        longest = max(positions) + 1
        model = self._model
        workspace_bytes = costs.workspace_bytes(
            model.widths, model.groups, len(positions), len(last), longest
        )
        with self._store.budget.workspace(workspace_bytes):
            started_s = time.perf_counter()
            logits = self._forward(rows, [0] * len(positions), positions, last)
            logits[0, 0].item()  # a device has only finished once something was read
            return time.perf_counter() - started_s


def convert_speed(cache: SequenceCache, formats: Sequence[str]) -> float | None:
    """Bytes per second of the slowest switch from one format to the next, the launching included.

    None where the cache has too few tokens for any. Raises what an allocator says.
    """
    found = [[_convert_speed(cache, name) for name in formats] for _ in range(2)]
    best = [max(speeds) for speeds in zip(*found, strict=True)]
    return min((speed for speed in best if speed > 0), default=None)


def _convert_speed(cache: SequenceCache, format_name: str) -> float:
    _wait(cache.store.device)
    started_s = time.perf_counter()
    cache.mode = CacheMode(format_name)
    moved_bytes = switch.advance(cache).moved_bytes
    _wait(cache.store.device)
    return moved_bytes / (time.perf_counter() - started_s)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
