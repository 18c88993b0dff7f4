"""Tables of entities as different programs write them, with what an independent calculation says of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pyarrow as pa
from hypothesis import strategies as st

from gated_backfill import Column, Expectation, Fallback, Job, Reconcile, Source, Target

DAYS = tuple(date(2024, 3, 9) + timedelta(days=n) for n in range(3))  #: a clock changes on the second in New York
NEW_YORK = "America/New_York"
#: Values that identify entities, by type; text of whole numbers is the same entity as the number.
VALUES: dict[str, list[Any]] = {
    "STRING": ["1", "ann", "ann ", "Ann", "", "Mu\u00f1oz", "Mun\u0303oz", "a|b", "a\\|b", "true", "2024-03-09", "007"],
    "INT64": [1, 0, -1, 7, 2**53 + 1, -(2**63)],
    "FLOAT64": [1.0, -0.0, 0.0, 7.0, float(2**53), math.nan],
    "BOOL": [True, False],
    "DATE": [date(2024, 3, 9), date(1969, 12, 31)],
}
WRONG_FLOATS = [1.5, math.inf, 2.0**60]
TIMES = [time(0), time(0, 0, 0, 1), time(12), time(23, 59, 59, 999999)]
#: How other programs write a type into a Parquet file.
WRITTEN_AS: dict[str, list[pa.DataType]] = {
    "STRING": [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    "INT64": [pa.int64(), pa.int32(), pa.float64()],
    "FLOAT64": [pa.float64(), pa.float32()],
    "BOOL": [pa.bool_()],
    "DATE": [pa.date32()],
    "DATETIME": [pa.timestamp("us"), pa.timestamp("ns")],
    "TIMESTAMP": [pa.timestamp("us", tz="UTC"), pa.timestamp("us", tz=NEW_YORK)],
}

#: Columns of a partition that is unlike the others: another type, only nulls, or not there at all.
NULLS, MISSING = "null", "missing"
EXTRA = "extra"  #: a column that only some partitions have
OTHER_TYPES: dict[str, list[str]] = {
    "entity": [MISSING, MISSING, NULLS, *VALUES, "DATETIME"],
    "amount": [MISSING, NULLS, "INT64", "INT64", "STRING"],
    "note": [MISSING, NULLS, "INT64"],
}
MIDNIGHT = datetime.combine(DAYS[0], time(0))
OTHER_VALUES: dict[str, dict[str, list[Any]]] = {
    "entity": {**VALUES, "DATETIME": [MIDNIGHT, MIDNIGHT, MIDNIGHT + timedelta(hours=12)]},
    "amount": {"INT64": [0, 1, -2, 1_000_000], "STRING": ["1", "x"]},
    "note": {"INT64": [5]},
}
#: Types that a job or a table may declare for a column instead of its own, the first of which its values may fit.
DECLARED_INSTEAD: dict[str, list[str]] = {
    "STRING": ["STRING", "INT64"],
    "INT64": ["FLOAT64", "FLOAT64", "STRING"],
    "FLOAT64": ["INT64", "INT64", "STRING"],
    "BOOL": ["BOOL", "INT64"],
    "DATE": ["DATETIME", "STRING"],
    "DATETIME": ["DATE", "STRING"],
    "TIMESTAMP": ["TIMESTAMP"],
}
WIDER = {frozenset({"INT64", "FLOAT64"}): "FLOAT64", frozenset({"DATE", "DATETIME"}): "DATETIME"}
DATE_TYPES = ("DATE", "DATETIME", "TIMESTAMP")
MIXED = "mixed"  #: the type of a column whose partitions no type unites

Row = Mapping[str, Any]  #: day, time, amount, note, extra, and the entity columns


@dataclass(frozen=True, kw_only=True)
class GeneratedTable:
    """One table: its types, and its rows with the day of each."""

    date_type: Literal["DATE", "DATETIME", "TIMESTAMP"]
    entity: tuple[str, ...]  #: names of the entity columns
    entity_types: tuple[str, ...]
    amount_type: Literal["FLOAT64", "INT64", "STRING"]  #: STRING: its sums can't be compared
    rows: tuple[Row, ...]
    other_types: Mapping[tuple[date, str], str]  #: by day and column, where they are not those of `types`
    declared_by: Literal["nothing", "create_table", "refresh_schema"]
    declared: Mapping[str, str]  #: what `create_table` declares
    job_columns: Mapping[str, str] | None  #: of a source: the types that the job declares
    in_files: bool  #: not in a warehouse that keeps types itself

    @property
    def time_zone(self) -> str | None:
        return NEW_YORK if self.date_type == "TIMESTAMP" else None

    @property
    def days(self) -> list[date]:
        """The days that have a partition."""
        return [day for day in DAYS if any(row["day"] == day for row in self.rows)]

    def types(self) -> dict[str, str]:
        entities = dict(zip(self.entity, self.entity_types, strict=True))
        return {"day": self.date_type, **entities, "amount": self.amount_type, "note": "STRING"}

    def values(self, day: date, name: str) -> list[Any]:
        return [self._moment(row) if name == "day" else row[name] for row in self.rows if row["day"] == day]

    # -- as other programs write it

    def arrow(self, day: date) -> pa.Table:
        """The rows of the day as a program writes them, in types that differ from day to day."""
        columns: dict[str, Any] = {}
        for name, kind in {**self.types(), EXTRA: MISSING}.items():
            arrow = self._arrow_type(day, name, kind)
            if arrow is None:
                continue
            if pa.types.is_dictionary(arrow):
                columns[name] = pa.array(self.values(day, name), pa.string()).dictionary_encode()
            else:
                columns[name] = pa.array(self.values(day, name), arrow)
        return pa.table(columns)

    def standard_rows(self, day: date | None = None) -> pa.Table:
        """The rows (of the day) in the types of the table."""
        days = DAYS if day is None else [day]
        arrays = {
            name: pa.array([value for day in days for value in self.values(day, name)], WRITTEN_AS[kind][0])
            for name, kind in self.types().items()
        }
        return pa.table(arrays)

    def _arrow_type(self, day: date, name: str, kind: str) -> pa.DataType | None:
        kind = self.other_types.get((day, name), kind)
        if kind in (NULLS, MISSING):
            return pa.null() if kind == NULLS else None
        choices = WRITTEN_AS[kind]
        numbers = [row[name] for row in self.rows if isinstance(row.get(name), int)]
        fits_any_type = all(abs(number) < 2**24 for number in numbers)
        return choices[DAYS.index(day) % len(choices)] if fits_any_type else choices[0]

    def _moment(self, row: Row) -> date | datetime:
        if self.date_type == "DATE":
            return row["day"]
        moment = datetime.combine(row["day"], row["time"])
        return moment if self.date_type == "DATETIME" else moment.replace(tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)

    # -- as it must be read

    def written_types(self, day: date) -> dict[str, str]:
        """The types of the partition's columns."""
        types: dict[str, str] = {}
        for name, kind in {**self.types(), EXTRA: MISSING}.items():
            arrow = self._arrow_type(day, name, kind)
            if arrow is not None:
                types[name] = "FLOAT64" if pa.types.is_floating(arrow) else self.other_types.get((day, name), kind)
        return types

    def table_types(self) -> dict[str, str]:
        """The types of the table's columns: declared, or those that its partitions have together."""
        if not self.in_files or self.declared_by == "create_table":
            return dict(self.declared) if self.in_files else self.types()
        if self.declared_by == "refresh_schema":  # after the first partition, before the others
            return self.written_types(self.days[0])
        kinds: dict[str, set[str]] = {}
        for day in self.days:
            for name, kind in self.written_types(day).items():
                kinds.setdefault(name, set()).add(kind)
        return {name: _united(frozenset(found - {NULLS})) for name, found in kinds.items()}

    def lacks(self, columns: Collection[str]) -> bool:
        """Whether the table has no such columns, each of one type, or no dates."""
        types = self.table_types()
        return types["day"] not in DATE_TYPES or any(types.get(name, MIXED) == MIXED for name in columns)

    def misfits(self, day: date, columns: Collection[str], types: Mapping[str, str]) -> bool:
        """Whether values of the day would change in the types of the table, or in these instead."""
        if not self.in_files or day not in self.days:
            return False
        own, written = self.table_types(), self.written_types(day)
        if self.declared_by != "nothing" and written.keys() - own.keys():
            return True
        return any(
            not _all_fit(self.values(day, name), written[name], types.get(name, own[name]))
            for name in columns
            if name in written
        )


def _united(kinds: frozenset[str]) -> str:
    return next(iter(kinds), NULLS) if len(kinds) < 2 else WIDER.get(kinds, MIXED)


def _all_fit(values: Sequence[Any], written: str, kind: str) -> bool:
    """Whether values of the one type can be read as the other without a change."""
    values = [value for value in values if value is not None]
    if kind not in ("FLOAT64", NULLS):
        values = [value for value in values if value == value]  # NaN is null
    if written == kind or not values:
        return True
    match (written, kind):
        case ("INT64", "FLOAT64") | ("FLOAT64", "INT64"):
            return all(math.isfinite(value) and value == int(value) and abs(value) <= 2**53 for value in values)
        case ("DATE", "DATETIME"):
            return True
        case ("DATETIME", "DATE"):
            return all(value.time() == time(0) for value in values)
        case _:
            return False


@dataclass(frozen=True, kw_only=True)
class EntityCase:
    """A job's tables and what it compares."""

    expectation: GeneratedTable
    source: GeneratedTable
    other: GeneratedTable  #: a second source
    target: GeneratedTable  #: its date column is a DATE
    rows: Literal["equal"] | float | None
    tolerance: float | None  #: of the sum of `amount`; None: not compared
    required: bool  #: `note` is required in the sources and the target
    fallback: Fallback

    def job(self, prefix: str) -> Job:
        required = ("note",) if self.required else ()
        reconcile = () if self.tolerance is None else (Reconcile(column="amount", tolerance=self.tolerance),)
        columns = {name: Column(type=kind, nullable=True) for name, kind in self.target.types().items()}  # type: ignore[arg-type]
        return Job(
            name="reading",
            version="1",
            target=Target(
                table=f"fuzz.{prefix}target",
                date_column="day",
                key=self.target.entity,
                columns=columns,
                entity=self._declared_entity(self.target),
                required=required,
            ),
            expectation=Expectation(
                table=f"fuzz.{prefix}expectation",
                date_column="day",
                entity=self.expectation.entity,
                time_zone=self.expectation.time_zone,
                rows=self.rows,
                reconcile=reconcile,
            ),
            sources=tuple(
                Source(
                    name=name,
                    table=f"fuzz.{prefix}{name}",
                    date_column="day",
                    entity=self._declared_entity(table),
                    columns=table.job_columns,  # type: ignore[arg-type]
                    time_zone=table.time_zone,
                    required=required,
                )
                for name, table in {"source": self.source, "other": self.other}.items()
            ),
            fallback=self.fallback,
            process=lambda batch: batch.rows,
        )

    def _declared_entity(self, table: GeneratedTable) -> tuple[str, ...] | None:
        return None if table.entity == self.expectation.entity else table.entity

    @property
    def sources(self) -> dict[str, GeneratedTable]:
        return {"source": self.source, "other": self.other}

    @property
    def staged(self) -> GeneratedTable:
        """Rows for the target as a job returns them: in its types."""
        rows = [
            {name: None if (row["day"], name) in self.target.other_types else value for name, value in row.items()}
            for row in self.target.rows
        ]
        return replace(self.target, rows=tuple(rows), other_types={}, in_files=False)

    # -- what must be refused

    def is_refused_by_schema(self, name: str) -> bool:
        """Whether the types of the table already say that it can't be read."""
        table, columns = getattr(self, name), self._columns(name)
        types, declared = table.table_types(), table.job_columns or {}
        if table.lacks([*columns, *declared]) or any(types[entity] not in VALUES for entity in table.entity):
            return True
        if self.tolerance is not None and types["amount"] not in ("INT64", "FLOAT64"):
            return True
        is_found = table.in_files and table.declared_by == "nothing"
        return any(
            types[column] != kind and not (is_found and (types[column] == NULLS or _may_fit(types[column], kind)))
            for column, kind in declared.items()
        )

    def is_unreadable(self, name: str, days: Collection[date] = DAYS) -> bool:
        """Whether entities of the table's rows on the days, as far as the rows count, can't be read."""
        table: GeneratedTable = getattr(self, name)
        columns, types = self._columns(name), table.table_types()
        if table.lacks(columns) or any(types[entity] not in (*VALUES, NULLS) for entity in table.entity):
            return True
        if self.tolerance is not None and types["amount"] not in ("INT64", "FLOAT64", NULLS):
            return True
        if any(table.misfits(day, columns, {}) for day in days):
            return True
        required = self.required and name != "expectation"
        return any(
            text_of(row, table) is Unreadable
            for row in table.rows
            if row["day"] in days and (not required or row["note"] is not None)
        )

    def has_unreadable_keys(self, day: date) -> bool:
        """Whether an audit can't count the day's published keys: it reads them in the types that the job declares."""
        return self.target.misfits(day, self.target.entity, self.target.types())

    def has_unreadable_rows(self, name: str, days: Collection[date]) -> bool:
        """Whether the rows to process, with all columns or those that the job declares, can't be read."""
        table: GeneratedTable = getattr(self, name)
        declared = table.job_columns
        columns = table.table_types() if declared is None else ("day", *table.entity, *declared)
        if not table.in_files and any(table.types()[column] != kind for column, kind in (declared or {}).items()):
            return True
        return table.lacks(columns) or any(table.misfits(day, columns, declared or {}) for day in days)

    def has_unreadable_entities(self, name: str, days: Collection[date]) -> bool:
        """Whether any row of the days, also if it does not count, has an entity that can't be read."""
        table = getattr(self, name)
        return any(text_of(row, table) is Unreadable for row in table.rows if row["day"] in days)

    def _columns(self, name: str) -> list[str]:
        """The columns by which the table's entities are read."""
        required = self.required and name != "expectation"
        table = getattr(self, name)
        return ["day", *table.entity, *(["note"] * required), *(["amount"] * (self.tolerance is not None))]

    # -- what must be read

    def expected(self, day: date) -> set[str]:
        return set(_measures(self.expectation, day, required=False))

    def null_entities(self, day: date) -> int:
        return sum(row["day"] == day and text_of(row, self.expectation) is None for row in self.expectation.rows)

    def present(self, table: GeneratedTable, day: date) -> set[str]:
        """The expected entities of the day that the table has, by the declared comparisons."""
        expected = _measures(self.expectation, day, required=False)
        actual = _measures(table, day, required=self.required)
        return {name for name, wanted in expected.items() if name in actual and self._agrees(wanted, actual[name])}

    def unexpected(self, table: GeneratedTable, day: date) -> set[str]:
        return set(_measures(table, day, required=self.required)) - self.expected(day)

    def row_count(self, table: GeneratedTable, day: date) -> int:
        """The rows of the day that count."""
        return sum(row["day"] == day and (not self.required or row["note"] is not None) for row in table.rows)

    def _agrees(self, wanted: tuple[int, float], actual: tuple[int, float]) -> bool:
        if self.rows == "equal" and actual[0] != wanted[0]:
            return False
        if isinstance(self.rows, float) and actual[0] < self.rows * wanted[0]:
            return False
        if self.tolerance is None or actual[1] == wanted[1]:
            return True
        return math.isfinite(wanted[1]) and abs(actual[1] - wanted[1]) <= self.tolerance * abs(wanted[1])


class Unreadable:
    """Marks an entity that no text stands for."""


def _may_fit(written: str, kind: str) -> bool:
    return frozenset({written, kind}) in WIDER


def text_of(row: Row, table: GeneratedTable) -> Any:
    """The entity of the row as text; None without one; `Unreadable` for a number that is not whole."""
    texts = [_text(row[name]) for name in table.entity]
    if Unreadable in texts:
        return Unreadable
    if None in texts:
        return None
    if len(texts) == 1:
        return texts[0]
    return "|".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in texts)


def _text(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime):
        return str(value.date())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= 2**53 else Unreadable
    return str(value)


def _measures(table: GeneratedTable, day: date, *, required: bool) -> dict[str, tuple[int, float]]:
    """The number of rows and the sum of each entity of the day."""
    measures: dict[str, tuple[int, float]] = {}
    for row in table.rows:
        text = text_of(row, table)
        if row["day"] != day or not isinstance(text, str) or (required and row["note"] is None):
            continue
        rows, total = measures.get(text, (0, 0.0))
        amount = row["amount"] if isinstance(row["amount"], float | int) else 0.0  # text is not compared
        measures[text] = (rows + 1, total + (0.0 if math.isnan(amount) else amount))
    return measures


# -- strategies -----------------------------------------------------------------------------------------------


def _rows(entities: Mapping[str, str], amount: str, *, may_be_wrong: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    values = {
        name: st.none() | st.sampled_from(VALUES[kind] + (WRONG_FLOATS if kind == "FLOAT64" and may_be_wrong else []))
        for name, kind in entities.items()
    }
    floats = [-2.5, math.inf] if may_be_wrong else [1e6]
    amounts: dict[str, list[Any]] = {
        "FLOAT64": [None, 0.0, 1.0, 1e6, math.nan, *floats],
        "INT64": [None, 0, 1, 1_000_000],
        "STRING": [None, "1"],
    }
    return st.lists(
        st.fixed_dictionaries(
            {
                "day": st.sampled_from(DAYS),
                "time": st.sampled_from(TIMES),
                **values,
                "amount": st.sampled_from(amounts[amount]),
                "note": st.sampled_from([None, "x", "y"]),
                EXTRA: st.just("z"),
            }
        ),
        min_size=1,
        max_size=14,
    )


@st.composite
def generated_tables(
    draw: st.DrawFn,
    *,
    date_types: Sequence[Any],
    parts: int,
    may_be_wrong: bool,
    in_files: bool,
    evolves: bool,
    is_source: bool,
) -> GeneratedTable:
    """A table; one of files may change its columns and types from day to day, and have declared ones."""
    names = draw(st.sampled_from([("e0", "e1"), ("e0", "e1"), ("e1", "e0"), ("player", "team")]))[:parts]
    entities = {name: draw(st.sampled_from(list(VALUES))) for name in names}
    may_be_text = evolves and date_types != ("DATE",)  # a job can't declare so for its target
    amount: Any = draw(st.sampled_from([*["FLOAT64", "FLOAT64", "INT64"] * 3, *["STRING"] * may_be_text]))
    date_type = draw(st.sampled_from(date_types))
    rows = draw(_rows(entities, amount, may_be_wrong=may_be_wrong))
    other_types: dict[tuple[date, str], str] = {}
    declared_by: Any = "nothing"
    types = {"day": date_type, **entities, "amount": amount, "note": "STRING"}
    declared = dict(types)
    if in_files and evolves and draw(st.booleans()):
        other_types = draw(_other_types(names, sorted({row["day"] for row in rows})))
        rows = [draw(_changed(row, names, other_types)) for row in rows]
        declared_by = draw(st.sampled_from(["nothing", "nothing", "create_table", "refresh_schema"]))
        declared = draw(_declared(types, [name for name in types if is_source or name != "day"]))
    columns = st.none() | _job_columns(types, in_files=in_files) if is_source else st.none()
    return GeneratedTable(
        date_type=date_type,
        entity=names,
        entity_types=tuple(entities.values()),
        amount_type=amount,
        rows=tuple(rows),
        other_types=other_types,
        declared_by=declared_by,
        declared=declared,
        job_columns=draw(columns),
        in_files=in_files,
    )


@st.composite
def _other_types(draw: st.DrawFn, entity: Sequence[str], days: Sequence[date]) -> dict[tuple[date, str], str]:
    """The types of columns on one or two of the days that are not those of the table."""
    other_types: dict[tuple[date, str], str] = {}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*entity, *entity, "amount", "note", EXTRA]))
        kinds = ["STRING"] if name == EXTRA else OTHER_TYPES["entity" if name in entity else name]
        other_types[draw(st.sampled_from(days)), name] = draw(st.sampled_from(kinds))
    return other_types


@st.composite
def _changed(draw: st.DrawFn, row: Row, entity: Sequence[str], other_types: Mapping[tuple[date, str], str]) -> Row:
    """The row with values of the other types."""
    changed = dict(row)
    for (day, name), kind in other_types.items():
        if day != row["day"] or name == EXTRA:
            continue
        values = OTHER_VALUES["entity" if name in entity else name].get(kind, [])
        changed[name] = draw(st.sampled_from([*values, *values, None]))
    return changed


@st.composite
def _declared(draw: st.DrawFn, types: Mapping[str, str], changeable: Sequence[str]) -> dict[str, str]:
    """The types of a table's columns as somebody declares them, who may be wrong or know of a further column."""
    declared = dict(types)
    if draw(st.booleans()):
        declared[EXTRA] = "STRING"
    if draw(st.booleans()):
        name = draw(st.sampled_from(changeable))
        declared[name] = draw(st.sampled_from(DECLARED_INSTEAD[types[name]]))
    if draw(st.sampled_from([False] * 7 + [True])):
        del declared[draw(st.sampled_from([name for name in types if name != "day"]))]
    return declared


@st.composite
def _job_columns(draw: st.DrawFn, types: Mapping[str, str], *, in_files: bool) -> dict[str, str]:
    """Types that a job declares for some columns of a source."""
    names = ["amount", "note", *draw(st.lists(st.sampled_from([name for name in types if name != "day"])))]
    columns = {name: types[name] for name in names}
    is_changed = draw(st.booleans()) if in_files else draw(st.sampled_from([False, False, False, True]))
    if is_changed:
        name = draw(st.sampled_from([*columns, "amount"]))
        columns[name] = draw(st.sampled_from(DECLARED_INSTEAD[types[name]]))
    return columns


@st.composite
def entity_cases(draw: st.DrawFn, *, in_files: bool) -> EntityCase:
    """Tables with the same or different types of entities, on the same days."""
    parts = draw(st.sampled_from([1, 1, 1, 2]))
    may_be_wrong = draw(st.sampled_from([False, False, False, True]))
    evolves = draw(st.booleans())

    def table(*date_types: Any, is_source: bool = False) -> GeneratedTable:
        generated = generated_tables(
            date_types=date_types,
            parts=parts,
            may_be_wrong=may_be_wrong,
            in_files=in_files,
            evolves=evolves,
            is_source=is_source,
        )
        return draw(generated)

    return EntityCase(
        expectation=table("DATE", "DATETIME", "TIMESTAMP"),
        source=table("DATE", "DATETIME", "TIMESTAMP", is_source=True),
        other=table("DATE", "DATETIME", "TIMESTAMP", is_source=True),
        target=table("DATE"),
        rows=draw(st.sampled_from([None, None, "equal", 0.5])),
        tolerance=draw(st.sampled_from([None, None, 0.0, 0.25])),
        required=draw(st.booleans()),
        fallback=draw(st.sampled_from(Fallback)),
    )
