"""Alembic's entry point: it is always handed an open connection."""

from alembic import context

from gated_backfill.common.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
