"""The document, made of the figures alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from page import times

Case = Mapping[str, Any]

_MODEL_NAMES = {
    "demo": "embedded model",
    "llama-62m": "random Llama, 62.6M",
    "tiny": "tiny random Llama",
}
_ALONE_BAR, _EIGHT_BAR = 1.0, 3.0

_INTRODUCTION = """\
Decode speed of the whole engine (sensors, policy, scheduling, forward, sampling, text, replies,
status) against `generate` of transformers with its default cache, on the same float32 weights,
greedy. Ratios above 1 mean that the engine is faster; in brackets, the same in CPU time, which a
busy machine blurs less."""

_METHOD = """\
{cpu}, {threads} thread(s), Python {python}, torch {torch}, transformers {transformers}. All
contenders take turns of {turn_tokens} tokens per sequence in each of {num_rounds} rounds; ratios
are taken within a round; shown are medians. Prefill is not measured. The engine follows the policy
`fixed` on a ladder of `full` and the mode measured. The machine was not idle: read the ratios, not
the tokens per second."""

_BATCH = """\
The best case of `generate`: all prompts are there at once and of equal length, none joins or
leaves, nothing is padded."""


def render(report: Mapping[str, Any]) -> str:
    """`docs/benchmarks.md` for the report that `decode.py` wrote."""
    cases = report["cases"]
    parts = [
        "# Benchmarks",
        "<!-- made of benchmarks/decode.json by `make bench`; do not edit -->",
        "What is asked for, and all other pages: [performance.md](performance.md).",
        "## Decoding against transformers",
        _INTRODUCTION,
        _METHOD.format(
            **report["machine"], **{k: report[k] for k in ("turn_tokens", "num_rounds")}
        ),
        "### One sequence",
        *_comparison([case for case in cases if case["num_sequences"] == 1], "generate"),
    ]
    for number in sorted({case["num_sequences"] for case in cases} - {1}):
        several = [case for case in cases if case["num_sequences"] == number]
        parts += [
            f"### {number} sequences, against `generate` serving one after another",
            *_comparison(several, "generate"),
            f"### {number} sequences, against `generate` with a static batch",
            _BATCH,
            *_comparison(several, "generate_batch"),
        ]
    return "\n\n".join(parts) + "\n"


def _comparison(cases: Sequence[Case], opponent: str) -> list[str]:
    """A table and what follows from it."""
    if not cases:
        return ["Not measured."]
    modes = list(cases[0]["ratios"])
    lines = [
        f"| model | prompt | `generate` tokens/s | {' | '.join(modes)} |",
        "|---" * (3 + len(modes)) + "|",
    ]
    for case in cases:
        ratios = [case["ratios"][mode][opponent] for mode in modes]
        cells = map(times, ratios)
        speed = case["speeds"][opponent]["tokens_per_s"]
        name = _MODEL_NAMES[case["model"]]
        lines.append(f"| {name} | {case['context']} | {speed:.0f} | {' | '.join(cells)} |")
    return ["\n".join(lines), _verdict(cases, opponent)]


def _verdict(cases: Sequence[Case], opponent: str) -> str:
    """Where the bar is met, in CPU time, and where it is not."""
    bar = _ALONE_BAR if cases[0]["num_sequences"] == 1 else _EIGHT_BAR
    below = [
        f"{_MODEL_NAMES[case['model']]} at {case['context']} in {mode} ({ratio['cpu']:.2f}x)"
        for case in cases
        for mode, opponents in case["ratios"].items()
        if (ratio := opponents[opponent])["cpu"] < bar
    ]
    if not below:
        return f"The bar, {bar:g}x in CPU time, is met in every row and mode."
    if len(below) == sum(len(case["ratios"]) for case in cases):
        return f"The bar, {bar:g}x in CPU time, is not met in any row or mode."
    return f"The bar, {bar:g}x in CPU time, is not met by: {'; '.join(below)}."
