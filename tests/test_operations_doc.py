"""The page for whoever runs a box names what is there. Its commands run in tests/boot."""

import re
import tomllib
from pathlib import Path

import pytest
from build_deb import FILES, version

from adaptive_kv.config import load_settings
from adaptive_kv.documents.models import EVENTS
from adaptive_kv.engine.status import Health
from adaptive_kv.settings import Settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
SOURCES = "".join(file.read_text("utf-8") for file in (ROOT / "adaptive_kv").rglob("*.py"))


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(text: str) -> list[str]:
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def keys(part: str) -> set[str]:
    """Those of a section of the configuration."""
    found = getattr(load_settings(default_file=Path("/nonexistent")), part)
    return set(type(found).model_fields)


def test_every_health_is_explained() -> None:
    table = section("What its health means").split("\n\n")[1]
    assert first_column(table) == [health.value for health in Health]


def test_every_event_is_explained_or_said_to_be_hidden() -> None:
    text = section("Read the logs")
    assert {kind.type for kind in EVENTS} <= set(re.findall(r"`(\w+)`", text))
    for name in first_column(text):
        assert f'"{name}"' in SOURCES, name


def test_every_credential_is_handed_over_by_both_units() -> None:
    """And is a key of the configuration."""
    named = first_column(section("Credentials"))
    for unit in ("adaptive-kv.service", "adaptive-kv@.service"):
        text = (ROOT / "systemd" / unit).read_text()
        assert re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE) == named
    for name in named:
        part, key = name.split("__")
        assert key in keys(part)


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_its_configuration_is_accepted(block: str, tmp_path: Path) -> None:
    assert tomllib.loads(block)
    (tmp_path / "mine.toml").write_text(block)
    load_settings(tmp_path / "mine.toml")


def test_the_keys_and_files_that_it_names_exist() -> None:
    for part, key in re.findall(r"`(\w+)\.(\w+)(?: = [^`]*)?`", PAGE):
        if part in Settings.model_fields:
            assert key in keys(part), f"{part}.{key}"
    places = {f"/{place}" for place in FILES.values()}
    for file in re.findall(r"(?<![\w/])/(?:usr/share|usr/lib|etc)/[\w./@-]+\.(?:conf|lock)", PAGE):
        assert file in places, file
    assert set(re.findall(r"adaptive-kv_[\w.]+_all\.deb", PAGE)) == {
        f"adaptive-kv_{version()}_all.deb"
    }
