"""Backfills that publish a date only after its coverage has been recounted: what a job's module imports.

Three links beside this file make the folders `common/`, `producer/` and `worker/` of the repository one import package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gated_backfill.common.errors import BackfillError, ProcessFailed, Retryable, SchemaMismatch
    from gated_backfill.common.model.coverage import CoveragePolicy, Fallback
    from gated_backfill.common.model.job import (
        Batch,
        Calendar,
        CalendarEvents,
        Expectation,
        Input,
        Job,
        Reconcile,
        Source,
        StaleTable,
        Target,
    )
    from gated_backfill.common.model.query import Query
    from gated_backfill.common.model.schedule import Schedule
    from gated_backfill.common.model.tables import Column, ColumnTypes

__all__ = [
    "BackfillError",
    "Batch",
    "Calendar",
    "CalendarEvents",
    "Column",
    "ColumnTypes",
    "CoveragePolicy",
    "Expectation",
    "Fallback",
    "Input",
    "Job",
    "ProcessFailed",
    "Query",
    "Reconcile",
    "Retryable",
    "Schedule",
    "SchemaMismatch",
    "Source",
    "StaleTable",
    "Target",
]

if not TYPE_CHECKING:  # type checkers would take every name for one of these

    def __getattr__(name: str) -> object:
        """Import a name when it is asked for: most commands need few of them."""
        for module in (
            ("errors", "model.coverage", "model.tables", "model.schedule", "model.query", "model.job")
            if name in __all__
            else ()
        ):
            namespace = vars(import_module(f"gated_backfill.common.{module}"))
            if name in namespace:
                return namespace[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
