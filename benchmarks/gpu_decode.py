"""Decode steps on random weights of real shapes: ours in each format, and `generate` as it is.

The weights are made on the device and are the same for everyone: transformers decodes first, then
the module is prepared for us.
"""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_pages import Decoding, Place, captured, filled, make_store
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from adaptive_kv.engine.graphs import DecodeGraphs
from adaptive_kv.engine.model import Model, prepare

Figures = dict[str, Any]

_SHAPES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "Qwen2.5-0.5B": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864}
        | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    ),
    "Llama-3.2-1B": (
        LlamaConfig,
        LlamaForCausalLM,
        {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192}
        | {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"head_dim": 64},
    ),
    "Llama-3.1-8B": (
        LlamaConfig,
        LlamaForCausalLM,
        {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    ),
}
_TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_CASES = {
    "Qwen2.5-0.5B": ((1024, 1), (16_384, 1)),
    "Llama-3.2-1B": ((1024, 1), (1024, 32), (32_768, 1)),
    "Llama-3.1-8B": ((1024, 1), (32_768, 1), (4096, 32)),
}
"""Tokens of context, and sequences that have so many."""
_MODES = ("full", "int8", "int4")
_SPARE_BYTES = 4 << 30


def measure_decodes(place: Place, bandwidth: float, left_s: Callable[[], float]) -> list[Figures]:
    """Every shape that fits, as long as there is time; what was left out says why."""
    found: list[Figures] = []
    for name in [*_SHAPES][:2] if place.is_dry else _SHAPES:
        if left_s() < 60:
            found.append({"model": name, "left_out": "no time"})
        elif _needed_bytes(name) > _free_bytes(place):
            found.append({"model": name, "left_out": "no memory"})
        else:
            found += _measure(place, name, bandwidth, left_s)
    return found


def _measure(
    place: Place, name: str, bandwidth: float, left_s: Callable[[], float]
) -> Iterator[Figures]:
    module = make_module(place, name)
    cases = ((150, 1),) if place.is_dry else _CASES[name]
    theirs = [_of_generate(place, module, n, rows, left_s) for n, rows in cases]
    model = prepare(module)
    graphs = captured(place, model, max(rows for _, rows in cases))
    told = {"graphs": {"why_none": graphs.why_none, "num_bytes": graphs.num_bytes}}
    for (length, num_rows), stock in zip(cases, theirs, strict=True):
        case = {"model": name, "context": length, "sequences": num_rows}
        run = partial(_of_ours, place, model, graphs, bandwidth)
        yield {**case, **told, **{mode: run(mode, length, num_rows) for mode in _MODES}, **stock}


def make_module(place: Place, name: str) -> PreTrainedModel:
    """A model of the shape, in bfloat16, of random weights."""
    make_config, make_model, shape = _SHAPES[name]
    shape = _TINY if place.is_dry else shape
    config = make_config(**shape, max_position_embeddings=65_536, tie_word_embeddings=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(place.device):
            module: PreTrainedModel = make_model(config)
    finally:
        torch.set_default_dtype(before)
    module.train(mode=False).requires_grad_(requires_grad=False)
    return module


def _needed_bytes(name: str) -> int:
    shape = _SHAPES[name][2]
    mlp = 3 * shape["hidden_size"] * shape["intermediate_size"]
    layers = shape["num_hidden_layers"] * (mlp + 4 * shape["hidden_size"] ** 2)
    return int(2 * (layers + 2 * shape["vocab_size"] * shape["hidden_size"])) + _SPARE_BYTES


def _free_bytes(place: Place) -> float:
    if place.device.type != "cuda":
        return float("inf")
    gc.collect()
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info()[0])


def _of_ours(
    place: Place,
    model: Model,
    graphs: DecodeGraphs,
    bandwidth: float,
    mode: str,
    length: int,
    num_rows: int,
) -> Figures:
    """Seconds of a step, and which share of what copying reaches it reads weights and cache at.

    Replayed where that was captured, and layer by layer.
    """
    store = make_store(place, model.groups)
    try:
        caches = [filled(store, mode, length) for _ in range(num_rows)]
        layers_step_s = place.typical_s(Decoding(model, caches).step, 20)
        step_s = place.typical_s(Decoding(model, caches, graphs).step, 40)
    except torch.OutOfMemoryError:
        return {"left_out": "no memory"}
    read_bytes = model.weights_bytes + store.used_bytes
    return {
        "step_s": step_s,
        "layers_step_s": layers_step_s,
        "tokens_per_s": num_rows / step_s,
        "read_bytes": read_bytes,
        "share_of_copy": read_bytes / step_s / bandwidth,
    }


def _of_generate(
    place: Place, module: PreTrainedModel, length: int, num_rows: int, left_s: Callable[[], float]
) -> Figures:
    """Tokens per second of `generate`: eager, and with a static cache, which it compiles for."""
    found: Figures = {}
    for name, cache in (("generate", None), ("generate_static", "static")):
        if left_s() < 90 and not place.is_dry:
            found[name] = {"left_out": "no time"}
            continue
        try:
            step_s = _generate_s(place, module, length, num_rows, cache)
        except Exception as error:  # noqa: BLE001 - whatever a compiler says is a result
            found[name] = {"left_out": f"{type(error).__name__}: {error}"[:200]}
            continue
        found[name] = {"step_s": step_s, "tokens_per_s": num_rows / step_s}
    return found


def _generate_s(
    place: Place, module: PreTrainedModel, length: int, num_rows: int, cache: str | None
) -> float:
    anything: Any = module
    ids = torch.randint(3, 500, (num_rows, length), device=place.device)
    num_tokens = 4 if place.is_dry else 24
    make_config: Any = GenerationConfig
    config = make_config(
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation=cache,
    )
    best_s = float("inf")
    for _ in range(2):  # the first one compiles
        stamps = _Stamps(place)
        anything.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stamps]),
        )
        steps = [b - a for a, b in zip(stamps.seen, stamps.seen[1:], strict=False)]
        best_s = min(best_s, sum(steps) / len(steps))
    return best_s


class _Stamps(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.seen: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Note the time."""
        self._place.wait()
        self.seen.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
