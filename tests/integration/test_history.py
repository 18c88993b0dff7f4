"""History as its user meets it, and the warehouse's table of it."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.history.metadata import COLUMNS, write_metadata
from gated_backfill.common.ledger import Ledger, Run, RunState, open_ledger
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import today
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from tests.builders import FEB_23, FEB_24, FEB_25, at_once, checkpointed_date, queued_run
from tests.lab import Lab, players

FIRST = date(2023, 2, 1)
LOW, FELL, FAILED, EMPTY, ACCEPTED = (FIRST + timedelta(days=n) for n in range(1, 6))
STATES = ("blocked", "held", "failed")
TABLE = "backfill.backfill_metadata"


@pytest.fixture
def eventful(lab: Lab) -> Lab:
    """Runs in which dates were complete, accepted, forced, blocked, failed, skipped and taken from a fallback."""
    days = [FIRST + timedelta(days=n) for n in range(12)]
    present = dict.fromkeys(days, 20) | {LOW: 5, FELL: 0, EMPTY: 0, ACCEPTED: 18}
    fallback = dict.fromkeys(days, 1) | {FELL: 20, EMPTY: 0}
    for day in days:
        lab.probe("expected", day, players(20) if day != EMPTY else [])
        lab.probe("first", day, players(present[day]), trick="raise" if day == FAILED else None)
        lab.probe("second", day, players(fallback[day]))
    lab.run(days, "probe")
    lab.run([LOW], "probe", because="it can't be had")
    return lab


def facts_of(lab: Lab) -> list[dict[str, Any]]:
    """The dates of every run, read with nothing of ours."""
    joined = "SELECT d.*, r.state AS run_state FROM run_dates d JOIN runs r ON r.id = d.run_id"
    with closing(sqlite3.connect(lab.home / "ledger.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(joined)]


def test_the_numbers_equal_a_recount_from_the_ledger(eventful: Lab) -> None:
    report = json.loads(eventful.inside("history", "--json").stdout)

    rows = facts_of(eventful)
    assert [(run_report["run"], run_report["dates"]) for run_report in report["runs"]] == [
        (run.id, len([row for row in rows if row["run_id"] == run.id]))
        for run in eventful.ledger.runs.list_latest_runs()
    ]
    for figures, of in [(report["totals"], rows)] + [
        (run_report, [row for row in rows if row["run_id"] == run_report["run"]]) for run_report in report["runs"]
    ]:
        done = [row for row in of if row["state"] == "checkpointed"]
        judged = [row for row in of if row["state"] in ("checkpointed", "blocked") and row["expected"]]
        shares = [row["matched"] / row["expected"] for row in judged]
        fell = [row for row in done if row["source"] != next(iter(json.loads(row["found"])))]
        seconds = [row["seconds"] for row in of if row["seconds"] is not None]
        assert figures["dates"] == len(of)
        for verdict in ("complete", "accepted", "forced"):
            assert figures[verdict] == len([row for row in done if row["verdict"] == verdict])
        for state in ("blocked", "failed", "skipped"):
            assert figures[state] == len([row for row in of if row["state"] == state])
        assert figures["coverage"] == {"dates": len(shares), "min": min(shares), "median": median(shares)}
        assert (figures["fallbacks"], figures["fallback_rate"]) == (len(fell), len(fell) / len(done))
        assert (figures["seconds_median"], figures["seconds_max"]) == (median(seconds), max(seconds))
    once = ("accepted", "forced", "blocked", "failed", "skipped", "fallbacks")
    assert {name: report["totals"][name] for name in once} == dict.fromkeys(once, 1)
    assert report["ended_per_day"][str(today())] == len(rows)
    assert (report["before"], report["trend"]) == (None, None)


def test_the_report_says_what_happened_and_marks_what_was_undone(eventful: Lab) -> None:
    forced, first = eventful.ledger.runs.list_latest_runs()
    assert eventful.inside("undo", forced.id, "--yes").returncode == 0

    said = eventful.inside("history", "--job", "probe").stdout

    assert "9 complete, 1 accepted, 1 forced, 1 blocked, 1 failed, 1 skipped" not in said  # FELL is among the complete
    assert "8 complete, 1 accepted, 1 forced, 1 blocked, 1 failed, 1 skipped" in said
    assert "no runs in the 30 days before: there is no trend" in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("2")}
    assert "succeeded undone" in lines[forced.id]
    assert "undone" not in lines[first.id]


def test_the_state_now_comes_first_and_does_not_count_what_was_completed_since(eventful: Lab) -> None:
    first = eventful.ledger.runs.list_latest_runs()[1]
    eventful.ledger.heartbeats.register("gate:1", worker="gate:1", name="gate@here", queues=["gate"])
    report = json.loads(eventful.inside("history", "--json").stdout)

    assert next(iter(report)) == "now"
    (probe,) = report["now"]["jobs"]
    assert (probe["blocked"], probe["failed"], probe["held"], probe["checkpointed"]) == (0, 1, 0, 10)
    assert (probe["newest"], probe["rebuilds"]) == (str(FIRST + timedelta(days=11)), dict.fromkeys(STATES, 0))
    (failed,) = probe["outstanding"]
    assert (failed["day"], failed["run"], failed["state"]) == (str(FAILED), first.id, "failed")
    assert report["now"]["workers"] == ["gate@here"]
    assert {queue for queue, n in report["now"]["queue_consumers"].items() if n} == {"gate"}
    assert (report["totals"]["blocked"], report["totals"]["failed"]) == (1, 1)

    said = eventful.inside("history").stdout.splitlines()
    assert said[0] == "Now"
    assert said[2].split() == ["probe", "1", "failed", "0", "0", "0", "10", str(FIRST + timedelta(days=11))]
    assert said[3] == f"  failed   probe: {FAILED}"
    assert said[4].startswith("  workers   1 living; none takes tasks from backfill, ")
    assert said[6].startswith("History of all jobs")

    eventful.probe("first", FAILED, players(20))
    eventful.run([FAILED], "probe")
    for arguments in ((), ("--job", "probe"), ("--days", "1")):
        report = json.loads(eventful.inside("history", "--json", *arguments).stdout)
        assert [(one["failed"], one["outstanding"]) for one in report["now"]["jobs"]] == [(0, [])]
        assert report["totals"]["failed"] == 1
    assert json.loads(eventful.inside("history", "--json", "--job", "nobody's").stdout)["now"]["jobs"] == []


def test_a_period_without_runs_says_so_and_a_later_one_has_its_trend(eventful: Lab) -> None:
    eventful.change_ledger("DROP TRIGGER runs_keep_update")  # the tool itself can't make a week pass
    for column in ("created_at", "finished_at"):
        eventful.change_ledger(f"UPDATE runs SET {column} = datetime({column}, '-7 days')")

    without_runs = eventful.inside("history", "--days", "7").stdout
    assert "no run ended or was opened in these days; 2 in the 7 days before" in without_runs
    eventful.run([FIRST + timedelta(days=20)], "probe")
    report = json.loads(eventful.inside("history", "--days", "7", "--json").stdout)
    assert (report["totals"]["runs"], report["before"]["runs"], report["trend"]["blocked"]) == (1, 2, -1)
    of_nobody = eventful.inside("history", "--job", "nobody's").stdout
    assert "no run ended or was opened in these days, nor in those before" in of_nobody


def test_the_csv_has_a_line_for_every_date_of_every_run(eventful: Lab) -> None:
    file = eventful.home / "history.csv"
    printed = eventful.inside("history", "--csv", "-").stdout
    assert eventful.inside("history", "--csv", str(file)).returncode == 0
    assert file.read_text() == printed

    lines = list(csv.DictReader(io.StringIO(printed)))
    rows = {(row["run_id"], row["day"]): row for row in facts_of(eventful)}
    assert {(line["run_id"], line["day"]) for line in lines} == set(rows)
    assert list(lines[0]) == list(COLUMNS)
    for line in lines:
        row = rows[line["run_id"], line["day"]]
        assert (line["state"], line["reason"]) == (row["state"], row["reason"] or "")
        assert (line["expected"], line["matched"]) == tuple(
            "" if row[name] is None else str(row[name]) for name in ("expected", "matched")
        )


def test_what_can_t_be_done_is_refused_in_one_line(lab: Lab) -> None:
    for arguments, says in (
        (["--json", "--csv", "-"], "both print"),
        (["--csv", "x" * 300], "can't be written: File name too long"),
        (["--html", "nowhere/page.html"], "there is no folder nowhere"),
        (["--write-metadata", "--job", "probe"], "leave out --job"),
    ):
        refused = lab.inside("history", *arguments)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert says in refused.stderr


def test_ten_years_of_dates_are_still_one_page_of_a_few_megabytes(lab: Lab) -> None:
    days = [date(2013, 1, 1) + timedelta(days=n) for n in range(3650)]
    run = queued_run(lab.ledger, days, job="probe", window=5000)
    facts = "expected=187, matched=187, source='first', found='{\"first\": 187}', seconds=0.04, rows=187"
    done = f"state='checkpointed', verdict='complete', reason='187 of 187 expected entities (100.0 %)', {facts}"
    with closing(sqlite3.connect(lab.home / "ledger.db")) as connection, connection:
        connection.execute(f"UPDATE run_dates SET {done}, source_reason='primary at 100.0 %'")
    assert lab.ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.SUCCEEDED)
    file = lab.home / "history.html"

    assert lab.inside("history", "--html", str(file)).returncode == 0

    assert file.read_text().count("data-d=") == len(days)
    assert file.stat().st_size < 3_000_000


# -- the table in the warehouse -----------------------------------------------------------------------------------


def ended_run(ledger: Ledger, day: date) -> Run:
    run = queued_run(ledger, [day])
    checkpointed_date(ledger, run, day)
    assert ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.SUCCEEDED)
    return ledger.runs.get_run(run.id)


def test_an_ended_run_s_rows_are_in_the_warehouse_once_however_often_they_are_written(any_lab: Lab) -> None:
    context = any_lab.context
    first, second = ended_run(context.ledger, FEB_23), ended_run(context.ledger, FEB_24)

    for run in (first, second, first):
        said = write_metadata(context.ledger, context.warehouse, context.settings, run.id)

    assert said == f"{TABLE}: 2 row(s) of 2 run(s) that ended on {today()}"
    rows = sorted(any_lab.published(TABLE, today(), "run_ended_on"), key=lambda row: row["day"])
    assert [(row["run_id"], row["day"]) for row in rows] == [(first.id, FEB_23), (second.id, FEB_24)]
    assert list(rows[0]) == list(COLUMNS)
    assert (rows[0]["outcome"], rows[0]["matched"], rows[0]["coverage"]) == ("complete", 187, 1.0)
    assert rows[0]["run_finished_at"] == first.finished_at
    described = context.warehouse.describe(TableName.parse(TABLE))
    assert described is not None
    assert (dict(described.columns), described.partitioned_by) == (dict(COLUMNS), "run_ended_on")


def test_rows_of_a_ledger_that_is_gone_are_kept(any_lab: Lab) -> None:
    context = any_lab.context
    lost, known = ended_run(context.ledger, FEB_23), ended_run(context.ledger, FEB_24)
    write_metadata(context.ledger, context.warehouse, context.settings, lost.id)
    before = sorted(any_lab.published(TABLE, today(), "run_ended_on"), key=lambda row: row["day"])
    other = open_ledger(f"sqlite:///{any_lab.home.parent / 'other.db'}")
    newest = ended_run(other, FEB_25)

    for _ in range(2):
        write_metadata(other, context.warehouse, context.settings, newest.id)

    rows = sorted(any_lab.published(TABLE, today(), "run_ended_on"), key=lambda row: row["day"])
    assert [row["run_id"] for row in rows] == [lost.id, known.id, newest.id]
    assert rows[:2] == before
    other.close()


class OvertakenWarehouse(LocalWarehouse):
    """Somebody else's whole write takes place between this one's reading of the ledger and its load."""

    def __init__(self, root: Path, overtake: Any) -> None:
        super().__init__(root)
        self._overtake = [overtake]

    def load(self, table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> list[date]:
        while self._overtake:
            self._overtake.pop()()
        return super().load(table, date_column, rows)


def test_a_writer_that_was_overtaken_takes_no_rows_away(lab: Lab) -> None:
    context = lab.context
    first = ended_run(context.ledger, FEB_23)
    root = lab.home / "warehouse"

    def overtake() -> None:
        second = ended_run(context.ledger, FEB_24)
        write_metadata(context.ledger, context.warehouse, context.settings, second.id)

    write_metadata(context.ledger, OvertakenWarehouse(root, overtake), context.settings, first.id)

    assert {row["day"] for row in lab.published(TABLE, today(), "run_ended_on")} == {FEB_23, FEB_24}


def test_of_runs_that_end_at_once_no_row_is_lost(lab: Lab) -> None:
    context = lab.context
    days = [FIRST + timedelta(days=n) for n in range(6)]

    def end_and_write(number: int) -> str:
        run, warehouse = ended_run(context.ledger, days[number]), LocalWarehouse(lab.home / "warehouse")
        return write_metadata(context.ledger, warehouse, context.settings, run.id)

    at_once(len(days), end_and_write)

    assert sorted(row["day"] for row in lab.published(TABLE, today(), "run_ended_on")) == days


def test_the_table_can_be_named_and_switched_off(lab: Lab) -> None:
    context, run = lab.context, ended_run(lab.ledger, FEB_25)
    off = Settings(home=lab.home, metadata_table="none")
    elsewhere = Settings(home=lab.home, metadata_table="ops.history")

    assert "BACKFILL_METADATA_TABLE is none" in write_metadata(context.ledger, context.warehouse, off, run.id)
    assert context.warehouse.describe(TableName.parse(TABLE)) is None
    write_metadata(context.ledger, context.warehouse, elsewhere, run.id)
    assert len(lab.published("ops.history", today(), "run_ended_on")) == 1
    refused = lab.inside("history", BACKFILL_METADATA_TABLE="no table")
    assert refused.returncode == 2
    assert "BACKFILL_METADATA_TABLE" in refused.stderr


def test_a_run_that_goes_on_has_no_rows_yet(lab: Lab) -> None:
    run = queued_run(lab.ledger, [FEB_23])

    with pytest.raises(UserError, match="its history is written at its end"):
        write_metadata(lab.ledger, lab.context.warehouse, lab.context.settings, run.id)


def test_the_command_writes_the_table_anew_for_the_days_asked_for(lab: Lab) -> None:
    ended_run(lab.ledger, FEB_23)
    ended_run(lab.ledger, FEB_24)

    said = lab.inside("history", "--write-metadata")

    assert said.returncode == 0
    assert f"{TABLE}: 2 row(s) of 2 run(s)" in said.stderr
    assert len(lab.published(TABLE, today(), "run_ended_on")) == 2
