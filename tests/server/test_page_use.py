"""What the page shows, and what one can do with it."""

import re
from dataclasses import replace

from browser import visiting
from playwright.sync_api import Browser, expect
from server.pages import BROKEN, MIB, MODES, looking, num_points, showing
from statuses import EVERY_EVENT, FULL, INT4

from adaptive_kv.engine.status import Health
from adaptive_kv.events import Drain, ModeChanged

CHANGED = ModeChanged(
    from_mode=FULL, to_mode=INT4, reason="pressure", duration_s=0.25, freed_bytes=9, sequences=7
)


def test_a_mode_is_pinned_and_released_with_the_keyboard_alone(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        button = seen.page.get_by_role("button", name="Pin window:512+int4", exact=True)
        button.focus()
        seen.page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(button).to_be_focused()
        expect(seen.page.locator("tr[aria-current] th")).to_have_text("window:512+int4")
        assert served.mailbox.status.mode == "window:512+int4"
        release = seen.page.get_by_role("button", name="Return to the policy")
        release.focus()
        seen.page.keyboard.press("Space")
        expect(button).to_have_attribute("aria-pressed", "false")
        expect(release).to_be_focused()
        assert not served.mailbox.status.pinned
        assert seen.errors == []


def test_a_change_of_mode_is_shown_as_it_happens(browser: Browser) -> None:
    """The stream of events brings it: no time passes here."""
    with showing() as served, visiting(browser, "about:blank") as seen:
        seen.page.clock.install(time=0)
        seen.page.clock.pause_at(1)
        seen.page.goto(served.url)
        for from_mode, to_mode in ((FULL, INT4), (INT4, FULL)):
            expect(seen.page.locator("tr[aria-current] th")).to_have_text(from_mode)
            served.worker.publish(mode=to_mode)
            served.events.append(replace(CHANGED, from_mode=from_mode, to_mode=to_mode))
            expect(seen.page.locator("tr[aria-current] th")).to_have_text(to_mode)
            expect(seen.page.locator("#events b").first).to_have_text(f"{from_mode} → {to_mode}")
        assert seen.errors == []


def test_a_pin_that_is_refused_says_why(browser: Browser) -> None:
    """A scripted model has no int8."""
    with showing() as served, looking(browser, served) as seen:
        seen.page.get_by_role("button", name="Pin int8", exact=True).click()
        told = seen.page.get_by_role("alert")
        expect(told).to_have_text("That did not work: int8 cannot be used with 'demo'.")


def test_every_event_has_its_words(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        for event in EVERY_EVENT:
            served.events.append(event)
        happened = seen.page.locator("#events li")
        expect(happened.first).to_contain_text("Draining")
        older = seen.page.get_by_role("button", name="Show older ones")
        expect(happened).to_have_count(len(EVERY_EVENT) - 4)
        expect(older).to_be_hidden()
        seen.page.get_by_label("Single sequences too").check()
        expect(happened).to_have_count(8)
        older.click()
        expect(happened).to_have_count(len(EVERY_EVENT))
        text = " ".join(happened.all_inner_texts())
        assert "undefined" not in text
        assert "NaN" not in text
        expect(happened.last).to_contain_text("full → int4")
        expect(happened.last).to_contain_text("pressure; 3 sequences in 250 ms, freed 4 KiB")
        assert seen.errors == []


def test_modes_are_told_apart_without_colour(browser: Browser) -> None:
    """By tone or pattern, in the chart as in its legend."""
    with showing() as served, looking(browser, served) as seen:
        looks = seen.page.evaluate(
            """() => [...document.querySelectorAll("#modes .mode")].map((path) => {
              const style = getComputedStyle(path);
              return [style.fill, style.strokeDasharray, style.stroke].join();
            })"""
        )
        assert len(looks) == len(set(looks)) == len(MODES) + 1
        legend = seen.page.locator("#modes-legend li").all_inner_texts()
        assert legend == [*MODES, "parked"]


def test_trouble_is_seen(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        expect(seen.page.locator("#under")).to_be_hidden()
        memory = served.mailbox.status.memory
        short = replace(memory, free_bytes=memory.floor_bytes - 12 * MIB)
        served.worker.publish(memory=short, **BROKEN)
        expect(seen.page.locator("#health")).to_have_text("health degraded")
        expect(seen.page.locator("#under")).to_be_visible()
        seen.holds("document.querySelector('#memory .under')")
        expect(seen.page.locator("#tiles .wrong dt")).to_have_text(
            ["Free above the floor", "Policy"]
        )
        expect(seen.page).to_have_title("degraded · full · edge-7")
        expect(seen.page.locator("#tiles")).to_contain_text("-12 MiB")
        expect(seen.page.locator("#memory-words")).to_contain_text("The floor was broken.")


def test_a_drain_is_not_wrong(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        served.worker.publish(health=Health.DRAINING)
        served.events.append(Drain(running=2))
        expect(seen.page.locator("#health")).to_have_text("health draining")
        expect(seen.page.locator("#events li")).to_have_text(
            re.compile("Draining.*2 sequences left")
        )
        expect(seen.page.locator("#health")).not_to_have_class(re.compile("wrong"))


def test_the_budget_is_drawn(browser: Browser) -> None:
    with showing(budget_bytes=300 * MIB) as served, looking(browser, served) as seen:
        expect(seen.page.locator("#budget")).to_have_text("200 MiB that the budget leaves to it")
        seen.holds("document.querySelector('#memory .budget')")
        budget = "budget 300 MiB, weights 100 MiB"
        expect(seen.page.locator("#tiles")).to_contain_text(budget)


def test_an_earlier_moment_is_looked_at_by_pointer_and_by_keyboard(browser: Browser) -> None:
    with showing() as served, looking(browser, served) as seen:
        seen.comes_true(lambda: num_points(seen) > 5)
        slider = seen.page.get_by_role("slider")
        slider.focus()
        for _ in range(3):
            seen.page.keyboard.press("ArrowLeft")
        expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^\d\d:\d\d:\d\d: full"))
        expect(seen.page.locator("#latency .cursor")).to_have_count(1)
        seen.page.keyboard.press("End")
        expect(slider).to_have_attribute("aria-valuetext", "Now")
        expect(seen.page.locator(".cursor")).to_have_count(0)
        seen.page.locator("#memory").hover(position={"x": 150, "y": 50})
        expect(seen.page.locator(".cursor")).to_have_count(3)
        seen.page.mouse.move(5, 5)
        expect(seen.page.locator(".cursor")).to_have_count(0)
