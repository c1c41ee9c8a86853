"""The page about servers, made of the figures alone."""

from collections.abc import Sequence
from pathlib import Path

from page import Report, table, times, told_machine

_INTRODUCTION = """\
Tokens per second over HTTP on loopback, streamed, of servers that run side by side and are asked in
turn, on the same random weights: a 69M-parameter Llama shape (hidden 512, 12 layers, 8 query and 4
key-value heads of 64, MLP 2816, vocabulary 8192). Every server has as many threads. CPU time is of
the server with all its processes."""

_METHOD = """\
{told}. {num_rounds} rounds; ratios are taken within a round; shown are medians, on the clock and,
in brackets, in CPU time. Prompts are never asked twice."""


def render(report: Report, _document: Path) -> str:
    """`docs/benchmarks/served.md`."""
    cases = report["cases"]
    parts = [
        "# Served end to end",
        "<!-- made of served.json by `make bench`; do not edit -->",
        _INTRODUCTION,
        _METHOD.format(told=told_machine(report), **cases[0]),
    ]
    for case in cases:
        parts += [f"## {case['name']}", _asked(case), _table(case)]
    return "\n\n".join([*parts, *_absent(cases)]) + "\n"


def _asked(case: Report) -> str:
    what = "tokens after the first of each" if case["is_decode"] else "from request to last token"
    return (
        f"{case['num_streams']} at once, {case['prompt_tokens']} tokens of prompt, "
        f"{case['new_tokens']} new ones; {what}."
    )


def _table(case: Report) -> str:
    ours = list(case["ratios"])
    rows = []
    for name, speed in case["speeds"].items():
        against = (case["ratios"][mode].get(name) for mode in ours)
        rows.append(
            [
                name,
                f"{speed['tokens_per_s']:.1f}",
                f"{speed['tokens_per_cpu_s']:.1f}",
                f"{case['first_s'][name]:.2f} s",
                *("" if ratio is None else times(ratio) for ratio in against),
            ]
        )
    heads = ["server", "tokens/s", "per CPU second", "first token"]
    return table([*heads, *(f"{name} is" for name in ours)], rows)


def _absent(cases: Sequence[Report]) -> list[str]:
    told = {f"- {name}: {why}" for case in cases for name, why in case["absent"].items()}
    return ["## Not measured", "\n".join(sorted(told))] if told else []
