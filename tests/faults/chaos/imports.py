"""Importing everything once, so that what is forked afterwards starts in a tenth of a second."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

JOBS = Path(__file__).parents[2] / "packages" / "chaos_jobs"

#: What the processes import at their start, and what libraries import on first use: seen in some that had run a while.
MODULES = (
    *("billiard.heap", "billiard.popen_fork", "billiard.sharedctypes", "billiard.synchronize"),
    *("celery.app.control", "celery.app.events", "celery.app.log", "celery.apps.beat", "celery.apps.worker"),
    *("celery.backends.redis", "celery.bin.beat", "celery.bin.celery", "celery.bin.worker"),
    *("celery.concurrency.prefork", "celery.events.state", "celery.fixups.django", "celery.worker.autoscale"),
    *("celery.worker.consumer.delayed_delivery", "celery.worker.strategy"),
    *("cffi.cparser", "chaos_jobs", "ctypes.util", "flower.command"),
    *("gated_backfill.common.broker.chords", "gated_backfill.common.warehouse.bigquery.warehouse"),
    *("gated_backfill.common.warehouse.local.warehouse", "gated_backfill.producer.runs.attended"),
    *("gated_backfill.producer.cli.main", "gated_backfill.producer.planning.cost", "gated_backfill.worker.inline"),
    *("gated_backfill.worker.maintenance.runner", "kombu.transport.redis"),
    *("pyarrow.dataset", "pyarrow.pandas_compat", "pyarrow.parquet", "pyarrow.substrait"),
    *("pycparser.c_parser", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite"),
    "sqlglot.optimizer.normalize_identifiers",
)


def import_everything() -> None:
    """Opens no connection and starts no thread: what is forked from this process must find none."""
    sys.path.insert(0, str(JOBS))
    for name in MODULES:
        import_module(name)
    _use_once()


def _use_once() -> None:
    """Have libraries register what they register on first use."""
    from gated_backfill.common.warehouse.sql import to_duckdb

    to_duckdb("SELECT 1 AS one")
