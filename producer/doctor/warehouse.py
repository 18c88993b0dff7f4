"""Check of the warehouse."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, Retryable, UserError
from gated_backfill.common.process.clock import read_clock
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.doctor.results import CheckResult, PlaceCheck, fail, ok, warn

MAX_RETRY_SECONDS = 10.0  #: shorter than for a run, so that doctor answers soon


def check_warehouse(settings: Settings) -> tuple[Warehouse | None, PlaceCheck]:
    """Check that the warehouse answers. Returns the warehouse too, or None if its tables can't be queried either."""
    retry_seconds = min(settings.warehouse_retry_seconds, MAX_RETRY_SECONDS)
    limits = replace(settings.warehouse_limits, retry_seconds=retry_seconds)
    try:
        warehouse = open_warehouse(settings.warehouse_url, limits=limits)
    except UserError as exc:
        return None, PlaceCheck(result=fail("warehouse", exc, "set BACKFILL_WAREHOUSE as the message says"))
    if (folder := settings.warehouse_url.folder) is not None:
        return warehouse, PlaceCheck(result=_check_folder(folder))
    try:
        clock = read_clock(lambda: _read_now(warehouse))
    except Retryable as exc:
        return None, PlaceCheck(result=fail("warehouse", exc, "check that this machine reaches it, and try again"))
    except BackfillError as exc:
        next_step = "grant the missing permission, or set BACKFILL_WAREHOUSE to another project"
        return warehouse, PlaceCheck(result=fail("warehouse", exc, next_step))
    url = settings.warehouse_url.partition("?")[0]
    message = f"{url} answers a query in {clock.round_trip_seconds:.1f} s"
    return warehouse, PlaceCheck(result=check_reads(warehouse, message), clock=clock)


def check_reads(warehouse: Warehouse, message: str) -> CheckResult:
    """Check how rows are read. `message` begins what is said of the warehouse."""
    try:
        problem = warehouse.find_slow_reads()
    except BackfillError as exc:
        return warn("warehouse", f"{message}, but how rows are read could not be checked: {exc}")
    if problem is None:
        return ok("warehouse", message)
    return warn("warehouse", f"{message}, but {problem}", "grant the role BigQuery Read Session User in that project")


def _read_now(warehouse: Warehouse) -> datetime:
    now = warehouse.now()
    assert now is not None, "only a local warehouse has no clock"
    return now


def _check_folder(folder: Path) -> CheckResult:
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return ok("warehouse", f"local files in {folder}")
    try:
        folder.lstat()
    except FileNotFoundError:
        return warn("warehouse", f"{folder} does not exist yet", "`backfill load TABLE FILE` creates it")
    except OSError as exc:
        return fail("warehouse", f"{folder} can't be read: {exc.strerror}", "set BACKFILL_WAREHOUSE to another folder")
    return fail("warehouse", f"{folder} is not a folder that can be read", "set BACKFILL_WAREHOUSE to one that is")
