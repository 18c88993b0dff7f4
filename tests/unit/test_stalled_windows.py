"""A window stands still when no living process works on it, and not while one does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gated_backfill.common.ledger.stores.current import DateClaim, WindowInFlight
from gated_backfill.common.runs.stalled_windows import Stall, find_stall
from tests.builders import NOON

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
LIVING = DateClaim(owner="living", until=NOON + HOUR)
GONE = DateClaim(owner="gone", until=NOON + HOUR)
EXPIRED = DateClaim(owner="living", until=NOON - SECOND)
LONG_AGO, LATELY = NOON - HOUR, NOON - SECOND


def window(**fields: Any) -> WindowInFlight:
    """A window whose dates nobody has, and that has not moved for long."""
    known = {"job": "players", "run_id": "run-1", "number": 1, "run_owner": None, "gate": None, "claims": ()}
    return WindowInFlight(**known | {"waits_for_gate": False, "moved_at": LONG_AGO} | fields)


@pytest.mark.parametrize(
    ("of", "stall"),
    [
        pytest.param({}, Stall.DATES, id="nobody-has-its-dates"),
        pytest.param({"moved_at": LATELY}, None, id="moved-lately"),
        pytest.param({"moved_at": NOON - 60 * SECOND}, None, id="at-the-limit"),
        pytest.param({"moved_at": NOON - 61 * SECOND}, Stall.DATES, id="beyond-the-limit"),
        pytest.param({"claims": (LIVING,)}, None, id="a-date-that-takes-long"),
        pytest.param({"claims": (GONE, LIVING)}, None, id="one-of-two-workers-lives"),
        pytest.param({"claims": (GONE,)}, Stall.DATES, id="its-worker-is-gone"),
        pytest.param({"claims": (EXPIRED,)}, Stall.DATES, id="its-lease-has-expired"),
        pytest.param({"claims": (LIVING,), "run_owner": "gone"}, Stall.DATES, id="its-command-was-killed"),
        pytest.param({"claims": (LIVING,), "run_owner": "living"}, None, id="its-command-lives"),
        pytest.param({"waits_for_gate": True}, Stall.GATE, id="no-gate-was-called"),
        pytest.param({"waits_for_gate": True, "moved_at": LATELY}, None, id="a-gate-is-about-to-come"),
        pytest.param({"waits_for_gate": True, "gate": LIVING}, None, id="a-gate-works"),
        pytest.param({"waits_for_gate": True, "gate": GONE, "moved_at": LATELY}, Stall.GATE, id="its-gate-is-gone"),
        pytest.param({"waits_for_gate": True, "gate": EXPIRED}, Stall.GATE, id="its-gate-does-not-renew-its-lease"),
    ],
)
def test_stalls(of: dict[str, Any], stall: Stall | None) -> None:
    found = find_stall(window(**of), NOON, stalled_after=60 * SECOND, is_gone=lambda owner: owner == "gone")
    assert found is stall
