"""Stale dates: checkpointed ones whose job's version or rules, sources or inputs have changed since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from gated_backfill.common.ledger import Checkpoint
from gated_backfill.common.model.coverage import split_label
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.job_versions import STALE_PREFIX, UNKNOWN_VERSION, stale_reason
from gated_backfill.common.model.judging_rules import RULES_PART, hash_judging_rules
from gated_backfill.common.warehouse.input_fingerprints import (
    EXPECTATION_ROLE,
    InputParts,
    input_fingerprints,
    quick_fingerprints,
    quick_role,
    source_role,
)
from gated_backfill.common.warehouse.protocol import Warehouse


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """How checkpoints compare with the job and its tables as they are now."""

    reasons: Mapping[date, str] = field(default_factory=dict[date, str])  #: of the stale dates
    #: Dates whose published entities must be counted again: the expectation or the rules differ from those recorded, or
    #: none were recorded.
    to_recount: frozenset[date] = frozenset()
    without_inputs: int = 0  #: checkpoints that record no inputs, but a version: only that was compared
    #: By the roles of tables, the dates for which they were read, as their quick fingerprints did not tell enough.
    read_roles: Mapping[frozenset[str], Sequence[date]] = field(default_factory=dict[frozenset[str], Sequence[date]])
    #: Parts of dates whose inputs were read and are unchanged, with the quick fingerprints that they have now.
    renewed_parts: Mapping[date, InputParts] = field(default_factory=dict[date, InputParts])


def find_other_versions(job: Job, checkpoints: Mapping[date, Checkpoint]) -> dict[date, str]:
    """Return why dates are stale that another version of the job has built, or other rules have judged."""
    return _other_versions(job, checkpoints, _judged_by_other_rules(job, checkpoints))


def _other_versions(
    job: Job, checkpoints: Mapping[date, Checkpoint], judged_by_others: Collection[date]
) -> dict[date, str]:
    reasons = {
        day: stale_reason(checkpoint.job_version, job.version, has_same_rules=day not in judged_by_others)
        for day, checkpoint in checkpoints.items()
    }
    return {day: reason for day, reason in reasons.items() if reason is not None}


def _judged_by_other_rules(job: Job, checkpoints: Mapping[date, Checkpoint]) -> frozenset[date]:
    """Return the dates that were judged by other rules than the job has now, as far as the rules were recorded."""
    rules = hash_judging_rules(job)
    return frozenset(
        day for day, checkpoint in checkpoints.items() if (checkpoint.input_parts or {}).get(RULES_PART, rules) != rules
    )


def find_stale_dates(job: Job, checkpoints: Mapping[date, Checkpoint], warehouse: Warehouse) -> Staleness:
    """Compare checkpoints with the job's version and rules, and with the tables that their dates were built from.

    Nothing is read without a checkpoint that records its inputs.
    """
    judged_by_others = _judged_by_other_rules(job, checkpoints)
    reasons = _other_versions(job, checkpoints, judged_by_others)
    recorded = {day: parts for day, checkpoint in checkpoints.items() if (parts := checkpoint.input_parts) is not None}
    unrecorded = checkpoints.keys() - recorded.keys()
    without_inputs = sum(checkpoints[day].job_version != UNKNOWN_VERSION for day in unrecorded)
    if not recorded:
        return Staleness(reasons=reasons, to_recount=frozenset(unrecorded), without_inputs=without_inputs)
    relevant = {day: relevant_roles(job, checkpoints[day].source) for day in recorded if day not in reasons}
    roles = {EXPECTATION_ROLE}.union(*relevant.values())
    quick = quick_fingerprints(warehouse, job, sorted(recorded), roles=roles)
    to_read: dict[frozenset[str], list[date]] = {}
    for day, parts in sorted(recorded.items()):
        if untold := _untold(parts, quick[day], [EXPECTATION_ROLE, *relevant.get(day, ())]):
            to_read.setdefault(untold, []).append(day)
    now: dict[date, InputParts] = {}
    for untold, days in to_read.items():
        now |= input_fingerprints(warehouse, job, days, roles=untold)
    for day in now.keys() & relevant.keys():
        if changed := [role for role in relevant[day] if role in _changed(recorded[day], now[day])]:
            reasons[day] = f"{STALE_PREFIX}{', '.join(changed)} changed since"
    changed_expectations = {day for day, parts in now.items() if EXPECTATION_ROLE in _changed(recorded[day], parts)}
    return Staleness(
        reasons=reasons,
        to_recount=frozenset(changed_expectations | unrecorded | judged_by_others),
        without_inputs=without_inputs,
        read_roles=to_read,
        renewed_parts={
            day: {**recorded[day], **renewed}
            for day, parts in now.items()
            if (renewed := _renewed_quick_parts(recorded[day], parts, quick[day]))
        },
    )


def _untold(recorded: InputParts, quick: InputParts, roles: Collection[str]) -> frozenset[str]:
    """Return the roles of which the quick fingerprints do not tell that nothing has changed."""
    return frozenset(
        role for role in roles if (name := quick_role(role)) not in quick or recorded.get(name) != quick[name]
    )


def _changed(recorded: InputParts, now: InputParts) -> list[str]:
    """Return the roles that were read whose rows are not those recorded."""
    return [role for role, part in now.items() if recorded.get(role) != part]


def _renewed_quick_parts(recorded: InputParts, now: InputParts, quick: InputParts) -> dict[str, str]:
    """Return the quick parts of the roles that were read and are unchanged: they were read before the rows were."""
    unchanged = (role for role in now if recorded.get(role) == now[role])
    return {name: quick[name] for role in unchanged if (name := quick_role(role)) in quick}


def relevant_roles(job: Job, built_from: str) -> list[str]:
    """The roles of the tables that decide a date's rows: its sources, those preferred to them, and the inputs.

    `built_from` is the label of its sources, such as `first+second`.
    """
    names = [source.name for source in job.sources]
    used = [names.index(name) for name in split_label(built_from) if name in names]
    last = max(used, default=len(names) - 1)
    return [*(source_role(name) for name in names[: last + 1]), *(f"input {declared.name}" for declared in job.inputs)]
