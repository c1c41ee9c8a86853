"""The page for people: one document that brings its style and its script with it.

It needs no other request, so that where a token is set the answer 401 can carry it: it asks for
the token and sends it with everything that it reads. See docs/dashboard.md.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

_MODULES = ("words", "recent", "draw", "charts", "lists", "figures", "say", "wire", "main")
"""In the order in which they need each other."""
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./\w+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """What is sent, with either status."""

    content: bytes
    headers: Mapping[str, str]


def make_page() -> Page:
    """The page as it stands in the files beside this one."""
    style, script = _read("style.css"), joined(*_MODULES)
    text = _read("page.html")
    text = text.replace("/* style */", style).replace("/* script */", script)
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": _policy(style, script),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "vary": "accept, authorization",
        "x-content-type-options": "nosniff",
    }
    return Page(text.encode(), headers)


def _policy(style: str, script: str) -> str:
    """This style and this script, requests to this service, a drawn icon: nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def joined(*names: str) -> str:
    """Modules as one, which is why their names must not clash."""
    texts = (_read(f"{name}.js") for name in names)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
