"""When a model is calibrated: at its first load, or when asked to; after that it is known."""

from dataclasses import astuple
from importlib import resources

import structlog

from adaptive_kv.cache.formats import LAYOUT_VERSION
from adaptive_kv.config import Settings
from adaptive_kv.engine import calibration_record as record
from adaptive_kv.engine.calibration import LOSSY_FORMATS, MAX_TOKENS, calibrate
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.loading import LoadedModel, find_device, model_folder
from adaptive_kv.engine.losses import Calibration
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.start import make_keep, make_start_budget
from adaptive_kv.engine.text import PromptEncoder
from adaptive_kv.policy import CacheMode
from adaptive_kv.progress import Tell, untold

_log = structlog.get_logger(__name__)


def built_in_text() -> str:
    """What every model is calibrated on: a page and a half of prose, tables and code."""
    file = resources.files("adaptive_kv.engine") / "calibration.txt"
    return file.read_text("utf-8")


def calibrated_at_load(
    settings: Settings, loaded: LoadedModel, tell: Tell = untold
) -> Calibration | None:
    """As `calibrated`, told in the log; None where no rung of the ladder is packed."""
    if not any(mode.page_format in LOSSY_FORMATS for mode in settings.cache.ladder):
        return None
    found = calibrated(settings, loaded, tell)
    if found is not None:
        _tell(found, settings.cache.max_kl)
    return found


def calibrated(
    settings: Settings, loaded: LoadedModel, tell: Tell = untold, *, is_forced: bool = False
) -> Calibration | None:
    """What is known of a loaded model, or what is measured and kept now; `is_forced` measures.

    None where there is nothing to compare, or no room for it: within `memory.budget`, and its pages
    above `memory.floor`. Raises `SensorError`.
    """
    model = loaded.model
    if not _formats(model):
        return None
    key = _key(settings, model)
    found = None if key is None or is_forced else record.load(key)
    if found is None:
        found = _measure(settings, loaded, key, tell)
    if found is None:
        _log.warning("not_calibrated", model=loaded.name, why="too little memory or context")
    return found


def known_calibration(settings: Settings, outlined: Model) -> Calibration | None:
    """What was measured before of a model that is not loaded; None where nothing was."""
    key = _key(settings, outlined)
    return None if key is None else record.load(key)


def _formats(model: Model) -> tuple[str, ...]:
    return tuple(name for name in LOSSY_FORMATS if permits(model.model_type, CacheMode(name)))


def _measure(
    settings: Settings, loaded: LoadedModel, key: str | None, tell: Tell
) -> Calibration | None:
    model = loaded.model
    _log.info("calibrating", model=loaded.name, formats=_formats(model))
    ids = PromptEncoder(loaded.tokenizer).encode_text(built_in_text())
    found = calibrate(
        model,
        ids,
        keep=make_keep(settings.cache),
        slab_bytes=settings.cache.slab,
        budget=make_start_budget(settings, model),
        formats=_formats(model),
        tell=tell,
    )
    if found is None or key is None:
        return found
    if found.num_tokens == min(len(ids), model.max_context, MAX_TOKENS):
        record.save(key, found)  # what memory cut short may be measured better next time
    return found


def _key(settings: Settings, model: Model) -> str | None:
    """The fingerprint of a model as it is served; None where its files cannot be read."""
    folder = model_folder(settings.model)
    if folder is None:
        return None
    try:
        return record.fingerprint(
            folder,
            device=find_device(folder.name, settings.model.device).type,
            dtype=str(model.module.dtype),
            keep=astuple(make_keep(settings.cache)),
            layout=LAYOUT_VERSION,
            max_tokens=min(model.max_context, MAX_TOKENS),
            text=built_in_text(),
        )
    except OSError as error:
        _log.warning("model_not_fingerprinted", folder=str(folder), error=str(error))
        return None


def _tell(found: Calibration, max_kl: float) -> None:
    """Log what every format loses, and which are struck."""
    struck = found.struck(max_kl)
    for name, loss in found.formats.items():
        log, event = _log.info, "format_calibrated"
        if name in struck:
            log, event = _log.warning, "format_struck"
        log(
            event,
            format=name,
            kl_divergence=round(loss.kl_divergence, 6),
            top1_agreement=round(loss.top1_agreement, 4),
            perplexity=round(loss.perplexity, 2),
            perplexity_of_full=round(found.perplexity, 2),
        )
