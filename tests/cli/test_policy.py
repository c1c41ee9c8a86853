"""Policies are listed and checked from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]

MINE = """
from adaptive_kv import Decision, Reading

def careful(now: Reading) -> Decision | None:
    return Decision("int4", "tight") if now.pressure > 0.8 else None

def broken(now: Reading) -> Decision | None:
    raise ZeroDivisionError("on purpose")
"""


def test_the_shipped_policies_are_listed(adaptive_kv: Run) -> None:
    done = adaptive_kv("policy", "list", "--json")
    assert done.returncode == 0
    assert {"fixed", "ladder"} <= {found["name"] for found in json.loads(done.stdout)}


def test_each_policy_is_one_line(adaptive_kv: Run) -> None:
    names = [line.split()[0] for line in adaptive_kv("policy", "list").stdout.splitlines()]
    assert {"fixed", "ladder"} <= set(names)
    assert names == sorted(names)


def test_a_good_policy_of_a_file_is_asked(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    done = adaptive_kv("policy", "check", "./mine.py:careful")
    assert done.returncode == 0, done.stderr
    assert "hold" in done.stdout
    assert "int4" in done.stdout


def test_a_policy_that_raises_fails_the_check(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    done = adaptive_kv("policy", "check", "./mine.py:broken")
    assert done.returncode == 78
    assert "on purpose" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_absent_policy_is_named(adaptive_kv: Run) -> None:
    done = adaptive_kv("policy", "check", "no_such_policy")
    assert done.returncode == 78
    assert "no_such_policy" in done.stderr
