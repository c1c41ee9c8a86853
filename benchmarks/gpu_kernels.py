"""Kernels of the GPU against plain torch: right, and how fast."""

from typing import Any

import torch
from gpu_pages import Place, filled, make_store, random_rows

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.store import GroupPages, PageStore
from adaptive_kv.cache.table import SequenceCache, make_run
from adaptive_kv.policy import CacheMode

_TOKENS = 128
_MODES = ("full", "int8", "int4", "window:100+int4")
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
_SWITCHES = (
    *(("full", "int8"), ("full", "int4"), ("int8", "int4")),
    *(("int4", "int8"), ("int8", "full"), ("int4", "full")),
)


def check_attention(place: Place) -> list[dict[str, Any]]:
    """The largest error of every case, relative to the largest output, and whether it will do."""
    found = []
    for dtype, tolerance in _TOLERANCE.items():
        for name, dims, group, options in _cases(place, dtype):
            layers = LayerGroup((0,), 2, *dims, dtype, options.get("window"))
            call = LayerCall(layer=0, scaling=dims[0] ** -0.5, **options)
            for num_new in (1, 20 if place.is_dry else 40):
                error = _error(place, layers, call, group, num_new)
                found.append(
                    {
                        "case": f"{name}, {num_new} new, {dtype}".replace("torch.", ""),
                        "error": error,
                        "is_right": error <= tolerance,
                    }
                )
    return found


def _cases(
    place: Place, dtype: torch.dtype
) -> list[tuple[str, tuple[int, int], int, dict[str, Any]]]:
    sinks = torch.linspace(-3, 3, 8, device=place.device)
    cases: list[tuple[str, tuple[int, int], int, dict[str, Any]]] = [
        ("heads of 64, groups of 4", (64, 64), 4, {"sink_logits": sinks}),
        ("heads of 128, groups of 7", (128, 128), 7, {}),
        ("heads of 80 and 48", (80, 48), 3, {"softcap": 5.0}),
        ("heads of 96, a window", (96, 96), 1, {"window": 50}),
        ("heads of 256", (256, 256), 2, {}),
    ]
    is_little = place.is_dry or dtype == torch.float16  # a type more is a compilation more
    return cases[:1] if is_little else cases


def _error(place: Place, layers: LayerGroup, call: LayerCall, group: int, num_new: int) -> float:
    torch.manual_seed(0)
    store = make_store(place, [layers])
    lengths = (150,) if place.is_dry else (1, 40, 300, 3001)
    caches = [filled(store, mode, n, num_new=num_new) for mode in _MODES for n in lengths]
    rows = [Row(cache, cache.num_stored, num_new) for cache in caches]
    heads, tokens = layers.num_kv_heads, num_new * len(rows)
    inputs = [
        random_rows(place, (heads * group, tokens, layers.key_dim), layers.dtype),
        random_rows(place, (heads, tokens, layers.key_dim), layers.dtype),
        random_rows(place, (heads, tokens, layers.value_dim), layers.dtype),
    ]
    wanted, found = (
        RaggedBatch(store, rows, use_kernels=by_kernel).attend(call, *inputs).float()
        for by_kernel in (False, True)
    )
    return float((found - wanted).abs().max() / wanted.abs().max())


def check_switches(place: Place) -> list[dict[str, Any]]:
    """Pages as the kernel converts them and as torch does: the share of bytes that differ.

    None where nothing is rotated; where sums are, a code in a thousand may round the other way.
    """
    found = []
    for source, target in _SWITCHES:
        pages = make_store(place, [LayerGroup((0, 1), 2, 128, 64, torch.bfloat16)]).groups[0]
        size = pages.formats[source].tokens_per_page
        sources = [pages.take(source, start) for start in range(0, _TOKENS, size)]
        rows = [torch.randn(2, 2, _TOKENS, dim, device=place.device) for dim in (128, 64)]
        keys, values = (some.to(torch.bfloat16) for some in rows)
        pages.formats[source].write(make_run(pages, sources), keys, values)
        mine, wanted = (_take(pages, target) for _ in range(2))
        switch.rewrite(pages, sources, mine)
        switch.rewrite_in_torch(pages, sources, wanted)
        unlike = _unlike(pages, mine, wanted)
        most = 0.002 if "int4" in (source, target) else 0.0
        # The interpreter cuts bfloat16 off instead of rounding it.
        is_right = unlike <= most or (place.is_dry and source != "full")
        found.append({"case": f"{source} to {target}", "unlike": unlike, "is_right": is_right})
    return found


def _take(pages: GroupPages, name: str) -> list[Page]:
    size = pages.formats[name].tokens_per_page
    return [pages.take(name, start) for start in range(0, _TOKENS, size)]


def _unlike(pages: GroupPages, mine: list[Page], wanted: list[Page]) -> float:
    name = mine[0].format
    pairs = zip(
        *(pages.formats[name].read(make_run(pages, some), slice(None)) for some in (mine, wanted)),
        strict=True,
    )
    return max(float((one != other).float().mean()) for one, other in pairs)


def copy_bandwidth(place: Place) -> float:
    """Bytes read and written per second, copying what no cache holds."""
    num_bytes = 1 << (20 if place.is_dry else 30)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / place.best_s(lambda: target.copy_(source), 20)


def measure_switches(place: Place, bandwidth: float) -> list[dict[str, Any]]:
    """A long sequence of the 8B shape down the ladder: bytes moved per second."""
    layers = LayerGroup(
        tuple(range(1 if place.is_dry else 32)), 1 if place.is_dry else 8, 128, 128, torch.bfloat16
    )
    found = []
    for mode, then in (("full", "int8"), ("full", "int4"), ("int8", "int4"), ("int4", "full")):
        store = make_store(place, [layers])
        cache = filled(store, mode, 190 if place.is_dry else 16_384)
        warm = filled(store, mode, 190)
        _settle(warm, then, place)
        moved_bytes, took_s = _settle(cache, then, place)
        speed = moved_bytes / took_s
        found.append(
            {
                "case": f"{mode} to {then}",
                "bytes_per_s": speed,
                "share_of_copy": speed / bandwidth,
            }
        )
    return found


def _settle(cache: SequenceCache, mode: str, place: Place) -> tuple[int, float]:
    cache.mode = CacheMode(mode)
    moved_bytes = 0

    def settle() -> None:
        nonlocal moved_bytes
        while not cache.is_settled:
            moved_bytes += switch.advance(cache).moved_bytes

    took_s = place.timed_s(settle)
    return moved_bytes, took_s


def measure_prefill(place: Place) -> list[dict[str, Any]]:
    """A chunk of the 8B shape over a past in each format: the kernel, and plain torch."""
    num_heads = 1 if place.is_dry else 8
    layers = LayerGroup((0,), num_heads, 128, 128, torch.bfloat16)
    num_new, length = (8, 100) if place.is_dry else (2048, 8192)
    found = []
    for mode in ("full", "int8", "int4"):
        store = make_store(place, [layers])
        cache = filled(store, mode, length, num_new=num_new)
        took = {
            name: _prefill_s(place, store, Row(cache, length, num_new), is_kernel=is_kernel)
            for name, is_kernel in (("kernel_s", True), ("torch_s", False))
        }
        found.append({"mode": mode, "past": length, "new": num_new, **took})
    return found


def _prefill_s(place: Place, store: PageStore, row: Row, *, is_kernel: bool) -> float:
    batch = RaggedBatch(store, [row], use_kernels=is_kernel)
    num_heads = store.groups[0].group.num_kv_heads
    call = LayerCall(layer=0, scaling=0.1)
    shapes = [(heads, row.num_new, 128) for heads in (4 * num_heads, num_heads, num_heads)]
    inputs = [random_rows(place, shape, torch.bfloat16) for shape in shapes]
    return place.best_s(lambda: batch.attend(call, *inputs), 3)
