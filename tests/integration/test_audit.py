"""What was written behind the tool's back is found, told, and repaired by a run of just those dates."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gated_backfill.common.audit.audit import audit_dates, record_audit
from gated_backfill.common.audit.findings import AuditFinding, AuditResult
from gated_backfill.common.errors import SchemaMismatch, TableNotFound, UserError
from gated_backfill.common.ledger import NewFlag, RunState
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.dates import days_in
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import today, utcnow
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.cli.main import app
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance.audit import AuditFailed, audit_recent
from tests.lab import Lab, players

TODAY = today()
YESTERDAY = TODAY - timedelta(days=1)
DAYS = [YESTERDAY - timedelta(days=n) for n in (4, 3, 2, 1, 0)]
TARGET = "probe.probe"
PROBE_COLUMNS = {"name": "STRING", "day": "DATE", "value": "FLOAT64", "source": "STRING"}
COVERAGE = ("coverage", "--job", "probe")


def expect(lab: Lab, *days: date, count: int = 20) -> None:
    """So many are expected on each of the days, and the first source has them."""
    lab.probe_all(days, players(count))


def write(lab: Lab, day: date, names: int | Sequence[str]) -> None:
    """Rows of the target that no run wrote: of these names, or of so many players."""
    listed = players(names) if isinstance(names, int) else names
    lab.load(TARGET, day, [{"name": name} for name in listed], PROBE_COLUMNS)


def part_of(lab: Lab, table: str, day: date) -> Path:
    """The file of a date of a table in the dataset `probe`."""
    return lab.home / "warehouse" / "probe" / table / f"day={day}" / "part.parquet"


def flagged_dates(lab: Lab, job: str = "probe") -> list[date]:
    return list(lab.ledger.flags.list_open_flags(job))


def audit(lab: Lab, *days: date, job: str = "probe") -> AuditResult:
    return audit_dates(find_job(job), days, lab.context.warehouse, lab.ledger)


def findings(lab: Lab, *days: date) -> dict[date, AuditFinding]:
    return {one.day: one.finding for one in audit(lab, *days).dates}


def audited(deps: Deps) -> str:
    """What beat's audit says, on the day that these tests began."""
    return audit_recent(deps, on=TODAY)


def alerts(lab: Lab) -> list[dict[str, Any]]:
    """What audits had written down to be told, oldest first, read with nothing of ours."""
    with closing(sqlite3.connect(lab.home / "ledger.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM alerts WHERE kind = 'audit' ORDER BY created_at")
        return [dict(row) for row in rows]


def coverage(lab: Lab, *arguments: str) -> tuple[int, dict[str, Any]]:
    ran = lab.invoke(*COVERAGE, *arguments, "--json")
    assert not ran.stderr, ran.stderr
    return ran.exit_code, json.loads(ran.stdout)


def test_186_deleted_rows_are_found_told_and_repaired(any_lab: Lab) -> None:
    lab, day = any_lab, YESTERDAY
    expect(lab, day, count=187)
    run = lab.run([day], "probe").run
    whole = lab.published(TARGET, day, "day")
    assert "1 complete; 0 newly flagged" in audited(lab.opened_again())
    assert alerts(lab) == []

    lab.keep_only(TARGET, day, "name", "player042", "day")
    outcome = audited(lab.opened_again())

    assert "probe: 1 incomplete; 1 newly flagged" in outcome
    flag = lab.ledger.flags.list_open_flags("probe")[day]
    assert (flag.finding, flag.expected, flag.matched) == ("incomplete", 187, 1)
    (alert,) = alerts(lab)
    assert (alert["kind"], alert["job"], alert["state"]) == ("audit", "probe", "pending")
    assert f"{day} incomplete 1/187 (0.5 %), missing 186: player000, player001" in alert["body"]
    assert "backfill run --job probe --flagged" in alert["body"]
    code, report = coverage(lab, "--dates", str(YESTERDAY))
    (row,) = report["dates"]
    assert (code, row["finding"], row["matched"], row["changed"]) == (3, "incomplete", 1, True)
    assert (row["written_by"], row["checkpoint"]) == ("not by a run", run.id)
    assert row["missing"] == [f"player{n:03}" for n in range(187) if n != 42]

    repaired = lab.invoke("run", "--job", "probe", "--flagged", "--sequential")

    assert repaired.exit_code == 0, repaired.output
    assert sorted(map(str, lab.published(TARGET, day, "day"))) == sorted(map(str, whole))
    assert flagged_dates(lab) == []
    code, report = coverage(lab, "--dates", str(YESTERDAY))
    assert (code, report["fine"], report["counts"]["complete"]) == (0, True, 1)
    assert "probe: 1 complete; 0 newly flagged" in audited(lab.opened_again())
    assert len(alerts(lab)) == 1


def test_what_nobody_proved_what_came_late_and_what_is_missing_are_found(lab: Lab) -> None:
    by_hand, partly_by_hand, late, missing, changed = DAYS
    expect(lab, *DAYS)
    lab.run([late, changed], "probe")
    write(lab, by_hand, 20)
    write(lab, partly_by_hand, 17)
    expect(lab, late, count=30)
    write(lab, changed, 20)

    result = audit(lab, *DAYS)

    assert {audited_date.day: audited_date.finding for audited_date in result.dates} == {
        by_hand: AuditFinding.COMPLETE,
        partly_by_hand: AuditFinding.INCOMPLETE,
        late: AuditFinding.INCOMPLETE,
        missing: AuditFinding.MISSING,
        changed: AuditFinding.CHANGED,
    }
    whole, partial, grown, nothing, _ = result.dates
    assert (whole.written_by, partial.written_by, nothing.written_by) == ("not by a run", "not by a run", "-")
    assert grown.written_by.startswith("run ")
    assert partial.missing == tuple(players(20)[17:])
    assert grown.describe_missing() == f"missing 10: {', '.join(players(30)[20:])}"
    assert (nothing.missing_count, len(nothing.missing)) == (20, 12)
    record_audit(result, lab.ledger, "a test")
    lab.run(flagged_dates(lab), "probe", reprocess=Reprocess.ALL)
    assert flagged_dates(lab) == []
    assert set(findings(lab, *DAYS).values()) == {AuditFinding.COMPLETE}


def test_a_target_that_does_not_exist_holds_nothing_and_rows_that_are_there_twice_are_found(any_lab: Lab) -> None:
    expect(any_lab, DAYS[0])
    result = audit(any_lab, *DAYS[:2])
    assert [audited_date.finding for audited_date in result.dates] == [AuditFinding.MISSING, AuditFinding.SKIPPED]
    assert result.notes == (f"target {TARGET} does not exist: no date has published rows",)
    assert not result.is_fine

    write(any_lab, DAYS[0], [*players(20), "player003", "player004", "player004"])
    expect(any_lab, DAYS[1])
    write(any_lab, DAYS[1], 17)
    twice, partial = audit(any_lab, *DAYS[:2]).dates
    assert twice.finding is AuditFinding.DUPLICATED
    assert (twice.observed.duplicates, twice.observed.rows, twice.observed.matched) == (2, 23, 20)
    assert (partial.finding, partial.missing) == (AuditFinding.INCOMPLETE, tuple(players(20)[17:]))


def test_rows_that_the_gate_would_block_are_invalid_until_a_run_replaces_them(any_lab: Lab) -> None:
    lab, (nulls, low, infinite, null_keys, fine) = any_lab, DAYS
    types: Any = PROBE_COLUMNS
    expect(lab, *DAYS)
    names = players(20)
    rows: dict[date, list[dict[str, Any]]] = {
        day: [{"name": name, "value": 1.0, "source": "x"} for name in names] for day in DAYS
    }
    rows[nulls][3]["source"] = rows[nulls][4]["source"] = None
    rows[low][0]["value"] = -5.0
    rows[infinite][0]["value"] = math.inf
    rows[null_keys].append({"name": None, "value": 1.0, "source": "x"})
    for day in DAYS:
        table = pa.Table.from_pylist([{**row, "day": day} for row in rows[day]], schema=arrow_schema(types))
        lab.context.warehouse.load(TableName.parse(TARGET), "day", table)

    reasons = {one.day: one.reason.split(";")[0] for one in audit(lab, *DAYS).dates}

    assert reasons == {
        nulls: "output schema: source fails not_nullable in 2 row(s), e.g. <NA>",
        low: "output schema: value fails greater_than_or_equal_to(0) in 1 row(s), e.g. -5.0",
        infinite: "output schema: value fails is_finite in 1 row(s), e.g. inf",
        null_keys: "1 row(s) with a null key",
        fine: "20 of 20 expected entities (100.0 %)",
    }
    assert findings(lab, *DAYS) == dict.fromkeys(DAYS[:4], AuditFinding.INVALID) | {fine: AuditFinding.COMPLETE}
    record_audit(audit(lab, *DAYS), lab.ledger, "a test")
    assert flagged_dates(lab) == DAYS[:4]
    lab.invoke("run", "--job", "probe", "--flagged", "--sequential")
    assert set(findings(lab, *DAYS).values()) == {AuditFinding.COMPLETE}
    assert flagged_dates(lab) == []


def test_rules_of_a_column_that_the_target_lacks_are_reported_as_unchecked(any_lab: Lab) -> None:
    expect(any_lab, YESTERDAY)
    types = {name: kind for name, kind in PROBE_COLUMNS.items() if name != "source"}
    any_lab.load(TARGET, YESTERDAY, [{"name": name, "value": 1.0} for name in players(20)], types)

    result = audit(any_lab, YESTERDAY)

    assert result.is_fine
    assert result.notes == (
        f"target {TARGET} does not have the column(s) source as the job declares them: their nulls and bounds were not "
        "checked",
    )


# -- on files only ------------------------------------------------------------------------------------------------


def test_strangers_do_not_stand_in_for_who_is_missing(lab: Lab) -> None:
    expect(lab, YESTERDAY)
    write(lab, YESTERDAY, players(20, "stranger"))
    (audited_date,) = audit(lab, YESTERDAY).dates
    assert audited_date.finding is AuditFinding.INCOMPLETE
    assert (audited_date.observed.matched, audited_date.observed.rows) == (0, 20)


def test_a_forced_date_is_listed_and_not_flagged_until_its_rows_change(lab: Lab) -> None:
    lab.probe_all([YESTERDAY], players(20), first=players(5))
    run = lab.run([YESTERDAY], "probe", because="the league lost the box scores").run

    listed = lab.invoke(*COVERAGE, "--dates", str(YESTERDAY), "--flag-incomplete")

    assert (listed.exit_code, flagged_dates(lab)) == (0, [])
    assert f"forced by run {run.id}, rows unchanged since; now 5 of 20" in listed.stdout.replace("\n", " ")
    assert "flagged: 0 date(s)" in listed.stdout
    write(lab, YESTERDAY, 4)
    code, report = coverage(lab, "--dates", str(YESTERDAY), "--flag-incomplete")
    (row,) = report["dates"]
    assert (code, row["finding"], row["forced"], row["changed"]) == (3, "incomplete", True, True)
    assert report["flagged"] == [str(YESTERDAY)]


def test_the_calendar_and_the_skip_rule_are_heeded(lab: Lab) -> None:
    game, half, nobody, no_game = (date(2023, 2, n) for n in (1, 2, 3, 4))
    bootstrap = date(2022, 10, 20)
    for day in (game, half, nobody, bootstrap):
        lab.schedule(day, games=1)
    lab.summary(game, players(20))
    lab.summary(half, players(8))
    lab.summary(bootstrap, players(20))
    found = audit(lab, game, half, nobody, no_game, bootstrap, job="player_composite_factors")
    assert {one.day: (one.finding, one.needs_flag) for one in found.dates} == {
        game: (AuditFinding.MISSING, True),
        half: (AuditFinding.EXPECTATION_INCOMPLETE, False),
        nobody: (AuditFinding.EXPECTATION_INCOMPLETE, False),
        no_game: (AuditFinding.SKIPPED, False),
        bootstrap: (AuditFinding.SKIPPED, False),
    }
    lab.drop("nba_reference.schedule")
    noted = audit(lab, nobody, job="player_composite_factors")
    assert any("nba_reference.schedule does not exist" in note for note in noted.notes)


def test_dates_that_a_run_holds_are_not_judged(lab: Lab) -> None:
    expect(lab, *DAYS[:2])
    run, deps, dispatcher = lab.opened(DAYS[:1], "probe")
    code, report = coverage(lab, "--dates", f"{DAYS[0]},{DAYS[1]}", "--flag-incomplete")
    assert [one["finding"] for one in report["dates"]] == ["in progress", "missing"]
    assert run.id in report["dates"][0]["reason"]
    assert (code, report["flagged"]) == (3, [str(DAYS[1])])
    dispatcher.drain(deps, lambda: None)
    assert lab.ledger.runs.get_run(run.id).state is RunState.SUCCEEDED
    assert findings(lab, DAYS[0]) == {DAYS[0]: AuditFinding.COMPLETE}


class Meanwhile:
    """A warehouse in which something happens just before it is asked what it holds."""

    def __init__(self, warehouse: Warehouse, happens: Callable[[], object]) -> None:
        self._warehouse, self._happens = warehouse, happens

    def __getattr__(self, name: str) -> Any:
        if name == "matching_dates":
            self._happens()
        return getattr(self._warehouse, name)


def test_a_run_that_begins_and_ends_during_an_audit_is_not_taken_for_somebody_elses_writing(lab: Lab) -> None:
    expect(lab, YESTERDAY)
    lab.run([YESTERDAY], "probe")
    expect(lab, YESTERDAY, count=21)
    warehouse = Meanwhile(lab.context.warehouse, lambda: lab.run([YESTERDAY], "probe", reprocess=Reprocess.ALL))
    (found,) = audit_dates(find_job("probe"), [YESTERDAY], warehouse, lab.ledger).dates
    assert found.finding is AuditFinding.IN_PROGRESS
    assert findings(lab, YESTERDAY) == {YESTERDAY: AuditFinding.COMPLETE}


def test_more_dates_than_one_query_reads_are_audited_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_backfill.common.audit.audit.DATES_AT_ONCE", 2)
    expect(lab, *DAYS)
    lab.run(DAYS[:4], "probe")
    write(lab, DAYS[1], 3)
    by_date = findings(lab, *reversed(DAYS))
    assert list(by_date) == DAYS
    assert [finding.value for finding in by_date.values()] == [
        "complete", "incomplete", "complete", "complete", "missing",
    ]  # fmt: skip


def test_published_rows_are_read_a_limited_number_of_days_at_a_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [TODAY - timedelta(days=n) for n in range(450, 0, -1)]
    built = [days[0], days[200], days[449]]
    expect(lab, *built)
    lab.run(built, "probe")
    write(lab, days[200], [*players(20), "player003"])
    warehouse = lab.context.warehouse
    query, read_days = warehouse.query, list[list[date]]()

    def record_scans(sql: Any, *, scans: Any, params: Any = None) -> pa.Table:
        read_days.extend(days_in(scan.dates) for name, scan in scans.items() if name == "counted")
        return query(sql, scans=scans, params=params)

    monkeypatch.setattr(warehouse, "query", record_scans)
    by_date = findings(lab, *days)
    assert [by_date[day].value for day in built] == ["complete", "duplicated", "complete"]
    assert [len(chunk) for chunk in read_days] == [200, 200, 50]
    assert [day for chunk in read_days for day in chunk] == days


def test_a_date_that_cannot_be_read_in_the_types_of_the_job_is_invalid_and_the_others_are_judged(lab: Lab) -> None:
    whole, text, duplicated, numbers, missing = DAYS
    expect(lab, *DAYS)
    lab.run(DAYS[:4], "probe")
    write(lab, duplicated, [*players(20), "player003"])
    for day, column, values in ((text, "value", ["high"] * 20), (numbers, "source", [2.5] * 20)):
        rows = pq.ParquetFile(part_of(lab, "probe", day)).read()
        pq.write_table(
            rows.set_column(rows.schema.get_field_index(column), column, [values]), part_of(lab, "probe", day)
        )

    result = audit(lab, *DAYS)

    assert {one.day: one.finding for one in result.dates} == {
        whole: AuditFinding.COMPLETE,
        text: AuditFinding.INVALID,
        duplicated: AuditFinding.DUPLICATED,
        numbers: AuditFinding.INVALID,
        missing: AuditFinding.MISSING,
    }
    problem = f"{TARGET}, partition day={text}: column value holds text, the job declares it as FLOAT64"
    unreadable = result.dates[1]
    assert unreadable.reason.startswith(f"output schema: {problem}; 20 of 20 expected entities (100.0 %)")
    assert (unreadable.observed.rows, unreadable.observed.schema_problem) == (20, problem)
    record_audit(result, lab.ledger, "a test")
    assert flagged_dates(lab) == DAYS[1:]
    lab.run(flagged_dates(lab), "probe", reprocess=Reprocess.ALL)
    assert set(findings(lab, *DAYS).values()) == {AuditFinding.COMPLETE}


def test_a_target_that_is_refused_as_a_whole_is_an_error_after_one_query(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(lab, *DAYS)
    queries = list[Any]()

    def refuse(sql: Any, **_: Any) -> pa.Table:
        queries.append(sql)
        raise SchemaMismatch("no column value", table=TARGET)

    lab.run(DAYS, "probe")
    monkeypatch.setattr(lab.context.warehouse, "query", refuse)
    with pytest.raises(SchemaMismatch, match=rf"^{TARGET}: no column value$"):
        audit(lab, *DAYS)
    assert len(queries) == 1


def test_what_can_not_be_read_is_an_error_not_a_finding(lab: Lab) -> None:
    with pytest.raises(TableNotFound, match=r"probe\.expected"):
        audit(lab, YESTERDAY)
    expect(lab, YESTERDAY)
    write(lab, YESTERDAY, 20)
    part = part_of(lab, "probe", YESTERDAY)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(SchemaMismatch, match="not a readable Parquet file"):
        audit(lab, YESTERDAY)


def test_undoing_the_repair_brings_the_flag_back(lab: Lab) -> None:
    expect(lab, YESTERDAY)
    lab.run([YESTERDAY], "probe")
    lab.keep_only(TARGET, YESTERDAY, "name", "player001", "day")
    record_audit(audit(lab, YESTERDAY), lab.ledger, "a test")
    repair = lab.run([YESTERDAY], "probe", reprocess=Reprocess.ALL).run
    assert flagged_dates(lab) == []
    undo_run(plan_undo(repair.id, lab.context), lab.context, "a test")
    assert findings(lab, YESTERDAY) == {YESTERDAY: AuditFinding.INCOMPLETE}
    assert flagged_dates(lab) == [YESTERDAY]


# -- the commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--start-date", "2023-02-23", "--end-date", "2999-01-01"], "is in the future", id="future"),
        pytest.param(["--dates", "2999-01-01"], "is in the future", id="future-date"),
        pytest.param(["--start-date", "2023-02-24", "--end-date", "2023-02-23"], "before the start", id="reversed"),
        pytest.param(["--start-date", "2023-02-23"], "give both --start-date and --end-date", id="no-end"),
        pytest.param([], "give one of", id="no-dates"),
        pytest.param(["--dates", "2023-02-23", "--last-days", "3"], "give one of", id="two-ways"),
        pytest.param(["--last-days", "0"], "--last-days", id="no-day"),
    ],
)
def test_bad_ranges_are_refused(arguments: list[str], says: str) -> None:
    refused = CliRunner().invoke(app, [*COVERAGE, *arguments])
    assert refused.exit_code != 0
    assert refused.stdout == ""
    assert says in f"{refused.exception} {refused.stderr}"


def test_a_future_date_ends_in_one_line_and_changes_nothing(lab: Lab) -> None:
    refused = lab.command(*COVERAGE, "--start-date", "2023-02-23", "--end-date", "2999-01-01", "--flag-incomplete")
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert "is in the future: the last date that can be asked for" in refused.stderr


def test_the_report_counts_lists_what_is_wrong_and_says_what_to_run(lab: Lab) -> None:
    expect(lab, *DAYS[:3])
    lab.run(DAYS[:2], "probe")
    write(lab, DAYS[1], 3)
    span = ("--start-date", str(DAYS[0]), "--end-date", str(DAYS[2]))

    shown = lab.invoke(*COVERAGE, *span)

    assert shown.exit_code == 3
    assert "3 date(s): 1 complete, 1 incomplete, 1 missing" in shown.stdout
    listed = [line.split()[:4] for line in shown.stdout.splitlines() if line.startswith(str(today().year))]
    assert listed == [[str(DAYS[1]), "incomplete", "3/20", "15.0"], [str(DAYS[2]), "missing", "0/20", "0.0"]]
    assert "with --flag-incomplete, then: backfill run --job probe --flagged" in shown.stdout
    assert flagged_dates(lab) == []
    flagged = lab.invoke(*COVERAGE, *span, "--flag-incomplete", "--every-date")
    assert "flagged: 2 date(s)" in flagged.stdout
    assert "next: backfill run --job probe --flagged" in flagged.stdout
    assert str(DAYS[0]) in flagged.stdout.partition("date ")[2]
    assert "flagged  2 date(s)" in lab.invoke("status").stdout


def test_flagged_dates_alone_are_planned_and_built_though_checkpointed(lab: Lab) -> None:
    expect(lab, *DAYS[:3])
    lab.run(DAYS[:3], "probe")
    flags = [NewFlag(day=day, finding="incomplete", reason="1 of 20") for day in DAYS[:2]]
    lab.ledger.flags.flag_dates("probe", flags, "a test")

    planned = json.loads(lab.invoke("plan", "--job", "probe", "--flagged", "--json").stdout)
    assert [(step["day"], step["action"]) for step in planned["steps"]] == [(str(day), "build") for day in DAYS[:2]]
    ran = lab.invoke("run", "--job", "probe", "--flagged", "--exclude", str(DAYS[1]), "--sequential")

    assert ran.exit_code == 0, ran.output
    (row,) = lab.ledger.dates.list_dates(lab.latest_run().id)
    assert (row.day, row.rows) == (DAYS[0], 20)
    assert flagged_dates(lab) == [DAYS[1]]


def test_without_a_flag_there_is_nothing_to_do(lab: Lab) -> None:
    ran = lab.invoke("run", "--job", "probe", "--flagged")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "no date of probe is flagged: nothing to do\n", "")
    assert lab.ledger.runs.list_latest_runs() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--dates", "2023-02-23"], "--flagged selects the dates: give no other option", id="dates"),
        pytest.param(["--start-date", "2023-02-23"], "--flagged selects the dates: give no other option", id="range"),
        pytest.param(["--reprocess", "none"], "--reprocess none", id="none"),
    ],
)
def test_flagged_goes_with_no_other_choice_of_dates(arguments: list[str], says: str) -> None:
    refused = CliRunner().invoke(app, ["run", "--job", "probe", "--flagged", *arguments])
    assert isinstance(refused.exception, UserError)
    assert says in str(refused.exception)


# -- the daily audit ----------------------------------------------------------------------------------------------


def test_only_what_runs_have_dealt_with_is_audited_daily(lab: Lab) -> None:
    expect(lab, *DAYS)
    deps = lab.opened_again()
    assert "probe: never run, not audited" in audited(deps)
    lab.run(DAYS[3:4], "probe")

    outcome = audited(deps)

    assert "probe: 1 complete, 1 missing; 1 newly flagged" in outcome
    assert "player_composite_factors" not in outcome  # the shipped job is left out until it is run
    assert flagged_dates(lab) == [YESTERDAY]
    (alert,) = alerts(lab)
    assert f"{YESTERDAY} missing 0/20 (0.0 %)" in alert["body"]


def test_what_was_told_is_not_told_again_and_what_is_new_is(lab: Lab) -> None:
    expect(lab, *DAYS)
    lab.run(DAYS, "probe")
    deps = lab.opened_again()
    write(lab, DAYS[0], 3)
    audited(deps)
    assert "1 incomplete; 0 newly flagged" in audited(deps)
    assert len(alerts(lab)) == 1
    write(lab, DAYS[1], 3)
    write(lab, DAYS[2], 3)
    assert "2 newly flagged" in audited(deps)
    first, second = alerts(lab)
    assert [f"{day} incomplete" in second["body"] for day in DAYS[:3]] == [False, True, True]
    assert second["title"] == "probe: 2 date(s) need a rebuild"
    assert first["key"] != second["key"]


def test_an_audit_that_died_before_it_flagged_tells_once(lab: Lab) -> None:
    expect(lab, *DAYS)
    lab.run(DAYS, "probe")
    write(lab, DAYS[0], 3)
    deps = lab.opened_again()
    audited(deps)
    lab.ledger.flags.clear_flags("probe", DAYS, "a test")  # as if it had died between the alert and the flags
    audited(deps)
    assert (len(alerts(lab)), flagged_dates(lab)) == (1, [DAYS[0]])


def test_a_flag_is_cleared_when_its_date_is_found_to_be_fine(lab: Lab) -> None:
    expect(lab, YESTERDAY)
    lab.run([YESTERDAY], "probe")
    flag = NewFlag(day=YESTERDAY, finding="missing", reason="of yesterday's")
    lab.ledger.flags.flag_dates("probe", [flag], "a test")
    assert "1 flag(s) cleared" in audited(lab.opened_again())
    assert lab.ledger.flags.list_flags("probe")[YESTERDAY].cleared_by == "audit"


def test_an_expectation_that_is_lost_is_told_once_and_not_flagged(lab: Lab) -> None:
    expect(lab, *DAYS[:2])
    lab.run(DAYS[:2], "probe")
    part_of(lab, "expected", DAYS[1]).unlink()
    deps = lab.opened_again()
    assert "1 expectation incomplete" in audited(deps)
    audited(deps)
    (alert,) = alerts(lab)
    assert "20 were expected when run" in alert["body"]
    assert flagged_dates(lab) == []


def test_a_job_whose_audit_fails_does_not_keep_the_others_from_theirs(lab: Lab) -> None:
    expect(lab, *DAYS)
    lab.run(DAYS, "probe")
    lab.run(DAYS, "probe_in_a_hurry")
    write(lab, YESTERDAY, 3)
    lab.keep_only("probe.probe_in_a_hurry", DAYS[0], "name", "player001", "day")
    part_of(lab, "probe", DAYS[2]).write_bytes(b"no Parquet")

    with pytest.raises(AuditFailed, match=r"1 job\(s\) could not be audited: probe: ") as failed:
        audited(lab.opened_again())

    assert "probe_in_a_hurry: 4 complete, 1 incomplete; 1 newly flagged" in str(failed.value)
    assert flagged_dates(lab) == []
    assert flagged_dates(lab, "probe_in_a_hurry") == [DAYS[0]]


def test_a_job_that_has_run_and_whose_expectation_does_not_exist_is_no_success(lab: Lab) -> None:
    expect(lab, YESTERDAY)
    lab.run([YESTERDAY], "probe")
    lab.drop("probe.expected")
    with pytest.raises(AuditFailed, match=r"probe: TableNotFound: .*probe\.expected"):
        audited(lab.opened_again())


def test_a_date_of_any_age_is_audited_once_after_it_was_built(lab: Lab) -> None:
    old, older = YESTERDAY - timedelta(days=400), YESTERDAY - timedelta(days=800)
    for day in (old, older, YESTERDAY):
        expect(lab, day, count=20)
    lab.run([old, older, YESTERDAY], "probe")
    lab.keep_only(TARGET, old, "name", "player001", "day")

    first = audited(lab.opened_again())
    lab.ledger.maintenance.register_task("audit", utcnow())  # the audit is completed
    second = audited(lab.opened_again())
    lab.run([older], "probe", reprocess=Reprocess.ALL)
    third = audited(lab.opened_again())

    with_two = ", with 2 other date(s) checkpointed since the last audit; 1 newly flagged"
    assert with_two in first
    assert "2 complete" in first
    assert flagged_dates(lab) == [old]
    assert "other date(s)" not in second
    assert ", with 1 other date(s) checkpointed since the last audit" in third
