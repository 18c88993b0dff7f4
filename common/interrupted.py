"""What a signal interrupted: its handler's exception may come out of a library as that library's own."""

from __future__ import annotations

from billiard.exceptions import SoftTimeLimitExceeded

SIGNALLED = (SystemExit, KeyboardInterrupt, SoftTimeLimitExceeded)


def interruption_behind(exc: BaseException) -> BaseException | None:
    """What a signal's handler raised, if the error came up only while that was on its way; None if it is one by itself.

    Libraries that tidy up after an exception find their state half changed by one that came from nowhere.
    """
    behind: BaseException | None = exc
    while behind is not None and not isinstance(behind, SIGNALLED):
        behind = behind.__cause__ or behind.__context__
    return behind
