"""The command line. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete, 130 interrupted."""

from __future__ import annotations

from functools import partial

import typer

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
from producer.command_line import new_app, obey
from producer.edge import run
from producer.exit_codes import REFUSED

app = new_app()


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
    """Any command."""
    run(partial(obey, app))


if __name__ == "__main__":
    main()
