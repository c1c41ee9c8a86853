"""What the benchmarks that write a page share: their flags, and figures before documents.

A run writes figures as JSON, at once (`publish`) or case by case (`run`); page and plot are made of
that JSON alone.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from machine import machine
from page import FOLDER, Report


def file_parser(
    doc: str | None, name: str, document: Path | None = None
) -> argparse.ArgumentParser:
    """The flags that all of them have; `doc` is shown by `--help`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=FOLDER / f"{name}.json")
    parser.add_argument("--document", type=Path, default=document or FOLDER / f"{name}.md")
    parser.add_argument("--render-only", action="store_true", help="documents, from the JSON")
    return parser


def make_parser(doc: str | None, name: str, num_rounds: int) -> argparse.ArgumentParser:
    """As `file_parser`, for those that measure case by case."""
    parser = file_parser(doc, name)
    parser.add_argument("--rounds", type=int, default=num_rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep other cases of the output")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def publish(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Report],
    render: Callable[[Report], str],
) -> Report:
    """Write what `measure` finds, then what `render` makes of it; answers the figures."""
    if not options.render_only:
        write_figures(options.output, measure(options))
    report: Report = json.loads(options.output.read_text("utf-8"))
    options.document.write_text(render(report), "utf-8")
    return report


def write_figures(file: Path, report: Report) -> None:
    """As JSON."""
    file.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Iterable[Report]],
    render: Callable[[Report, Path], str],
) -> None:
    """Write figures after every case that `measure` yields, then what `render` makes of them.

    `render` is also told where its page goes, to put plots beside it.
    """
    if not options.render_only:
        torch.set_num_threads(options.threads)
        for case in measure(options):
            print(json.dumps(case), flush=True)
            _add(options.output, case, options)
            options.keep = True
    report = json.loads(options.output.read_text("utf-8"))
    options.document.write_text(render(report, options.document), "utf-8")


def _add(file: Path, case: Report, options: argparse.Namespace) -> None:
    """Put a case in the place of the one of its name, or at the end."""
    cases = json.loads(file.read_text("utf-8"))["cases"] if options.keep and file.exists() else []
    load = round(os.getloadavg()[0], 1)
    told = {**case, "machine": machine(), "num_rounds": options.rounds, "load": load}
    kept = {old["name"]: old for old in cases} | {case["name"]: told}
    write_figures(file, {"cases": list(kept.values())})
