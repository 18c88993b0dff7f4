"""`backfill doctor`: check everything that a run needs, and change nothing."""

from __future__ import annotations

from gated_backfill.common.config.settings import Settings
from gated_backfill.producer.doctor.alerts import check_alerts
from gated_backfill.producer.doctor.broker import check_broker, lasting_broker_url
from gated_backfill.producer.doctor.clocks import check_clocks
from gated_backfill.producer.doctor.consumers import check_consumers
from gated_backfill.producer.doctor.jobs import (
    check_shared_targets,
    check_time_limits,
    jobs_to_check,
    load_jobs_to_check,
)
from gated_backfill.producer.doctor.ledger import check_ledger
from gated_backfill.producer.doctor.machine import check_files, check_home, check_packages, check_staging
from gated_backfill.producer.doctor.results import CheckLevel, CheckResult, warn
from gated_backfill.producer.doctor.samples import check_sample
from gated_backfill.producer.doctor.tables import check_tables
from gated_backfill.producer.doctor.warehouse import check_warehouse
from gated_backfill.producer.doctor.workers import check_workers


def run_checks(settings: Settings, job: str | None, sample: int = 0) -> list[CheckResult]:
    """Run every check, also after a failure: first the settings, then the tables of the jobs.

    `job` names the only job to check; None checks the user's own jobs, and the shipped example if it is in use.
    `sample` is the number of dates of each job to build in memory.
    """
    broker, ledger = check_broker(settings), check_ledger(settings)
    warehouse, warehouse_check = check_warehouse(settings)
    broker_answers = broker.result.level is not CheckLevel.FAIL
    ledger_is_usable = ledger.result.level is not CheckLevel.FAIL
    names = [job] if job else jobs_to_check(settings, ledger_is_usable=ledger_is_usable)
    jobs, unloadable = load_jobs_to_check(names)
    results = [
        check_packages(),
        broker.result,
        ledger.result,
        warehouse_check.result,
        check_staging(settings),
        check_home(settings),
        check_files(settings),
        check_alerts(settings),
        *check_clocks({"broker": broker, "ledger": ledger, "warehouse": warehouse_check}),
        *check_time_limits(settings, jobs),
        *unloadable,
        *check_consumers(settings, ledger_is_usable=ledger_is_usable),
        *(check_workers(settings, lasting_broker_url(settings), jobs) if broker_answers else []),
    ]
    results += check_shared_targets(settings, jobs, ledger_is_usable=ledger_is_usable)
    for loaded_job in jobs:
        if warehouse is not None:
            results += check_tables(settings, warehouse, loaded_job)
            results += [check_sample(loaded_job, warehouse, sample)] if sample else []
        else:
            results.append(warn(f"{loaded_job.name}: tables", "not looked at: the warehouse can't be reached"))
    return results
