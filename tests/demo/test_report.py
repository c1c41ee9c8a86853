"""The report is one page that needs nothing else, and its figures are those of the run."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from demo.timelines import make_timeline

from adaptive_kv.demo.report import make_report, write_report
from adaptive_kv.demo.timeline import Answer, Happening, Timeline, summarize

LADDER = ("full", "int8", "int4", "window:512+int4")
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.classes: set[str] = set()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in {"src", "href", "data"}]
        self.classes |= {str(value) for name, value in attrs if name == "class"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(timeline: Timeline) -> tuple[str, Page]:
    text = make_report(timeline, summarize(timeline, LADDER))
    return text, Page(text)


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    timeline = make_timeline()
    file = tmp_path / "report.html"
    write_report(file, timeline, summarize(timeline, LADDER))
    page = Page(file.read_text("utf-8"))
    assert page.open == []
    assert page.loaded == []
    assert not {"link", "script", "img", "iframe"} & set(page.tags)
    assert "@import" not in file.read_text("utf-8")
    assert re.search(r"url\(|https?:", file.read_text("utf-8")) is None


def test_the_report_shows_memory_modes_and_latency() -> None:
    _, page = page_of(make_timeline())
    assert page.tags.count("svg") == 4
    assert {"cache", "free", "held", "floor", "p50", "p95"} <= page.classes
    assert {"full", "int8", "window", "parked"} <= page.classes


def test_the_report_has_a_light_and_a_dark_look() -> None:
    text, _ = page_of(make_timeline())
    assert "prefers-color-scheme: dark" in text


def test_events_are_told_with_their_reasons_and_escaped() -> None:
    """Sequences that switched with the service are counted, not listed."""
    text, page = page_of(make_timeline())
    assert 'memory is <short> & "tight"' in "".join(page.words)
    assert "<short>" not in text
    assert "sequence switched" not in text


def test_a_run_that_saw_nothing_still_makes_a_page() -> None:
    _, page = page_of(Timeline())
    assert page.open == []


def test_the_summary_counts_what_answers_and_events_say() -> None:
    timeline = make_timeline()
    told = json.loads(summarize(timeline, LADDER).to_json())
    assert told == {
        "requests": 2,
        "completed": 2,
        "failed": 0,
        "switches": 2,
        "modes_seen": ["full", "int8", "window:512+int4"],
        "oom": 0,
        "peak_cache_bytes": 60 * 2**20,
        "tokens_per_s": 20.0,
    }
    assert summarize(timeline, LADDER).faults == []


def test_every_fault_of_a_run_is_named() -> None:
    timeline = make_timeline()
    timeline.answers.append(Answer(start_s=1.0, end_s=2.0, error="503"))
    timeline.happenings.append(Happening(2.0, {"type": "oom"}))
    bad = replace(summarize(timeline, LADDER), modes_seen=["int4"])
    assert bad.faults == [
        "requests failed",
        "memory ran out",
        "nothing was generated in full",
        "nothing was generated in a window",
    ]


def test_a_restless_machine_is_recognised() -> None:
    timeline = make_timeline()
    assert not timeline.is_restless
    timeline.samples = [replace(s, free_bytes=s.free_bytes * 2) for s in timeline.samples]
    assert timeline.is_restless
