"""Judge the staged dates of a window: recount their rows, and give each date a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import structlog

from gated_backfill.common.errors import ExpectationUnreadable, Retryable
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.ledger.rows import entity_columns, target_count_columns
from gated_backfill.common.model.coverage import (
    Judgement,
    Recount,
    Verdict,
    is_blocked_by_loss_only,
    judge_date,
    split_label,
)
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.judging_rules import RULES_PART, hash_judging_rules
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.warehouse.entities import find_lookalikes
from gated_backfill.common.warehouse.input_fingerprints import InputParts
from gated_backfill.common.warehouse.prerequisites import measure_prerequisites
from gated_backfill.worker.gate.recount import recount
from gated_backfill.worker.gate.staged_contents import StagedContents
from gated_backfill.worker.gate.target import add_losses, find_changed, read_target_rows
from gated_backfill.worker.gate.window import LeasedWindow

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class JudgedDates:
    """The staged dates of a window with their verdicts."""

    verdicts: Mapping[date, Judgement]
    counts: Mapping[date, Recount] = field(default_factory=dict[date, Recount])  #: empty if nothing could be counted
    #: Parts for the checkpoints of dates that a worker with other judging rules built. They name both sets of rules, so
    #: they match neither, and such a date is stale.
    input_parts: Mapping[date, InputParts] = field(default_factory=dict[date, InputParts])
    #: Dates without a verdict: they would lose rows of the target, which has other rows than when they were staged.
    changed: frozenset[date] = frozenset()

    def days(self, *, passing: bool) -> list[date]:
        return [day for day, judgement in self.verdicts.items() if judgement.verdict.is_passing is passing]

    def ledger_columns(self) -> dict[date, dict[str, Any]]:
        return {day: self._columns_of(day) for day in self.verdicts}

    def _columns_of(self, day: date) -> dict[str, Any]:
        judgement, count = self.verdicts[day], self.counts.get(day)
        columns: dict[str, Any] = {"verdict": judgement.verdict.value, "reason": judgement.reason}
        if day in self.input_parts:
            columns["input_parts"] = self.input_parts[day]
        if count is None:
            return columns
        return columns | {
            "expected": count.expectation.expected,
            "matched": count.matched,
            "rows": count.rows,
            **entity_columns(count.missing, count.unexpected),
            **({} if count.target is None else target_count_columns(count.target, count.loss)),
        }


def judge_staged(
    window: LeasedWindow, dates: Mapping[date, DateRow], staged: Mapping[date, StagedContents], *, is_last_attempt: bool
) -> JudgedDates:
    """A verdict for each date's rows; if the expectation cannot be read, every date is blocked.

    `dates` has the ledger's row of each date, `staged` what its file holds. A date that would pass, but lose rows of
    the target, gets no verdict if the target has changed since it was staged: it is to be built and compared again.

    Raises `Retryable` for a transient error, unless this is the last attempt: then the dates are blocked; and
    `StagedFileLost` for a file that was removed or changed meanwhile.
    """
    unreadable = (ExpectationUnreadable, *((Retryable,) if is_last_attempt else ()))
    options = RunOptions.from_dict(window.run.options)
    target_rows = read_target_rows(window, dates, staged.keys())
    try:
        counts = recount(
            window.deps.warehouse,
            window.job,
            staged,
            require_calendar=options.calendar,
            target_rows=target_rows.entities,
        )
    except unreadable as exc:
        window.find_fault(exc)
        log.error("expectation_unreadable", error=str(exc))
        blocked = Judgement(verdict=Verdict.BLOCKED, reason=str(exc))
        return JudgedDates(verdicts=dict.fromkeys(staged, blocked))
    counts = {day: _with_floor(count, dates[day]) for day, count in counts.items()}
    if options.forced_because is not None:
        counts = _with_lacking_rows(window, dates, counts)
    counts = add_losses(window, dates, counts, target_rows, staged, options.policy)
    changed: frozenset[date] = frozenset()
    if options.forced_because is None:
        losing = [day for day, count in counts.items() if is_blocked_by_loss_only(count, policy=options.policy)]
        changed = find_changed(window, dates, losing)
    return JudgedDates(
        verdicts={day: _judge(count, options) for day, count in counts.items() if day not in changed},
        counts=counts,
        input_parts=_parts_with_both_rules(window.job, dates.values()),
        changed=changed,
    )


def _parts_with_both_rules(job: Job, dates: Iterable[DateRow]) -> dict[date, InputParts]:
    """Return the input parts of the dates whose worker had other judging rules than this process, with both."""
    rules = hash_judging_rules(job)
    parts = {row.day: row.input_parts for row in dates if row.input_parts is not None}
    return {
        day: {**of_day, RULES_PART: f"{of_day[RULES_PART]} {rules}"}
        for day, of_day in parts.items()
        if of_day.get(RULES_PART, rules) != rules
    }


def _judge(count: Recount, options: RunOptions) -> Judgement:
    judgement = judge_date(count, policy=options.policy, forced_because=options.forced_because)
    pairs = find_lookalikes(count.missing, count.unexpected)
    if not pairs:
        return judgement
    missing, unexpected = pairs[0]
    more = f", and {len(pairs) - 1} more pair(s)" if len(pairs) > 1 else ""
    hint = f"{missing!a} is missing and {unexpected!a} is unexpected: they only look alike{more}"
    return replace(judgement, reason=f"{judgement.reason}; {hint}")


def _with_floor(count: Recount, row: DateRow) -> Recount:
    """Return the recount with the floor that the plan stored with the date."""
    return replace(count, expectation=count.expectation.with_floor(row.floor, row.floor_reason))


def _with_lacking_rows(
    window: LeasedWindow, dates: Mapping[date, DateRow], counts: Mapping[date, Recount]
) -> dict[date, Recount]:
    """Return the recounts of forced dates with the required rows that were missing, so that they count as forced."""
    sources_by_day = {day: split_label(dates[day].source) for day in counts}
    sources = {name for names in sources_by_day.values() for name in names}
    prerequisites = measure_prerequisites(window.deps.warehouse, window.job, counts.keys(), sources=sources)
    return {
        day: replace(count, lacking=prerequisites.problem_on(day, sources_by_day[day])) for day, count in counts.items()
    }
