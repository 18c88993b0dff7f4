"""What the warehouse billed for a run: its plan, the tasks of its dates, and the gates of its windows."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: earlier versions record none

TABLES = ("runs", "windows", "run_dates")
COLUMNS = ("bytes_billed", "slot_millis")


def upgrade() -> None:
    for table in TABLES:
        for column in COLUMNS:
            op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for table in reversed(TABLES):
        for column in reversed(COLUMNS):
            op.drop_column(table, column)
