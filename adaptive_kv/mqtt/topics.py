"""Where a node publishes."""

import re
from dataclasses import dataclass

from adaptive_kv.errors import ConfigError

_BASE = re.compile(r"[^$+#/\s\0][^+#/\s\0]*(/[^+#/\s\0]+)*")
_NODE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def is_node(name: str) -> bool:
    """Whether a node may be called so."""
    return _NODE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics `<base>/v1/<node>/...` of one node.

    Raises `ConfigError` for a base or a node that would reach into somebody else's topics.
    """

    base: str
    node: str

    def __post_init__(self) -> None:
        if _BASE.fullmatch(self.base) is None:
            raise ConfigError(
                f"{self.base!r} cannot begin topics; use words without + # $ or spaces, with / "
                "between them"
            )
        if not is_node(self.node):
            raise ConfigError(
                f"{self.node!r} is no name for a node; use up to 63 of a-z 0-9 _ - and begin with "
                "a letter or a digit"
            )

    @property
    def availability(self) -> str:
        """Retained `online` or `offline`; also the last will."""
        return self._of("availability")

    @property
    def info(self) -> str:
        """Retained; seldom changes."""
        return self._of("info")

    @property
    def state(self) -> str:
        """Retained; the current truth."""
        return self._of("state")

    @property
    def event(self) -> str:
        """One message per event."""
        return self._of("event")

    @property
    def commands(self) -> str:
        """What to subscribe to in order to hear all commands."""
        return self.command("+")

    def command(self, name: str) -> str:
        """Where one command is heard."""
        return self._of(f"cmd/{name}")

    @property
    def result(self) -> str:
        """One answer per command."""
        return self._of("cmd-result")

    @property
    def discovery(self) -> str:
        """Retained; where Home Assistant looks for this node."""
        return f"homeassistant/device/{self.node}/config"

    @property
    def all(self) -> str:
        """What to subscribe to in order to hear everything of this node."""
        return self._of("#")

    @property
    def client_id(self) -> str:
        """The name of this node's connection; a broker keeps one connection per name."""
        return f"{self.base.replace('/', '-')}-{self.node}"

    def _of(self, kind: str) -> str:
        return f"{self.base}/v1/{self.node}/{kind}"
