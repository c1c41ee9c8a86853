"""`adaptive-kv plan`: what a model would need on a device, before it is loaded."""

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import ConfigError

if TYPE_CHECKING:
    from adaptive_kv.documents import CalibrationState
    from adaptive_kv.engine.planning import DevicePlan

_COPY_BYTES = 256 * 2**20
_WIDTH = 90


def plan(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder, or hub id in the cache [default: embedded]."),
    ] = None,
    config: options.ConfigFile = None,
    device: options.Device = None,
    dtype: options.DType = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="Of the device; ours is measured."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens of a sequence [default: all].")
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=1)] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Show per mode what the cache would weigh, what fits, and the bandwidth-bound speed.

    And what packed formats lose, if the model was calibrated before.

    Example: `adaptive-kv plan ./Qwen3-0.6B --device-memory 8GiB --context 32768 --sequences 4`
    """
    from adaptive_kv.config import load_settings, parse_size
    from adaptive_kv.documents import calibration_state
    from adaptive_kv.engine.calibrating import known_calibration
    from adaptive_kv.engine.planning import outline, plan_device
    from adaptive_kv.engine.start import make_keep
    from adaptive_kv.policy import CacheMode

    flags = {"model": {"path": model, "device": device, "dtype": dtype}}
    settings = load_settings(config, flags)
    name, outlined = outline(settings.model)
    try:
        device_bytes = _device_bytes() if device_memory is None else parse_size(device_memory)
    except ValueError as error:
        raise ConfigError(f"--device-memory: {error}") from None
    modes = dict.fromkeys([*map(CacheMode, ("full", "int8", "int4")), *settings.cache.ladder])
    planned = plan_device(
        name,
        outlined,
        modes=list(modes),
        keep=make_keep(settings.cache),
        device_bytes=device_bytes,
        context=min(context or outlined.max_context, outlined.max_context),
        sequences=sequences,
        bandwidth_bytes_per_s=_bandwidth_bytes_per_s(),
    )
    known = known_calibration(settings, outlined)
    losses = None if known is None else calibration_state(known, settings.cache.max_kl)
    if as_json:
        calibration = losses and losses.model_dump()
        typer.echo(json.dumps(asdict(planned) | {"calibration": calibration}))
    else:
        _show(planned, losses)


def _device_bytes() -> int:
    """Memory of the device that the service would run on."""
    import torch

    from adaptive_kv.sensors.meminfo import MeminfoSensor

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return MeminfoSensor().read().total_bytes


def _bandwidth_bytes_per_s() -> float:
    """Bytes read and written per second by a large copy, the best of a few."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    durations_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        durations_s.append(time.perf_counter() - started_s)
    return 2 * _COPY_BYTES / min(durations_s)


def _show(planned: "DevicePlan", losses: "CalibrationState | None") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from adaptive_kv.cli.losses import losses_table

    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=(
            f"{planned.model}: {_size(planned.weights_bytes)} of weights on "
            f"{_size(planned.device_bytes)}, {planned.sequences} x {planned.context} tokens"
        ),
    )
    table.add_column("mode", no_wrap=True)
    for column in ("per token", "cache", "step", "fits", "fit", "context", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in planned.modes:
        table.add_row(
            row.mode,
            _size(row.bytes_per_token),
            _size(row.cache_bytes),
            _size(row.transient_bytes),
            "yes" if row.fits else "no",
            str(row.num_sequences),
            str(row.max_context),
            "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.0f}",
        )
    console = Console(width=max(_WIDTH, Console().width))
    console.print(table)
    if losses is not None:
        console.print(losses_table(planned.model, losses))
    elif not all(row.exact for row in planned.modes):
        console.print("What packed formats lose on it is not measured yet: adaptive-kv calibrate")


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if num_bytes < 100 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB" if num_bytes < 100 else f"{num_bytes:.0f} GiB"
