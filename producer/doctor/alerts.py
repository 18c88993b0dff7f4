"""Check of the alert endpoints."""

from __future__ import annotations

from gated_backfill.common.alerts.delivery import check_urls
from gated_backfill.common.alerts.endpoints import parse_endpoints
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn


def check_alerts(settings: Settings) -> CheckResult:
    """Check that the URLs of BACKFILL_ALERTS can be used, without sending anything."""
    try:
        endpoints = parse_endpoints(settings)
        check_urls(endpoints)
    except UserError as exc:
        return fail("alerts", exc, "set BACKFILL_ALERTS to URLs as apprise takes them, separated by spaces")
    if not endpoints:
        next_step = "set BACKFILL_ALERTS to the URLs that are to receive them"
        return warn("alerts", "go nowhere: BACKFILL_ALERTS is not set", next_step)
    names = ", ".join(endpoint.name for endpoint in endpoints)
    return ok("alerts", f"go to {names}; `backfill alerts test` sends one")
