"""The page at `/` before a service that is worth looking at, and a browser that looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from browser import Seen, visiting
from playwright.sync_api import Browser, expect
from server.scripted import Served, make_status, serving
from statuses import FULL

from adaptive_kv.documents import DocumentMaker
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.engine.status import Health, PolicyStatus, SequenceStatus, Status
from adaptive_kv.policy import CacheMode, Cost, Latency, Load, Memory
from adaptive_kv.server.service import Documents

TOKEN = "correct hörse"
MIB = 2**20
MODES = tuple(
    map(CacheMode, "full int8 int4 window:512 window:512+int8 window:512+int4 disabled".split())
)
BROKEN = {"health": Health.DEGRADED, "policy": PolicyStatus(name="mine", status="faulty", faults=3)}


def busy_status(**changes: Any) -> Status:
    """A sequence in every mode, and one that is parked."""
    sequences = tuple(
        SequenceStatus(
            id=f"chatcmpl-{mode}-0",
            state="running",
            mode=mode,
            num_tokens=500,
            cache_bytes=4 * MIB,
            exact=mode.is_exact,
        )
        for mode in MODES
    )
    parked = SequenceStatus(
        id="p", state="parked", mode=FULL, num_tokens=9, cache_bytes=0, exact=True
    )
    memory = Memory(
        total_bytes=4096 * MIB,
        free_bytes=700 * MIB,
        floor_bytes=512 * MIB,
        weights_bytes=100 * MIB,
        cache_bytes=90 * MIB,
        source="file:/run/memory.json",
        sample_age_s=0.02,
    )
    told: dict[str, Any] = {
        "memory": memory,
        "latency": Latency(token_s=0.01, p50_s=0.0123, p95_s=0.045),
        "load": Load(running=7, waiting=1, tokens_per_s=410.0),
        "costs": {mode: Cost(bytes=MIB, token_s=0.01, exact=mode.is_exact) for mode in MODES},
        "num_sequences_by_mode": dict.fromkeys(MODES, 1),
        "sequences": (*sequences, parked),
    }
    return make_status(**(told | changes))


class RealDocuments:
    """Documents as they are published, of a boot that a test may change."""

    def __init__(self, boot_id: str = "00c0ffee") -> None:
        self.boot_id = boot_id

    def __call__(self, mailbox: Mailbox) -> Documents:
        """Of one service."""

        def maker() -> DocumentMaker:
            return DocumentMaker(lambda: mailbox.status, node="edge-7", boot_id=self.boot_id)

        return Documents(
            state=lambda: maker().state().to_json(),
            event=lambda record: maker().event(record).to_json(),
        )


@contextmanager
def showing(documents: RealDocuments | None = None, **settings: Any) -> Iterator[Served]:
    """A service that is worth looking at."""
    shown: dict[str, Any] = {"status": busy_status(), "num_events": 64} | settings
    with serving(make_documents=documents or RealDocuments(), **shown) as served:
        yield served


@contextmanager
def looking(browser: Browser, served: Served, **options: Any) -> Iterator[Seen]:
    """The page of a service without a token, once it shows figures."""
    with visiting(browser, served.url, **options) as seen:
        expect(seen.page.locator("#link")).to_have_text("live")
        yield seen


def enter(seen: Seen, token: str) -> None:
    seen.page.get_by_label("Token", exact=True).fill(token)
    seen.page.get_by_role("button", name="Open").click()


NUM_POINTS = "document.querySelector('#memory .cache')?.getAttribute('d').split(/[ML]/).length ?? 0"


def num_points(seen: Seen) -> int:
    """Of the chart of memory."""
    found: int = seen.page.evaluate(NUM_POINTS)
    return found
