"""Alerts: an outbox. An alert is recorded once for each key, then claimed by a sender and delivered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import Alert, NewAlert
from gated_backfill.common.ledger.tables import alerts
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import printable

PENDING, SENDING, SENT, FAILED, MUTED = "pending", "sending", "sent", "failed", "muted"
OPEN = (PENDING, SENDING)


class AlertStore(LedgerStore):
    """Alerts and the state of their delivery."""

    def record_alert(self, alert: NewAlert) -> bool:
        """Record the alert for delivery; returns False if its key was recorded before."""
        return bool(self.record_alerts([alert]))

    def record_alerts(self, new: Sequence[NewAlert]) -> list[NewAlert]:
        """Record alerts in one transaction, so that all are delivered together; returns those whose key is new."""
        while True:
            try:
                with self._write() as connection:
                    return _insert_new(connection, new)
            except IntegrityError:  # another process recorded one of the keys: the next attempt sees it
                continue

    def get_alert(self, key: str) -> Alert | None:
        with self._read() as connection:
            row = connection.execute(select(alerts).where(alerts.c.key == key)).mappings().one_or_none()
        return None if row is None else _alert_from_row(row)

    def list_latest_alerts(self, limit: int) -> list[Alert]:
        """Return the alerts recorded last, newest first."""
        query = select(alerts).order_by(alerts.c.created_at.desc(), alerts.c.id).limit(limit)
        with self._read() as connection:
            return [_alert_from_row(row) for row in connection.execute(query).mappings()]

    def claim_alerts(
        self, owner: str, until: datetime, *, is_dead: Callable[[str], bool], limit: int, now: datetime | None = None
    ) -> list[Alert]:
        """Claim up to `limit` alerts for one sender, oldest first.

        An alert can be claimed when it is due, or when its sender is dead or its lease has expired. Concurrent senders
        never claim the same alert. A sender may die after sending, so an alert may arrive twice, but is never lost.
        """
        moment = now or utcnow()
        due = and_(alerts.c.state == PENDING, or_(alerts.c.lease_until.is_(None), alerts.c.lease_until <= moment))
        query = select(alerts).where(or_(due, alerts.c.state == SENDING)).order_by(alerts.c.created_at, alerts.c.id)
        values = {"state": SENDING, "lease_owner": owner, "lease_until": until}
        claimed: list[Alert] = []
        with self._write() as connection:
            for row in connection.execute(query.with_for_update()).mappings().all():
                alert = _alert_from_row(row)
                is_leased = alert.state == SENDING and not _is_lost(alert, moment, is_dead)
                if not is_leased and len(claimed) < limit:
                    connection.execute(update(alerts).where(alerts.c.id == alert.id).values(values))
                    claimed.append(alert)
        return claimed

    def mark_sent(self, alert_id: str, owner: str, delivered: Sequence[str]) -> bool:
        """Record that every endpoint got the alert; returns False if the sender has lost its lease."""
        return self._release(
            alert_id, owner, {"state": SENT, "sent_at": utcnow(), "delivered": list(delivered), "error": None}
        )

    def mark_failed(
        self, alert_id: str, owner: str, error: str, *, delivered: Sequence[str], again_at: datetime | None
    ) -> bool:
        """Record a failed delivery; returns False if the sender has lost its lease.

        `delivered`: the endpoints that got the alert. `again_at`: when to retry; None abandons the alert.
        """
        state = FAILED if again_at is None else PENDING
        values: dict[str, Any] = {"state": state, "delivered": list(delivered), "error": error}
        return self._release(alert_id, owner, values, again_at=again_at)

    def fail_overdue_alerts(self, before: datetime, error: str) -> int:
        """Abandon the pending alerts recorded before the moment; returns how many."""
        return self._close(alerts.c.created_at < before, {"state": FAILED, "error": error})

    def mute_alerts(self, enabled_kinds: Collection[str]) -> int:
        """Mute the pending alerts of all kinds but the enabled ones; returns how many."""
        return self._close(alerts.c.kind.not_in(list(enabled_kinds)), {"state": MUTED})

    def delete_old_alerts(self, before: datetime) -> int:
        """Delete the alerts recorded before the moment, except pending ones; returns how many."""
        is_done = and_(alerts.c.state.not_in(OPEN), alerts.c.created_at < before)
        with self._write() as connection:
            return connection.execute(delete(alerts).where(is_done)).rowcount

    def _close(self, condition: ColumnElement[bool], values: Mapping[str, Any]) -> int:
        with self._write() as connection:
            is_pending = and_(alerts.c.state == PENDING, condition)
            return connection.execute(update(alerts).where(is_pending).values(dict(values))).rowcount

    def _release(
        self, alert_id: str, owner: str, values: Mapping[str, Any], *, again_at: datetime | None = None
    ) -> bool:
        has_lease = and_(alerts.c.id == alert_id, alerts.c.state == SENDING, alerts.c.lease_owner == owner)
        released = {**values, "attempts": alerts.c.attempts + 1, "lease_owner": None, "lease_until": again_at}
        with self._write() as connection:
            return bool(connection.execute(update(alerts).where(has_lease).values(released)).rowcount)


def _is_lost(alert: Alert, now: datetime, is_dead: Callable[[str], bool]) -> bool:
    assert alert.lease_owner is not None
    assert alert.lease_until is not None
    return alert.lease_until < now or is_dead(alert.lease_owner)


def _insert_new(connection: Connection, requested: Sequence[NewAlert]) -> list[NewAlert]:
    keys = [alert.key for alert in requested]
    recorded_keys = set(connection.execute(select(alerts.c.key).where(alerts.c.key.in_(keys))).scalars())
    new_alerts = [alert for alert in requested if alert.key not in recorded_keys]
    for alert in new_alerts:
        row = {"id": uuid4().hex, "state": PENDING, "created_at": utcnow(), "body": alert.body}
        values = {name: getattr(alert, name) for name in ("key", "kind", "title", "job", "run_id")}
        connection.execute(insert(alerts), row | values | {"title": printable(alert.title)})
    return new_alerts


def _alert_from_row(row: Mapping[Any, Any]) -> Alert:
    values: dict[str, Any] = {**row, "delivered": tuple(row["delivered"] or ())}
    return Alert(**values)
