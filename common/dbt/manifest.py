"""The files that dbt writes about a project, as far as jobs are made of them: `manifest.json` and `catalog.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.query import Dialect

SUPPORTED_SCHEMAS = range(10, 13)  #: versions of the manifest's schema; dbt 1.6 writes the first of them
ADAPTERS: Mapping[str, Dialect] = {"bigquery": "bigquery", "duckdb": "duckdb"}  #: whose SQL can be a job's
COMPILE = "dbt compile --full-refresh"  #: with it, `is_incremental()` is false


class ManifestEntry(BaseModel):
    """A part of a file of dbt, of which most fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyEntry = TypeVar("AnyEntry", bound=ManifestEntry)


class ColumnConstraint(ManifestEntry):
    type: str


class DeclaredColumn(ManifestEntry):
    """A column as the project's YAML describes it."""

    name: str
    data_type: str | None = None
    constraints: tuple[ColumnConstraint, ...] = ()


class ModelContract(ManifestEntry):
    enforced: bool = False


class ModelConfig(ManifestEntry):
    materialized: str | None = None
    unique_key: str | tuple[str, ...] | None = None
    partition_by: Any = None  #: what it is depends on the adapter
    event_time: str | None = None
    contract: ModelContract = ModelContract()
    meta: Mapping[str, Any] = Field(default_factory=dict)


class DbtRelation(ManifestEntry):
    """A table or view: a model, a seed, a snapshot, or a table of a source."""

    unique_id: str
    resource_type: str
    name: str
    package_name: str
    database: str | None = None  #: of BigQuery, the project
    schema_name: str = Field(alias="schema")
    alias: str | None = None  #: the relation's name of a model, seed or snapshot
    identifier: str | None = None  #: the relation's name of a source's table
    source_name: str | None = None
    relation_name: str | None = None  #: None: it is no relation, such as an ephemeral model
    version: str | int | float | None = None
    latest_version: str | int | float | None = None

    @property
    def table(self) -> str:
        """The relation's own name, without database and schema."""
        return self.identifier or self.alias or self.name

    @property
    def reference(self) -> str:
        """How a text of the project names it."""
        if self.source_name is not None:
            return f"source('{self.source_name}', '{self.name}')"
        return f"ref('{self.name}')" if self.version is None else f"ref('{self.name}', v={self.version})"


class DbtModel(DbtRelation):
    """A model of the project."""

    original_file_path: str
    compiled_path: str | None = None
    compiled_code: str | None = None
    language: str = "sql"
    description: str = ""
    config: ModelConfig
    columns: Mapping[str, DeclaredColumn] = Field(default_factory=dict)
    meta: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def job_name(self) -> str:
        """The name of the model's job: its own, of a versioned model with the version."""
        return self.name if self.version is None else f"{self.name}_v{self.version}"

    @property
    def own_meta(self) -> Mapping[str, Any]:
        return self.config.meta or self.meta


STRICT_ERROR_IF = "!= 0"  #: a test with this condition fails if a single row breaks it


class DataTestConfig(ManifestEntry):
    severity: str = "ERROR"
    where: str | None = None
    error_if: str = STRICT_ERROR_IF


class DataTestMetadata(ManifestEntry):
    name: str
    namespace: str | None = None
    kwargs: Mapping[str, Any] = Field(default_factory=dict)


class DataTest(ManifestEntry):
    """A test of a column or a model."""

    name: str
    attached_node: str | None = None
    column_name: str | None = None
    config: DataTestConfig = DataTestConfig()
    test_metadata: DataTestMetadata | None = None  #: None: it is a query of its own


class CatalogColumn(ManifestEntry):
    """A column as the warehouse has it."""

    name: str
    type: str
    index: int


class CatalogTable(ManifestEntry):
    columns: Mapping[str, CatalogColumn] = Field(default_factory=dict)


class Catalog(ManifestEntry):
    """What `catalog.json` says."""

    nodes: Mapping[str, CatalogTable] = Field(default_factory=dict)


class Manifest:
    """What `manifest.json` says of a project. Raises `UserError` for one that cannot be used."""

    def __init__(self, content: Mapping[str, Any], catalog: Catalog, file: Path) -> None:
        self._content = content
        self._catalog = catalog
        self._file = file
        metadata = self._section("metadata")
        schema = str(metadata.get("dbt_schema_version"))
        version = re.fullmatch(r".*/manifest/v(\d+)\.json", schema)
        if version is None or int(version[1]) not in SUPPORTED_SCHEMAS:
            raise UserError(
                f"{file} has the schema {schema}: v{SUPPORTED_SCHEMAS[0]} to v{SUPPORTED_SCHEMAS[-1]} of dbt's "
                "manifest can be read, which dbt 1.6 and later versions write"
            )
        adapter = str(metadata.get("adapter_type"))
        if adapter not in ADAPTERS:
            raise UserError(f"{file} is of the adapter {adapter}: only models of {' and '.join(ADAPTERS)} can be jobs")
        self.dialect: Dialect = ADAPTERS[adapter]
        own = metadata.get("project_name")
        #: The models of the project itself, without those of its packages.
        self.models = [
            model for model in self._entries(DbtModel, "nodes", "model") if own in (None, model.package_name)
        ]
        #: Everything that a text can name by `ref` and `source`.
        self.relations = [
            *self._entries(DbtRelation, "nodes", "model", "seed", "snapshot"),
            *self._entries(DbtRelation, "sources", "source"),
        ]
        self.tests = self._entries(DataTest, "nodes", "test")

    def catalog_columns(self, model: DbtModel) -> list[CatalogColumn]:
        """Return the columns that the model's table had when the catalog was written, in order; none without it."""
        table = self._catalog.nodes.get(model.unique_id, CatalogTable())
        return sorted(table.columns.values(), key=lambda column: column.index)

    def _entries(self, kind: type[AnyEntry], section: str, *resource_types: str) -> list[AnyEntry]:
        entries = self._section(section).items()
        if wrong := [name for name, entry in entries if not isinstance(entry, Mapping)]:
            raise UserError(f"{self._file} can't be read: {wrong[0]} in {section} is no object")
        return [
            _parse(kind, entry, f"{self._file} can't be read: {name}")
            for name, entry in entries
            if entry.get("resource_type") in resource_types
        ]

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self._content.get(name)
        if not isinstance(section, Mapping):
            raise UserError(f"{self._file} is not dbt's manifest: it has no {name}")
        return section


def read_manifest(path: Path) -> Manifest:
    """Read the manifest: the file itself, or that of the project in the folder, after `dbt compile`.

    `catalog.json`, which `dbt docs generate` writes, is read if it is beside it. Raises `UserError`.
    """
    file = path / "target" / "manifest.json" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"there is no {file}: run `{COMPILE}` in the project first")
    catalog = file.with_name("catalog.json")
    columns = _parse(Catalog, _read_json(catalog), f"{catalog} can't be read") if catalog.exists() else Catalog()
    return Manifest(_read_json(file), columns, file)


def _parse(kind: type[AnyEntry], entry: Any, problem: str) -> AnyEntry:
    """Read an entry. Raises `UserError`, whose message begins with `problem`."""
    try:
        return kind.model_validate(entry)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise UserError(f"{problem}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise UserError(f"can't read {file}: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict):
        raise UserError(f"can't read {file}: it is not an object of JSON")
    return content
