"""The check of sampled dates: do the rows of a date depend on the dates that are built with it?"""

from __future__ import annotations

from datetime import date, timedelta
from importlib import import_module

from gated_backfill.common.errors import BackfillError
from gated_backfill.common.model.dates import DateRange, format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.process.clock import today
from gated_backfill.common.warehouse.coverage_queries import expectation_scan
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn

SAMPLE_MODULE = "gated_backfill.worker.dates.sample"  #: imported by name: the producer does not import the worker
DAYS_PER_QUERY = 200
YEARS_SEARCHED = 20


def check_sample(job: Job, warehouse: Warehouse, count: int) -> CheckResult:
    """Build the latest `count` dates that have expected entities in memory, alone and together."""
    check = f"{job.name}: sample"
    try:
        days = find_latest_days(job, warehouse, count)
        if not days:
            return warn(check, f"no date of the last {YEARS_SEARCHED} years has expected entities: nothing was built")
        differences = import_module(SAMPLE_MODULE).compare_groupings(job, warehouse, days)
    except BackfillError as exc:
        return fail(check, exc, "correct the job or its tables, and sample again")
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 - a job's code may raise anything
        return fail(check, f"the job failed: {type(exc).__name__}: {exc}", "correct the job, and sample again")
    different = {day: text for day, text in differences.items() if text}
    if different:
        day, text = next(iter(different.items()))
        return fail(
            check,
            f"the rows of {len(different)} of {len(differences)} date(s) depend on how dates are built, "
            f"e.g. {day}: {text}",
            "make a date's rows depend on its own rows only (see derive_together and Batch in docs/jobs.md)",
        )
    return ok(check, f"{len(differences)} date(s) have the same rows alone and together: {format_dates(differences)}")


def find_latest_days(job: Job, warehouse: Warehouse, count: int) -> list[date]:
    """Return the latest days with expected entities, oldest first."""
    days: list[date] = []
    last = today()
    for _ in range(YEARS_SEARCHED * 366 // DAYS_PER_QUERY):
        span = DateRange(start=last - timedelta(days=DAYS_PER_QUERY - 1), through=last)
        days = sorted(warehouse.count_entities(expectation_scan(job, span.days()), {}, []).expected) + days
        if len(days) >= count:
            break
        last = span.start - timedelta(days=1)
    return days[-count:]
