"""`/metrics`, put together at the moment of scraping; nothing is counted here.

`METRICS` is also what docs/metrics.md is made of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.status import Health, Status
from adaptive_kv.engine.tally import Spread, Tally
from adaptive_kv.server.counting import Way
from adaptive_kv.server.watch import Watch

PREFIX = "adaptive_kv_"
_OUTCOMES = ("completed", "failed", "rejected", "cancelled")


@dataclass(frozen=True, slots=True)
class Described:
    """What is said about a metric; the names of counters end in `_total`."""

    type: str
    help: str
    labels: tuple[str, ...] = ()


_WAY = ("from", "to", "reason")
METRICS: Mapping[str, Described] = {
    "tokens_total": Described("counter", "Tokens generated, by mode", ("mode",)),
    "requests_total": Described("counter", "Requests that ended", ("outcome",)),
    "time_to_first_token_seconds": Described("histogram", "From a request to its first token"),
    "time_per_output_token_seconds": Described("histogram", "From one token to the next"),
    "cache_bytes": Described("gauge", "Taken from the device for pages, by format", ("format",)),
    "memory_free_bytes": Described("gauge", "Free for us on the device", ("source",)),
    "memory_floor_bytes": Described("gauge", "To be left free on the device for others"),
    "memory_total_bytes": Described("gauge", "Of the device"),
    "memory_weights_bytes": Described("gauge", "Taken by the model's weights"),
    "memory_sample_age_seconds": Described("gauge", "Age of what is known about free memory"),
    "under_floor_seconds_total": Described("counter", "Time with less free than the floor"),
    "mode_info": Described("gauge", "1 for the mode of the service", ("mode",)),
    "pinned": Described("gauge", "1 while a mode is held by hand"),
    "health_info": Described("gauge", "1 for the health of the service", ("health",)),
    "switches_total": Described("counter", "Sequences that changed their mode", _WAY),
    "switch_seconds": Described("histogram", "From a sequence's order to switch to its last page"),
    "mode_changes_total": Described("counter", "Changes of the service's mode", _WAY),
    "step_seconds": Described("histogram", "Steps of the worker that ran the model"),
    "controller_seconds": Described("histogram", "Policy and guard, asked before every step"),
    "oom_total": Described(
        "counter", "Times that memory ran out: averted, or a request was refused", ("outcome",)
    ),
    "policy_faults_total": Described("counter", "Exceptions, silence and nonsense of policies"),
    "sensor_faults_total": Described("counter", "Memory sources that stopped answering"),
    "sequences": Described("gauge", "Requests being served, by what they do", ("state",)),
    "events_missed_total": Described("counter", "Events that came too fast to be counted above"),
}
"""By name, without the prefix."""


def make_registry(
    client: EngineClient,
    tally: Tally,
    watch: Watch,
    cache_bytes: Callable[[], Mapping[str, int]],
) -> CollectorRegistry:
    """A registry of our own, so that nothing in this process can add to or break it."""
    registry = CollectorRegistry()
    registry.register(_Collector(client, tally, watch, cache_bytes))
    return registry


class _Collector(Collector):
    def __init__(
        self,
        client: EngineClient,
        tally: Tally,
        watch: Watch,
        cache_bytes: Callable[[], Mapping[str, int]],
    ) -> None:
        self._client = client
        self._tally = tally
        self._watch = watch
        self._cache_bytes = cache_bytes

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        self._watch.look()
        yield from self._memory()
        yield from self._now()
        yield from self._work()
        yield from self._happened()

    def _memory(self) -> Iterator[Metric]:
        memory = self._client.status.memory
        yield _values("cache_bytes", self._cache_bytes())
        yield _values("memory_free_bytes", {memory.source: memory.free_bytes})
        yield _value("memory_floor_bytes", memory.floor_bytes)
        yield _value("memory_total_bytes", memory.total_bytes)
        yield _value("memory_weights_bytes", memory.weights_bytes)
        yield _value("memory_sample_age_seconds", memory.sample_age_s)
        yield _value("under_floor_seconds_total", self._watch.under_floor_s)

    def _now(self) -> Iterator[Metric]:
        status = self._client.status
        yield _values("mode_info", {status.mode: 1})
        yield _value("pinned", status.pinned)
        yield _values("health_info", {health: health is status.health for health in Health})
        yield _values("sequences", _num_by_state(status))

    def _work(self) -> Iterator[Metric]:
        done, waits = self._tally.so_far(), self._client.waits
        yield _values("tokens_total", {str(mode): n for mode, n in done.tokens_by_mode.items()})
        outcomes = dict.fromkeys(_OUTCOMES, 0) | self._client.num_by_outcome
        yield _values("requests_total", outcomes)
        yield _histogram("time_to_first_token_seconds", waits.first.spread())
        yield _histogram("time_per_output_token_seconds", waits.next.spread())
        yield _histogram("step_seconds", done.steps)
        yield _histogram("controller_seconds", done.decisions)

    def _happened(self) -> Iterator[Metric]:
        counts = self._watch.counts
        yield _ways("switches_total", counts.switches)
        yield _histogram("switch_seconds", counts.switch.spread())
        yield _ways("mode_changes_total", counts.mode_changes)
        yield _values("oom_total", counts.ooms)
        yield _value("policy_faults_total", self._client.status.policy.faults)
        yield _value("sensor_faults_total", counts.sensor_faults)
        yield _value("events_missed_total", counts.num_missed)


def _num_by_state(status: Status) -> dict[str, int]:
    """Only the first sequences are listed, but all are counted."""
    parked = sum(sequence.state == "parked" for sequence in status.sequences)
    waiting = max(0, status.load.waiting - parked)
    return {"running": status.load.running, "waiting": waiting, "parked": parked}


def _value(name: str, value: float) -> Metric:
    return _family(name, [((), value)])


def _values(name: str, values: Mapping[str, float]) -> Metric:
    """One label."""
    return _family(name, [((label,), value) for label, value in values.items()])


def _ways(name: str, counts: Mapping[Way, int]) -> Metric:
    told = (((w.from_mode, w.to_mode, w.reason), n) for w, n in counts.items())
    return _family(name, told)


def _family(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    told = METRICS[name]
    kind = CounterMetricFamily if told.type == "counter" else GaugeMetricFamily
    family = kind(PREFIX + name, told.help, labels=told.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, spread: Spread) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, METRICS[name].help)
    bounds = [*map(str, spread.bounds_s), "+Inf"]
    buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
    family.add_metric((), buckets, spread.sum_s)
    return family
