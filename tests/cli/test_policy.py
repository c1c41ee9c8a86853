"""Policies are listed, checked and begun from the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

SHIPPED = {"fair", "fixed", "forecast", "ladder", "latency_guard"}
MINE = """
from adaptive_kv import Decision, Reading

def careful(now: Reading) -> Decision | None:
    return Decision("int4", "tight") if now.pressure > 0.8 else None

def broken(now: Reading) -> Decision | None:
    raise ZeroDivisionError("on purpose")

class Late:
    def __init__(self, size: int) -> None:
        self.hoard = bytearray(size)
    def __call__(self, now: Reading) -> Decision | None:
        return None
"""


def test_the_shipped_policies_are_listed(adaptive_kv: Run) -> None:
    done = adaptive_kv("policy", "list", "--json")
    assert done.returncode == 0
    assert {found["name"] for found in json.loads(done.stdout)} >= SHIPPED


def test_each_policy_is_one_line(adaptive_kv: Run) -> None:
    names = [line.split()[0] for line in adaptive_kv("policy", "list").stdout.splitlines()]
    assert set(names) >= SHIPPED
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
    assert "wrong      raised ZeroDivisionError: on purpose" in done.stderr
    assert "times)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_absent_policy_is_named(adaptive_kv: Run) -> None:
    done = adaptive_kv("policy", "check", "no_such_policy")
    assert done.returncode == 78
    assert "no_such_policy" in done.stderr


def test_advice_is_given_and_no_reason_to_fail(adaptive_kv: Run) -> None:
    done = adaptive_kv("policy", "check", "fixed")
    assert done.returncode == 0
    assert "advice     left the floor broken" in done.stdout
    assert done.stderr == ""


def test_what_is_wrong_is_a_document_on_demand(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    done = adaptive_kv("policy", "check", "./mine.py:broken", "--json")
    assert done.returncode == 78
    (problem,) = json.loads(done.stdout)
    assert (problem["kind"], problem["is_advice"]) == ("raises", False)
    assert json.loads(adaptive_kv("policy", "check", "ladder", "--json").stdout) == []


def test_a_policy_that_needs_too_much_memory_is_found_before_it_runs(
    adaptive_kv: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    check = ("policy", "check", "./mine.py:Late", "--options")
    assert adaptive_kv(*check, '{"size": 1000}').returncode == 0
    done = adaptive_kv(*check, '{"size": 1000000000}')
    assert done.returncode == 78
    assert "MemoryError" in done.stderr


def test_a_new_policy_works_and_so_does_its_test(adaptive_kv: Run, tmp_path: Path) -> None:
    """And both pass the strictest type check."""
    done = adaptive_kv("policy", "new", "night_watch")
    assert done.returncode == 0, done.stderr
    assert "wrote night_watch.py" in done.stdout
    checked = adaptive_kv("policy", "check", "night_watch.py:NightWatch")
    assert checked.returncode == 0, checked.stderr
    assert "advice" not in checked.stdout
    for command in (("pytest", "-q", "test_night_watch.py"), ("mypy", "--strict", ".")):
        ran = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["", "Night", "night-watch", "../night", "9lives", "a__b", "x.py"])
def test_a_name_that_cannot_be_imported_is_refused(
    adaptive_kv: Run, tmp_path: Path, name: str
) -> None:
    done = adaptive_kv("policy", "new", name)
    assert done.returncode == 78
    assert list(tmp_path.glob("*.py")) == []


def test_nothing_is_overwritten(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    done = adaptive_kv("policy", "new", "mine")
    assert done.returncode == 78
    assert "test_mine.py exists" in done.stderr
    assert (tmp_path / "test_mine.py").read_text() == "precious"
    assert not (tmp_path / "mine.py").exists()


def test_a_folder_may_be_given_and_must_be_there(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    assert adaptive_kv("policy", "new", "mine", "--folder", "kept").returncode == 0
    assert (tmp_path / "kept" / "mine.py").exists()
    done = adaptive_kv("policy", "new", "mine", "--folder", "absent")
    assert done.returncode == 78
    assert "cannot write" in done.stderr
