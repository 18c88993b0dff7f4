"""What a request to BigQuery's REST interface may hold, as its public reference (v2) says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROJECT = "test-project"  #: which all jobs are in
QUERY_KEYS = _words(
    """
    query destinationTable tableDefinitions userDefinedFunctionResources createDisposition writeDisposition
    defaultDataset priority preserveNulls allowLargeResults useQueryCache flattenResults maximumBillingTier
    maximumBytesBilled useLegacySql parameterMode queryParameters schemaUpdateOptions timePartitioning
    rangePartitioning clustering destinationEncryptionConfiguration scriptOptions connectionProperties
    createSession continuous writeIncrementalResults
    """
)
QUERY_REQUEST_KEYS = _words(
    """
    query maxResults defaultDataset timeoutMs destinationEncryptionConfiguration jobTimeoutMs maxSlots dryRun
    useQueryCache useLegacySql parameterMode queryParameters location formatOptions connectionProperties labels
    maximumBytesBilled requestId createSession jobCreationMode reservation writeIncrementalResults preserveNulls
    """
)
LOAD_KEYS = _words(
    """
    sourceUris fileSetSpecType schema destinationTable destinationTableProperties createDisposition
    writeDisposition nullMarker nullMarkers fieldDelimiter skipLeadingRows encoding quote maxBadRecords
    allowQuotedNewlines sourceFormat allowJaggedRows ignoreUnknownValues projectionFields autodetect
    schemaUpdateOptions timePartitioning rangePartitioning clustering destinationEncryptionConfiguration
    useAvroLogicalTypes referenceFileSchemaUri hivePartitioningOptions decimalTargetTypes jsonExtension
    parquetOptions preserveAsciiControlCharacters columnNameCharacterMap copyFilesOnly connectionProperties
    createSession timeZone dateFormat datetimeFormat timeFormat timestampFormat sourceColumnMatch
    """
)
JOB_KEYS = frozenset({"jobReference", "configuration", "labels"})
CONFIGURATION_KEYS = frozenset({"query", "load", "dryRun", "jobTimeoutMs", "labels", "reservation", "maxSlots"})
TABLE_KEYS = _words(
    """
    tableReference schema timePartitioning rangePartitioning clustering requirePartitionFilter expirationTime
    friendlyName description labels defaultCollation encryptionConfiguration
    """
)
DATASET_KEYS = _words(
    """
    datasetReference location friendlyName description labels defaultTableExpirationMs
    defaultPartitionExpirationMs access
    """
)
PARTITIONING_KEYS = frozenset({"type", "field", "expirationMs"})
TYPES = {  # as a request may name them: as an answer does
    "STRING": "STRING",
    "DATE": "DATE",
    "TIMESTAMP": "TIMESTAMP",
    **dict.fromkeys(("INT64", "INTEGER"), "INTEGER"),
    **dict.fromkeys(("FLOAT64", "FLOAT"), "FLOAT"),
    **dict.fromkeys(("BOOL", "BOOLEAN"), "BOOLEAN"),
}
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,1024}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
PARAMETER = re.compile(r"@(\w+)")
TABLE_IN_SQL = re.compile(r"`([a-z0-9-]+)\.(\w+)\.(\w+)`")
MOST_PARAMETERS = 10_000
MOST_URIS = 10_000
MOST_PARTITIONS = 4_000


def only(given: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    unknown = sorted(set(given) - set(allowed))
    assert not unknown, f"{where} has no {', '.join(unknown)}"


def checked_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as answers give it."""
    only(schema, {"fields"}, "a schema")
    fields: list[dict[str, Any]] = []
    for field in schema["fields"]:
        only(field, {"name", "type", "mode", "description"}, "a field")
        assert NAME.fullmatch(field["name"]), f"no name of a field: {field['name']!r}"
        assert field.get("mode", "NULLABLE") in ("NULLABLE", "REQUIRED", "REPEATED")
        fields.append({"mode": "NULLABLE", **field, "type": TYPES[field["type"]]})
    assert fields, "a schema without fields"
    return {"fields": fields}


def checked_table(body: Mapping[str, Any]) -> dict[str, Any]:
    """The table that such a tables.insert makes."""
    only(body, TABLE_KEYS, "a table")
    made = {**body, "schema": checked_schema(body["schema"])}
    types = {field["name"]: field["type"] for field in made["schema"]["fields"]}
    if "timePartitioning" in body:
        only(body["timePartitioning"], PARTITIONING_KEYS, "timePartitioning")
        assert body["timePartitioning"]["type"] in ("DAY", "HOUR", "MONTH", "YEAR")
        assert types[body["timePartitioning"]["field"]] in ("DATE", "TIMESTAMP"), "partitioned by no date"
    if "clustering" in body:
        only(body["clustering"], {"fields"}, "clustering")
        assert 1 <= len(body["clustering"]["fields"]) <= 4
        assert set(body["clustering"]["fields"]) <= set(types), "clustered by no column"
    assert isinstance(body.get("requirePartitionFilter", False), bool)
    assert not body.get("requirePartitionFilter") or "timePartitioning" in body
    assert str(body.get("expirationTime", "1")).isdecimal(), "expirationTime is no int64"
    return made


def checked_job(body: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of such a job."""
    only(body, JOB_KEYS, "a job")
    configuration = body["configuration"]
    only(configuration, CONFIGURATION_KEYS, "a job's configuration")
    kinds = [kind for kind in ("query", "load") if kind in configuration]
    assert len(kinds) == 1, "a job is of one kind"
    only(body["jobReference"], {"projectId", "jobId", "location"}, "a jobReference")
    assert JOB_ID.fullmatch(body["jobReference"]["jobId"]), "no job id"
    _check_labels(configuration.get("labels", {}))
    (_check_query if kinds == ["query"] else _check_load)(configuration[kinds[0]])
    return dict(configuration)


def _check_labels(labels: Mapping[str, Any]) -> None:
    assert len(labels) <= 64, "too many labels"
    for key, value in labels.items():
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key), f"no name of a label: {key!r}"
        assert isinstance(value, str), "a label is text"
        assert re.fullmatch(r"[a-z0-9_-]{0,63}", value), f"no value of a label: {value!r}"


def check_query_request(body: Mapping[str, Any]) -> None:
    """Check a jobs.query request: what is not among its keys, the service ignores without a word."""
    only(body, QUERY_REQUEST_KEYS, "a query request")
    assert len(body["requestId"]) <= 36, "no request id"
    assert 0 < int(body["timeoutMs"]) <= 200_000, "the service waits no longer"
    assert body["formatOptions"] == {"useInt64Timestamp": True}, "timestamps are cut"
    assert "jobTimeoutMs" in body, "a query that may run for ever"


def configuration_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the job that a jobs.query request starts."""
    query = {key: value for key, value in body.items() if key in QUERY_KEYS}
    return {"query": query, **{key: value for key, value in body.items() if key in CONFIGURATION_KEYS - {"query"}}}


def _check_query(query: Mapping[str, Any]) -> None:
    only(query, QUERY_KEYS, "a query's configuration")
    assert query["query"].strip(), "an empty query"
    assert query.get("useLegacySql") is False, "a query in legacy SQL"
    assert query.get("priority", "INTERACTIVE") in ("INTERACTIVE", "BATCH"), "no priority"
    assert str(query.get("maximumBytesBilled", "1")).isdecimal(), "maximumBytesBilled is no int64"
    if query.get("queryParameters"):
        assert query.get("parameterMode") == "NAMED", "named parameters without parameterMode NAMED"
    assert len(query.get("queryParameters", [])) <= MOST_PARAMETERS
    bound = parameters(query)
    assert len(bound) == len(query.get("queryParameters", [])), "a parameter is bound twice"
    unbound = set(PARAMETER.findall(query["query"])) - set(bound)
    assert not unbound, f"not bound: {unbound}"


def _check_load(load: Mapping[str, Any]) -> None:
    only(load, LOAD_KEYS, "a load's configuration")
    checked_schema(load["schema"])
    assert load["sourceFormat"] == "PARQUET", "no format, or another one"
    assert load.get("writeDisposition", "WRITE_APPEND") in ("WRITE_TRUNCATE", "WRITE_APPEND", "WRITE_EMPTY")
    only(load["destinationTable"], {"projectId", "datasetId", "tableId"}, "a tableReference")
    uris = load.get("sourceUris", [])
    assert len(uris) <= MOST_URIS
    assert all(uri.startswith("gs://") for uri in uris)


def parameters(query: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a query's parameters by name."""
    found: dict[str, Any] = {}
    for one in query.get("queryParameters", []):
        only(one, {"name", "parameterType", "parameterValue"}, "a parameter")
        kind, value = one["parameterType"], one["parameterValue"]
        if kind["type"] == "ARRAY":
            listed = value.get("arrayValues", [])
            found[one["name"]] = [_value(kind["arrayType"]["type"], item["value"]) for item in listed]
        else:
            found[one["name"]] = _value(kind["type"], value["value"])
    return found


def _value(kind: str, text: Any) -> Any:
    if text is None:
        return None
    if kind == "FLOAT64" and isinstance(text, float):
        return text  # a number in JSON is taken, too
    assert isinstance(text, str), f"a parameter's value is text in JSON, not {text!r}"
    if kind == "DATE":
        return date.fromisoformat(text)
    if kind == "BOOL":
        return {"true": True, "false": False}[text.lower()]
    return {"STRING": str, "INT64": int, "FLOAT64": float}[kind](text)


def place(project: str, dataset: str) -> str:
    """The dataset by the name that it has here: with its project, unless that is the service's own."""
    return dataset if project == PROJECT else f"{project}.{dataset}"


def tables_in(sql: str) -> set[tuple[str, str]]:
    """The tables that a statement names, each as dataset, as by `place`, and table."""
    return {(place(project, dataset), table) for project, dataset, table in TABLE_IN_SQL.findall(sql)}


def statements(sql: str) -> tuple[exp.Expression, ...]:
    """The statements of a query or a script that read or write rows, whatever number a staging table has."""
    return _parsed(re.sub(r"[0-9a-f]{32}", "0", sql))


@lru_cache(maxsize=256)
def _parsed(sql: str) -> tuple[exp.Expression, ...]:
    parts = [part for part in sql.split(";") if re.match(r"\s*(SELECT|WITH|INSERT|DELETE|SET)\b", part)]
    return tuple(sqlglot.parse_one(re.sub(r"^\s*SET\s+\w+\s*=", "SELECT", part), read="bigquery") for part in parts)


def changed_tables(sql: str) -> list[tuple[str, str]]:
    """The tables that the DML statements of a query or a script change, each with "insert" or "delete"."""
    return [
        (statement.find(exp.Table).name, type(statement).__name__.lower())  # pyright: ignore[reportOptionalMemberAccess]
        for statement in _parsed(sql)
        if isinstance(statement, (exp.Insert, exp.Delete))
    ]


def created_table(sql: str) -> str | None:
    """The table that the SQL makes of a query's rows."""
    created = re.match(r"\s*CREATE OR REPLACE TABLE `[a-z0-9-]+\.\w+\.(\w+)`", sql)
    return created and created[1]


def unfiltered(sql: str, table: str, column: str) -> bool:
    """Whether some part of the SQL reads or deletes the table's rows by no filter that prunes its partitions.

    Such a filter compares the bare column with values known before the query runs.
    """
    for statement in statements(sql):
        for named in statement.find_all(exp.Table):
            if named.name != table or isinstance(named.find_ancestor(exp.Schema, exp.Insert, exp.Select), exp.Schema):
                continue
            reader = named.find_ancestor(exp.Select, exp.Delete, exp.Insert)
            if isinstance(reader, exp.Insert):
                continue  # its rows are added to, not read
            where = reader.args.get("where") if reader is not None else None
            if where is None or not any(_prunes(found, column) for found in where.find_all(exp.Between, exp.In)):
                return True
    return False


def _prunes(found: exp.Expression, column: str) -> bool:
    return isinstance(found.this, exp.Column) and found.this.name == column and not found.find(exp.Select)


def wraps_in_a_function(sql: str, column: str) -> bool:
    """Whether a WHERE of the SQL puts the column inside a function, a cast or arithmetic."""
    plain = (exp.And, exp.Or, exp.Not, exp.Paren, exp.Between, exp.In, exp.Is, exp.EQ, exp.Where)
    return any(
        not isinstance(_beneath(found), plain)
        for statement in statements(sql)
        for where in statement.find_all(exp.Where)
        for found in where.find_all(exp.Column)
        if found.name == column and found.find_ancestor(exp.Where, exp.Select) is where
    )


def _beneath(column: exp.Expression) -> exp.Expression | None:
    """The first ancestor that is not what may stand around a bare column."""
    found = column.parent
    while isinstance(found, (exp.And, exp.Or, exp.Not, exp.Paren, exp.Between, exp.In, exp.Is, exp.EQ)):
        found = found.parent
    return found


def merged_queries(sql: str, params: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The queries that one job asks for together, each with its own parameters; none if it is another query."""
    queries: list[tuple[str, dict[str, Any]]] = []
    for number, part in enumerate(sql.split("\nUNION ALL\n")):
        found = re.fullmatch(rf"SELECT {number} AS part, .*? FROM \((.*)\) AS q{number}", part, re.DOTALL)
        if found is None:
            return []
        start = f"q{number}_"
        own = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
        queries.append((found[1].replace(f"@{start}", "@"), own))
    return queries
