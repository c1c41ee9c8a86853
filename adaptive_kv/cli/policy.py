"""`adaptive-kv policy`: which policies there are, whether one is fit, and how to begin one."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import ConfigError
from adaptive_kv.policy import Policy

policy = typer.Typer(
    help="List, check and begin policies.", no_args_is_help=True, rich_markup_mode="markdown"
)

_EXIT_UNFIT = 78
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_GIB = 2**30
_MOMENTS = (("calm", 6 * _GIB), ("tight", _GIB), ("desperate", _GIB // 8))


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
    as_json: options.AsJson = False,
) -> None:
    """Load a policy, ask it about thousands of moments, and say what is wrong with it.

    Exit status 78 if it should not run; advice alone is no reason for that.

    Example: `adaptive-kv policy check ./my_policy.py:Mine --options '{"tight": 0.7}'`
    """
    arguments = options.parse_json("--options", options_json)
    from adaptive_kv.loader import RemotePolicy, load_policy, start_policy
    from adaptive_kv.testing import check_policy

    problems = check_policy(load_policy(name, arguments)[0])
    running, _ = start_policy(name, arguments, deadline_s=1.0)  # as the service would
    if isinstance(running, RemotePolicy):
        running.close()
    is_fit = all(problem.is_advice for problem in problems)
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in problems]))
    else:
        for problem in problems:
            word = "advice" if problem.is_advice else "wrong"
            typer.echo(f"{word:<10} {problem.text}", err=not problem.is_advice)
        if is_fit:
            _show_moments(load_policy(name, arguments)[0])
    if not is_fit:
        raise typer.Exit(_EXIT_UNFIT)


@policy.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the file, e.g. night_watch.")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where the files go.")
    ] = Path(),
) -> None:
    """Write a policy that works, NAME.py, and its test, test_NAME.py.

    Example: `adaptive-kv policy new night_watch`
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a policy: use words_like_these")
    from adaptive_kv.cli.new_policy import POLICY, TEST, class_name

    files = {folder / f"{name}.py": POLICY, folder / f"test_{name}.py": TEST}
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} exists; give another name")
    called = class_name(name)
    for file, template in files.items():
        _write(file, template.substitute(name=name, Name=called))
    typer.echo(f"Check it:  adaptive-kv policy check {folder / name}.py:{called}")
    typer.echo(f"Test it:   python -m pytest {folder / f'test_{name}'}.py")
    typer.echo(f"Run it:    adaptive-kv serve --policy {folder / name}.py:{called}")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    typer.echo(f"wrote {file}")


def _show_moments(decide: Policy) -> None:
    """What it answers to three moments, and how quickly."""
    from adaptive_kv.testing import make_reading

    for number, (moment, free_bytes) in enumerate(_MOMENTS):
        reading = make_reading(time_s=100.0 + number, free_bytes=free_bytes)
        began_s = time.perf_counter()
        decision = decide(reading)
        took_s = time.perf_counter() - began_s
        answer = f"{decision.mode}  {decision.reason}" if decision else "hold"
        typer.echo(f"{moment:<10} {took_s * 1e6:6.0f} us  {answer}")
