"""`backfill tables create`: what it makes, what it leaves alone, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.worker.jobs.player_composite_factors import JOB
from tests.emulator import PROJECT, Emulator
from tests.lab import Lab, players

DAY = date(2023, 2, 23)
TARGET = JOB.target.table
TYPES = {name: column.type for name, column in JOB.target.columns.items()}
CREATE = ("tables", "create")
ONE = ("--job", JOB.name)


def contents(emulator: Emulator) -> dict[str, list[str]]:
    """The tables of every dataset."""
    client = emulator.client()
    found = [one.dataset_id for one in client.list_datasets()]
    return {dataset: sorted(one.table_id for one in client.list_tables(f"{PROJECT}.{dataset}")) for dataset in found}


@pytest.fixture
def at_bigquery(emulator: Emulator, bigquery_warehouse: BigQueryWarehouse) -> dict[str, str]:
    """The settings of an empty BigQuery."""
    return {"BACKFILL_WAREHOUSE": emulator.url}


def test_every_jobs_target_is_made_as_declared_and_the_second_time_left_alone(
    lab: Lab, emulator: Emulator, at_bigquery: dict[str, str]
) -> None:
    lab.summary(DAY, players(3))
    lab.opened([DAY])  # the example counts once it was run
    made = lab.inside(*CREATE, **at_bigquery)

    assert made.returncode == 0, made.stderr
    assert f"{TARGET} was made, partitioned by game_date, clustered by player_lookup" in made.stdout
    assert "probe.probe was made, partitioned by day, clustered by name" in made.stdout
    assert "the table of publications, in the tool's dataset: created" in made.stdout
    tables = contents(emulator)
    assert tables == {
        "backfill": ["publications"],
        "nba_precompute": ["player_composite_factors"],
        "probe": ["probe", "probe_in_a_hurry"],
    }
    found = emulator.client().get_table(f"{PROJECT}.{TARGET}")
    assert {field.name: field.field_type for field in found.schema} == TYPES
    assert (found.time_partitioning.field, found.clustering_fields) == ("game_date", ["player_lookup"])

    again = lab.inside(*CREATE, **at_bigquery)

    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" was there already, as the job declares it\n") == 3
    assert "the table of publications, in the tool's dataset: there already\n" in again.stdout
    assert "was made" not in again.stdout
    assert contents(emulator) == tables


def test_one_job_makes_its_own_target_and_no_other(lab: Lab, emulator: Emulator, at_bigquery: dict[str, str]) -> None:
    assert lab.inside(*CREATE, "--job", "probe", **at_bigquery).returncode == 0
    assert contents(emulator) == {"backfill": ["publications"], "probe": ["probe"]}


def test_targets_that_are_not_as_declared_are_all_named_and_nothing_is_made(
    lab: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    lab.summary(DAY, players(3))
    lab.opened([DAY])
    other = TYPES | {"pace_score": "STRING", "more": "INT64"}
    del other["has_warnings"]
    bigquery_warehouse.create_table(TableName.parse(TARGET), other, "game_date")
    probe = {"name": "STRING", "day": "DATE", "on": "DATE", "value": "FLOAT64", "source": "STRING"}
    bigquery_warehouse.create_table(TableName.parse("probe.probe"), probe, "on")
    before = contents(emulator)

    refused = lab.inside(*CREATE, **at_bigquery)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    for difference in (
        f"{TARGET} is not as job {JOB.name} declares it",
        "lacks the column(s) has_warnings",
        "column pace_score is STRING, not FLOAT64",
        "has the column(s) more, which the job does not write",
        "probe.probe is not as job probe declares it: it has no date column day: it is partitioned by on",
    ):
        assert difference in refused.stderr
    assert refused.stdout == ""
    assert contents(emulator) == before


def test_a_target_without_partitions_is_not_as_declared(
    lab: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    client = emulator.client()
    client.create_dataset("probe")
    columns = "name STRING, day DATE, value FLOAT64, source STRING"
    client.query(f"CREATE TABLE probe.probe ({columns})").result()

    refused = lab.inside(*CREATE, "--job", "probe", **at_bigquery)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "it is not partitioned" in refused.stderr


def test_a_run_publishes_into_a_table_that_was_made_so(
    lab: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    assert lab.inside(*CREATE, "--job", "probe", **at_bigquery).returncode == 0
    lab.context = replace(lab.context, warehouse=bigquery_warehouse)
    for table in ("expected", "first"):
        lab.probe(table, DAY, players(10))

    ran = lab.inside("run", "--job", "probe", "--dates", str(DAY), "--sequential", **at_bigquery)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    client = emulator.client()
    assert client.get_table(f"{PROJECT}.probe.probe").clustering_fields == ["name"]
    assert next(iter(client.query("SELECT COUNT(*) FROM probe.probe").result()))[0] == 10


def test_a_local_table_has_its_schema_before_its_first_partition(lab: Lab) -> None:
    said = lab.inside(*CREATE, *ONE)

    assert (said.returncode, said.stderr) == (0, "")
    assert f"{TARGET} was made, partitioned by game_date" in said.stdout
    info = lab.context.warehouse.describe(TableName.parse(TARGET))
    assert info is not None
    assert (dict(info.columns), info.partitioned_by) == (TYPES, "game_date")
    assert "was there already, as the job declares it" in lab.inside(*CREATE, *ONE).stdout


def test_the_columns_that_are_added_are_named(lab: Lab) -> None:
    lab.load("probe.probe", DAY, [{"name": "a"}], {"name": "STRING", "day": "DATE"})
    add = (*CREATE, "--job", "probe", "--add-columns")
    said = lab.inside(*add)
    assert (said.returncode, said.stderr) == (0, "")
    columns = "the column(s) value FLOAT64, source STRING"
    assert f"probe: probe.probe was there already, and got {columns}\n" in said.stdout
    assert "probe: probe.probe was there already, as the job declares it\n" in lab.inside(*add).stdout


def test_a_schema_is_read_again_from_the_partitions(lab: Lab) -> None:
    lab.load("shop.sales", DAY, [{"name": "a"}], {"name": "STRING", "game_date": "DATE"})
    part = lab.home / "warehouse" / "shop" / "sales" / f"game_date={DAY}" / "part.parquet"
    rows = pq.ParquetFile(part).read()
    pq.write_table(rows.append_column("extra", pa.array([1])), part)

    refreshed = lab.inside("tables", "refresh", "shop.sales")

    assert (refreshed.returncode, refreshed.stderr) == (0, "")
    assert refreshed.stdout == "shop.sales: name STRING, game_date DATE, extra INT64\n"
    absent = lab.inside("tables", "refresh", "shop.nothing")
    assert (absent.returncode, absent.stderr.splitlines()) == (
        2,
        ["backfill: shop.nothing: no such table in the warehouse"],
    )


def test_bigquery_keeps_the_schemas_of_its_tables_itself(
    lab: Lab, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    bigquery_warehouse.create_table(TableName.parse(TARGET), TYPES, "game_date")
    said = lab.inside("tables", "refresh", TARGET, **at_bigquery)
    assert (said.returncode, said.stdout) == (0, f"{TARGET}: the warehouse keeps its schema itself: nothing to do\n")


def test_a_local_table_is_compared_too(lab: Lab) -> None:
    names = {"name": "STRING", "day": "DATE", "value": "FLOAT64", "source": "STRING"}
    lab.load("probe.probe", DAY, [{"name": "a"}], names)
    assert "was there already, as the job declares it" in lab.inside(*CREATE, "--job", "probe").stdout
    lab.load("probe.probe_in_a_hurry", DAY, [{"name": "a"}], names | {"value": "INT64"})

    refused = lab.inside(*CREATE)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "column value is INT64, not FLOAT64" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["tables", "create", "--job", "nobody"], id="unknown-job"),
        pytest.param(["tables", "create", "--what"], id="unknown-option"),
        pytest.param(["tables", "drop"], id="unknown-command"),
        pytest.param(["tables"], id="no-command"),
    ],
)
def test_bad_usage_is_refused(lab: Lab, arguments: list[str]) -> None:
    refused = lab.inside(*arguments)

    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
