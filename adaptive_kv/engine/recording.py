"""What a trace has to say about the model, so that a replay needs none."""

import time
from collections.abc import Callable, Iterable

from adaptive_kv import __version__
from adaptive_kv.cache import costs
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.store import PageStore
from adaptive_kv.config import Settings
from adaptive_kv.engine.loading import LoadedModel
from adaptive_kv.errors import ConfigError
from adaptive_kv.policy import CacheMode
from adaptive_kv.trace import Header, Recorder
from adaptive_kv.trace.curve import Curve, measure

_EXACT = (CacheMode("full"), CacheMode("disabled"))


def start_recording(
    settings: Settings,
    loaded: LoadedModel,
    store: PageStore,
    *,
    policy: str,
    ladder: tuple[CacheMode, ...],
    supports: Callable[[CacheMode], bool],
) -> Recorder | None:
    """A recorder as `[trace]` asks for it; None where it does not.

    Raises `ConfigError` where nothing can be written there.
    """
    if settings.trace.path is None:
        return None
    modes = dict.fromkeys([*ladder, *filter(supports, _EXACT)])
    header = Header(
        version=__version__,
        model=loaded.name,
        policy=policy,
        ladder=ladder,
        curves=make_curves(modes, loaded.model.groups, store.keep, loaded.model.max_context),
        slab_bytes=store.slab_bytes,
        budget_bytes=settings.memory.budget,
        max_running=settings.server.max_running,
        max_wait_s=settings.server.max_wait_s,
        min_dwell_s=settings.policy.min_dwell_s,
        max_age_s=settings.memory.max_age_s,
        began_s=round(time.time(), 3),
    )
    limits = settings.trace
    try:
        return Recorder(settings.trace.path, header, max_bytes=limits.max_bytes, hz=limits.hz)
    except OSError as error:
        why = f"cannot be written to: {error.strerror}"
        raise ConfigError(f"trace.path: {limits.path} {why}") from error


def make_curves(
    modes: Iterable[CacheMode], groups: tuple[LayerGroup, ...], keep: Keep, max_context: int
) -> dict[CacheMode, Curve]:
    """What one settled sequence weighs in each mode, up to any length."""

    def curve(mode: CacheMode) -> Curve:
        # A window that no sequence outgrows has no say.
        regular_from = costs.regular_from(mode, groups, keep, max_window=max_context)
        return measure(
            lambda n: costs.sequence_bytes(mode, n, groups, keep),
            regular_from=regular_from,
            period_tokens=BLOCK_TOKENS,
        )

    return {mode: curve(mode) for mode in modes}
