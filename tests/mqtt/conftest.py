from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Mosquitto, running_mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path) as running:
        yield running
