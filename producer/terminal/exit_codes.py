"""Exit codes of commands."""

from __future__ import annotations

COMPLETE = 0  #: every requested date is complete
REFUSED = 2  #: refused, bad usage or an error; one line says what happened
INCOMPLETE = 3  #: some dates are not complete; for `doctor` and `jobs`: something failed
IN_PROGRESS = 4  #: of a daily run: another run is building the dates, so nothing was started
INTERRUPTED = 130
