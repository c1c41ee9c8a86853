"""`adaptive-kv calibrate`: what each packed format loses on a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import AdaptiveKVError

if TYPE_CHECKING:
    from adaptive_kv.config import Settings
    from adaptive_kv.documents import CalibrationState


def calibrate(
    config: options.ConfigFile = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DType = None,
    memory_budget: options.MemoryBudget = None,
    memory_source: options.MemorySource = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure again what is known already.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure each packed format against full on a built-in text, and keep the result.

    The service does the same when it first loads a model. Formats whose KL divergence is beyond
    `cache.max_kl` are struck from that model's ladder.

    Example: `adaptive-kv calibrate --model ./Qwen3-0.6B --force`
    """
    from adaptive_kv.config import load_settings
    from adaptive_kv.log import adopt_transformers, configure_logging

    flags: dict[str, Any] = options.engine_flags(
        model=model,
        device=device,
        dtype=dtype,
        memory_budget=memory_budget,
        memory_source=memory_source,
    )
    settings = load_settings(config, flags)
    configure_logging(settings.log.model_copy(update={"level": "warning"}))
    adopt_transformers()
    name, state = _calibrated(settings, is_forced=force)
    if as_json:
        typer.echo(state.to_json())
    else:
        from rich.console import Console

        from adaptive_kv.cli.losses import losses_table

        Console().print(losses_table(name, state))


def _calibrated(settings: "Settings", *, is_forced: bool) -> tuple[str, "CalibrationState"]:
    from adaptive_kv.cli.progress import shown_progress
    from adaptive_kv.documents import calibration_state
    from adaptive_kv.engine.calibrating import calibrated
    from adaptive_kv.engine.loading import load_model

    with shown_progress() as tell:
        loaded = load_model(settings.model, tell)
        found = calibrated(settings, loaded, tell, is_forced=is_forced)
    if found is None:
        raise AdaptiveKVError(
            f"{loaded.name} cannot be calibrated: it has no packed format, or too little context "
            "or memory for a text worth comparing"
        )
    return loaded.name, calibration_state(found, settings.cache.max_kl)
