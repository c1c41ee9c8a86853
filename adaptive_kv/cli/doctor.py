"""`adaptive-kv doctor`: looks at everything the service needs, one line each."""

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import AdaptiveKVError, ConfigError, SensorError

if TYPE_CHECKING:
    from aiomqtt import Client

    from adaptive_kv.config import MqttSettings, Settings

_BROKER_S = 5.0


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
    """Check device, memory source, model, policy and broker; exit status 1 if any is red.

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
    from adaptive_kv.loader import load_policy
    from adaptive_kv.testing import make_reading

    decide, name = load_policy(settings.policy.name, settings.policy.options)
    decision = decide(make_reading())
    return f"{name} answers {decision.mode if decision else 'hold'}"


def _broker(settings: "Settings") -> str:
    if settings.mqtt.url is None:
        return "none configured"
    from aiomqtt import MqttError

    try:
        return asyncio.run(_echo(settings.mqtt))
    except MqttError as error:
        raise ConfigError(f"{settings.mqtt.url}: {error}") from None
    except TimeoutError:
        raise ConfigError(
            f"{settings.mqtt.url} did not return our own message within {_BROKER_S:g} s: is it "
            "reachable, and may this node write and read there?"
        ) from None


async def _echo(mqtt: "MqttSettings") -> str:
    """Publish where this node may write and read, and wait to see it.

    A broker that denies a message by its rules still acknowledges it: only an echo proves more.
    """
    topic, token = f"{mqtt.base}/v1/{mqtt.node}/cmd/echo", uuid.uuid4().bytes
    async with asyncio.timeout(_BROKER_S), _client(mqtt) as client:
        await client.subscribe(topic, qos=1)
        await client.publish(topic, token, qos=1)
        async for message in client.messages:
            if message.payload == token:
                break
    return f"{mqtt.url} returns what {mqtt.node} publishes"


def _client(mqtt: "MqttSettings") -> "Client":
    from aiomqtt import Client

    from adaptive_kv.mqtt.link import Broker

    broker = Broker.of(mqtt)
    return Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.password,
        tls_context=broker.tls,
        identifier=f"{mqtt.base.replace('/', '-')}-{mqtt.node}-doctor",
        timeout=_BROKER_S,
    )
