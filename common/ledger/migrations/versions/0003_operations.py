"""Operations: alerts, cleanup of stale rows, flagged dates, what beat has had done, which runs were reported."""

import sqlalchemy as sa
from alembic import op

from gated_backfill.common.ledger.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=True),
        sa.Column("run_id", sa.String(length=40), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("delivered", sa.JSON(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_index(op.f("ix_alerts_state_created_at"), "alerts", ["state", "created_at"], unique=False)
    op.create_index("uq_alerts_key", "alerts", ["key"], unique=True)
    op.create_table(
        "cleanup_operations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("table_name", sa.String(length=256), nullable=False),
        sa.Column("date_column", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cutoff", sa.Date(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("dates", sa.Integer(), nullable=False),
        sa.Column("oldest", sa.Date(), nullable=True),
        sa.Column("newest", sa.Date(), nullable=True),
        sa.Column("table_rows", sa.Integer(), nullable=False),
        sa.Column("backup", sa.Text(), nullable=True),
        sa.Column("checksum", sa.String(length=64), nullable=True),
        sa.Column("kept", sa.JSON(), nullable=True),
        sa.Column("leave_written", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("intact_only", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("requested_by", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("backed_up_at", UtcDateTime(), nullable=True),
        sa.Column("deleted_at", UtcDateTime(), nullable=True),
        sa.Column("restored_at", UtcDateTime(), nullable=True),
        sa.Column("restored_by", sa.String(length=128), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cleanup_operations")),
    )
    op.create_index(op.f("ix_cleanup_operations_state"), "cleanup_operations", ["state"], unique=False)
    op.create_index(
        op.f("ix_cleanup_operations_table_name_created_at"),
        "cleanup_operations",
        ["table_name", "created_at"],
        unique=False,
    )
    op.create_index(
        "uq_cleanup_operations_active",
        "cleanup_operations",
        ["table_name"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "flagged_dates",
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("finding", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("matched", sa.Integer(), nullable=True),
        sa.Column("flagged_at", UtcDateTime(), nullable=False),
        sa.Column("flagged_by", sa.String(length=128), nullable=False),
        sa.Column("cleared_at", UtcDateTime(), nullable=True),
        sa.Column("cleared_by", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("job", "day", name=op.f("pk_flagged_dates")),
    )
    op.create_table(
        "maintenance",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("done_slot", UtcDateTime(), nullable=True),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_maintenance")),
    )
    op.add_column("runs", sa.Column("reported_at", UtcDateTime(), nullable=True))
    op.create_index(op.f("ix_runs_finished_at"), "runs", ["finished_at"], unique=False)
    op.execute("UPDATE runs SET reported_at = finished_at")  # the ends of earlier runs are no news


def downgrade() -> None:
    op.drop_index(op.f("ix_runs_finished_at"), table_name="runs")
    op.drop_column("runs", "reported_at")
    op.drop_table("maintenance")
    op.drop_table("flagged_dates")
    op.drop_index(
        "uq_cleanup_operations_active",
        table_name="cleanup_operations",
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.drop_index(op.f("ix_cleanup_operations_table_name_created_at"), table_name="cleanup_operations")
    op.drop_index(op.f("ix_cleanup_operations_state"), table_name="cleanup_operations")
    op.drop_table("cleanup_operations")
    op.drop_index("uq_alerts_key", table_name="alerts")
    op.drop_index(op.f("ix_alerts_state_created_at"), table_name="alerts")
    op.drop_table("alerts")
