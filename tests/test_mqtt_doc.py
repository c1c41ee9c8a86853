"""The page about MQTT says what is so: its configuration loads, its topics and commands work."""

import json
import re
import subprocess
from pathlib import Path

from broker import Listener, comes_true, running_mosquitto
from mqtt.publishing import BRIEF, publishing
from schemas import validate
from server.scripted import ScriptedWorker

from adaptive_kv.config import load_settings
from adaptive_kv.documents import COMMANDS
from adaptive_kv.mqtt.topics import Topics

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "mqtt.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_configuration_is_accepted_and_shows_the_defaults(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    file = tmp_path / "adaptive-kv.toml"
    file.write_text(example)
    shown = load_settings(file).mqtt
    default = load_settings(default_file=tmp_path / "absent").mqtt
    for key in ("base", "commands", "homeassistant", "heartbeat_s"):
        assert getattr(shown, key) == getattr(default, key)


def test_its_topics_are_those_of_a_node() -> None:
    topics = Topics("adaptive-kv", "<node>".strip("<>"))
    listed = set(re.findall(r"^\| `(\S+)`", PAGE, re.MULTILINE))
    ours = {topics.availability, topics.info, topics.state, topics.event, topics.result}
    ours |= {topics.command("<name>"), topics.discovery}
    assert {topic.replace("<node>", "node") for topic in listed} == ours


def test_its_command_is_obeyed_and_answered_as_shown(tmp_path: Path) -> None:
    """The line as it stands, but for who carries it to the broker."""
    (line,) = [block for block in blocks("sh") if "mosquitto_pub" in block]
    said = subprocess.run(
        ["bash", "-c", 'mosquitto_pub() { printf "%s\\n" "$4" "$6"; }\n' + line],
        capture_output=True,
        text=True,
        check=True,
    )
    topic, payload = said.stdout.splitlines()
    validate("cmd/set-mode", json.loads(payload))
    with (
        running_mosquitto(tmp_path) as broker,
        Listener(broker) as listener,
        publishing(broker.url, timing=BRIEF, commands=True) as node,
    ):
        worker = ScriptedWorker(node.mailbox)
        worker.start()
        assert listener.hears(lambda it: bool(it.of("state")))
        listener.send(topic, payload)
        assert comes_true(lambda: bool(listener.of("cmd-result")))
        worker.stop.set()
        worker.join()
        answer = listener.of("cmd-result")[0].json
        assert node.mailbox.status.mode == "int4"
    (shown,) = map(json.loads, blocks("json"))
    assert answer == shown | {"id": json.loads(payload)["id"]}


def test_it_names_every_command() -> None:
    assert all(f"`{name}`" in PAGE for name in COMMANDS)


def test_its_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE)
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
