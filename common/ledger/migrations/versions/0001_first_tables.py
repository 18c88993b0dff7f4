"""The first tables: runs, windows, dates of runs, checkpoints."""

import sqlalchemy as sa
from alembic import op

from gated_backfill.common.ledger.tables import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("job_version", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("requested", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=True),
        sa.Column("first_date", sa.Date(), nullable=False),
        sa.Column("last_date", sa.Date(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "state IN ('planned', 'running', 'paused', 'succeeded', 'partial', 'failed', 'cancelled')",
            name=op.f("ck_runs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_job_created_at"), "runs", ["job", "created_at"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("job_version", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=False),
        sa.Column("matched", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=256), nullable=False),
        sa.Column("checksum", sa.String(length=64), nullable=False),
        sa.Column("inputs", sa.String(length=64), nullable=False),
        sa.Column("checkpointed_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("verdict IN ('complete', 'accepted', 'forced')", name=op.f("ck_checkpoints_verdict")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id")),
        sa.PrimaryKeyConstraint("job", "day", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "run_dates",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("window", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("deaths", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("found", sa.JSON(), nullable=True),
        sa.Column("source", sa.String(length=256), nullable=True),
        sa.Column("source_reason", sa.Text(), nullable=True),
        sa.Column("matched", sa.Integer(), nullable=True),
        sa.Column("missing", sa.JSON(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("staged_path", sa.Text(), nullable=True),
        sa.Column("checksum", sa.String(length=64), nullable=True),
        sa.Column("target_before", sa.String(length=64), nullable=True),
        sa.Column("inputs", sa.String(length=64), nullable=True),
        sa.Column("error_kind", sa.String(length=128), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("queued_at", UtcDateTime(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'queued', 'processing', 'staged', 'published', 'checkpointed', 'failed', 'blocked', 'skipped')",
            name=op.f("ck_run_dates_state"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_dates_run_id")),
        sa.PrimaryKeyConstraint("run_id", "day", name=op.f("pk_run_dates")),
    )
    op.create_index(op.f("ix_run_dates_job_day"), "run_dates", ["job", "day"], unique=False)
    op.create_index(op.f("ix_run_dates_run_id_state"), "run_dates", ["run_id", "state"], unique=False)
    op.create_index(op.f("ix_run_dates_run_id_window"), "run_dates", ["run_id", "window"], unique=False)
    op.create_index(
        "uq_run_dates_active",
        "run_dates",
        ["job", "day"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "windows",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("opened_at", UtcDateTime(), nullable=True),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'open', 'closing', 'closed')", name=op.f("ck_windows_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_windows_run_id")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_windows")),
    )


def downgrade() -> None:
    for table in ("windows", "run_dates", "checkpoints", "runs"):
        op.drop_table(table)
