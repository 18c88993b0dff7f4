"""Who stops renewing a heartbeat is found by what the watcher has seen, with no clock but its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.model.scheduling.silence import SILENT_BEATS, SilenceWatch

INTERVAL = 2.0


def looks(*counters: dict[str, int], at: list[float] | None = None) -> list[list[str]]:
    """What each look finds, one interval after the other or at the given times."""
    watch = SilenceWatch(INTERVAL)
    times = at or [INTERVAL * n for n in range(len(counters))]
    return [watch.find_silent(seen, now) for seen, now in zip(counters, times, strict=True)]


def test_a_process_is_silent_after_three_intervals_without_a_renewal() -> None:
    assert looks({"a": 7}, {"a": 7}, {"a": 7}, {"a": 7}) == [[], [], [], ["a"]]


def test_a_process_that_is_renewed_late_is_not_silent() -> None:
    assert looks({"a": 1}, {"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}, {"a": 2}, {"a": 2})[-2:] == [[], ["a"]]


def test_each_process_is_watched_apart() -> None:
    assert looks(*({"a": n, "b": 0} for n in range(4)))[-1] == ["b"]


@pytest.mark.parametrize("gap", [5.0, 60.0], ids=["a-pause", "a-long-one"])
def test_a_watcher_that_could_not_look_for_a_while_takes_nobody_for_silent(gap: float) -> None:
    """It was suspended, or the ledger did not answer, which kept the others from renewing, too."""
    times = [0.0, 2.0, 2.0 + gap, 4.0 + gap, 6.0 + gap, 8.0 + gap]
    assert looks(*[{"a": 7}] * 6, at=times) == [[], [], [], [], [], ["a"]]


def test_a_process_that_begins_anew_is_watched_anew() -> None:
    assert looks({"a": 7}, {"a": 7}, {}, {"a": 7}, {"a": 7}, {"a": 7})[-1] == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_nobody_is_silent_who_was_renewed_within_the_last_looks(counters: list[int]) -> None:
    found = looks(*({"a": counter} for counter in counters))
    for number, silent in enumerate(found):
        seen = counters[max(number - SILENT_BEATS, 0) : number + 1]
        assert bool(silent) == (len(seen) > SILENT_BEATS and len(set(seen)) == 1)
