"""Logging: structlog for us, and the same look for every library that uses the standard one.

Nothing here shows local variables, and libraries never log below INFO: prompts stay out.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from adaptive_kv.journal import JournalHandler, is_journal
from adaptive_kv.settings import LogSettings

_LIBRARIES = ("aiomqtt", "asyncio", "httpcore", "httpx", "mqtt", "numba", "transformers", "uvicorn")


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all log records of this process to `stream` (standard error), in one format.

    Where that is systemd's journal, and the format is `auto`, they become entries with fields.
    Replaces the handlers of the root logger and sends warnings there too. May be called again.
    """
    handler = _handler(settings, stream)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root = logging.getLogger()
    for before in root.handlers:
        if isinstance(before, JournalHandler):
            before.close()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.INFO))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def adopt_transformers() -> None:
    """Take away the handler that transformers gives itself, and its bars.

    Imports transformers, so that it is called only where a model is loaded.
    """
    from transformers.utils import logging as library  # noqa: PLC0415 - takes half a second

    level = logging.getLogger("transformers").level
    library.disable_default_handler()
    library.enable_propagation()
    library.set_verbosity(max(level, logging.WARNING))
    library.disable_progress_bar()  # type: ignore[no-untyped-call]


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the time: a live display takes its place for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _handler(settings: LogSettings, stream: TextIO | None) -> logging.Handler:
    out = sys.stderr if stream is None else stream
    is_terminal = out.isatty()
    is_console = settings.format == "console" or (settings.format == "auto" and is_terminal)
    if settings.format == "auto" and stream is None and is_journal(sys.stderr):
        handler: logging.Handler = JournalHandler()
    else:
        handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(_formatter(is_console, is_terminal))
    return handler


def _shared() -> list[Processor]:
    """What every record goes through, ours and the libraries'."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(is_console: bool, colors: bool) -> logging.Formatter:
    renderers: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if is_console:
        plain = structlog.dev.plain_traceback
        renderers += [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    else:
        renderers += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    return structlog.stdlib.ProcessorFormatter(processors=renderers, foreign_pre_chain=_shared())
