"""The page is for everybody: by eye and ear, pointer and keyboard, on a phone and on a wall."""

from typing import Literal

from browser import Seen, visiting
from playwright.sync_api import Browser, expect
from server.pages import BROKEN, MODES, TOKEN, busy_status, enter, looking, showing
from statuses import EVERY_EVENT, FULL, INT4

from adaptive_kv.engine.status import PolicyStatus
from adaptive_kv.events import PolicyFault
from adaptive_kv.policy import CacheMode, Cost

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
FOCUSED = """(({ ariaLabel, id, labels }) => ariaLabel ?? (id || labels[0].innerText.trim()))(
  document.activeElement)"""
TREE = """
- link "Skip to the figures"
- banner:
  - heading "adaptive-kv" [level=1]
- main:
  - region "Now"
  - group "How far back the charts reach"
  - region "Memory above the floor":
    - img /^Memory above the floor In the time shown between .* were free above the floor/
  - region "Mode of every sequence":
    - img /^Mode of every sequence No change .* Now. 1 full, 1 int8/
  - region "Time per token":
    - img /A token takes 12.3 ms in the median, 45 ms at the 95th percentile/
  - slider "Moment to look at"
  - region "Modes":
    - table "Modes":
      - rowgroup:
        - row:
          - columnheader "Mode"
          - columnheader "Cache"
          - columnheader "Per token"
          - columnheader "Exact"
          - columnheader "Pin"
      - rowgroup:
        - row:
          - rowheader "full"
          - cell "1 MiB"
          - cell "10 ms"
          - cell "yes"
          - cell:
            - button "Pin full"
    - button "Return to the policy" [disabled]
  - region "Events":
    - checkbox "Single sequences too"
- contentinfo
- status
"""
LONG = {
    "mode": CacheMode("window:123456789+int4"),
    "costs": {CacheMode("window:123456789+int4"): Cost(bytes=2**40 - 1, token_s=0.1234)},
    "reason_text": "x" * 120,
    "policy": PolicyStatus(name="a" * 60, status="fallback", faults=12345),
}


def complaints_in_every_dress(seen: Seen) -> list[str]:
    """By what axe knows, contrast included: light and dark, on a phone and on a desk."""
    found = []
    for width in (320, 1280):
        for scheme in SCHEMES:
            seen.dress(scheme, width)
            found += [f"{scheme}, {width}: {each}" for each in seen.complaints()]
    return found


def test_it_is_accessible(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        assert complaints_in_every_dress(seen) == []
        assert seen.page.evaluate("document.getAnimations().length") == 0
        assert seen.errors == []


def test_it_is_accessible_in_bad_times(browser: Browser) -> None:
    with showing(status=busy_status(**BROKEN)) as served, looking(browser, served) as seen:
        for event in EVERY_EVENT:
            served.events.append(event)
        seen.page.get_by_role("button", name="Pin int4", exact=True).click()
        expect(seen.page.locator("button[aria-pressed=true]")).to_have_count(1)
        expect(seen.page.locator("#events li")).to_have_count(8)
        assert complaints_in_every_dress(seen) == []
        assert seen.errors == []


def test_the_door_is_accessible(browser: Browser) -> None:
    with showing(token=TOKEN) as served, visiting(browser, served.url) as seen:
        enter(seen, "wrong")
        expect(seen.page.get_by_role("alert")).not_to_be_empty()
        assert complaints_in_every_dress(seen) == []


def test_a_screen_reader_finds_everything_by_its_name(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        expect(seen.page.locator("body")).to_match_aria_snapshot(TREE)


def test_the_keyboard_goes_through_it_in_the_order_of_reading(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        seen.page.keyboard.press("Tab")
        expect(seen.page.get_by_role("link", name="Skip to the figures")).to_be_focused()
        seen.page.keyboard.press("Enter")
        stops = []
        for _ in range(len(MODES) + 4):
            seen.page.keyboard.press("Tab")
            stops.append(seen.page.evaluate(FOCUSED))
        assert stops == ["2 minutes", "when", *(f"Pin {mode}" for mode in MODES), "unpin", "every"]


def test_changes_are_said_without_chatter(browser: Browser) -> None:
    """Of many in a few seconds the first and the last."""
    with showing() as served, visiting(browser, "about:blank") as seen:
        clock = seen.page.clock
        clock.install(time=0)
        clock.pause_at(1)
        seen.page.goto(served.url)
        expect(seen.page.locator("#link")).to_have_text("live")
        seen.page.evaluate(
            """() => {
              window.said = [];
              new MutationObserver(() => window.said.push(document.getElementById("say").innerText))
                .observe(document.getElementById("say"), { childList: true });
            }"""
        )
        for mode in (INT4, FULL, INT4, FULL):
            served.worker.publish(mode=mode)
            clock.run_for(1000)
            expect(seen.page.locator("tr[aria-current] th")).to_have_text(mode)
        clock.run_for(8000)
        said = [f"Mode {mode}: room to spare" for mode in (INT4, FULL)]
        assert seen.page.evaluate("window.said") == said


def test_nobody_has_to_scroll_sideways(browser: Browser) -> None:
    """Whatever names and figures are shown."""
    with showing(status=busy_status(**LONG)) as served, looking(browser, served) as seen:
        served.events.append(PolicyFault(policy="p" * 60, error="e" * 200, faults=1))
        expect(seen.page.locator("#events li")).to_have_count(1)
        for width in (320, 375, 600, 999, 1000, 1280, 2560):
            seen.dress("light", width)
            assert seen.width() == width
        assert seen.errors == []
