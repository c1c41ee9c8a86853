"""What `/metrics` exposes, what is written about it, and what is built on it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from server.scripted import Served, comes_true, make_status, sequence_status, serving
from statuses import EVERY_EVENT

from adaptive_kv.events import Event
from adaptive_kv.server.metrics import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROMISED = """tokens_total requests_total time_to_first_token_seconds time_per_output_token_seconds
cache_bytes memory_free_bytes mode_info switches_total switch_seconds step_seconds
controller_seconds oom_total policy_faults_total sensor_faults_total sequences""".split()


@pytest.fixture(scope="module")
def busy() -> Iterator[Served]:
    """A service to which everything has happened."""
    with serving(status=make_status(sequences=(sequence_status("parked"),))) as served:
        for event in EVERY_EVENT:
            happen(served, event)
        for prompt in ("x", "FAIL", ""):
            served.post("/v1/completions", prompt=prompt)
        yield served


def happen(served: Served, event: Event) -> None:
    """Let it happen, and be counted: the log of a scripted service keeps only eight."""
    seq = served.events.append(event).seq
    assert comes_true(lambda: served.app.state.watch.counts.seq >= seq)


def scraped(served: Served) -> dict[str, Metric]:
    text = served.http.get("/metrics").text
    return {family.name: family for family in text_string_to_metric_families(text)}


def promtool() -> str:
    """Prometheus' own checker; skips where there is none."""
    found = shutil.which("promtool") or shutil.which("promtool", path=Path(sys.executable).parent)
    if found is None:
        pytest.skip("promtool is not installed")
    return found


def check(*arguments: str, text: str | None = None) -> str:
    """What promtool says; it must have nothing against it."""
    done = subprocess.run(
        [promtool(), *arguments], input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_all_that_is_described_is_exposed_and_nothing_else(busy: Served) -> None:
    found = scraped(busy)
    described = {name.removesuffix("_total"): told for name, told in METRICS.items()}
    assert set(found) == {PREFIX + name for name in described}
    for name, told in described.items():
        family = found[PREFIX + name]
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert (family.type, family.documentation) == (told.type, told.help)
        assert labels == set(told.labels), name


def test_all_that_was_promised_is_there() -> None:
    assert [name for name in PROMISED if name not in METRICS] == []


def test_prometheus_has_nothing_to_say_against_it(busy: Served) -> None:
    assert check("check", "metrics", text=busy.http.get("/metrics").text) == ""


def test_histograms_are_cumulative_and_end_with_everything(busy: Served) -> None:
    for family in scraped(busy).values():
        if family.type != "histogram":
            continue
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        (count,) = (s.value for s in family.samples if s.name.endswith("_count"))
        assert buckets == sorted(buckets), family.name
        assert buckets[-1] == count, family.name


def test_an_event_is_counted_even_if_it_is_soon_forgotten(busy: Served) -> None:
    """Between two scrapes there are many more than the log keeps."""

    def averted() -> float:
        samples = scraped(busy)["adaptive_kv_oom"].samples
        return next(s.value for s in samples if s.labels["outcome"] == "averted")

    before = averted()
    for _ in range(10):
        happen(busy, EVERY_EVENT[2])
    assert averted() == before + 10
    (missed,) = scraped(busy)["adaptive_kv_events_missed"].samples
    assert missed.value == 0


def test_the_table_of_metrics_is_not_stale() -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_metrics.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def queries() -> list[str]:
    """Every query of the Grafana dashboard, with its variables filled in."""
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
    names = {one["name"] for one in dashboard["templating"]["list"]}
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    used = {name for text in texts for name in re.findall(r"\$(\w+)", text)}
    assert used <= names | {"__rate_interval"}
    return [re.sub(r"\$\w+", "5m", text) for text in texts]


def names_in(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}\w+", text))


def sample_names(served: Served) -> set[str]:
    return {sample.name for family in scraped(served).values() for sample in family.samples}


def test_grafana_asks_only_for_what_is_exposed(busy: Served) -> None:
    asked = set().union(*map(names_in, queries()))
    assert asked <= sample_names(busy)
    left_out = {PREFIX + name for name in METRICS} - {
        re.sub(r"_bucket$", "", name) for name in asked
    }
    assert left_out == {"adaptive_kv_memory_total_bytes", "adaptive_kv_pinned"}


def test_grafana_panels_lie_beside_each_other() -> None:
    """None without a query, none over another, none wider than the grid."""
    panels = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    assert all(panel["targets"] for panel in panels if panel["type"] != "row")
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_grafana_queries_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": text} for i, text in enumerate(queries())]
    file = tmp_path / "rules.json"  # which is YAML too
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(rules)} rules found" in check("check", "rules", str(file))


def test_alerts_ask_only_for_what_is_exposed(busy: Served) -> None:
    text = (DOCS / "alerts.yml").read_text("utf-8")
    assert names_in(re.sub(r"adaptive_kv:\w+:\w+", "", text)) <= sample_names(busy)


def test_alerts_fire_when_they_should() -> None:
    check("check", "rules", str(DOCS / "alerts.yml"))
    check("test", "rules", str(Path(__file__).with_name("alerts.yml")))
