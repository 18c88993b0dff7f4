"""The line of the job's code that failed a date, and a date's unexpected entities."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run_dates", sa.Column("error_place", sa.Text(), nullable=True))
    op.add_column("run_dates", sa.Column("unexpected", sa.JSON(), nullable=True))
    op.add_column("run_dates", sa.Column("unexpected_count", sa.Integer(), nullable=True))


def downgrade() -> None:
    for column in ("error_place", "unexpected", "unexpected_count"):
        op.drop_column("run_dates", column)
