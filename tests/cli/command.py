"""The installed command, and an environment that configures nothing."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("adaptive-kv"))


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what configures the command, in a home of its own."""
    ours = {name: value for name, value in os.environ.items() if "ADAPTIVE_KV" not in name}
    return ours | {"HOME": str(home), "COLUMNS": "100", "NO_COLOR": "1"} | dict(extra or {})
