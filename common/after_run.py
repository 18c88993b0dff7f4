"""What follows the end of a run: it is told, once, whoever notices first that it was not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from common.alerts import Ending, alerts_of, beat_silent, fallbacks
from common.clock import utcnow
from common.delivery import deliver as deliver
from common.errors import UserError
from common.job import find_job
from common.ledger import Ledger, Run
from common.processes import is_dead

if TYPE_CHECKING:
    from common.settings import Settings
    from common.warehouse.base import Warehouse

log = structlog.get_logger()

TOLD_WITHIN = timedelta(days=1)  #: the end of a run that lies further back is history, not news
OWNER_IS_LATE = timedelta(minutes=10)  #: a command tells the end of its run within so long
WEEK = timedelta(days=7)
HEARTBEAT = "heartbeat"  #: the row of `maintenance` that beat renews each minute


def after_run(run_id: str, ledger: Ledger, warehouse: Warehouse, settings: Settings) -> bool:
    """Write down the alerts of an ended run and note that it was told; returns whether this call was the one.

    Repeating it does no harm: an alert is written once, and a run that is not over or was told already is left alone.
    """
    run = ledger.run(run_id)
    if not run.ended or run.reported_at is not None:
        return False
    now = utcnow()
    if run.finished_at is not None and now - run.finished_at <= TOLD_WITHIN:
        ledger.record_alerts(alerts_of(_ending(run, ledger, now), now))
    # Here the run's history goes to the warehouse: common.metadata.write_metadata(ledger, warehouse, settings, run_id)
    return ledger.mark_reported(run_id)


def report_ended(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> list[str]:
    """Tell the ended runs that nobody told: those of the broker's workers, and of commands that died before they did.

    A run whose command lives is left to it, unless that is long over: the command may be on a host we can't see.
    """
    now = utcnow()
    left = [run for run in ledger.unreported_runs() if _is_left(run, now)]
    return [run.id for run in left if after_run(run.id, ledger, warehouse, settings)]


def check_beat(ledger: Ledger, now: datetime | None = None) -> bool:
    """Write down that beat is silent, once for each silence; returns whether this call did."""
    alert = beat_silent(ledger.maintenance_finished().get(HEARTBEAT), now or utcnow())
    return alert is not None and ledger.record_alert(alert)


def primary_source(job: str) -> str | None:
    """The name of the job's first source; None when the job is not installed here."""
    try:
        return find_job(job).sources[0].name
    except UserError:
        return None


def _is_left(run: Run, now: datetime) -> bool:
    late = run.finished_at is not None and now - run.finished_at > OWNER_IS_LATE
    return run.owner is None or late or is_dead(run.owner)


def _ending(run: Run, ledger: Ledger, now: datetime) -> Ending:
    primary = primary_source(run.job)
    return Ending(
        run=run,
        dates=ledger.dates(run.id),
        primary=primary,
        fallbacks_this_week=fallbacks(ledger.built_from(now - WEEK), run.job, primary),
    )
