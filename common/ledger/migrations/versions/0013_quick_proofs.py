"""The quick fingerprint of the target's rows when they were last read for a checkpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: earlier versions record none, and read the rows


def upgrade() -> None:
    for table in ("checkpoints", "replaced_checkpoints"):
        op.add_column(table, sa.Column("target_quick", sa.String(64), nullable=True))


def downgrade() -> None:
    for table in ("replaced_checkpoints", "checkpoints"):
        op.drop_column(table, "target_quick")
