"""What follows the end of a run: it is told, once, whoever notices first that it was not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from gated_backfill.common.alerts.delivery import TOO_OLD
from gated_backfill.common.alerts.delivery import deliver as deliver
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

TOLD_WITHIN = TOO_OLD  #: the end of a run that lies further back is history, not news
OWNER_IS_LATE = timedelta(minutes=10)  #: a command tells the end of its run within so long
WEEK = timedelta(days=7)


class Untold(BackfillError):
    """The ends of some runs could not be told; those of the others were."""


def report_run(run_id: str, ledger: Ledger, warehouse: Warehouse, settings: Settings) -> bool:
    """Write down the alerts of an ended run, and its history; returns whether this call was the one that did.

    Repeating it does no harm: an alert is written once, and a run that is not over or was told already is left alone.
    Raises `Retryable` when the warehouse does not take the history now: the run is then still to be told.
    """
    run = ledger.runs.get_run(run_id)
    if not run.has_ended or run.reported_at is not None:
        return False
    now = utcnow()
    if run.finished_at is not None and now - run.finished_at <= TOLD_WITHIN:
        ledger.alerts.record_alerts(alerts_for_run(_ending(run, ledger, now), now))
    _write_history(run_id, ledger, warehouse, settings)
    return ledger.runs.mark_reported(run_id)


def _write_history(run_id: str, ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Write the run to the warehouse's history. Raises `Retryable` for a passing trouble; a lasting one is logged."""
    try:
        log.info("history_written", run=run_id, outcome=write_metadata(ledger, warehouse, settings, run_id))
    except Retryable:
        raise
    except BackfillError as exc:  # `backfill history --write-metadata` makes up for it once that is mended
        log.error("history_not_written", run=run_id, error=str(exc))


def report_ended_runs(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> list[str]:
    """Tell the ended runs that nobody told: those of the broker's workers, and of commands that died before they did.

    A run whose command lives is left to it, unless that is long over: the command may be on a host we can't see.
    One that can't be told keeps none of the others from it: then raises `Untold`, or `Retryable` where all that failed
    may succeed a little later.
    """
    now = utcnow()
    told: list[str] = []
    troubles: dict[str, Exception] = {}
    for run in (one for one in ledger.runs.list_unreported_runs() if _is_left(one, now)):
        try:
            if report_run(run.id, ledger, warehouse, settings):
                told.append(run.id)
        except Exception as exc:  # noqa: BLE001 - raised below, once the other runs have had their turn
            log.error("run_report_failed", run=run.id, error=f"{type(exc).__name__}: {exc}")
            troubles[run.id] = exc
    if troubles:
        raise _failure(troubles)
    return told


def _failure(troubles: Mapping[str, Exception]) -> BackfillError:
    kind = Retryable if all(isinstance(exc, Retryable) for exc in troubles.values()) else Untold
    found = kind("; ".join(f"run {run_id}: {type(exc).__name__}: {exc}" for run_id, exc in troubles.items()))
    found.__cause__ = next(iter(troubles.values()))
    return found


def record_beat_silence(ledger: Ledger, now: datetime | None = None) -> bool:
    """Write down that beat is silent, once for each silence; returns whether this call did."""
    alert = beat_silent_alert(ledger.maintenance.last_heartbeat(), now or utcnow())
    return alert is not None and ledger.alerts.record_alert(alert)


def primary_source(job: str) -> str | None:
    """The name of the job's first source; None when the job is not installed here."""
    try:
        return find_job(job).sources[0].name
    except UserError:
        return None


def _is_left(run: Run, now: datetime) -> bool:
    late = run.finished_at is not None and now - run.finished_at > OWNER_IS_LATE
    return run.owner is None or late or is_dead(run.owner)


def _ending(run: Run, ledger: Ledger, now: datetime) -> EndedRun:
    primary = primary_source(run.job)
    return EndedRun(
        run=run,
        dates=DateTally.from_dates(ledger.history.iter_dates(run.id), primary),
        primary=primary,
        fallbacks_this_week=count_fallbacks(ledger.gauges.built_counts_by_source(now - WEEK), run.job, primary),
        orders=[describe_action(one) for one in ledger.actions.list_actions(run.id) if one.action in CONTROL_ACTIONS],
    )
