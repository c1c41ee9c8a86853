"""One forward of any batch: replayed where it was captured, else layer by layer."""

from collections.abc import Sequence

from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache.store import PageStore
from adaptive_kv.engine.graphs import DecodeGraphs
from adaptive_kv.engine.model import Model


class Forward:
    """Runs batches of a store's sequences; most of them are like the one before."""

    def __init__(self, model: Model, store: PageStore, graphs: DecodeGraphs | None = None) -> None:
        assert graphs is None or graphs.fits(store)
        self._model = model
        self._store = store
        self._graphs = graphs
        self._ragged: RaggedBatch | None = None

    def __call__(
        self,
        rows: Sequence[Row],
        ids: Sequence[int],
        positions: Sequence[int],
        last: Sequence[int],
    ) -> Tensor:
        """Logits `[len(last), vocab]`, good until the next call; pages must have been reserved.

        `ids` and `positions` are of the packed batch, `last` the places in it whose logits are
        wanted. Raises `torch.OutOfMemoryError`.
        """
        if self._graphs is not None and len(last) == len(rows):
            logits = self._graphs.forward(rows, ids)
            if logits is not None:
                return logits
        if self._ragged is None or not self._ragged.follow(rows):
            self._ragged = RaggedBatch(self._store, rows)
        return self._model.forward(ids, positions, last, self._ragged)
