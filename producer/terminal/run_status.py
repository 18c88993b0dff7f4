"""What `status` shows of a run. It imports no more than that takes: the command is asked for over and over."""

from __future__ import annotations

from contextlib import closing

from gated_backfill.common.config.ledger_url import read_ledger_url
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.producer.terminal.exit_codes import COMPLETE, exit_code_for_run
from gated_backfill.producer.terminal.runs import (
    make_console,
    print_json,
    print_run,
    print_runs,
    print_source_checks,
    run_json,
)

DEFAULT_RUNS_LISTED = 5  #: runs that are listed besides, unless told otherwise


def show_status(
    run_id: str | None = None, *, as_json: bool = False, every_date: bool = False, last: int = DEFAULT_RUNS_LISTED
) -> int:
    """Print how the run stands, or else the latest; returns the exit code.

    Nothing but the ledger is looked at, nor which settings there are.
    """
    with closing(open_ledger(read_ledger_url())) as ledger:
        return _show(ledger, run_id, as_json=as_json, every_date=every_date, last=last)


def _show(ledger: Ledger, run_id: str | None, *, as_json: bool, every_date: bool, last: int) -> int:
    console = make_console()
    latest = ledger.runs.list_latest_runs(max(last, 1))
    if run_id is None and not latest:
        if as_json:
            print_json(None)
        else:
            console.print("no run was launched yet: start with `backfill plan --help`")
        return COMPLETE
    progress = ledger.runs.get_progress(run_id or latest[0].id)
    actions = ledger.actions.list_actions(progress.run.id)
    if as_json:
        print_json(run_json(progress, ledger.dates.list_dates(progress.run.id), actions))
    else:
        print_run(console, progress, ledger.dates.get_run_summary(progress.run.id), actions)
        if flags := ledger.flags.list_open_flags(progress.run.job):
            console.print(f"  flagged  {len(flags)} date(s): `backfill run --job {progress.run.job} --flagged`")
        if every_date:
            print_source_checks(console, ledger.dates.list_dates(progress.run.id))
        others = [one for one in latest if one.id != progress.run.id]
        if run_id is None and others and last:
            console.print()
            print_runs(console, others)
    unfinished = not progress.run.has_ended and not is_interrupted(progress.run)
    return COMPLETE if unfinished else exit_code_for_run(progress)
