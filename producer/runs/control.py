"""Pausing, resuming and cancelling a run: the order goes into the ledger first, and then to whoever can hasten it.

A run that lives in the command that launched it has a broker that nobody else knows: that command reads the order in
the ledger and carries it out (`runs.launch.follow`). With any other broker, the command that gives the order does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gated_backfill.common.broker.celery_app import CeleryDispatcher, make_app, ping_broker
from gated_backfill.common.errors import BrokerUnavailable, UserError
from gated_backfill.common.ledger import DateState, Ledger, Run, RunAction, RunProgress, RunState
from gated_backfill.common.ledger.stores.orders import Cancellation
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import release_run
from gated_backfill.producer.context import CommandContext, current_user
from gated_backfill.producer.runs.launch import continue_run
from gated_backfill.producer.stack.children import clean_up_dead_stacks

STARTED_STATES = (DateState.PROCESSING, DateState.STAGED, DateState.PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """What became of an order."""

    progress: RunProgress
    by: str
    reason: str | None
    changed: bool  #: False when the run was already as ordered
    text: str
    note: str | None = None  #: what the user should know besides

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


def pause(run_id: str, site: CommandContext, reason: str | None) -> ControlResult:
    """Have the run begin nothing any more. Raises `UserError` when it has ended, or is being cancelled."""
    run = _living(run_id, site)
    by = current_user()
    if site.ledger.orders.pause_run(run_id, by=by, reason=reason):
        under_way = _counted(site.ledger.runs.get_progress(run_id).count(*STARTED_STATES))
        text = f"run {run_id} is paused: {under_way} under way are finished; go on with `backfill resume {run_id}`"
        return _ordered(run_id, site, by, reason, text)
    if site.ledger.runs.get_run(run_id).state is RunState.PAUSED:
        return _ordered(run_id, site, by, reason, f"run {run_id} is already paused", changed=False)
    raise _refused(run, site, "paused")


def resume(run_id: str, site: CommandContext, reason: str | None) -> ControlResult:
    """Let a paused run go on, and have it do so.

    Raises `UserError` when it is not paused, and `BrokerUnavailable` when nobody could be told; nothing changes then.
    """
    run = _living(run_id, site)
    by, job = current_user(), find_job(run.job)
    dispatcher = _dispatcher(run, site)
    if not site.ledger.orders.resume_run(run_id, by=by, reason=reason):
        if site.ledger.runs.get_run(run_id).state is RunState.RUNNING:
            return _ordered(run_id, site, by, reason, f"run {run_id} is running already", changed=False)
        raise _refused(run, site, "resumed")
    if dispatcher is not None:
        continue_run(run, job, site, dispatcher)
    orphan = run.owner is None and dispatcher is None
    note = "no broker is known here: it goes on once its workers are up" if orphan else None
    text = f"run {run_id} goes on: follow it with `backfill watch {run_id}`"
    return _ordered(run_id, site, by, reason, text, note=note)


def cancel(run_id: str, site: CommandContext, reason: str | None, *, discard: bool, now: bool) -> ControlResult:
    """Stop the run for good. Raises `UserError` when it has ended already.

    The order is in the ledger whether or not anybody could be told: what is under way is then finished later.
    """
    run, by = site.ledger.runs.get_run(run_id), current_user()
    if is_interrupted(run):
        return _close(run, site, by, reason)
    if run.state is RunState.CANCELLING and _says_nothing_new(run_id, site.ledger, discard=discard, now=now):
        return _ordered(run_id, site, by, reason, f"run {run_id} is already being cancelled", changed=False)
    stopped = site.ledger.orders.cancel_run(run_id, by=by, reason=reason, discard=discard, now=now)
    if stopped is None:
        raise _refused(run, site, "cancelled")
    site.staging.delete(run_id, frozenset(stopped.discarded))
    note = _hasten(run, site, now=now)
    return _ordered(
        run_id, site, by, reason, describe_cancellation(site.ledger.runs.get_progress(run_id), stopped), note=note
    )


def describe_cancellation(progress: RunProgress, stopped: Cancellation) -> str:
    """What of a run that was just cancelled is done, is finished, is stopped, and is not built."""
    done, under_way = progress.count(DateState.CHECKPOINTED), progress.count(*STARTED_STATES)
    parts = [
        f"{_counted(done)} {'is' if done == 1 else 'are'} checkpointed",
        f"{under_way:,} under way {'is' if under_way == 1 else 'are'} finished" if under_way else "",
        f"{stopped.interrupted:,} under way stopped" if stopped.interrupted else "",
        f"{len(stopped.discarded):,} staged discarded" if stopped.discarded else "",
        f"{progress.count(DateState.CANCELLED):,} will not be built",
    ]
    told = f"run {progress.run.id}: {', '.join(part for part in parts if part)}"
    return told if progress.run.has_ended else f"{told}; follow it with `backfill watch {progress.run.id}`"


def _counted(dates: int) -> str:
    return f"{dates:,} date{'' if dates == 1 else 's'}"


def _ordered(
    run_id: str,
    site: CommandContext,
    by: str,
    reason: str | None,
    text: str,
    *,
    changed: bool = True,
    note: str | None = None,
) -> ControlResult:
    progress = site.ledger.runs.get_progress(run_id)
    return ControlResult(progress=progress, by=by, reason=reason, changed=changed, text=text, note=note)


def _living(run_id: str, site: CommandContext) -> Run:
    """The run. Raises `UserError` when its process is gone."""
    run = site.ledger.runs.get_run(run_id)
    if is_interrupted(run):
        raise UserError(
            f"run {run_id} was interrupted: its process is gone, so it can't go on; `backfill retry {run_id}` builds "
            "its other dates, `backfill cancel` gives them free"
        )
    return run


def _refused(run: Run, site: CommandContext, wish: str) -> UserError:
    state = site.ledger.runs.get_run(run.id).state
    return UserError(f"run {run.id} can't be {wish}: it is {state.value}; nothing was changed")


def _says_nothing_new(run_id: str, ledger: Ledger, *, discard: bool, now: bool) -> bool:
    """Whether the run was already told to stop at least as much."""
    told = [one.details for one in ledger.actions.list_actions(run_id) if one.action is RunAction.CANCELLED]
    return all(
        not wanted or any(details.get(name) for details in told)
        for name, wanted in (("discard", discard), ("now", now))
    )


def _dispatcher(run: Run, site: CommandContext) -> CeleryDispatcher | None:
    """How to reach the run's workers; None where only its own command can. Raises `BrokerUnavailable`."""
    if run.owner is not None or site.settings.broker is None:
        return None
    url = site.settings.broker.get_secret_value()
    ping_broker(site.settings, url)
    return CeleryDispatcher(make_app(site.settings, url))


def _hasten(run: Run, site: CommandContext, *, now: bool) -> str | None:
    """End the run if nothing of it is left to finish, or else have that done now; a note where nobody was reached."""
    end = site.ledger.runs.finish_run(run.id)
    if end is not None:
        site.staging.delete(run.id)
    try:
        dispatcher = _dispatcher(run, site)
        if dispatcher is None:
            waits = end is None and run.owner is None
            return "no broker is known here: what is under way is finished once its workers are up" if waits else None
        if now:
            dispatcher.stop_dates(run.id)
        if end is None:
            dispatcher.send_reconcile(run.id, lost_tasks=True)
        else:
            dispatcher.send_post_run(run.id)
    except BrokerUnavailable as exc:
        return f"nobody could be told, so what is under way is finished once beat or `backfill watch` sees to it: {exc}"
    return None


def _close(run: Run, site: CommandContext, by: str, reason: str | None) -> ControlResult:
    """Cancel a run whose process is gone: nothing of it can be finished, and what it proved stays."""
    clean_up_dead_stacks(site.settings.home)
    why = reason or "its process is gone"
    released = release_run(run, find_job(run.job), site.ledger, site.warehouse, site.staging, by=by, reason=why)
    text = (
        f"run {run.id} is cancelled: its process was gone, {_counted(released.checkpointed)} checkpointed, "
        f"{released.unfinished:,} are free"
    )
    return _ordered(run.id, site, by, why, text)
