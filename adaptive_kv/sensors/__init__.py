"""Where memory truth comes from: one sensor per source, and the thread that asks them."""

from adaptive_kv.sensors.base import MemorySample, Sensor
from adaptive_kv.sensors.choose import make_sensors
from adaptive_kv.sensors.poller import SensorPoller
from adaptive_kv.sensors.trend import seconds_to_floor

__all__ = ["MemorySample", "Sensor", "SensorPoller", "make_sensors", "seconds_to_floor"]
