"""The page about the cost of switches, made of the figures alone."""

from pathlib import Path

from page import Report, table, times, told_machine

BAR = 2.0

_INTRODUCTION = """\
What a switch costs whoever waits for the next token: a live sequence of {context} tokens, alone,
62.6M-parameter Llama shape, float32, is switched while it decodes. Shown is the time between two
tokens over all steps from the order to the end of the switch, against the median before it. A
switch converts for a bounded share of a step's time (`cache.switch_share`); where it takes few
steps, the 99th percentile is the slowest of them. The last row is healing, which recomputes what
was lost, as many tokens per step as twice that share leaves time for, of a sequence of
{heal_context} tokens. `disabled` is left out: it has nothing to convert, and what its tokens cost
instead is in [curve.md](curve.md)."""

_METHOD = """\
{told}. {num_rounds} switches of each kind; percentiles are of all their steps, on the clock and, in
brackets, in CPU time of the worker."""


def render(report: Report, _document: Path) -> str:
    """`docs/benchmarks/switches.md`."""
    cases = report["cases"]
    first, last = cases[0], cases[-1]
    heads = ["switch", "steps", "quiet p50", "during, p50", "p99", "p99 / quiet p50"]
    parts = [
        "# What a switch costs the next token",
        "<!-- made of switches.json by `make bench`; do not edit -->",
        _INTRODUCTION.format(context=first["context"], heal_context=last["context"]),
        _METHOD.format(told=told_machine(report), **first),
        table(heads, [_row(case) for case in cases]),
        verdict(report),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(report: Report) -> str:
    """Where the bar is met, in CPU time, and where it is not."""
    above = [
        f"{case['name']} ({case['p99_of_quiet']['cpu']:.2f}x)"
        for case in report["cases"]
        if case["p99_of_quiet"]["cpu"] > BAR
    ]
    bar = f"The bar, p99 within {BAR:g}x of the quiet median in CPU time,"
    return f"{bar} is not met by: {'; '.join(above)}." if above else f"{bar} is met by every kind."


def _row(case: Report) -> list[str]:
    figures = (case[f"{key}_ms"] for key in ("quiet_p50", "p50", "p99"))
    cells = (f"{figure:.1f} ms" for figure in figures)
    return [case["name"], str(case["num_steps"]), *cells, times(case["p99_of_quiet"])]
