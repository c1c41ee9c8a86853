"""`adaptive-kv serve`."""

import faulthandler
from functools import partial
from typing import Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.cli.hangups import Hangups


def serve(
    config: options.ConfigFile = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DType = None,
    host: Annotated[str | None, typer.Option("--host", help="[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", help="0 is any [default: 8787]")] = None,
    memory_budget: options.MemoryBudget = None,
    memory_source: options.MemorySource = None,
    mode: options.Mode = None,
    policy: options.PolicyName = None,
    mqtt_url: options.MqttUrl = None,
    node: options.Node = None,
) -> None:
    """Serve a model over HTTP until SIGTERM or SIGINT, and tell about it over MQTT.

    SIGHUP loads the configuration anew: policy, ladder, floor and log level change at once.

    Example: `adaptive-kv serve --model ./Qwen3-0.6B --memory-budget 4GiB`
    """
    hangups = Hangups()
    faulthandler.enable()  # what every thread did when the watchdog of systemd has us killed
    from adaptive_kv.config import load_settings
    from adaptive_kv.log import adopt_transformers, configure_logging

    pinned = options.parse_mode(mode)
    flags = options.engine_flags(
        model=model,
        device=device,
        dtype=dtype,
        memory_budget=memory_budget,
        memory_source=memory_source,
    )
    flags["server"] = {"host": host, "port": port}
    flags["policy"] = {"name": policy}
    flags["mqtt"] = {"url": mqtt_url, "node": node}
    load = partial(load_settings, config, flags)
    settings = load()
    configure_logging(settings.log)
    adopt_transformers()

    from adaptive_kv.cli.service import run_service

    raise typer.Exit(0 if run_service(settings, pinned, load, hangups) else 1)
