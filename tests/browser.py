"""The real Chromium that is installed, without a window, and what goes wrong in its pages."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENT_MS = 120_000
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """The browser that is installed; skips where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("chromium is not installed")
    return found


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser with a fresh profile, gone at the end. One at a time, and never beside a loop."""
    expect.set_options(timeout=PATIENT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """A page, and everything that a person with the console open would frown at."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def holds(self, claim: str, argument: Any = None) -> None:
        """Wait until an expression of JavaScript is true; fails when it never is.

        Asked from outside: Playwright's own way of waiting is forbidden by the page's policy.
        """
        self.comes_true(lambda: bool(self.page.evaluate(claim, argument)), claim)

    def comes_true(self, ask: Callable[[], bool], claim: str = "") -> None:
        """Wait until something that the page may have to do with is so."""
        until_s = time.monotonic() + PATIENT_MS / 1000
        while not ask() and time.monotonic() < until_s:
            self.page.wait_for_timeout(50)  # Playwright takes in what happens meanwhile
        assert ask(), claim

    def complaints(self) -> list[str]:
        """What axe has to say against the page, by the rules of WCAG 2.2 AA and best practice."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in found
            for node in each["nodes"]
        ]

    def dress(self, scheme: Literal["light", "dark"], width: int, height: int = 800) -> None:
        """Show it in a window of this size, to somebody who likes it light or dark."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": height})
        self.holds("(width) => document.querySelector('#memory').clientWidth < width", width)

    def width(self) -> int:
        """Of the whole document, which is more than the window's where one must scroll."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth")
        return width


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Seen]:
    """A page of its own, with nothing kept from another one."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    context.set_default_timeout(PATIENT_MS)
    page = context.new_page()
    seen = Seen(page)
    page.on("console", lambda told: _note(seen, told.type, told.text))
    page.on("pageerror", lambda error: seen.errors.append(f"uncaught: {error}"))
    page.on("request", lambda request: seen.requested.append(request.url))
    try:
        page.goto(url)
        yield seen
    finally:
        context.close()


def _note(seen: Seen, kind: str, text: str) -> None:
    if kind in {"error", "warning"}:
        seen.errors.append(f"{kind}: {text}")
