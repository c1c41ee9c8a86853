"""Whatever happens to the broker, tokens come as if nothing were, and truth is soon there again.

The real service on its embedded model, over TLS and by the example rules; a broker that freezes,
dies and flaps. Everything that anybody heard meanwhile is valid.
"""

import asyncio
import gc
import itertools
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from broker import Heard, Listener, Mosquitto, comes_true
from cli.test_serve import Served, ask, serving
from mqtt.homeassistant import check
from mqtt.publishing import BRIEF, publishing
from mqtt.secured import listener, login, password
from pydantic import SecretStr
from schemas import validate_all
from structlog.testing import capture_logs

from adaptive_kv.config import MqttSettings
from adaptive_kv.events import EventLog
from adaptive_kv.mqtt.checkup import CheckupError, check_broker

TESTS = Path(__file__).parents[1]
NODE = "edge-07"
RETURN_S = 5.0
"""Within which the truth is right again, from when the broker is."""
QUIET_S = 2.5
NUM_CLIENTS = 2


class Tokens:
    """Clients that stream one answer after the other, and the gaps between their tokens."""

    def __init__(self, url: str) -> None:
        self.gaps: list[tuple[float, float]] = []
        """When a token came, and seconds since the one before it in its answer."""
        self.stop = threading.Event()
        self._url = f"{url}/v1/completions"

    def run(self) -> None:
        while not self.stop.is_set():
            with ask(self._url, max_tokens=200) as answer:
                next(answer)
                before_s = time.monotonic()
                for _ in itertools.takewhile(lambda _: not self.stop.is_set(), answer):
                    now_s = time.monotonic()
                    self.gaps.append((now_s, now_s - before_s))
                    before_s = now_s

    def during(self, act: Callable[[], object]) -> list[float]:
        """The gaps that ended while something was done."""
        began_s = time.monotonic()
        act()
        return [gap_s for at_s, gap_s in self.gaps if at_s >= began_s]


class Pins:
    """Somebody who changes the mode all the time, so that there is always something to tell."""

    def __init__(self, url: str) -> None:
        self.stop = threading.Event()
        self._url = f"{url}/admin/mode"

    def run(self) -> None:
        for mode in itertools.cycle(("int8", "full")):
            with suppress(httpx.HTTPError):
                httpx.put(self._url, json={"mode": mode}, timeout=20)
            if self.stop.wait(0.5):
                return


@contextmanager
def working(*workers: Tokens | Pins) -> Iterator[None]:
    running = [threading.Thread(target=worker.run) for worker in workers]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop.set()
        for thread in running:
            thread.join()


class Faults:
    """Does things to a broker, and looks how soon all is well again."""

    def __init__(self, broker: Mosquitto, served: Served) -> None:
        self.returns_s: dict[str, float] = {}
        """By fault: how long the broker was back when a newcomer heard the truth."""
        self.heard: list[Heard] = []
        self._broker, self._served = broker, served

    def freeze(self) -> None:
        self._broker.freeze()
        time.sleep(8)
        self._broker.thaw()
        self._look("freeze")

    def kill(self) -> None:
        self._broker.kill()
        time.sleep(4)
        self._broker.start()
        self._look("kill")

    def flap(self) -> None:
        for _ in range(10):
            self._broker.kill()
            time.sleep(0.2)
            self._broker.start()
            time.sleep(0.4)
        self._look("flaps")

    def _look(self, after: str) -> None:
        began_s = time.monotonic()
        seq = httpx.get(f"{self._served.url}/status", timeout=20).json()["seq"]
        with listener(self._broker, "witness") as newcomer:
            assert newcomer.hears(lambda it: any(each.json["seq"] > seq for each in it.of("state")))
            newer = [each for each in newcomer.of("state") if each.json["seq"] > seq]
            self.returns_s[after] = newer[0].time_s - began_s
            assert newcomer.hears(lambda it: it.texts("availability")[-1:] == ["online"])
            assert newcomer.hears(lambda it: bool(it.of("info")) and bool(it.of("config")))
            self.heard += newcomer.heard


@dataclass(frozen=True, kw_only=True)
class Course:
    """What came of one run through all faults."""

    quiet: list[float]
    """Seconds between tokens while the broker was well."""
    faulty: list[float]
    """And while it was not."""
    frozen: list[int]
    """Events that one heard who stayed connected to a broker that froze."""
    last_frozen: int
    """The newest there was then."""
    returns_s: dict[str, float]
    kept: dict[str, Heard]
    """What the broker holds after the end."""
    heard: list[Heard]
    """All that anybody heard."""


@pytest.fixture(scope="module")
def course(secured: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("node")
    with node(folder, secured) as served, listener(secured, "witness") as witness:
        tokens, faults = Tokens(served.url), Faults(secured, served)
        with working(Pins(served.url), *[tokens] * NUM_CLIENTS):
            assert comes_true(lambda: len(tokens.gaps) > 200)
            quiet = tokens.during(rest)
            faulty = tokens.during(faults.freeze)
            last_frozen = newest_event(served)
            assert witness.hears(lambda it: last_frozen in seqs(it))
            frozen = seqs(witness)
            for fault in (faults.kill, faults.flap):
                quiet += tokens.during(rest)  # in between, so that a busy machine blurs both
                faulty += tokens.during(fault)
            quiet += tokens.during(rest)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
        with listener(secured, "witness") as later:
            assert later.hears(lambda it: len({heard.topic for heard in it.heard}) == 4)
    return Course(
        quiet=quiet,
        faulty=faulty,
        frozen=frozen,
        last_frozen=last_frozen,
        returns_s=faults.returns_s,
        kept={heard.topic.rpartition("/")[2]: heard for heard in later.heard},
        heard=[*witness.heard, *faults.heard, *later.heard],
    )


@contextmanager
def node(folder: Path, broker: Mosquitto) -> Iterator[Served]:
    """The service as systemd would start it: its password is a credential."""
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "mqtt__password").write_text(password(NODE))
    variables = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "ADAPTIVE_KV_MQTT__USERNAME": NODE,
        "ADAPTIVE_KV_MQTT__CA_FILE": str(broker.ca_file),
        "ADAPTIVE_KV_MQTT__COMMANDS": "true",
        "ADAPTIVE_KV_MQTT__HOMEASSISTANT": "true",
    }
    with serving(folder, "--mqtt-url", broker.url, "--node", NODE, **variables) as served:
        yield served


def rest() -> None:
    time.sleep(QUIET_S)


def seqs(heard: Listener) -> list[int]:
    return [message.json["seq"] for message in heard.of("event")]


def newest_event(served: Served) -> int:
    """Everything that is kept comes at once; the next one then is newer than all of it."""
    with httpx.stream("GET", f"{served.url}/events?since=0", timeout=20) as response:
        began_s, seq = time.monotonic(), 0
        for line in response.iter_lines():
            if line.startswith("id:"):
                seq = int(line.removeprefix("id:"))
            if time.monotonic() > began_s + 1:
                break
    return seq


def p99(gaps: list[float]) -> float:
    return statistics.quantiles(gaps, n=100)[98]


def stalled(gaps: list[float], long_s: float) -> float:
    """The share of the time that passed in long gaps."""
    return sum(gap_s for gap_s in gaps if gap_s > long_s) / sum(gaps)


def test_no_token_is_delayed(course: Course) -> None:
    """Neither all a little, as by a lock that is shared, nor a few for long, as by waiting."""
    assert p99(course.faulty) < 3 * p99(course.quiet)
    long_s = 20 * statistics.median(course.quiet)
    assert stalled(course.faulty, long_s) < stalled(course.quiet, long_s) + 0.1


def test_the_truth_is_right_again_soon_after_the_broker_is_back(course: Course) -> None:
    assert course.returns_s.keys() == {"freeze", "kill", "flaps"}
    assert max(course.returns_s.values()) < RETURN_S, course.returns_s


def test_no_event_is_lost_in_a_broker_that_freezes(course: Course) -> None:
    """One may be told twice, as its confirmation was lost."""
    assert sorted(set(course.frozen)) == list(range(1, max(course.frozen) + 1))
    assert course.last_frozen in course.frozen
    assert course.frozen == sorted(course.frozen)


def test_what_is_kept_outlives_the_faults_and_the_node(course: Course) -> None:
    assert all(heard.retain for heard in course.kept.values())
    assert course.kept["availability"].text == "offline"
    assert course.kept["state"].json["health"] == "draining"
    assert course.kept["state"].json["dropped_events"] == 0
    assert course.kept["info"].json["boot_id"] == course.kept["state"].json["boot_id"]


def test_everything_that_was_heard_is_valid(course: Course) -> None:
    validate_all(course.heard)
    kinds = {heard.topic.rpartition("/")[2] for heard in course.heard}
    assert kinds == {"availability", "info", "state", "event", "config"}
    for heard in course.heard:
        if heard.topic.startswith("homeassistant/"):
            check(heard.topic, heard.json)


def test_what_the_log_let_go_is_seen_by_its_seq_and_counted(secured: Mosquitto) -> None:
    with (
        publishing(secured.url, EventLog(capacity=10), BRIEF, **login(secured, NODE)) as node,
        listener(secured, "viewer") as viewer,
    ):
        node.append(1, 2)
        assert viewer.hears(lambda it: seqs(it) == [1, 2])
        secured.kill()
        assert comes_true(lambda: not node.is_connected())
        node.append(*range(23))
        secured.start()
        assert node.connects()
        assert viewer.hears(lambda it: it.of("state")[-1].json["dropped_events"] == 13)
        node.append(26)
        assert viewer.hears(lambda it: 26 in seqs(it))
        assert not set(seqs(viewer)) & set(range(3, 16)), "the gap"
        validate_all(viewer.heard)


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"password": SecretStr("guessed wrong")}, "ot authorized"),
        ({"ca_file": None}, "CERTIFICATE_VERIFY_FAILED"),
    ],
    ids=["password", "authority"],
)
def test_who_is_kept_out_goes_on_and_says_why_once(
    secured: Mosquitto, wrong: dict[str, Any], why: str
) -> None:
    """In the log, where the password is not; the doctor finds it, too."""
    settings = login(secured, NODE) | wrong
    with (
        capture_logs() as logs,
        listener(secured, "witness") as witness,
        publishing(secured.url, timing=BRIEF, **settings) as node,
    ):
        assert comes_true(lambda: why in (node.publisher.status.last_error or ""))
        node.append(*range(500))
        time.sleep(0.5)
        assert not witness.of("event")
        with pytest.raises(CheckupError, match=why):
            asyncio.run(check_broker(MqttSettings(url=secured.url, node=NODE, **settings), None))
    assert [log["event"] for log in logs] == ["mqtt_lost"]
    assert "guessed" not in str(logs)
    gc.collect()


def test_who_may_not_speak_goes_on_and_says_so_once(secured: Mosquitto) -> None:
    """By the example rules a box has the topics of its user's name alone."""
    settings = login(secured, "edge-08")
    with (
        capture_logs() as logs,
        listener(secured, "witness") as witness,
        publishing(secured.url, timing=BRIEF, **settings) as node,
    ):
        node.append(1, 2)
        assert comes_true(lambda: node.documents.dropped_events == 2)
        assert all(heard.retain for heard in witness.heard), "nothing but what others left"
    denied = [log["topic"].rpartition("/")[2] for log in logs if log["event"] == "mqtt_denied"]
    assert denied == ["availability", "info", "state", "event"]


@contextmanager
def another_process(broker: Mosquitto, will_delay_s: int) -> Iterator[subprocess.Popen[bytes]]:
    """A node that is killed at the end."""
    script = (
        f"import sys, time; sys.path.insert(0, {str(TESTS)!r})\n"
        "from pathlib import Path\n"
        "from mqtt.publishing import Timing, publishing\n"
        "from mqtt.secured import password\n"
        "from pydantic import SecretStr\n"
        f"ours = dict(username={NODE!r}, password=SecretStr(password({NODE!r})))\n"
        f"ours['timing'] = Timing(keepalive_s=2, will_delay_s={will_delay_s})\n"
        f"with publishing({broker.url!r}, ca_file=Path({str(broker.ca_file)!r}), **ours):\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_node_that_freezes_is_declared_offline(secured: Mosquitto) -> None:
    with listener(secured, "viewer") as viewer, another_process(secured, 1) as process:
        assert viewer.hears(lambda it: it.texts("availability")[-1:] == ["online"])
        viewer.heard.clear()
        process.send_signal(signal.SIGSTOP)
        assert viewer.hears(lambda it: it.texts("availability") == ["offline"])


def test_a_quick_restart_is_never_told_as_offline(secured: Mosquitto) -> None:
    will_delay_s = 4
    with listener(secured, "viewer") as viewer:
        with another_process(secured, will_delay_s):
            assert viewer.hears(lambda it: it.texts("availability")[-1:] == ["online"])
            viewer.heard.clear()
        with publishing(secured.url, **login(secured, NODE)):
            assert viewer.hears(lambda it: bool(it.of("state")))
            time.sleep(will_delay_s + 1)
            assert set(viewer.texts("availability")) == {"online"}
