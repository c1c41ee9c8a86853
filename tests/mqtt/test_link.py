import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiomqtt import MqttCodeError, MqttError, ProtocolVersion
from broker import Listener, Mosquitto, comes_true, running_mosquitto
from mqtt.publishing import make_node, publishing
from mqtt.secured import tls
from mqtt.wire import wired
from pydantic import SecretStr
from structlog.testing import capture_logs

from adaptive_kv.errors import ConfigError
from adaptive_kv.mqtt.link import Timing
from adaptive_kv.mqtt.upkeep import Backoff, next_version

V5, V311 = ProtocolVersion.V5, ProtocolVersion.V311
PASSWORD = "correct horse"
leaves_sockets = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
"""paho leaves a socket whose handshake failed to the garbage collector."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that wants to know who comes."""
    words = tmp_path / "passwords"
    words.write_text(f"edge:{PASSWORD}\n")
    subprocess.run(["mosquitto_passwd", "-U", words], check=True)
    with running_mosquitto(tmp_path, [f"password_file {words}"]) as running:
        yield running


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b""], ids=["refuses", "hangs up"])
def test_a_broker_that_does_not_know_mqtt_5_is_spoken_to_in_3(
    broker: Mosquitto, answer: bytes
) -> None:
    with Listener(broker) as listener, wired(broker, old_answer=answer) as wire:
        with capture_logs() as logs, publishing(wire.url) as node:
            assert listener.hears(lambda heard: bool(heard.of("state")))
            node.append(1)
            assert listener.hears(lambda heard: bool(heard.of("event")))
        assert listener.hears(lambda heard: heard.texts("availability") == ["online", "offline"])
    assert [log["version"] for log in logs if log["event"] == "mqtt_connected"] == ["V311"]


def test_a_broker_that_knows_mqtt_5_is_spoken_to_in_5(broker: Mosquitto) -> None:
    with capture_logs() as logs, publishing(broker.url) as node:
        assert node.connects()
    assert [log["version"] for log in logs] == ["V5"]


def test_silence_is_no_reason_to_doubt_a_version_that_has_worked() -> None:
    silence, refusal = MqttError("Operation timed out"), MqttCodeError(132)
    assert next_version(V5, silence, is_v5_known=True) is V5
    assert next_version(V5, silence, is_v5_known=False) is V311
    assert next_version(V311, silence, is_v5_known=False) is V5
    assert next_version(V5, refusal, is_v5_known=True) is V311
    assert next_version(V5, MqttCodeError(135), is_v5_known=False) is V5


def test_a_broker_is_soon_found_again_however_long_it_was_away() -> None:
    """After half as long again, or seconds where it keeps losing us; a minute at most."""
    backoff = Backoff(Timing(), now_s=100.0)
    for _ in range(10):
        backoff.lost(now_s=100.0, lasted_s=1.0)
    assert backoff.ceiling_s(100.0) == 3.0
    assert backoff.ceiling_s(106.0) == 3.0
    assert backoff.ceiling_s(112.0) == 6.0
    assert backoff.ceiling_s(1e6) == 60.0
    backoff.lost(now_s=200.0, lasted_s=20.0)
    assert backoff.ceiling_s(200.0) == 0.2
    waits_s = [backoff.rest_s(204.0) for _ in range(200)]
    assert 0 <= min(waits_s) < 0.5, "full jitter"
    assert 1.5 < max(waits_s) <= 2.0


def test_what_a_broker_denies_is_logged_once_per_connection(tmp_path: Path) -> None:
    """It confirms what it denies; only MQTT 5 says so, and then no such event counts as told."""
    rules = tmp_path / "rules"
    rules.write_text("topic write adaptive-kv/v1/edge-07/availability\n")
    rules.chmod(0o600)
    with (
        running_mosquitto(tmp_path, ["allow_anonymous true", f"acl_file {rules}"]) as broker,
        capture_logs() as logs,
        publishing(broker.url) as node,
    ):
        node.append(1, 2)
        assert node.has_told_all()
        assert comes_true(lambda: node.documents.dropped_events == 2)
        assert node.is_connected()
        assert "denies us" in (node.publisher.status.last_error or "")
        broker.kill()
        assert comes_true(lambda: not node.is_connected())
    denied = [log["topic"] for log in logs if log["event"] == "mqtt_denied"]
    assert denied == [f"adaptive-kv/v1/edge-07/{name}" for name in ("info", "state", "event")]


def test_who_gives_the_right_password_is_let_in(guarded: Mosquitto) -> None:
    secret = SecretStr(PASSWORD)
    with publishing(guarded.url, username="edge", password=secret) as node:
        assert node.connects()


def test_a_wrong_password_is_tried_again_and_never_shown(guarded: Mosquitto) -> None:
    secret = SecretStr("guessed wrong")
    with (
        capture_logs() as logs,
        publishing(guarded.url, username="edge", password=secret) as node,
    ):
        assert comes_true(lambda: node.publisher.status.last_error is not None)
        node.append(1)
        assert not node.is_connected()
        assert "ot authorized" in (node.publisher.status.last_error or "")
    assert [log["event"] for log in logs] == ["mqtt_lost"]
    assert "guessed" not in str(logs)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that speaks TLS, as `localhost`."""
    with running_mosquitto(tmp_path, ["allow_anonymous true", *tls(tmp_path)]) as running:
        yield running


def test_tls_with_the_right_authority_is_trusted(private: Mosquitto, tmp_path: Path) -> None:
    url = f"mqtts://localhost:{private.port}"
    with publishing(url, ca_file=tmp_path / "authority.pem") as node:
        assert node.connects()
        node.append(1)
        assert node.has_told_all()


@leaves_sockets
def test_tls_without_it_is_not(private: Mosquitto) -> None:
    with publishing(f"mqtts://localhost:{private.port}") as node:
        assert comes_true(lambda: node.publisher.status.last_error is not None)
        assert "CERTIFICATE_VERIFY_FAILED" in (node.publisher.status.last_error or "")
    gc.collect()


@leaves_sockets
def test_a_certificate_for_another_name_is_not_trusted(private: Mosquitto, tmp_path: Path) -> None:
    url = f"mqtts://127.0.0.2:{private.port}"
    with publishing(url, ca_file=tmp_path / "authority.pem") as node:
        assert comes_true(lambda: node.publisher.status.last_error is not None)
        assert not node.is_connected()
    gc.collect()


def test_a_ca_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for file in (tmp_path / "absent.pem", empty):
        with pytest.raises(ConfigError, match="ca_file"):
            make_node("mqtts://localhost", ca_file=file)
