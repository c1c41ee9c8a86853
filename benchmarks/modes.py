"""What every switch between two modes costs and loses, on the embedded model.

For each pair of modes a sequence reads most of the built-in text in the first mode, switches, and
reads the rest in the second; what it expects there is compared with a sequence that was always
`full`. Bytes are exact; losses differ a little between processors; times are this machine's.

    python benchmarks/modes.py                        rewrites docs/modes.md and its figures
    python benchmarks/modes.py --modes full int4 --output here.json --document here.md
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from machine import machine
from modes_report import render
from page import DOCS
from running import file_parser, publish
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.config import CacheSettings, ModelSettings
from adaptive_kv.engine.calibrating import built_in_text
from adaptive_kv.engine.calibration import calibrate
from adaptive_kv.engine.loading import LoadedModel, load_model
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.text import PromptEncoder
from adaptive_kv.policy import CacheMode

_MODES = (
    "full",
    "int8",
    "int4",
    "window:512",
    "window:512+int8",
    "window:512+int4",
    "disabled",
)
_BEFORE_TOKENS, _AFTER_TOKENS, _CHUNK_TOKENS = 1536, 384, 32
_SLAB_BYTES = 2**20
_KEEP = Keep(CacheSettings().sinks, CacheSettings().recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One switch: bytes of pages before and after, and what it took."""

    from_mode: str
    to_mode: str
    before_bytes: int
    after_bytes: int
    moved_bytes: int
    """Read and written."""
    recomputed_tokens: int
    """Run through the model again before the next token."""
    took_ms: float
    """Without what is recomputed."""
    kl_divergence: float
    top1_agreement: float


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON, then the document."""
    parser = file_parser(__doc__, "modes", DOCS / "modes.md")
    parser.add_argument("--modes", nargs="+", default=_MODES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    publish(parser.parse_args(arguments), _measure, render)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    modes, num_rounds = [CacheMode(mode) for mode in options.modes], options.rounds
    loaded = load_model(ModelSettings(device="cpu", dtype="float32"))
    ids = _text_ids(loaded)[: _BEFORE_TOKENS + _AFTER_TOKENS]
    reader = _Reader(loaded.model, ids)
    wanted, _ = reader.switch(CacheMode("full"), CacheMode("full"))
    switches = [
        _figures(from_mode, to_mode, reader, wanted, num_rounds)
        for from_mode, to_mode in itertools.product(modes, modes)
    ]
    return {
        "machine": machine(),
        "before_tokens": _BEFORE_TOKENS,
        "after_tokens": _AFTER_TOKENS,
        "sinks": _KEEP.sinks,
        "recent": _KEEP.recent,
        "modes": list(modes),
        "switches": [asdict(found) for found in switches],
        "calibrations": {dtype: _calibration(dtype) for dtype in ("float32", "bfloat16")},
    }


def _text_ids(loaded: LoadedModel) -> list[int]:
    return list(PromptEncoder(loaded.tokenizer).encode_text(built_in_text()))


def _calibration(dtype: Any) -> dict[str, Any]:
    loaded = load_model(ModelSettings(device="cpu", dtype=dtype))
    ids = _text_ids(loaded)
    found = calibrate(loaded.model, ids, keep=_KEEP, slab_bytes=_SLAB_BYTES, budget=Budget())
    assert found is not None
    return asdict(found)


def _figures(
    from_mode: CacheMode, to_mode: CacheMode, reader: "_Reader", wanted: Tensor, num_rounds: int
) -> Switch:
    rounds = [reader.switch(from_mode, to_mode) for _ in range(num_rounds)]
    found, seen = rounds[0]
    kl = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    agreement = (found.argmax(-1) == wanted.argmax(-1)).double().mean().item()
    return Switch(
        from_mode=from_mode,
        to_mode=to_mode,
        **{**seen, "took_ms": round(statistics.median(s["took_ms"] for _, s in rounds), 2)},
        kl_divergence=max(0.0, kl),
        top1_agreement=agreement,
    )


class _Reader:
    """Reads a text in chunks, as the engine would, and switches on the way."""

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self._model = model
        self._ids = ids

    @torch.inference_mode()
    def switch(self, from_mode: CacheMode, to_mode: CacheMode) -> tuple[Tensor, dict[str, Any]]:
        """Log probabilities `[tokens after the switch, vocab]`, and what the switch took."""
        cache = self._start(from_mode)
        self._read(cache, _BEFORE_TOKENS)
        before_bytes, moved_bytes = cache.used_bytes, 0
        started_s = time.perf_counter()
        if to_mode != from_mode:
            cache.mode = to_mode
            while not cache.is_settled:
                moved_bytes += switch.advance(cache).moved_bytes
        took_s = time.perf_counter() - started_s
        num_missing = _BEFORE_TOKENS - cache.num_stored
        self._read(cache, _BEFORE_TOKENS)
        seen = {
            "before_bytes": before_bytes,
            "after_bytes": cache.used_bytes,
            "moved_bytes": moved_bytes,
            "recomputed_tokens": num_missing,
            "took_ms": took_s * 1e3,
        }
        return self._rest(cache).double().log_softmax(-1), seen

    def _start(self, mode: CacheMode) -> SequenceCache:
        store = PageStore(
            self._model.groups,
            keep=_KEEP,
            slab_bytes=_SLAB_BYTES,
            budget=Budget(),
            device=self._model.device,
        )
        return SequenceCache(store, mode)

    def _read(self, cache: SequenceCache, stop: int) -> None:
        if not cache.mode.is_disabled:
            for _ in self._chunks(cache, stop):
                pass

    def _rest(self, cache: SequenceCache) -> Tensor:
        if not cache.mode.is_disabled:
            return torch.cat(list(self._chunks(cache, len(self._ids))))
        return self._forward(cache, range(len(self._ids)), range(_BEFORE_TOKENS, len(self._ids)))

    def _chunks(self, cache: SequenceCache, stop: int) -> Iterator[Tensor]:
        """Read up to `stop`; logits after every token."""
        while cache.num_stored < stop:
            first = cache.num_stored
            chunk = range(first, min(first + _CHUNK_TOKENS, stop))
            cache.reserve(len(chunk))
            yield self._forward(cache, chunk, range(len(chunk)))
            switch.advance(cache)

    def _forward(self, cache: SequenceCache, chunk: range, rows: range) -> Tensor:
        row = Row(cache, chunk.start, len(chunk))
        batch = RaggedBatch(cache.store, [row])
        logits = self._model.forward(self._ids[chunk.start : chunk.stop], chunk, rows, batch)
        if row.is_stored:
            cache.commit(len(chunk), is_exact=row.is_exact)
        return logits


if __name__ == "__main__":
    main(sys.argv[1:])
