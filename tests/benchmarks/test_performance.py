"""Pages say what the figures say, and what docs/performance.md says of a bar is true."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "performance.md"
_FIGURES = _ROOT / "docs" / "benchmarks"
_WORDS = re.compile(r"<text[^>]*>([^<]+)</text>")
_EMPTY = "# By hand\n\n<!-- bars -->\nold\n<!-- /bars -->\n\nMore by hand.\n"


def _fill(document: Path, *arguments: str) -> int:
    command = [sys.executable, str(_ROOT / "benchmarks" / "performance.py"), *arguments]
    return subprocess.run([*command, "--document", str(document)], check=False).returncode


def _judge(folder: Path, name: str, cases: list[Any]) -> tuple[int, str]:
    """The exit status, and the document, for figures of one benchmark alone."""
    page = folder / "performance.md"
    page.write_text(_EMPTY, "utf-8")
    (folder / f"{name}.json").write_text(json.dumps({"cases": cases}))
    status = _fill(page, "--check", "--figures", str(folder), "--pages", str(folder))
    return status, page.read_text("utf-8")


def _published(name: str) -> list[Any]:
    cases: list[Any] = json.loads((_FIGURES / f"{name}.json").read_text("utf-8"))["cases"]
    return cases


def test_all_pages_are_made_of_the_published_figures(tmp_path: Path) -> None:
    """Plots are compared by what is written in them: who, and what was measured where."""
    page = tmp_path / "performance.md"
    page.write_text(_PAGE.read_text("utf-8"), "utf-8")
    assert _fill(page, "--pages", str(tmp_path)) == 0
    assert page.read_text("utf-8") == _PAGE.read_text("utf-8")
    made = [file for file in tmp_path.iterdir() if file != page]
    assert len(made) == 7
    for file in made:
        text, published = (each.read_text("utf-8") for each in (file, _FIGURES / file.name))
        if file.suffix == ".svg":
            text, published = (" ".join(_WORDS.findall(each)) for each in (text, published))
        assert text == published, file.name


def test_every_page_that_it_links_to_is_there() -> None:
    links = [part.partition(")")[0] for part in _PAGE.read_text("utf-8").split("](")[1:]]
    assert len(links) > 5
    assert all((_PAGE.parent / link).exists() for link in links)


def test_cpu_time_decides_and_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    cases = _published("streams")
    for value, verdict in ((1.5, "met"), (1.4, "**not met**")):
        for ratios in (case["ratios"][mode] for case in cases for mode in ("full", "int8", "int4")):
            ratios["continuous batching"] = {"wall": 9.0, "cpu": value}
        status, text = _judge(tmp_path, "streams", cases)
        assert status == int(value < 1.5)
        (row,) = (line for line in text.splitlines() if line.startswith("| 8 streams"))
        figures = ", ".join(f"{mode} 9.00x ({value:.2f}x)" for mode in ("full", "int8", "int4"))
        assert row.endswith(f"| {figures} | {verdict} |")
        assert text.startswith("# By hand")
        assert text.endswith("More by hand.\n")
        assert "not measured" in text


def test_one_slow_switch_is_enough_to_miss_the_bar(tmp_path: Path) -> None:
    cases = _published("switches")
    for case in cases:
        case["p99_of_quiet"] = {"wall": 9.0, "cpu": 1.5}
    assert _judge(tmp_path, "switches", cases)[0] == 0
    cases[0]["p99_of_quiet"]["cpu"] = 2.5
    status, text = _judge(tmp_path, "switches", cases)
    assert status == 1
    worst = f"worst: {cases[0]['name']}, 9.00x (2.50x); above: 1 of {len(cases)} kinds"
    assert worst in text
