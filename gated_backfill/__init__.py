"""Backfills that publish a date only after its coverage has been recounted: what a job's module imports.

Three links beside this file make the folders `common/`, `producer/` and `worker/` of the repository one import package.
"""

from gated_backfill.common.errors import BackfillError, ProcessFailed, Retryable, SchemaMismatch
from gated_backfill.common.model.coverage import CoveragePolicy, Fallback
from gated_backfill.common.model.job import (
    Batch,
    Calendar,
    CalendarEvents,
    Expectation,
    Input,
    Job,
    Source,
    StaleTable,
    Target,
)
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
    "Retryable",
    "SchemaMismatch",
    "Source",
    "StaleTable",
    "Target",
]
