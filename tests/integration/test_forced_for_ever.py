"""That a date was forced, by whom and why stays visible, whatever is done afterwards."""

from __future__ import annotations

import json
from typing import Any

from gated_backfill.common.ledger import Ledger
from gated_backfill.common.process.user import describe_user
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.maintenance import retention
from tests.builders import FEB_23
from tests.lab import Lab, players


def told(lab: Lab, run: str) -> tuple[dict[str, Any], str]:
    return json.loads(lab.inside("status", run, "--json").stdout), lab.inside("history", "--csv", "-").stdout


def said_of(ledger: Ledger, run: str) -> tuple[Any, ...]:
    (row,) = ledger.dates.list_dates(run)
    found = ledger.runs.get_run(run)
    return row.verdict, row.reason, found.options["forced_because"], found.requested_by


def test_a_forced_date_stays_one_after_a_later_run_an_undo_and_retention(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(10), first=players(3))
    forced = lab.run([FEB_23], "probe", because="the feed is gone").run.id
    before = said_of(lab.ledger, forced)
    assert before[0] is not None
    assert (before[0].value, before[2], before[3]) == ("forced", "the feed is gone", describe_user())

    lab.probe("first", FEB_23, players(10))
    again = lab.run([FEB_23], "probe", reprocess=Reprocess.ALL).run.id
    assert said_of(lab.ledger, again)[0] is not before[0]
    assert lab.inside("undo", again, "--yes").returncode == 0
    assert lab.inside("undo", forced, "--yes").returncode == 0
    for work in (retention.remove_old_staged_files, retention.remove_old_quarantine, retention.remove_old_undo_data):
        work(lab.opened_again())

    assert said_of(lab.ledger, forced) == before
    status, history = told(lab, forced)
    assert "the feed is gone" in json.dumps(status)
    assert "forced" in history
    assert describe_user() in json.dumps(status)
