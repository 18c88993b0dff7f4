"""Logs are events with fields, one JSON object a line,"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import structlog


def configure_logs(stream: TextIO | None = None) -> None:
    """Send events as JSON lines to the stream, or to standard error; called by the entry point of a process.

    A line is one write: `print` would need two where the stream is not buffered, and another process of the same log
    may write between them.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(stream or sys.__stderr__),
        cache_logger_on_first_use=False,
    )


@contextmanager
def logging_to_file(file: Path) -> Generator[None]:
    """Inside it, events are appended to the file, so that they do not stand between the lines a command prints."""
    before = structlog.get_config()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        configure_logs(stream)
        try:
            yield
        finally:
            structlog.configure(**before)
