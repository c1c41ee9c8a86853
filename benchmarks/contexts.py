"""What a decode step costs behind 1k to 32k tokens: our modes, and everything in transformers.

The 62.6M-parameter Llama shape, float32, one sequence. Caches are filled with noise; what is timed
is a real step: the engine's whole one for ours, `forward` and the likeliest token for the caches of
transformers, a step of its loop for its continuous batching.

    python benchmarks/contexts.py                       about 8 minutes on an idle core
    python benchmarks/contexts.py --keep --contexts 32768
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from contexts_peers import peers
from contexts_report import render
from decode_contenders import Ours
from decode_models import Pair, load_pair
from page import Report
from rounds import ratios, speed, take_turns
from running import make_parser, run

_CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
_MODES = ("full", "int8", "int4", "window:1024", "window:1024+int4")
_WARM_TOKENS = 2


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON after every context, then page and plot."""
    parser = make_parser(__doc__, "contexts", 5)
    parser.add_argument("--contexts", nargs="+", type=int, default=_CONTEXTS)
    parser.add_argument("--turn-tokens", type=int, default=6)
    options = parser.parse_args(arguments)
    if options.quick:
        options.contexts, options.rounds, options.turn_tokens = [1088, 2112], 2, 2
    run(options, _measure, render)


def _measure(options: argparse.Namespace) -> Iterator[Report]:
    pair = load_pair("tiny" if options.quick else "llama-62m")
    for context in options.contexts:
        yield measure_case(pair, context, options.rounds, options.turn_tokens)
        gc.collect()


def measure_case(pair: Pair, context: int, num_rounds: int, turn_tokens: int) -> Report:
    """Everyone behind a context of so many tokens."""
    max_tokens = _WARM_TOKENS + num_rounds * turn_tokens + 1
    contenders, absent = _peers(pair, context, max_tokens)
    ids = [[5] * context]
    modes = {
        mode: Ours(pair.ours, mode, ids, max_tokens + context, is_filled=True) for mode in _MODES
    }
    contenders |= modes
    for contender in contenders.values():
        contender.take_turn(_WARM_TOKENS)
    turns = take_turns(contenders, num_rounds, turn_tokens)
    case = {
        "name": str(context),
        "context": context,
        "turn_tokens": turn_tokens,
        "absent": absent,
        "speeds": {name: speed(seen) for name, seen in turns.items()},
        "ratios": ratios(turns, _MODES),
        "cache_bytes": {mode: ours.cache_bytes for mode, ours in modes.items()},
    }
    for contender in contenders.values():
        contender.close()
    return case


def _peers(pair: Pair, context: int, max_tokens: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Those that work with what is installed, and why the others do not."""
    found, absent = {}, {}
    for name, make in peers(pair.stock, context, max_tokens).items():
        try:
            found[name] = make()
        except Exception as error:  # noqa: BLE001 - it is theirs: whatever it is, it is reported
            absent[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return found, absent


if __name__ == "__main__":
    main(sys.argv[1:])
