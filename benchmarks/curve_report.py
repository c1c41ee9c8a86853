"""The page and the plot about what a cache is worth, made of the figures alone."""

from collections.abc import Sequence
from pathlib import Path

from drawing import draw_lines
from page import Report, table, times, told_machine

PUBLISHED = (6.0, 12.0)

_INTRODUCTION = """\
How many times as long it takes to generate without a cache as with one, from the call to the last
token, 62.6M-parameter Llama shape, float32, greedy, a prompt of {prompt_tokens} tokens. Published
figures such as "6x, up to 12x" are points on this curve: the ratio grows with how much is
generated, and there is no constant. `transformers` is `generate` with `use_cache` on and off; ours
is the whole engine in `full` and in `disabled`."""

_METHOD = """\
{told}. With and without take turns; shown are medians of ratios within a round, on the clock and,
in brackets, in CPU time; the longest lengths were run once."""


def render(report: Report, document: Path) -> str:
    """`docs/benchmarks/curve.md`, with its plot beside it."""
    cases = report["cases"]
    _draw(document.with_suffix(".svg"), cases)
    parts = [
        "# What a cache is worth",
        "<!-- made of curve.json by `make bench`; do not edit -->",
        _INTRODUCTION.format(**cases[0]),
        _METHOD.format(told=told_machine(report)),
        f"![Times as long without a cache against tokens generated]({document.stem}.svg)",
        _points(cases),
        "\n".join(f"- {case['name']}: {crossings(case)}." for case in cases),
    ]
    return "\n\n".join(parts) + "\n"


def crossings(case: Report) -> str:
    """Where the published figures lie on the curve."""
    return "; ".join(_crossing(case["points"], level) for level in PUBLISHED)


def _crossing(points: Sequence[Report], level: float) -> str:
    """The first length at which a level is reached, between the points that were measured."""
    lower = points[0]
    if lower["ratio"]["wall"] >= level:
        return f"{level:g}x is reached before {lower['length']} tokens"
    for point in points[1:]:
        low, high = lower["ratio"]["wall"], point["ratio"]["wall"]
        if high >= level:
            share = (level - low) / (high - low)
            length = lower["length"] + share * (point["length"] - lower["length"])
            return f"{level:g}x is reached at {length:.0f} tokens"
        lower = point
    return f"{level:g}x is not reached within {lower['length']} tokens"


def _points(cases: Sequence[Report]) -> str:
    lengths = sorted({point["length"] for case in cases for point in case["points"]})
    by_length = [{point["length"]: point for point in case["points"]} for case in cases]
    heads = ["generated", *(f"{case['name']}{what}" for case in cases for what in _COLUMNS)]
    rows = []
    for length in lengths:
        cells = [str(length)]
        for points in by_length:
            cells += _cells(points[length]) if length in points else [""] * len(_COLUMNS)
        rows.append(cells)
    return table(heads, rows)


_COLUMNS = (", without / with", ", with", ", without")


def _cells(point: Report) -> list[str]:
    return [times(point["ratio"]), f"{point['with_s']:.2f} s", f"{point['without_s']:.2f} s"]


def _draw(file: Path, cases: Sequence[Report]) -> None:
    lines = {
        case["name"]: [(point["length"], point["ratio"]["wall"]) for point in case["points"]]
        for case in cases
    }
    draw_lines(
        file,
        title="Generating without a cache, times as long as with one",
        x_label="tokens generated",
        y_label="times",
        ours={"ours, disabled against full": lines["ours"]} if "ours" in lines else {},
        theirs={name: line for name, line in lines.items() if name != "ours"},
        levels={f"published: {level:g}x": level for level in PUBLISHED},
    )
