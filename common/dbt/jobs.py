"""SQL jobs of the incremental models of a dbt project, as `dbt compile` left it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gated_backfill.common.dbt.columns import TargetColumns, target_columns
from gated_backfill.common.dbt.declarations import META_KEY, make, read_declaration, with_tables
from gated_backfill.common.dbt.manifest import COMPILE, DbtModel, Manifest, read_manifest
from gated_backfill.common.dbt.relations import NamedTable, Relations, table_of
from gated_backfill.common.dbt.texts import CompiledText, to_googlesql
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Expectation, Input, Job, Source, Target
from gated_backfill.common.model.query import HISTORY, ROWS, Query
from gated_backfill.common.process.caller import calling_folder

INCREMENTAL = "incremental"
VERSION_DIGITS = 12  #: of the checksum of a text in a job's version
INPUT_SUFFIX = "_input"  #: of the name of an input whose own name a WITH of the text has


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What became of a model of the project."""

    name: str  #: of the job
    file: str  #: of the model, in the project
    job: Job | None = None
    problem: str | None = None  #: why a model that declares a job is none; None if it is one, or declares none
    ignored_tests: tuple[str, ...] = ()  #: tests of nulls and ranges that are no rules of the job, in words


class DbtProject:
    """The models of a project. Each job is made when it is asked for, so that no model prevents another one."""

    def __init__(self, manifest: Manifest, *, warehouse_project: str | None = None) -> None:
        self._manifest = manifest
        self._warehouse_project = warehouse_project
        self._reports: dict[str, ModelReport] = {}

    def job(self, name: str) -> Job:
        """Return the job of the model. Raises `UserError` for a model that is none, or does not exist."""
        models = [model for model in self._manifest.models if model.job_name == name]
        if not models:
            declared = sorted(model.job_name for model in self._manifest.models if META_KEY in model.own_meta)
            raise UserError(f"the dbt project has no model {name}; with a job: {', '.join(declared) or 'none'}")
        report = self._report(models[0])
        if report.job is None:
            reason = report.problem or f"it declares none: add meta.{META_KEY} to its YAML"
            raise UserError(f"dbt model {name} ({report.file}) is no job: {reason}")
        return report.job

    def reports(self) -> list[ModelReport]:
        """Return what became of each incremental model, and of each other one that declares a job, by name."""
        models = [
            model
            for model in self._manifest.models
            if model.config.materialized == INCREMENTAL or META_KEY in model.own_meta
        ]
        return [self._report(model) for model in sorted(models, key=lambda model: model.job_name)]

    def _report(self, model: DbtModel) -> ModelReport:
        name = model.job_name
        if name not in self._reports:
            self._reports[name] = self._make_report(model)
        return self._reports[name]

    def _make_report(self, model: DbtModel) -> ModelReport:
        name, file = model.job_name, model.original_file_path
        if META_KEY not in model.own_meta:
            return ModelReport(name=name, file=file)
        try:
            converter = ModelConverter(self._manifest, model, self._warehouse_project)
            job = converter.make_job()
        except UserError as exc:
            return ModelReport(name=name, file=file, problem=str(exc).removeprefix(f"job {name}: "))
        return ModelReport(name=name, file=file, job=job, ignored_tests=converter.target.ignored_tests)


class DbtJobs:
    """The jobs of a dbt project as attributes, by the names of their models: `JOBS.daily_revenue`.

    Raises `UserError` for a model that cannot become a job, or that does not exist.
    """

    def __init__(self, project: DbtProject) -> None:
        self._project = project

    def __getattr__(self, name: str) -> Job:
        if name.startswith("__"):  # what Python asks of any object, such as __deepcopy__
            raise AttributeError(name)
        return self._project.job(name)


def jobs_of_project(path: str | Path, *, project: str | None = None) -> DbtJobs:
    """Return the jobs of a dbt project, whose models were compiled by `dbt compile --full-refresh`.

    `path`: the folder of the project, or its `manifest.json`; relative to the folder of the calling module. `project`:
    the project of the warehouse, whose tables are named without it; needed only if a model reads tables of
    several. Raises `UserError` for a manifest that cannot be read.
    """
    manifest = read_manifest((calling_folder() or Path()) / path)
    return DbtJobs(DbtProject(manifest, warehouse_project=project))


class ModelConverter:
    """Makes the job of one model."""

    def __init__(self, manifest: Manifest, model: DbtModel, warehouse_project: str | None) -> None:
        """Raises `UserError` for a model that no job can be made of."""
        self._manifest = manifest
        self._model = model
        self._relations = Relations(manifest, model, warehouse_project)
        self._text = _compiled_text(model, manifest)
        self._declared = read_declaration(model.own_meta[META_KEY])
        self._primary = self._relations.find(self._declared.sources[0]["table"])
        self._inputs = [(self._relations.find(one["table"]), one) for one in self._declared.inputs]

    def make_job(self) -> Job:
        """Return the job. Raises `UserError` for declarations that contradict each other or the text."""
        declared, model = self._declared, self._model
        written = self._text.write(self._word_of, tuple(self.target.columns))
        if not any(self._primary.is_named(parts) for parts in self._text.table_names):
            raise UserError(
                f"its text does not read {self._primary.written}, the first of meta.{META_KEY}.sources: name the table "
                "there that becomes its rows"
            )
        dialect = self._manifest.dialect
        return make(
            Job,
            {
                "name": model.job_name,
                "version": f"dbt-{hashlib.sha256(written.encode()).hexdigest()[:VERSION_DIGITS]}",
                "description": model.description.partition("\n")[0],
                "target": self._make_target(),
                "expectation": make(Expectation, with_tables(declared.expectation, self._name_of)),
                "sources": tuple(
                    make(Source, {"name": self._relations.find(one["table"]).table, **with_tables(one, self._name_of)})
                    for one in declared.sources
                ),
                "inputs": tuple(
                    make(Input, {**with_tables(one, self._name_of), "name": self._input_name(table, one)})
                    for table, one in self._inputs
                ),
                "process": Query(to_googlesql(written, dialect), file_name=model.compiled_path),
                **declared.others,
            },
        )

    @cached_property
    def target(self) -> TargetColumns:
        """The columns of the target, with their rules."""
        return target_columns(
            self._model,
            self._column_names(),
            self._manifest.catalog_columns(self._model),
            self._manifest.tests,
            never_null=(*self._key, self._date_column),
            dialect=self._manifest.dialect,
        )

    def _make_target(self) -> Target:
        fields = {
            "table": self._relations.name(table_of(self._model)),
            "columns": self.target.columns,
            **self._declared.target,
            "date_column": self._date_column,
            "key": self._key,
        }
        return make(Target, fields)

    def _column_names(self) -> list[str]:
        names = self._text.returned_columns()
        if names is None and self._model.config.contract.enforced:
            names = [column.name for column in self._model.columns.values()]
        names = names or [column.name for column in self._manifest.catalog_columns(self._model)]
        if not names:
            raise UserError(
                "its last SELECT returns *, and the columns behind it are not known: name them there, or enforce the "
                "model's contract"
            )
        if not all(names):
            raise UserError("a column that it returns has no name: add `as` and a name")
        return names

    @property
    def _key(self) -> tuple[str, ...]:
        declared: Any = self._declared.target.get("key", self._model.config.unique_key)
        if not declared:
            raise UserError(f"it has no unique_key: declare it, or meta.{META_KEY}.target.key")
        key = (declared,) if isinstance(declared, str) else declared
        if not isinstance(key, tuple) or not all(isinstance(name, str) for name in key):
            raise UserError(f"meta.{META_KEY}.target.key is {declared!r}: it must be a column or a list of columns")
        return key

    @property
    def _date_column(self) -> str:
        partition_by = self._model.config.partition_by
        field = partition_by.get("field") if isinstance(partition_by, Mapping) else None
        declared = self._declared.target.get("date_column") or field or self._model.config.event_time
        if declared is None:
            raise UserError(
                f"its date column is not known: declare partition_by, event_time or meta.{META_KEY}.target.date_column"
            )
        return declared

    def _name_of(self, written: str) -> str:
        return self._relations.name(self._relations.find(written))

    def _input_name(self, table: NamedTable, declared: Mapping[str, Any]) -> str:
        """The declared name, or that of the table, which a WITH of the text often has, too."""
        taken = {*self._text.cte_names, ROWS, HISTORY}
        default = f"{table.table}{INPUT_SUFFIX}" if table.table.lower() in taken else table.table
        return declared.get("name", default)

    def _word_of(self, parts: Sequence[str]) -> str:
        """The job's word for a table of the text. Raises `UserError` if it has none."""
        name = ".".join(parts)
        if table_of(self._model).is_named(parts):
            raise UserError(
                f"it reads its own table {name}, which a job cannot: compile by `{COMPILE}`, with which "
                "is_incremental() is false, and read {{ this }} only there"
            )
        words = [ROWS] if self._primary.is_named(parts) else []
        words += [self._input_name(table, declared) for table, declared in self._inputs if table.is_named(parts)]
        if len(words) > 1:
            raise UserError(f"{name} is both {' and '.join(words)}: declare it once in meta.{META_KEY}")
        if not words:
            known = self._relations.find_by_name(parts)
            written = known.written if known is not None else name
            raise UserError(
                f"it reads {written}, which is neither the first of meta.{META_KEY}.sources nor one of its inputs: "
                "declare it as an input, with its date column"
            )
        return words[0]


def _compiled_text(model: DbtModel, manifest: Manifest) -> CompiledText:
    if model.config.materialized != INCREMENTAL:
        raise UserError(f"it is materialized as {model.config.materialized}: only incremental models are jobs")
    if model.language != "sql":
        raise UserError(f"it is written in {model.language}: only models in SQL are jobs")
    if not model.compiled_code:
        raise UserError(f"the manifest has no compiled text of it: run `{COMPILE}`")
    return CompiledText(model.compiled_code, manifest.dialect)
