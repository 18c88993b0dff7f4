"""The gate that publishes to a target, so that the others wait for it."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: gates of an earlier version wait for nobody: their transactions conflict, as before


def upgrade() -> None:
    op.add_column("targets", sa.Column("publisher", sa.String(128)))
    op.add_column("targets", sa.Column("publisher_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    for column in ("publisher_until", "publisher"):
        op.drop_column("targets", column)
