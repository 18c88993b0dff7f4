"""The options of `plan`, `run` and `retry`, and one value that holds what the user gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from enum import Enum
from functools import wraps
from typing import Any

import click

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange, days_before, parse_date
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.model.scheduling.batching import parse_dates_per_task
from gated_backfill.common.process.clock import today_in
from gated_backfill.producer.cli.options import (
    dates_option,
    end_date_option,
    job_option,
    json_option,
    last_days_option,
    start_date_option,
    strip_reason,
    window_option,
    yes_option,
)
from gated_backfill.producer.context import open_context
from gated_backfill.producer.planning.plan import Plan, RunRequest, parse_date_list, resolve_days
from gated_backfill.producer.planning.reprocess import Reprocess
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE


class ValueChoice(click.Choice[Enum]):
    """A choice of enum members by their values; Click's own takes their names."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        return super().normalize_choice(choice.value if isinstance(choice, Enum) else choice, ctx)


#: The job and the dates of `plan` and `run`.
DATE_OPTIONS = (
    job_option,
    start_date_option,
    end_date_option,
    dates_option,
    last_days_option,
    click.option("--yesterday", is_flag=True, help="Yesterday, in the job's time zone: --last-days 1."),
    click.option("--exclude", multiple=True, help="Dates to leave out, written as in --dates."),
    click.option(
        "--flagged", is_flag=True, help="Rebuild the dates flagged by `coverage --flag-incomplete` or the daily audit."
    ),
    click.option(
        "--reprocess",
        type=ValueChoice(Reprocess),
        default=Reprocess.FAILED.value,
        help="Which dates of earlier runs to build again. none: only dates without a result. failed: also the "
        "blocked and failed ones. stale: also the checkpointed ones whose job's version, rules or inputs have changed "
        "since. undone: the blocked and failed ones, and those whose run was undone. all: every date.",
    ),
    click.option("--newest-first", is_flag=True, help="Build the latest dates first."),
)

#: How to choose sources and to judge low coverage.
JUDGING_OPTIONS = (
    click.option(
        "--fallback",
        type=ValueChoice(Fallback),
        help="When the primary source is partial. replace: all rows from the best fallback. fill: only the missing "
        "entities from it. off: build from the primary and let the gate judge.  [default: the job's]",
    ),
    click.option(
        "--force", is_flag=True, help="Publish dates of low coverage, permanently marked as forced. Needs --reason."
    ),
    click.option("--reason", help="The reason; stored with the run and with every forced date."),
)

#: How `run` and `retry` carry out a request.
LAUNCH_OPTIONS = (
    click.option("--allow-partial", is_flag=True, help="Run the other dates when some would be blocked; exit code 3."),
    click.option(
        "--no-preflight", is_flag=True, help="Build also the dates that would be blocked; the gate judges them."
    ),
    click.option("--sequential", is_flag=True, help="One task at a time, in this process."),
    window_option,
    click.option(
        "--dates-per-task",
        metavar="N|auto",
        help="Dates that one task builds together; each is still checked, published and failed on its own. auto: about "
        "a second of work, estimated from earlier dates of the job.  [default: BACKFILL_DATES_PER_TASK or auto]",
    ),
    click.option(
        "--max-in-flight",
        type=click.IntRange(min=1),
        help="Dates in flight at once.  [default: BACKFILL_MAX_IN_FLIGHT or no limit]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 256),
        help="Worker processes of the embedded stack.  [default: BACKFILL_WORKERS or 2]",
    ),
    click.option("--detach", is_flag=True, help="Return once the run is open; follow it with `watch`."),
    yes_option,
    json_option,
)


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """The options of `plan`, `run` and `retry`; those that a command does not offer have their defaults."""

    job: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    dates: tuple[str, ...] = ()
    last_days: int | None = None
    yesterday: bool = False
    exclude: tuple[str, ...] = ()
    flagged: bool = False
    reprocess: Reprocess = Reprocess.FAILED
    newest_first: bool = False

    fallback: Fallback | None = None
    force: bool = False
    reason: str | None = None

    allow_partial: bool = False
    no_preflight: bool = False
    sequential: bool = False
    window: int | None = None
    dates_per_task: str | None = None
    max_in_flight: int | None = None
    workers: int | None = None
    detach: bool = False
    yes: bool = False
    as_json: bool = False

    @property
    def forced_because(self) -> str | None:
        """The reason if `--force` is set, else None. Raises `UserError` for `--force` without a reason."""
        if self.force and strip_reason(self.reason) is None:
            raise UserError("--force needs --reason: it is stored with every forced date")
        return strip_reason(self.reason) if self.force else None

    @property
    def has_dates(self) -> bool:
        return any((self.start_date, self.end_date, self.dates, self.is_daily))

    @property
    def is_daily(self) -> bool:
        """Whether the dates depend on the day of the call, as in a call by a scheduler."""
        return self.last_days is not None or self.yesterday

    def to_request(self) -> RunRequest:
        """The request of these options. Raises `UserError` when they contradict each other.

        Exits with code 0 when `--flagged` is set and no date is flagged.
        """
        forced_because = self.forced_because
        days = self._flagged_days() if self.flagged else self._days()
        return RunRequest(
            job=self._job_name(),
            days=days,
            excluded=self._excluded(),
            reprocess=Reprocess.ALL if self.flagged else self.reprocess,
            newest_first=self.newest_first,
            fallback=self.fallback,
            forced_because=forced_because,
            reason=strip_reason(self.reason),
        )

    def launch(
        self,
        request: RunRequest,
        settings: Settings,
        check: Callable[[Plan], None] = lambda _: None,
        facts: Mapping[str, Any] | None = None,
    ) -> int:
        """Launch the request and follow the run; the settings supply the options that were not given.

        Returns the exit code. `check` may raise to stop the launch; `facts` are added to the JSON result.
        """
        from gated_backfill.producer.runs.attended import launch_and_follow  # imports Celery, unneeded by `plan`
        from gated_backfill.producer.runs.session import Launch

        launch = Launch(
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
        return launch_and_follow(
            launch,
            settings,
            detach=self.detach,
            yes=self.yes,
            as_json=self.as_json,
            check=check,
            facts=facts,
            workers_given=self.workers is not None,
        )

    def _job_name(self) -> str:
        if self.job is None:
            raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
        return find_job(self.job).name

    def _days(self) -> tuple[date, ...]:
        ways = (self.dates, self.start_date or self.end_date, self.last_days, self.yesterday)
        if sum(map(bool, ways)) > 1:
            raise UserError("give only one of: --start-date and --end-date, --dates, --last-days, --yesterday")
        if self.is_daily:
            time_zone = find_job(self._job_name()).time_zone(read_settings().timezone)
            return resolve_days(days_before(today_in(time_zone), self.last_days or 1), (), self._excluded())
        if not self.dates and not (self.start_date and self.end_date):
            raise UserError("give --start-date and --end-date, --dates, --last-days or --yesterday")
        span = None
        if self.start_date and self.end_date:
            span = DateRange(start=parse_date(self.start_date), through=parse_date(self.end_date))
        return resolve_days(span, parse_date_list(self.dates, "--dates"), self._excluded())

    def _flagged_days(self) -> tuple[date, ...]:
        if self.has_dates:
            raise UserError("--flagged selects the dates: give no other option for them")
        if self.reprocess is Reprocess.NONE:
            raise UserError("--flagged rebuilds dates: it cannot be combined with --reprocess none")
        job = self._job_name()
        flags = open_context(read_settings()).ledger.flags.list_open_flags(job)
        if flags:
            return resolve_days(None, list(flags), self._excluded())
        if self.as_json:
            print_json(None)
        else:
            make_console().print(f"no date of {job} is flagged: nothing to do")
        raise SystemExit(COMPLETE)

    def _excluded(self) -> tuple[date, ...]:
        return parse_date_list(self.exclude, "--exclude")


def run_arguments(*options: Callable[[Any], Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options, and their values as one `RunArguments`, its first parameter."""
    names = {field.name for field in fields(RunArguments)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call_command(**values: Any) -> None:
            arguments = RunArguments(**{name: values.pop(name) for name in names & values.keys()})
            command(arguments, **values)

        for option in reversed(options):
            option(call_command)
        return call_command

    return decorate
