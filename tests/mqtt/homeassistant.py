"""Home Assistant's rules for a device's discovery message, as its documentation states them.

From "Device discovery payload", "Discovery topic" and "Supported abbreviations" of its page on
MQTT, and from its pages on MQTT sensors, MQTT selects and sensors' device classes, as of 2026.11.
It ignores keys that it does not know; here they are errors, since nothing would come of them.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEVICE = _words("""
    cu configuration_url cns connections ids identifiers name mf manufacturer mdl model mdl_id
    model_id hw hw_version sw sw_version sa suggested_area sn serial_number via_device
""")
ORIGIN = _words("name sw sw_version url support_url")
SHARED = _words("""
    avty availability avty_mode availability_mode avty_t availability_topic avty_tpl
    availability_template pl_avail payload_available pl_not_avail payload_not_available
    cmd_t command_topic stat_t state_topic qos e encoding
""")
ENTITY = SHARED | _words("""
    p platform name uniq_id unique_id ic icon en enabled_by_default ent_cat entity_category
    ent_pic entity_picture json_attr_t json_attributes_topic json_attr_tpl
    json_attributes_template def_ent_id default_entity_id val_tpl value_template
""")
SENSOR = ENTITY | _words("""
    dev_cla device_class exp_aft expire_after frc_upd force_update lrst_val_tpl
    last_reset_value_template ops options sug_dsp_prc suggested_display_precision stat_cla
    state_class unit_of_meas unit_of_measurement
""")
SELECT = ENTITY | _words("cmd_tpl command_template ops options opt optimistic ret retain")
KEYS = {"sensor": SENSOR, "select": SELECT}
UNITS = {"data_size": {"B", "kB", "MB", "GB", "KiB", "MiB", "GiB"}, "duration": {"s", "ms", "min"}}
STATE_CLASSES = {"measurement", "measurement_angle", "total", "total_increasing"}


def check(topic: str, message: Mapping[str, Any]) -> None:
    """Raise `AssertionError` where Home Assistant would refuse the message, or ignore a part."""
    assert re.fullmatch(r"homeassistant/device/[a-zA-Z0-9_-]+/config", topic)
    assert message.keys() <= SHARED | {"dev", "o", "cmps"}
    assert message["dev"].keys() <= DEVICE
    assert message["dev"].get("ids") or message["dev"].get("cns"), "identifies no device"
    assert {"name"} <= message["o"].keys() <= ORIGIN
    assert message["cmps"]
    unique_ids = [component["unique_id"] for component in message["cmps"].values()]
    assert len(set(unique_ids)) == len(unique_ids)
    for component in message["cmps"].values():
        assert component.keys() <= KEYS[component["p"]]
        _check_entity({**message, **component})


def _check_entity(entity: Mapping[str, Any]) -> None:
    """With what all entities share."""
    options = entity.get("options")
    if entity["p"] == "select":
        assert entity["command_topic"]
        assert not set(entity["command_topic"]) & set("+#")
        assert options
        return
    assert entity["stat_t"]
    assert entity.get("entity_category") in {None, "diagnostic"}
    assert (options is not None) == (entity.get("device_class") == "enum")
    if options is not None:
        assert options
        assert "state_class" not in entity
        assert "unit_of_measurement" not in entity
    assert entity.get("state_class") in {None, *STATE_CLASSES}
    if "unit_of_measurement" in entity:
        assert entity["unit_of_measurement"] in UNITS[entity["device_class"]]


def rendered(template: str, **variables: Any) -> str:
    """What a template gives, with those of Home Assistant's functions that are used here."""
    environment = ImmutableSandboxedEnvironment()
    environment.globals |= {"utcnow": lambda: datetime.now(UTC), "timedelta": timedelta}
    return environment.from_string(template).render(**variables)


def shown(component: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The value of an entity after a state document."""
    return rendered(component["value_template"], value_json=state)


def selected(component: Mapping[str, Any], option: str) -> str:
    """What is sent when somebody selects an option."""
    assert option in component["options"]
    return rendered(component["command_template"], value=option)
