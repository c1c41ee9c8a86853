"""Served end to end over HTTP: ours against what a user would start instead, on the same weights.

A 69M-parameter Llama shape of random weights; all servers run side by side, are asked in turn, and
get the same number of threads each. Alone and with 8 streams (64 tokens of prompt, 64 new ones),
and alone behind 6k tokens, where only tokens after the first count. CPU time is of the server.

    python benchmarks/served.py --dtypes float32                 about 8 minutes on an idle core
    python benchmarks/served.py --dtypes bfloat16 --keep         about 8 minutes
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decode_models import save
from page import Report
from rounds import Turn, in_turn, ratios, speed
from running import make_parser, run
from served_client import Asked, ask_all
from served_peers import Running, absent, peers, started
from served_report import render

_MODES = ("full", "int8", "int4")
_LEAST_PIECES = 0.5


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked in one turn; of `is_decode` only the tokens after the first count."""

    name: str
    num_streams: int
    prompt_tokens: int
    new_tokens: int
    is_decode: bool = False


_WORKLOADS = (
    Workload("alone", 1, 64, 64),
    Workload("8 streams", 8, 64, 64),
    Workload("alone, 6k", 1, 6144, 48, is_decode=True),
)
_QUICK = (Workload("alone", 1, 16, 8), Workload("2 streams", 2, 16, 8))


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every workload, then the page."""
    parser = make_parser(__doc__, "served", 3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--workloads", nargs="+", default=[w.name for w in _WORKLOADS])
    parser.add_argument("--gguf", type=Path, help="the same weights for llama-server")
    parser.add_argument("--save-model", type=Path, help="only write the weights, to convert them")
    options = parser.parse_args(arguments)
    if options.save_model:
        save("llama-69m", options.save_model)
        return
    if options.quick:
        options.dtypes, options.rounds = ["float32"], 1
    run(options, _measure, render)


def _measure(options: argparse.Namespace) -> Iterator[Report]:
    workloads = _QUICK if options.quick else _WORKLOADS
    wanted = [w for w in workloads if options.quick or w.name in options.workloads]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save("tiny" if options.quick else "llama-69m", model)
        for dtype in options.dtypes:
            with ExitStack() as stack:
                servers, missing = _start(stack, model, dtype, options)
                for workload in wanted:
                    case = _case(servers, workload, options.rounds)
                    case["absent"] |= missing
                    yield {"name": f"{dtype}, {workload.name}", "dtype": dtype, **case}


Servers = Mapping[str, tuple[Running, Mapping[str, Any]]]
"""By the name of a way to ask: whom, and what besides the prompt."""


def _start(
    stack: ExitStack, model: Path, dtype: str, options: argparse.Namespace
) -> tuple[dict[str, tuple[Running, Mapping[str, Any]]], dict[str, str]]:
    """All that start, and why the others do not."""
    servers: dict[str, tuple[Running, Mapping[str, Any]]] = {}
    missing = absent(dtype, options.gguf)
    for name, peer in peers(model, dtype, _MODES, options.gguf).items():
        try:
            running = stack.enter_context(started(peer, model.parent, options.threads))
        except RuntimeError as error:
            if name == "ours":
                raise
            missing[name] = str(error)
            continue
        servers |= {variant: (running, extra) for variant, extra in peer.variants.items()}
    return servers, missing


def _case(servers: Servers, workload: Workload, num_rounds: int) -> dict[str, Any]:
    asked, failed = _ask_in_turn(servers, workload, num_rounds)
    turns: dict[str, list[Turn]] = {
        name: [each.decode if workload.is_decode else each.whole for each in seen]
        for name, seen in asked.items()
    }
    return {
        "workload": workload.name,
        "num_streams": workload.num_streams,
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens,
        "is_decode": workload.is_decode,
        "absent": failed,
        "speeds": {name: speed(seen) for name, seen in turns.items()},
        "first_s": {
            name: round(sorted(each.first_s for each in seen)[len(seen) // 2], 3)
            for name, seen in asked.items()
        },
        "ratios": ratios(turns, [name for name in turns if name.startswith("ours")]),
    }


def _ask_in_turn(
    servers: Servers, workload: Workload, num_rounds: int
) -> tuple[dict[str, list[Asked]], dict[str, str]]:
    """What every round took, and why who fails is left out."""
    asked: dict[str, list[Asked]] = {name: [] for name in servers}
    failed: dict[str, str] = {}
    generator = torch.Generator().manual_seed(workload.prompt_tokens)
    for number in range(-1, num_rounds):  # the first one is a warm-up
        for name in in_turn(list(servers), max(0, number)):
            if name in failed:
                continue
            warm = Workload("", workload.num_streams, 16, 8) if number < 0 else workload
            server, extra = servers[name]
            try:
                found = _ask(server, extra, warm, generator)
                _check(name, found, warm)
            except Exception as error:  # peers may fail in any way; it is reported
                if name.startswith("ours"):
                    raise
                failed[name] = f"{workload.name}: {type(error).__name__}: {error}"
                continue
            if number >= 0:
                asked[name].append(found)
    return {name: seen for name, seen in asked.items() if name not in failed}, failed


def _ask(
    server: Running, extra: Mapping[str, Any], workload: Workload, generator: torch.Generator
) -> Asked:
    """New prompts every time: nobody shall have seen them before. Each word is one token."""
    shape = (workload.num_streams, workload.prompt_tokens)
    words = torch.randint(4200, 8000, shape, generator=generator).tolist()
    prompts = ["".join(f" word{word}" for word in line) for line in words]
    return ask_all(server, extra, prompts, workload.new_tokens)


def _check(name: str, asked: Asked, workload: Workload) -> None:
    """That all tokens came, bit by bit, and in the mode that was asked for."""
    for answer in asked.answers:
        assert answer.num_tokens == workload.new_tokens, f"{answer.num_tokens} tokens"
        assert answer.num_pieces > _LEAST_PIECES * answer.num_tokens, "it does not stream"
        assert not answer.modes or answer.modes == (name.removeprefix("ours, "),), answer.modes


if __name__ == "__main__":
    main(sys.argv[1:])
