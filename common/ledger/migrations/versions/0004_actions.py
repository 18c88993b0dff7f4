"""Runs that are being cancelled and dates that were, gates that died, and who did what to a run."""

import sqlalchemy as sa
from alembic import op

from gated_backfill.common.ledger.tables import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RUN_STATES = ("planned", "running", "paused", "succeeded", "partial", "failed", "cancelled")
DATE_STATES = ("pending", "queued", "processing", "staged", "published", "checkpointed", "failed", "blocked", "skipped")
#: What is written once. Other columns of a run tell how far it is.
KEPT = ("id", "job", "job_version", "options", "requested", "requested_by", "reason", "created_at")


def upgrade() -> None:
    op.add_column("runs", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("windows", sa.Column("deaths", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "actions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_actions_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_actions")),
    )
    op.create_index(op.f("ix_actions_run_id"), "actions", ["run_id"], unique=False)
    _allow("runs", RUN_STATES, (*RUN_STATES[:3], "cancelling", *RUN_STATES[3:]))
    _allow("run_dates", DATE_STATES, (*DATE_STATES, "cancelled"))
    _keep("actions", "UPDATE OR DELETE", "actions are never changed or removed")
    _keep("runs", f"UPDATE OF {', '.join(KEPT)} OR DELETE", "who launched a run, how and why is never changed")


def downgrade() -> None:
    for table in ("runs", "actions"):
        _release(table)
    _allow("run_dates", (*DATE_STATES, "cancelled"), DATE_STATES)
    _allow("runs", (*RUN_STATES[:3], "cancelling", *RUN_STATES[3:]), RUN_STATES)
    op.drop_table("actions")
    op.drop_column("windows", "deaths")
    op.drop_column("runs", "reason")


# -- constraints on states ----------------------------------------------------------------------------------------


def _allow(table: str, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    if op.get_bind().dialect.name == "sqlite":
        _made_anew(table, _listed(before), _listed(after))
        return
    op.drop_constraint(op.f(f"ck_{table}_state"), table, type_="check")
    op.create_check_constraint(op.f(f"ck_{table}_state"), table, f"state IN ({_listed(after)})")


def _listed(states: tuple[str, ...]) -> str:
    return ", ".join(f"'{state}'" for state in states)


def _made_anew(table: str, before: str, after: str) -> None:
    """SQLite changes no constraint: the table is made with the other one, filled, and put in the old one's place."""
    bind = op.get_bind()
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = :name AND type = :type AND sql IS NOT NULL"
    (sql,) = bind.execute(sa.text(made), {"name": table, "type": "table"}).scalars()
    indexes = bind.execute(sa.text(made), {"name": table, "type": "index"}).scalars().all()
    _, brace, rest = sql.partition("(")
    if before not in rest:
        raise RuntimeError(f"the constraint on the states of {table} is not the one expected")
    op.execute(f"CREATE TABLE _{table}_anew {brace}{rest.replace(before, after)}")
    op.execute(f"INSERT INTO _{table}_anew SELECT * FROM {table}")  # noqa: S608 - names of ours
    op.drop_table(table)
    op.rename_table(f"_{table}_anew", table)
    for index in indexes:
        op.execute(index)


# -- what is never changed ----------------------------------------------------------------------------------------


def _keep(table: str, events: str, why: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for event in events.split(" OR "):
            op.execute(
                f"CREATE TRIGGER {table}_keep_{event.split()[0].lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{why}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_keep() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{why}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(f"CREATE TRIGGER {table}_keep BEFORE {events} ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_keep()")


def _release(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for event in ("update", "delete"):
            op.execute(f"DROP TRIGGER {table}_keep_{event}")
        return
    op.execute(f"DROP TRIGGER {table}_keep ON {table}")
    op.execute(f"DROP FUNCTION {table}_keep()")
