"""Check that workers take tasks from the queues that they were started for."""

from __future__ import annotations

from contextlib import closing

from gated_backfill.common.alerts.consumers import LostConsumer, list_lost_consumers
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.producer.doctor.broker import lasting_broker_url
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn


def check_consumers(settings: Settings, *, ledger_is_usable: bool) -> list[CheckResult]:
    """One result for each worker that lives without taking tasks, or that is lost without a replacement.

    None without a lasting broker: the workers of a run's own stack end with it.
    """
    if not ledger_is_usable or lasting_broker_url(settings) is None:
        return []
    try:
        with closing(open_ledger(settings.ledger_url, create=False)) as ledger:
            lost = list_lost_consumers(ledger, settings.silent_after)
    except BackfillError:  # it does not exist, or another version is needed: the check of the ledger says so
        return []
    return [_result(consumer) for consumer in lost] or [ok("consumers", "no worker has stopped taking tasks")]


def _result(consumer: LostConsumer) -> CheckResult:
    next_step = "restart the worker" if consumer.is_silent else "restart the worker, or add the queue to it in Flower"
    if consumer.has_other:
        return warn("consumers", consumer.describe(), next_step)
    return fail("consumers", consumer.describe(), next_step)
