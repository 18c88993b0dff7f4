"""`backfill alerts`: recorded alerts and their delivery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.table import Table

from gated_backfill.common.alerts.delivery import check_urls, send
from gated_backfill.common.alerts.endpoints import parse_endpoints
from gated_backfill.common.alerts.messages import Message
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import open_ledger_of_command
from gated_backfill.common.ledger.records import Alert
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.producer.cli.options import json_option
from gated_backfill.producer.context import current_user
from gated_backfill.producer.terminal.console import Console, line, make_console, print_json, stack_lines, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE


@click.group(invoke_without_command=True)
@click.option("--last", type=click.IntRange(1, 10_000), default=20, help="Number of alerts, the latest first.")
@json_option
@click.pass_context
def alerts(context: click.Context, last: int, as_json: bool) -> None:
    """List the latest alerts: their text, their state, and the last delivery error.

    Alerts go to the endpoints of BACKFILL_ALERTS: apprise URLs, separated by spaces.
    """
    if context.invoked_subcommand is not None:
        return
    rows = open_ledger_of_command(read_settings().ledger_url, only_looks=True).alerts.list_latest_alerts(last)
    if as_json:
        print_json([_alert_json(alert) for alert in rows])
    elif rows:
        _print_alerts(make_console(), rows)
    else:
        make_console().print("no alert was recorded yet")


@alerts.command("test")
@json_option
def send_test(as_json: bool) -> None:
    """Send a test message to every endpoint of BACKFILL_ALERTS and report each delivery.

    Exit codes: 0 all delivered, 2 no endpoint is set or a URL is wrong, 3 some were not delivered.
    """
    settings = read_settings()
    endpoints = parse_endpoints(settings)
    if not endpoints:
        raise UserError("BACKFILL_ALERTS is not set: alerts have no endpoint")
    check_urls(endpoints)
    body = f"sent by {current_user(settings)}: alerts of backfill arrive here."
    message = Message(title="backfill: this is a test", body=body)
    results = send([(endpoint, message) for endpoint in endpoints], settings.alert_timeout_seconds)
    if as_json:
        print_json(
            [
                {"endpoint": result.endpoint.name, "delivered": result.error is None, "error": result.error}
                for result in results
            ]
        )
    else:
        for result in results:
            failure = [styled("not delivered", "bold red"), f": {result.error}"]
            outcome = failure if result.error is not None else ["delivered"]
            make_console().print(line(f"{result.endpoint.name}  ", *outcome))
    raise SystemExit(INCOMPLETE if any(result.error for result in results) else COMPLETE)


def _print_alerts(console: Console, rows: Sequence[Alert]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("recorded", "kind", "state", "tries", "alert"):
        table.add_column(name, no_wrap=name != "alert", overflow="fold")
    for alert in rows:
        text = stack_lines(shorten(alert.title), *([styled(shorten(alert.error), "red")] if alert.error else []))
        table.add_row(f"{alert.created_at:%Y-%m-%d %H:%M:%S}", alert.kind, alert.state, str(alert.attempts), text)
    console.print(table)


def _alert_json(alert: Alert) -> dict[str, Any]:
    return {
        "key": alert.key,
        "kind": alert.kind,
        "state": alert.state,
        "job": alert.job,
        "run": alert.run_id,
        "title": alert.title,
        "body": alert.body,
        "tries": alert.attempts,
        "delivered_to": list(alert.delivered),
        "error": alert.error,
        "created_at": alert.created_at,
        "sent_at": alert.sent_at,
        "next_try_at": alert.lease_until if alert.state == "pending" else None,
    }
