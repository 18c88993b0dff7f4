"""What every ledger promises of flagged dates: one suite, each database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

import pytest

from gated_backfill.common.errors import DatesInUse
from gated_backfill.common.ledger import DateState, Ledger, NewDate, NewFlag, Run, RunState, open_ledger
from gated_backfill.common.process.clock import utcnow
from tests.builders import (
    DAYS,
    FEB_23,
    FEB_24,
    FEB_25,
    JOB,
    blocked_date,
    checkpointed_date,
    new_run,
    published_date,
    queued_run,
    race,
    undo_begun,
)


def flag(day: date, finding: str = "incomplete") -> NewFlag:
    return NewFlag(day=day, finding=finding, reason="1 of 187", expected=187, matched=1)


def flagged(ledger: Ledger, days: Sequence[date] = DAYS) -> None:
    ledger.flags.flag_dates(JOB, [flag(day) for day in days], "an audit")


def repaired(ledger: Ledger, *days: date, end: RunState = RunState.SUCCEEDED) -> Run:
    """An ended run that checkpointed the days."""
    run = queued_run(ledger)
    for day in days:
        checkpointed_date(ledger, run, day)
    ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=end)
    return run


def test_a_flag_reads_back_as_it_was_written(ledger: Ledger) -> None:
    before = utcnow()
    flagged(ledger, [FEB_24, FEB_23])
    found = ledger.flags.list_open_flags(JOB)
    assert list(found) == [FEB_23, FEB_24]
    one = found[FEB_23]
    assert (one.job, one.finding, one.reason, one.expected, one.matched) == (JOB, "incomplete", "1 of 187", 187, 1)
    assert before <= one.flagged_at <= utcnow()
    assert (one.flagged_by, one.cleared_at, one.cleared_by) == ("an audit", None, None)


def test_flags_are_of_one_job_and_none_is_no_flag(ledger: Ledger) -> None:
    ledger.flags.flag_dates("teams", [flag(FEB_23)], "an audit")
    ledger.flags.flag_dates(JOB, [], "an audit")
    assert ledger.flags.list_open_flags(JOB) == {}
    assert list(ledger.flags.list_open_flags("teams")) == [FEB_23]


def test_flagging_again_renews_a_flag_and_opens_a_cleared_one(ledger: Ledger) -> None:
    flagged(ledger, [FEB_23, FEB_24])
    first = ledger.flags.list_open_flags(JOB)[FEB_23]
    assert ledger.flags.clear_flags(JOB, [FEB_23], "audit") == [FEB_23]
    ledger.flags.flag_dates(JOB, [flag(FEB_23, "missing"), flag(FEB_24, "changed")], "somebody")
    found = ledger.flags.list_open_flags(JOB)
    assert {day: one.finding for day, one in found.items()} == {FEB_23: "missing", FEB_24: "changed"}
    assert found[FEB_23].flagged_at > first.flagged_at
    assert found[FEB_23].flagged_by == "somebody"


def test_clearing_tells_which_dates_were_flagged(ledger: Ledger) -> None:
    flagged(ledger, [FEB_23, FEB_24])
    assert ledger.flags.clear_flags(JOB, DAYS, "audit") == [FEB_23, FEB_24]
    assert ledger.flags.clear_flags(JOB, DAYS, "somebody else") == []
    assert ledger.flags.clear_flags(JOB, [], "audit") == []
    assert {one.cleared_by for one in ledger.flags.list_flags(JOB).values()} == {"audit"}
    assert ledger.flags.list_open_flags(JOB) == {}


def test_a_checkpoint_clears_the_flag_of_its_date_only(ledger: Ledger) -> None:
    flagged(ledger)
    ledger.flags.flag_dates("teams", [flag(FEB_23)], "an audit")
    run = queued_run(ledger)
    checkpointed_date(ledger, run, FEB_23)
    blocked_date(ledger, run, FEB_24)
    assert list(ledger.flags.list_open_flags(JOB)) == [FEB_24, FEB_25]
    assert list(ledger.flags.list_open_flags("teams")) == [FEB_23]
    cleared = ledger.flags.list_flags(JOB)[FEB_23]
    assert cleared.cleared_by == run.id
    assert cleared.cleared_at == ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_23)[FEB_23].checkpointed_at


def test_a_flag_of_before_keeps_who_cleared_it_when_its_date_is_checkpointed_again(ledger: Ledger) -> None:
    flagged(ledger, [FEB_23])
    first = repaired(ledger, FEB_23, end=RunState.CANCELLED)
    checkpointed_date(ledger, queued_run(ledger), FEB_23)
    assert ledger.flags.list_flags(JOB)[FEB_23].cleared_by == first.id


def test_what_is_published_but_not_proven_stays_flagged(ledger: Ledger) -> None:
    flagged(ledger)
    run = queued_run(ledger)
    published_date(ledger, run, FEB_23, verdict=None)
    assert ledger.checkpoints.write(run.id, DAYS) == []
    assert list(ledger.flags.list_open_flags(JOB)) == list(DAYS)


def test_undoing_the_run_that_repaired_a_date_flags_it_again(ledger: Ledger) -> None:
    flagged(ledger, [FEB_23, FEB_24])
    ledger.flags.clear_flags(JOB, [FEB_24], "audit")
    run = repaired(ledger, FEB_23, FEB_24)
    generation = undo_begun(ledger, run.id, [FEB_23, FEB_24])
    ledger.checkpoints.withdraw(run.id, [FEB_23, FEB_24], "somebody", generation, utcnow())
    ledger.checkpoints.finish_undo(run.id, "somebody", generation)
    assert list(ledger.flags.list_open_flags(JOB)) == [FEB_23]
    assert ledger.flags.list_flags(JOB)[FEB_24].cleared_by == "audit"


def test_a_refused_undo_leaves_the_flag_cleared(ledger: Ledger) -> None:
    flagged(ledger, [FEB_23])
    first, _ = repaired(ledger, FEB_23), repaired(ledger, FEB_23)
    with pytest.raises(DatesInUse):
        undo_begun(ledger, first.id, [FEB_23])
    assert ledger.flags.list_open_flags(JOB) == {}


def test_the_first_day_of_a_job_is_the_earliest_that_any_run_of_it_dealt_with(ledger: Ledger) -> None:
    assert ledger.dates.earliest_day(JOB) is None
    queued_run(ledger, [FEB_24])
    ledger.runs.open_run(new_run([FEB_23], job="teams"))
    assert (ledger.dates.earliest_day(JOB), ledger.dates.earliest_day("teams")) == (FEB_24, FEB_23)
    ended = NewDate(day=FEB_23, state=DateState.SKIPPED, columns={"reason": "bootstrap", "verdict": "skipped"})
    ledger.runs.open_run(new_run(dates=(ended,)))
    assert ledger.dates.earliest_day(JOB) == FEB_23


def flag_all(wait: Callable[[], object], url: str, by: str) -> None:
    ledger = open_ledger(url, create=False)
    flags = [flag(date(2023, 2, n)) for n in range(1, 29)]
    wait()
    for _ in range(5):
        ledger.flags.flag_dates(JOB, flags, by)
    ledger.close()


def test_audits_that_flag_the_same_dates_at_once_leave_one_flag_each(ledger_url: str, ledger: Ledger) -> None:
    race(*((flag_all, ledger_url, f"audit {n}") for n in range(3)))
    assert len(ledger.flags.list_open_flags(JOB)) == 28
