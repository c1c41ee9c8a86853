"""Help, versions, exit statuses: what holds for every command."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from adaptive_kv import __version__

Run = Callable[..., CompletedProcess[str]]
COMMANDS = [
    ("serve",),
    ("generate",),
    ("demo",),
    ("watch",),
    ("doctor",),
    ("policy", "list"),
    ("policy", "check"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(adaptive_kv: Run, command: tuple[str, ...]) -> None:
    done = adaptive_kv(*command, "--help")
    assert done.returncode == 0
    assert f"Example: adaptive-kv {' '.join(command)}" in " ".join(done.stdout.split())


def test_help_lists_every_command(adaptive_kv: Run) -> None:
    done = adaptive_kv("--help")
    assert done.returncode == 0
    assert all(command[0] in done.stdout for command in COMMANDS)


def test_the_version_is_told(adaptive_kv: Run) -> None:
    assert adaptive_kv("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--mode", "int3"), "int3"),
        (("serve", "--memory-budget", "12parsec"), "memory.budget"),
        (("serve", "--device", "tpu"), "model.device"),
        (("serve", "--port", "many"), "--port"),
        (("serve", "--port", "70000"), "server.port"),
        (("serve", "--host", "0.0.0.0"), "server.token"),
        (("serve", "--node", "Not a node"), "mqtt.node"),
        (("serve", "--mqtt-url", "ftp://there"), "mqtt.url"),
        (("serve", "--memory-source", "guess"), "memory.source"),
        (("serve", "--config", "absent.toml"), "absent.toml"),
        (("serve", "--prot", "1"), "--prot"),
        (("generate", "hello", "--mode", "window:0"), "window:0"),
        (("generate",), "PROMPT"),
        (("policy", "check", "ladder", "--options", "{"), "--options"),
        (("policy", "check", "ladder", "--options", "[]"), "--options"),
        (("nonsense",), "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_configuration_is_named_and_exits_with_78(
    adaptive_kv: Run, arguments: tuple[str, ...], named: str
) -> None:
    done = adaptive_kv(*arguments)
    assert done.returncode == 78
    assert named.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_key_of_a_file_is_named(adaptive_kv: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[server]\nprot = 1\n[memory]\nflour = 2\n")
    done = adaptive_kv("serve", "--config", "mine.toml")
    assert done.returncode == 78
    assert "server.prot" in done.stderr
    assert "memory.flour" in done.stderr


def test_an_unknown_key_of_the_environment_is_named(adaptive_kv: Run) -> None:
    done = adaptive_kv("serve", ADAPTIVE_KV_SERVER__PROT="1")
    assert done.returncode == 78
    assert "prot" in done.stderr.lower()
