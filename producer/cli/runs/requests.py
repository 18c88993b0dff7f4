"""Options that `plan`, `run` and `retry` share: the dates to build, the judging and the launch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.batching import parse_dates_per_task
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange, parse_date
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.producer.cli.options import (
    AsJson,
    Dates,
    EndDate,
    JobName,
    StartDate,
    WindowSize,
    Yes,
    strip_reason,
)
from gated_backfill.producer.context import open_context
from gated_backfill.producer.planning.plan import RunRequest, parse_date_list, resolve_days
from gated_backfill.producer.planning.reprocess import Reprocess
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE

if TYPE_CHECKING:
    from gated_backfill.producer.runs.session import Launch


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """Options for choosing sources and judging low coverage."""

    fallback: Annotated[
        Fallback | None,
        typer.Option(
            help="When the primary source is partial. replace: all rows from the best fallback. fill: only the missing "
            "entities from it. off: build from the primary and let the gate judge.  [default: the job's]"
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Publish dates of low coverage, permanently marked as forced. Needs --reason."),
    ] = False
    reason: Annotated[
        str | None, typer.Option("--reason", help="The reason; stored with the run and with every forced date.")
    ] = None

    @property
    def forced_because(self) -> str | None:
        """The reason if `--force` is set, else None. Raises `UserError` for `--force` without a reason."""
        if self.force and strip_reason(self.reason) is None:
            raise UserError("--force needs --reason: it is stored with every forced date")
        return strip_reason(self.reason) if self.force else None


@dataclass(frozen=True, kw_only=True)
class DateOptions:
    """The job and the dates of `plan` and `run`."""

    job: JobName = None
    start_date: StartDate = None
    end_date: EndDate = None
    dates: Dates = None
    exclude: Annotated[list[str] | None, typer.Option(help="Dates to leave out, written as in --dates.")] = None
    flagged: Annotated[
        bool,
        typer.Option("--flagged", help="Rebuild the dates flagged by `coverage --flag-incomplete` or the daily audit."),
    ] = False
    reprocess: Annotated[
        Reprocess,
        typer.Option(
            help="Which dates of earlier runs to build again. none: only dates that no run has ended. failed: those "
            "and the blocked and failed ones. all: every date, checkpointed ones included."
        ),
    ] = Reprocess.FAILED
    newest_first: Annotated[bool, typer.Option("--newest-first", help="Build the latest dates first.")] = False

    def to_request(self, judging: JudgingOptions, *, as_json: bool) -> RunRequest:
        """The request of these options. Raises `UserError` when they contradict each other.

        Exits with code 0 when `--flagged` is set and no date is flagged.
        """
        forced_because = judging.forced_because
        days = self._flagged_days(as_json=as_json) if self.flagged else self._days()
        return RunRequest(
            job=self._job_name(),
            days=days,
            excluded=parse_date_list(self.exclude or [], "--exclude"),
            reprocess=Reprocess.ALL if self.flagged else self.reprocess,
            newest_first=self.newest_first,
            fallback=judging.fallback,
            forced_because=forced_because,
            reason=strip_reason(judging.reason),
        )

    @property
    def has_dates(self) -> bool:
        return any((self.start_date, self.end_date, self.dates))

    def _job_name(self) -> str:
        if self.job is None:
            raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
        return find_job(self.job).name

    def _days(self) -> tuple[date, ...]:
        if self.dates and (self.start_date or self.end_date):
            raise UserError("give either --dates or --start-date and --end-date, not both")
        if not self.dates and not (self.start_date and self.end_date):
            raise UserError("give --start-date and --end-date, or --dates")
        span = None
        if self.start_date and self.end_date:
            span = DateRange(start=parse_date(self.start_date), through=parse_date(self.end_date))
        return resolve_days(span, parse_date_list(self.dates or [], "--dates"), self._excluded())

    def _flagged_days(self, *, as_json: bool) -> tuple[date, ...]:
        if self.has_dates:
            raise UserError("--flagged selects the dates: give no --start-date, --end-date or --dates")
        if self.reprocess is Reprocess.NONE:
            raise UserError("--flagged rebuilds dates: it cannot be combined with --reprocess none")
        job = self._job_name()
        flags = open_context(read_settings()).ledger.flags.list_open_flags(job)
        if flags:
            return resolve_days(None, list(flags), self._excluded())
        if as_json:
            print_json(None)
        else:
            make_console().print(f"no date of {job} is flagged: nothing to do")
        raise typer.Exit(COMPLETE)

    def _excluded(self) -> tuple[date, ...]:
        return parse_date_list(self.exclude or [], "--exclude")


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options of `run` and `retry` for carrying out a request."""

    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Run the other dates when some would be blocked; exit code 3.")
    ] = False
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Build also the dates that would be blocked; the gate judges them.")
    ] = False
    sequential: Annotated[bool, typer.Option("--sequential", help="One task at a time, in this process.")] = False
    window: WindowSize = None
    dates_per_task: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Dates that one task builds together; each is still checked, published and failed on its own. "
            "auto: about a second of work, estimated from earlier dates of the job.  "
            "[default: BACKFILL_DATES_PER_TASK or auto]",
        ),
    ] = None
    max_in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Dates in flight at once.  [default: BACKFILL_MAX_IN_FLIGHT, or the open windows']"),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Worker processes of the embedded stack.  [default: BACKFILL_WORKERS or 2]"),
    ] = None
    detach: Annotated[bool, typer.Option("--detach", help="Return once the run is open; follow it with `watch`.")] = (
        False
    )
    yes: Yes = False
    as_json: AsJson = False

    def to_launch(self, request: RunRequest, settings: Settings) -> Launch:
        """The launch of a request; the settings supply the options that were not given."""
        from gated_backfill.producer.runs.session import Launch  # imports Celery, which `plan` does not need

        return Launch(
            request=request,
            window=self.window or settings.window,
            workers=self.workers or settings.workers,
            sequential=self.sequential,
            allow_partial=self.allow_partial,
            preflight=not self.no_preflight,
            max_in_flight=self.max_in_flight,
            dates_per_task=settings.dates_per_task
            if self.dates_per_task is None
            else parse_dates_per_task(self.dates_per_task),
        )
