"""The document about policies, made of the figures alone."""

from collections.abc import Mapping
from typing import Any

_BAR_US = 100.0

_INTRODUCTION = """\
Consulting is to make the reading, ask the policy, and ask the guard. A gap is what passes between
two tokens of a sequence. Policies that come with adaptive-kv run in the service, all others in a
child process that nobody waits for; the hostile ones among them are measured from the start of the
service to past their replacement by `ladder`. CPU time is the worker's own, and what a busy machine
blurs least; whoever waited for a child would show it in all other columns."""

_METHOD = """\
{cpu}, {threads} thread(s), Python {python}, torch {torch}. The embedded model, {num_sequences}
sequences with prompts of {prompt_tokens} tokens, a ladder of {num_rungs}; the policies take turns
of {num_steps} steps in each of {num_rounds} rounds. The machine was not idle."""


def render(report: Mapping[str, Any]) -> str:
    """`docs/benchmarks/policies.md` for the report that `policies.py` wrote."""
    rows = report["policies"]
    lines = [
        "| policy | runs in | consult, CPU p50 | consult p50 | consult p99 | gap p50 | gap p99 |",
        "|---" * 7 + "|",
        *(_row(name, row) for name, row in rows.items()),
    ]
    parts = [
        "# What a policy costs",
        "<!-- made of policies.json by `make bench`; do not edit -->",
        _INTRODUCTION,
        _METHOD.format(**report["machine"], **report, num_rungs=len(report["ladder"])),
        "\n".join(lines),
        _verdict({name: row for name, row in rows.items() if row["is_in_process"]}),
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, row: Mapping[str, Any]) -> str:
    where = "the service" if row["is_in_process"] else "a child"
    consults_us = (row[key] for key in ("consult_cpu_p50_us", "consult_p50_us", "consult_p99_us"))
    consults = " | ".join(f"{consult_us:.0f} µs" for consult_us in consults_us)
    return f"| {name} | {where} | {consults} | {row['gap_p50_ms']} ms | {row['gap_p99_ms']} ms |"


def _verdict(rows: Mapping[str, Any]) -> str:
    slow = [
        f"`{name}` ({row['consult_cpu_p50_us']:.0f} µs)"
        for name, row in rows.items()
        if row["consult_cpu_p50_us"] > _BAR_US
    ]
    bar = f"The bar, {_BAR_US:g} µs of CPU time in the median, in the service,"
    return f"{bar} is not met by: {', '.join(slow)}." if slow else f"{bar} is met by every policy."
