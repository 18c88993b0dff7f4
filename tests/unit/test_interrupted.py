"""What signals' handlers raise, and where they have to wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from gated_backfill.common.process.signals import defer_signals, find_interruption
from tests.builders import answering


class Told(BaseException):
    """As a handler tells."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    with answering(signal.SIGTERM, signal.SIGUSR1, by=Told):
        yield


def test_a_handler_runs_at_once_where_it_may() -> None:
    with defer_signals():
        pass
    with pytest.raises(Told):
        signal.raise_signal(signal.SIGTERM)


def hold(done: list[str], *, fails: bool = False) -> None:
    with defer_signals():
        signal.raise_signal(signal.SIGTERM)
        with defer_signals():
            signal.raise_signal(signal.SIGUSR1)
        done.append("whole")
        if fails:
            raise ValueError("by itself")


def test_a_handler_waits_for_the_end_of_what_is_not_to_be_interrupted() -> None:
    done: list[str] = []
    with pytest.raises(Told, match=str(int(signal.SIGTERM))):
        hold(done)
    assert done == ["whole"]
    with pytest.raises(Told, match=str(int(signal.SIGUSR1))), defer_signals():
        pass  # the other one has its turn, though the first ended the context


def test_what_fails_in_it_is_told_with_what_came_meanwhile() -> None:
    with pytest.raises(Told) as raised:
        hold([], fails=True)
    assert isinstance(raised.value.__context__, ValueError)
    with pytest.raises(Told), defer_signals():
        pass


def test_a_thread_keeps_no_signal_from_the_main_one() -> None:
    entered, left = threading.Event(), threading.Event()

    def hold() -> None:
        with defer_signals():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    try:
        with pytest.raises(Told):
            signal.raise_signal(signal.SIGTERM)
    finally:
        left.set()
        thread.join()


def half_changed(told: BaseException) -> None:
    try:
        raise told
    except SystemExit:
        raise RuntimeError("half changed") from None


def test_what_a_library_makes_of_an_interruption_is_known_for_one() -> None:
    told = SystemExit("told")
    with pytest.raises(RuntimeError) as raised:
        half_changed(told)
    assert find_interruption(raised.value) is told
    assert find_interruption(RuntimeError("by itself")) is None
