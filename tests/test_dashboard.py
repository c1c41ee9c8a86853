"""The dashboard in a real browser, before the real service under a squeeze.

`--pictures docs/dashboard` makes the run longer and takes the pictures that are in docs from it.
"""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from browser import Seen, running_chromium, visiting
from cli.test_serve import Served, ask, serving
from playwright.sync_api import Locator, expect
from test_squeeze import CONFIG, FLOOR_BYTES, MIB, Device, prompt

ROOMY_BYTES, TIGHT_BYTES = 90 * MIB, 11 * MIB
NUM_CLIENTS = 8
RAMP = (
    *(90 * 0.88**n for n in range(17)),
    *(11 for _ in range(4)),
    *(11 * 1.3**n for n in range(9)),
)
"""What the neighbour leaves above the floor while pictures are taken, in MiB."""
WHY = re.compile(r"(memory is short|memory ran out|the floor is near).*; \d sequences? in ")
RUNG_MS, CALM_MS = 2000, 10_000
MODES_SHOWN = "new Set([...document.querySelectorAll('#modes .mode')].map((p) => p.classList[1]))"
NUM_POINTS = "document.querySelector('#memory .cache').getAttribute('d').split(/[ML]/).length"


class Neighbour(Device):
    """Leaves `left_bytes` to the cache: what that takes of it is no longer free."""

    left_bytes = ROOMY_BYTES
    service_url: str | None = None

    def __init__(self, file: Path, client: httpx.Client) -> None:
        self._client = client
        super().__init__(file)

    def _write(self) -> None:
        cache_bytes = 0
        if self.service_url is not None:
            with suppress(httpx.HTTPError):  # it is ending
                status = self._client.get(f"{self.service_url}/status").json()
                cache_bytes = status["memory"]["cache_bytes"]
        self.free_bytes = max(0, FLOOR_BYTES + self.left_bytes - cache_bytes)
        super()._write()


@contextmanager
def squeezable(folder: Path) -> Iterator[tuple[Served, Neighbour]]:
    """The service beside a neighbour."""
    config, file = folder / "adaptive-kv.toml", folder / "memory.json"
    config.write_text(CONFIG.format(file=file))
    arguments = ("--config", str(config), "--node", "edge-07", "--memory-budget", "80MiB")
    with (
        httpx.Client() as client,
        Neighbour(file, client) as neighbour,
        serving(folder, *arguments) as served,
    ):
        neighbour.service_url = served.url
        yield served, neighbour


@contextmanager
def busy(served: Served) -> Iterator[None]:
    """Clients that ask again as soon as they are answered."""
    is_over = threading.Event()

    def ask_on(number: int) -> None:
        while not is_over.is_set():
            num_tokens = 250 + number * 61 % 300
            with ask(
                f"{served.url}/v1/completions", prompt=prompt(number), max_tokens=num_tokens
            ) as answer:
                assert list(answer)[-1]["choices"][0]["finish_reason"] == "length"
            number += NUM_CLIENTS

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        asked = [clients.submit(ask_on, number) for number in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            is_over.set()
        for each in asked:
            each.result()


def shown(seen: Seen, text: str) -> Locator:
    """Events with `text`, once there are any, however many others came after them."""
    found = seen.page.locator("#events li").filter(has_text=text)
    older = seen.page.locator("#older")

    def look() -> bool:
        if found.count() == 0 and older.is_visible():
            older.click()
        return found.count() > 0

    seen.comes_true(look, text)
    return found


def take_pictures(seen: Seen, folder: Path, neighbour: Neighbour) -> None:
    """Of a whole squeeze, once it is over."""
    seen.page.wait_for_timeout(CALM_MS)
    for left in RAMP:
        neighbour.left_bytes = int(left * MIB)
        seen.page.wait_for_timeout(RUNG_MS)
    seen.page.wait_for_timeout(CALM_MS)
    folder.mkdir(parents=True, exist_ok=True)
    seen.dress("light", 1280, 940)
    seen.page.screenshot(path=folder / "desktop.png", full_page=True)
    seen.dress("dark", 1280, 940)
    seen.page.screenshot(path=folder / "desktop-dark.png", full_page=True)
    seen.dress("light", 390, 844)
    seen.page.screenshot(path=folder / "phone.png", full_page=True)
    seen.dress("light", 1280)


def test_the_dashboard_shows_a_squeeze(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Live, with buttons that work, on a phone too, and without a word in the console."""
    pictures = request.config.getoption("--pictures")
    with (
        running_chromium() as browser,
        squeezable(tmp_path) as (served, neighbour),
        visiting(browser, served.url) as seen,
    ):
        page = seen.page
        expect(page.locator("#link")).to_have_text("live")
        with busy(served):
            seen.holds(f"{NUM_POINTS} > 3")
            before = page.evaluate(NUM_POINTS)
            seen.holds(f"(before) => {NUM_POINTS} > before", before)
            expect(page.locator("#budget")).to_contain_text("that the budget leaves")
            expect(page.locator("#modes-words")).to_contain_text(re.compile(r"Now: \d full"))
            if pictures:
                take_pictures(seen, Path(pictures), neighbour)
            neighbour.left_bytes = TIGHT_BYTES
            seen.holds(f"{MODES_SHOWN}.size > 1")
            change = shown(seen, "full → ")
            expect(change.first).to_contain_text(WHY)
            neighbour.left_bytes = ROOMY_BYTES
            expect(page.locator("tr[aria-current] th")).to_have_text("full")

            page.get_by_role("button", name="Pin int8", exact=True).click()
            expect(page.locator("tr[aria-current] th")).to_have_text("int8")
            expect(page.locator("#tiles")).to_contain_text("pinned, for")
            assert httpx.get(f"{served.url}/status").json()["pinned"] is True
            page.get_by_role("button", name="Return to the policy").click()
            expect(page.locator("tr[aria-current] th")).to_have_text("full")
            assert httpx.get(f"{served.url}/status").json()["pinned"] is False
            shown(seen, "pinned by hand")

        colors = []
        for scheme in ("light", "dark"):
            for width in (1280, 320):
                seen.dress(scheme, width)
                assert seen.width() == width
                assert seen.complaints() == []
            colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colors[0] != colors[1]
        assert {httpx.URL(url).host for url in seen.requested} == {"127.0.0.1"}
        assert seen.errors == []
