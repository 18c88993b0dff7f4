"""The command line. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete, 130 interrupted."""

from __future__ import annotations

from functools import partial

import typer

from gated_backfill.producer.cli.alerts import add_alert_commands
from gated_backfill.producer.cli.cleanup import add_cleanup_commands
from gated_backfill.producer.cli.command_line import create_app, invoke_app
from gated_backfill.producer.cli.control import add_control_commands
from gated_backfill.producer.cli.coverage import add_audit_commands
from gated_backfill.producer.cli.edge import run_and_exit
from gated_backfill.producer.cli.history import add_history_commands
from gated_backfill.producer.cli.look import add_look_commands
from gated_backfill.producer.cli.metrics import add_metrics_command
from gated_backfill.producer.cli.runs import add_run_commands
from gated_backfill.producer.cli.setup import add_setup_commands
from gated_backfill.producer.cli.tables import add_table_commands
from gated_backfill.producer.cli.up import add_up_commands
from gated_backfill.producer.terminal.exit_codes import REFUSED

app = create_app()


@app.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
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
    """Any command."""
    run_and_exit(partial(invoke_app, app))


if __name__ == "__main__":
    main()
