"""Undoing a run: who did it and when, and the checkpoints that the run's own replaced."""

import sqlalchemy as sa
from alembic import op

from gated_backfill.common.ledger.tables import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("undone_at", UtcDateTime(), nullable=True))
    op.add_column("runs", sa.Column("undone_by", sa.String(length=128), nullable=True))
    op.create_table(
        "replaced_checkpoints",
        sa.Column("replaced_by", sa.String(length=40), nullable=False),
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
        sa.ForeignKeyConstraint(["replaced_by"], ["runs.id"], name=op.f("fk_replaced_checkpoints_replaced_by")),
        sa.PrimaryKeyConstraint("replaced_by", "job", "day", name=op.f("pk_replaced_checkpoints")),
    )


def downgrade() -> None:
    op.drop_table("replaced_checkpoints")
    op.drop_column("runs", "undone_by")
    op.drop_column("runs", "undone_at")
