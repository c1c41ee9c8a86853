"""Writes the table of metrics in docs/metrics.md, as the service exposes them.

python tools/make_metrics.py            write it
python tools/make_metrics.py --check    fail when it is stale
"""

import argparse
from pathlib import Path

from adaptive_kv.server.metrics import METRICS, PREFIX

_FILE = Path(__file__).parents[1] / "docs" / "metrics.md"
_BEGIN, _END = "<!-- begin table -->\n", "<!-- end table -->\n"


def table() -> str:
    """One line for every metric."""
    lines = ["| metric | type | labels | what it tells |", "|---|---|---|---|"]
    for name, told in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in told.labels)
        lines.append(f"| `{PREFIX}{name}` | {told.type} | {labels} | {told.help} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """The document with the table of now."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}{_END}{after}"


def main() -> int:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    is_check = parser.parse_args().check
    text = _FILE.read_text("utf-8")
    if renewed(text) == text:
        return 0
    if is_check:
        print("docs/metrics.md is stale; run: python tools/make_metrics.py")
        return 1
    _FILE.write_text(renewed(text), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
