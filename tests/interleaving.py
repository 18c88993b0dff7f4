"""Something happens just before one of the system calls by which this process looks at files or changes them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from gated_backfill.common.warehouse.local import exchange

#: Audit events of calls that change names, and of calls that look at files.
CHANGES = frozenset({"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "renameat2"})
LOOKS = frozenset({"open", "os.listdir", "os.scandir"})
UNAUDITED = ("stat", "lstat", "fsync")  #: functions of `os` that raise no audit event


class SystemCalls:
    """Counts the calls, and acts before some of them. What the acts do is not counted."""

    def __init__(self, acts: Mapping[int, Callable[[], None]], *, changes_only: bool) -> None:
        self.count = 0
        self._counted = CHANGES if changes_only else CHANGES | LOOKS | {*UNAUDITED}
        self._acts = acts
        self._lock = threading.Lock()

    def meet(self, call: str) -> None:
        global _current
        if call not in self._counted:
            return
        with self._lock:
            self.count += 1
            act = self._acts.get(self.count)
        if act is not None:
            _current = None
            try:
                act()
            finally:
                _current = self


_current: SystemCalls | None = None
_is_hooked = False


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _current is not None:
        _current.meet(event)


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if _current is not None:
            _current.meet(name)
        return function(*arguments, **named)

    return call


@contextmanager
def before_system_calls(
    acts: Mapping[int, Callable[[], None]], *, changes_only: bool = False
) -> Generator[SystemCalls]:
    """Do something before the calls of these numbers, from 1; calls that only look at files may be left out."""
    global _current, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_audit)  # for ever: there is no way to remove one
        _is_hooked = True
    with pytest.MonkeyPatch.context() as patch:
        for name in UNAUDITED:
            patch.setattr(os, name, _counted(name, getattr(os, name)))
        renameat2 = exchange._renameat2  # pyright: ignore[reportPrivateUsage]
        if renameat2 is not None:
            patch.setattr(exchange, "_renameat2", _counted("renameat2", renameat2))
        _current = SystemCalls(acts, changes_only=changes_only)
        try:
            yield _current
        finally:
            _current = None


def system_calls(work: Callable[[], object]) -> int:
    """How many calls the work takes."""
    with before_system_calls({}) as calls:
        work()
    return calls.count
