"""The command line. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import Abort, TyperException

from common.errors import BackfillError, UserError
from producer.cli_alerts import add_alert_commands
from producer.cli_audit import add_audit_commands
from producer.cli_cleanup import add_cleanup_commands
from producer.cli_control import add_control_commands
from producer.cli_history import add_history_commands
from producer.cli_look import add_look_commands
from producer.cli_metrics import add_metrics_command
from producer.cli_runs import add_run_commands
from producer.cli_setup import add_setup_commands
from producer.cli_tables import add_table_commands
from producer.cli_up import add_up_commands
from producer.exit_codes import COMPLETE, INTERRUPTED, REFUSED

app = typer.Typer(
    name="backfill",
    help="Rebuild a dated table over a range of dates, in parallel; publish a date only after its coverage is "
    "recounted. Ranges include both ends. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not "
    "complete.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(REFUSED)


add_run_commands(app)
add_control_commands(app)
add_look_commands(app)
add_table_commands(app)
add_setup_commands(app)
add_audit_commands(app)
add_alert_commands(app)
add_metrics_command(app)
add_up_commands(app)
add_cleanup_commands(app)
add_history_commands(app)


def main() -> None:
    """The console script: errors become one line and an exit code."""
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


if __name__ == "__main__":
    main()
