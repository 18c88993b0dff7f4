"""Check that workers take tasks from the queues that they were started for, and that their hosts can work."""

from __future__ import annotations

from contextlib import closing

from gated_backfill.common.alerts.consumers import LostConsumer, list_lost_consumers
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.runs.faulty_workers import FaultyWorkers, list_faulty_workers
from gated_backfill.producer.doctor.broker import lasting_broker_url
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn


def check_consumers(settings: Settings, *, ledger_is_usable: bool) -> list[CheckResult]:
    """One result for each worker that cannot work, lives without taking tasks, or is lost without a replacement.

    None without a lasting broker: the workers of a run's own stack end with it.
    """
    if not ledger_is_usable or lasting_broker_url(settings) is None:
        return []
    try:
        with closing(open_ledger(settings.ledger_url, create=False)) as ledger:
            lost, faulty = list_lost_consumers(ledger, settings.silent_after), list_faulty_workers(ledger)
    except BackfillError:  # it does not exist, or another version is needed: the check of the ledger says so
        return []
    results = [*_fault_results(faulty), *map(_result, lost)]
    return results or [ok("consumers", "no worker has stopped taking tasks")]


def _fault_results(faulty: FaultyWorkers) -> list[CheckResult]:
    """One result for each worker whose host cannot work, and one if nobody else takes its tasks."""
    next_step = "correct that on this host; the worker notices it by itself"
    results = [warn("hosts", worker.describe_fault(), next_step) for worker in faulty.workers]
    if stop := faulty.describe_stop():
        results.append(fail("hosts", stop, "correct that on one of the hosts: the dates wait in the queue"))
    return results


def _result(consumer: LostConsumer) -> CheckResult:
    next_step = "restart the worker" if consumer.is_silent else "restart the worker, or add the queue to it in Flower"
    if consumer.has_other:
        return warn("consumers", consumer.describe(), next_step)
    return fail("consumers", consumer.describe(), next_step)
