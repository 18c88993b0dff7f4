"""Logs are events with fields, one JSON object a line, on standard error."""

from __future__ import annotations

import sys

import structlog


def configure_logs() -> None:
    """Send events as JSON lines to standard error; called once, by the entry point of a process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
        cache_logger_on_first_use=False,
    )
