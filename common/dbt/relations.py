"""The relations of a dbt project: found by `ref` and `source`, and by the names that they have in compiled texts."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from gated_backfill.common.dbt.manifest import DbtModel, DbtRelation, Manifest
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName

TABLE_FORMS = "write it as ref('name'), source('source', 'table') or dataset.table"


@dataclass(frozen=True, kw_only=True)
class NamedTable:
    """A table that a model reads or builds."""

    database: str | None
    schema: str
    table: str
    written: str  #: as the project's author writes it

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of which a text may leave out the first one or two."""
        return (*((self.database,) if self.database else ()), self.schema, self.table)

    def is_named(self, parts: Sequence[str]) -> bool:
        """Whether a text that names `parts` may mean this table."""
        own = [part.lower() for part in self.parts[-len(parts) :]]
        return own == [part.lower() for part in parts[-len(own) :]]


def table_of(relation: DbtRelation) -> NamedTable:
    """Return the table of a model, seed, snapshot or source."""
    return NamedTable(
        database=relation.database, schema=relation.schema_name, table=relation.table, written=relation.reference
    )


class Relations:
    """The relations that the texts of one model can name."""

    def __init__(self, manifest: Manifest, model: DbtModel, project: str | None) -> None:
        self._manifest = manifest
        self._model = model
        self._project = project

    def find(self, written: str) -> NamedTable:
        """Return the table that the text names. Raises `UserError` if there is none, or several."""
        call = _parse_call(written)
        if call is None:
            try:
                name = TableName.parse(written)
            except UserError as exc:
                raise UserError(f"{written!r} names no table: {TABLE_FORMS}") from exc
            return NamedTable(database=name.project or None, schema=name.dataset, table=name.table, written=written)
        function, arguments, version = call
        if function == "source":
            found = [one for one in self._manifest.relations if (one.source_name, one.name) == tuple(arguments)]
        else:
            *package, name = arguments
            found = [
                one
                for one in self._manifest.relations
                if one.source_name is None
                and one.name == name
                and package in ([], [one.package_name])
                and one.version == (version if version is not None else one.latest_version)
            ]
        own = [one for one in found if one.package_name == self._model.package_name] or found
        if len(own) != 1:
            raise UserError(f"{written} names {len(own) or 'no'} relation{'s' if own else ''} of the project")
        if own[0].relation_name is None:
            raise UserError(f"{written} is ephemeral, so it is no table: name the table that it reads")
        return table_of(own[0])

    def find_by_name(self, parts: Sequence[str]) -> NamedTable | None:
        """Return the relation that a compiled text names, if the project has exactly one."""
        tables = [table_of(one) for one in self._manifest.relations if one.relation_name is not None]
        found = [table for table in tables if table.is_named(parts)]
        return found[0] if len(found) == 1 else None

    def name(self, table: NamedTable) -> str:
        """Return the name by which a job names the table: without the project if it is the warehouse's.

        Raises `UserError` if it is not known which project is the warehouse's.
        """
        if table.database is None or table.database == (self._project or self._model.database):
            return f"{table.schema}.{table.table}"
        if self._project is None:
            raise UserError(
                f"{table.written} is in the project {table.database}, the model in {self._model.database}: name the "
                "warehouse's own one by jobs_of_project(..., project=...)"
            )
        return ".".join(table.parts)


def _parse_call(written: str) -> tuple[str, list[str], object] | None:
    """The function, its texts and its version of `ref(...)` and `source(...)`; None if it is neither."""
    try:
        call = ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in ("ref", "source"):
        return None
    arguments = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    keywords = {part.arg: part.value.value for part in call.keywords if isinstance(part.value, ast.Constant)}
    version = keywords.pop("v", keywords.pop("version", None))
    counts = (2,) if call.func.id == "source" else (1, 2)
    is_plain = len(arguments) == len(call.args) and len(call.keywords) == (version is not None) and not keywords
    if len(arguments) not in counts or not is_plain or (version is not None and call.func.id == "source"):
        raise UserError(f"{written!r} can't be read: {TABLE_FORMS}")
    return call.func.id, arguments, version
