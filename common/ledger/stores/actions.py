"""Who did what to a run, and why: rows that are added in the transaction of what was done, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import ActionRow
from gated_backfill.common.ledger.states import RunAction
from gated_backfill.common.ledger.tables import actions
from gated_backfill.common.process.clock import utcnow

CONTROL_ACTIONS = (RunAction.PAUSED, RunAction.RESUMED, RunAction.CANCELLED)  #: what is ordered of a run on its way


class ActionStore(LedgerStore):
    """The actions on runs."""

    def list_actions(self, run_id: str) -> list[ActionRow]:
        """Everything that was done to the run, oldest first."""
        query = select(actions).where(actions.c.run_id == run_id).order_by(actions.c.id)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            ActionRow(
                run_id=row["run_id"],
                action=RunAction(row["action"]),
                by=row["by"],
                reason=row["reason"],
                details=row["details"],
                at=row["at"],
            )
            for row in rows
        ]


def describe_action(one: ActionRow) -> str:
    """What somebody did, who, and why: `cancelled by ada: the source is being reloaded`."""
    options = ", ".join(f"--{name}" for name, given in one.details.items() if given is True)
    why = f": {one.reason}" if one.reason else ""
    return f"{one.action.value} by {one.by}{why}" + (f" ({options})" if options else "")


def describe_cancellation(by: str, reason: str | None) -> str:
    """Who cancelled a run, and why."""
    return f"cancelled by {by}: {reason}" if reason else f"cancelled by {by}"


def cancellation_reason(connection: Connection, run_id: str) -> str:
    """Who cancelled the run last, and why."""
    query = select(actions.c.by, actions.c.reason).where(
        actions.c.run_id == run_id, actions.c.action == RunAction.CANCELLED.value
    )
    row = connection.execute(query.order_by(actions.c.id.desc()).limit(1)).one_or_none()
    return describe_cancellation(row.by, row.reason) if row is not None else "cancelled"


def has_discard_request(connection: Connection, run_id: str) -> bool:
    """Whether somebody cancelled the run with what is staged."""
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
    """Add an action in the transaction of what it tells of: it is there exactly if that was done."""
    row = {"run_id": run_id, "action": action.value, "by": by, "reason": reason}
    connection.execute(insert(actions), row | {"details": dict(details or {}), "at": utcnow()})
