"""`adaptive-kv policy`: which policies there are, and whether one works."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import PolicyError

policy = typer.Typer(
    help="List and check policies.", no_args_is_help=True, rich_markup_mode="markdown"
)


@policy.command("list")
def list_policies(as_json: options.AsJson = False) -> None:
    """Show the policies that can be named in `policy.name`.

    Example: `adaptive-kv policy list`
    """
    from adaptive_kv import loader

    found = loader.list_policies()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found]))
    else:
        for each in found:
            typer.echo(f"{each.name:<20} {each.origin}")


@policy.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="e.g. ladder, my.py:Mine")],
    options_json: Annotated[
        str, typer.Option("--options", metavar="JSON", help="Keyword arguments of the policy.")
    ] = "{}",
) -> None:
    """Load a policy and ask it about calm, tight and desperate moments.

    Example: `adaptive-kv policy check ./my_policy.py:Mine --options '{"low": 0.7}'`
    """
    arguments = options.parse_json("--options", options_json)
    from adaptive_kv.loader import load_policy
    from adaptive_kv.testing import make_reading

    decide, _ = load_policy(name, arguments)
    for moment, free_bytes in (("calm", 6 * 2**30), ("tight", 2**30), ("desperate", 2**27)):
        began_s = time.perf_counter()
        try:
            decision = decide(make_reading(free_bytes=free_bytes))
        except Exception as error:
            why = f"raised {type(error).__name__} in a {moment} moment: {error}"
            raise PolicyError(name, why) from error
        took_s = time.perf_counter() - began_s
        answer = f"{decision.mode}  {decision.reason}" if decision else "hold"
        typer.echo(f"{moment:<10} {took_s * 1e6:6.0f} us  {answer}")
