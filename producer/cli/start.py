"""The console script: it imports what the command that is asked for needs, and no other's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from gated_backfill.common.process.imports import freeze_imports

if TYPE_CHECKING:
    from typer import Typer

LOOK, RUNS = (
    ("gated_backfill.producer.cli.look", "add_look_commands"),
    ("gated_backfill.producer.cli.runs", "add_run_commands"),
)
#: Commands that are asked for over and over, each with the module that has it and what adds it to a command line.
QUICK = {"status": LOOK, "watch": LOOK, "plan": RUNS, "run": RUNS}
ONLY_LOOKING = frozenset({"status", "plan"})  #: commands that have closed what they had opened when they end


def main() -> None:
    words = sys.argv[1:]
    command = next(iter(words), "")
    if command in ONLY_LOOKING:  # which validate nothing but settings: plugins are looked for in all that is installed
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with freeze_imports():
        from gated_backfill.producer.cli.edge import run_and_exit

        asked = _asked(words)
    try:
        run_and_exit(asked)
    except SystemExit as end:
        if command in ONLY_LOOKING:
            _leave(end)
        raise


def _asked(words: Sequence[str]) -> Callable[[], object]:
    """What the words ask for. To tell that no option is among them takes no parser, which takes long to import."""
    match words:
        case ["status", *runs] if len(runs) <= 1 and not any(run.startswith("-") for run in runs):
            from gated_backfill.producer.terminal.run_status import show_status

            return partial(show_status, *runs)
        case _:
            from gated_backfill.producer.cli.command_line import invoke_app

            return partial(invoke_app, _app_with(next(iter(words), "")))


def _app_with(command: str) -> Typer:
    """A command line that has the command, if there is one of that name."""
    if command not in QUICK:
        from gated_backfill.producer.cli.main import app

        return app
    from gated_backfill.producer.cli.command_line import create_app

    module, add_commands = QUICK[command]
    app = create_app()
    getattr(import_module(module), add_commands)(app)
    return app


def _leave(end: SystemExit) -> None:
    """End at once: to take apart all that was imported takes as long as half of what `status` does.

    Returns where there may be something left to do.
    """
    from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

    if end.code not in (COMPLETE, INCOMPLETE):
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads on: Python knows how to say so
        return
    os._exit(end.code)
