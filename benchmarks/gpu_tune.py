"""What attention's kernels could be started with instead, measured: a line for `gpu_tuning.TABLE`.

One size is changed at a time, then those that helped together. Kernels are timed by themselves,
replayed from a graph: launching them takes longer than they do.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from gpu_pages import Place, filled, make_store, random_rows
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.attention.gpu_tuning import DEFAULT, TABLE, Tuning, capability_of
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.geometry import LayerGroup

_CANDIDATES: dict[str, tuple[int, ...]] = {
    "programs_per_core": (1, 3, 4),
    "full_pages": (2, 8),
    "decode_warps": (2, 8),
    "decode_stages": (2, 4),
    "chunk_warps": (4,),
    "chunk_stages": (1, 3),
    "chunk_tile": (16, 64),
}
_DRY = ("programs_per_core", "chunk_tile")
_CASES = (
    *(("full", 16_384, 1, 1), ("int4", 16_384, 1, 1), ("full", 2048, 1, 16)),
    *(("int8", 2048, 1, 16), ("full", 4096, 512, 1), ("int4", 4096, 512, 1)),
)
"""The mode, tokens of context, new tokens, and sequences that have so many."""
_TOLERANCE = 3e-2
_ENOUGH = 0.97
"""Of the time that the default takes: less of a gain is none."""

Run = Callable[[], Tensor]


def tune(place: Place, left_s: Callable[[], float]) -> dict[str, Any]:
    """How long each candidate takes, as a share of what the default does, and the line to commit.

    The line is None where nothing is worth it, or time ran out.
    """
    capability = capability_of(place.device)
    with _tuned(capability, DEFAULT):
        cases = [_case(place, *case) for case in (_CASES[:1] if place.is_dry else _CASES)]
        base = [(run().float(), _took_s(place, run)) for run in (start() for start in cases)]

    def measured(tuning: Tuning) -> dict[str, Any]:
        changed = {k: v for k, v in asdict(tuning).items() if v != getattr(DEFAULT, k)}
        if left_s() < 20 and not place.is_dry:
            return {"tuning": changed, "left_out": "no time"}
        try:
            with _tuned(capability, tuning):
                runs = [start() for start in cases]
                shares = [_share(place, run, *of) for run, of in zip(runs, base, strict=True)]
        except Exception as error:  # noqa: BLE001 - what does not fit into a GPU is a result
            return {"tuning": changed, "left_out": f"{type(error).__name__}: {error}"[:200]}
        return {"tuning": changed, "share": math.prod(shares) ** (1 / len(shares))}

    names = _DRY if place.is_dry else tuple(_CANDIDATES)
    found = [measured(replace(DEFAULT, **{k: v})) for k in names for v in _CANDIDATES[k]]
    best = replace(DEFAULT, **_best_of_each(found))
    together = measured(best)
    is_better = together.get("share", 1.0) < _ENOUGH
    values = ", ".join(f"{k}={v}" for k, v in together["tuning"].items())
    return {
        "capability": capability,
        "found": [*found, together],
        "line": f"{capability}: Tuning({values})," if is_better else None,
    }


def _best_of_each(found: list[dict[str, Any]]) -> Mapping[str, int]:
    """By size that was changed: the value that took least, where it was less than the default."""
    best: dict[str, tuple[float, int]] = {}
    for one in found:
        ((name, value),) = one["tuning"].items()
        share = one.get("share", 1.0)
        if share < best.get(name, (1.0, 0))[0]:
            best[name] = share, value
    return {name: value for name, (_, value) in best.items()}


@contextmanager
def _tuned(capability: tuple[int, int], tuning: Tuning) -> Iterator[None]:
    """Have kernels started so meanwhile."""
    before = TABLE.get(capability)
    TABLE[capability] = tuning
    try:
        yield
    finally:
        TABLE.pop(capability)
        if before is not None:
            TABLE[capability] = before


def _case(place: Place, mode: str, length: int, num_new: int, num_rows: int) -> Callable[[], Run]:
    """Tells the device what attention of one layer of the 8B shape is to read; answers that."""
    if place.is_dry:
        length, num_heads = 100, 1
    else:
        num_heads = 8
    layers = LayerGroup((0,), num_heads, 128, 128, torch.bfloat16)
    store = make_store(place, [layers])
    caches = [filled(store, mode, length, num_new=num_new) for _ in range(num_rows)]
    rows = [Row(cache, length, num_new) for cache in caches]
    shapes = [(heads, num_new * num_rows, 128) for heads in (4 * num_heads, num_heads, num_heads)]
    inputs = [random_rows(place, shape, torch.bfloat16) for shape in shapes]
    call = LayerCall(layer=0, scaling=128**-0.5)
    return lambda: partial(RaggedBatch(store, rows).attend, call, *inputs)


def _share(place: Place, run: Run, wanted: Tensor, base_s: float) -> float:
    """Of the default's time. Raises `ArithmeticError` where the answer is another one."""
    error = float((run().float() - wanted).abs().max() / wanted.abs().max())
    if not error <= _TOLERANCE:
        raise ArithmeticError(f"answers differ by {error:.1e}")
    return _took_s(place, run) / base_s


def _took_s(place: Place, run: Run) -> float:
    if place.is_dry:
        return place.best_s(run)
    testing: Any = importlib.import_module("triton.testing")
    return float(testing.do_bench_cudagraph(run, rep=10)) / 1e3
