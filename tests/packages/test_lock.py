"""The lock has every package by its hash, and satisfies what pyproject.toml asks for today."""

import re

import pytest
from make_lock import LEFT_TO_THE_BOX, LOCK, requirements
from packaging.requirements import Requirement

ENTRY = re.compile(r"^([\w.-]+==.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def locked() -> list[Requirement]:
    return [Requirement(text) for text, _ in ENTRY.findall(LOCK.read_text())]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_it_satisfies_what_is_asked_for(python: str) -> None:
    """If this fails: `make lock`."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    found = {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in locked()
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    for asked in map(Requirement, requirements()):
        assert asked.name in found, f"{asked.name} is not locked"
        assert asked.specifier.contains(found[asked.name]), f"{asked} is locked at another version"


def test_nothing_in_it_is_without_a_hash() -> None:
    text = LOCK.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("#", "    --hash"))]
    assert len(lines) == len(locked()) > 30
    assert len(re.findall("==", text)) >= len(lines)


def test_torch_is_left_to_the_box() -> None:
    """And what only torch brings, which is large."""
    names = {pin.name for pin in locked()}
    assert LEFT_TO_THE_BOX not in names
    assert not [name for name in names if name.startswith(("nvidia-c", "triton"))]
