"""Delivering alerts: what waits is claimed, sent as one message to each endpoint, and noted.

A dead endpoint costs bounded time and a later try, and nothing else.
"""

from __future__ import annotations

import json
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
from gated_backfill.common.alerts.sender import WRONG_URL
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Alert, Ledger
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead

log = structlog.get_logger()

MOST_AT_ONCE = 50  #: alerts in one message
MAX_TRIES = 24  #: about a day, with the waits between them
LONGEST_WAIT = timedelta(hours=1)
TOO_OLD = timedelta(days=3)
STARTING_SECONDS = 10.0  #: that importing apprise may take on a busy machine, before anything is sent
NO_ANSWER = "did not answer in time"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How one endpoint took a message."""

    endpoint: Endpoint
    error: str | None  #: why it did not, without secrets


def deliver(ledger: Ledger, settings: Settings, owner: str) -> str:
    """Send the alerts that wait, all in one message to each endpoint; returns in words what became of them.

    Returns within `alert_timeout_seconds` (and what starting to send takes), whatever the endpoints do. What an
    endpoint did not take is sent again later, to that endpoint alone. Raises `UserError` for settings that name none.
    """
    places = parse_endpoints(settings)
    muted = ledger.alerts.mute_alerts(settings.delivered_alert_kinds)
    late = ledger.alerts.fail_overdue_alerts(utcnow() - TOO_OLD, f"waited for more than {TOO_OLD.days} days")
    aside = "".join(f", {n} {what}" for n, what in ((muted, "not wanted"), (late, "too old to be told")) if n)
    if not places:
        return f"no endpoints are set{aside}"
    lease = utcnow() + timedelta(seconds=settings.alert_timeout_seconds + 2 * STARTING_SECONDS)
    claimed = ledger.alerts.claim_alerts(owner, lease, is_dead=is_dead, limit=MOST_AT_ONCE)
    if not claimed:
        return f"nothing to tell{aside}"
    told = _tell(claimed, places, settings)
    went = [_note(alert, told, places, ledger, settings, owner) for alert in claimed]
    failed = "; ".join(f"{one.endpoint.name} {one.error}" for one in told if one.error is not None)
    return f"{sum(went)} of {len(claimed)} alert(s) delivered{aside}" + (f"; {failed}" if failed else "")


def send(messages: Sequence[tuple[Endpoint, Message]], seconds: float) -> list[Sent]:
    """Send each endpoint its message, all at once, within that time. Raises nothing for what endpoints do."""
    listed = [{"url": place.url, "title": text.title, "body": text.body} for place, text in messages]
    errors = _ask_sender(listed, seconds)
    return [Sent(endpoint=place, error=errors[number]) for number, (place, _) in enumerate(messages)]


def check_urls(places: Sequence[Endpoint]) -> None:
    """Raises `UserError` naming the scheme of the first URL that apprise can't use. Sends nothing."""
    errors = _ask_sender([{"url": place.url, "title": None, "body": ""} for place in places], STARTING_SECONDS)
    for place, error in zip(places, errors, strict=True):
        if error == WRONG_URL:
            raise UserError(
                f"BACKFILL_ALERTS: the {scheme_of(place.url)}:// URL is not one that apprise knows or is incomplete"
            )


def _tell(claimed: Sequence[Alert], places: Sequence[Endpoint], settings: Settings) -> list[Sent]:
    """Send each endpoint what it does not have yet."""
    lacking = [(place, [alert for alert in claimed if place.name not in alert.delivered]) for place in places]
    return send(
        [(place, compose_message(alerts)) for place, alerts in lacking if alerts], settings.alert_timeout_seconds
    )


def _note(
    alert: Alert, told: Sequence[Sent], places: Sequence[Endpoint], ledger: Ledger, settings: Settings, owner: str
) -> bool:
    """Write down who has the alert now; returns whether everybody does."""
    took = {one.endpoint.name for one in told if one.error is None}
    delivered = sorted(took | set(alert.delivered))
    refused = [f"{one.endpoint.name} {one.error}" for one in told if one.endpoint.name not in delivered]
    if all(place.name in delivered for place in places):
        return ledger.alerts.mark_sent(alert.id, owner, delivered)
    tries = alert.attempts + 1
    again = None if tries >= MAX_TRIES else utcnow() + retry_delay(tries, settings.alert_retry_seconds)
    ledger.alerts.mark_failed(alert.id, owner, "; ".join(refused), delivered=delivered, again_at=again)
    log.warning("alert_not_delivered", kind=alert.kind, key=alert.key, tries=tries, error="; ".join(refused))
    return False


def retry_delay(tries: int, first_seconds: float) -> timedelta:
    """How long to wait after so many tries: it doubles, up to an hour."""
    return min(timedelta(seconds=first_seconds * 2 ** (tries - 1)), LONGEST_WAIT)


def _ask_sender(messages: Sequence[dict[str, Any]], seconds: float) -> list[str | None]:
    """What the sending process answers about each message; it is ended when the time is over."""
    errors: list[str | None] = [NO_ANSWER] * len(messages)
    if not messages:
        return errors
    with tempfile.TemporaryFile() as answers:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gated_backfill.common.alerts.sender"],
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the command, which ends this process itself
        )
        try:
            process.communicate(
                json.dumps({"messages": list(messages), "seconds": seconds}).encode(), STARTING_SECONDS + seconds
            )
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        answers.seek(0)
        for line in answers.read().splitlines(keepends=True):
            if line.endswith(b"\n"):
                answer = json.loads(line)
                errors[answer["number"]] = answer["error"]
    return errors
