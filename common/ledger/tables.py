"""The ledger's tables. Alembic's migrations create them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeDecorator

from gated_backfill.common.ledger.states import DateState, RunState, WindowState


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC timestamp, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a timestamp without a zone reached the ledger")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


#: Of a partial index. On PostgreSQL its migration alone says so: here it would import that dialect for every command.
ACTIVE = text("active")


def one_of(column: str, states: type[RunState] | type[DateState] | type[WindowState]) -> CheckConstraint:
    listed = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


runs = Table(
    "runs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job", String(128), nullable=False),
    Column("job_version", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("options", JSON, nullable=False),  #: fallback, force, reason, window, in_flight, ...
    Column("requested", Text, nullable=False),  #: what was asked for and what it resolved to, in words
    Column("requested_by", String(128), nullable=False),
    Column("reason", Text),  #: why it was launched, as whoever did it said
    Column("owner", String(128)),  #: the embedded stack that runs it; null on a broker of the user's
    Column("first_date", Date, nullable=False),
    Column("last_date", Date, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("undone_at", UtcDateTime),
    Column("undone_by", String(128)),
    Column("reported_at", UtcDateTime),  #: when its end was told: alerts recorded, warehouse history written
    one_of("state", RunState),
    Index(None, "job", "created_at"),
    Index(None, "finished_at"),
)

windows = Table(
    "windows",
    metadata,
    Column("run_id", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("deaths", Integer, nullable=False, server_default="0"),  #: gates that died while they worked on it
    Column("opened_at", UtcDateTime),
    Column("closed_at", UtcDateTime),
    one_of("state", WindowState),
)

run_dates = Table(
    "run_dates",
    metadata,
    Column("run_id", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("job", String(128), nullable=False),
    Column("window", Integer),  #: null for a date that was ended by the plan
    Column("state", String(16), nullable=False),
    Column("active", Boolean, nullable=False),  #: holds the date against other runs of the job
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("deaths", Integer, nullable=False, server_default="0"),  #: attempts that ended with the worker's death
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("reason", Text),  #: why it was skipped, blocked, accepted, ...
    Column("verdict", String(16)),
    Column("expected", Integer),
    Column("found", JSON),  #: expected entities found, by source
    Column("source", String(256)),
    Column("source_reason", Text),
    Column("matched", Integer),
    Column("missing", JSON),  #: names of missing entities (a sample)
    Column("rows", Integer),
    Column("staged_path", Text),
    Column("checksum", String(64)),
    Column("target_before", String(64)),  #: the target partition's fingerprint when the date was staged
    Column("inputs", String(64)),  #: fingerprint of the input partitions it was built from
    Column("error_kind", String(128)),
    Column("error", Text),
    Column("queued_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("seconds", Float),  #: wall time of the last attempt
    one_of("state", DateState),
    Index(
        "uq_run_dates_active",
        "job",
        "day",
        unique=True,
        sqlite_where=ACTIVE,
    ),
    Index(None, "run_id", "window"),
    Index(None, "run_id", "state"),
    Index(None, "job", "day"),
)

#: Who did what to a run, when and why. Rows are only ever added: the database itself refuses to change or remove one.
actions = Table(
    "actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(40), ForeignKey("runs.id"), nullable=False),
    Column("action", String(16), nullable=False),  #: see `gated_backfill.common.ledger.states.Action`
    Column("by", String(128), nullable=False),
    Column("reason", Text),
    Column("details", JSON, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "run_id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("run_id", String(40), ForeignKey("runs.id"), nullable=False),
    Column("job_version", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("expected", Integer, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("source", String(256), nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("inputs", String(64), nullable=False),
    Column("checkpointed_at", UtcDateTime, nullable=False),
    CheckConstraint("verdict IN ('complete', 'accepted', 'forced')", name="verdict"),
)

#: What a run's checkpoints replaced, for when the run is undone.
replaced_checkpoints = Table(
    "replaced_checkpoints",
    metadata,
    Column("replaced_by", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("job", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    *(Column(one.name, one.type, nullable=False) for one in checkpoints.c if not one.primary_key),
)

#: Dates that an audit found not to be as they should be; a flag is cleared by the checkpoint that repairs its date.
flagged_dates = Table(
    "flagged_dates",
    metadata,
    Column("job", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("finding", String(16), nullable=False),  #: incomplete, missing, duplicated or changed
    Column("reason", Text, nullable=False),
    Column("expected", Integer),
    Column("matched", Integer),
    Column("flagged_at", UtcDateTime, nullable=False),
    Column("flagged_by", String(128), nullable=False),
    Column("cleared_at", UtcDateTime),
    Column("cleared_by", String(40)),  #: the run whose checkpoint did, or `audit`
)

#: Deletions of stale rows: each is backed up before, and can be put back until its backup expires.
cleanup_operations = Table(
    "cleanup_operations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("table_name", String(256), nullable=False),
    Column("date_column", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("cutoff", Date, nullable=False),  #: rows of dates before it are stale
    Column("rows", Integer, nullable=False),  #: stale ones
    Column("dates", Integer, nullable=False),
    Column("oldest", Date),
    Column("newest", Date),
    Column("table_rows", Integer, nullable=False),  #: rows of the whole table before
    Column("backup", Text),  #: where the rows are kept
    Column("checksum", String(64)),  #: of the backup
    Column("kept", JSON),  #: by date, the fingerprint and the number of the rows that are backed up
    Column(
        "leave_written", Boolean, nullable=False, server_default=text("false")
    ),  #: of its restoration: dates written since are left alone
    Column(
        "intact_only", Boolean, nullable=False, server_default=text("false")
    ),  #: of its restoration: dates damaged in the backup are left out
    Column("requested_by", String(128), nullable=False),
    Column("owner", String(128)),  #: the process that works on it
    Column("lease_until", UtcDateTime),
    Column("active", Boolean, nullable=False),  #: holds the table against other operations
    Column("created_at", UtcDateTime, nullable=False),
    Column("backed_up_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    Column("restored_at", UtcDateTime),
    Column("restored_by", String(128)),
    Column("expires_at", UtcDateTime),  #: when its backup is removed
    Column("error", Text),
    Index(
        "uq_cleanup_operations_active",
        "table_name",
        unique=True,
        sqlite_where=ACTIVE,
    ),
    Index(None, "table_name", "created_at"),
    Index(None, "state"),
)

#: What beat has had done: for each kind of work, the last due moment that is done, and who is at it.
maintenance = Table(
    "maintenance",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("done_slot", UtcDateTime),  #: the due moment that was last carried out
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("outcome", Text),  #: in words
    Column("error", Text),
)

#: Alerts: written down first, then delivered, so that a dead endpoint costs nothing but the message's delay.
alerts = Table(
    "alerts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(200), nullable=False),  #: what must be told once, e.g. `run-blocked RUN`
    Column("kind", String(32), nullable=False),
    Column("job", String(128)),
    Column("run_id", String(40)),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),  #: pending, sending, sent, failed, muted
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),  #: of a sender; while it is pending, when it is tried next
    Column("delivered", JSON),  #: the endpoints that have it, by their masked names
    Column("created_at", UtcDateTime, nullable=False),
    Column("sent_at", UtcDateTime),
    Column("error", Text),
    Index("uq_alerts_key", "key", unique=True),
    Index(None, "state", "created_at"),
)
