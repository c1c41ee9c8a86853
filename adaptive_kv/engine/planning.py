"""What a model would need and give on a device, from its config alone: no weight is loaded.

The model is built on the `meta` device, where tensors have shapes and no bytes, and prepared as
the service prepares it. Byte figures therefore equal what the running service reports.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from adaptive_kv.cache import costs
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.config import ModelSettings
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.loading import read_config
from adaptive_kv.engine.model import Model, prepare, weights_bytes
from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePlan:
    """One mode: `cache_bytes` for the sequences asked for, and what the device would hold.

    `bytes_per_token` is the growth of a long sequence. `tokens_per_s` is what memory bandwidth
    permits at most: every step reads the weights once and all caches; None for `disabled`, which
    is bound by compute.
    """

    mode: CacheMode
    bytes_per_token: float
    cache_bytes: int
    transient_bytes: int
    fits: bool
    num_sequences: int
    """How many sequences of the context asked for would fit."""
    max_context: int
    """The longest context at which all sequences asked for fit."""
    tokens_per_s: float | None
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A model on a device."""

    model: str
    weights_bytes: int
    device_bytes: int
    context: int
    sequences: int
    bandwidth_bytes_per_s: float
    modes: tuple[ModePlan, ...]


def outline(settings: ModelSettings) -> tuple[str, Model]:
    """The model's name and shape, without its weights. Raises `ModelError`."""
    name, config, dtype = read_config(settings)
    with torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config  # not annotated
        module: PreTrainedModel = make(deepcopy(config), dtype=dtype)
    num_bytes = weights_bytes(module)
    _skip_experts(module)
    return name, replace(prepare(module, settings.max_context), weights_bytes=num_bytes)


class _NoExperts(nn.Module):
    """Stands where experts are chosen by what tokens say, which no shape can tell."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """What comes in: experts change no shape."""
        return hidden


def _skip_experts(module: nn.Module) -> None:
    for block in list(module.modules()):
        if isinstance(getattr(block, "experts", None), nn.Module):
            block.experts = _NoExperts()


def plan_device(
    name: str,
    model: Model,
    *,
    modes: Sequence[CacheMode],
    keep: Keep,
    device_bytes: int,
    context: int,
    sequences: int,
    bandwidth_bytes_per_s: float,
) -> DevicePlan:
    """What `sequences` of `context` tokens would need in each of `modes` that the model permits."""
    sizes = _Sizes(model, keep, device_bytes - model.weights_bytes)
    return DevicePlan(
        model=name,
        weights_bytes=model.weights_bytes,
        device_bytes=device_bytes,
        context=context,
        sequences=sequences,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        modes=tuple(
            _plan_mode(mode, sizes, context, sequences, bandwidth_bytes_per_s)
            for mode in modes
            if permits(model.model_type, mode)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes of caches of one model, and the room for them."""

    model: Model
    keep: Keep
    room_bytes: int

    def pages(self, mode: CacheMode, context: int) -> int:
        """Pages of one sequence."""
        return costs.sequence_bytes(mode, context, self.model.groups, self.keep)

    def transient(self, mode: CacheMode, context: int, sequences: int) -> int:
        """What a step needs besides."""
        num_new = context if mode.is_disabled else sequences
        model = self.model
        return costs.workspace_bytes(model.widths, model.groups, num_new, sequences, context)

    def fits(self, mode: CacheMode, context: int, sequences: int) -> bool:
        """Whether that many sequences of that length have room."""
        pages_bytes = self.pages(mode, context) * sequences
        return pages_bytes + self.transient(mode, context, sequences) <= self.room_bytes


def _plan_mode(
    mode: CacheMode, sizes: _Sizes, context: int, sequences: int, bandwidth: float
) -> ModePlan:
    weights_bytes = sizes.model.weights_bytes
    one_bytes, far = sizes.pages(mode, context), context + 1024
    read_bytes = weights_bytes + one_bytes * sequences
    limit = sizes.model.max_context
    return ModePlan(
        mode=mode,
        bytes_per_token=(sizes.pages(mode, far) - one_bytes) / (far - context),
        cache_bytes=one_bytes * sequences,
        transient_bytes=sizes.transient(mode, context, sequences),
        fits=sizes.fits(mode, context, sequences),
        num_sequences=_largest(lambda n: sizes.fits(mode, context, n), 1 << 16),
        max_context=_largest(lambda n: sizes.fits(mode, n, sequences), limit),
        tokens_per_s=None if mode.is_disabled else sequences * bandwidth / read_bytes,
        exact=mode.is_exact,
    )


def _largest(is_good: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that is good; 0 if none is. Goodness ends once."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_good(middle) else (low, middle - 1)
    return low
