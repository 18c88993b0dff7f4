"""The shipped example job, but as queries: it publishes the same rows."""

from dataclasses import replace

from gated_backfill import Query
from gated_backfill.worker.jobs.player_composite_factors import JOB as PYTHON_JOB

DERIVED_CONTEXT = Query.file("derived_context.sql")

JOB = replace(
    PYTHON_JOB,
    name="player_composite_factors_sql",
    target=replace(PYTHON_JOB.target, table="nba_precompute.player_composite_factors_sql"),
    sources=tuple(
        source if source.derive is None else replace(source, derive=DERIVED_CONTEXT) for source in PYTHON_JOB.sources
    ),
    process=Query.file("factors.sql"),
)
