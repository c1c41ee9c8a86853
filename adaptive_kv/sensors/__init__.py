"""Where memory truth comes from: one sensor per source, and the thread that asks them."""

from adaptive_kv.sensors.base import DeviceSample, MemorySample, Sensor, Telemetry
from adaptive_kv.sensors.choose import Sources, make_sensors, make_sources
from adaptive_kv.sensors.poller import SensorPoller
from adaptive_kv.sensors.trend import seconds_to_floor

__all__ = [
    "DeviceSample",
    "MemorySample",
    "Sensor",
    "SensorPoller",
    "Sources",
    "Telemetry",
    "make_sensors",
    "make_sources",
    "seconds_to_floor",
]
