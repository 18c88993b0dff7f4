"""Options and arguments that several commands share."""

from __future__ import annotations

import click

from gated_backfill.common.model.dates import ALL_DATES, DateRange, parse_date

job_option = click.option("--job", help="The job; `backfill jobs` lists them.")
single_job_option = click.option("--job", help="One job only.  [default: all jobs]")
start_date_option = click.option("--start-date", help="First date, YYYY-MM-DD, included.")
end_date_option = click.option("--end-date", help="Last date, YYYY-MM-DD, included.")
dates_option = click.option(
    "--dates", multiple=True, help="Dates instead of a range: 2023-02-23,2023-03-01..2023-03-05. May be repeated."
)
last_days_option = click.option(
    "--last-days", type=click.IntRange(1, 36_500), help="The N days up to yesterday, in the job's time zone."
)
reason_option = click.option("--reason", help="The reason; stored with the user and the time.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
run_argument = click.argument("run_id", metavar="RUN", help="The run; `backfill status` lists the latest.")
latest_run_argument = click.argument("run_id", required=False, metavar="[RUN]", help="A run.  [default: the latest]")
window_option = click.option(
    "--window", type=click.IntRange(1, 5000), help="Dates per window (one chord).  [default: BACKFILL_WINDOW or 100]"
)


def parse_open_range(first: str | None, last: str | None) -> DateRange:
    """Return the range of `--start-date` and `--end-date`, each of which may be missing. Raises `UserError`."""
    return DateRange(
        start=parse_date(first) if first else ALL_DATES.start, through=parse_date(last) if last else ALL_DATES.through
    )


def strip_reason(reason: str | None) -> str | None:
    """The trimmed text of a `--reason` option; None when it is blank."""
    return (reason or "").strip() or None
