"""Heartbeats of worker processes."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: workers of an earlier version have no heartbeats, and their leases count


def upgrade() -> None:
    op.create_table(
        "heartbeats",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("worker", sa.String(128), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("queues", sa.JSON()),
        sa.Column("consumed", sa.JSON()),
        sa.Column("consumed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("ending", sa.String(16)),
    )
    op.create_index("ix_heartbeats_worker", "heartbeats", ["worker"])


def downgrade() -> None:
    op.drop_index("ix_heartbeats_worker", "heartbeats")
    op.drop_table("heartbeats")
