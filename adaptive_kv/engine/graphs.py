"""Decode steps that are started as a whole: captured at load for some numbers of rows.

    rows of a step    1  2  3  4  5 6 7 8  9 ...      five rows are a step of eight, three of
    captured for      1  2     4        8     16 ...  whose rows are not there

Launching the kernels of a step one by one may take the host longer than they take a GPU. What
differs between steps is data in `StepBuffers`, so nothing is ever captured again; whether any page
is packed chooses between two captures of the same size. docs/decisions/0007-graphs.md.

A capture is not believed: its replay must give the logits that the same step gives when it runs
layer by layer. Where it does not, or capturing fails, every step of this model runs so.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.attention.gpu_buffers import FixedStep, StepBuffers, can_fix
from adaptive_kv.cache import costs
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.cuda_graph import CudaCapture
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.noise import noisy_cache
from adaptive_kv.engine.probe import TOLERANCE
from adaptive_kv.policy import CacheMode
from adaptive_kv.progress import Progress, Tell, untold

Replay = Callable[[], Tensor]
"""Does what was captured once more, on what the buffers hold now; its logits are overwritten then.
"""
Capture = Callable[[Callable[[], Tensor]], Replay]

_SIZES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
"""Steps of more rows run layer by layer: more of them share what launching takes."""
_PACKED = tuple(map(CacheMode, ("int4", "int8", "window:64+int4")))
_FULL = CacheMode("full")
_MAX_NOISE = 1024
_MAX_WHY_CHARS = 300


class DecodeGraphs:
    """What was captured, by number of rows and whether packed pages are read.

    `num_bytes` is what it holds on the device until the process ends. `why_none` says in words why
    nothing was captured; None where it was, and where nobody tried.
    """

    def __init__(
        self,
        store: PageStore,
        buffers: StepBuffers | None = None,
        replays: Mapping[tuple[int, bool], Replay] | None = None,
        *,
        num_bytes: int = 0,
        why_none: str | None = None,
    ) -> None:
        self.num_bytes = num_bytes
        self.why_none = why_none
        self._layout = _layout(store)
        self._buffers = buffers
        self._replays = {} if replays is None else dict(replays)

    def __bool__(self) -> bool:
        """Whether anything was captured."""
        return bool(self._replays)

    @property
    def sizes(self) -> list[int]:
        """Numbers of rows."""
        return sorted({size for size, _ in self._replays})

    def fits(self, store: PageStore) -> bool:
        """Whether pages of this store are laid out as those that were captured with."""
        return _layout(store) == self._layout

    def forward(self, rows: Sequence[Row], ids: Sequence[int]) -> Tensor | None:
        """Logits `[len(rows), vocab]` after one token of each, until the next call.

        None where no step like this was captured. Raises `torch.OutOfMemoryError`.
        """
        size = next((size for size in _SIZES if size >= len(rows)), None)
        if self._buffers is None or size is None or (size, False) not in self._replays:
            return None
        if not all(row.num_new == 1 and row.is_stored for row in rows):
            return None
        replay = self._replays.get((size, self._buffers.write(ids, rows)))
        return None if replay is None else replay()[: len(rows)]


def capture_decodes(
    model: Model,
    *,
    keep: Keep,
    slab_bytes: int,
    budget: Budget,
    max_rows: int,
    capture: Capture | None = None,
    tell: Tell = untold,
) -> DecodeGraphs:
    """Capture steps of up to `max_rows` rows; takes pages from `budget`, and gives them back.

    Without `capture` only on CUDA. Whatever stands in the way is no error: the answer says why.
    """
    # What is recent is packed, too: short sequences have pages of every format then.
    store = PageStore(
        model.groups,
        keep=Keep(keep.sinks, 0),
        slab_bytes=slab_bytes,
        budget=budget,
        device=model.device,
    )
    is_cuda = model.device.type == "cuda"
    if capture is None and not is_cuda:
        return DecodeGraphs(store)
    tell(Progress(task="capturing decode steps"))
    held_bytes = _held_bytes(model.device)
    try:
        if not can_fix(store):
            raise _NotCapturedError(f"no kernel reads its {_kinds(model)} where they lie")
        buffers = StepBuffers(store, _sizes(max_rows)[-1])
        with _Trial(model, store, buffers) as trial:
            replays = trial.captures(capture or CudaCapture(model.device))
    except Exception as error:  # noqa: BLE001 - whatever stands in the way, a step can do without
        return DecodeGraphs(store, why_none=_why(error))
    num_bytes = max(0, _held_bytes(model.device) - held_bytes)
    if num_bytes > budget.room_bytes():
        why = f"captured steps take {num_bytes} bytes, for which there is no room"
        return DecodeGraphs(store, why_none=why)
    return DecodeGraphs(store, buffers, replays, num_bytes=num_bytes)


class _NotCapturedError(RuntimeError):
    """Why a step of this model has to run layer by layer."""


class _Trial:
    """Captures steps, and compares them on sequences of noise."""

    def __init__(self, model: Model, store: PageStore, buffers: StepBuffers) -> None:
        self._model = model
        self._store = store
        self._buffers = buffers
        family = model.model_type
        self._packed = [mode for mode in _PACKED if permits(family, mode)]
        self._caches: list[SequenceCache] = []

    def __enter__(self) -> "_Trial":
        return self

    def __exit__(self, *_: object) -> None:
        for cache in self._caches:
            cache.drop()

    def captures(self, capture: Capture) -> dict[tuple[int, bool], Replay]:
        """Every size, the largest first: the others fit into its memory.

        Raises what stands in the way.
        """
        num_rows = self._buffers.max_rows
        longest = self._longest()
        needed_bytes = costs.workspace_bytes(
            self._model.widths, self._model.groups, num_rows, num_rows, longest
        )
        found = {}
        with self._store.budget.workspace(needed_bytes):
            for has_packed in (False, True) if self._packed else (False,):
                modes = self._packed if has_packed else [_FULL]
                caches = [self._cache(mode, n) for n, mode in enumerate([*modes, _FULL])]
                for fewer, size in reversed(list(pairwise((0, *_sizes(num_rows))))):
                    replay = capture(self._step(size, has_packed=has_packed))
                    for some, num in ((caches, size), (caches[1:] + caches[:1], fewer + 1)):
                        if self._compare(replay, some, num) != has_packed:
                            raise _NotCapturedError("no page could be packed for comparing")
                    found[size, has_packed] = replay
        return found

    def _step(self, size: int, *, has_packed: bool) -> Callable[[], Tensor]:
        """A step of so many rows, whose rows are in the buffers."""
        step = FixedStep(self._buffers, self._store, size, has_packed=has_packed)
        ids, positions, _ = self._buffers.views(size)
        every = torch.arange(size, device=self._model.device)
        return partial(self._model.forward_there, ids, positions, every, step)

    def _compare(self, replay: Replay, caches: Sequence[SequenceCache], num_rows: int) -> bool:
        """Raise where so many rows are not answered as layer by layer; whether any is packed."""
        some = [caches[n % len(caches)] for n in range(num_rows)]
        rows = [Row(cache, cache.num_stored, 1) for cache in some]
        positions = [row.position for row in rows]
        ids = [(7 * position + 3) % self._model.widths.vocab for position in positions]
        batch = RaggedBatch(self._store, rows)
        wanted = self._model.forward(ids, positions, range(num_rows), batch)
        wanted_rows = self._take_newest(some)
        has_packed = self._buffers.write(ids, rows)
        self._check("logits", replay()[:num_rows], wanted)
        for found, one in zip(self._take_newest(some), wanted_rows, strict=True):
            self._check("keys and values", found, one)
        return has_packed

    def _check(self, what: str, found: Tensor, wanted: Tensor) -> None:
        error = float((found - wanted).float().abs().max() / wanted.float().abs().max())
        limit = TOLERANCE[self._model.module.dtype]
        if not error <= limit:  # NaN, too, is refused
            raise _NotCapturedError(
                f"{what} of a replayed step differ by {error:.1e} (limit {limit})"
            )

    def _take_newest(self, caches: Sequence[SequenceCache]) -> list[Tensor]:
        """Keys and values that the step has written; in their places nothing is left."""
        found = []
        for cache in dict.fromkeys(caches):
            for group, pages in enumerate(self._store.groups):
                ((number, index, slot),) = cache.places(group, 1)
                for view in pages.full.views(pages.pages.slab(number)):
                    found.append(view[:, :, index, slot].clone())
                    view[:, :, index, slot] = 0
        return found

    def _cache(self, mode: CacheMode, number: int) -> SequenceCache:
        """Of noise; each has a length of its own."""
        cache = noisy_cache(self._store, mode, max(1, self._longest() - 1 - number))
        self._caches.append(cache)
        return cache

    def _longest(self) -> int:
        """Enough for pages of every format, where sinks leave room for them."""
        wanted = self._store.keep.sinks + 2 * BLOCK_TOKENS + 6
        return min(wanted, _MAX_NOISE, self._model.max_context)


def _sizes(max_rows: int) -> tuple[int, ...]:
    """Those needed for up to `max_rows` rows."""
    return tuple(size for fewer, size in pairwise((0, *_SIZES)) if fewer < max_rows)


def _kinds(model: Model) -> str:
    """What its keys and values are like."""
    found = {f"{g.dtype}".removeprefix("torch.") + f" heads of {g.key_dim}" for g in model.groups}
    return ", ".join(sorted(found))


def _layout(store: PageStore) -> tuple[object, ...]:
    """What was captured with: numbers that kernels are started with."""
    groups = [(g.group, g.pages.pages_per_slab, g.sides.pages_per_slab) for g in store.groups]
    return store.keep.sinks, *groups


def _held_bytes(device: torch.device) -> int:
    """What this process has taken of the device, apart from what nobody uses."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _why(error: BaseException) -> str:
    """What went wrong first: torch ends a capture that failed with an error that says so."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_WHY_CHARS]
