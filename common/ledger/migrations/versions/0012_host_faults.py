"""What keeps the hosts of workers from working."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: workers of an earlier version record no faults


def upgrade() -> None:
    op.add_column("heartbeats", sa.Column("fault", sa.String(32)))
    op.add_column("heartbeats", sa.Column("fault_reason", sa.Text()))
    op.add_column("heartbeats", sa.Column("faulty_since", sa.DateTime(timezone=True)))


def downgrade() -> None:
    for column in ("faulty_since", "fault_reason", "fault"):
        op.drop_column("heartbeats", column)
