"""Checks of the tables that a job reads and of its target."""

from __future__ import annotations

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse
from gated_backfill.common.warehouse.table_checks import TableRequirement, blocking_differences, table_requirements
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn

PERMISSIONS_UNKNOWN = "this endpoint does not tell permissions"
CHANGE_TABLE_OR_JOB = "change the table, or what the job declares"
MISSING_TABLE_EFFECTS = {
    "source": "it covers no entity of any date",
    "input": "dates are built without it",
    "calendar": "dates without an expected entity are skipped without a check of the calendar",
}


def check_tables(settings: Settings, warehouse: Warehouse, job: Job) -> list[CheckResult]:
    """Check every table that the job names."""
    tables_are_implicit = settings.warehouse_url.has_implicit_tables
    results: list[CheckResult] = []
    usable_sources = 0  # sources that exist or may exist
    for required in table_requirements(job):
        is_source = required.role.startswith("source ")
        check = f"{job.name}: {required.role}"
        try:
            info = warehouse.describe(required.table)
        except BackfillError as exc:
            results.append(fail(check, exc, f"make {required.table} readable"))
            usable_sources += is_source
            continue
        if info is None:
            results.append(_report_missing(check, required, tables_are_implicit=tables_are_implicit))
        else:
            results.append(_check_columns(check, required, info))
            usable_sources += is_source
    if not usable_sources:
        next_step = "provide the table of at least one of its sources"
        results.append(fail(f"{job.name}: sources", "none of its sources was found: nothing can be built", next_step))
    return [*results, *_check_target(warehouse, job, tables_are_implicit=tables_are_implicit)]


def _report_missing(check: str, required: TableRequirement, *, tables_are_implicit: bool) -> CheckResult:
    message = f"{required.table} does not exist"
    if required.optional:
        return warn(check, f"{message}: {MISSING_TABLE_EFFECTS[required.role.partition(' ')[0]]}")
    hint = f": `backfill load {required.table} FILE` imports it" if tables_are_implicit else ""
    return fail(check, message, f"make the table{hint}")


def _check_columns(check: str, required: TableRequirement, info: TableInfo) -> CheckResult:
    if mismatches := list(dict.fromkeys([*required.mismatches(info), *required.unreadable_columns(info)])):
        return fail(check, f"{required.table} {'; '.join(mismatches)}", CHANGE_TABLE_OR_JOB)
    if info.partitioned_by is None:
        return warn(check, f"{required.table} is not partitioned: every query reads all of it")
    columns = {required.date_column, *required.columns, *required.types}
    message = f"{required.table} is partitioned by {required.date_column} and has the {len(columns)} required column(s)"
    return ok(check, message)


def _check_target(warehouse: Warehouse, job: Job, *, tables_are_implicit: bool) -> list[CheckResult]:
    """Check that the target matches the job's declaration and that rows can be published to it."""
    check, table = f"{job.name}: target", TableName.parse(job.target.table)
    try:
        info = warehouse.describe(table)
        can_publish = warehouse.check_publishable(table)
        warehouse.check_loadable(table, job.target.date_column)
    except BackfillError as exc:
        return [fail(check, exc, f"make it possible to publish to {table}")]
    if info is None and tables_are_implicit:
        return [ok(check, f"{table} is created with its first partition")]
    if info is None:
        create = f"`backfill tables create --job {job.name}` makes it, partitioned and clustered"
        return [warn(check, f"{table} does not exist yet: the first publication makes it, without clustering", create)]
    if differences := blocking_differences(job, info):
        return [fail(check, f"{table} {'; '.join(differences)}", CHANGE_TABLE_OR_JOB)]
    results = [ok(check, f"{table} is as the job declares it" + (" and can be published to" if can_publish else ""))]
    if info.partitioned_by is None:
        results = [warn(check, f"{table} is not partitioned: every publication reads all of it")]
    if not can_publish:
        results.append(warn(check, f"{table}: whether it may be written can't be checked: {PERMISSIONS_UNKNOWN}"))
    if info.expires_after_days is not None:
        message = f"{table} drops partitions older than {info.expires_after_days} days by itself"
        results.append(warn(check, message, "do not rebuild older dates, or remove the expiration"))
    return results
