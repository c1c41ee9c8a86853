"""The example rules of `systemd/mosquitto.acl`, against the real broker."""

import json

import pytest
from broker import Mosquitto
from mqtt.secured import listener

OWN = ("availability", "info", "state", "event", "cmd-result", "cmd/ping")
MINE, OTHER = "adaptive-kv/v1/edge-07", "adaptive-kv/v1/edge-08"
DISCOVERY = "homeassistant/device/{}/config"
TOPICS = (
    *(f"{MINE}/{name}" for name in (*OWN, "cmd/set-mode")),
    *(f"{OTHER}/{name}" for name in (*OWN, "cmd/set-mode")),
    DISCOVERY.format("edge-07"),
    DISCOVERY.format("edge-08"),
    "homeassistant/status",
    "somebody/elses",
)
OURS = {topic for topic in TOPICS if topic.startswith("adaptive-kv/")}
COMMANDS = {topic for topic in TOPICS if "/cmd/" in topic}
MAY_WRITE = {
    "edge-07": {t for t in TOPICS if t.startswith(MINE)} | {DISCOVERY.format("edge-07")},
    "viewer": set(),
    "operator": COMMANDS,
    "homeassistant": {f"{MINE}/cmd/set-mode", f"{OTHER}/cmd/set-mode", "homeassistant/status"},
}
MAY_READ = {
    "edge-07": MAY_WRITE["edge-07"],
    "viewer": OURS,
    "operator": OURS,
    "homeassistant": OURS | {topic for topic in TOPICS if topic.startswith("homeassistant/")},
}


@pytest.mark.parametrize("user", MAY_WRITE)
def test_everybody_says_and_hears_what_the_rules_permit_and_no_more(
    secured: Mosquitto, user: str
) -> None:
    with listener(secured, "witness") as witness, listener(secured, user) as somebody:
        for topic in TOPICS:
            somebody.send(topic, json.dumps([user, topic]))
        witness.send("done", "")
        assert witness.hears(lambda it: it.heard[-1].topic == "done")
        said = {heard.topic for heard in witness.heard} - {"done"}
        somebody.heard.clear()
        for topic in TOPICS:
            witness.send(topic, "")
        witness.send(f"{MINE}/state", "done")
        assert somebody.hears(lambda it: it.texts("state")[-1:] == ["done"])
        heard = {message.topic for message in somebody.heard}
    assert said == MAY_WRITE[user]
    assert heard == MAY_READ[user]
