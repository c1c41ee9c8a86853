"""How Home Assistant is told of this node: one device, its sensors, and a selector of the mode."""

import json
import math
from typing import Any

from adaptive_kv.documents import AUTO, DiscoveryDocument, InfoDocument
from adaptive_kv.documents.homeassistant import Component, Device, Origin
from adaptive_kv.mqtt.topics import Topics

_NAME = "adaptive-kv"
_COMMAND_LIVES_S = 30
_MIB = "{{{{ (value_json.memory.{} / 1048576) | round(1) }}}}"
_MS = "{{{{ value_json.latency.{0} and (value_json.latency.{0} * 1000) | round(2) }}}}"
_COMMAND = """\
{{"id": "homeassistant-{{{{ utcnow().strftime('%Y%m%dT%H%M%S.%f') }}}}", \
"not_after": "{{{{ (utcnow() + timedelta(seconds={lives_s})).isoformat() }}}}", \
"mode": "{{{{ value }}}}"}}"""
"""Home Assistant's clock makes the id and the end of every command."""


def discovery(topics: Topics, info: InfoDocument, *, expiry_s: float) -> DiscoveryDocument:
    """What Home Assistant shows of a node: the mode can be selected where commands are obeyed.

    Sensors show nothing when no state has come for `expiry_s`.
    """
    entities = _sensors(math.ceil(expiry_s))
    if "set-mode" in info.commands:
        entities["set_mode"] = _selector(topics, info)
    version = info.versions.get(_NAME, "unknown")
    return DiscoveryDocument(
        dev=Device(
            ids=(f"{_NAME}-{topics.node}",),
            name=f"{_NAME} {topics.node}",
            mf=_NAME,
            mdl=f"{info.model} on {info.device}",
            sw=version,
        ),
        o=Origin(name=_NAME, sw=version),
        avty_t=topics.availability,
        stat_t=topics.state,
        qos=1,
        cmps={
            key: Component(unique_id=f"{_NAME}-{topics.node}-{key}", **entity)
            for key, entity in entities.items()
        },
    )


def is_ours(message: str | bytes) -> bool:
    """Whether a discovery message was made by this program, in whatever version."""
    try:
        found = json.loads(message)
    except ValueError:
        return False
    origin = found.get("o") if isinstance(found, dict) else None
    return isinstance(origin, dict) and origin.get("name") == _NAME


def _sensors(expire_after_s: int) -> dict[str, dict[str, Any]]:
    sensor = {"p": "sensor", "expire_after": expire_after_s}
    measured = sensor | {"state_class": "measurement", "suggested_display_precision": 1}
    size = measured | {"device_class": "data_size", "unit_of_measurement": "MiB"}
    latency = measured | {"device_class": "duration", "unit_of_measurement": "ms"}
    health = {"device_class": "enum", "options": ("ok", "degraded", "draining", "failed")}
    entities = {
        "mode": ("Mode", "{{ value_json.mode }}", sensor | {"icon": "mdi:layers"}),
        "reason": ("Reason", "{{ value_json.reason.text[:255] }}", sensor),
        "health": ("Health", "{{ value_json.health }}", sensor | health),
        "memory_free": ("Memory free", _MIB.format("free_bytes"), size),
        "cache": ("Cache", _MIB.format("cache_bytes"), size),
        "latency_p50": ("Token latency", _MS.format("token_p50_s"), latency),
        "latency_p95": ("Token latency p95", _MS.format("token_p95_s"), latency),
    }
    return {
        key: {"name": name, "value_template": template, **rest}
        for key, (name, template, rest) in entities.items()
    }


def _selector(topics: Topics, info: InfoDocument) -> dict[str, Any]:
    """Shows `auto` while the policy decides, and nothing for a mode that is not offered."""
    options = (AUTO, *info.ladder)
    held = f"value_json.mode if value_json.mode in {json.dumps(options)} else none"
    return {
        "p": "select",
        "name": "Hold mode",
        "icon": "mdi:pin",
        "options": options,
        "value_template": f"{{{{ ({held}) if value_json.pinned else '{AUTO}' }}}}",
        "command_topic": topics.command("set-mode"),
        "command_template": _COMMAND.format(lives_s=_COMMAND_LIVES_S),
    }
