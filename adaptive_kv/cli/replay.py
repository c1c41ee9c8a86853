"""`adaptive-kv replay`: what a policy would have made of a recorded trace."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import ConfigError

if TYPE_CHECKING:
    from adaptive_kv.replay import Figures

_MIB = 2**20
_WIDTH = 90


def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A file, or the folder of trace.path.")
    ],
    policy: Annotated[
        list[str],
        typer.Option("--policy", metavar="NAME_OR_FILE", help="Who decides; give several."),
    ],
    options_json: Annotated[
        list[str] | None,
        typer.Option("--options", metavar="JSON", help="Of the first policy, then the next."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw memory and modes.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run policies on a recorded trace, each with the memory that its own decisions leave.

    Beside them stands what was recorded. Needs no model and no GPU.

    Example: `adaptive-kv replay docs/traces/sawtooth.jsonl.gz --policy ladder --policy forecast`
    """
    from adaptive_kv.loader import load_policy
    from adaptive_kv.replay import replay as run
    from adaptive_kv.trace import read_trace

    arguments = [options.parse_json("--options", text) for text in options_json or ()]
    if len(arguments) > len(policy):
        raise ConfigError("--options: give no more of them than of --policy")
    arguments += [{}] * (len(policy) - len(arguments))
    recorded = read_trace(trace)
    policies = [
        load_policy(name, given)[::-1] for name, given in zip(policy, arguments, strict=True)
    ]
    replays = run(recorded, policies, with_course=plot is not None)
    if plot is not None:
        from adaptive_kv.replay.plot import plot as draw

        draw(plot, f"{trace.name}: {recorded.header.model}", replays, recorded.header.ladder)
    figures = [each.figures for each in replays]
    if as_json:
        document = {"recorded": figures[0].to_dict()}
        typer.echo(json.dumps(document | {"policies": [each.to_dict() for each in figures[1:]]}))
    else:
        _show(trace.name, figures)


def _show(name: str, figures: Sequence["Figures"]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"{name}: {figures[0].seconds:.0f} s, {figures[0].tokens} tokens"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title)
    table.add_column("")
    for each in figures:
        table.add_column(each.policy, justify="right")
    for label, *cells in _rows(figures):
        table.add_row(label, *cells)
    Console(width=max(_WIDTH, Console().width)).print(table)


def _rows(figures: Sequence["Figures"]) -> list[list[str]]:
    modes = dict.fromkeys(mode for each in figures for mode in each.share_by_mode)
    return [
        ["under the floor", *(f"{each.under_floor_s:.2f} s" for each in figures)],
        ["deepest below it", *(f"{each.worst_depth_bytes / _MIB:.1f} MiB" for each in figures)],
        ["rescues", *(_count(each.rescues) for each in figures)],
        ["parked", *(_count(each.parked) for each in figures)],
        ["rejected", *(_count(each.rejected) for each in figures)],
        ["switches down, up", *(f"{each.switches_down}, {each.switches_up}" for each in figures)],
        ["changes of the service's mode", *(str(each.mode_changes) for each in figures)],
        ["mean cache", *(f"{each.mean_cache_bytes / _MIB:.1f} MiB" for each in figures)],
        ["tokens of exact sequences", *(f"{each.exact_share:.1%}" for each in figures)],
        *(
            [f"tokens in {mode}", *(f"{each.share_by_mode.get(mode, 0):.1%}" for each in figures)]
            for mode in modes
        ),
        ["tokens late", *(f"{each.late_share:.1%}" for each in figures)],
        ["policy faults", *(str(each.policy_faults) for each in figures)],
    ]


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)
