"""A page that stays open: through restarts, in the background, for days."""

import json
import re
from contextlib import ExitStack
from typing import Any

import httpx
from browser import Seen, visiting
from playwright.sync_api import Browser, expect
from server.pages import MIB, NUM_POINTS, RealDocuments, looking, num_points, showing
from server.scripted import Served

from adaptive_kv.events import PolicyFault
from adaptive_kv.server.dashboard import joined

FIGURES = [
    ("bytes", 0, "0 B"),
    ("bytes", 1536, "1.5 KiB"),
    ("bytes", -12 * MIB, "-12 MiB"),
    ("bytes", 1023.9 * MIB, "1024 MiB"),
    ("bytes", 5 * 2**40, "5 TiB"),
    ("duration", None, "\N{EN DASH}"),
    ("duration", 0.00052, "0.52 ms"),
    ("duration", 0.0123, "12.3 ms"),
    ("duration", 90, "90 s"),
    ("duration", 7199, "119 min"),
    ("duration", 3 * 86400, "3 days"),
    ("kind", "window:512+int4", "window-int4"),
    ("kind", "window:512", "window"),
    ("kind", "int8", "int8"),
    ("round", 0.0131, 0.02),
    ("round", 700, 800),
    ("round", 1, 1),
]


def test_a_restart_is_noticed_and_survived(browser: Browser) -> None:
    with ExitStack() as first, ExitStack() as second:
        old = first.enter_context(showing(RealDocuments("0000000a")))
        old.events.append(PolicyFault(policy="old", error="x", faults=1))
        with looking(browser, old) as seen:
            expect(seen.page.get_by_role("listitem").filter(has_text="old: x")).to_have_count(1)
            first.close()
            expect(seen.page.locator("#link")).to_have_text("not connected")
            expect(seen.page).to_have_title("not connected · edge-7")
            new = second.enter_context(showing(RealDocuments("0000000b"), port=old.address[1]))
            new.events.append(PolicyFault(policy="new", error="y", faults=1))
            expect(seen.page.locator("#link")).to_have_text("live")
            expect(seen.page.get_by_role("listitem").filter(has_text="new: y")).to_have_count(1)
            expect(seen.page.get_by_role("listitem").filter(has_text="old: x")).to_have_count(1)
            seen.holds(f"(before) => {NUM_POINTS} > before", num_points(seen))
            errors = {re.sub(r"net::\S+", "", error) for error in seen.errors}
            assert errors == {"error: Failed to load resource: "}


def test_a_restart_that_cut_no_connection_is_noticed_too(browser: Browser) -> None:
    """As when the box lost its power, and nobody told the browser."""
    documents = RealDocuments("0000000a")
    with showing(documents) as served, looking(browser, served) as seen:
        faults = seen.page.get_by_role("listitem").filter(has_text="mine: x")
        served.events.append(PolicyFault(policy="mine", error="x", faults=1))
        expect(faults).to_have_count(1)
        documents.boot_id = "0000000b"
        expect(faults).to_have_count(2)
        assert seen.errors == []


def test_nothing_is_asked_while_nobody_looks(browser: Browser) -> None:
    """What has happened meanwhile is there afterwards."""
    with showing() as served, looking(browser, served) as seen:
        hide(seen, is_hidden=True)
        seen.page.wait_for_load_state("networkidle")
        num_asked = len(seen.requested)
        served.events.append(PolicyFault(policy="mine", error="meanwhile", faults=1))
        seen.comes_true(lambda: len(json.loads(history(served))["samples"]) > 1)
        assert len(seen.requested) == num_asked
        hide(seen, is_hidden=False)
        expect(seen.page.get_by_role("listitem").filter(has_text="meanwhile")).to_have_count(1)
        assert seen.requested[num_asked] == f"{served.url}/history"
        assert seen.errors == []


def history(served: Served) -> str:
    return httpx.get(f"{served.url}/history", trust_env=False).text


def hide(seen: Seen, *, is_hidden: bool) -> None:
    """As if another tab were in front; without a window there is none."""
    seen.page.evaluate(
        """(isHidden) => {
          Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


def test_a_worker_that_stands_still_is_told_of(browser: Browser) -> None:
    with showing() as served, visiting(browser, "about:blank") as seen:
        seen.page.clock.install()
        seen.page.goto(served.url)
        expect(seen.page.locator("#link")).to_have_text("live")
        seen.page.clock.fast_forward(20_000)
        expect(seen.page.locator("#link")).to_contain_text("worker silent for")
        served.worker.publish(mode_age_s=99.0)
        expect(seen.page.locator("#link")).to_have_text("live")


def evaluated(seen: Seen, modules: tuple[str, ...], names: str, body: str) -> Any:
    """What a function of the page's own code answers, away from the page."""
    source = f"{joined(*modules)}\nexport {{ {names} }};"
    return seen.page.evaluate(
        f"""async (source) => {{
          const url = `data:text/javascript,${{encodeURIComponent(source)}}`;
          const {{ {names} }} = await import(url);
          {body}
        }}""",
        source,
    )


def test_a_page_that_is_open_for_a_day_keeps_only_minutes(browser: Browser) -> None:
    """A sample a second, a new sequence in each."""
    with visiting(browser, "about:blank") as seen:
        most = evaluated(
            seen,
            ("recent",),
            "Recent",
            """const recent = new Recent();
            const most = { samples: 0, stretches: 0 };
            for (let time_s = 1e9; time_s < 1e9 + 86400; time_s += 1) {
              const modes = {};
              for (let i = 0; i < 8; i += 1) modes[`s${time_s - i}`] = i < 4 ? "full" : "int4";
              recent.add({ time_s, mode: time_s % 7 ? "full" : "int4", modes });
              most.samples = Math.max(most.samples, recent.samples.length);
              most.stretches = Math.max(most.stretches, recent.stretches.length);
            }
            return { ...most, lanes: Math.max(...recent.stretches.map((one) => one.lane)),
              span_s: recent.last.time_s - recent.samples[0].time_s };""",
        )
    assert 600 <= most["span_s"] <= 631
    assert most["samples"] <= 632
    assert most["stretches"] <= 4000
    assert most["lanes"] == 7


def test_thousands_of_events_leave_a_few_hundred(browser: Browser) -> None:
    with visiting(browser, "about:blank") as seen:
        shown = evaluated(
            seen,
            ("words", "draw", "lists"),
            "Events",
            """const list = document.createElement("ol");
            const events = new Events(list);
            events.num_shown = 1e9;
            for (let i = 0; i < 20000; i += 1) {
              events.add({ type: "drain", time: "2026-01-01T00:00:00.000Z", running: i });
            }
            events.refresh();
            return [list.childElementCount, list.firstChild.textContent];""",
        )
    assert shown[0] <= 800
    assert shown[1].endswith("19999 sequences left")


def test_holes_and_a_clock_that_was_set_back_are_borne(browser: Browser) -> None:
    with visiting(browser, "about:blank") as seen:
        told = evaluated(
            seen,
            ("recent",),
            "Recent",
            """const recent = new Recent();
            const add = (time_s, mode) => recent.add({ time_s, mode, modes: {} });
            [100, 101, 101, 100.5, 102].forEach((time_s) => add(time_s, "full"));
            const pieces = () => recent.pieces(0).map((piece) => piece.length);
            const before = pieces();
            [200, 201].forEach((time_s) => add(time_s, "full"));
            const holed = [pieces(), recent.stretches.map((one) => [one.from_s, one.to_s])];
            add(20, "int4");
            return [before, ...holed, recent.samples.map((one) => one.time_s)];""",
        )
    assert told == [[3], [3, 2], [[100, 102], [200, 201]], [20]]


def test_figures_are_written_for_people(browser: Browser) -> None:
    with visiting(browser, "about:blank") as seen:
        cases = json.dumps([[name, value] for name, value, _ in FIGURES])
        written = evaluated(
            seen,
            ("words",),
            "bytes, duration, kind, round",
            f"""const words = {{ bytes, duration, kind, round }};
            return {cases}.map(([name, value]) => words[name](value));""",
        )
    told = [
        one.replace("\N{NO-BREAK SPACE}", " ") if isinstance(one, str) else one for one in written
    ]
    assert told == [wanted for _, _, wanted in FIGURES]
