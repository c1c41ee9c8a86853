"""What a cache is worth: generating with it and without it, over how much is generated.

Once `generate` of transformers with `use_cache` on and off, once our engine in `full` and in
`disabled`; the 62.6M-parameter Llama shape, float32, greedy, prefill included. One run of a length
tells all shorter ones too, from when each of its tokens was there.

    python benchmarks/curve.py                          about 6 minutes on an idle core
    python benchmarks/curve.py --keep --sides ours
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from curve_report import render
from decode_contenders import Ours, Stamps
from decode_models import Pair, load_pair
from page import Report
from running import make_parser, run
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

_PROMPT_TOKENS = 16
Seconds = tuple[float, float]
"""On the clock, and of this process."""


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every side, then page and plot."""
    parser = make_parser(__doc__, "curve", 2)
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=list(_SIDES))
    parser.add_argument("--new-tokens", type=int, default=256, help="in every round")
    parser.add_argument("--long", type=int, default=512, help="in the first round")
    parser.add_argument("--step", type=int, default=32, help="how far lengths are apart")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.new_tokens, options.long, options.step = 1, 8, 16, 4
    run(options, _measure, render)


def _measure(options: argparse.Namespace) -> Iterator[Report]:
    pair = load_pair("tiny" if options.quick else "llama-62m")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 4096, (_PROMPT_TOKENS,), generator=generator).tolist()
    for side in options.sides:
        with_cache, without_cache = _SIDES[side](pair, ids)
        for warm_up in (with_cache, without_cache):
            warm_up(2)
        stamps = []
        for number in range(options.rounds):
            num_new = options.new_tokens if number else max(options.long, options.new_tokens)
            stamps.append((with_cache(num_new), without_cache(num_new)))
        lengths = range(options.step, len(stamps[0][0]) + 1, options.step)
        yield {
            "name": side,
            "prompt_tokens": _PROMPT_TOKENS,
            "points": [_point(length, stamps) for length in lengths],
        }


Generate = Callable[[int], list[Seconds]]
"""Generates so many tokens; seconds from the call until each of them was there."""


def _stock(pair: Pair, ids: Sequence[int]) -> tuple[Generate, Generate]:
    def generate(num_new: int, *, use_cache: bool) -> list[Seconds]:
        return _generate(pair.stock, ids, num_new, use_cache=use_cache)

    return partial(generate, use_cache=True), partial(generate, use_cache=False)


def _ours(pair: Pair, ids: Sequence[int]) -> tuple[Generate, Generate]:
    def generate(num_new: int, *, mode: str) -> list[Seconds]:
        ours = Ours(pair.ours, mode, [ids], num_new + 1, is_ready=False)
        stamps, started = [], _now()
        while len(ours.outputs[0]) < num_new:
            before = len(ours.outputs[0])
            ours.step()
            if len(ours.outputs[0]) > before:
                stamps.append(_since(started))
        ours.close()
        return stamps

    return partial(generate, mode="full"), partial(generate, mode="disabled")


_SIDES: Mapping[str, Callable[[Pair, Sequence[int]], tuple[Generate, Generate]]] = {
    "transformers": _stock,
    "ours": _ours,
}


def _generate(
    module: PreTrainedModel, ids: Sequence[int], num_new: int, *, use_cache: bool
) -> list[Seconds]:
    make_config: Any = GenerationConfig
    stamps, started, prompt = Stamps(), _now(), torch.tensor([ids])
    generate: Any = module.generate
    generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        stopping_criteria=StoppingCriteriaList([stamps]),
        generation_config=make_config(
            do_sample=False,
            max_new_tokens=num_new,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )
    return [(wall_s - started[0], cpu_s - started[1]) for wall_s, cpu_s in stamps.seen]


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _since(started: Seconds) -> Seconds:
    now = _now()
    return now[0] - started[0], now[1] - started[1]


def _point(length: int, rounds: Sequence[tuple[list[Seconds], list[Seconds]]]) -> dict[str, Any]:
    """Medians over the rounds that came so far."""
    reached = [(a[length - 1], b[length - 1]) for a, b in rounds if len(a) >= length]
    return {
        "length": length,
        "num_rounds": len(reached),
        "with_s": round(statistics.median(a[0] for a, _ in reached), 4),
        "without_s": round(statistics.median(b[0] for _, b in reached), 4),
        "ratio": {
            "wall": round(statistics.median(b[0] / a[0] for a, b in reached), 3),
            "cpu": round(statistics.median(b[1] / a[1] for a, b in reached), 3),
        },
    }


if __name__ == "__main__":
    main(sys.argv[1:])
