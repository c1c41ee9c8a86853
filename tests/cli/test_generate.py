"""One prompt, answered in the process of the command."""

from collections.abc import Callable
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]
ASK = ("generate", "What does itertools.chain do?", "--device", "cpu", "--max-tokens", "12")


def test_the_answer_alone_goes_to_stdout(adaptive_kv: Run) -> None:
    done = adaptive_kv(*ASK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""


def test_a_mode_is_held_and_its_cost_told(adaptive_kv: Run) -> None:
    done = adaptive_kv(*ASK, "--mode", "window:64+int4", "--verbose")
    assert done.returncode == 0, done.stderr
    cost = done.stderr.splitlines()[-1]
    assert "tokens (window:64+int4 " in cost
    assert cost.endswith(" switches, exact")  # it is shorter than its window
    assert done.stdout.strip()


def test_bare_text_is_continued(adaptive_kv: Run) -> None:
    done = adaptive_kv("generate", "def main", "--raw", "--device", "cpu", "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_prompt_that_does_not_fit_is_refused(adaptive_kv: Run) -> None:
    done = adaptive_kv("generate", "many words " * 4000, "--device", "cpu")
    assert done.returncode == 1
    assert "tokens" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_model_exits_with_78(adaptive_kv: Run) -> None:
    done = adaptive_kv("generate", "hello", "--model", "./no_such_model", "--device", "cpu")
    assert done.returncode == 78
    assert "no_such_model" in done.stderr
    assert "Traceback" not in done.stderr
