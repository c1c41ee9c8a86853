"""How long to stay before going up again; longer each time that going up was a mistake."""

MAX_FACTOR = 16
"""The wait never grows beyond so many times the configured one."""


class Dwell:
    """The wait between the last change and the next way up.

    A way up that is followed by a way down within two waits was a mistake and doubles the wait;
    one that lasted brings it back to `min_s`.
    """

    def __init__(self, min_s: float) -> None:
        self._min_s = min_s
        self.wait_s = min_s
        self._last_change_s = float("-inf")
        self._last_up_s = float("-inf")

    def set_min(self, min_s: float) -> None:
        """Wait so long from now on; earlier mistakes are forgotten, the last change is not."""
        self._min_s = self.wait_s = min_s

    def has_passed(self, time_s: float, since_s: float | None = None) -> bool:
        """Whether the wait is over since the last change, or since `since_s`."""
        return time_s - (self._last_change_s if since_s is None else since_s) >= self.wait_s

    def note_up(self, time_s: float) -> None:
        """The mode went up now."""
        self._last_change_s = self._last_up_s = time_s

    def note_down(self, time_s: float) -> None:
        """The mode went down now."""
        was_mistake = time_s - self._last_up_s < 2 * self.wait_s
        self.wait_s = min(2 * self.wait_s, MAX_FACTOR * self._min_s) if was_mistake else self._min_s
        self._last_change_s = time_s

    def forget(self) -> None:
        """The next way up need not wait: somebody ordered it by hand."""
        self.wait_s = self._min_s
        self._last_change_s = self._last_up_s = float("-inf")
