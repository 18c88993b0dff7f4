"""The time, always aware and in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime


def utcnow() -> datetime:
    return datetime.now(UTC)


def today() -> date:
    """Today's date in UTC: the last date a backfill may ask for."""
    return utcnow().date()
