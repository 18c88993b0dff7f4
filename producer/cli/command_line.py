"""The command line, as Typer reads it."""

from __future__ import annotations

import typer
from typer.exceptions import Abort, TyperException

from gated_backfill.common.errors import UserError

HELP = (
    "Rebuild a dated table over a range of dates, in parallel; publish a date only after its coverage is recounted. "
    "Ranges include both ends. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete."
)


def create_app() -> typer.Typer:
    return typer.Typer(name="backfill", help=HELP, add_completion=False, pretty_exceptions_enable=False)


def invoke_app(app: typer.Typer) -> object:
    """Do what the command line says; returns the exit code. Raises `UserError` for words that say nothing."""
    try:
        return app(standalone_mode=False)
    except TyperException as exc:
        raise UserError(exc.format_message()) from exc
    except Abort as exc:
        raise UserError("nothing was started") from exc
