"""The ASGI application: which path goes where, and what every request passes first."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from adaptive_kv.config import ServerSettings
from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.tally import Tally
from adaptive_kv.events import EventLog
from adaptive_kv.server.completions import Completions
from adaptive_kv.server.dashboard import Page, make_page
from adaptive_kv.server.gates import BodyGate, HostGate, TokenGate
from adaptive_kv.server.metrics import make_registry
from adaptive_kv.server.refusals import EXCEPTION_HANDLERS
from adaptive_kv.server.routes import Routes
from adaptive_kv.server.service import (
    DEFAULT_PATIENCE,
    Documents,
    Patience,
    Prompts,
    Service,
)
from adaptive_kv.server.watch import Watch

OPEN_PATHS = frozenset({"/healthz"})
"""What needs no token."""


def make_app(
    *,
    client: EngineClient,
    prompts: Prompts,
    card: ModelCard,
    events: EventLog,
    documents: Documents,
    settings: ServerSettings,
    tally: Tally,
    cache_bytes: Callable[[], Mapping[str, int]],
    budget_bytes: int | None = None,
    patience: Patience = DEFAULT_PATIENCE,
) -> Starlette:
    """The application; `serve_http` runs it, and its `state.watch` beside it.

    Its `state.closing` event ends endless streams.
    """
    page = make_page()
    service = Service(
        client=client,
        prompts=prompts,
        card=card,
        events=events,
        documents=documents,
        watch=Watch(lambda: client.status, events),
        patience=patience,
        budget_bytes=budget_bytes,
    )
    app = Starlette(
        routes=_routes(service, make_registry(client, tally, service.watch, cache_bytes), page),
        middleware=_gates(settings, page),
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.closing = service.closing
    app.state.watch = service.watch
    return app


def _routes(service: Service, registry: CollectorRegistry, page: Page) -> list[Route]:
    completions = Completions(service)
    routes = Routes(service, registry, page)
    return [
        Route("/v1/chat/completions", completions.chat, methods=["POST"]),
        Route("/v1/completions", completions.complete, methods=["POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{name:path}", routes.model),
        Route("/healthz", routes.healthz),
        Route("/health", routes.healthz),
        Route("/readyz", routes.readyz),
        Route("/status", routes.status),
        Route("/events", routes.events),
        Route("/history", routes.history),
        Route("/metrics", routes.metrics),
        Route("/admin/mode", routes.mode, methods=["PUT", "DELETE"]),
        Route("/", routes.page),
    ]


def _gates(settings: ServerSettings, page: Page) -> list[Middleware]:
    """From the outside in."""
    gates = [
        Middleware(HostGate, host=settings.host, allowed_hosts=settings.allowed_hosts),
        Middleware(BodyGate, max_bytes=settings.max_body),
    ]
    if settings.token is not None:
        token = settings.token.get_secret_value()
        gates.insert(1, Middleware(TokenGate, token=token, open_paths=OPEN_PATHS, page=page))
    return gates
