"""A server that tests share where they leave nothing behind."""

from collections.abc import Iterator

import pytest
from server.scripted import Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Behind it a worker that answers by the prompt."""
    with serving() as served:
        yield served
