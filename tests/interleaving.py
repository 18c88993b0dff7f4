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

AUDITED = frozenset(
    {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"}
)
UNAUDITED = ("stat", "lstat", "fsync")  #: functions of `os` that raise no audit event


class SystemCalls:
    """Counts the calls, and acts before some of them. What the acts do is not counted."""

    def __init__(self, acts: Mapping[int, Callable[[], None]]) -> None:
        self.count = 0
        self._acts = acts
        self._lock = threading.Lock()

    def meet(self) -> None:
        global _current
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
    if _current is not None and event in AUDITED:
        _current.meet()


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if _current is not None:
            _current.meet()
        return function(*arguments, **named)

    return call


@contextmanager
def before_system_calls(acts: Mapping[int, Callable[[], None]]) -> Generator[SystemCalls]:
    """Do something before the calls of these numbers, from 1."""
    global _current, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_audit)  # for ever: there is no way to remove one
        _is_hooked = True
    with pytest.MonkeyPatch.context() as patch:
        for name in UNAUDITED:
            patch.setattr(os, name, _counted(getattr(os, name)))
        if exchange._renameat2 is not None:  # pyright: ignore[reportPrivateUsage]
            patch.setattr(exchange, "_renameat2", _counted(exchange._renameat2))  # pyright: ignore[reportPrivateUsage]
        _current = SystemCalls(acts)
        try:
            yield _current
        finally:
            _current = None


def system_calls(work: Callable[[], object]) -> int:
    """How many calls the work takes."""
    with before_system_calls({}) as calls:
        work()
    return calls.count
