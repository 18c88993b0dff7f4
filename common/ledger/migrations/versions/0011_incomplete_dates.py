"""An index of the dates that ended without a checkpoint, for the count of those that still have none."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: an index only

INCOMPLETE = sa.text("state IN ('blocked', 'failed')")


def upgrade() -> None:
    op.create_index(
        "ix_run_dates_incomplete", "run_dates", ["job", "day"], sqlite_where=INCOMPLETE, postgresql_where=INCOMPLETE
    )


def downgrade() -> None:
    op.drop_index("ix_run_dates_incomplete", "run_dates")
