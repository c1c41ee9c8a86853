import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kv.config import ConfigError, Settings, is_loopback, load_settings, parse_size


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "adaptive-kv.toml"


def load(toml: Path, text: str = "", flags: Mapping[str, object] | None = None) -> Settings:
    toml.write_text(text)
    return load_settings(toml, flags)


def problems(toml: Path, text: str = "", flags: Mapping[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(toml, text, flags)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_defaults_are_safe_and_need_no_file(tmp_path: Path) -> None:
    settings = load_settings(default_file=tmp_path / "absent.toml")
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8787)
    assert settings.cache.ladder == ("full", "int8", "int4", "window:1024+int4", "disabled")
    assert settings.memory.floor == 256 * 2**20
    assert settings.mqtt.url is None
    assert not settings.mqtt.commands


def test_flags_beat_environment_beats_credentials_beats_toml_beats_defaults(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    for key in ("server__port", "server__max_running", "server__max_waiting"):
        (secrets / key).write_text("3\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    monkeypatch.setenv("ADAPTIVE_KV_SERVER__PORT", "2")
    monkeypatch.setenv("ADAPTIVE_KV_SERVER__MAX_RUNNING", "2")
    text = "[server]\nport = 4\nmax_running = 4\nmax_waiting = 4\nmax_tokens_per_step = 4\n"
    server = load(toml, text, {"server.port": 1}).server
    assert (server.port, server.max_running, server.max_waiting) == (1, 2, 3)
    assert (server.max_tokens_per_step, server.drain_timeout_s) == (4, 30.0)


def test_flags_may_be_nested_and_none_means_not_given(toml: Path) -> None:
    flags = {"server": {"port": 1, "host": None}, "memory.budget": "1GiB", "log.level": None}
    settings = load(toml, "[server]\nhost = '::1'\n", flags)
    assert (settings.server.port, settings.server.host) == (1, "::1")
    assert settings.memory.budget == 2**30
    assert settings.log.level == "info"


def test_secrets_are_never_shown(toml: Path) -> None:
    settings = load(toml, "[server]\ntoken = 'hush'\n[mqtt]\npassword = 'hush'\n")
    assert "hush" not in repr(settings)
    assert settings.server.token is not None
    assert settings.server.token.get_secret_value() == "hush"


def test_a_bad_secret_is_not_shown_either(toml: Path) -> None:
    assert "hush" not in "".join(problems(toml, "[server]\ntoken = ['hush']\n"))


def test_lists_and_options_can_be_written_in_the_environment(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIVE_KV_CACHE__LADDER", "full, window:64+int8")
    monkeypatch.setenv("ADAPTIVE_KV_SERVER__ALLOWED_HOSTS", '["box.lan"]')
    monkeypatch.setenv("ADAPTIVE_KV_POLICY__OPTIONS", '{"down": 0.8}')
    settings = load(toml)
    assert settings.cache.ladder == ("full", "window:64+int8")
    assert settings.cache.ladder[1].window == 64
    assert settings.server.allowed_hosts == ("box.lan",)
    assert settings.policy.options == {"down": 0.8}


def test_unknown_toml_keys_are_named_with_a_suggestion(toml: Path) -> None:
    found = problems(toml, "[server]\nprot = 1\n[polciy]\nname = 'x'\n[memory]\nzzz = 1\n")
    assert "server.prot: unknown key; did you mean server.port?" in found
    assert "polciy: unknown key; did you mean policy?" in found
    assert "memory.zzz: unknown key" in found


@pytest.mark.parametrize(
    ("variable", "named"),
    [
        (
            "ADAPTIVE_KV_SERVR__PORT",
            "did you mean ADAPTIVE_KV_SERVER__PORT",
        ),
        (
            "ADAPTIVE_KV_SERVER_PORT",
            "did you mean ADAPTIVE_KV_SERVER__PORT",
        ),
        ("ADAPTIVE_KV_SERVER__PROT", "server.prot: unknown key; did you mean server.port"),
        ("ADAPTIVE_KV_QUITE__OTHER", "ADAPTIVE_KV_QUITE__OTHER"),
        ("ADAPTIVE_KV_SERVER__PORT__DEEP", "server.port"),
    ],
)
def test_unknown_variables_are_named(
    toml: Path, monkeypatch: pytest.MonkeyPatch, variable: str, named: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert named in "".join(problems(toml))


def test_variables_that_kubernetes_sets_are_not_ours(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIVE_KV_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ADAPTIVE_KV_PORT", "tcp://10.0.0.1:8787")
    assert load(toml).server.port == 8787


@pytest.mark.parametrize("name", ["mqtt_password", "mqtt__pasword", "mqqt__password"])
def test_unknown_credentials_are_named(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / name).write_text("hush")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    text = "".join(problems(toml))
    assert name.partition("__")[2] in text
    assert "did you mean" in text
    assert "hush" not in text


def test_a_blank_credential_is_none(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a unit gives it where its file is absent."""
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / "server__token").write_text("\n")
    (secrets / "mqtt__password").write_text("")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    assert load(toml).server.token is None
    settings = load(toml, '[mqtt]\npassword = "hush"\n')
    assert settings.mqtt.password is not None
    assert settings.mqtt.password.get_secret_value() == "hush"


def test_credentials_of_others_and_of_a_missing_directory(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "login.motd").write_text("hello")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load(toml).mqtt.password is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "absent"))
    assert "does not exist" in "".join(problems(toml))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("server.port", 65536, "less than or equal to 65535"),
        ("server.port", -1, "greater than or equal to 0"),
        ("server.max_body", "8GB", "write 512MiB"),
        ("server.max_body", 0, "greater than 0"),
        ("server.token", "", "at least 1"),
        ("memory.floor", "lots", "write 512MiB"),
        ("memory.floor", True, "not a size"),
        ("memory.floor", -1, "not a size"),
        ("memory.source", "magic", "file:PATH"),
        ("memory.source", "file:", "file:PATH"),
        ("memory.source", "budget", "memory.budget is not set"),
        ("memory.poll_hz", 0, "greater than 0"),
        ("memory.max_age_s", float("nan"), "finite"),
        ("model.device", "tpu", "'cuda'"),
        ("model.dtype", "float8", "'bfloat16'"),
        ("model.max_context", 0, "greater than 0"),
        ("cache.ladder", [], "at least 1"),
        ("cache.ladder", ["full", "int3"], "unknown cache mode 'int3'"),
        ("cache.ladder", ["full", "int8", "full"], "full stands on the ladder twice"),
        ("cache.ladder", "[full", "not valid JSON"),
        ("policy.options", "{", "not valid JSON"),
        ("mqtt.url", "http://broker", "mqtt://HOST"),
        ("mqtt.url", "mqtt://", "mqtt://HOST"),
        ("mqtt.url", "mqtt://broker:port", "ort"),
        ("mqtt.url", "mqtt://me:hush@broker", "mqtt.password"),
        ("mqtt.node", "Box 1", "pattern"),
        ("mqtt.base", "a/+/b", "pattern"),
        ("log.level", "loud", "'info'"),
        ("log.format", "xml", "'json'"),
    ],
)
def test_bad_values_name_their_key_and_what_would_be_right(
    toml: Path, key: str, value: object, why: str
) -> None:
    (problem,) = problems(toml, "", {key: value})
    assert key in problem
    assert why in problem
    assert "hush" not in problem


def test_all_problems_come_at_once_one_per_line(toml: Path) -> None:
    found = problems(toml, "[server]\nport = 'x'\n[memory]\nfloor = 'y'\n[log]\nlevel = 'z'\n")
    assert [line.split(":")[0] for line in found] == ["server.port", "memory.floor", "log.level"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "box.lan"])
def test_a_host_that_others_reach_needs_a_token(toml: Path, host: str) -> None:
    (problem,) = problems(toml, "", {"server.host": host})
    assert host in problem
    assert "server.token" in problem
    assert load(toml, "", {"server.host": host, "server.token": "t"}).server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_token(toml: Path, host: str) -> None:
    assert is_loopback(load(toml, "", {"server.host": host}).server.host)


def test_the_floor_follows_a_small_budget_unless_it_is_given(toml: Path) -> None:
    assert load(toml, "", {"memory.budget": "64MiB"}).memory.floor == 8 * 2**20
    assert load(toml, "", {"memory.budget": "64GiB"}).memory.floor == 256 * 2**20
    assert load(toml, "", {"memory.budget": "64MiB", "memory.floor": 5}).memory.floor == 5
    flags = {"memory.source": "budget", "memory.budget": 10, "memory.floor": 10}
    assert "leaves nothing" in problems(toml, "", flags)[0]


def test_a_given_file_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_settings(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[server\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(broken)


def test_the_default_file_is_read_when_it_exists(toml: Path) -> None:
    toml.write_text("[server]\nport = 4\n")
    assert load_settings(default_file=toml).server.port == 4


def test_a_section_that_is_no_table_is_named(toml: Path) -> None:
    assert problems(toml, "server = 3\n")[0].startswith("server: ")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("512MiB", 512 * 2**20),
        ("8GiB", 8 * 2**30),
        ("64 KiB", 64 * 2**10),
        ("1.5GiB", 3 * 2**29),
        ("0.3KiB", 307),
        ("7b", 7),
        ("123456789012345678", 123456789012345678),
        (4096, 4096),
        (2.5, 2),
    ],
)
def test_sizes(text: str | float, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "8GB", "1MiB2", "inf", "nan", True])
def test_what_is_no_size_says_how_to_write_one(text: str | float) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**60), st.sampled_from(["", "B", "KiB", "MiB", "GiB"]))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert parse_size(f"{number}{unit}") == number * factor


def test_importing_the_configuration_loads_no_torch() -> None:
    code = "import sys, adaptive_kv.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
