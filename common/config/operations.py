"""The settings of what runs by itself: audit, alerts, beat, Flower, cleanup."""

from __future__ import annotations

from datetime import time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.alert_kinds import ALERT_KINDS, parse_alert_kinds
from gated_backfill.common.model.tables import DatedTable, parse_dated_tables

MAX_DAYS = 36500  #: of any setting, so that no date lies before the calendar's first


class OperationsSettings(BaseSettings):
    """A part of `gated_backfill.common.config.settings.Settings`, which says from where they are read."""

    # audit
    audit_days: int = Field(30, ge=1, le=3650)  #: days up to yesterday that beat audits
    # alerts
    alerts: SecretStr | None = None  #: apprise URLs, separated by white space or commas; None tells nobody
    alert_kinds: str | None = None  #: the kinds to deliver, separated by commas; None delivers all
    alert_timeout_seconds: float = Field(10.0, gt=0, le=120)  #: that telling all endpoints may take together
    alert_retry_seconds: float = Field(60.0, ge=0)  #: before what was not taken is sent again; it doubles each time

    # beat, Flower and `backfill up`
    timezone: str = "America/New_York"  #: whose clock the daily times are read on
    cleanup_at: time = time(4, 0)  #: the cleanup of stale rows; the retention of other things follows it
    audit_at: time = time(6, 0)
    maintenance_retry_seconds: int = Field(600, ge=1)  #: after which a daily work that failed is tried again
    staging_days: int = Field(7, ge=1, le=MAX_DAYS)  #: how long what an ended run left staged is kept
    quarantine_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long refused files are kept after the end of their run
    flower_address: str = "127.0.0.1"  #: where Flower listens; 0.0.0.0 for every interface
    flower_port: int = Field(5555, ge=1, le=65535)
    flower_user: str = "backfill"
    flower_password: SecretStr | None = None  #: `backfill up` makes one when there is none
    metrics_user: str = "backfill"
    metrics_password: SecretStr | None = None  #: asked for by /metrics; needed to serve it to other machines
    metrics_port: int = Field(9808, ge=1, le=65535)  #: where `backfill up` serves metrics, on this machine only
    stop_seconds: float = Field(30.0, ge=0)  #: how long the tasks in progress are given when a stack is stopped

    # cleanup of stale rows
    cleanup_tables: str = ""  #: tables to clean in addition to the stale tables that jobs declare
    cleanup_days: int = Field(7, ge=1, le=MAX_DAYS)  #: rows of dates more than so many days ago are stale
    cleanup_max_share: float = Field(0.5, ge=0, le=1)  #: of a table's rows; a larger cleanup has to be asked for
    cleanup_backup_days: int = Field(
        30, ge=1, le=MAX_DAYS
    )  #: how long deleted rows are kept for `backfill cleanup restore`
    cleanup_unusual_rows: int = Field(10_000, ge=0)  #: an operation that deletes more is told

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError("is no time zone: write it as America/New_York") from exc
        return name

    @field_validator("cleanup_at", "audit_at")
    @classmethod
    def _local_time(cls, at: time) -> time:
        if at.tzinfo is not None:
            raise ValueError("is a time of BACKFILL_TIMEZONE: write it as 04:00, without an offset")
        return at

    @field_validator("flower_user", "metrics_user")
    @classmethod
    def _usable_user(cls, user: str) -> str:
        if not user or "," in user or ":" in user:
            raise ValueError("must not be empty or hold a comma or a colon")
        return user

    @field_validator("flower_password")
    @classmethod
    def _usable_password(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and (not password.get_secret_value() or "," in password.get_secret_value()):
            raise ValueError("must not be empty or hold a comma, at which Flower would cut it")
        return password

    @field_validator("metrics_password")
    @classmethod
    def _given_password(cls, password: SecretStr | None) -> SecretStr | None:
        """Empty, as a compose file hands it on, is not set."""
        return password if password is not None and password.get_secret_value() else None

    @field_validator("cleanup_tables")
    @classmethod
    def _named_tables(cls, text: str) -> str:
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
    def _known_kinds(cls, value: str | None) -> str | None:
        if not set(parse_alert_kinds(value)) <= set(ALERT_KINDS):
            raise PydanticCustomError("alert_kinds", "Known kinds are {known}", {"known": ", ".join(ALERT_KINDS)})
        return value or None  # empty, as a compose file hands it on, is not set

    @property
    def delivered_alert_kinds(self) -> tuple[str, ...]:
        """The kinds of alert that are delivered."""
        return ALERT_KINDS if self.alert_kinds is None else parse_alert_kinds(self.alert_kinds)
