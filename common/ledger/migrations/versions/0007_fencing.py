"""Fencing tokens of gates, undos and cleanups, undone dates, and what targets had and cleanups restored."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

DATE_COLUMNS = {
    "target_rows": sa.Integer(),
    "target_matched": sa.Integer(),
    "lost": sa.JSON(),
    "lost_count": sa.Integer(),
    "loss": sa.Text(),
    "undone_at": sa.DateTime(timezone=True),
    "undone_by": sa.String(128),
    "undo_restored": sa.Boolean(),
}
UNDONE = sa.text("undone_at IS NOT NULL")
#: Earlier versions recorded an undo with the run only.
MARK_DATES_OF_UNDONE_RUNS = """
    UPDATE run_dates
    SET undone_at = (SELECT runs.undone_at FROM runs WHERE runs.id = run_dates.run_id),
        undone_by = (SELECT runs.undone_by FROM runs WHERE runs.id = run_dates.run_id),
        undo_restored = true
    WHERE state = 'checkpointed' AND run_id IN (SELECT id FROM runs WHERE undone_at IS NOT NULL)
"""


def upgrade() -> None:
    op.add_column("windows", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_owner", sa.String(128), nullable=True))
    op.add_column("runs", sa.Column("undo_until", sa.DateTime(timezone=True), nullable=True))
    for name, kind in DATE_COLUMNS.items():
        op.add_column("run_dates", sa.Column(name, kind, nullable=True))
    op.execute(MARK_DATES_OF_UNDONE_RUNS)
    op.create_index("ix_run_dates_undone", "run_dates", ["job", "day"], sqlite_where=UNDONE, postgresql_where=UNDONE)
    op.add_column("cleanup_operations", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("cleanup_operations", sa.Column("restored_days", sa.JSON(), nullable=True))
    op.add_column("cleanup_operations", sa.Column("found_expired_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("found_expired_at", "restored_days", "generation"):
        op.drop_column("cleanup_operations", name)
    op.drop_index("ix_run_dates_undone", "run_dates")
    for name in DATE_COLUMNS:
        op.drop_column("run_dates", name)
    for name in ("undo_until", "undo_owner", "undo_generation"):
        op.drop_column("runs", name)
    op.drop_column("windows", "generation")
