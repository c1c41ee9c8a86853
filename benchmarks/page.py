"""What the pages of the benchmarks share."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "benchmarks"

Report = Mapping[str, Any]


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def times(ratio: Mapping[str, float]) -> str:
    """A ratio as all pages show it: on the clock and, in brackets, in CPU time."""
    return f"{ratio['wall']:.2f}x ({ratio['cpu']:.2f}x)"


def told_machine(report: Report) -> str:
    """What the cases were measured on, and how busy it was: alone, a run makes a load of 1."""
    loads = [case["load"] for case in report["cases"] if "load" in case]
    told = dict.fromkeys(
        f"{m['cpu']}, {m['threads']} thread(s), Python {m['python']}, torch {m['torch']}, "
        f"transformers {m['transformers']}"
        for m in (case["machine"] for case in report["cases"])
    )
    busy = f"load average {min(loads):g} to {max(loads):g}" if loads else "other work besides"
    return f"{'; '.join(told)}; {busy}"
