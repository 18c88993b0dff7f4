"""Fencing tokens of gates, undos and cleanups, the lease of an undo, and what targets had and cleanups restored."""

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
}


def upgrade() -> None:
    op.add_column("windows", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_owner", sa.String(128), nullable=True))
    op.add_column("runs", sa.Column("undo_until", sa.DateTime(timezone=True), nullable=True))
    for name, kind in DATE_COLUMNS.items():
        op.add_column("run_dates", sa.Column(name, kind, nullable=True))
    op.add_column("cleanup_operations", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("cleanup_operations", sa.Column("restored_days", sa.JSON(), nullable=True))
    op.add_column("cleanup_operations", sa.Column("found_expired_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("found_expired_at", "restored_days", "generation"):
        op.drop_column("cleanup_operations", name)
    for name in DATE_COLUMNS:
        op.drop_column("run_dates", name)
    for name in ("undo_until", "undo_owner", "undo_generation"):
        op.drop_column("runs", name)
    op.drop_column("windows", "generation")
