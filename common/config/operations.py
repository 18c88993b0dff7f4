"""Settings for operations: audit, alerts, beat, Flower, metrics and the cleanup of stale rows."""

from __future__ import annotations

from datetime import time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.alert_kinds import ALERT_KINDS, parse_alert_kinds
from gated_backfill.common.model.tables import DatedTable, parse_dated_tables

MAX_DAYS = 36500  #: in any setting, so that subtracting them from a date never fails


class OperationsSettings(BaseSettings):
    """The part of `Settings` for scheduled tasks, alerts and monitoring."""

    # audit
    audit_days: int = Field(30, ge=1, le=3650)  #: days up to yesterday that beat audits
    # alerts
    alerts: SecretStr | None = None  #: apprise URLs, separated by white space or commas; None: no endpoint
    alert_kinds: str | None = None  #: the kinds to deliver, separated by commas; None delivers all
    alert_timeout_seconds: float = Field(10.0, gt=0, le=120)  #: for sending to all endpoints together
    alert_retry_seconds: float = Field(60.0, ge=0)  #: the first wait before a retry; it doubles each time

    # beat, Flower and `backfill up`
    timezone: str = "America/New_York"  #: the time zone of the daily times
    cleanup_at: time = time(4, 0)  #: time of the cleanup of stale rows; retention runs after it
    audit_at: time = time(6, 0)
    maintenance_retry_seconds: int = Field(600, ge=1)  #: the wait before a failed maintenance task is tried again
    staging_days: int = Field(7, ge=1, le=MAX_DAYS)  #: how long staged files of ended runs are kept
    quarantine_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long quarantined files of ended runs are kept
    flower_address: str = "127.0.0.1"  #: address that Flower listens on; 0.0.0.0: every interface
    flower_port: int = Field(5555, ge=1, le=65535)
    flower_user: str = "backfill"
    flower_password: SecretStr | None = None  #: None: `backfill up` generates one
    metrics_user: str = "backfill"
    metrics_password: SecretStr | None = None  #: for /metrics; None: only this machine can read it
    metrics_port: int = Field(9808, ge=1, le=65535)  #: port of `backfill up`, on this machine only
    stop_seconds: float = Field(30.0, ge=0)  #: time that tasks in progress have when a stack is stopped

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

    @field_validator("flower_user", "metrics_user")
    @classmethod
    def _validate_user(cls, user: str) -> str:
        if not user or "," in user or ":" in user:
            raise ValueError("must not be empty or contain a comma or a colon")
        return user

    @field_validator("flower_password")
    @classmethod
    def _validate_flower_password(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and (not password.get_secret_value() or "," in password.get_secret_value()):
            raise ValueError("must not be empty or contain a comma, where Flower would split it")
        return password

    @field_validator("metrics_password")
    @classmethod
    def _empty_password_is_unset(cls, password: SecretStr | None) -> SecretStr | None:
        """Return None for an empty password: in a compose file, an unset variable is empty."""
        return password if password is not None and password.get_secret_value() else None

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

    @field_validator("alert_kinds")
    @classmethod
    def _validate_alert_kinds(cls, value: str | None) -> str | None:
        if not set(parse_alert_kinds(value)) <= set(ALERT_KINDS):
            raise PydanticCustomError("alert_kinds", "Known kinds are {known}", {"known": ", ".join(ALERT_KINDS)})
        return value or None  # in a compose file, an unset variable is empty

    @property
    def delivered_alert_kinds(self) -> tuple[str, ...]:
        """The kinds of alert that are delivered."""
        return ALERT_KINDS if self.alert_kinds is None else parse_alert_kinds(self.alert_kinds)
