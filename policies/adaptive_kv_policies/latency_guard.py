"""Another policy, made faster where tokens come too slowly and memory permits a faster mode."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptive_kv import CacheMode, Decision, Policy, Reading
from adaptive_kv.loader import load_policy


class LatencyGuard:
    """Keeps the 95th percentile of seconds per token under `target_s`, on top of `policy`.

    `policy` (a name, made with `options`, or anything that can be called) decides about memory.
    Where tokens come too slowly, or would in the mode that it wants, another one of the ladder
    is taken that needs no more bytes and is faster as measured on this box: the highest that
    keeps `margin` times the target, else the fastest. Raises `ValueError` for a target or margin
    that makes no sense, `PolicyError` if there is no such policy.
    """

    def __init__(
        self,
        target_s: float = 0.05,
        policy: str | Policy = "ladder",
        options: Mapping[str, Any] | None = None,
        margin: float = 0.8,
    ) -> None:
        if not (target_s > 0 and 0 < margin <= 1):
            raise ValueError("give a target_s above 0 and a margin above 0, at most 1")
        self._target_s, self._margin = target_s, margin
        self._policy = load_policy(policy, options or {})[0] if isinstance(policy, str) else policy

    def __call__(self, now: Reading) -> Decision | None:
        """Decide; None is hold."""
        decision = self._policy(now)
        wanted = CacheMode(decision.mode) if decision else now.mode
        if not self._is_slow(now, wanted):
            return decision
        faster = self._faster(now, wanted)
        if faster is None:
            return decision
        reason = f"{wanted} is too slow"
        return replace(decision, mode=faster, reason=reason) if decision else _to(faster, reason)

    def _is_slow(self, now: Reading, wanted: CacheMode) -> bool:
        """By what is seen for the mode of now, by what is expected for another one."""
        if wanted == now.mode:
            return now.latency.p95_s is not None and now.latency.p95_s > self._target_s
        expected_s = now.costs[wanted].token_s if wanted in now.costs else None
        return expected_s is not None and expected_s > self._margin * self._target_s

    def _faster(self, now: Reading, wanted: CacheMode) -> CacheMode | None:
        """The mode to take instead of `wanted`; None where none is known to be faster."""
        if wanted not in now.costs or now.costs[wanted].token_s is None:
            return None
        most = now.costs[wanted]
        known_s = {
            mode: now.costs[mode].token_s or 0.0
            for mode in now.ladder
            if now.costs[mode].token_s is not None and now.costs[mode].bytes <= most.bytes
        }
        faster_s = {mode: s for mode, s in known_s.items() if s < (most.token_s or 0.0)}
        enough = [mode for mode, s in faster_s.items() if s <= self._margin * self._target_s]
        return enough[0] if enough else min(faster_s, key=faster_s.__getitem__, default=None)


def _to(mode: CacheMode, reason: str) -> Decision:
    return Decision(mode, reason)
