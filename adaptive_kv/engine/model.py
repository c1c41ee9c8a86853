"""A transformers model made ready for ragged batches: loaded, looked at, wrapped.

We use transformers for configurations, weights, tokenizers and `forward`; batching, caching and
sampling are ours. Nothing is patched: the MLPs are wrapped once, attention goes through the
registered function.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from adaptive_kv.attention import interface
from adaptive_kv.attention.batch import RaggedBatch
from adaptive_kv.attention.interface import LayerCall, Step
from adaptive_kv.cache.costs import ModelWidths
from adaptive_kv.cache.disabled import chunk_mlps
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.engine.linear import block_linears, read_by_row
from adaptive_kv.engine.norm import fuse_norms
from adaptive_kv.sending import to_device

_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that `forward`s ragged batches, and the facts the engine plans with."""

    module: PreTrainedModel
    groups: tuple[LayerGroup, ...]
    widths: ModelWidths
    max_context: int
    weights_bytes: int
    device: torch.device

    @property
    def model_type(self) -> str:
        """The family, as transformers names it."""
        return str(self.module.config.model_type)

    def forward(
        self, ids: Sequence[int], positions: Sequence[int], last: Sequence[int], batch: RaggedBatch
    ) -> Tensor:
        """Logits `[len(last), vocab]` of the chosen rows of a packed batch, in its dtype."""
        numbers = to_device([*ids, *positions, *last], self.device, torch.int64)
        there = numbers.split([len(ids), len(positions), len(last)])
        return self.forward_there(there[0], there[1], there[2], batch)

    def forward_there(self, ids: Tensor, positions: Tensor, last: Tensor, step: Step) -> Tensor:
        """As `forward`, of numbers that are on the device; nobody waits for it."""
        with torch.inference_mode(), interface.present(step):
            out = self.module(
                input_ids=ids[None],
                position_ids=positions[None],
                logits_to_keep=last,
                use_cache=False,
                adaptive_kv_step=step,
            )
        logits = out.logits[0]
        assert isinstance(logits, Tensor)
        return logits

    @contextmanager
    def stock_attention(self) -> Iterator[PreTrainedModel]:
        """The same weights with transformers' own eager attention, for comparison."""
        self.module.set_attn_implementation("eager")
        try:
            yield self.module
        finally:
            self.module.set_attn_implementation(interface.NAME)


def prepare(module: PreTrainedModel, max_context: int | None = None) -> Model:
    """Make a loaded model ready, in place. Raises `ValueError` where its attention is not ours."""
    module.train(mode=False).requires_grad_(requires_grad=False)
    module.set_attn_implementation(interface.NAME)
    groups = _find_groups(module)
    chunk_mlps(module)
    block_linears(module)
    read_by_row(module)
    fuse_norms(module)
    limits = [_context_limit(module.config), max_context]
    return Model(
        module=module,
        groups=groups,
        widths=_find_widths(module),
        max_context=min(limit for limit in limits if limit is not None),
        weights_bytes=weights_bytes(module),
        device=module.device,
    )


@dataclass(slots=True)
class _ShapeRecorder:
    """A step that only notes what each layer hands to attention."""

    seen: dict[int, tuple[int, int, int, torch.dtype, int | None]] = field(default_factory=dict)

    def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Note the shapes; answer zeros."""
        kv_heads, num_tokens, key_dim = keys.shape
        self.seen[call.layer] = (kv_heads, key_dim, values.shape[-1], keys.dtype, call.window)
        return queries.new_zeros(num_tokens, queries.shape[0], values.shape[-1])


def _find_groups(module: PreTrainedModel) -> tuple[LayerGroup, ...]:
    """Ask the model itself: run one token and note every layer's keys and values."""
    recorder = _ShapeRecorder()
    one = torch.zeros(1, 1, dtype=torch.int64, device=module.device)
    with torch.inference_mode(), interface.present(recorder):
        module(input_ids=one, position_ids=one, use_cache=False, adaptive_kv_step=recorder)
    if len(recorder.seen) != module.config.num_hidden_layers:
        raise ValueError(
            f"{len(recorder.seen)} of {module.config.num_hidden_layers} layers use attention "
            "that can be cached here"
        )
    layers: dict[tuple[int, int, int, torch.dtype, int | None], list[int]] = defaultdict(list)
    for layer, shape in sorted(recorder.seen.items()):
        layers[shape].append(layer)
    return tuple(
        LayerGroup(tuple(numbers), heads, key_dim, value_dim, dtype, window)
        for (heads, key_dim, value_dim, dtype, window), numbers in layers.items()
    )


def _find_widths(module: PreTrainedModel) -> ModelWidths:
    config = module.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head_dim = max(head_dim, getattr(config, "qk_head_dim", 0) or 0)
    experts = getattr(config, "num_experts_per_tok", None) or 0
    expert = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return ModelWidths(
        hidden=config.hidden_size,
        # Every expert gets its own copy of its tokens, and holds more at a time than a plain MLP.
        mlp=max(config.intermediate_size, experts * (3 * expert + config.hidden_size)),
        query=config.num_attention_heads * head_dim,
        vocab=config.vocab_size,
        itemsize=module.dtype.itemsize,
    )


def _context_limit(config: PretrainedConfig) -> int:
    """The longest context that can be served.

    Rotary embeddings that depend on the longest sequence of the whole batch (longrope, dynamic)
    would let one long sequence change its neighbours; they are served up to the length at which
    that begins.
    """
    limit = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        limit = min(limit, int(original or limit))
    return limit


def weights_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())  # shared ones come once
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
