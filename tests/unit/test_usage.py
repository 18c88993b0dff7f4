"""What was billed is charged to the work that was done, and nothing of it is lost or counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.model.usage import Usage, format_bytes, split_usage
from gated_backfill.common.warehouse import usage as accounts
from gated_backfill.common.warehouse.usage import charge, charging, give_back_usage, take_usage

USAGE = Usage(bytes_billed=10, slot_millis=7)


@given(st.integers(0, 10**18), st.integers(0, 10**12), st.integers(1, 500))
def test_the_parts_of_a_task_add_up_and_are_nearly_equal(bytes_billed: int, slot_millis: int, count: int) -> None:
    parts = split_usage(Usage(bytes_billed=bytes_billed, slot_millis=slot_millis), count)
    assert len(parts) == count
    assert sum(parts, Usage()) == Usage(bytes_billed=bytes_billed, slot_millis=slot_millis)
    for values in ([part.bytes_billed for part in parts], [part.slot_millis for part in parts]):
        assert max(values) - min(values) <= 1


def test_usage_is_charged_to_the_work_around_it_and_taken_once() -> None:
    with charging("run-1"):
        charge(USAGE)
        with charging("run-2"):
            charge(USAGE)
        charge(USAGE)
    assert take_usage("run-1") == USAGE + USAGE
    assert take_usage("run-1") is None
    assert take_usage("run-2") == USAGE


def test_nothing_is_kept_of_work_for_no_run() -> None:
    charge(USAGE)
    assert take_usage("run-1") is None


def test_what_could_not_be_recorded_is_in_the_next_record() -> None:
    give_back_usage("run-1", USAGE)
    with charging("run-1"):
        charge(USAGE)
    assert take_usage("run-1") == USAGE + USAGE


def test_what_nobody_takes_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_ACCOUNTS", 2)
    for run in ("run-1", "run-2", "run-3"):
        give_back_usage(run, USAGE)
    assert [take_usage(run) for run in ("run-1", "run-2", "run-3")] == [None, USAGE, USAGE]


def test_usage_reads_in_the_largest_units() -> None:
    assert Usage(bytes_billed=3 * 2**29, slot_millis=1_234_567).describe() == "1.5 GiB, 1,235 s of slot time"
    assert [format_bytes(n) for n in (0, 1023, 1024, 2**40)] == ["0 B", "1023 B", "1.0 KiB", "1.0 TiB"]
