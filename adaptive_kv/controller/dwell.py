"""How long to stay before going up again; longer each time that going up was a mistake."""

MAX_FACTOR = 16
"""The wait never grows beyond so many times the configured one."""


class Dwell:
    """The wait between the last change and the next way up.

    A way up that is followed by a way down within two `min_s` was a mistake and doubles the wait;
    one that lasted brings it back to `min_s`. What is soon does not grow with the wait: else
    everybody else's memory, taken a minute later, would count as a mistake for hours.
    """

    def __init__(self, min_s: float) -> None:
        self.min_s = min_s
        self.wait_s = min_s
        self._last_change_s = float("-inf")
        self._last_up_s = float("-inf")

    def set_min(self, min_s: float) -> None:
        """Wait so long from now on; earlier mistakes are forgotten, the last change is not."""
        self.min_s = self.wait_s = min_s

    def has_passed(self, time_s: float, since_s: float | None = None) -> bool:
        """Whether the wait is over since the last change, or since `since_s`."""
        return time_s - (self._last_change_s if since_s is None else since_s) >= self.wait_s

    def note_up(self, time_s: float) -> None:
        """The mode went up now."""
        self._last_change_s = self._last_up_s = time_s

    def note_down(self, time_s: float) -> None:
        """The mode went down now."""
        was_mistake = time_s - self._last_up_s < 2 * self.min_s
        self.wait_s = min(2 * self.wait_s, MAX_FACTOR * self.min_s) if was_mistake else self.min_s
        self._last_change_s = time_s

    def forget(self) -> None:
        """The next way up need not wait: somebody ordered it by hand."""
        self.wait_s = self.min_s
        self._last_change_s = self._last_up_s = float("-inf")
