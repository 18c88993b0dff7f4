"""Alerts as they are written down; delivering them is somebody else's work."""

from __future__ import annotations

from dataclasses import asdict
from uuid import uuid4

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from common.clock import utcnow
from common.ledger.database import Database
from common.ledger.records import NewAlert
from common.ledger.tables import alerts


class Notices(Database):
    """An outbox: what is to be told, each thing once."""

    def record_alert(self, alert: NewAlert) -> bool:
        """Write the alert down for delivery; returns False when one of its key was written before."""
        row = {**asdict(alert), "id": uuid4().hex, "state": "pending", "created_at": utcnow()}
        try:
            with self._write() as connection:
                connection.execute(insert(alerts), row)
        except IntegrityError:
            return False
        return True
