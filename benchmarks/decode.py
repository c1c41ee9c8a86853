"""Decode speed of the whole engine against `generate` of transformers, on the same weights.

All contenders of a case take turns within a round, so that whatever else the machine does slows
them alike; ratios are taken within a round, and medians over the rounds. Prefill is not measured.

    python benchmarks/decode.py                         all cases, rewrites docs/benchmarks
    python benchmarks/decode.py --models demo --output here.json --document here.md
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from decode_contenders import Contender, Ours, Prompts, Stock
from decode_models import MODELS, Pair, load_pair
from decode_report import render
from machine import machine
from page import DOCS, Report
from rounds import Turn, ratio, speed, take_turns
from running import file_parser, publish, write_figures

_NUM_PROMPT_IDS = 4096  # all models here know as many


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long everyone takes turns."""

    num_rounds: int
    turn_tokens: int
    modes: tuple[str, ...]

    @property
    def max_tokens(self) -> int:
        """More than any sequence will be asked for, staggered prefills included."""
        return self.num_rounds * self.turn_tokens + 1024


def measure_case(pair: Pair, context: int, num_sequences: int, plan: Plan) -> dict[str, Any]:
    """One model, one length of prompts, one number of sequences: everyone against everyone."""
    prompts = _prompts(context, num_sequences)
    contenders = {name: make() for name, make in _entrants(pair, prompts, plan).items()}
    turns = take_turns(contenders, plan.num_rounds, plan.turn_tokens)
    case = {
        "model": pair.ours.name,
        "context": context,
        "num_sequences": num_sequences,
        "speeds": {name: speed(seen) for name, seen in turns.items()},
        "ratios": _ratios(turns, plan.modes),
        "equal_tokens": _num_equal(contenders["full"], contenders["generate"]),
    }
    for contender in contenders.values():
        contender.close()
    return case


def _entrants(pair: Pair, prompts: Prompts, plan: Plan) -> Mapping[str, Callable[[], Contender]]:
    """`generate` alone, which is also its speed one after another; as a batch; and our modes."""
    entrants: dict[str, Callable[[], Contender]] = {
        "generate": partial(Stock, pair.stock, prompts[:1])
    }
    if len(prompts) > 1:
        entrants["generate_batch"] = partial(Stock, pair.stock, prompts)
    for mode in plan.modes:
        entrants[mode] = partial(Ours, pair.ours, mode, prompts, plan.max_tokens)
    return entrants


def _prompts(num_tokens: int, num_sequences: int) -> Prompts:
    generator = torch.Generator().manual_seed(num_tokens)
    shape = (num_sequences, num_tokens)
    prompts: Prompts = torch.randint(3, _NUM_PROMPT_IDS, shape, generator=generator).tolist()
    return prompts


def _ratios(turns: Mapping[str, Sequence[Turn]], modes: Sequence[str]) -> dict[str, Any]:
    """By mode and opponent: how many times as fast, on the clock and in CPU time."""
    opponents = [name for name in turns if name.startswith("generate")]
    return {mode: {name: ratio(turns[mode], turns[name]) for name in opponents} for mode in modes}


def _num_equal(ours: Contender, theirs: Contender) -> str:
    """How many tokens of the first sequence both sides chose alike, before they first differ."""
    pairs = list(zip(ours.outputs[0], theirs.outputs[0], strict=False))
    equal = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return f"{equal} of {len(pairs)}"


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every case, then the document."""
    parser = file_parser(__doc__, "decode", DOCS / "benchmarks.md")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["demo", "llama-62m"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 1024, 3072])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--modes", nargs="+", default=["full", "int8", "int4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    publish(parser.parse_args(arguments), _measure, render)


def _measure(options: argparse.Namespace) -> Report:
    torch.set_num_threads(options.threads)
    plan = Plan(options.rounds, options.turn_tokens, tuple(options.modes))
    cases: list[dict[str, Any]] = []
    report = {
        "machine": machine(),
        "num_rounds": plan.num_rounds,
        "turn_tokens": plan.turn_tokens,
        "cases": cases,
    }
    for name in options.models:
        pair = load_pair(name)
        for context in options.contexts:
            for num_sequences in options.sequences:
                cases.append(measure_case(pair, context, num_sequences, plan))
                print(json.dumps(cases[-1]), flush=True)
                write_figures(options.output, report)
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
