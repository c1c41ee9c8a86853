"""What the parts of a start share: measuring a model takes memory before the engine is there."""

from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.config import CacheSettings, Settings
from adaptive_kv.engine.model import Model
from adaptive_kv.events import EventLog
from adaptive_kv.sensors.choose import make_sensors
from adaptive_kv.sensors.poller import SensorPoller


def make_keep(settings: CacheSettings) -> Keep:
    """What no mode packs, as configured."""
    return Keep(settings.sinks, settings.recent)


def make_start_budget(settings: Settings, model: Model, graphs_bytes: int = 0) -> Budget:
    """As the engine's own, with what lies above the floor at this moment. Raises `SensorError`."""
    budget = Budget(settings.memory.budget, model.weights_bytes + graphs_bytes)
    sensors = make_sensors(settings.memory, str(model.device), lambda: budget.kept_bytes)
    poller = SensorPoller(sensors, poll_hz=settings.memory.poll_hz, events=EventLog())
    budget.allow(max(0, poller.latest().free_bytes - settings.memory.floor))
    poller.close()
    return budget
