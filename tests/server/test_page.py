"""The page at `/`: who gets it, and what it may do."""

import base64
import hashlib
import re
from collections.abc import Iterator

import pytest
from server.pages import TOKEN, showing
from server.scripted import Served, serving

VISIT = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with showing(token=TOKEN) as served:
        yield served


def inline(kind: str, page: str) -> str:
    (text,) = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", page, re.DOTALL)
    return str(text)


def test_only_its_own_style_and_script_may_run() -> None:
    with serving() as served:
        answer = served.http.get("/", headers=VISIT)
    policy = dict(
        directive.split(" ", 1)
        for directive in answer.headers["content-security-policy"].split("; ")
    )
    for kind in ("style", "script"):
        digest = hashlib.sha256(inline(kind, answer.text).encode()).digest()
        assert policy.pop(f"{kind}-src") == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }


def test_it_names_no_other_place() -> None:
    with serving() as served:
        text = served.http.get("/", headers=VISIT).text
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "//" not in re.sub(r"^\s*//.*$|// .*$", "", text, flags=re.MULTILINE)
    assert re.findall(r"\son\w+=|\sstyle=|\ssrc=|innerHTML|eval\(", text) == []


def test_a_browser_is_refused_with_the_page_that_asks_for_the_token(guarded: Served) -> None:
    """The page is the same whoever asks, and so tells nothing."""
    refused = guarded.http.get("/", headers=VISIT)
    token = (b"authorization", f"Bearer {TOKEN}".encode())
    let_in = guarded.http.get("/", headers=[(b"accept", b"text/html"), token])
    assert (refused.status_code, let_in.status_code) == (401, 200)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.content == let_in.content
    assert "content-security-policy" in refused.headers


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/status"), ("GET", "/history"), ("POST", "/"), ("GET", "//")]
)
def test_only_a_visit_is_answered_with_the_page(guarded: Served, method: str, path: str) -> None:
    answer = guarded.http.request(method, guarded.url + path, headers=VISIT)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
