"""A server that tests share where they leave nothing behind."""

from collections.abc import Iterator

import pytest
from browser import running_chromium
from playwright.sync_api import Browser
from server.scripted import Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Behind it a worker that answers by the prompt."""
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Started once for the tests of a file, none of which has a loop of its own."""
    with running_chromium() as browser:
        yield browser
