"""`adaptive-kv doctor`: looks at everything the service needs, one line each."""

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import AdaptiveKVError, ConfigError, SensorError

if TYPE_CHECKING:
    from adaptive_kv.config import Settings
    from adaptive_kv.loader import RemotePolicy

_POLICY_S = 5.0
_HTTP_S = 2.0
_OURSELVES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound
"""How a service is reached that listens everywhere."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, whether it is well, and what was seen or should be done."""

    name: str
    ok: bool
    text: str


def doctor(
    config: options.ConfigFile = None,
    model: options.Model = None,
    device: options.Device = None,
    memory_budget: options.MemoryBudget = None,
    memory_source: options.MemorySource = None,
    policy: options.PolicyName = None,
    mqtt_url: options.MqttUrl = None,
    node: options.Node = None,
    as_json: options.AsJson = False,
) -> None:
    """Check device, memory source, model, policy, broker and unit; exit status 1 if any is red.

    Run it on the box, as the user and with the configuration of the service. Of a broker it also
    finds out whether this node is let say and hear what it has to, and whether another box has the
    same name.

    Example: `adaptive-kv doctor --config /etc/adaptive-kv/adaptive-kv.toml --json`
    """
    from adaptive_kv.config import load_settings

    flags: dict[str, Any] = options.engine_flags(
        model=model,
        device=device,
        dtype=None,
        memory_budget=memory_budget,
        memory_source=memory_source,
    )
    flags |= {"policy": {"name": policy}, "mqtt": {"url": mqtt_url, "node": node}}
    checks = list(_checks(load_settings(config, flags)))
    is_well = all(check.ok for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": is_well, "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            color = typer.colors.GREEN if check.ok else typer.colors.RED
            typer.secho("ok " if check.ok else "red", fg=color, nl=False)
            typer.echo(f"  {check.name:<7} {check.text}")
    if not is_well:
        raise typer.Exit(1)


def _checks(settings: "Settings") -> Iterator[Check]:
    looks: dict[str, Callable[[Settings], str]] = {
        "device": _device,
        "memory": _memory,
        "model": _model,
        "policy": _policy,
        "broker": _broker,
        "unit": _unit,
    }
    for name, look in looks.items():
        try:
            yield Check(name, ok=True, text=look(settings))
        except (AdaptiveKVError, OSError, ValueError) as error:
            text = str(error).strip() or type(error).__name__
            yield Check(name, ok=False, text=text.splitlines()[0])


def _device(settings: "Settings") -> str:
    import torch

    if _device_type(settings) == "cpu":
        return f"CPU, {os.cpu_count()} cores; torch {torch.__version__}"
    if not torch.cuda.is_available():
        raise ConfigError("model.device is cuda, but torch sees no CUDA device")
    return f"{torch.cuda.get_device_name()}; torch {torch.__version__}"


def _device_type(settings: "Settings") -> str:
    import torch

    if settings.model.device != "auto":
        return settings.model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _memory(settings: "Settings") -> str:
    """What the first sensor that answers says."""
    from adaptive_kv.sensors.choose import make_sensors

    faults = []
    for sensor in make_sensors(settings.memory, _device_type(settings), lambda: 0):
        try:
            sample = sensor.read()
        except SensorError as error:
            faults.append(str(error))
        else:
            free, total = (size / 2**30 for size in (sample.free_bytes, sample.total_bytes))
            return f"{free:.2f} of {total:.2f} GiB free, says {sample.source}"
        finally:
            sensor.close()
    raise ConfigError("; ".join(faults))


def _model(settings: "Settings") -> str:
    """That configuration and tokenizer load and the family is served; weights are not read."""
    from transformers import AutoConfig, AutoTokenizer

    from adaptive_kv.engine.families import FAMILIES
    from adaptive_kv.engine.loading import EMBEDDED_NAME, embedded_model

    source = settings.model.path or str(embedded_model())
    revision = settings.model.revision
    found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if found.model_type not in FAMILIES:
        raise ConfigError(f"family {found.model_type!r} is not served")
    if Path(source).is_dir() and not list(Path(source).glob("*.safetensors")):
        raise ConfigError(f"{source} has no safetensors weights")
    return f"{settings.model.path or EMBEDDED_NAME}, family {found.model_type}"


def _policy(settings: "Settings") -> str:
    """That it starts where the service would start it, and answers."""
    from adaptive_kv.loader import RemotePolicy, start_policy
    from adaptive_kv.testing import make_reading

    policy = settings.policy
    running, name = start_policy(policy.name, policy.options, deadline_s=_POLICY_S)
    if not isinstance(running, RemotePolicy):
        return f"{name} answers {_shown(running(make_reading()))}"
    try:
        return f"{name}, in a process of its own, answers {_shown(_answer(running))}"
    finally:
        running.close()


def _answer(policy: "RemotePolicy") -> object:
    """What a policy in a child process makes of a quiet moment; silence is a fault, too."""
    from adaptive_kv.testing import make_reading

    while not (news := policy.exchange(make_reading())):
        time.sleep(0.01)
    return news[0]


def _shown(answer: object) -> str:
    from adaptive_kv.controller.asking import Fault
    from adaptive_kv.policy import Decision

    if isinstance(answer, Fault):
        raise ConfigError(answer.text)
    return str(answer.mode) if isinstance(answer, Decision) else "hold"


def _broker(settings: "Settings") -> str:
    if settings.mqtt.url is None:
        return "none configured"
    from adaptive_kv.mqtt.checkup import CheckupError, check_broker

    try:
        found = asyncio.run(check_broker(settings.mqtt, _boot_id(settings)))
        return f"{settings.mqtt.url} {found}"
    except CheckupError as error:
        raise ConfigError(f"{settings.mqtt.url}: {error}") from None


def _boot_id(settings: "Settings") -> str | None:
    """Of the service that runs on this box with these settings; None where none answers."""
    server = settings.server
    host = _OURSELVES.get(server.host, server.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}/status"
    request = urllib.request.Request(url)
    if server.token is not None:
        request.add_header("Authorization", f"Bearer {server.token.get_secret_value()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_HTTP_S) as answer:
            boot_id = json.load(answer)["boot_id"]
    except (OSError, ValueError, KeyError, TypeError, HTTPException):
        return None
    return str(boot_id)


def _unit(_settings: "Settings") -> str:
    from adaptive_kv.cli.unit import check_units

    return check_units()
