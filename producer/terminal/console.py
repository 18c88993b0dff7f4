"""Terminal output and confirmation questions."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from gated_backfill.common.errors import UserError

WIDTH_WITHOUT_TERMINAL = 160  #: columns


def make_console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)


def plain_line(text: str) -> str:
    """Return a text as the markup that shows it literally and on one line, as the text of an error may have several."""
    return escape(" ".join(text.splitlines()))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def confirm(yes: bool, question: str, action: str) -> None:
    """Ask unless `yes`. Raises `UserError` "nothing was {action}" if the user declines or there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"nothing was {action}: there is no terminal to ask at; confirm with --yes")
    try:
        is_confirmed = click.confirm(question, err=True)
    except click.Abort:
        is_confirmed = False
    if not is_confirmed:
        raise UserError(f"nothing was {action}")
