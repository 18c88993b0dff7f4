"""Which code may use the tables: the oldest that still can, so that versions work side by side."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BREAKS_OLDER_CODE = False  #: see `migration.oldest_usable_code`


def upgrade() -> None:
    op.create_table(
        "schema_support",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("oldest_code", sa.String(32), nullable=False),
        sa.Column("migrated_by", sa.String(64), nullable=False),
        sa.Column("migrated_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("schema_support")
