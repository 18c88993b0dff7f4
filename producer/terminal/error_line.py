"""The line on standard error that says what went wrong. Unlike the console, it does not import Rich."""

from __future__ import annotations

import sys

from gated_backfill.common.process.printable_text import shorten

ERROR_LENGTH = 4000  #: characters; an error may list many dates


def print_error(text: str) -> None:
    sys.stderr.write(f"backfill: {shorten(' '.join(text.split()), ERROR_LENGTH)}\n")
