"""The load-time probe: our attention against the stock model, on the weights just loaded.

Two short sequences run a chunked prefill and two decode steps through pages; every logit is
compared with the stock model run on the whole prefix. A model that differs is not served.
"""

import torch
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.model import Model
from adaptive_kv.policy import CacheMode

TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""How far logits may be off, relative to the largest."""
_LENGTHS = (9, 37)
_CHUNK_TOKENS = 23


def probe(model: Model) -> float:
    """The largest error relative to the largest logit. Raises `ValueError` above tolerance."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.widths.vocab
    prompts = [torch.randint(vocab, (n + 2,), generator=generator).tolist() for n in _LENGTHS]
    errors = _errors(model, prompts)
    worst, limit = max(errors), TOLERANCE[model.module.dtype]
    if not all(error <= limit for error in errors):  # NaN, too, is refused
        raise ValueError(f"its logits differ from the stock model by {worst:.1e} (limit {limit})")
    return worst


def _errors(model: Model, prompts: list[list[int]]) -> list[float]:
    store = PageStore(model.groups, keep=Keep(), slab_bytes=0, budget=Budget(), device=model.device)
    caches = [SequenceCache(store, CacheMode("full")) for _ in prompts]
    errors = []
    for stop_short in (2, 1, 0):
        stops = [len(prompt) - stop_short for prompt in prompts]
        logits = _run(model, store, caches, prompts, stops)
        for row, prompt, stop in zip(logits, prompts, stops, strict=True):
            wanted = _stock_logits(model, prompt[:stop])
            errors.append(((row - wanted).abs().max() / wanted.abs().max()).item())
    return errors


def _run(
    model: Model,
    store: PageStore,
    caches: list[SequenceCache],
    prompts: list[list[int]],
    stops: list[int],
) -> Tensor:
    """Bring every cache up to its stop, in chunks; the logits after the last token of each."""
    last: dict[int, Tensor] = {}
    while pending := [i for i, stop in enumerate(stops) if caches[i].num_stored < stop]:
        rows: list[Row] = []
        ids: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for i in pending:
            start = caches[i].num_stored
            stop = min(stops[i], start + _CHUNK_TOKENS)
            caches[i].reserve(stop - start)
            rows.append(Row(caches[i], start, stop - start))
            ids += prompts[i][start:stop]
            positions += range(start, stop)
            ends.append(len(ids) - 1)
        logits = model.forward(ids, positions, ends, RaggedBatch(store, rows))
        for i, row, logit in zip(pending, rows, logits, strict=True):
            caches[i].commit(row.num_new, is_exact=True)
            last[i] = logit.float()
    return torch.stack([last[i] for i in range(len(stops))])


def _stock_logits(model: Model, ids: list[int]) -> Tensor:
    with model.stock_attention() as stock, torch.inference_mode():
        inputs = torch.tensor([ids], device=model.device)
        logits: Tensor = stock(input_ids=inputs, use_cache=False).logits[0, -1].float()
    return logits
