"""Settings for maintenance: the times of beat's tasks, the audit, retention, and the cleanup of stale rows."""

from __future__ import annotations

from datetime import time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import DatedTable, parse_dated_tables

MAX_DAYS = 36500  #: in any setting, so that subtracting them from a date never fails


class MaintenanceSettings(BaseSettings):
    """The part of `Settings` for maintenance tasks."""

    timezone: str = "America/New_York"  #: the time zone of the daily times
    cleanup_at: time = time(4, 0)  #: time of the cleanup of stale rows; retention runs after it
    audit_at: time = time(6, 0)
    audit_days: int = Field(30, ge=1, le=3650)  #: days up to yesterday that beat audits
    maintenance_retry_seconds: int = Field(600, ge=1)  #: the wait before a failed maintenance task is tried again
    staging_days: int = Field(7, ge=1, le=MAX_DAYS)  #: how long staged files of ended runs are kept
    quarantine_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long quarantined files of ended runs are kept

    # cleanup of stale rows
    cleanup_tables: str = ""  #: tables to clean in addition to the stale tables that jobs declare
    cleanup_days: int = Field(7, ge=1, le=MAX_DAYS)  #: age of a date after which its rows are stale
    cleanup_max_share: float = Field(0.5, ge=0, le=1)  #: of a table's rows; a larger cleanup needs --allow-large
    cleanup_backup_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long a cleanup can be restored
    cleanup_unusual_rows: int = Field(10_000, ge=0)  #: a cleanup that deletes more raises an alert

    @field_validator("timezone")
    @classmethod
    def _validate_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError("is no time zone: write it as America/New_York") from exc
        return name

    @field_validator("cleanup_at", "audit_at")
    @classmethod
    def _validate_daily_time(cls, at: time) -> time:
        if at.tzinfo is not None:
            raise ValueError("is a time of BACKFILL_TIMEZONE: write it as 04:00, without an offset")
        return at

    @field_validator("cleanup_tables")
    @classmethod
    def _validate_cleanup_tables(cls, text: str) -> str:
        try:
            parse_dated_tables(text)
        except UserError:
            raise ValueError("write the tables as dataset.table or dataset.table:date_column, with commas") from None
        return text

    @property
    def tables_to_clean(self) -> tuple[DatedTable, ...]:
        return parse_dated_tables(self.cleanup_tables)
