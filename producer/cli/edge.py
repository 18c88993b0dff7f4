"""The edge of every command: what it raises becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INTERRUPTED, REFUSED


def run_and_exit(command: Callable[[], object]) -> NoReturn:
    """Do what was asked for, and exit with the code that it returns."""
    try:
        _refuse_no_text(sys.argv[1:])
        code = command()
    except BackfillError as exc:
        sys.stderr.write(f"backfill: {' '.join(str(exc).split())}\n")
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else COMPLETE)


def _refuse_no_text(words: Sequence[str]) -> None:
    """Raises `UserError` for bytes that are no text: nothing that a word could name is named so."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as exc:
            raise UserError(f"{word!a} is not UTF-8 text") from exc
