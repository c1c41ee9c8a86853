"""`/metrics`, read from the status and the client's counts at the moment of scraping."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adaptive_kv.engine.client import EngineClient

_PREFIX = "adaptive_kv_"


def make_registry(client: EngineClient) -> CollectorRegistry:
    """A registry of our own, so that nothing in this process can add to or break it."""
    registry = CollectorRegistry()
    registry.register(_Collector(client))
    return registry


class _Collector(Collector):
    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        yield from self._memory()
        yield from self._work()

    def _memory(self) -> Iterator[Metric]:
        memory = self._client.status.memory
        free = {memory.source: memory.free_bytes}
        yield _gauge("memory_free_bytes", "Free for us on the device", "source", free)
        cache = {"all": memory.cache_bytes}
        yield _gauge("cache_bytes", "Taken from the device for pages", "format", cache)

    def _work(self) -> Iterator[Metric]:
        status = self._client.status
        yield _gauge("mode_info", "The mode of the service", "mode", {status.mode: 1})
        states = Counter(dict.fromkeys(("running", "waiting", "parked"), 0))
        states.update(sequence.state for sequence in status.sequences)
        yield _gauge("sequences", "Sequences by what they do", "state", states)
        by_mode = {str(mode): n for mode, n in self._client.num_by_mode.items()}
        yield _counter("tokens", "Tokens of completed requests", "mode", by_mode)
        by_outcome = self._client.num_by_outcome
        yield _counter("requests", "Requests that ended", "outcome", by_outcome)


def _gauge(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    return _filled(GaugeMetricFamily(_PREFIX + name, help_, labels=[label]), values.items())


def _counter(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    return _filled(CounterMetricFamily(_PREFIX + name, help_, labels=[label]), values.items())


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[str, float]]
) -> Metric:
    for value, number in values:
        family.add_metric([value], number)
    return family
