"""What a date was built from, the floor of its expectation, and the job that owns a target table."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

DATE_COLUMNS = {
    "input_parts": sa.JSON(),
    "job_version": sa.String(64),
    "floor": sa.Integer(),
    "floor_reason": sa.Text(),
}


def upgrade() -> None:
    for name, kind in DATE_COLUMNS.items():
        op.add_column("run_dates", sa.Column(name, kind, nullable=True))
    for table in ("checkpoints", "replaced_checkpoints"):
        op.add_column(table, sa.Column("input_parts", sa.JSON(), nullable=True))
    op.create_table(
        "targets",
        sa.Column("target", sa.String(256), nullable=False),
        sa.Column("job", sa.String(128), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("target", name=op.f("pk_targets")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_targets_run_id")),
    )


def downgrade() -> None:
    op.drop_table("targets")
    for table in ("checkpoints", "replaced_checkpoints"):
        op.drop_column(table, "input_parts")
    for name in DATE_COLUMNS:
        op.drop_column("run_dates", name)
