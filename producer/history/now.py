"""The state now at the head of the history: what is not complete, how fresh each job is, and who works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from rich.table import Table

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.states import OutstandingState
from gated_backfill.common.ledger.stores.current import OutstandingDate
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.runs.stalled_windows import Stall, StalledWindow
from gated_backfill.common.runs.state_now import JobNow, StateNow, read_state_now
from gated_backfill.producer.terminal.console import Console, StyledText, line, styled

STALLS = {Stall.GATE: "no living gate works on it", Stall.DATES: "no living worker builds its dates"}


@dataclass(frozen=True, kw_only=True)
class HistoryNow:
    """The state now, with the dates that are not complete."""

    state: StateNow
    outstanding: Sequence[OutstandingDate]  #: those that were to be rebuilt have an earlier checkpoint

    def outstanding_of(self, job: JobNow, *, has_checkpoint: bool) -> list[OutstandingDate]:
        """The dates of the job that are not complete, or those whose rebuild is not."""
        return [one for one in self.outstanding if one.job == job.job and one.has_checkpoint is has_checkpoint]

    @property
    def idle_queues(self) -> list[str]:
        """The queues that no shared worker takes tasks from, where there are shared workers."""
        has_shared = any(not worker.is_embedded for worker in self.state.workers)
        return [queue for queue, workers in self.state.consumers.items() if not workers] if has_shared else []

    def as_json(self) -> dict[str, Any]:
        return {
            "jobs": [self._job_json(job) for job in self.state.jobs],
            "workers": [worker.name for worker in self.state.workers],
            "queue_consumers": self.state.consumers,
            "stalled_windows": [
                {"run": one.window.run_id, "window": one.window.number, "stall": one.stall.value}
                for one in self.state.stalled
            ],
        }

    def _job_json(self, job: JobNow) -> dict[str, Any]:
        return {
            "job": job.job,
            **{state.value: job.count(state, has_checkpoint=False) for state in OutstandingState},
            "rebuilds": {state.value: job.count(state, has_checkpoint=True) for state in OutstandingState},
            "outstanding": [
                {
                    "day": one.day,
                    "state": one.state.value,
                    "has_checkpoint": one.has_checkpoint,
                    "run": one.run_id,
                    "reason": one.reason,
                }
                for one in self.outstanding
                if one.job == job.job
            ],
            "flagged": sum(job.flagged.values()),
            "other_versions": job.other_versions,
            "checkpointed": job.checkpointed,
            "newest": job.newest,
        }


def read_now(ledger: Ledger, settings: RecoverySettings, *, job: str | None) -> HistoryNow:
    """Read the state now of all jobs, or of one."""
    return HistoryNow(
        state=read_state_now(ledger, settings, job=job), outstanding=ledger.current.list_outstanding(job=job)
    )


def describe_outstanding(dates: Sequence[OutstandingDate]) -> str:
    """Describe the number of dates in each state, such as `2 blocked, 1 failed`; empty for none."""
    counts = Counter(one.state for one in dates)
    return ", ".join(f"{counts[state]} {state.value}" for state in OutstandingState if counts[state])


def describe_workers(now: HistoryNow) -> str:
    """Describe how many workers live, and which queues none of them takes tasks from."""
    embedded = sum(worker.is_embedded for worker in now.state.workers)
    of_runs = f", {embedded} of them of one run's own stack" if embedded else ""
    idle = f"; none takes tasks from {', '.join(now.idle_queues)}" if now.idle_queues else ""
    return f"{len(now.state.workers)} living{of_runs}{idle}"


def describe_stall(stalled: StalledWindow) -> str:
    window = stalled.window
    return f"window {window.number} of run {window.run_id} does not move: {STALLS[stalled.stall]}"


def print_now(console: Console, now: HistoryNow) -> None:
    """Print a line for each job, then the dates that are not complete, and the workers."""
    console.print(styled("Now", "bold"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("  job", "not complete", "rebuilds not passed"):
        table.add_column(name, overflow="fold")
    for name in ("flagged", "of another version", "checkpointed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("newest", no_wrap=True)
    for job in now.state.jobs:
        table.add_row(*_job_row(job, now))
    console.print(table)
    for job in now.state.jobs:
        for state in OutstandingState:
            days = [one.day for one in now.outstanding if one.job == job.job and one.state is state]
            if days:
                console.print(line("  ", styled(f"{state.value:<8}", "bold red"), f" {job.job}: {format_dates(days)}"))
    for stalled in now.state.stalled:
        console.print(line("  ", styled("stalled ", "bold red"), f" {describe_stall(stalled)}"))
    console.print(f"  workers   {describe_workers(now)}")


def _job_row(job: JobNow, now: HistoryNow) -> list[str | StyledText]:
    incomplete = describe_outstanding(now.outstanding_of(job, has_checkpoint=False))
    rebuilds = describe_outstanding(now.outstanding_of(job, has_checkpoint=True))
    flagged = sum(job.flagged.values())
    return [
        f"  {job.job}",
        styled(incomplete, "bold red") if incomplete else "0",
        styled(rebuilds, "yellow") if rebuilds else "0",
        styled(str(flagged), "yellow") if flagged else "0",
        styled(str(job.other_versions), "yellow") if job.other_versions else "0",
        str(job.checkpointed),
        format_newest(job.newest),
    ]


def format_newest(day: date | None) -> str:
    return "-" if day is None else str(day)
