"""One mode, whatever happens; the guard still holds."""

from adaptive_kv import CacheMode, Decision, Reading


class Fixed:
    """Always wants `mode`. Raises `UnknownModeError` if that is none."""

    def __init__(self, mode: str = "full") -> None:
        self._decision = Decision(CacheMode(mode), reason=f"fixed to {mode}")

    def __call__(self, _now: Reading) -> Decision:
        """Want the same as ever."""
        return self._decision
