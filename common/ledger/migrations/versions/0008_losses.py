"""Claims that were lost without a known cause, counted apart from the deaths that a date or a window caused."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("run_dates", "windows"):
        op.add_column(table, sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table in ("windows", "run_dates"):
        op.drop_column(table, "losses")
