"""The page and the plot about contexts, made of the figures alone."""

from collections.abc import Sequence
from pathlib import Path

from drawing import draw_lines
from page import Report, table, times, told_machine

_PACKED = ("int8", "int4")

_INTRODUCTION = """\
What one decode step takes behind a context, one sequence, 62.6M-parameter Llama shape (8 layers, 12
query and 4 key-value heads of 64), float32. Ours is the whole engine's step; transformers' caches
are timed by `forward` and the likeliest token alone, its continuous batching by a step of its loop.
Caches are filled with noise instead of a prefill. Ours packs what has grown old within the steps
that are timed; `QuantizedCache` packs anew every 128 tokens, which here falls outside of them."""

_METHOD = """\
{told}. Everyone takes turns of {turn_tokens} tokens in each of {num_rounds} rounds; ratios are
taken within a round; shown are medians, on the clock and, in brackets, in CPU time."""


def render(report: Report, document: Path) -> str:
    """`docs/benchmarks/contexts.md`, with its plot beside it."""
    cases = sorted(report["cases"], key=lambda case: int(case["context"]))
    modes = list(cases[0]["ratios"])
    _draw(document.with_suffix(".svg"), cases, modes)
    parts = [
        "# A decode step behind a context",
        "<!-- made of contexts.json by `make bench`; do not edit -->",
        _INTRODUCTION,
        _METHOD.format(told=told_machine(report), **cases[0]),
        f"![Milliseconds per token against tokens of context]({document.stem}.svg)",
        "## Milliseconds per token",
        _milliseconds(cases),
        "## Times as fast as `DynamicCache`",
        _against(cases, modes, "DynamicCache"),
        "## Times as fast as our `full`",
        _against(cases, [mode for mode in modes if mode != "full"], "full"),
        "## Times as fast as the best of `QuantizedCache`",
        _against_best(cases, modes),
        "## Times as fast as transformers' continuous batching",
        _against(cases, modes, "continuous batching"),
        "## MiB of pages",
        _mebibytes(cases, modes),
        *_absent(cases),
    ]
    return "\n\n".join(parts) + "\n"


def best_quantized(case: Report) -> str | None:
    """The quickest `QuantizedCache` of a case, in CPU time; None where none is installed."""
    speeds = case["speeds"]
    names = [name for name in speeds if name.startswith(("quanto", "hqq"))]
    return max(names, key=lambda name: speeds[name]["tokens_per_cpu_s"], default=None)


def _milliseconds(cases: Sequence[Report]) -> str:
    names = list(dict.fromkeys(name for case in cases for name in case["speeds"]))
    rows = []
    for name in names:
        speeds = (case["speeds"].get(name) for case in cases)
        rows.append(
            [name, *("" if s is None else f"{1e3 / s['tokens_per_s']:.1f}" for s in speeds)]
        )
    return table(["", *_heads(cases)], rows)


def _against(cases: Sequence[Report], modes: Sequence[str], other: str) -> str:
    rows = []
    for mode in modes:
        found = (case["ratios"][mode].get(other) for case in cases)
        rows.append([f"`{mode}`", *("" if ratio is None else times(ratio) for ratio in found)])
    return table(["", *_heads(cases)], rows)


def _against_best(cases: Sequence[Report], modes: Sequence[str]) -> str:
    best = [best_quantized(case) for case in cases]
    rows = [["which", *(name or "none" for name in best)]]
    for mode in modes:
        ratios = [case["ratios"][mode] for case in cases]
        cells = (times(r[name]) if name else "" for r, name in zip(ratios, best, strict=True))
        rows.append([f"`{mode}`", *cells])
    return table(["", *_heads(cases)], rows)


def _mebibytes(cases: Sequence[Report], modes: Sequence[str]) -> str:
    rows = [
        [f"`{mode}`", *(f"{case['cache_bytes'][mode] / 2**20:.1f}" for case in cases)]
        for mode in modes
    ]
    return table(["", *_heads(cases)], rows)


def _heads(cases: Sequence[Report]) -> list[str]:
    return [f"{case['context']:,}" for case in cases]


def _absent(cases: Sequence[Report]) -> list[str]:
    told = {f"- {name}: {why}" for case in cases for name, why in case["absent"].items()}
    return ["## Not measured", "\n".join(sorted(told))] if told else []


def _draw(file: Path, cases: Sequence[Report], modes: Sequence[str]) -> None:
    def line(name: str) -> list[tuple[float, float]]:
        seen = [(case["context"], case["speeds"].get(name)) for case in cases]
        return [(context, 1e3 / s["tokens_per_s"]) for context, s in seen if s is not None]

    theirs = dict.fromkeys(name for case in cases for name in case["speeds"] if name not in modes)
    draw_lines(
        file,
        title="A decode step behind a context, 62.6M-parameter Llama shape",
        x_label="tokens of context",
        y_label="milliseconds per token",
        ours={f"ours, {mode}": line(mode) for mode in modes},
        theirs={name: line(name) for name in theirs},
    )
