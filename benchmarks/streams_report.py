"""The page about many streams, made of the figures alone."""

from collections.abc import Mapping
from pathlib import Path

from page import Report, table, times, told_machine

_OTHER = "continuous batching"

_INTRODUCTION = """\
Tokens per second of all streams together, from the first request to the last token, prefill
included: {prompt_tokens} tokens of prompt and {new_tokens} new ones each, 62.6M-parameter Llama
shape, float32, greedy. The opponent is transformers' continuous batching with a pool that is just
large enough; with its default one it is far slower on a CPU. At these lengths little is old enough
to be packed, so the modes differ little; behind longer contexts they do:
[contexts.md](contexts.md)."""

_METHOD = """\
{told}. All take turns in each of {num_rounds} rounds; ratios are taken within a round; shown are
medians, on the clock and, in brackets, in CPU time."""


def render(report: Report, _document: Path) -> str:
    """`docs/benchmarks/streams.md`."""
    cases = sorted(report["cases"], key=lambda case: int(case["num_streams"]))
    modes = list(cases[0]["ratios"])
    heads = ["streams", _OTHER, *(f"`{mode}`" for mode in modes)]
    speeds = [
        [str(case["num_streams"]), *(_speed(case["speeds"][name]) for name in (_OTHER, *modes))]
        for case in cases
    ]
    ratios = [
        [str(case["num_streams"]), *(times(case["ratios"][mode][_OTHER]) for mode in modes)]
        for case in cases
    ]
    equal = [f"{case['equal_answers']} with {case['num_streams']}" for case in cases]
    parts = [
        "# Many streams",
        "<!-- made of streams.json by `make bench`; do not edit -->",
        _INTRODUCTION.format(**cases[0]),
        _METHOD.format(told=told_machine(report), **cases[0]),
        "## Times as fast as transformers' continuous batching",
        table(["streams", *heads[2:]], ratios),
        "## Tokens per second (per CPU second)",
        table(heads, speeds),
        f"Answers of `full` that are theirs, token by token: {', '.join(equal)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _speed(speed: Mapping[str, float]) -> str:
    return f"{speed['tokens_per_s']:.0f} ({speed['tokens_per_cpu_s']:.0f})"
