from importlib.metadata import entry_points
from pathlib import Path

import pytest

from adaptive_kv.errors import PolicyError
from adaptive_kv.loader import GROUP, list_policies, load_policy, policy_names
from adaptive_kv.policy import Decision
from adaptive_kv.testing import make_reading

CLASS = """
from dataclasses import dataclass
from adaptive_kv import Decision, Reading

@dataclass
class Mine:
    mode: str = "int8"
    def __call__(self, now: Reading) -> Decision | None:
        return Decision(self.mode, "mine")
"""
FUNCTION = """
from adaptive_kv import Decision, Reading

def decide(now: Reading) -> Decision | None:
    return Decision("int4")

def _helper(): ...
LIMIT = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def mode_of(name_or_file: str, folder: Path, **options: object) -> str:
    policy, _ = load_policy(name_or_file, options, folder=folder)
    decision = policy(make_reading())
    assert decision is not None
    return decision.mode


def test_the_shipped_policies_come_through_the_same_door_as_anyones(folder: Path) -> None:
    assert {"ladder", "fixed"} <= {entry.name for entry in entry_points(group=GROUP)}
    assert mode_of("fixed", folder, mode="int4") == "int4"
    policy, name = load_policy("ladder", {"hold_s": 1.0})
    assert (name, type(policy).__name__) == ("ladder", "Ladder")


def test_a_class_is_made_once_with_its_options(folder: Path) -> None:
    path = write(folder, "mine", CLASS)
    assert mode_of(f"{path}:Mine", folder, mode="full") == "full"
    policy, name = load_policy(f"{path}:Mine", {}, folder=folder)
    assert name == "mine.py:Mine"
    assert policy(make_reading()) == Decision("int8", "mine")


def test_a_function_is_a_policy(folder: Path) -> None:
    assert mode_of(f"{write(folder, 'f', FUNCTION)}:decide", folder) == "int4"


def test_a_drop_in_is_named_by_its_file(folder: Path) -> None:
    write(folder, "by-class", CLASS)
    write(folder, "by_function", FUNCTION)
    assert mode_of("by-class", folder, mode="int4") == "int4"
    assert mode_of("by_function", folder) == "int4"
    assert mode_of(str(folder / "by_function.py"), folder) == "int4"


def test_a_variable_called_policy_goes_first(folder: Path) -> None:
    write(folder, "chosen", FUNCTION + CLASS + "\npolicy = Mine('full')\n")
    assert mode_of("chosen", folder) == "full"


def test_every_policy_that_has_a_name_is_listed(folder: Path) -> None:
    write(folder, "mine", CLASS)
    write(folder, "_hidden", CLASS)
    path = write(folder, "ladder", CLASS)
    found = {policy.name: policy.origin for policy in list_policies(folder=folder)}
    assert found["mine"] == str(folder / "mine.py")
    assert found["ladder"] == "adaptive_kv_policies.ladder:Ladder" != str(path)
    assert "_hidden" not in found
    assert policy_names(folder=folder) == sorted(found)
    assert {"fixed", "ladder"} <= set(policy_names(folder=folder / "absent"))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("laddr", {}, "did you mean ladder"),
        ("zzz", {}, "there are .*fixed"),
        ("../mine", {}, "no such policy"),
        ("", {}, "no such policy"),
        ("/absent/x.py:Mine", {}, "there is no file /absent/x.py"),
        ("fixed", {"mood": 1}, "mood"),
        ("fixed", {"mode": "int3"}, "unknown cache mode 'int3'"),
        ("ladder", {"up": 0.9, "down": 0.8}, "0 < up < down"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    folder: Path, name: str, options: dict[str, object], why: str
) -> None:
    with pytest.raises(PolicyError, match=why) as caught:
        load_policy(name, options, folder=folder)
    assert caught.value.policy == name


@pytest.mark.parametrize(
    ("text", "attribute", "options", "why"),
    [
        (FUNCTION, ":decide", {"a": 1}, "takes no options, but is given a"),
        (FUNCTION, ":nothing", {}, "has no nothing"),
        (FUNCTION, ":LIMIT", {}, "a int cannot be called"),
        (FUNCTION + CLASS, "", {}, "defines decide, Mine; say which"),
        ("x = 1\n", "", {}, "defines no class or function"),
        ("class A: ...\n", ":A", {}, "a A cannot be called"),
        ("1 / 0\n", ":A", {}, "ZeroDivisionError"),
        ("def f(:\n", ":f", {}, "SyntaxError"),
        ("import absent_module\n", ":f", {}, "No module named"),
        ("raise SystemExit(3)\n", ":f", {}, "SystemExit"),
    ],
)
def test_a_bad_file_says_why(
    folder: Path, text: str, attribute: str, options: dict[str, object], why: str
) -> None:
    path = write(folder, "bad", text)
    with pytest.raises(PolicyError, match=why):
        load_policy(f"{path}{attribute}", options, folder=folder)
