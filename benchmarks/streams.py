"""Throughput with 1, 8 and 32 streams against transformers' continuous batching.

Everyone gets all requests of a turn at once, and is timed from the first one to the last token,
prefill included; the 62.6M-parameter Llama shape, float32, greedy. CPU time is of the process.

    python benchmarks/streams.py                        about 6 minutes on an idle core
    python benchmarks/streams.py --keep --streams 32
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from decode_contenders import Ours, Prompts
from decode_models import Pair, load_pair
from page import Report
from rounds import Turn, in_turn, ratios, speed
from running import make_parser, run
from streams_report import render
from transformers import ContinuousBatchingConfig, GenerationConfig

_STREAMS = (1, 8, 32)
_MODES = ("full", "int8", "int4")
_PAGE_TOKENS = 256  # what transformers takes where nothing is said


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every number of streams, then the page."""
    parser = make_parser(__doc__, "streams", 5)
    parser.add_argument("--streams", nargs="+", type=int, default=_STREAMS)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    if options.quick:
        options.streams, options.rounds = [1, 3], 2
        options.prompt_tokens, options.new_tokens = 24, 6
    run(options, _measure, render)


class Server(Protocol):
    """Whoever answers many requests at once."""

    def serve(self, prompts: Prompts) -> tuple[Turn, list[list[int]]]:
        """Answer all of them; what it took, and the token ids of each."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def _measure(options: argparse.Namespace) -> Iterator[Report]:
    pair = load_pair("tiny" if options.quick else "llama-62m")
    num_tokens = options.prompt_tokens + options.new_tokens
    for num_streams in options.streams:
        servers: dict[str, Server] = {
            "continuous batching": Batching(pair, num_streams, num_tokens, options.new_tokens),
            **{mode: Engine(pair, mode, options.new_tokens) for mode in _MODES},
        }
        yield _case(servers, num_streams, options)
        for server in servers.values():
            server.close()


def _case(servers: dict[str, Server], num_streams: int, options: argparse.Namespace) -> Report:
    turns: dict[str, list[Turn]] = {name: [] for name in servers}
    generator = torch.Generator().manual_seed(num_streams)
    num_equal = 0
    for number in range(-1, options.rounds):  # the first one is a warm-up
        shape = (num_streams, options.prompt_tokens)
        prompts: Prompts = torch.randint(3, 4096, shape, generator=generator).tolist()
        answers = {}
        for name in in_turn(list(servers), max(0, number)):
            turn, answers[name] = servers[name].serve(prompts)
            if number >= 0:
                turns[name].append(turn)
        theirs = answers["continuous batching"]
        num_equal += sum(a == b for a, b in zip(answers["full"], theirs, strict=True))
    return {
        "name": str(num_streams),
        "num_streams": num_streams,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "equal_answers": f"{num_equal} of {num_streams * (options.rounds + 1)}",
        "speeds": {name: speed(seen) for name, seen in turns.items()},
        "ratios": ratios(turns, _MODES),
    }


class Batching:
    """The manager of transformers' continuous batching, in its own thread, with the room it needs.

    Its default pool is a large share of the machine's memory, and far slower on a CPU.
    """

    def __init__(self, pair: Pair, num_streams: int, num_tokens: int, new_tokens: int) -> None:
        make_config: Any = GenerationConfig
        module: Any = pair.stock
        self._new_tokens = new_tokens
        self._manager = module.init_continuous_batching(
            generation_config=make_config(
                do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=(num_tokens // _PAGE_TOKENS + 2) * num_streams + 2,
                max_batch_tokens=512,
                max_requests_per_batch=num_streams,
            ),
        )
        self._manager.start()

    def serve(self, prompts: Prompts) -> tuple[Turn, list[list[int]]]:
        """As `Server.serve`."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        ids = [
            self._manager.add_request(list(prompt), max_new_tokens=self._new_tokens)
            for prompt in prompts
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(prompts):
            result = self._manager.get_result(timeout=60)
            assert result is not None, "a request was lost"
            assert result.error is None, result.error
            found[result.request_id] = result.generated_tokens
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        answers = [found[id_] for id_ in ids]
        return Turn(sum(map(len, answers)), wall_s, cpu_s), answers

    def close(self) -> None:
        """As `Server.close`."""
        self._manager.stop(block=True)


class Engine:
    """Our engine, stepped by hand, in one mode."""

    def __init__(self, pair: Pair, mode: str, new_tokens: int) -> None:
        self._pair = pair
        self._mode = mode
        self._new_tokens = new_tokens

    def serve(self, prompts: Prompts) -> tuple[Turn, list[list[int]]]:
        """As `Server.serve`."""
        ours = Ours(self._pair.ours, self._mode, prompts, self._new_tokens, is_ready=False)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        while any(len(output) < self._new_tokens for output in ours.outputs):
            ours.step()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        ours.close()
        return Turn(sum(map(len, ours.outputs)), wall_s, cpu_s), ours.outputs

    def close(self) -> None:
        """As `Server.close`: every turn has given back its pages."""


if __name__ == "__main__":
    main(sys.argv[1:])
