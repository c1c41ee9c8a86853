"""Peers that decode behind a context of a given length, filled with noise and not by a prefill.

What is timed is real: the whole `forward` of transformers and the likeliest token, or a whole step
of its continuous batching. Noise is as good as any past for that.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from decode_contenders import cache_name
from rounds import Turn
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    QuantizedCache,
    StaticCache,
)
from transformers.generation.continuous_batching.requests import RequestState

_FIRST_ID = 5
_PAGE_TOKENS = 256  # what transformers takes where nothing is said


class WithCache:
    """`forward` with one of the caches of transformers."""

    def __init__(self, module: PreTrainedModel, cache: Any, num_tokens: int) -> None:
        self.outputs: list[int] = [_FIRST_ID]
        self._module: Any = module
        self._cache = {cache_name(module): cache}
        config = module.config
        shape = (1, config.num_key_value_heads, num_tokens, config.head_dim)
        for layer in range(config.num_hidden_layers):
            noise = (torch.randn(shape, dtype=module.dtype) for _ in range(2))
            cache.update(*noise, layer)

    def take_turn(self, num_tokens: int) -> Turn:
        """As `rounds.TakesTurns.take_turn`."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for _ in range(num_tokens):
                self._step()
        return Turn(num_tokens, time.perf_counter() - wall_s, time.process_time() - cpu_s)

    def _step(self) -> None:
        ids = torch.tensor([self.outputs[-1:]])
        out = self._module(input_ids=ids, **self._cache, use_cache=True)
        logits: Tensor = out.logits
        self.outputs.append(int(logits[0, -1].argmax()))

    def close(self) -> None:
        """Free what it holds."""
        del self._cache


class ContinuousBatching:
    """The loop of transformers' continuous batching, stepped by hand, with the room it needs."""

    def __init__(self, module: PreTrainedModel, num_tokens: int, max_tokens: int) -> None:
        make_config: Any = GenerationConfig
        most = num_tokens + max_tokens
        self._manager: Any = module.init_continuous_batching(  # type: ignore[operator]
            generation_config=make_config(
                do_sample=False, max_new_tokens=max_tokens, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=most // _PAGE_TOKENS + 2,
                max_batch_tokens=_PAGE_TOKENS,
                allow_block_sharing=False,
                use_async_batching=False,
            ),
        )
        manager = self._manager
        self._processor = manager.batch_processor = manager._create_batch_processor()  # noqa: SLF001
        manager.current_batch = 0
        self._state = RequestState(
            "0", [_FIRST_ID] * (num_tokens + 1), max_new_tokens=max_tokens, eos_token_id=-1
        )
        self._fill(num_tokens)
        self._processor.scheduler.add_waiting_request(self._state)
        self.take_turn(1)

    @property
    def outputs(self) -> list[int]:
        """Token ids."""
        return self._state.generated_tokens

    def take_turn(self, num_tokens: int) -> Turn:
        """As `rounds.TakesTurns.take_turn`."""
        before = len(self.outputs)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for _ in range(num_tokens):
                self._manager._generation_loop_body(self._processor, bootstrapping=False)  # noqa: SLF001
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        assert len(self.outputs) - before == num_tokens, "a sequence stood still"
        return Turn(num_tokens, wall_s, cpu_s)

    def close(self) -> None:
        """Free what it holds."""
        del self._processor, self._manager

    def _fill(self, num_tokens: int) -> None:
        """Have the past stored: blocks are the request's, and all but its last token is done."""
        cache = self._processor.cache
        cache.cache_tensor.view(self._manager.model.dtype).normal_()
        assert cache.can_store_request_tokens(self._state, num_tokens), "its pool is too small"
        self._state.position_offset = num_tokens
        self._state.remaining_prefill_tokens = self._state.initial_tokens[-1:]


def peers(
    module: PreTrainedModel, num_tokens: int, max_tokens: int
) -> Mapping[str, Callable[[], WithCache | ContinuousBatching]]:
    """How each is made; one that is not installed raises when it is."""
    config = module.config
    make: dict[str, Callable[[], Any]] = {
        "DynamicCache": partial(DynamicCache, config=config),
        "StaticCache": partial(StaticCache, config=config, max_cache_len=num_tokens + max_tokens),
        "quanto int4": partial(QuantizedCache, "quanto", config, nbits=4),
        "hqq int4": partial(QuantizedCache, "hqq", config, nbits=4, axis_key=1, axis_value=1),
        "hqq int8": partial(QuantizedCache, "hqq", config, nbits=8, axis_key=1, axis_value=1),
    }

    def with_cache(make_cache: Callable[[], Any]) -> WithCache:
        return WithCache(module, make_cache(), num_tokens)

    return {name: partial(with_cache, made) for name, made in make.items()} | {
        "continuous batching": partial(ContinuousBatching, module, num_tokens, max_tokens)
    }
