"""Alerts: an outbox. They are written down first, each thing once, and delivered by whoever claims them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import Alert, NewAlert
from gated_backfill.common.ledger.tables import alerts
from gated_backfill.common.process.clock import utcnow

PENDING, SENDING, SENT, FAILED, MUTED = "pending", "sending", "sent", "failed", "muted"
OPEN = (PENDING, SENDING)


class AlertStore(LedgerStore):
    """What is to be told, each thing once, and what became of it."""

    def record_alert(self, alert: NewAlert) -> bool:
        """Write the alert down for delivery; returns False when one of its key was written before."""
        return bool(self.record_alerts([alert]))

    def record_alerts(self, new: Sequence[NewAlert]) -> list[NewAlert]:
        """Write alerts down at once, so that none is delivered without the others; returns those not written before."""
        while True:
            try:
                with self._write() as connection:
                    return _inserted(connection, new)
            except IntegrityError:  # somebody wrote one of them meanwhile, so the next look finds it
                continue

    def get_alert(self, key: str) -> Alert | None:
        """The alert of that key, if it was written down."""
        with self._read() as connection:
            row = connection.execute(select(alerts).where(alerts.c.key == key)).mappings().one_or_none()
        return None if row is None else alert_of(row)

    def list_latest_alerts(self, limit: int) -> list[Alert]:
        """The alerts written down last, newest first."""
        query = select(alerts).order_by(alerts.c.created_at.desc(), alerts.c.id).limit(limit)
        with self._read() as connection:
            return [alert_of(row) for row in connection.execute(query).mappings()]

    def claim_alerts(
        self, owner: str, until: datetime, *, is_dead: Callable[[str], bool], limit: int, now: datetime | None = None
    ) -> list[Alert]:
        """Take alerts to send them, oldest first: those due, and those whose sender is dead or past its lease.

        Of senders that claim at once, each alert goes to one. A sender that died may have sent what it held, so an
        alert can arrive twice, never not at all.
        """
        at = now or utcnow()
        due = and_(alerts.c.state == PENDING, or_(alerts.c.lease_until.is_(None), alerts.c.lease_until <= at))
        query = select(alerts).where(or_(due, alerts.c.state == SENDING)).order_by(alerts.c.created_at, alerts.c.id)
        values = {"state": SENDING, "lease_owner": owner, "lease_until": until}
        claimed: list[Alert] = []
        with self._write() as connection:
            for row in connection.execute(query.with_for_update()).mappings().all():
                alert = alert_of(row)
                held = alert.state == SENDING and not _is_lost(alert, at, is_dead)
                if not held and len(claimed) < limit:
                    connection.execute(update(alerts).where(alerts.c.id == alert.id).values(values))
                    claimed.append(alert)
        return claimed

    def mark_alert_sent(self, alert_id: str, owner: str, delivered: Sequence[str]) -> bool:
        """Note that every endpoint has the alert, if it is still this sender's."""
        return self._settle(
            alert_id, owner, {"state": SENT, "sent_at": utcnow(), "delivered": list(delivered), "error": None}
        )

    def mark_alert_failed(
        self, alert_id: str, owner: str, error: str, *, delivered: Sequence[str], again_at: datetime | None
    ) -> bool:
        """Note that some endpoint does not have the alert, if it is still this sender's.

        It is tried again at that moment, or given up with None.
        """
        state = FAILED if again_at is None else PENDING
        told: dict[str, Any] = {"state": state, "delivered": list(delivered), "error": error}
        return self._settle(alert_id, owner, told, again_at=again_at)

    def fail_overdue_alerts(self, before: datetime, why: str) -> int:
        """Fail the alerts that have waited since before that moment: it is too late to tell them."""
        return self._close(alerts.c.created_at < before, {"state": FAILED, "error": why})

    def mute_alerts(self, wanted: Collection[str]) -> int:
        """Set aside the waiting alerts of every kind but those."""
        return self._close(alerts.c.kind.not_in(list(wanted)), {"state": MUTED})

    def delete_old_alerts(self, before: datetime) -> int:
        """Remove the alerts written down before that moment that nobody is still to be told; returns how many."""
        over = and_(alerts.c.state.not_in(OPEN), alerts.c.created_at < before)
        with self._write() as connection:
            return connection.execute(delete(alerts).where(over)).rowcount

    def _close(self, which: ColumnElement[bool], values: Mapping[str, Any]) -> int:
        with self._write() as connection:
            waiting = and_(alerts.c.state == PENDING, which)
            return connection.execute(update(alerts).where(waiting).values(dict(values))).rowcount

    def _settle(
        self, alert_id: str, owner: str, values: Mapping[str, Any], *, again_at: datetime | None = None
    ) -> bool:
        ours = and_(alerts.c.id == alert_id, alerts.c.state == SENDING, alerts.c.lease_owner == owner)
        settled = {**values, "attempts": alerts.c.attempts + 1, "lease_owner": None, "lease_until": again_at}
        with self._write() as connection:
            return bool(connection.execute(update(alerts).where(ours).values(settled)).rowcount)


def _is_lost(alert: Alert, now: datetime, is_dead: Callable[[str], bool]) -> bool:
    assert alert.lease_owner is not None
    assert alert.lease_until is not None
    return alert.lease_until < now or is_dead(alert.lease_owner)


def _inserted(connection: Connection, new: Sequence[NewAlert]) -> list[NewAlert]:
    keys = [alert.key for alert in new]
    known = set(connection.execute(select(alerts.c.key).where(alerts.c.key.in_(keys))).scalars())
    fresh = [alert for alert in new if alert.key not in known]
    for alert in fresh:
        row = {**asdict(alert), "id": uuid4().hex, "state": PENDING, "created_at": utcnow()}
        connection.execute(insert(alerts), row)
    return fresh


def alert_of(row: Mapping[Any, Any]) -> Alert:
    values: dict[str, Any] = {**row, "delivered": tuple(row["delivered"] or ())}
    return Alert(**values)
