"""How commands end."""

from __future__ import annotations

from gated_backfill.common.ledger import RunProgress, RunState

COMPLETE = 0  #: everything asked for is complete
REFUSED = 2  #: refused or bad usage; nothing was changed
INCOMPLETE = 3  #: some dates are not complete; of `doctor`: something is not as it must be
INTERRUPTED = 130


def exit_code_for_run(progress: RunProgress) -> int:
    """The exit code that tells how a run ended."""
    return COMPLETE if progress.run.state is RunState.SUCCEEDED else INCOMPLETE
