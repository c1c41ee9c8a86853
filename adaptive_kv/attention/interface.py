"""The one function registered with transformers, and how it finds the present step.

Models that use transformers' attention interface call `attend` in every layer. The step travels
as the keyword argument `adaptive_kv_step` through `model.forward`, a name that no model has a
meaning of its own for (`cache` became one in transformers 5.24); a few models (nemotron, stablelm)
drop keyword arguments, so it is also published in a `ContextVar`. No mask function is registered:
transformers then builds no mask at all, and the step alone knows who may see what.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

NO_WINDOW = 1 << 30
"""Stands for a window that hides nothing where a kernel wants a number; fits into 32 bits."""

NAME = "adaptive_kv"  # must not contain flash, sdpa, flex_attention, | or / (transformers tests)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a model asks of attention in one layer, besides queries, keys and values.

    `sink_logits` (`[query_heads]`) join the softmax's denominator once (gpt-oss `s_aux`).
    """

    layer: int
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sink_logits: Tensor | None = None


class Step(Protocol):
    """Whoever answers a layer's call: the ragged batch of a step, or a recorder of shapes."""

    def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention output `[tokens, query_heads, value_dim]` of the packed batch.

        `queries` `[query_heads, tokens, key_dim]`; `keys` and `values` `[kv_heads, tokens, dim]`.
        """
        ...


_PRESENT: ContextVar[Step | None] = ContextVar("adaptive_kv_step", default=None)


@contextmanager
def present(step: Step) -> Iterator[None]:
    """Make `step` the one that models find which drop keyword arguments."""
    token = _PRESENT.set(step)
    try:
        yield
    finally:
        _PRESENT.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the step knows who may see what
    scaling: float | None = None,
    adaptive_kv_step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001 - dropout, position_ids, is_causal and whatever comes
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `query` `[1, heads, tokens, dim]` of the packed batch.

    Raises `LookupError` when called outside a step.
    """
    step = _PRESENT.get() if adaptive_kv_step is None else adaptive_kv_step
    if step is None:
        raise LookupError("adaptive_kv attention was called outside a step: pass adaptive_kv_step=")
    call = LayerCall(
        layer=_layer_number(module),
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sink_logits=s_aux,
    )
    return step.attend(call, query[0], key[0], value[0]).unsqueeze(0), None


def _layer_number(module: nn.Module) -> int:
    number = module.layer_idx
    assert isinstance(number, int)
    return number


AttentionInterface.register(NAME, attend)
