"""Post-run reporting: record the alerts and the history of an ended run exactly once, by whichever process is first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from gated_backfill.common.alerts.delivery import MAX_ALERT_AGE
from gated_backfill.common.alerts.messages import (
    DateTally,
    EndedRun,
    alerts_for_run,
    beat_silent_alert,
    count_fallbacks,
)
from gated_backfill.common.errors import BackfillError, Retryable, UserError
from gated_backfill.common.history.metadata import write_metadata
from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.ledger.stores.actions import CONTROL_ACTIONS, describe_action
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead

if TYPE_CHECKING:
    from gated_backfill.common.config.settings import Settings
    from gated_backfill.common.warehouse.protocol import Warehouse

log = structlog.get_logger()

OWNER_GRACE = timedelta(minutes=10)  #: after its end, in which the command that started a run reports it
WEEK = timedelta(days=7)


class ReportingFailed(BackfillError):
    """Some ended runs could not be reported; the other ones were."""


def report_run(run_id: str, ledger: Ledger, warehouse: Warehouse, settings: Settings) -> bool:
    """Record the alerts and the history of an ended run, and return whether this call did it.

    May be repeated: an alert is recorded once, and a run that is active or reported already is left alone. A run that
    ended longer ago than `MAX_ALERT_AGE` gets its history only. Raises `Retryable` if the warehouse cannot take the
    history now; the run then counts as not reported.
    """
    run = ledger.runs.get_run(run_id)
    if not run.has_ended or run.reported_at is not None:
        return False
    now = utcnow()
    if run.finished_at is not None and now - run.finished_at <= MAX_ALERT_AGE:
        ledger.alerts.record_alerts(alerts_for_run(_ended_run(run, ledger, now), now))
    _write_history(run_id, ledger, warehouse, settings)
    return ledger.runs.mark_reported(run_id)


def _write_history(run_id: str, ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Write the run to the warehouse's history. Raises `Retryable` for a transient error; logs any other."""
    try:
        log.info("history_written", run=run_id, outcome=write_metadata(ledger, warehouse, settings, run_id))
    except Retryable:
        raise
    except BackfillError as exc:  # after fixing the cause, `backfill history --write-metadata` writes it
        log.error("history_not_written", run=run_id, error=str(exc))


def report_ended_runs(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> list[str]:
    """Report the ended runs that are not reported yet, and return the ids of the runs this call reported.

    A command reports the run it owns: such a run is left out for 10 minutes after its end, unless the command's
    process is dead. A failure does not stop the other runs; at the end `Retryable` is raised if every failure may pass
    on a retry, else `ReportingFailed`.
    """
    now = utcnow()
    reported: list[str] = []
    errors: dict[str, Exception] = {}
    for run in ledger.runs.list_unreported_runs():
        if not _may_report(run, now):
            continue
        try:
            if report_run(run.id, ledger, warehouse, settings):
                reported.append(run.id)
        except Exception as exc:  # noqa: BLE001 - raised below, after the other runs were reported
            log.error("run_report_failed", run=run.id, error=f"{type(exc).__name__}: {exc}")
            errors[run.id] = exc
    if errors:
        raise _failure(errors)
    return reported


def _failure(errors: Mapping[str, Exception]) -> BackfillError:
    kind = Retryable if all(isinstance(exc, Retryable) for exc in errors.values()) else ReportingFailed
    failure = kind("; ".join(f"run {run_id}: {type(exc).__name__}: {exc}" for run_id, exc in errors.items()))
    failure.__cause__ = next(iter(errors.values()))
    return failure


def record_beat_silence(ledger: Ledger, now: datetime | None = None) -> bool:
    """Record an alert if beat is silent, once for each silence, and return whether this call did."""
    alert = beat_silent_alert(ledger.maintenance.last_heartbeat(), now or utcnow())
    return alert is not None and ledger.alerts.record_alert(alert)


def primary_source(job: str) -> str | None:
    """The name of the job's first source; None if the job is not installed here."""
    try:
        return find_job(job).sources[0].name
    except UserError:
        return None


def _may_report(run: Run, now: datetime) -> bool:
    is_late = run.finished_at is not None and now - run.finished_at > OWNER_GRACE
    return run.owner is None or is_late or is_dead(run.owner)


def _ended_run(run: Run, ledger: Ledger, now: datetime) -> EndedRun:
    primary = primary_source(run.job)
    actions = ledger.actions.list_actions(run.id)
    return EndedRun(
        run=run,
        dates=DateTally.from_dates(ledger.history.iter_dates(run.id), primary),
        primary=primary,
        fallbacks_this_week=count_fallbacks(ledger.gauges.built_counts_by_source(now - WEEK), run.job, primary),
        orders=[describe_action(action) for action in actions if action.action in CONTROL_ACTIONS],
    )
