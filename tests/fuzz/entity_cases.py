"""Tables of entities as different programs write them, with what an independent calculation says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

Row = Mapping[str, Any]  #: day, e0, e1..., amount, note


@dataclass(frozen=True, kw_only=True)
class GeneratedTable:
    """One table: its types, and its rows with the day of each."""

    date_type: Literal["DATE", "DATETIME", "TIMESTAMP"]
    entity_types: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def time_zone(self) -> str | None:
        return NEW_YORK if self.date_type == "TIMESTAMP" else None

    def types(self) -> dict[str, str]:
        entities = {f"e{number}": kind for number, kind in enumerate(self.entity_types)}
        return {"day": self.date_type, **entities, "amount": "FLOAT64", "note": "STRING"}

    def arrow(self, day: date | None = None, variant: int = 0) -> pa.Table:
        """The rows (of the day) as a program writes them; `variant` chooses the Arrow types."""
        rows = [row for row in self.rows if day is None or row["day"] == day]
        columns: dict[str, Any] = {}
        for name, kind in self.types().items():
            choices = WRITTEN_AS[kind]
            arrow = choices[variant % len(choices)] if self._fits_any_type(name) else choices[0]
            values = [self._moment(row) if name == "day" else row[name] for row in rows]
            if pa.types.is_dictionary(arrow):
                columns[name] = pa.array(values, pa.string()).dictionary_encode()
            else:
                columns[name] = pa.array(values, arrow)
        return pa.table(columns)

    def _fits_any_type(self, name: str) -> bool:
        """Whether every type of `WRITTEN_AS` holds all numbers of the column."""
        return all(abs(row[name]) < 2**24 for row in self.rows if isinstance(row.get(name), int))

    def _moment(self, row: Row) -> date | datetime:
        if self.date_type == "DATE":
            return row["day"]
        moment = datetime.combine(row["day"], row["time"])
        return moment if self.date_type == "DATETIME" else moment.replace(tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)


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
        parts = tuple(f"e{number}" for number in range(len(self.expectation.entity_types)))
        entity = parts[0] if len(parts) == 1 else parts
        required = ("note",) if self.required else ()
        reconcile = () if self.tolerance is None else (Reconcile(column="amount", tolerance=self.tolerance),)
        columns = {name: Column(type=kind, nullable=True) for name, kind in self.target.types().items()}  # type: ignore[arg-type]
        return Job(
            name="reading",
            version="1",
            target=Target(
                table=f"fuzz.{prefix}target", date_column="day", key=parts, columns=columns, required=required
            ),
            expectation=Expectation(
                table=f"fuzz.{prefix}expectation",
                date_column="day",
                entity=entity,
                time_zone=self.expectation.time_zone,
                rows=self.rows,
                reconcile=reconcile,
            ),
            sources=tuple(
                Source(
                    name=name,
                    table=f"fuzz.{prefix}{name}",
                    date_column="day",
                    time_zone=table.time_zone,
                    required=required,
                )
                for name, table in {"source": self.source, "other": self.other}.items()
            ),
            fallback=self.fallback,
            process=lambda batch: batch.rows,
        )

    @property
    def is_readable(self) -> bool:
        """Whether every entity of the rows that count can be written as text."""
        tables = (
            (self.expectation, False),
            *((table, self.required) for table in (self.source, self.other, self.target)),
        )
        return all(
            text_of(row, table) is not Unreadable
            for table, required in tables
            for row in table.rows
            if not required or row["note"] is not None
        )

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


def text_of(row: Row, table: GeneratedTable) -> Any:
    """The entity of the row as text; None without one; `Unreadable` for a number that is not whole."""
    texts = [_text(row[f"e{number}"]) for number in range(len(table.entity_types))]
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
        amount = row["amount"] or 0.0
        measures[text] = (rows + 1, total + (0.0 if math.isnan(amount) else amount))
    return measures


# -- strategies -----------------------------------------------------------------------------------------------


def _rows(entity_types: Sequence[str], *, may_be_wrong: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    entities = {
        f"e{number}": st.none()
        | st.sampled_from(VALUES[kind] + (WRONG_FLOATS if kind == "FLOAT64" and may_be_wrong else []))
        for number, kind in enumerate(entity_types)
    }
    return st.lists(
        st.fixed_dictionaries(
            {
                "day": st.sampled_from(DAYS),
                "time": st.sampled_from(TIMES),
                **entities,
                "amount": st.sampled_from([None, 0.0, 1.0, -2.5, 1e6, math.inf, math.nan]),
                "note": st.sampled_from([None, "x", "y"]),
            }
        ),
        min_size=1,
        max_size=14,
    )


@st.composite
def entity_cases(draw: st.DrawFn) -> EntityCase:
    """Tables with the same or different types of entities, on the same days."""
    parts = draw(st.sampled_from([1, 1, 1, 2]))
    may_be_wrong = draw(st.sampled_from([False, False, False, True]))

    def table(*date_types: Any) -> GeneratedTable:
        kinds = tuple(draw(st.sampled_from(list(VALUES))) for _ in range(parts))
        rows = draw(_rows(kinds, may_be_wrong=may_be_wrong))
        return GeneratedTable(date_type=draw(st.sampled_from(date_types)), entity_types=kinds, rows=tuple(rows))

    return EntityCase(
        expectation=table("DATE", "DATETIME", "TIMESTAMP"),
        source=table("DATE", "DATETIME", "TIMESTAMP"),
        other=table("DATE", "DATETIME", "TIMESTAMP"),
        target=table("DATE"),
        rows=draw(st.sampled_from([None, None, "equal", 0.5])),
        tolerance=draw(st.sampled_from([None, None, 0.0, 0.25])),
        required=draw(st.booleans()),
        fallback=draw(st.sampled_from(Fallback)),
    )
