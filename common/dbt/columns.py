"""The columns of a model's table: their types, and the rules that dbt's tests and constraints state. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp
from sqlglot.errors import SqlglotError

from gated_backfill.common.dbt.manifest import STRICT_ERROR_IF, CatalogColumn, DataTest, DbtModel
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.query import Dialect
from gated_backfill.common.model.tables import BOUNDED_TYPES, NUMERIC_DIGITS, Column, ColumnType

#: sqlglot's names of the types that a column may have, whatever the dialect calls them.
TYPE_NAMES: Mapping[ColumnType, Collection[str]] = {
    "STRING": ("TEXT", "VARCHAR", "CHAR"),
    "INT64": ("TINYINT", "SMALLINT", "INT", "BIGINT", "INT128"),  # INT128: DuckDB's sums of integers
    "FLOAT64": ("FLOAT", "DOUBLE"),
    "NUMERIC": ("DECIMAL",),
    "BOOL": ("BOOLEAN",),
    "BYTES": ("BINARY", "VARBINARY"),
    "DATE": ("DATE",),
    "DATETIME": ("TIMESTAMP", "TIMESTAMPNTZ", "DATETIME"),  # what GoogleSQL calls TIMESTAMP is TIMESTAMPTZ
    "TIMESTAMP": ("TIMESTAMPTZ",),
}


@dataclass(kw_only=True)
class ColumnRules:
    """The rules of one column. A rule that several tests state is the strictest of theirs."""

    is_not_null: bool = False
    ge: float | None = None
    le: float | None = None
    max_null_share: float | None = None

    def raise_lower_bound(self, bound: float) -> None:
        self.ge = bound if self.ge is None else max(self.ge, bound)

    def reduce_upper_bound(self, bound: float) -> None:
        self.le = bound if self.le is None else min(self.le, bound)

    def reduce_null_share(self, share: float) -> None:
        self.max_null_share = share if self.max_null_share is None else min(self.max_null_share, share)


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """The columns of a job's target, and the tests that are no rules of them, in words."""

    columns: Mapping[str, Column]
    ignored_tests: tuple[str, ...]


def target_columns(
    model: DbtModel,
    names: Sequence[str],
    catalog: Iterable[CatalogColumn],
    tests: Iterable[DataTest],
    *,
    never_null: Collection[str],
    dialect: Dialect,
) -> TargetColumns:
    """Return the columns of these names, with the types and rules that the project gives them.

    A type is that of the model's YAML, or else of the catalog. A column may be null unless it is one of `never_null`,
    or a test or constraint says otherwise. Raises `UserError` for columns without a type.
    """
    types = {column.name.lower(): column.type for column in catalog}
    types |= {column.name.lower(): column.data_type for column in model.columns.values() if column.data_type}
    if untyped := [name for name in names if name.lower() not in types]:
        raise UserError(
            f"the type of {', '.join(untyped)} is not known: give these columns a data_type in the model's YAML, or "
            "run `dbt docs generate`"
        )
    kinds: dict[str, ColumnType] = {name: _column_type(name, types[name.lower()], dialect) for name in names}
    rules = {name.lower(): ColumnRules(is_not_null=name in never_null) for name in names}
    for column in model.columns.values():
        if any(constraint.type in NOT_NULL_CONSTRAINTS for constraint in column.constraints):
            rules.setdefault(column.name.lower(), ColumnRules()).is_not_null = True
    ignored: list[str] = []
    for test in tests:
        reader = _rule_reader(test)
        if reader is None or test.attached_node != model.unique_id:
            continue
        column = next((name for name in names if name.lower() == str(test.column_name).lower()), None)
        problem = "it is of no column of the table"
        if column is not None:
            problem = _restriction(test) or reader(rules[column.lower()], _arguments(test), kinds[column])
        if problem is not None:
            ignored.append(f"test {test.name} is no rule of the job: {problem}")
    return TargetColumns(
        columns={name: _column(kinds[name], rules[name.lower()]) for name in names}, ignored_tests=tuple(ignored)
    )


NOT_NULL_CONSTRAINTS = ("not_null", "primary_key")


def _column_type(name: str, written: str, dialect: Dialect) -> ColumnType:
    """The type as the dialect names it, or else as a job does: DuckDB has no FLOAT64."""
    try:
        kind = exp.DataType.build(written, dialect=dialect)
    except (SqlglotError, ValueError):
        kind = None
    own: ColumnType
    for own, names in TYPE_NAMES.items():
        if own == written.upper() if kind is None else kind.this.name in names and not _is_wider(kind):
            return own
    raise UserError(f"column {name} is {written}: the columns of a job are {', '.join(TYPE_NAMES)}, so cast it")


def _is_wider(kind: exp.DataType) -> bool:
    """Whether the type is an array, or has more digits behind the point than a NUMERIC."""
    sizes = [size.name for size in kind.expressions]
    return bool(kind.args.get("nested")) or (len(sizes) == 2 and int(sizes[1]) > NUMERIC_DIGITS)


def _column(kind: ColumnType, rules: ColumnRules) -> Column:
    nullable = not rules.is_not_null
    share = rules.max_null_share if nullable else None
    return Column(type=kind, nullable=nullable, ge=rules.ge, le=rules.le, max_null_share=share)


Arguments = Mapping[str, Any]
RuleReader = Callable[[ColumnRules, Arguments, ColumnType], str | None]  #: returns why the test is no rule


def _read_not_null(rules: ColumnRules, arguments: Arguments, kind: ColumnType) -> str | None:
    rules.is_not_null = True
    return None


def _read_range(rules: ColumnRules, arguments: Arguments, kind: ColumnType) -> str | None:
    is_strict = not arguments.get("inclusive", True) or bool(arguments.get("strictly", False))
    lowest, highest = arguments.get("min_value"), arguments.get("max_value")
    if kind not in BOUNDED_TYPES:
        return f"a {kind} has no bounds"
    if any(bound is not None and not _is_number(bound) for bound in (lowest, highest)):
        return "its bounds are not numbers"
    if kind == "NUMERIC" and is_strict:
        return "it excludes its bounds, which those of a NUMERIC do not"
    if lowest is not None:
        rules.raise_lower_bound(_next_value(lowest, kind, upwards=True) if is_strict else lowest)
    if highest is not None:
        rules.reduce_upper_bound(_next_value(highest, kind, upwards=False) if is_strict else highest)
    return None


def _read_null_share(rules: ColumnRules, arguments: Arguments, kind: ColumnType) -> str | None:
    at_least: Any = arguments.get("at_least")
    if not _is_number(at_least) or not 0 <= at_least <= 1:
        return "its at_least is not a share"
    rules.reduce_null_share(round(1 - at_least, 12))  # 1 - 0.95 is 0.050000000000000044
    return None


RULE_READERS: Mapping[tuple[str | None, str], RuleReader] = {
    (None, "not_null"): _read_not_null,
    ("dbt_expectations", "expect_column_values_to_not_be_null"): _read_not_null,
    ("dbt_utils", "accepted_range"): _read_range,
    ("dbt_expectations", "expect_column_values_to_be_between"): _read_range,
    ("dbt_utils", "not_null_proportion"): _read_null_share,
}
CONDITIONS = ("row_condition", "group_by", "group_by_columns")  #: arguments with which a test is not of each row


def _rule_reader(test: DataTest) -> RuleReader | None:
    metadata = test.test_metadata
    return RULE_READERS.get((metadata.namespace, metadata.name)) if metadata is not None else None


def _arguments(test: DataTest) -> Arguments:
    return test.test_metadata.kwargs if test.test_metadata is not None else {}


def _restriction(test: DataTest) -> str | None:
    """Why the test is no rule of every row, whatever it tests; None if it is one."""
    config = test.config
    if config.severity.lower() != "error" or config.error_if != STRICT_ERROR_IF:
        return "it may fail without an error"
    if config.where is not None:
        return "it has a where"
    conditions = [name for name in CONDITIONS if _arguments(test).get(name)]
    return f"it has a {conditions[0]}" if conditions else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _next_value(bound: float, kind: ColumnType, *, upwards: bool) -> float:
    """The first value of the type beyond the bound."""
    if kind == "INT64":
        return math.floor(bound) + 1 if upwards else math.ceil(bound) - 1
    return math.nextafter(bound, math.inf if upwards else -math.inf)
