"""The operator's log: one JSON object a line on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog


def configure_logs() -> None:
    """Once a process, before it serves. What may be logged is decided where it is logged."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def _line(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)
