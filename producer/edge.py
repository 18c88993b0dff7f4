"""The edge of every command: what it raises becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import Abort, TyperException

from common.errors import BackfillError, UserError
from producer.exit_codes import COMPLETE, INTERRUPTED, REFUSED

HELP = (
    "Rebuild a dated table over a range of dates, in parallel; publish a date only after its coverage is recounted. "
    "Ranges include both ends. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete."
)


def new_app() -> typer.Typer:
    return typer.Typer(name="backfill", help=HELP, add_completion=False, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> NoReturn:
    """Do what the command line says, and exit."""
    try:
        _refuse_no_text(sys.argv[1:])
        code = app(standalone_mode=False)
    except BackfillError as exc:
        _fail(str(exc))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TyperException as exc:
        _fail(exc.format_message())
    except Abort:
        _fail("nothing was started")
    sys.exit(code if isinstance(code, int) else COMPLETE)


def _refuse_no_text(words: Sequence[str]) -> None:
    """Raises `UserError` for bytes that are no text: nothing that a word could name is named so."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as exc:
            raise UserError(f"{word!a} is not UTF-8 text") from exc


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"backfill: {' '.join(message.split())}\n")
    sys.exit(REFUSED)
