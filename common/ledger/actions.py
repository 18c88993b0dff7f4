"""Who did what to a run, and why: rows that are added in the transaction of what was done, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from common.clock import utcnow
from common.ledger.database import Database
from common.ledger.records import ActionRow
from common.ledger.states import Action
from common.ledger.tables import actions


class Actions(Database):
    """The actions on runs."""

    def actions(self, run_id: str) -> list[ActionRow]:
        """Everything that was done to the run, oldest first."""
        query = select(actions).where(actions.c.run_id == run_id).order_by(actions.c.id)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            ActionRow(
                run_id=row["run_id"],
                action=Action(row["action"]),
                by=row["by"],
                reason=row["reason"],
                details=row["details"],
                at=row["at"],
            )
            for row in rows
        ]


def record_action(
    connection: Connection,
    run_id: str,
    action: Action,
    *,
    by: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add an action in the transaction of what it tells of: it is there exactly if that was done."""
    row = {"run_id": run_id, "action": action.value, "by": by, "reason": reason}
    connection.execute(insert(actions), row | {"details": dict(details or {}), "at": utcnow()})
