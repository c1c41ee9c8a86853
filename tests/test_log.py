"""All records of the process come out in one format, and prompts stay out."""

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from adaptive_kv.log import configure_logging
from adaptive_kv.settings import LogSettings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_auto_is_json_where_nobody_looks() -> None:
    out = io.StringIO()
    configure_logging(LogSettings(), out)
    structlog.get_logger("adaptive_kv.test").info("switched", to_mode="int4", freed_bytes=12)
    (record,) = records(out)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "switched",
        "level": "info",
        "logger": "adaptive_kv.test",
        "to_mode": "int4",
        "freed_bytes": 12,
    }


def test_auto_is_console_on_a_terminal() -> None:
    out = Terminal()
    configure_logging(LogSettings(), out)
    structlog.get_logger("adaptive_kv.test").info("switched", freed_bytes=12)
    assert "switched" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_format_can_be_chosen() -> None:
    out = Terminal()
    configure_logging(LogSettings(format="json"), out)
    structlog.get_logger().info("switched")
    assert records(out)[0]["event"] == "switched"


@pytest.mark.parametrize("library", ["uvicorn.error", "uvicorn.access", "mqtt", "paho"])
def test_a_library_looks_like_us(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server that ran in this process has silenced its access log for good.
    monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    out = io.StringIO()
    configure_logging(LogSettings(), out)
    logging.getLogger(library).warning("listening on %s", "127.0.0.1", extra={"color_message": "x"})
    (record,) = records(out)
    assert (record["event"], record["logger"]) == ("listening on 127.0.0.1", library)
    assert "color_message" not in record


def test_warnings_become_records() -> None:
    out = io.StringIO()
    configure_logging(LogSettings(), out)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert records(out)[0]["logger"] == "py.warnings"


def test_records_below_the_level_are_dropped() -> None:
    out = io.StringIO()
    configure_logging(LogSettings(level="warning"), out)
    structlog.get_logger("adaptive_kv.test").info("quiet")
    logging.getLogger("uvicorn.error").info("quiet")
    assert out.getvalue() == ""


def test_libraries_do_not_follow_to_debug() -> None:
    out = io.StringIO()
    configure_logging(LogSettings(level="debug"), out)
    structlog.get_logger("adaptive_kv.test").debug("ours")
    logging.getLogger("uvicorn.error").debug("theirs")
    logging.getLogger("transformers.generation").debug("theirs")
    assert [record["event"] for record in records(out)] == ["ours"]


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_local_variable(style: str) -> None:
    out = io.StringIO()
    configure_logging(LogSettings.model_validate({"format": style}), out)
    prompt = "what the patient said".upper()
    try:
        raise KeyError(len(prompt))
    except KeyError:
        structlog.get_logger("adaptive_kv.test").exception("step failed")
    assert "KeyError" in out.getvalue()
    assert "WHAT THE PATIENT SAID" not in out.getvalue()


def test_calling_again_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(LogSettings(), first)
    configure_logging(LogSettings(), second)
    structlog.get_logger("adaptive_kv.test").info("once")
    assert first.getvalue() == ""
    assert len(records(second)) == 1


def test_transformers_gives_up_its_own_handler() -> None:
    """In a process of its own, since transformers is set up once per process."""
    script = (
        "import logging\n"
        "from adaptive_kv.log import adopt_transformers, configure_logging\n"
        "from adaptive_kv.settings import LogSettings\n"
        "configure_logging(LogSettings())\n"
        "adopt_transformers()\n"
        "logging.getLogger('transformers.modeling').warning('slow path')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"CI": "", "PATH": ""},
    )
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["slow path"]
