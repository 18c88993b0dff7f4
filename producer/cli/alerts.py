"""The commands about alerts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.options import AsJson
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from gated_backfill.common.ledger import Alert

alerts = typer.Typer(
    help="What was told to whom, and what could not be delivered. Alerts go to the endpoints of BACKFILL_ALERTS: "
    "apprise URLs, separated by spaces."
)


def add_alert_commands(app: typer.Typer) -> None:
    app.add_typer(alerts, name="alerts")


@alerts.callback(invoke_without_command=True)
def list_alerts(
    context: typer.Context,
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="List so many, the latest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the latest alerts: what they say, whether they were delivered, and why not."""
    if context.invoked_subcommand is not None:
        return
    from gated_backfill.common.ledger import open_ledger

    found = open_ledger(read_settings().ledger_url).alerts.list_latest_alerts(last)
    if as_json:
        print_json([_alert_json(one) for one in found])
    elif found:
        _print_alerts(make_console(), found)
    else:
        make_console().print("no alert was written down yet")


@alerts.command(name="test")
def send_test(as_json: AsJson = False) -> None:
    """Send a test message to every endpoint of BACKFILL_ALERTS and say of each whether it took it.

    Exit codes: 0 all took it, 2 no endpoint is set or a URL is wrong, 3 some did not take it.
    """
    from gated_backfill.common.alerts.delivery import check_urls, send
    from gated_backfill.common.alerts.endpoints import parse_endpoints
    from gated_backfill.common.alerts.messages import Message
    from gated_backfill.producer.context import current_user

    settings = read_settings()
    places = parse_endpoints(settings)
    if not places:
        raise UserError("BACKFILL_ALERTS is not set: there is nobody to tell")
    check_urls(places)
    message = Message(
        title="backfill: this is a test", body=f"{current_user()} asked for it: alerts of backfill arrive here."
    )
    sent = send([(place, message) for place in places], settings.alert_timeout_seconds)
    if as_json:
        print_json(
            [{"endpoint": one.endpoint.name, "delivered": one.error is None, "error": one.error} for one in sent]
        )
    else:
        for one in sent:
            said = "delivered" if one.error is None else f"[bold red]not delivered[/bold red]: {escape(one.error)}"
            make_console().print(f"{escape(one.endpoint.name)}  {said}", soft_wrap=True)
    raise typer.Exit(INCOMPLETE if any(one.error for one in sent) else COMPLETE)


def _print_alerts(console: Console, found: Sequence[Alert]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("written down", "kind", "state", "tries", "what"):
        table.add_column(name, no_wrap=name != "what", overflow="fold")
    for one in found:
        what = escape(one.title) + (f"\n[red]{escape(one.error)}[/red]" if one.error else "")
        table.add_row(f"{one.created_at:%Y-%m-%d %H:%M:%S}", one.kind, one.state, str(one.attempts), what)
    console.print(table)


def _alert_json(one: Alert) -> dict[str, Any]:
    return {
        "key": one.key,
        "kind": one.kind,
        "state": one.state,
        "job": one.job,
        "run": one.run_id,
        "title": one.title,
        "body": one.body,
        "tries": one.attempts,
        "delivered_to": list(one.delivered),
        "error": one.error,
        "created_at": one.created_at,
        "sent_at": one.sent_at,
        "next_try_at": one.lease_until if one.state == "pending" else None,
    }
