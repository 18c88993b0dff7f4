"""Telling whether a job kept the dates apart that it was given together."""

from __future__ import annotations

from datetime import date, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.worker.dates.separation import find_misdated_entity, has_duplicate_keys

DAY = date(1969, 12, 31)  # the days on both sides of the first that a computer counts from
ROWS = st.lists(
    st.tuples(st.integers(0, 3).map(lambda n: DAY + timedelta(days=n)), st.sampled_from(["ann", "bob", "cid", "döra"])),
    max_size=12,
)


def table(rows: list[tuple[date, str]]) -> pa.Table:
    return pa.table(
        {"day": pa.array([day for day, _ in rows], pa.date32()), "entity": pa.array([who for _, who in rows], "string")}
    )


@given(made=ROWS, read=ROWS)
def test_a_stranger_is_who_was_read_for_other_dates_only(
    made: list[tuple[date, str]], read: list[tuple[date, str]]
) -> None:
    anywhere = {who for _, who in read}
    strangers = [one for one in made if one not in read and one[1] in anywhere]
    assert find_misdated_entity(table(made), table(read)) == next(iter(strangers), None)


@given(rows=st.lists(st.tuples(st.sampled_from(["ann", "bob", None]), st.sampled_from([1, 2, None]))))
def test_repeats_are_found_among_rows_in_order(rows: list[tuple[str | None, int | None]]) -> None:
    found = pa.table(
        {"name": pa.array([one for one, _ in rows], "string"), "n": pa.array([other for _, other in rows], "int64")}
    )
    ordered = found.sort_by([("name", "ascending"), ("n", "ascending")])
    assert has_duplicate_keys(ordered, ["name", "n"]) == (len(set(rows)) < len(rows))


@pytest.mark.parametrize("parts", [[2, 1], [1, 1, 1]])
def test_rows_may_be_in_any_number_of_parts(parts: list[int]) -> None:
    whole = pa.table({"name": ["ann", "bob", "bob"]})
    begins = [sum(parts[:n]) for n in range(len(parts))]
    cut = pa.concat_tables([whole.slice(begin, count) for begin, count in zip(begins, parts, strict=True)])
    assert has_duplicate_keys(cut, ["name"])
