"""Terminal output and confirmation questions: everything that a command prints and is not JSON passes through here."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console as RichConsole  # noqa: TID251 - the base of ours
from rich.text import Text  # noqa: TID251 - made printable here

from gated_backfill.common.errors import UserError
from gated_backfill.common.process.printable_text import printable

WIDTH_WITHOUT_TERMINAL = 160  #: columns
StyledText = Text  #: what `styled` and `line` return


class Console(RichConsole):
    """A console on which text is literal, printable and on one line, whatever it holds.

    Brackets are no markup: `styled` gives text a style. Only the cells of tables are wrapped, because the rest of a
    wrapped line would look like a line of its own.
    """

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        is_text = all(isinstance(shown, str | Text) for shown in objects)
        super().print(*objects, soft_wrap=is_text if soft_wrap is None else soft_wrap, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        options["markup"] = False
        return super().render_str(printable(text), **options)


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """Make a console on stdout, or stderr. `options` are those of Rich."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    defaults: dict[str, Any] = {"stderr": stderr, "width": width, "highlight": False, "emoji": False}
    return Console(**defaults | options)


def styled(text: str, style: str) -> Text:
    """Return the text in a style of Rich, such as `bold red`."""
    return Text(printable(text), style)


def line(*parts: str | Text) -> Text:
    """Return a line of parts, some of them made by `styled`."""
    return Text.assemble(*(printable(part) if isinstance(part, str) else part for part in parts))


def stack_lines(*lines: str | Text) -> Text:
    """Return several lines as the content of one cell."""
    return Text("\n").join(map(line, lines))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def confirm(yes: bool, question: str, action: str) -> None:
    """Ask unless `yes`. Raises `UserError` "nothing was {action}" if the user declines or there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"nothing was {action}: there is no terminal to ask at; confirm with --yes")
    try:
        is_confirmed = click.confirm(printable(question), err=True)
    except click.Abort:
        is_confirmed = False
    if not is_confirmed:
        raise UserError(f"nothing was {action}")
