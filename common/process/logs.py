"""Write log events as JSON, one object per line; records of libraries and jobs stay text."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import structlog

from gated_backfill.common.process.printable_text import printable_lines
from gated_backfill.common.process.private_files import make_private_folder, private_opener


def configure_logs(stream: TextIO | None = None) -> None:
    """Write events to the stream, or to standard error. Called by the entry point of a process.

    Each line is a single write, because other processes may append to the same log.
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


def open_log(file: Path) -> TextIO:
    """Open a log to append to it. Its folder and a new file are readable by their owner only: it names entities."""
    make_private_folder(file.parent)
    return open(file, "a", encoding="utf-8", opener=private_opener)


class PrintableFormatter(logging.Formatter):
    """Formats a record of Python's logging as another formatter does, so that only its first line is not indented."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(self._formatter.format(record))


def make_printable(logger: logging.Logger) -> None:
    """Have the logger's handlers write text that cannot forge a line of the log, or act on a terminal."""
    for handler in logger.handlers:
        handler.setFormatter(PrintableFormatter(handler.formatter))


@contextmanager
def logging_to_file(file: Path) -> Generator[None]:
    """Append events to the file inside this context, so that they do not mix with a command's output."""
    before = structlog.get_config()
    with open_log(file) as stream:
        configure_logs(stream)
        try:
            yield
        finally:
            structlog.configure(**before)
