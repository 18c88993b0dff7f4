"""Whether a job that was given several dates at once keeps them apart.

Alone, a date can't be given the rows of another: they are rows of a date that was not asked for. Together, a row may
have been misdated whose entity was read for another date only, or that is there twice, or whose date has nothing
otherwise: processing the dates alone will show.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import ProcessFailed
from gated_backfill.common.model.job import Job
from gated_backfill.common.warehouse.counting import day_entity_rows

UNKNOWN_ENTITY = -1


class DatesMixed(ProcessFailed):
    """Rows of one date may be among those of another that was processed with it."""


def day_entities(rows: pd.DataFrame, dated: str, entity: str) -> pa.Table:
    """Who is in the rows when: columns `day` and `entity`."""
    read = {name: pa.array(rows[name], from_pandas=True) for name in (dated, entity)}
    return day_entity_rows(pa.table(read), dated, entity)


def check_dates_not_mixed(job: Job, given: pa.Table, rows: pa.Table) -> None:
    """Raises `DatesMixed` when one of the rows seems to be another date's.

    `given`: who was read for which of the dates. The rows are those of the target, in the order of date and key.
    """
    dated = job.target.date_column
    if has_duplicate_keys(rows, dict.fromkeys((dated, *job.target.key))):
        raise DatesMixed("some rows have the same key")
    made = day_entity_rows(rows, dated, job.entity_column)
    lacking = set(given["day"].unique().to_pylist()) - set(made["day"].unique().to_pylist())
    if lacking:
        raise DatesMixed(f"no rows for {', '.join(sorted(map(str, lacking)))}")
    if (found := find_misdated_entity(made, given)) is not None:
        day, entity = found
        raise DatesMixed(f"{entity} on {day} was read for another date only")


def has_duplicate_keys(ordered: pa.Table, key: Collection[str]) -> bool:
    """Whether rows that are in the order of their key have the same one twice. Nulls are alike, NaNs are not."""
    count = ordered.num_rows
    alike: Any = pa.scalar(count > 1)
    for name in key:
        one, next_one = ordered[name].slice(0, max(count - 1, 0)), ordered[name].slice(1)
        both_null = pc.and_(pc.is_null(one), pc.is_null(next_one))
        alike = pc.and_(alike, pc.coalesce(pc.equal(one, next_one), both_null))
    return bool(pc.any(alike).as_py())


def find_misdated_entity(made: pa.Table, given: pa.Table) -> tuple[date, str] | None:
    """The first who is in `made` on a day and in `given` on other days only."""
    names: Any = pc.unique(given["entity"])
    (known, when), (_, read) = _numbered(made, names), _numbered(given, names)
    strange = np.flatnonzero(known & ~np.isin(when, read))
    if not len(strange):
        return None
    first = made.slice(int(strange[0]), 1).to_pylist()[0]
    return first["day"], first["entity"]


def _numbered(rows: pa.Table, names: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Of each row, whether its entity is among the names, and if so a number for that and its day."""
    places = pc.index_in(rows["entity"], value_set=names).fill_null(UNKNOWN_ENTITY).to_numpy()
    days = rows["day"].cast(pa.int32()).to_numpy().astype(np.int64)
    return places != UNKNOWN_ENTITY, days * len(names) + places
