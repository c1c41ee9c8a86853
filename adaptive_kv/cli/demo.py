"""`adaptive-kv demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    report: Annotated[
        Path, typer.Option("--report", metavar="FILE", help="Where the timeline is written.")
    ] = Path("demo-report.html"),
) -> None:
    """Squeeze the service's memory with a second process and show how it copes.

    Ends with one line of JSON on stdout. Example: `adaptive-kv demo --report squeeze.html`
    """
    from adaptive_kv.demo import run_demo

    raise typer.Exit(run_demo(report))
