"""Alert delivery: claim the waiting alerts, send them as one message per endpoint, and record the result.

An endpoint that does not answer costs bounded time, and its alerts are sent again later.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from gated_backfill.common.alerts.endpoints import Endpoint, parse_endpoints, scheme_of
from gated_backfill.common.alerts.messages import Message, compose_message
from gated_backfill.common.alerts.sender import INVALID_URL
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Alert, Ledger
from gated_backfill.common.model.scheduling.retry import RetryPolicy
from gated_backfill.common.process.clock import utcnow

log = structlog.get_logger()

ALERTS_PER_MESSAGE = 50
MAX_ALERT_AGE = timedelta(days=3)  #: older alerts are not delivered any more
SENDER_STARTUP_SECONDS = 10.0  #: time that importing apprise may take on a busy machine, before anything is sent
NO_ANSWER = "did not answer in time"


@dataclass(frozen=True, kw_only=True)
class DeliveryResult:
    """The result of sending one endpoint a message."""

    endpoint: Endpoint
    error: str | None  #: why it failed, without secrets


def deliver(ledger: Ledger, settings: Settings, owner: str) -> str:
    """Send the waiting alerts, all in one message to each endpoint, and return a summary.

    `owner` claims the alerts in the ledger, so that each is sent by one process. Takes at most `alert_timeout_seconds`
    and the start of the sending process. An endpoint that failed gets its alerts again later. Raises `UserError` if the
    settings hold something that is not a URL.
    """
    endpoints = parse_endpoints(settings)
    muted = ledger.alerts.mute_alerts(settings.delivered_alert_kinds)
    expired = ledger.alerts.fail_overdue_alerts(
        utcnow() - MAX_ALERT_AGE, f"waited for more than {MAX_ALERT_AGE.days} days"
    )
    notes = "".join(f", {count} {reason}" for count, reason in ((muted, "muted"), (expired, "too old")) if count)
    if not endpoints:
        return f"no endpoints are set{notes}"
    lease_until = utcnow() + timedelta(seconds=settings.alert_timeout_seconds + 2 * SENDER_STARTUP_SECONDS)
    is_lost = ledger.heartbeats.is_lost
    alerts = ledger.alerts.claim_alerts(owner, lease_until, is_dead=is_lost, limit=ALERTS_PER_MESSAGE)
    if not alerts:
        return f"no alerts to send{notes}"
    results = _send_undelivered(alerts, endpoints, settings)
    delivered = [_record(alert, results, endpoints, ledger, settings, owner) for alert in alerts]
    errors = "; ".join(f"{result.endpoint.name} {result.error}" for result in results if result.error is not None)
    return f"{sum(delivered)} of {len(alerts)} alert(s) delivered{notes}" + (f"; {errors}" if errors else "")


def send(messages: Sequence[tuple[Endpoint, Message]], seconds: float) -> list[DeliveryResult]:
    """Send each endpoint its message, in parallel, with `seconds` for all. An endpoint's failure raises nothing."""
    requests = [{"url": endpoint.url, "title": text.title, "body": text.body} for endpoint, text in messages]
    errors = _run_sender(requests, seconds)
    return [DeliveryResult(endpoint=endpoint, error=errors[number]) for number, (endpoint, _) in enumerate(messages)]


def check_urls(endpoints: Sequence[Endpoint]) -> None:
    """Raise `UserError` with the scheme of the first URL that apprise cannot use. Sends nothing."""
    requests = [{"url": endpoint.url, "title": None, "body": ""} for endpoint in endpoints]
    for endpoint, error in zip(endpoints, _run_sender(requests, SENDER_STARTUP_SECONDS), strict=True):
        if error == INVALID_URL:
            raise UserError(
                f"BACKFILL_ALERTS: apprise does not know the {scheme_of(endpoint.url)}:// URL, or it is incomplete"
            )


def _send_undelivered(
    alerts: Sequence[Alert], endpoints: Sequence[Endpoint], settings: Settings
) -> list[DeliveryResult]:
    """Send each endpoint the alerts that were not delivered to it before."""
    pending = [(endpoint, [a for a in alerts if endpoint.name not in a.delivered]) for endpoint in endpoints]
    messages = [(endpoint, compose_message(undelivered)) for endpoint, undelivered in pending if undelivered]
    return send(messages, settings.alert_timeout_seconds)


def _record(
    alert: Alert,
    results: Sequence[DeliveryResult],
    endpoints: Sequence[Endpoint],
    ledger: Ledger,
    settings: Settings,
    owner: str,
) -> bool:
    """Record which endpoints have the alert now, and return whether all have."""
    delivered = sorted({result.endpoint.name for result in results if result.error is None} | set(alert.delivered))
    if all(endpoint.name in delivered for endpoint in endpoints):
        return ledger.alerts.mark_sent(alert.id, owner, delivered)
    errors = "; ".join(f"{r.endpoint.name} {r.error}" for r in results if r.endpoint.name not in delivered)
    attempts = alert.attempts + 1
    retries = alert_retries(settings.alert_retry_seconds)
    delay = timedelta(seconds=retries.delay_seconds(alert.attempts))
    retry_at = utcnow() + delay if retries.can_retry(alert.attempts) else None
    ledger.alerts.mark_failed(alert.id, owner, errors, delivered=delivered, again_at=retry_at)
    log.warning("alert_not_delivered", kind=alert.kind, key=alert.key, attempts=attempts, error=errors)
    return False


def alert_retries(first_delay_seconds: float) -> RetryPolicy:
    """Return the retry policy of an alert that was not delivered: delays of up to an hour, for about a day."""
    return RetryPolicy(max_retries=23, first_delay_seconds=first_delay_seconds, max_delay_seconds=3600)


def _run_sender(requests: Sequence[dict[str, Any]], seconds: float) -> list[str | None]:
    """Run the sending process and return its error for each request. It is killed when the time is over."""
    errors: list[str | None] = [NO_ANSWER] * len(requests)
    if not requests:
        return errors
    with tempfile.TemporaryFile() as answers:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gated_backfill.common.alerts.sender", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the command only, which ends this process in its own cleanup
        )
        try:
            process.communicate(
                json.dumps({"messages": list(requests), "seconds": seconds}).encode(), SENDER_STARTUP_SECONDS + seconds
            )
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        answers.seek(0)
        for line in answers.read().splitlines(keepends=True):
            if line.endswith(b"\n"):  # the last line is incomplete if the process was killed while writing it
                answer = json.loads(line)
                errors[answer["number"]] = answer["error"]
    return errors
