"""What "this entity on this date" means: the one reading of a table's rows, for plan, worker, gate and audit.

The day of a row is the date in its date column: a DATE, a DATETIME, or a TIMESTAMP in a declared time zone. An entity
is compared as text: an INT64, a whole FLOAT64, a BOOL or a DATE is written as text first, so 1, 1.0 and "1" are the
same entity. Text is compared exactly: case, blanks and Unicode forms matter. NULL and NaN are no entity.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.types import nan_as_null
from gated_backfill.common.model.entities import ENTITY_TYPES, MAX_WHOLE_FLOAT, SUM_TYPES, EntityColumns, PresenceRule

ROW_COUNT = "__row_count"  #: column with the number of rows that each row stands for, if they were grouped
SEPARATOR = "|"  #: between the parts of an entity of several columns
NO_POSITION: Any = 0  #: in the keys of entities without a number, which are not used
EPOCH = date(1970, 1, 1)
NO_DAYS = np.empty(0, np.int32)
ROUNDING = 1e-9  #: relative difference of two sums that is rounding
#: Difference of two sums of the same values in another order, relative to the sum of their absolute values.
REORDERING = 1e-12

Mask = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


def day_entity_rows(rows: pa.Table, columns: EntityColumns, *, table: str | None = None) -> pa.Table:
    """Reduce the rows to `day` (DATE), `entity` (text; NULL for none), and `sum0`, `sum1`... if sums are compared.

    With each `sum0` goes a `magnitude0`: its absolute value or, of grouped rows, the sum of these. The column
    `ROW_COUNT` of grouped rows is kept. Rows with a null in a required column are left out. Raises `SchemaMismatch` for
    a column that cannot be read so.
    """
    rows = _with_required(rows, columns.required)
    try:
        days = read_days(rows[columns.date], columns.time_zone)
    except pa.ArrowException as exc:
        raise SchemaMismatch(f"cannot read {columns.date} as a date: {exc}", table=table) from exc
    arrays = {"day": days, "entity": _entities(rows, columns, days, table)}
    for number, name in enumerate(columns.sums):
        arrays[f"sum{number}"] = rows[name] if columns.magnitudes else _summands(rows[name], name, table)
        magnitude = rows[columns.magnitudes[number]] if columns.magnitudes else arrays[f"sum{number}"]
        arrays[f"magnitude{number}"] = pc.abs(magnitude)
    if ROW_COUNT in rows.column_names:
        arrays[ROW_COUNT] = rows[ROW_COUNT]
    return pa.table(arrays)


def group_entities(tables: Iterable[pa.Table]) -> pa.Table:
    """Group rows that `day_entity_rows` has returned, of one table after another: each entity of a day has one row.

    So as many rows are in memory as there are entities, and those of one table.
    """
    groups: pa.Table | None = None
    for table in tables:
        counted = (
            table if ROW_COUNT in table.column_names else table.append_column(ROW_COUNT, pa.array(_row_counts(table)))
        )
        group = _add_up(counted)
        groups = group if groups is None else _add_up(pa.concat_tables([groups, group]))
    assert groups is not None, "of at least one table"
    return groups


def _add_up(rows: pa.Table) -> pa.Table:
    key = ["day", "entity"]
    numbers = [name for name in rows.column_names if name not in key]
    sums = rows.group_by(key, use_threads=False).aggregate([(name, "sum") for name in numbers])
    return sums.select([*key, *(f"{name}_sum" for name in numbers)]).rename_columns([*key, *numbers])


def _with_required(rows: pa.Table, required: Iterable[str]) -> pa.Table:
    for name in required:
        is_null = pc.is_null(rows[name], nan_is_null=True)
        if pc.any(is_null).as_py():
            rows = rows.filter(pc.invert(is_null))
    return rows


def read_days(values: Any, time_zone: str | None) -> Any:
    """Return the date of each value. Raises `pa.ArrowInvalid` for a type that has no date."""
    if pa.types.is_date32(values.type):
        return values
    if not pa.types.is_timestamp(values.type):
        if pa.types.is_date(values.type):
            return values.cast(pa.date32())
        raise pa.ArrowInvalid(f"it is {values.type}")
    if values.type.tz is not None:
        if time_zone is None:
            raise pa.ArrowInvalid("it is a TIMESTAMP, and no time_zone is declared")
        values = pc.local_timestamp(values.cast(pa.timestamp(values.type.unit, tz=time_zone)))
    return pc.floor_temporal(values, unit="day").cast(pa.date32())


def day_numbers(dates: Any) -> npt.NDArray[np.int32]:
    """Return DATEs (date32), none of them null, as days since 1970. A single chunk is not copied."""
    array: Any = dates
    if isinstance(dates, pa.ChunkedArray):
        array = dates.chunk(0) if dates.num_chunks == 1 else dates.combine_chunks()
    if not len(array):
        return NO_DAYS
    return np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array)]


def _entities(rows: pa.Table, columns: EntityColumns, days: Any, table: str | None) -> Any:
    texts = [entity_texts(rows[name], name, days=days, table=table) for name in columns.entity]
    if len(texts) == 1:
        return texts[0]
    escaped = [pc.replace_substring(pc.replace_substring(text, "\\", "\\\\"), "|", "\\|") for text in texts]
    return pc.binary_join_element_wise(*escaped, SEPARATOR, null_handling="emit_null")


def entity_texts(values: Any, name: str, *, days: Any = None, table: str | None = None) -> Any:
    """Return the values of a column as the texts of entities, null for none.

    Raises `SchemaMismatch` for a type or a value that names no entity; the message has its day if `days` are given.
    """
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_floating(kind):
        return _whole_numbers(values, name, days, table).cast(pa.string())
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind):
        return values.cast(pa.string())
    if pa.types.is_dictionary(kind):
        return entity_texts(values.cast(kind.value_type), name, days=days, table=table)
    raise SchemaMismatch(f"column {name} is {kind}: an entity must be {' or '.join(ENTITY_TYPES)}", table=table)


def _whole_numbers(values: Any, name: str, days: Any, table: str | None) -> Any:
    """Return the floats as integers, NaN as null. Raises `SchemaMismatch` for one that is not a whole number."""
    values = nan_as_null(values)
    limit: Any = pa.scalar(MAX_WHOLE_FLOAT, values.type)
    is_whole: Any = pc.and_(pc.equal(pc.trunc(values), values), pc.less_equal(pc.abs(values), limit))
    wrong = pc.invert(is_whole.fill_null(True))
    if pc.any(wrong).as_py():
        value = values.filter(wrong)[0].as_py()
        on_day = "" if days is None else f" on {days.filter(wrong)[0].as_py()}"
        raise SchemaMismatch(
            f"column {name} holds {value!r}{on_day}: a FLOAT64 names an entity only if it is a whole number "
            "of at most 2**53",
            table=table,
        )
    return values.cast(pa.int64())


def _summands(values: Any, name: str, table: str | None) -> Any:
    """Return the numbers to sum, 0 for a null. Raises `SchemaMismatch` for a column of another type."""
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise SchemaMismatch(
            f"column {name} is {kind}: a column whose sums are compared must be {' or '.join(SUM_TYPES)}", table=table
        )
    numbers = values.cast(pa.float64(), safe=False)
    return pc.fill_null(nan_as_null(numbers), 0.0)


# -- comparison -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _NumberedEntities:
    """Distinct pairs of day and entity as ascending numbers, with the rows, sums and magnitudes of each if measured."""

    keys: Keys
    rows: Sums | None = None
    sums: tuple[Sums, ...] = ()
    magnitudes: tuple[Sums, ...] = ()  #: sums of absolute values


class ExpectedEntities:
    """The expected entities of some days. Other rows are compared with them: see `day_entity_rows`."""

    def __init__(self, rows: pa.Table, *, is_measured: bool = False) -> None:
        """`rows` are the expectation's; `is_measured`: numbers of rows or sums will be compared."""
        self.null_rows = _null_rows(rows)
        self._rows = _named(rows)
        self._is_measured = is_measured

    @cached_property
    def _encoded(self) -> Any:
        """The entity of each row as a position in the distinct names."""
        return self._rows["entity"].combine_chunks().dictionary_encode()

    @property
    def _names(self) -> Any:
        return self._encoded.dictionary

    @cached_property
    def _entities(self) -> _NumberedEntities:
        """Numbered when something is compared: most dates are built from a source that is the expectation itself."""
        keys = self._keys(self._rows, self._encoded.indices)
        return _measured(keys, self._rows) if self._is_measured else _NumberedEntities(keys=_distinct(keys))

    def all_by_day(self) -> dict[date, frozenset[str]]:
        """Return all expected entities of each day."""
        days = day_numbers(self._rows["day"])
        names: list[Any] = self._rows["entity"].to_pylist()
        ends = [*(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)] if len(days) else []
        names_by_number: dict[int, set[str]] = {}
        begin = 0
        for end in ends:  # of rows of one day each; most tables are read day by day
            names_by_number.setdefault(int(days[begin]), set()).update(names[begin:end])
            begin = end
        return {EPOCH + timedelta(days=number): frozenset(entities) for number, entities in names_by_number.items()}

    @property
    def all(self) -> Mask:
        """The mask of all expected entities."""
        return np.ones(len(self._entities.keys), bool)

    def present_in(self, rows: pa.Table, rule: PresenceRule) -> Mask:
        """Return which of the expected entities the rows have, by the rule."""
        row_entities = self._number(_named(rows), is_measured=rule.is_measured)
        if not len(row_entities.keys):
            return ~self.all
        present, positions = self._find(row_entities)
        return present & self._meets(rule, row_entities, positions) if rule.is_measured else present

    def with_fewer_rows(self, rows: pa.Table, *, than: pa.Table) -> Mask:
        """Return which of the expected entities have fewer rows in `rows` than in the other ones."""
        return self._count_rows(rows) < self._count_rows(than)

    def _count_rows(self, rows: pa.Table) -> Sums:
        """Return the number of rows of each expected entity."""
        row_entities = self._number(_named(rows), is_measured=True)
        if not len(row_entities.keys):
            return np.zeros(len(self._entities.keys))
        present, positions = self._find(row_entities)
        assert row_entities.rows is not None
        return np.where(present, row_entities.rows[positions], 0.0)

    def _find(self, row_entities: _NumberedEntities) -> tuple[Mask, npt.NDArray[np.intp]]:
        """Return which of the expected entities are among the others, of which there are some, and where."""
        positions = np.searchsorted(row_entities.keys, self._entities.keys)
        positions[positions == len(row_entities.keys)] = 0
        return row_entities.keys[positions] == self._entities.keys, positions

    def _meets(self, rule: PresenceRule, row_entities: _NumberedEntities, positions: npt.NDArray[np.intp]) -> Mask:
        expected, met = self._entities, self.all
        assert expected.rows is not None
        assert row_entities.rows is not None
        if rule.rows == "equal":
            met &= row_entities.rows[positions] == expected.rows
        elif rule.rows is not None:
            met &= row_entities.rows[positions] >= rule.rows * expected.rows - ROUNDING
        if rule.tolerances:
            sums = zip(expected.sums, expected.magnitudes, row_entities.sums, rule.tolerances, strict=True)
            for expected_sums, magnitudes, other_sums, tolerance in sums:
                met &= _agree(expected_sums, other_sums[positions], tolerance, magnitudes)
        return met

    def count_by_day(self, mask: Mask) -> dict[date, int]:
        """Return the number of masked entities by day, without days that have none."""
        days = self._entities.keys[mask] // max(len(self._names), 1)  # ascending, like the keys
        return _count_sorted(days)

    def sets_by_day(self, mask: Mask) -> dict[date, frozenset[str]]:
        """Return the masked entities of each day."""
        keys = self._entities.keys[mask]
        if not len(keys):
            return {}
        days, positions = np.divmod(keys, len(self._names))
        names = self._names.take(pa.array(positions)).to_pylist()
        sets_by_day: dict[date, frozenset[str]] = {}
        begin = 0
        for day, count in _count_sorted(days).items():
            sets_by_day[day] = frozenset(names[begin : begin + count])
            begin += count
        return sets_by_day

    def names_by_day(self, mask: Mask) -> dict[date, list[str]]:
        """Return the masked entities of each day, sorted."""
        return {day: sorted(names) for day, names in self.sets_by_day(mask).items()}

    def unexpected(self, rows: pa.Table) -> dict[date, list[str]]:
        """Return the entities of the rows that are not expected on their day, sorted, by day."""
        named = _named(rows)
        positions: Any = pc.index_in(named["entity"], value_set=self._names)
        keys = self._keys(named, positions)
        is_unexpected = pc.is_null(positions).to_numpy() | ~np.isin(keys, self._entities.keys)
        if not is_unexpected.any():
            return {}
        names_by_day: dict[date, set[str]] = {}
        for row in named.select(["day", "entity"]).filter(pa.array(is_unexpected)).to_pylist():
            names_by_day.setdefault(row["day"], set()).add(row["entity"])
        return {day: sorted(names) for day, names in names_by_day.items()}

    def rows_on_other_days(self, rows: pa.Table) -> dict[date, int]:
        """Return the number of rows by day, for days without expected entities."""
        expected_days = np.unique(self._entities.keys // max(len(self._names), 1))
        days = rows["day"].cast(pa.int32()).fill_null(NO_POSITION).to_numpy()
        is_other = ~np.isin(days, expected_days)
        return rows_by_day(rows.filter(pa.array(is_other))) if is_other.any() else {}

    def _number(self, named: pa.Table, *, is_measured: bool) -> _NumberedEntities:
        positions = pc.index_in(named["entity"], value_set=self._names)
        if positions.null_count:
            is_known = pc.is_valid(positions)
            named, positions = named.filter(is_known), positions.filter(is_known)
        keys = self._keys(named, positions)
        return _measured(keys, named) if is_measured else _NumberedEntities(keys=_distinct(keys))

    def _keys(self, named: pa.Table, positions: Any) -> Keys:
        """Return a number for each row: equal for equal days and entities, ascending by day."""
        days = day_numbers(named["day"]).astype(np.int64)
        return days * len(self._names) + positions.fill_null(NO_POSITION).to_numpy()


def _agree(expected: Sums, actual: Sums, tolerance: float, magnitudes: Sums) -> Mask:
    """Return which sums agree within the relative tolerance, in any order of their values.

    `magnitudes` are the sums of the expected values' absolute values. An infinity agrees with itself only.
    """
    with np.errstate(invalid="ignore"):
        rounding = ROUNDING * np.abs(expected) + REORDERING * magnitudes
        is_close = np.abs(actual - expected) <= tolerance * np.abs(expected) + rounding
    return (is_close & np.isfinite(expected)) | (actual == expected)


def _named(rows: pa.Table) -> pa.Table:
    """Return the rows with a day and an entity."""
    if not rows["entity"].null_count and not rows["day"].null_count:
        return rows
    return rows.filter(pc.and_(pc.is_valid(rows["entity"]), pc.is_valid(rows["day"])))


def _null_rows(rows: pa.Table) -> dict[date, int]:
    """Return the number of rows without an entity by day."""
    if not rows["entity"].null_count:
        return {}
    nulls = rows.filter(pc.is_null(rows["entity"]))
    return rows_by_day(nulls)


def rows_by_day(rows: pa.Table) -> dict[date, int]:
    """Count rows as `day_entity_rows` returns them by day, with those that have no entity."""
    counts: dict[date, int] = {}
    for day, count in zip(rows["day"].to_pylist(), _row_counts(rows).tolist(), strict=True):
        if day is not None:
            counts[day] = counts.get(day, 0) + count
    return counts


def _row_counts(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return the number of rows of the table that each row stands for."""
    return rows[ROW_COUNT].to_numpy() if ROW_COUNT in rows.column_names else np.ones(rows.num_rows, np.int64)


def _measured(keys: Keys, named: pa.Table) -> _NumberedEntities:
    if not len(keys):
        no_sums = tuple(np.empty(0) for name in named.column_names if name.startswith("sum"))
        return _NumberedEntities(keys=keys, rows=np.empty(0), sums=no_sums, magnitudes=no_sums)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    counts = _row_counts(named)

    def add_up(prefix: str) -> tuple[Sums, ...]:
        names = [name for name in named.column_names if name.startswith(prefix)]
        with np.errstate(invalid="ignore"):  # of infinities
            return tuple(np.add.reduceat(named[name].to_numpy()[order], starts) for name in names)

    rows = np.add.reduceat(counts[order].astype(np.float64), starts)
    return _NumberedEntities(keys=ordered[starts], rows=rows, sums=add_up("sum"), magnitudes=add_up("magnitude"))


def _distinct(keys: Keys) -> Keys:
    """Sort and deduplicate the keys. Most are sorted already, which numpy's `unique` does not make use of."""
    if np.all(np.diff(keys) > 0):
        return keys
    ordered = np.sort(keys)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]


def _count_sorted(days: Keys) -> dict[date, int]:
    """Count ascending days, given in days since 1970."""
    if not len(days):
        return {}
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    counts = np.diff(starts, append=len(days))
    return dict(zip(days[starts].astype("datetime64[D]").tolist(), counts.tolist(), strict=True))


# -- names that look alike ------------------------------------------------------------------------------------


def find_lookalikes(missing: Collection[str], unexpected: Collection[str]) -> list[tuple[str, str]]:
    """Return pairs of a missing and an unexpected entity that differ only in case, blanks or Unicode form."""
    by_look: dict[str, list[str]] = {}
    for name in unexpected:
        by_look.setdefault(_look(name), []).append(name)
    return [(name, other) for name in missing for other in by_look.get(_look(name), [])]


def _look(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
