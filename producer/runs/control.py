"""Pause, resume and cancel a run: first in the ledger, then by messages to the workers.

Only the command that launched a run on an embedded broker can reach that broker: it reads the order in the ledger and
sends the messages (`runs.launch.follow_run`). With any other broker, the command that stores the order sends them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.broker.health import ping_broker
from gated_backfill.common.errors import BrokerUnavailable, UserError
from gated_backfill.common.ledger import DateState, Ledger, Run, RunAction, RunProgress, RunState
from gated_backfill.common.ledger.stores.orders import Cancellation
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import release_run
from gated_backfill.producer.context import CommandContext, current_user
from gated_backfill.producer.runs.launch import continue_run
from gated_backfill.producer.stack.children import clean_up_dead_stacks

STARTED_STATES = (DateState.PROCESSING, DateState.STAGED, DateState.PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """The result of pausing, resuming or cancelling a run."""

    progress: RunProgress
    by: str
    reason: str | None
    changed: bool  #: False when the run already was in that state
    text: str
    note: str | None = None  #: a further remark for the user

    def as_json(self) -> dict[str, Any]:
        run = self.progress.run
        return {
            "run": run.id,
            "state": run.state.value,
            "changed": self.changed,
            "by": self.by,
            "reason": self.reason,
            "counts": {state.value: n for state, n in self.progress.counts.items()},
            "text": self.text,
            "note": self.note,
        }


def pause(run_id: str, context: CommandContext, reason: str | None) -> ControlResult:
    """Pause the run: no further date is started. Raises `UserError` when it has ended or is being cancelled."""
    run = _get_live_run(run_id, context)
    by = current_user(context.settings)
    if context.ledger.orders.pause_run(run_id, by=by, reason=reason):
        under_way = _count_dates(context.ledger.runs.get_progress(run_id).count(*STARTED_STATES))
        text = (
            f"run {run_id} is paused: {under_way} in progress will be finished; `backfill resume {run_id}` continues it"
        )
        return _result(run_id, context, by, reason, text)
    if context.ledger.runs.get_run(run_id).state is RunState.PAUSED:
        return _result(run_id, context, by, reason, f"run {run_id} is already paused", changed=False)
    raise _state_error(run, context, "paused")


def resume(run_id: str, context: CommandContext, reason: str | None) -> ControlResult:
    """Resume a paused run.

    Changes nothing, and raises `UserError` if it can't be resumed, `BrokerUnavailable` if its broker can't be reached.
    """
    run = _get_live_run(run_id, context)
    by, job = current_user(context.settings), find_job(run.job)
    _check_version(run, job)
    dispatcher = _dispatcher(run, context)
    if not context.ledger.orders.resume_run(run_id, by=by, reason=reason):
        if context.ledger.runs.get_run(run_id).state is RunState.RUNNING:
            return _result(run_id, context, by, reason, f"run {run_id} is running already", changed=False)
        raise _state_error(run, context, "resumed")
    if dispatcher is not None:
        continue_run(run, job, context, dispatcher)
    has_no_broker = run.owner is None and dispatcher is None
    note = "no broker is known here: it continues once its workers run" if has_no_broker else None
    text = f"run {run_id} continues: follow it with `backfill watch {run_id}`"
    return _result(run_id, context, by, reason, text, note=note)


def cancel(run_id: str, context: CommandContext, reason: str | None, *, discard: bool, now: bool) -> ControlResult:
    """Cancel the run. Raises `UserError` when it has ended.

    `discard` deletes staged dates, `now` stops dates in progress. The ledger stores the order even when the broker
    cannot be reached; dates in progress are then finished later.
    """
    run, by = context.ledger.runs.get_run(run_id), current_user(context.settings)
    if is_interrupted(run):
        return _cancel_dead_run(run, context, by, reason)
    if run.state is RunState.CANCELLING and _repeats_cancel(run_id, context.ledger, discard=discard, now=now):
        return _result(run_id, context, by, reason, f"run {run_id} is already being cancelled", changed=False)
    cancellation = context.ledger.orders.cancel_run(run_id, by=by, reason=reason, discard=discard, now=now)
    if cancellation is None:
        raise _state_error(run, context, "cancelled")
    context.staging.delete(run_id, frozenset(cancellation.discarded))
    note = _finish_or_notify(run, context, now=now)
    text = describe_cancellation(context.ledger.runs.get_progress(run_id), cancellation)
    return _result(run_id, context, by, reason, text, note=note)


def describe_cancellation(progress: RunProgress, cancellation: Cancellation) -> str:
    """Describe how many dates of a cancelled run are checkpointed, in progress, stopped and not built."""
    done, under_way = progress.count(DateState.CHECKPOINTED), progress.count(*STARTED_STATES)
    parts = [
        f"{_count_dates(done)} {'is' if done == 1 else 'are'} checkpointed",
        f"{under_way:,} in progress will be finished" if under_way else "",
        f"{cancellation.interrupted:,} in progress stopped" if cancellation.interrupted else "",
        f"{len(cancellation.discarded):,} staged discarded" if cancellation.discarded else "",
        f"{progress.count(DateState.CANCELLED):,} will not be built",
    ]
    text = f"run {progress.run.id}: {', '.join(part for part in parts if part)}"
    return text if progress.run.has_ended else f"{text}; follow it with `backfill watch {progress.run.id}`"


def _count_dates(dates: int) -> str:
    return f"{dates:,} date{'' if dates == 1 else 's'}"


def _result(
    run_id: str,
    context: CommandContext,
    by: str,
    reason: str | None,
    text: str,
    *,
    changed: bool = True,
    note: str | None = None,
) -> ControlResult:
    progress = context.ledger.runs.get_progress(run_id)
    return ControlResult(progress=progress, by=by, reason=reason, changed=changed, text=text, note=note)


def _get_live_run(run_id: str, context: CommandContext) -> Run:
    """The run. Raises `UserError` when its process has died."""
    run = context.ledger.runs.get_run(run_id)
    if is_interrupted(run):
        raise UserError(
            f"run {run_id} was interrupted: its process has died, so it can't continue; `backfill retry {run_id}` "
            "builds its other dates, `backfill cancel` releases them"
        )
    return run


def _check_version(run: Run, job: Job) -> None:
    """Raise `UserError` for a run of another version of the job: workers started now can't continue it."""
    if job.version != run.job_version:
        raise UserError(
            f"run {run.id} is of version {run.job_version} of job {job.name}, and version {job.version} is installed: "
            f"it can't be resumed; cancel it with `backfill cancel {run.id}`, then `backfill retry {run.id}` builds "
            f"its other dates with version {job.version}"
        )


def _state_error(run: Run, context: CommandContext, action: str) -> UserError:
    state = context.ledger.runs.get_run(run.id).state
    return UserError(f"run {run.id} can't be {action}: it is {state.value}; nothing was changed")


def _repeats_cancel(run_id: str, ledger: Ledger, *, discard: bool, now: bool) -> bool:
    """Whether earlier cancel orders had the same options."""
    cancels = [order.details for order in ledger.actions.list_actions(run_id) if order.action is RunAction.CANCELLED]
    options = [option for option, is_set in (("discard", discard), ("now", now)) if is_set]
    return all(any(details.get(option) for details in cancels) for option in options)


def _dispatcher(run: Run, context: CommandContext) -> CeleryDispatcher | None:
    """The dispatcher to the run's workers; None if the broker is embedded or unknown. Raises `BrokerUnavailable`."""
    if run.owner is not None or context.settings.broker is None:
        return None
    url = context.settings.broker.get_secret_value()
    ping_broker(context.settings, url)
    return CeleryDispatcher(make_app(context.settings, url))


def _finish_or_notify(run: Run, context: CommandContext, *, now: bool) -> str | None:
    """End the run if no date is in progress, or else notify its workers; returns a note if that failed."""
    final_state = context.ledger.runs.finish_run(run.id)
    if final_state is not None:
        context.staging.delete(run.id)
    try:
        dispatcher = _dispatcher(run, context)
        if dispatcher is None:
            must_wait = final_state is None and run.owner is None
            return "no broker is known here: dates in progress are finished once its workers run" if must_wait else None
        if now:
            dispatcher.stop_dates(run.id)
        if final_state is None:
            dispatcher.send_reconcile(run.id, lost_tasks=True)
        else:
            dispatcher.send_post_run(run.id)
    except BrokerUnavailable as exc:
        return f"the workers can't be reached: beat or `backfill watch` finishes the dates in progress later: {exc}"
    return None


def _cancel_dead_run(run: Run, context: CommandContext, by: str, reason: str | None) -> ControlResult:
    """Cancel a run whose process has died; its checkpoints stay."""
    clean_up_dead_stacks(context.settings.home)
    reason = reason or "its process has died"
    released = release_run(
        run, find_job(run.job), context.ledger, context.warehouse, context.staging, by=by, reason=reason
    )
    text = (
        f"run {run.id} is cancelled: its process had died, {_count_dates(released.checkpointed)} checkpointed, "
        f"{released.unfinished:,} are free"
    )
    return _result(run.id, context, by, reason, text)
