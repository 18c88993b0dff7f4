"""Actions on runs: who did what, when and why. Rows are only added, in the transaction of the action itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import ActionRow
from gated_backfill.common.ledger.states import RunAction
from gated_backfill.common.ledger.tables import actions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import printable_name, shorten

CONTROL_ACTIONS = (RunAction.PAUSED, RunAction.RESUMED, RunAction.CANCELLED)  #: actions on a run after its launch


class ActionStore(LedgerStore):
    """The actions that were taken on runs."""

    def list_actions(self, run_id: str) -> list[ActionRow]:
        """Return the actions on the run, oldest first."""
        columns = [column for column in actions.c if column is not actions.c.id]
        query = select(*columns).where(actions.c.run_id == run_id).order_by(actions.c.id)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        records: list[dict[str, Any]] = [{**row, "action": RunAction(row["action"])} for row in rows]
        return [ActionRow(**values) for values in records]


def describe_action(row: ActionRow) -> str:
    """Return an action as one line, e.g. `cancelled by ada: the source is being reloaded`."""
    options = ", ".join(f"--{name}" for name, value in row.details.items() if value is True)
    reason = f": {shorten(row.reason)}" if row.reason else ""
    return f"{row.action.value} by {printable_name(row.by)}{reason}" + (f" ({options})" if options else "")


def describe_cancellation(by: str, reason: str | None) -> str:
    """Return the reason that a cancelled date gets."""
    return f"cancelled by {by}: {reason}" if reason else f"cancelled by {by}"


def cancellation_reason(connection: Connection, run_id: str) -> str:
    """Return the reason of the run's latest cancellation."""
    query = select(actions.c.by, actions.c.reason).where(
        actions.c.run_id == run_id, actions.c.action == RunAction.CANCELLED.value
    )
    row = connection.execute(query.order_by(actions.c.id.desc()).limit(1)).one_or_none()
    return describe_cancellation(row.by, row.reason) if row is not None else "cancelled"


def has_discard_request(connection: Connection, run_id: str) -> bool:
    """Return whether the run was cancelled with `--discard`."""
    query = select(actions.c.details).where(actions.c.run_id == run_id, actions.c.action == RunAction.CANCELLED.value)
    return any(details.get("discard") for details in connection.execute(query).scalars())


def record_action(
    connection: Connection,
    run_id: str,
    action: RunAction,
    *,
    by: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add an action within the transaction that carries it out."""
    row = {"run_id": run_id, "action": action.value, "by": by, "reason": reason}
    connection.execute(insert(actions), row | {"details": dict(details or {}), "at": utcnow()})
