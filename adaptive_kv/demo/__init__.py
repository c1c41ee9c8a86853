"""The demonstration: the service on the embedded model, squeezed by a real second process."""

from pathlib import Path


def run_demo(report: Path) -> int:
    """Run it, write `report`, end stdout with one line of JSON; returns the exit status."""
    from adaptive_kv.demo.run import run_demo as run  # noqa: PLC0415 - it loads a lot

    return run(report)
