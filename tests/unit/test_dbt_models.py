"""Which models of a dbt project become jobs, what the jobs are, and why others are none: one clear line each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill import Column, Fallback, Job, Query
from gated_backfill.common.dbt.jobs import DbtProject
from gated_backfill.common.dbt.manifest import Catalog, Manifest, read_manifest
from gated_backfill.common.dbt.texts import CompiledText, to_googlesql
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.dbt import jobs_of_project
from tests.lab import PACKAGES

PACKAGE = PACKAGES / "dbt_jobs"
CONTENT = json.loads((PACKAGE / "shop_bigquery.json").read_text())
REVENUE, MARGIN = "model.shop.daily_revenue", "model.shop.daily_margin"
SELECT = "select store, sold_on, amount as revenue, 1 as sales from "
TILLS = "`shop-prod`.`shop`.`till_sales`"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., DbtProject]:
    """Makes the project of an edited manifest, with the columns of a catalog."""

    def make(edit: Edit, catalog: dict[str, Any] | None = None, **more: Any) -> DbtProject:
        content = deepcopy(CONTENT)
        edit(content)
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        if catalog is not None:
            columns = {
                name: {"name": name, "type": kind, "index": at} for at, (name, kind) in enumerate(catalog.items())
            }
            (tmp_path / "catalog.json").write_text(json.dumps({"nodes": {REVENUE: {"columns": columns}}}))
        return DbtProject(read_manifest(tmp_path / "manifest.json"), **more)

    return make


def revenue(content: dict[str, Any]) -> dict[str, Any]:
    return content["nodes"][REVENUE]


def meta(content: dict[str, Any]) -> dict[str, Any]:
    return revenue(content)["config"]["meta"]["backfill"]


def compiled(text: str) -> Edit:
    return lambda content: revenue(content).update(compiled_code=text)


def test_a_job_has_what_the_project_says() -> None:
    job = jobs_of_project(PACKAGE / "shop_bigquery.json").daily_revenue

    assert (job.name, job.description) == ("daily_revenue", "Revenue of each store and day.")
    assert (job.target.table, job.target.date_column, job.target.key) == (
        "marts.daily_revenue",
        "sold_on",
        ("store", "sold_on"),
    )
    assert dict(job.target.columns) == {
        "store": Column(type="STRING"),
        "sold_on": Column(type="DATE"),
        "revenue": Column(type="FLOAT64", ge=0),
        "sales": Column(type="INT64", nullable=True),
    }
    assert (job.expectation.table, job.expectation.entity, job.expectation.floor) == ("shop.open_stores", "store", 2)
    assert [(source.name, source.table, source.required) for source in job.sources] == [
        ("till_sales", "shop.till_sales", ("amount",)),
        ("bank_settlements", "shop.bank_settlements", ("amount",)),
    ]
    assert job.fallback is Fallback.FILL
    assert re.fullmatch("dbt-[0-9a-f]{12}", job.version)


def test_an_input_does_not_take_the_name_of_a_with_and_tests_are_rules() -> None:
    job = jobs_of_project(PACKAGE / "shop_bigquery.json").daily_margin
    assert isinstance(job.process, Query)

    assert "select * from `daily_costs_input` AS `daily_costs`" in job.process.text
    assert [(declared.name, declared.table) for declared in job.inputs] == [("daily_costs_input", "shop.daily_costs")]
    assert dict(job.target.columns) == {
        "store": Column(type="STRING"),
        "sold_on": Column(type="DATE"),
        "sold_in": Column(type="DATE", nullable=True),
        "margin": Column(type="FLOAT64", nullable=True, max_null_share=0.05),
        "place": Column(type="INT64", ge=1, le=999),
        "note": Column(type="STRING", nullable=True),
    }


def set_meta(**values: Any) -> Edit:
    return lambda content: meta(content).update(values)


def set_source(**values: Any) -> Edit:
    return lambda content: meta(content)["sources"][0].update(values)


def set_config(**values: Any) -> Edit:
    return lambda content: revenue(content)["config"].update(values)


def drop_meta(key: str) -> Edit:
    return lambda content: meta(content).pop(key)


def set_type(data_type: str | None) -> Edit:
    return lambda content: revenue(content)["columns"]["revenue"].update(data_type=data_type)


def move_tills(content: dict[str, Any]) -> None:
    """The tills are in another project of Google's."""
    content["sources"]["source.shop.shop.till_sales"].update(database="tills-prod")
    revenue(content)["compiled_code"] = revenue(content)["compiled_code"].replace(TILLS, "`tills-prod`.shop.till_sales")


NOT_READ = "its text does not read source('shop', 'till_sales'), the first of meta.backfill.sources: name the table"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (set_config(materialized="table"), "it is materialized as table: only incremental models are jobs"),
        (lambda content: revenue(content).update(language="python"), "it is written in python: only models in SQL"),
        (compiled(""), "the manifest has no compiled text of it: run `dbt compile --full-refresh`"),
        (lambda content: revenue(content).pop("compiled_code"), "the manifest has no compiled text of it"),
        (compiled("select store from"), "its compiled text: line 1, column 14: it can't be read near 'from'"),
        (compiled(f"{SELECT}{TILLS}; select 1"), "its compiled text: it has 2 statements: only one SELECT is allowed"),
        (
            compiled(
                f"{SELECT}{TILLS}\nwhere sold_on > (select max(sold_on) from `shop-prod`.`marts`.`daily_revenue`)"
            ),
            "line 2 of its compiled text: it reads its own table shop-prod.marts.daily_revenue, which a job cannot: "
            "compile by `dbt compile --full-refresh`, with which is_incremental() is false, and read {{ this }} only",
        ),
        (
            compiled(f"{SELECT}{TILLS} join `shop-prod`.`shop`.`daily_costs` using (store)"),
            "it reads source('shop', 'daily_costs'), which is neither the first of meta.backfill.sources nor one of "
            "its inputs: declare it as an input, with its date column",
        ),
        (compiled(f"{SELECT}{TILLS}, other.secret"), "it reads other.secret, which is neither the first of"),
        (compiled(f"{SELECT}{TILLS}, external_query('c', 'select 1')"), "which is no table of the project"),
        (
            compiled(f"select shop.till_sales.store, sold_on, revenue, sales from {TILLS}"),
            "line 1 of its compiled text: it names a column as shop.till_sales.store: use an alias",
        ),
        (
            compiled(f"{SELECT}{TILLS} where sold_on < current_date"),
            "process (target/compiled/shop/models/daily_revenue.sql): line 1, column 98: it calls CURRENT_DATE",
        ),
        (compiled("select 'a' as store, date '2024-01-01' as sold_on, 1.0 as revenue, 1 as sales"), NOT_READ),
        (
            compiled(
                f"with a as (select * from b), b as (select * from a) select * from a where exists ({SELECT}{TILLS})"
            ),
            "its last SELECT returns *, and the columns behind it are not known",
        ),
        (set_type("decimal(38, 12)"), "column revenue is decimal(38, 12): the columns of a job are"),
        (set_type("bignumeric"), "column revenue is bignumeric: the columns of a job are"),
        (compiled(f"select * from {TILLS}"), "its last SELECT returns *, and the columns behind it are not known"),
        (compiled(f"select store, sold_on, sum(1) from {TILLS}"), "a column that it returns has no name: add `as`"),
        (compiled(f"{SELECT}{TILLS}".replace(" as sales", " as visits")), "the type of visits is not known: give"),
        (
            set_type(None),
            "the type of revenue is not known: give these columns a data_type in the model's YAML, or run",
        ),
        (set_type("array<int64>"), "column revenue is array<int64>: the columns of a job are STRING, INT64,"),
        (set_type("numbers"), "column revenue is numbers: the columns of a job are STRING, INT64,"),
        (set_config(unique_key=None), "it has no unique_key: declare it, or meta.backfill.target.key"),
        (set_config(unique_key="id"), "the target's columns lack ['id']"),
        (
            set_config(event_time=None),
            "its date column is not known: declare partition_by, event_time or meta.backfill.target.date_column",
        ),
        (set_config(event_time="revenue"), "the target's date column revenue is FLOAT64, not DATE"),
        (drop_meta("expectation"), "meta.backfill lacks expectation"),
        (lambda content: meta(content).clear(), "meta.backfill lacks expectation and sources"),
        (set_meta(source=[]), "meta.backfill has no key source: its keys are target, expectation, sources, inputs,"),
        (set_meta(sources=[]), "meta.backfill.sources is empty"),
        (set_meta(sources={}), "meta.backfill.sources is {}: it must be a list"),
        (set_meta(sources=["x"]), "meta.backfill.sources[0] is 'x': it must be a mapping"),
        (set_source(colour="red"), "meta.backfill.sources[0] has no key colour: its keys are name, table,"),
        (set_source(derive="x"), "meta.backfill.sources[0] has no key derive"),
        (lambda content: meta(content)["sources"][0].pop("date_column"), "meta.backfill.sources[0] lacks date_column"),
        (set_source(table=5), "meta.backfill.sources[0].table is 5: it must be text"),
        (set_source(table="tills"), "'tills' names no table: write it as ref('name'), source('source', 'table') or"),
        (set_source(table="ref(tills)"), "'ref(tills)' can't be read: write it as ref('name'),"),
        (set_source(table="ref('tills')"), "ref('tills') names no relation of the project"),
        (set_source(table="source('shop', 'tills')"), "source('shop', 'tills') names no relation of the project"),
        (set_source(table="ref('stg_till_sales')"), "ref('stg_till_sales') is ephemeral, so it is no table: name the"),
        (set_source(required="amount"), "source till_sales: required is 'amount': it must be a tuple"),
        (set_meta(fallback="fil"), "meta.backfill.fallback is 'fil': it must be one of replace, fill, off"),
        (set_meta(policy={"accept_ratio": 2}), "a coverage policy needs 0 < accept_ratio <= complete_ratio <= 1"),
        (
            set_meta(inputs=[{"table": "source('shop', 'till_sales')", "date_column": "sold_on"}]),
            "shop-prod.shop.till_sales is both rows and till_sales: declare it once in meta.backfill",
        ),
        (move_tills, "source('shop', 'till_sales') is in the project tills-prod, the model in shop-prod: name the"),
        (lambda content: revenue(content).update(name="daily-revenue"), "'daily-revenue' is not a valid job name"),
    ],
)
def test_a_model_that_cannot_become_a_job_says_why_in_one_line(
    edit: Edit, problem: str, project: Callable[..., DbtProject]
) -> None:
    made = project(edit)

    reports = {report.file: report for report in made.reports()}

    report = reports["models/daily_revenue.sql"]
    assert report.job is None
    assert problem in str(report.problem)
    assert len(str(report.problem).splitlines()) == 1
    assert reports["models/store_visits.sql"].problem is None
    with pytest.raises(UserError, match=re.escape(f"dbt model {report.name} (models/daily_revenue.sql) is no job: ")):
        made.job(report.name)


VALUES = st.recursive(
    st.sampled_from((None, True, 0, -1, 0.5, "", "store", "ref('daily_revenue')", "source('shop', 'till_sales')")),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(("table", "name", "key")), values),
    max_leaves=4,
)
PLACES = st.sampled_from(
    (
        *(("expectation", name) for name in ("table", "entity", "calendar", "reconcile", "floor", "rows")),
        *(("sources", 0, name) for name in ("table", "name", "date_column", "entity", "columns", "required")),
        *(("inputs", 0, name) for name in ("table", "name", "date_column", "coverage")),
        *(("target", name) for name in ("key", "date_column", "entity", "required")),
        *((name,) for name in ("expectation", "sources", "inputs", "target", "policy", "fallback", "max_in_flight")),
    )
)


@given(PLACES, VALUES)
def test_any_value_in_meta_gives_a_job_or_one_line(place: tuple[Any, ...], value: Any) -> None:
    content = deepcopy(CONTENT)
    costs = {"table": "source('shop', 'daily_costs')", "date_column": "sold_on"}
    set_meta(inputs=[costs], target={})(content)
    *parents, last = place
    holder: Any = meta(content)
    for key in parents:
        holder = holder[key]
    holder[last] = value

    reports = {report.name: report for report in DbtProject(Manifest(content, Catalog(), Path("x"))).reports()}

    report = reports["daily_revenue"]
    assert (report.job is None) != (report.problem is None)
    assert len(str(report.problem).splitlines()) == 1


def text_of(job: Job) -> str:
    assert isinstance(job.process, Query)
    return job.process.text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (f"{SELECT}{TILLS}", f"{SELECT}`rows` AS `till_sales`"),
        (f"{SELECT}{TILLS} as t;\n", f"{SELECT}`rows` as t"),
        (f"{SELECT}`shop-prod.shop.till_sales`", f"{SELECT}`rows` AS `till_sales`"),
        (f"{SELECT}shop-prod.shop.till_sales t", f"{SELECT}`rows` t"),
        (f"{SELECT}shop.till_sales", f"{SELECT}`rows` AS `till_sales`"),
        (
            f"-- naïve ☕ 🎉\n{SELECT}/* é */ {TILLS} -- ends",
            f"-- naïve ☕ 🎉\n{SELECT}/* é */ `rows` AS `till_sales` -- ends",
        ),
        (
            f"with till_sales as ({SELECT}{TILLS}) {SELECT}till_sales",
            f"with till_sales as ({SELECT}`rows` AS `till_sales`) {SELECT}till_sales",
        ),
        (
            f"with a as ({SELECT}{TILLS} union all {SELECT}{TILLS} as two) select * from a",
            "SELECT `store`, `sold_on`, `revenue`, `sales` FROM "
            f"(with a as ({SELECT}`rows` AS `till_sales` union all {SELECT}`rows` as two) select * from a\n)",
        ),
        (
            f"with a as (select * from {TILLS}), b as ({SELECT}a) select b.* from b cross join a",
            "SELECT `store`, `sold_on`, `revenue`, `sales` FROM (with a as (select * from `rows` AS `till_sales`), "
            f"b as ({SELECT}a) select b.* from b cross join a\n)",
        ),
        (
            f"with a as (select 0 as more, {SELECT[7:]}{TILLS}) select * except (more) from a",
            "SELECT `store`, `sold_on`, `revenue`, `sales` FROM (with a as (select 0 as more, "
            f"{SELECT[7:]}`rows` AS `till_sales`) select * except (more) from a\n)",
        ),
        (
            f"select * from ({SELECT}{TILLS}) as a",
            "SELECT `store`, `sold_on`, `revenue`, `sales` FROM "
            f"(select * from ({SELECT}`rows` AS `till_sales`) as a\n)",
        ),
    ],
)
def test_a_text_reads_the_words_of_the_job_and_stays_the_rest(
    text: str, written: str, project: Callable[..., DbtProject]
) -> None:
    assert text_of(project(compiled(text)).job("daily_revenue")) == written


def test_a_text_of_duckdb_becomes_googlesql() -> None:
    text = 'select "x" // 2 as half, sold_on + interval 1 day as next from "rows" where x::varchar = \'a"b\''

    assert " ".join(to_googlesql(text, "duckdb").split()) == (
        "SELECT DIV(`x`, 2) AS half, sold_on + INTERVAL '1' DAY AS next FROM `rows` WHERE CAST(x AS STRING) = 'a\"b'"
    )


@given(st.text(alphabet=st.sampled_from("select from rows,*()@?`'\"\n;-/%{1"), max_size=40), st.booleans())
def test_any_text_is_read_or_refused_in_one_line(text: str, is_duckdb: bool) -> None:
    def problem() -> str:
        try:
            made = CompiledText(text, "duckdb" if is_duckdb else "bigquery")
            made.returned_columns()
            made.write(lambda parts: "rows", ["a"])
        except UserError as exc:
            return str(exc)
        return ""

    assert len(problem().splitlines()) <= 1


def test_the_version_changes_with_the_compiled_text_only(project: Callable[..., DbtProject]) -> None:
    def version(edit: Edit) -> str:
        return project(edit).job("daily_revenue").version

    unchanged = version(lambda content: None)
    assert version(set_meta(fallback="off")) == unchanged
    assert version(lambda content: revenue(content).update(checksum={"name": "sha256", "checksum": "0"})) == unchanged
    changed = version(lambda content: revenue(content).update(compiled_code=revenue(content)["compiled_code"] + "-- x"))
    assert changed != unchanged


def test_the_version_is_the_same_in_another_environment(project: Callable[..., DbtProject]) -> None:
    def move(content: dict[str, Any]) -> None:
        content.update(json.loads(json.dumps(content).replace("shop-prod", "shop-dev").replace('"shop"', '"raw"')))
        revenue(content)["compiled_code"] = revenue(content)["compiled_code"].replace("`shop`.", "`raw`.")
        content["metadata"]["project_name"] = "raw"
        for node in content["sources"].values():
            node["source_name"] = "shop"

    moved = project(move).job("daily_revenue")
    assert moved.sources[0].table == "raw.till_sales"
    assert moved.version == project(lambda content: None).job("daily_revenue").version


def test_tables_of_other_projects_keep_the_project(project: Callable[..., DbtProject]) -> None:
    job = project(move_tills, warehouse_project="shop-prod").job("daily_revenue")
    assert (job.target.table, job.sources[0].table) == ("marts.daily_revenue", "tills-prod.shop.till_sales")

    other_way_round = project(move_tills, warehouse_project="tills-prod").job("daily_revenue")
    assert (other_way_round.target.table, other_way_round.sources[0].table) == (
        "shop-prod.marts.daily_revenue",
        "shop.till_sales",
    )


def test_meta_says_what_the_model_does_not(project: Callable[..., DbtProject]) -> None:
    def edit(content: dict[str, Any]) -> None:
        set_config(unique_key=None, event_time=None, partition_by={"field": "sales", "data_type": "int64"})(content)
        expectation = {
            "table": "ops.stores",
            "date_column": "day",
            "entity": ["store"],
            "calendar": {"table": "source('shop', 'open_stores')", "date_column": "open_on", "floor_per_event": 1},
            "reconcile": [{"column": "amount", "target_column": "revenue", "tolerance": 0.001}],
        }
        target = {"key": ["store"], "date_column": "sold_on", "check_sums": True}
        set_meta(expectation=expectation, target=target, fallback=False, policy={"complete_ratio": 1.0})(content)
        set_meta(max_in_flight=2)(content)

    job = project(edit).job("daily_revenue")

    assert (job.target.key, job.target.date_column) == (("store",), "sold_on")
    assert (job.expectation.table, job.expectation.entity_columns) == ("ops.stores", ("store",))
    assert job.expectation.calendar is not None
    assert job.expectation.calendar.table == "shop.open_stores"
    assert [one.target_column for one in job.expectation.reconcile] == ["revenue"]
    assert (job.fallback, job.policy.complete_ratio, job.max_in_flight) == (Fallback.OFF, 1.0, 2)


def test_types_come_from_the_catalog_if_the_yaml_has_none(project: Callable[..., DbtProject]) -> None:
    def edit(content: dict[str, Any]) -> None:
        compiled(f"select * from {TILLS}")(content)
        revenue(content)["columns"] = {}

    types = {"store": "STRING", "sold_on": "DATE"} | {kind.lower(): kind for kind in get_args(ColumnType)}
    columns = project(edit, types).job("daily_revenue").target.columns

    assert {name: column.type for name, column in columns.items()} == types


def test_a_contract_says_what_a_star_returns(project: Callable[..., DbtProject]) -> None:
    def edit(content: dict[str, Any]) -> None:
        compiled(f"select * from {TILLS}")(content)
        set_config(contract={"enforced": True})(content)
        revenue(content)["columns"]["sales"]["constraints"] = [{"type": "not_null"}]

    columns = project(edit).job("daily_revenue").target.columns

    assert list(columns) == ["store", "sold_on", "revenue", "sales"]
    assert not columns["sales"].nullable


def with_test(name: str, namespace: str | None, config: dict[str, Any], **kwargs: Any) -> Edit:
    """The project with one test of revenue, a FLOAT64, or of the column in `kwargs`."""

    def edit(content: dict[str, Any]) -> None:
        nodes = content["nodes"]
        for test in [key for key in nodes if key.startswith("test.")]:
            del nodes[test]
        column = kwargs.pop("column", "revenue")
        set_type(kwargs.pop("revenue_type", "float64"))(content)
        nodes["test.shop.one"] = {
            "resource_type": "test",
            "name": "one",
            "attached_node": REVENUE,
            "column_name": column,
            "config": config,
            "test_metadata": {"name": name, "namespace": namespace, "kwargs": {"column_name": column, **kwargs}},
        }

    return edit


STRICTLY_POSITIVE = 5e-324  #: the least FLOAT64 above 0
NULLABLE = Column(type="FLOAT64", nullable=True)
UTILS, EXPECTATIONS = "dbt_utils", "dbt_expectations"


@pytest.mark.parametrize(
    ("edit", "column", "ignored"),
    [
        (with_test("not_null", None, {}), Column(type="FLOAT64"), None),
        (with_test("expect_column_values_to_not_be_null", EXPECTATIONS, {}), Column(type="FLOAT64"), None),
        (
            with_test("accepted_range", UTILS, {}, min_value=0, max_value=1.5),
            Column(type="FLOAT64", nullable=True, ge=0, le=1.5),
            None,
        ),
        (
            with_test("accepted_range", UTILS, {}, min_value=0, inclusive=False),
            Column(type="FLOAT64", nullable=True, ge=STRICTLY_POSITIVE),
            None,
        ),
        (
            with_test("expect_column_values_to_be_between", EXPECTATIONS, {}, min_value=0, strictly=True),
            Column(type="FLOAT64", nullable=True, ge=STRICTLY_POSITIVE),
            None,
        ),
        (
            with_test("not_null_proportion", UTILS, {}, at_least=0.9),
            Column(type="FLOAT64", nullable=True, max_null_share=0.1),
            None,
        ),
        (
            with_test("accepted_range", UTILS, {}, revenue_type="numeric", min_value=0.5),
            Column(type="NUMERIC", nullable=True, ge=0.5),
            None,
        ),
        (
            with_test("accepted_range", UTILS, {}, revenue_type="numeric", min_value=0, inclusive=False),
            Column(type="NUMERIC", nullable=True),
            "it excludes its bounds, which those of a NUMERIC do not",
        ),
        (with_test("unique", None, {}), NULLABLE, None),
        (with_test("not_null", None, {"severity": "warn"}), NULLABLE, "it may fail without an error"),
        (with_test("not_null", None, {"error_if": "> 10"}), NULLABLE, "it may fail without an error"),
        (with_test("not_null", None, {"where": "sold_on > '2024-01-01'"}), NULLABLE, "it has a where"),
        (
            with_test("expect_column_values_to_be_between", EXPECTATIONS, {}, min_value=0, row_condition="x"),
            NULLABLE,
            "it has a row_condition",
        ),
        (with_test("accepted_range", UTILS, {}, min_value="sales"), NULLABLE, "its bounds are not numbers"),
        (with_test("not_null_proportion", UTILS, {}, at_least="most"), NULLABLE, "its at_least is not a share"),
        (with_test("accepted_range", UTILS, {}, min_value=0, column="sold_on"), NULLABLE, "a DATE has no bounds"),
        (with_test("not_null", None, {}, column="colour"), NULLABLE, "it is of no column of the table"),
    ],
)
def test_tests_become_rules_or_are_listed(
    edit: Edit, column: Column, ignored: str | None, project: Callable[..., DbtProject]
) -> None:
    (report,) = [report for report in project(edit).reports() if report.name == "daily_revenue"]

    assert report.job is not None
    assert report.job.target.columns["revenue"] == column
    assert report.ignored_tests == (() if ignored is None else (f"test one is no rule of the job: {ignored}",))


def test_a_versioned_model_is_a_job_of_its_own(project: Callable[..., DbtProject]) -> None:
    def edit(content: dict[str, Any]) -> None:
        for number in (1, 2):
            versioned = {**deepcopy(revenue(content)), "version": number, "latest_version": 2}
            versioned["unique_id"] = f"{REVENUE}.v{number}"
            versioned["alias"] = f"daily_revenue_v{number}"
            content["nodes"][versioned["unique_id"]] = versioned
        del content["nodes"][REVENUE]
        margin = content["nodes"][MARGIN]
        margin["compiled_code"] = margin["compiled_code"].replace("`daily_revenue`", "`daily_revenue_v2`")

    made = project(edit)

    assert [report.name for report in made.reports()] == [
        "daily_margin",
        "daily_revenue_v1",
        "daily_revenue_v2",
        "store_visits",
    ]
    assert made.job("daily_revenue_v1").target.table == "marts.daily_revenue_v1"
    assert made.job("daily_margin").sources[0].table == "marts.daily_revenue_v2"


def test_a_model_that_is_not_there_is_refused() -> None:
    jobs = jobs_of_project(PACKAGE / "shop")
    with pytest.raises(UserError, match="the dbt project has no model sales; with a job: daily_margin, daily_revenue"):
        _ = jobs.sales
    assert not hasattr(jobs, "__deepcopy__")


def set_metadata(**values: Any) -> Edit:
    return lambda content: content["metadata"].update(values)


SCHEMA = "https://schemas.getdbt.com/dbt/manifest/v{}.json"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("metadata"), "is not dbt's manifest: it has no metadata"),
        (lambda content: content.update(nodes=[]), "is not dbt's manifest: it has no nodes"),
        (set_metadata(dbt_schema_version=SCHEMA.format(9)), "v10 to v12 of dbt's manifest can be read, which dbt 1.6"),
        (
            set_metadata(dbt_schema_version=SCHEMA.format(13)),
            "has the schema https://schemas.getdbt.com/dbt/manifest/v13",
        ),
        (set_metadata(dbt_schema_version=None), "has the schema None: v10 to v12"),
        (
            set_metadata(adapter_type="snowflake"),
            "is of the adapter snowflake: only models of bigquery and duckdb can be",
        ),
        (lambda content: revenue(content).pop("config"), "can't be read: model.shop.daily_revenue: config: Field req"),
        (
            lambda content: content["nodes"].update({REVENUE: "x"}),
            "can't be read: model.shop.daily_revenue in nodes is no object",
        ),
        (lambda content: content["sources"].update(x=5), "can't be read: x in sources is no object"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(
    edit: Edit, message: str, project: Callable[..., DbtProject]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        project(edit).reports()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("version", [10, 11, 12])
def test_the_supported_schemas(version: int, project: Callable[..., DbtProject]) -> None:
    assert project(set_metadata(dbt_schema_version=SCHEMA.format(version))).job("daily_revenue")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run `dbt compile --full-refresh` in the project first"),
        (b"", "can't read"),
        (b"{", "can't read"),
        (b"\xff", "can't read"),
        (b"[]", "it is not an object of JSON"),
        (b"[" * 100_000, "can't read"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    if content is not None:
        (tmp_path / "target" / "manifest.json").write_bytes(content)

    with pytest.raises(UserError, match=re.escape(message)) as refused:
        jobs_of_project(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_broken_catalog_is_refused(project: Callable[..., DbtProject], tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_text('{"nodes": {"model.shop.daily_revenue": {"columns": {"a": {}}}}}')
    with pytest.raises(
        UserError, match=r"catalog\.json can't be read: nodes\.model\..*\.columns\.a\.name: Field required"
    ):
        project(lambda content: None)
