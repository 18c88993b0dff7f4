"""Options that several commands have, each with one meaning everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from gated_backfill.common.model.coverage import Fallback
from gated_backfill.producer.planning.reprocess import Reprocess

JobName = Annotated[str | None, typer.Option("--job", help="The job to run; `backfill jobs` lists them.")]
StartDate = Annotated[str | None, typer.Option("--start-date", help="First date, YYYY-MM-DD, included.")]
EndDate = Annotated[str | None, typer.Option("--end-date", help="Last date, YYYY-MM-DD, included.")]
Dates = Annotated[
    list[str] | None,
    typer.Option("--dates", help="Dates instead of a range: 2023-02-23,2023-03-01..2023-03-05. May be repeated."),
]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Dates to leave out, written as in --dates.")]
ReprocessOption = Annotated[
    Reprocess,
    typer.Option(
        help="Dates that earlier runs dealt with. none: only dates that no run has ended. failed: those and the "
        "blocked and failed ones. all: every date, checkpointed ones included."
    ),
]
NewestFirst = Annotated[bool, typer.Option("--newest-first", help="Build the latest dates first.")]
FallbackOption = Annotated[
    Fallback | None,
    typer.Option(
        help="When the primary source is partial. replace: all rows from the best fallback. fill: only the missing "
        "entities from it. off: build from the primary and let the gate judge.  [default: the job's]"
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Commit dates of low coverage, marked as forced for ever. Needs --reason."),
]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why; stored with the run, and with every date that is forced.")
]
ControlReason = Annotated[str | None, typer.Option("--reason", help="Why; stored with who and when.")]
Flagged = Annotated[
    bool,
    typer.Option(
        "--flagged", help="The dates that `coverage --flag-incomplete` or the daily audit flagged, built anew."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the run is open; follow it with `watch`.")]
WindowSize = Annotated[
    int | None,
    typer.Option(min=1, max=5000, help="Dates per window (one chord).  [default: BACKFILL_WINDOW or 100]"),
]
DatesPerTask = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Dates that one task builds together; each is still checked, published and failed by itself. "
        "auto: about a second of work, by what the job's dates took before.  "
        "[default: BACKFILL_DATES_PER_TASK or auto]",
    ),
]
MaxInFlight = Annotated[
    int | None,
    typer.Option(min=1, help="Dates under way at once.  [default: BACKFILL_MAX_IN_FLIGHT, or what the windows hold]"),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Worker processes of the embedded stack.  [default: BACKFILL_WORKERS or 2]"),
]
Sequential = Annotated[bool, typer.Option("--sequential", help="One task at a time, in this process.")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Run the other dates when some would be blocked; exit code 3.")
]
NoPreflight = Annotated[
    bool,
    typer.Option("--no-preflight", help="Send the dates that would be blocked too, and let the gate judge."),
]


def strip_reason(reason: str | None) -> str | None:
    """What a `--reason` says; None where it says nothing."""
    return (reason or "").strip() or None
