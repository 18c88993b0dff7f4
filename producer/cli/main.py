"""The console script `backfill`: one group of commands; each is imported when it is called.

Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete, 130 interrupted.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from gated_backfill.common.errors import BackfillError, ExpectationIncomplete, UndoIncomplete, UserError
from gated_backfill.producer.terminal.error_line import print_error
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED, REFUSED

#: Module in this folder and help line of each command. The module defines a command or group of the command's name.
COMMANDS = {
    "plan": ("runs.plan", "Show what a run would do with each date. Launches nothing."),
    "run": ("runs.run", "Build the dates of a range and follow the run to its end."),
    "retry": ("runs.retry", "Build the dates that a run left blocked, failed or cancelled."),
    "status": ("runs.status", "Show the state of a run, and its incomplete dates."),
    "watch": ("runs.watch", "Follow a run to its end."),
    "logs": ("runs.logs", "Show the log lines and errors of a run's dates."),
    "pause": ("runs.control", "Pause a run: no further date is started."),
    "resume": ("runs.control", "Resume a paused run."),
    "cancel": ("runs.control", "Cancel a run; its unstarted dates are free for other runs."),
    "undo": ("runs.undo", "Restore the rows that a run replaced."),
    "history": ("runs.history", "Report coverage, fallbacks and durations over a period."),
    "jobs": ("tables.jobs", "List the installed jobs with their tables."),
    "dbt": ("tables.dbt", "Show which models of a dbt project are jobs."),
    "tables": ("tables.tables", "Create the target tables of jobs."),
    "load": ("tables.load", "Load a CSV or Parquet file into a table."),
    "coverage": ("tables.coverage", "Compare published rows with the expectation."),
    "kept": ("tables.kept", "List the rows that were replaced or removed, or put them back."),
    "cleanup": ("tables.cleanup", "Delete stale rows after a backup, or restore them."),
    "ledger": ("stack.ledger", "Migrate the ledger, or rebuild a lost one from the warehouse."),
    "doctor": ("stack.doctor", "Check that everything a run needs is in order."),
    "up": ("stack.up", "Start the stack: broker, workers, beat, Flower, metrics."),
    "down": ("stack.down", "Stop the stack that `backfill up` started."),
    "metrics": ("stack.metrics", "Serve metrics for Prometheus."),
    "alerts": ("stack.alerts", "List alerts and their delivery, or send a test."),
    "demo": ("stack.demo", "Replay the incident on a generated season of data."),
}


INCOMPLETE_ERRORS = (ExpectationIncomplete, UndoIncomplete)  #: after these, some dates are not complete


def load_command(name: str) -> click.Command:
    """Import the module of the command, and return the command."""
    module, _ = COMMANDS[name]
    gc.disable()  # collections during the imports would take a tenth of the CPU time of `backfill status`
    try:
        return getattr(import_module(f"gated_backfill.producer.cli.{module}"), name)
    finally:
        gc.freeze()
        gc.unfreeze()  # what was imported is now old: the next collection, of young objects, does not scan it
        gc.enable()


class CommandGroup(click.Group):
    """The group of all commands. Its help imports no command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: click.Command(name, short_help=help_line) for name, (_, help_line) in COMMANDS.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name, command, remaining = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, remaining

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # Click would report it as a declined confirmation
            sys.exit(INTERRUPTED)


@click.group("backfill", cls=CommandGroup, context_settings={"max_content_width": 160, "show_default": True})
@click.version_option(package_name="gated-backfill", message="backfill %(version)s", help="Print the version.")
def app() -> None:
    """Rebuild a dated table over a range of dates, in parallel; publish a date only after its coverage is recounted.

    Ranges include both ends. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete.
    """


def main() -> NoReturn:
    """Run the command line and exit with its code; an expected error becomes one line on stderr."""
    try:
        _check_utf8(sys.argv[1:])
        app(standalone_mode=False)
        sys.exit(COMPLETE)
    except NoArgsIsHelpError as exc:
        sys.stdout.write(f"{exc.format_message()}\n")
        sys.exit(REFUSED)
    except click.ClickException as exc:
        error, exit_code = exc.format_message(), REFUSED
    except BackfillError as exc:
        error, exit_code = str(exc), INCOMPLETE if isinstance(exc, INCOMPLETE_ERRORS) else REFUSED
    finally:
        if "duckdb" not in sys.modules:  # it warns at exit about objects that cannot be collected
            gc.freeze()  # Python's collections at exit would take a sixth of the CPU time of `backfill status`
    print_error(error)
    sys.exit(exit_code)


def _check_utf8(arguments: Sequence[str]) -> None:
    """Raise `UserError` for bytes that are not UTF-8: no job, table or date has such a name."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as exc:
            raise UserError(f"{argument!a} is not UTF-8 text") from exc


if __name__ == "__main__":
    main()
