"""The ledger's tables. Alembic's migrations create them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
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
from gated_backfill.common.process.printable_text import storable


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC timestamp, also on SQLite, which stores no zone."""

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


class FreeText(TypeDecorator[str]):
    """Text of others, such as the error of a job. What a database cannot store, NUL and surrogates, is escaped."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


#: Conditions of partial indexes. For PostgreSQL they are in the migration only, as its dialect is slow to import.
ACTIVE = text("active")
UNDONE = text("undone_at IS NOT NULL")
INCOMPLETE = text("state IN ('blocked', 'failed')")


def state_constraint(column: str, states: type[RunState] | type[DateState] | type[WindowState]) -> CheckConstraint:
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=column)


def usage_columns() -> list[Column[Any]]:
    """The columns for what the warehouse billed; null where nothing is known, as of a warehouse that bills nothing."""
    return [Column("bytes_billed", BigInteger), Column("slot_millis", BigInteger)]


runs = Table(
    "runs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job", String(128), nullable=False),
    Column("job_version", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("options", JSON, nullable=False),  #: fallback, force, reason, window, in_flight, ...
    Column("requested", FreeText, nullable=False),  #: the requested dates and what they resolved to, in words
    Column("requested_by", String(128), nullable=False),
    Column("reason", FreeText),  #: the user's reason for the launch
    Column("owner", String(128)),  #: embedded stack whose workers run it; null with a broker of the user
    Column("first_date", Date, nullable=False),
    Column("last_date", Date, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("undo_generation", BigInteger, nullable=False, server_default="0"),  #: changes when an undo begins or ends
    Column("undo_owner", String(128)),  #: process that undoes the run; null when none does
    Column("undo_until", UtcDateTime),  #: end of its lease
    Column("undone_at", UtcDateTime),
    Column("undone_by", String(128)),
    Column("reported_at", UtcDateTime),  #: when its post-run steps were done: alerts recorded, history written
    *usage_columns(),  #: of its plan
    state_constraint("state", RunState),
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
    Column("generation", BigInteger, nullable=False, server_default="0"),  #: of the latest lease: its fencing token
    Column("deaths", Integer, nullable=False, server_default="0"),  #: gates that died while they worked on it
    Column("losses", Integer, nullable=False, server_default="0"),  #: leases that were lost for an unknown reason
    Column("opened_at", UtcDateTime),
    Column("closed_at", UtcDateTime),
    *usage_columns(),  #: of its gates
    state_constraint("state", WindowState),
)

run_dates = Table(
    "run_dates",
    metadata,
    Column("run_id", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("job", String(128), nullable=False),
    Column("window", Integer),  #: null for a date that the plan ended
    Column("state", String(16), nullable=False),
    Column("active", Boolean, nullable=False),  #: no other run of the job can take the date
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("deaths", Integer, nullable=False, server_default="0"),  #: attempts that killed their worker process
    Column("losses", Integer, nullable=False, server_default="0"),  #: attempts that were lost for an unknown reason
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("reason", FreeText),  #: why it was skipped, blocked, accepted, ...
    Column("verdict", String(16)),
    Column("expected", Integer),
    Column("found", JSON),  #: number of expected entities present, by source
    Column("source", String(256)),
    Column("source_reason", FreeText),
    Column("matched", Integer),
    Column("missing", JSON),  #: names of missing entities, up to a limit
    Column("unexpected", JSON),  #: names of unexpected entities, up to a limit
    Column("unexpected_count", Integer),
    Column("rows", Integer),
    Column("staged_path", Text),
    Column("checksum", String(64)),
    Column("target_before", String(64)),  #: the target partition's fingerprint when the date was staged
    Column("inputs", String(64)),  #: fingerprint of the input partitions it was built from
    Column("input_parts", JSON),  #: fingerprints of the same partitions, by the table's role in the job
    Column("job_version", String(64)),  #: of the job in the worker that staged the rows
    Column("target_rows", Integer),  #: rows that the target had when the gate compared; null if it did not compare
    Column("target_matched", Integer),  #: expected entities that the target had
    Column("lost", JSON),  #: names of expected entities that the target had and the staged rows lack, up to a limit
    Column("lost_count", Integer),
    Column("loss", FreeText),  #: what the publication would lose of the target's rows, or has lost if it was forced
    Column("floor", Integer),  #: the fewest entities that may be expected, as planned
    Column("floor_reason", FreeText),  #: where the floor comes from
    Column("error_kind", String(128)),
    Column("error", FreeText),
    Column("error_place", FreeText),  #: `file:line` of the job's code that raised the error
    Column("queued_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("seconds", Float),  #: wall time of the last attempt
    Column("undone_at", UtcDateTime),  #: when an undo of the run withdrew the date's checkpoint
    Column("undone_by", String(128)),
    Column("undo_restored", Boolean),  #: whether the date has its earlier rows again; null if it was not undone
    *usage_columns(),  #: of its tasks; of a task with several dates an equal share each
    state_constraint("state", DateState),
    Index("uq_run_dates_active", "job", "day", unique=True, sqlite_where=ACTIVE),
    Index("ix_run_dates_undone", "job", "day", sqlite_where=UNDONE),
    Index("ix_run_dates_incomplete", "job", "day", sqlite_where=INCOMPLETE),
    Index(None, "run_id", "window"),
    Index(None, "run_id", "state"),
    Index(None, "job", "day"),
)

#: Who did what to a run, when and why. A trigger forbids to change or delete rows.
actions = Table(
    "actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(40), ForeignKey("runs.id"), nullable=False),
    Column("action", String(16), nullable=False),  #: see `states.RunAction`
    Column("by", String(128), nullable=False),
    Column("reason", FreeText),
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
    Column("reason", FreeText, nullable=False),
    Column("expected", Integer, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("source", String(256), nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("inputs", String(64), nullable=False),
    Column("input_parts", JSON),  #: null in a checkpoint of a version that did not record them
    Column("target_quick", String(64)),  #: quick fingerprint of the target's rows when they were last read
    Column("checkpointed_at", UtcDateTime, nullable=False),
    CheckConstraint("verdict IN ('complete', 'accepted', 'forced')", name="verdict"),
)

#: Checkpoints of earlier runs that a run replaced, to restore when it is undone.
replaced_checkpoints = Table(
    "replaced_checkpoints",
    metadata,
    Column("replaced_by", String(40), ForeignKey("runs.id"), primary_key=True),
    Column("job", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    *(Column(column.name, column.type, nullable=column.nullable) for column in checkpoints.c if not column.primary_key),
)

#: Which code may use these tables, in one row. A newer version may have migrated them.
schema_support = Table(
    "schema_support",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("oldest_code", String(32), nullable=False),  #: the newest revision that the oldest usable code knows
    Column("migrated_by", String(64), nullable=False),  #: version of this tool
    Column("migrated_at", UtcDateTime, nullable=False),
)

#: Each target table belongs to the job that built it last.
targets = Table(
    "targets",
    metadata,
    Column("target", String(256), primary_key=True),  #: as `TableName` writes it
    Column("job", String(128), nullable=False),
    Column("run_id", String(40), ForeignKey("runs.id"), nullable=False),  #: the run that claimed it
    Column("claimed_at", UtcDateTime, nullable=False),
    Column("publisher", String(128)),  #: gate that publishes to it; null when none does, or none needs to say so
    Column("publisher_until", UtcDateTime),  #: end of its lease
)

#: Dates in which an audit found something wrong; the next checkpoint of a date clears its flag.
flagged_dates = Table(
    "flagged_dates",
    metadata,
    Column("job", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("finding", String(16), nullable=False),  #: incomplete, missing, duplicated, invalid or changed
    Column("reason", FreeText, nullable=False),
    Column("expected", Integer),
    Column("matched", Integer),
    Column("flagged_at", UtcDateTime, nullable=False),
    Column("flagged_by", String(128), nullable=False),
    Column("cleared_at", UtcDateTime),
    Column("cleared_by", String(40)),  #: the run that checkpointed the date, or `audit`
)

#: Deletions of stale rows. Rows are backed up first, and can be restored until the backup expires.
cleanup_operations = Table(
    "cleanup_operations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("table_name", String(256), nullable=False),
    Column("date_column", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("cutoff", Date, nullable=False),  #: rows of earlier dates are stale
    Column("rows", Integer, nullable=False),  #: number of stale rows
    Column("dates", Integer, nullable=False),
    Column("oldest", Date),
    Column("newest", Date),
    Column("table_rows", Integer, nullable=False),  #: number of rows in the whole table before the deletion
    Column("backup", Text),  #: location of the backup
    Column("checksum", String(64)),  #: of the backup
    Column("kept", JSON),  #: fingerprint and number of the backed up rows, by date
    Column("restored_days", JSON),  #: dates that restores have put back; null in one restored by an earlier version
    #: Options of the restore: skip dates written since the deletion, or damaged in the backup.
    Column("leave_written", Boolean, nullable=False, server_default=text("false")),
    Column("intact_only", Boolean, nullable=False, server_default=text("false")),
    Column("requested_by", String(128), nullable=False),
    Column("owner", String(128)),  #: process that has its lease
    Column("lease_until", UtcDateTime),
    Column("generation", BigInteger, nullable=False, server_default="0"),  #: of the latest lease: its fencing token
    Column("active", Boolean, nullable=False),  #: no other operation can take the table
    Column("created_at", UtcDateTime, nullable=False),
    Column("backed_up_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    Column("restored_at", UtcDateTime),
    Column("restored_by", String(128)),
    Column("expires_at", UtcDateTime),  #: when its backup may be removed
    Column("found_expired_at", UtcDateTime),  #: when that was first found to be past; it is removed a day later
    Column("error", FreeText),
    Index("uq_cleanup_operations_active", "table_name", unique=True, sqlite_where=ACTIVE),
    Index(None, "table_name", "created_at"),
    Index(None, "state"),
)

#: Maintenance tasks of beat: the latest completed slot (due moment) of each, and its lease.
maintenance = Table(
    "maintenance",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("done_slot", UtcDateTime),  #: latest slot that was completed
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("outcome", FreeText),  #: in words
    Column("error", FreeText),
)

#: Heartbeats of the processes of workers. A worker renews its own and those of its processes that run tasks.
heartbeats = Table(
    "heartbeats",
    metadata,
    Column("owner", String(128), primary_key=True),  #: identity of the process, as in leases
    Column("worker", String(128), nullable=False),  #: identity of the worker's main process, which renews it
    Column("name", String(256), nullable=False),  #: of the worker, as Celery and Flower show it
    Column("queues", JSON),  #: that the worker was started for; null for a process that runs its tasks
    Column("consumed", JSON),  #: those of them that it takes tasks from now
    Column("consumed_at", UtcDateTime, nullable=False),  #: when that last changed
    Column("beats", BigInteger, nullable=False),  #: how often it was renewed: who watches it compares no clocks
    Column("started_at", UtcDateTime, nullable=False),  #: all times are by the ledger's clock
    Column("seen_at", UtcDateTime, nullable=False),  #: when it was last renewed
    Column("ended_at", UtcDateTime),  #: when its end was noticed
    Column("ending", String(16)),  #: see `stores.heartbeats.Ending`
    Column("fault", String(32)),  #: what keeps the worker's host from working, see `FaultKind`; null: nothing
    Column("fault_reason", FreeText),
    Column("faulty_since", UtcDateTime),
    Index(None, "worker"),
)

#: Alerts: recorded first and delivered later, so that an unreachable endpoint only delays the message.
alerts = Table(
    "alerts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(200), nullable=False),  #: a key is alerted once, e.g. `run-blocked RUN`
    Column("kind", String(32), nullable=False),
    Column("job", String(128)),
    Column("run_id", String(40)),
    Column("title", FreeText, nullable=False),
    Column("body", FreeText, nullable=False),
    Column("state", String(16), nullable=False),  #: pending, sending, sent, failed, muted
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("lease_owner", String(128)),
    Column("lease_until", UtcDateTime),  #: end of its sender's lease; of a pending alert, when to retry
    Column("delivered", JSON),  #: masked names of the endpoints that got it
    Column("created_at", UtcDateTime, nullable=False),
    Column("sent_at", UtcDateTime),
    Column("error", FreeText),
    Index("uq_alerts_key", "key", unique=True),
    Index(None, "state", "created_at"),
)
