"""Check that a job which processed several dates at once did not mix their rows.

If it processes one date, a row with another date is an error at once. With several dates a row may carry the wrong one
of them. Signs of that are a key that occurs twice, a date without rows, and an entity that was read for other dates
only. The dates are then split in halves until the date at fault is alone.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import ProcessFailed
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.job import Job
from gated_backfill.common.warehouse.entities import day_entity_rows, day_numbers

UNKNOWN_ENTITY = -1


class DatesMixed(ProcessFailed):
    """A row may carry the wrong one of the dates that were processed together."""


def check_dates_returned(returned: Iterable[date | None], days: Collection[date]) -> None:
    """Raise `ProcessFailed` if rows have other dates than these, or none."""
    if other_dates := sorted(map(str, set(returned) - set(days))):
        day = next(iter(days)) if len(days) == 1 else None
        raise ProcessFailed(f"process returned rows of other dates: {other_dates[:3]}", day=day)


def check_dates_not_mixed(job: Job, entities_read: pa.Table, rows: pa.Table) -> None:
    """Raise `DatesMixed` if a row seems to belong to another date.

    `entities_read` has the columns `day` and `entity` of the source rows; `rows` are the job's, sorted by date and key.
    """
    for _ in check_separation(job, entities_read, [rows]):
        pass


def check_separation(job: Job, entities_read: pa.Table, tables: Iterable[pa.Table]) -> Generator[pa.Table]:
    """Yield the tables, whose rows together are sorted by date and key, and check them as `check_dates_not_mixed` does.

    The last table is followed by the last check.
    """
    key = list(job.target.row_order)
    columns = EntityColumns(date=job.target.date_column, entity=job.target_entity)
    last_row: pa.Table | None = None
    entities: list[pa.Table] = []
    for rows in tables:
        keys = rows.select(key)
        if has_duplicate_keys(keys if last_row is None else pa.concat_tables([last_row, keys]), key):
            raise DatesMixed("some rows have the same key")
        last_row = keys.slice(keys.num_rows - 1) if keys.num_rows else last_row
        entities.append(_distinct(day_entity_rows(rows, columns).drop_null()))
        yield rows
    if entities:
        check_entities(_distinct(pa.concat_tables(entities)), entities_read)


def _distinct(entities: pa.Table) -> pa.Table:
    return entities.group_by(["day", "entity"], use_threads=False).aggregate([])


def check_entities(entities: pa.Table, entities_read: pa.Table) -> None:
    """Raise `DatesMixed` for a date without rows, and for an entity that was read for other dates only.

    Both tables have the columns `day` and `entity`; `entities` has no row twice, and no nulls.
    """
    entities_read = entities_read.drop_null()
    empty_dates = set(entities_read["day"].unique().to_pylist()) - set(entities["day"].unique().to_pylist())
    if empty_dates:
        raise DatesMixed(f"no rows for {', '.join(sorted(map(str, empty_dates)))}")
    misdated = find_misdated_entity(entities, entities_read)
    if misdated is not None:
        day, entity = misdated
        raise DatesMixed(f"{entity} on {day} was read for another date only")


def has_duplicate_keys(ordered: pa.Table, key: Collection[str]) -> bool:
    """Whether rows that are sorted by key have a key twice. Nulls are equal, and so are 0.0 and -0.0; NaNs are not."""
    count = ordered.num_rows
    are_equal: Any = pa.scalar(count > 1)
    for name in key:
        value, next_value = ordered[name].slice(0, max(count - 1, 0)), ordered[name].slice(1)
        both_null = pc.and_(pc.is_null(value), pc.is_null(next_value))
        are_equal = pc.and_(are_equal, pc.coalesce(pc.equal(value, next_value), both_null))
    return bool(pc.any(are_equal).as_py())


def find_misdated_entity(entities: pa.Table, entities_read: pa.Table) -> tuple[date, str] | None:
    """The first day and entity of `entities` whose entity is in `entities_read` on other days only."""
    names: Any = pc.unique(entities_read["entity"])
    (is_read, keys), (_, keys_read) = _day_entity_keys(entities, names), _day_entity_keys(entities_read, names)
    misdated = np.flatnonzero(is_read & ~np.isin(keys, keys_read))
    if not len(misdated):
        return None
    first = entities.slice(int(misdated[0]), 1).to_pylist()[0]
    return first["day"], first["entity"]


def _day_entity_keys(rows: pa.Table, names: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """For each row: whether its entity is among the names, and a number that identifies its day and entity."""
    places = pc.index_in(rows["entity"], value_set=names).fill_null(UNKNOWN_ENTITY).to_numpy()
    days = day_numbers(rows["day"]).astype(np.int64)
    return places != UNKNOWN_ENTITY, days * len(names) + places
