"""Fencing tokens of gates and undos, and the lease of an undo."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("windows", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("undo_owner", sa.String(128), nullable=True))
    op.add_column("runs", sa.Column("undo_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("undo_until", "undo_owner", "undo_generation"):
        op.drop_column("runs", name)
    op.drop_column("windows", "generation")
