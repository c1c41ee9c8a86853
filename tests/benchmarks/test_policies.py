"""The benchmark of policies measures all of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "raises", "spins", "sleeps", "answers NaN", "unknown mode", "flaps", "eats memory", "exits",
}  # fmt: skip


def test_tokens_come_under_every_policy_and_their_gaps_are_shown() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/policies.py", "--rounds", "1", "--tokens", "10"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" (in ") for line in done.stdout.splitlines() if " (in " in line]
    assert {name for name, _ in rows} == HOSTILE | {"ladder", "well"}
    assert all(figures.count("ms") == figures.count("us") == 2 for _, figures in rows)
