from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Mosquitto, running_mosquitto
from mqtt.secured import secured_mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One for all tests of a file, which leave it running."""
    with secured_mosquitto(tmp_path_factory.mktemp("secured")) as running:
        yield running
