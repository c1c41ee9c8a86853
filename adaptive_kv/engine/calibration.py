"""What each packed format loses on a model, measured on the machinery that serves.

The built-in text runs through the model in small chunks, once for `full` and once for every
format, in step: after each chunk the caches settle into their plans, so that the next chunk reads
its past from packed pages. Every position that a format can change is compared with `full`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache import costs, switch
from adaptive_kv.cache.formats import FORMAT_NAMES
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.batch import check_shortage
from adaptive_kv.engine.losses import Calibration, FormatLoss
from adaptive_kv.engine.model import Model
from adaptive_kv.policy import CacheMode
from adaptive_kv.progress import Progress, Tell, untold

LOSSY_FORMATS = FORMAT_NAMES[1:]
MAX_TOKENS = 2048
_CHUNK_TOKENS, _MIN_CHUNK_TOKENS = 32, 8
_MIN_POSITIONS = 32
"""Fewer say nothing about a format."""


def calibrate(
    model: Model,
    ids: Sequence[int],
    *,
    keep: Keep,
    slab_bytes: int,
    budget: Budget,
    formats: Sequence[str] = LOSSY_FORMATS,
    tell: Tell = untold,
) -> Calibration | None:
    """Run `ids` and compare; takes from `budget` what a service would, and gives it all back.

    Where memory is short, less of the text is run. None where too little is left to compare:
    a text, a context or a budget that is too small.
    """
    num_tokens = min(len(ids), model.max_context, MAX_TOKENS)
    chunk_tokens = _CHUNK_TOKENS
    while (run := _Run(model, ids[:num_tokens], keep)).num_positions >= _MIN_POSITIONS:
        store = PageStore(
            model.groups, keep=run.keep, slab_bytes=slab_bytes, budget=budget, device=model.device
        )
        try:
            return run.compare(store, formats, chunk_tokens, tell)
        except RuntimeError as error:
            check_shortage(error)
        num_tokens, chunk_tokens = num_tokens // 2, max(_MIN_CHUNK_TOKENS, chunk_tokens // 2)
    return None


@dataclass(slots=True)
class _Tally:
    """Sums over positions."""

    kl: float = 0.0
    num_agreeing: int = 0
    surprise: float = 0.0
    """Negative log likelihood of the text."""

    def add(self, found: Tensor, wanted: Tensor, next_ids: Tensor) -> None:
        """Log probabilities `[positions, vocab]` of a format and of `full`."""
        self.kl += (wanted.exp() * (wanted - found)).sum().item()
        self.num_agreeing += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        self.surprise -= found.gather(1, next_ids[:, None]).sum().item()

    def loss(self, num_positions: int) -> FormatLoss:
        """The means."""
        surprise = torch.tensor(self.surprise / num_positions, dtype=torch.float64)
        kl = self.kl / num_positions
        return FormatLoss(
            kl_divergence=0.0 if kl < 0 else kl,  # rounding; what is no number stays none
            top1_agreement=self.num_agreeing / num_positions,
            perplexity=surprise.exp().item(),
        )


class _Run:
    """One pass over a text.

    `keep` is as configured, but leaves most of the text to be packed.
    """

    def __init__(self, model: Model, ids: Sequence[int], keep: Keep) -> None:
        self.keep = Keep(keep.sinks, min(keep.recent, len(ids) // 4))
        self._model = model
        self._ids = ids
        # From here on every format has a page in use; what follows the last token is not known.
        self._positions = range(self.keep.sinks + self.keep.recent + BLOCK_TOKENS, len(ids) - 1)

    @property
    def num_positions(self) -> int:
        """How many positions can be compared."""
        return len(self._positions)

    @torch.inference_mode()
    def compare(
        self, store: PageStore, formats: Sequence[str], chunk_tokens: int, tell: Tell
    ) -> Calibration:
        """Raises `torch.OutOfMemoryError` or what an allocator says; no page is kept."""
        num_tokens = len(self._ids)
        tallies = [_Tally() for _ in ("full", *formats)]
        with _caches(store, ("full", *formats)) as caches:
            for start in range(0, num_tokens, chunk_tokens):
                tell(Progress(task="calibrating", done=start, total=num_tokens, unit="tokens"))
                chunk = range(start, min(start + chunk_tokens, num_tokens))
                with store.budget.workspace(self._workspace_bytes(chunk)):
                    self._compare_chunk(chunk, caches, tallies)
                for cache in caches:
                    switch.advance(cache)
        full, *losses = (tally.loss(self.num_positions) for tally in tallies)
        return Calibration(
            num_tokens=num_tokens,
            num_positions=self.num_positions,
            perplexity=full.perplexity,
            formats=dict(zip(formats, losses, strict=True)),
        )

    def _workspace_bytes(self, chunk: range) -> int:
        """Of a step with logits after every token, and of comparing them with those of `full`."""
        model, num_new = self._model, len(chunk)
        return costs.workspace_bytes(model.widths, model.groups, num_new, 2 * num_new, chunk.stop)

    def _compare_chunk(
        self, chunk: range, caches: Sequence[SequenceCache], tallies: Sequence[_Tally]
    ) -> None:
        """Run one chunk in every cache and compare with the first, which is `full`."""
        first = max(chunk.start, self._positions.start)
        stop = min(chunk.stop, self._positions.stop)
        next_ids = torch.tensor(self._ids[first + 1 : stop + 1], device=self._model.device)
        wanted: Tensor | None = None
        for cache, tally in zip(caches, tallies, strict=True):
            found = self._forward(cache, chunk, range(first, stop))
            wanted = found if wanted is None else wanted
            if len(next_ids):
                tally.add(found, wanted, next_ids)

    def _forward(self, cache: SequenceCache, chunk: range, positions: range) -> Tensor:
        """Log probabilities `[positions, vocab]` of what follows, in float32."""
        cache.reserve(len(chunk))
        row = Row(cache, chunk.start, len(chunk))
        wanted = [position - chunk.start for position in positions] or [len(chunk) - 1]
        batch = RaggedBatch(cache.store, [row])
        logits = self._model.forward(self._ids[chunk.start : chunk.stop], chunk, wanted, batch)
        cache.commit(len(chunk), is_exact=row.is_exact)
        return logits.float().log_softmax(-1)


@contextmanager
def _caches(store: PageStore, formats: Sequence[str]) -> Iterator[list[SequenceCache]]:
    """An empty cache in each format; their pages are given back at the end, however it comes."""
    caches = [SequenceCache(store, CacheMode(name)) for name in formats]
    try:
        yield caches
    finally:
        for cache in caches:
            cache.drop()
