"""The metrics of `/metrics`, read from the ledger and the broker at each scrape with a time limit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from statistics import median
from typing import Generic, TypeVar

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gated_backfill.common.alerts.delivery import deliver
from gated_backfill.common.audit.findings import REPAIRABLE_FINDINGS
from gated_backfill.common.broker.queue_depth import queue_depths
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.history.figures import wall_seconds
from gated_backfill.common.ledger import DateState, Ledger, Run, open_ledger
from gated_backfill.common.ledger.states import OutstandingState
from gated_backfill.common.ledger.stores.gauges import Counts, DateMetrics
from gated_backfill.common.ledger.stores.maintenance import HEARTBEAT
from gated_backfill.common.model.scheduling.queues import QUEUES
from gated_backfill.common.process.clock import midnight, utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.process.printable_text import printable
from gated_backfill.common.runs.faulty_workers import count_faults
from gated_backfill.common.runs.post_run import primary_source, record_beat_silence
from gated_backfill.common.runs.stalled_windows import Stall
from gated_backfill.common.runs.state_now import StateNow, read_state_now

log = structlog.get_logger()
T = TypeVar("T")

SCRAPE_TIMEOUT_SECONDS = 4.0  #: for the ledger and for the broker, each; below Prometheus' own time limit
RECENT_PERIOD = timedelta(days=7)
QUANTILES = (0.5, 0.9, 1.0)
ALERT_STATES = ("pending", "sending", "failed")
CHECKPOINTS = {False: "none", True: "earlier"}  #: of an outstanding date: by whether it has one
END_STATES = (DateState.CHECKPOINTED, DateState.BLOCKED, DateState.FAILED, DateState.SKIPPED, DateState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class LastRunMetrics:
    """The figures of the run of a job that ended last."""

    run: Run
    states: dict[DateState, int]
    coverage: tuple[float, float] | None  #: minimum and median
    seconds: tuple[float, ...]  #: build seconds per date, at `QUANTILES`
    fallback: int | None  #: dates not built from the primary source alone; None if unknown


class TimedRead(Generic[T]):
    """A read with a time limit, after which the caller continues without it. At most one runs at a time."""

    def __init__(self, subject: str, read: Callable[[], T]) -> None:
        self._subject, self._read = subject, read
        self._busy = threading.Lock()

    def get(self) -> T | None:
        """Return the value; None when the read failed, exceeded the time limit, or an earlier one still hangs."""
        if not self._busy.acquire(timeout=SCRAPE_TIMEOUT_SECONDS):
            return None
        done, values = threading.Event(), list[T]()

        def read() -> None:
            try:
                values.append(self._read())
            except Exception as exc:  # noqa: BLE001 - a scrape answers despite any error
                _log_failure(self._subject, exc)
            finally:
                self._busy.release()
                done.set()

        threading.Thread(target=read, daemon=True).start()
        done.wait(SCRAPE_TIMEOUT_SECONDS)
        return values[0] if values else None


@dataclass
class LazyLedger:
    """The ledger, opened at the first successful attempt, and only read."""

    settings: Settings

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger. Raises the error of opening it; the next call retries."""
        return open_ledger(self.settings.ledger_url, create=False)


def _log_failure(subject: str, exc: Exception) -> None:
    error = str(exc) if isinstance(exc, BackfillError) else type(exc).__name__
    log.warning("scrape_failed", what=subject, error=error)


class BackfillCollector(Collector):
    """Reads the ledger and the broker at each scrape."""

    def __init__(self, settings: Settings) -> None:
        lazy = LazyLedger(settings)
        self._settings = settings
        self._ledger = TimedRead("ledger", lambda: list(ledger_metrics(lazy.ledger, settings, utcnow())))
        self._ledger_check = TimedRead("ledger", lambda: lazy.ledger.gauges.check_readable() or True)
        self._broker = TimedRead("broker", lambda: _depths(settings))

    def is_ledger_answering(self) -> bool:
        """Whether the ledger can be read within the time limit."""
        return self._ledger_check.get() is True

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Describe nothing: the metrics depend on the ledger, which need not answer yet."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        started = time.monotonic()
        families = self._ledger.get()
        is_up = float(families is not None)
        yield gauge("backfill_ledger_up", [((), is_up)])
        yield from families or []
        if self._settings.broker is not None:
            depths = self._broker.get()
            is_up = float(depths is not None)
            yield gauge("backfill_broker_up", [((), is_up)])
            yield from broker_metrics(*depths) if depths is not None else []
        yield gauge("backfill_scrape_seconds", [((), time.monotonic() - started)])


Samples = Sequence[tuple[tuple[str, ...], float]]


#: The help text of each metric. All are gauges, because retention makes them fall.
METRICS = {
    "backfill_ledger_up": "Whether the ledger answered this scrape.",
    "backfill_broker_up": "Whether the broker answered this scrape.",
    "backfill_scrape_seconds": "Duration of this scrape.",
    "backfill_outstanding_dates": "Dates now that a run ended blocked, held or failed, and no run has completed or "
    "skipped since; with the checkpoint of an earlier run, or none.",
    "backfill_stale_dates": "Checkpointed dates now that another version of the job has built. Sources and inputs are "
    "not compared.",
    "backfill_flagged_dates": "Published dates now that an audit flagged and no run has repaired yet.",
    "backfill_newest_checkpointed_date_timestamp_seconds": "The newest checkpointed date, as its midnight (UTC).",
    "backfill_stalled_windows": "Windows now whose gate is silent, or whose dates do not move.",
    "backfill_live_workers": "Workers that renew their heartbeat: shared ones, and those of one run's own stack.",
    "backfill_queue_consumers": "Shared workers that take tasks from each queue now.",
    "backfill_checkpointed_dates": "Dates that are checkpointed, by the verdict of the gate.",
    "backfill_recent_dates": "Dates of the runs that ended in the last 7 days, by how they ended.",
    "backfill_recent_dates_by_source": "Checkpointed dates of the runs that ended in the last 7 days, "
    "by the source they were built from.",
    "backfill_active_runs": "Runs that have not ended.",
    "backfill_oldest_unfinished_date_age_seconds": "Time since the launch of the oldest active run with "
    "unfinished dates.",
    "backfill_alerts": "Alerts of the last 7 days that are pending, being sent, or failed for good.",
    "backfill_beat_heartbeat_age_seconds": "Time since the last heartbeat of beat; absent if beat never ran.",
    "backfill_maintenance_finished_timestamp_seconds": "When each maintenance task last succeeded.",
    "backfill_maintenance_failed": "Whether the last attempt of each maintenance task failed.",
    "backfill_last_cleanup_timestamp_seconds": "When stale rows were last removed from each table.",
    "backfill_last_run_dates": "Dates of the run that ended last, by how they ended.",
    "backfill_last_run_coverage_ratio": "Coverage of the dates of the run that ended last: the minimum and the median.",
    "backfill_last_run_fallback_dates": "Dates of the run that ended last that were not built from "
    "the primary source alone.",
    "backfill_last_run_date_seconds": "Seconds to build a date in the run that ended last, by quantile.",
    "backfill_last_run_duration_seconds": "Duration of the run that ended last.",
    "backfill_last_run_finished_timestamp_seconds": "When the run that ended last ended.",
    "backfill_faulty_workers": "Workers that take no tasks because their host cannot work, by what it cannot use.",
    "backfill_queue_tasks": "Tasks that wait in each queue of the broker.",
    "backfill_unacknowledged_tasks": "Tasks that workers have received and not finished.",
}


def gauge(name: str, samples: Samples, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, METRICS[name], labels=labels)
    for values, value in samples:
        family.add_metric([printable(text) for text in values], value)
    return family


def to_samples(counts: Counts) -> Samples:
    return [(key, float(n)) for key, n in sorted(counts.items())]


def samples_by_name(values: Mapping[str, float]) -> Samples:
    return [((name,), float(value)) for name, value in sorted(values.items())]


def ledger_metrics(ledger: Ledger, settings: Settings, now: datetime) -> Iterator[GaugeMetricFamily]:
    """The metrics read from the ledger."""
    gauges, week_ago = ledger.gauges, now - RECENT_PERIOD
    state = read_state_now(ledger, settings)
    yield from state_metrics(state)
    if settings.broker is not None:  # without it, the workers belong to the stack of one run
        yield gauge("backfill_queue_consumers", samples_by_name(state.consumers), "queue")
    yield gauge("backfill_checkpointed_dates", to_samples(gauges.checkpoint_counts()), "job", "verdict")
    yield gauge("backfill_recent_dates", to_samples(gauges.ended_date_counts(week_ago)), "job", "state")
    by_source = to_samples(gauges.built_counts_by_source(week_ago))
    yield gauge("backfill_recent_dates_by_source", by_source, "job", "source")
    yield gauge("backfill_active_runs", to_samples(gauges.active_run_counts()), "job", "state")
    waiting_since = gauges.oldest_waiting_since()
    ages = dict.fromkeys((one.job for one in state.jobs), 0.0)
    ages |= {job: _age(since, now) for job, since in waiting_since.items()}
    yield gauge("backfill_oldest_unfinished_date_age_seconds", samples_by_name(ages), "job")
    faulty = count_faults(ledger.heartbeats.list_workers())
    yield gauge("backfill_faulty_workers", to_samples(faulty), "worker", "host", "fault")
    yield from last_run_metrics([read_last_run(ledger, run) for run in gauges.last_ended_runs()])
    yield from maintenance_metrics(ledger, now)


def state_metrics(state: StateNow) -> Iterator[GaugeMetricFamily]:
    """The metrics of the state now. They say 0 where there is nothing, so that a missing one means: not known."""
    outstanding = [
        ((one.job, status.value, checkpoint), float(one.count(status, has_checkpoint=has_checkpoint)))
        for one in state.jobs
        for status in OutstandingState
        for has_checkpoint, checkpoint in CHECKPOINTS.items()
    ]
    yield gauge("backfill_outstanding_dates", outstanding, "job", "state", "checkpoint")
    yield gauge("backfill_stale_dates", samples_by_name({one.job: one.other_versions for one in state.jobs}), "job")
    findings = sorted(finding.value for finding in REPAIRABLE_FINDINGS)
    flagged = [((one.job, finding), float(one.flagged.get(finding, 0))) for one in state.jobs for finding in findings]
    yield gauge("backfill_flagged_dates", flagged, "job", "finding")
    newest = {one.job: midnight(one.newest).timestamp() for one in state.jobs if one.newest is not None}
    yield gauge("backfill_newest_checkpointed_date_timestamp_seconds", samples_by_name(newest), "job")
    stalls = Counter((one.window.job, one.stall) for one in state.stalled)
    stalled = [((one.job, stall.value), float(stalls[one.job, stall])) for one in state.jobs for stall in Stall]
    yield gauge("backfill_stalled_windows", stalled, "job", "stall")
    embedded = sum(worker.is_embedded for worker in state.workers)
    workers = {"run": embedded, "shared": len(state.workers) - embedded}
    yield gauge("backfill_live_workers", samples_by_name(workers), "stack")


def maintenance_metrics(ledger: Ledger, now: datetime) -> Iterator[GaugeMetricFamily]:
    """The metrics of beat, cleanup and alerts."""
    gauges = ledger.gauges
    alerts = gauges.alert_counts(now - RECENT_PERIOD)
    yield gauge("backfill_alerts", [((state,), float(alerts.get((state,), 0))) for state in ALERT_STATES], "state")
    last_done = gauges.maintenance_last_done()
    heartbeat = last_done.get(HEARTBEAT)
    ages = [] if heartbeat is None else [((), _age(heartbeat, now))]
    yield gauge("backfill_beat_heartbeat_age_seconds", ages)
    finished = {name: at.timestamp() for name, at in last_done.items()}
    yield gauge("backfill_maintenance_finished_timestamp_seconds", samples_by_name(finished), "name")
    yield gauge("backfill_maintenance_failed", samples_by_name(gauges.maintenance_failed()), "name")
    cleaned = {table: at.timestamp() for table, at in gauges.last_cleanups().items()}
    yield gauge("backfill_last_cleanup_timestamp_seconds", samples_by_name(cleaned), "table")


def last_run_metrics(last_runs: Sequence[LastRunMetrics]) -> Iterator[GaugeMetricFamily]:
    """The metrics of each job's last ended run."""
    states = [((last.run.job, state.value), float(n)) for last in last_runs for state, n in last.states.items()]
    yield gauge("backfill_last_run_dates", states, "job", "state")
    coverage = [
        ((last.run.job, name), value)
        for last in last_runs
        if last.coverage
        for name, value in zip(("min", "median"), last.coverage, strict=True)
    ]
    yield gauge("backfill_last_run_coverage_ratio", coverage, "job", "stat")
    fallbacks = {last.run.job: last.fallback for last in last_runs if last.fallback is not None}
    yield gauge("backfill_last_run_fallback_dates", samples_by_name(fallbacks), "job")
    seconds = [
        ((last.run.job, str(quantile)), value)
        for last in last_runs
        for quantile, value in zip(QUANTILES, last.seconds, strict=False)
    ]
    yield gauge("backfill_last_run_date_seconds", seconds, "job", "quantile")
    durations = {last.run.job: wall_seconds(last.run) for last in last_runs}
    known = {job: duration for job, duration in durations.items() if duration is not None}
    yield gauge("backfill_last_run_duration_seconds", samples_by_name(known), "job")
    ends = {last.run.job: last.run.finished_at.timestamp() for last in last_runs if last.run.finished_at}
    yield gauge("backfill_last_run_finished_timestamp_seconds", samples_by_name(ends), "job")


def broker_metrics(waiting: dict[str, int], unacknowledged: int) -> Iterator[GaugeMetricFamily]:
    yield gauge("backfill_queue_tasks", [((queue,), float(waiting[queue])) for queue in QUEUES], "queue")
    yield gauge("backfill_unacknowledged_tasks", [((), float(unacknowledged))])


def read_last_run(ledger: Ledger, run: Run) -> LastRunMetrics:
    """Read the figures of an ended run."""
    return summarize_run(run, _list_dates(ledger, run.id), primary_source(run.job))


@lru_cache(maxsize=64)
def _list_dates(ledger: Ledger, run_id: str) -> tuple[DateMetrics, ...]:
    """The dates of an ended run, cached because they no longer change."""
    return tuple(ledger.gauges.list_date_metrics(run_id))


def summarize_run(run: Run, dates: Sequence[DateMetrics], primary: str | None) -> LastRunMetrics:
    """Compute the figures of an ended run. `primary` is the name of the job's primary source, None if unknown."""
    states = {state: sum(row.state is state for row in dates) for state in END_STATES}
    ratios = sorted(row.matched / row.expected for row in dates if row.expected and row.matched is not None)
    seconds = sorted(row.seconds for row in dates if row.seconds is not None)
    sources = [row.source for row in dates if row.state is DateState.CHECKPOINTED and row.source is not None]
    return LastRunMetrics(
        run=run,
        states=states,
        coverage=(ratios[0], median(ratios)) if ratios else None,
        seconds=tuple(quantile(seconds, share) for share in QUANTILES) if seconds else (),
        fallback=None if primary is None else sum(source != primary for source in sources),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of sorted values; `share` is from 0 to 1."""
    rank = max(int(-(-len(ordered) * share // 1)), 1)
    return ordered[rank - 1]


def deliver_pending_alerts(settings: Settings) -> None:
    """Record when beat is silent, and deliver pending alerts in its place."""
    try:
        ledger = open_ledger(settings.ledger_url, create=False)
        try:
            record_beat_silence(ledger)
            deliver(ledger, settings, process_identity())
        finally:
            ledger.close()
    except Exception as exc:  # noqa: BLE001 - retried in a minute
        _log_failure("alerts", exc)


def _age(since: datetime, now: datetime) -> float:
    return max((now - since).total_seconds(), 0.0)


def _depths(settings: Settings) -> tuple[dict[str, int], int]:
    assert settings.broker is not None
    return queue_depths(settings.broker.get_secret_value(), timeout_seconds=SCRAPE_TIMEOUT_SECONDS / 2)
