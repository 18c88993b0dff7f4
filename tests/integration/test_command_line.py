"""The command as its user meets it: what it refuses, what it prints, how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.runs.session import Launch
from tests.lab import PACKAGES, Lab, players

DAY = date(2023, 2, 23)
JOB = ("--job", "player_composite_factors")
TARGET = "nba_precompute.player_composite_factors"


def snapshot(home: Path) -> dict[str, bytes]:
    """Every file below the home but the ledger, which SQLite touches when it is merely opened."""
    kept = (path for path in home.rglob("*") if path.is_file() and not path.name.startswith("ledger.db"))
    return {str(path.relative_to(home)): path.read_bytes() for path in kept}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ["--start-date", "2023-02-24", "--end-date", "2023-02-23"], "before the start date", id="reversed"
        ),
        pytest.param(["--start-date", "2023-02-23", "--end-date", "2999-01-01"], "is in the future", id="future"),
        pytest.param(["--dates", "2999-01-01"], "is in the future", id="future-date"),
        pytest.param(["--dates", "2023-02-30"], "2023-02-30 is not a date on the calendar", id="no-such-date"),
        pytest.param(["--start-date", "yesterday", "--end-date", "2023-02-23"], "YYYY-MM-DD", id="words"),
        pytest.param(["--start-date", "2023-02-23"], "give --start-date and --end-date, --dates, --last", id="no-end"),
        pytest.param([], "give --start-date and --end-date, --dates, --last-days or --yesterday", id="no-dates"),
        pytest.param(["--yesterday", "--last-days", "2"], "give only one of", id="two-daily-ways"),
        pytest.param(["--yesterday", "--flagged"], "--flagged selects the dates", id="flagged-yesterday"),
        pytest.param(["--dates", "2023-02-23", "--yesterday"], "give only one of", id="dates-and-yesterday"),
        pytest.param(["--dates", "2023-02-23", "--start-date", "2023-02-23"], "give only one of", id="both"),
        pytest.param(
            ["--dates", "2023-02-23", "--exclude", "2023-02-23"], "every date asked for is excluded", id="none"
        ),
        pytest.param(["--dates", "2023-02-23", "--force"], "--force needs --reason", id="force-without-reason"),
        pytest.param(
            ["--dates", "2023-02-23", "--force", "--reason", "  "], "--force needs --reason", id="blank-reason"
        ),
        pytest.param(["--dates", "2023-02-23", "--window", "0"], "--window", id="window-of-none"),
        pytest.param(["--dates", "2023-02-23", "--reprocess", "some"], "--reprocess", id="unknown-choice"),
        pytest.param(["--dates", "2023-02-23", "--what"], "--what", id="unknown-option"),
    ],
)
def test_bad_arguments_end_in_one_line_and_change_nothing(lab: Lab, arguments: list[str], says: str) -> None:
    lab.summary(DAY, players(20))
    before = snapshot(lab.home)

    refused = lab.inside("run", *JOB, *arguments)

    assert refused.returncode == 2
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert snapshot(lab.home) == before
    assert lab.ledger.runs.list_latest_runs() == []


DECLARED = """
import sys
from dataclasses import replace
from probe_jobs import PROBE
from gated_backfill import Column
def stop(*arguments):
    class Stop(BaseException):
        pass
    raise Stop("at once")
JOB = replace(PROBE, name="declared", target=replace(PROBE.target, table="probe.declared"))
JOB = replace(JOB, {change})
"""


@pytest.fixture
def declare(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install the job `declared`, which differs from the probe job by this argument."""
    find_job.cache_clear()
    package = tmp_path / "declared_jobs"
    metadata = package / "declared_jobs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: declared-jobs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[backfill.jobs]\ndeclared = declared_jobs:JOB\n")
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.delitem(sys.modules, "declared_jobs", raising=False)
    lab.probe_all([DAY], players(4))

    def write(change: str) -> None:
        (package / "declared_jobs.py").write_text(DECLARED.format(change=change))

    return write


@pytest.mark.parametrize("command", ["plan", "run", "coverage"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ('fallback="fill"', "UserError: job declared: fallback is 'fill': it must be Fallback.REPLACE or "),
        ("version=2", "UserError: job declared: version is 2: it must be text"),
        ('process="x"', "UserError: job declared: process is 'x': it must be a function"),
        ("sources=PROBE.sources[0]", "UserError: job declared: sources is Source(name='first', "),
        ("target=Column(type='DECIMAL')", "UserError: a Column: type is 'DECIMAL': it must be "),
        ("target=Column(type='STRING', ge=0)", "UserError: a Column: ge is 0, but only INT64, FLOAT64 and "),
        ("version=sys.exit(0)", "SystemExit: 0"),
        ("sources=(replace(PROBE.sources[0], name='a+b'),)", "UserError: source a+b: name is 'a+b': it must be "),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_line(
    lab: Lab, declare: Callable[[str], None], command: str, change: str, error: str
) -> None:
    declare(change)
    dates = ("--start-date", str(DAY), "--end-date", str(DAY))

    refused = lab.inside(command, "--job", "declared", *dates)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"job declared is installed but can't be loaded from declared_jobs:JOB, line 11: {error}" in refused.stderr
    assert lab.ledger.runs.list_latest_runs() == []


@pytest.mark.parametrize("command", ["plan", "run", "coverage"])
@pytest.mark.parametrize(
    ("skip", "error"),
    [
        ("lambda day, calendar: calendar.count_on(day)", "raised AttributeError: 'NoneType' object has no attribute"),
        ("stop", "raised Stop: at once"),
        ("lambda day, calendar: sys.exit(0)", "raised SystemExit: 0"),
        ("lambda day, calendar: True", "returned True: it must be the reason to skip the date, or None to build it"),
    ],
)
def test_a_skip_rule_that_fails_is_refused_by_date(
    lab: Lab, declare: Callable[[str], None], command: str, skip: str, error: str
) -> None:
    declare(f"skip={skip}")
    dates = ("--start-date", str(DAY), "--end-date", str(DAY))

    refused = lab.inside(command, "--job", "declared", *dates)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"job declared: skip({DAY}, None) {error}" in refused.stderr


@pytest.mark.parametrize(
    "change", ["process=stop", "sources=(replace(PROBE.sources[0], derive=stop),)"], ids=["process", "derive"]
)
def test_no_error_of_a_job_ends_the_command(lab: Lab, declare: Callable[[str], None], change: str) -> None:
    declare(change)

    ended = lab.inside("run", "--job", "declared", "--dates", str(DAY), "--sequential")

    assert ended.returncode == 3
    assert f"{DAY}  failed  ProcessFailed: Stop: at once" in ended.stdout
    sampled = lab.inside("doctor", "--job", "declared", "--sample", "2")
    assert "the job failed: Stop: at once" in " ".join(sampled.stdout.split())


def test_a_format_of_dates_with_a_part_twice_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("day,name\n01/05/2024,a\n")

    refused = lab.inside("load", "x.t", str(tmp_path / "rows.csv"), "--date-format", "%d/%d/%Y")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--date-format '%d/%d/%Y' gives the same part twice: use %d once" in refused.stderr


def test_an_unknown_job_is_refused_with_the_known_ones(lab: Lab) -> None:
    refused = lab.inside("run", "--job", "os", "--dates", str(DAY))

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "no job named 'os'; installed jobs: player_composite_factors, probe" in refused.stderr


def test_a_missing_expectation_table_is_refused(lab: Lab) -> None:
    for command in ("plan", "run"):
        refused = lab.inside(command, *JOB, "--dates", str(DAY))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert "nba_analytics.player_game_summary: no such table" in refused.stderr


def test_a_table_without_the_date_column_is_refused(lab: Lab) -> None:
    types = {"player_lookup": "STRING", "played": "DATE"}
    lab.load("nba_analytics.player_game_summary", DAY, [{"player_lookup": "a"}], types)

    refused = lab.inside("run", *JOB, "--dates", str(DAY))

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "has no date column game_date" in refused.stderr


def test_a_source_that_lacks_a_column_is_refused_before_anything_starts(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    types = {"player_lookup": "STRING", "game_date": "DATE"}
    lab.load("nba_analytics.upcoming_player_game_context", DAY, [{"player_lookup": "a"}], types)

    refused = lab.inside("run", *JOB, "--dates", str(DAY))

    assert refused.returncode == 2
    assert "upcoming_player_game_context: lacks the column(s) game_id" in refused.stderr


@pytest.mark.parametrize("setting", ["HOME", "WAREHOUSE", "STAGING"])
def test_a_folder_that_can_not_be_written_is_refused(lab: Lab, tmp_path: Path, setting: str) -> None:
    lab.summary(DAY, players(20))
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("not a folder")
    value = {"HOME": f"{in_the_way}/home", "WAREHOUSE": f"local:{in_the_way}/warehouse", "STAGING": f"{in_the_way}/x"}

    refused = lab.command("run", *JOB, "--dates", str(DAY), **{f"BACKFILL_{setting}": value[setting]})

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert in_the_way.read_text() == "not a folder"
    assert lab.published(TARGET, DAY) == []


@pytest.mark.parametrize("command", [["status"], ["history"], ["plan", *JOB, "--dates", str(DAY)], ["up"], ["doctor"]])
@pytest.mark.parametrize("home", ["9" * 300, "/".join(["9" * 200] * 20)], ids=["name", "path"])
def test_a_home_whose_path_is_too_long_is_refused(lab: Lab, command: list[str], home: str) -> None:
    refused = lab.inside(*command, BACKFILL_HOME=str(lab.home / home))

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "too long" in refused.stderr


def test_a_corrupt_ledger_is_refused_and_left_as_it_is(lab: Lab, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.db"
    corrupt.write_bytes(b"this is no database at all" * 100)

    for command in (["status"], ["run", *JOB, "--dates", str(DAY)], ["plan", *JOB, "--dates", str(DAY)]):
        refused = lab.command(*command, BACKFILL_LEDGER=f"sqlite:///{corrupt}")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert "ledger" in refused.stderr
    assert corrupt.read_bytes() == b"this is no database at all" * 100


@pytest.mark.parametrize("name", ["a.b'c", "a.b;DROP TABLE x", "a.b c", "../../etc.passwd", "a.b.c", "a", 'a."b"'])
def test_a_table_name_that_is_no_plain_name_is_refused(lab: Lab, tmp_path: Path, name: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("day,name\n2023-02-23,a\n")

    refused = lab.inside("load", name, str(file))

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert not (lab.home / "warehouse").exists()


def test_a_secret_in_a_wrong_url_is_not_printed(lab: Lab) -> None:
    refused = lab.inside("status", BACKFILL_LEDGER="mysql://user:hunter2@host/db")

    assert refused.returncode == 2
    assert "hunter2" not in refused.stderr + refused.stdout


def test_a_broker_that_does_not_answer_is_refused_without_its_password(lab: Lab) -> None:
    lab.summary(DAY, players(20))

    refused = lab.command("run", *JOB, "--dates", str(DAY), BACKFILL_BROKER="redis://:hunter2@127.0.0.1:1/0")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "does not answer" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert lab.ledger.runs.list_latest_runs() == []


def test_load_and_run_publish_every_date_and_a_second_run_does_nothing(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "summary.csv"
    header = "player_lookup,game_id,game_date,team_abbr,opponent_team_abbr,minutes_played,usage_rate"
    rows = [f"{name},0022,{DAY + timedelta(days=n)},ATL,NYK,30.5,20" for n in range(3) for name in players(20)]
    file.write_text("\n".join([header, *rows]) + "\n")

    loaded = lab.inside("load", "nba_analytics.player_game_summary", str(file))
    assert (loaded.returncode, "60 row(s) on 3 date(s)" in loaded.stdout) == (0, True)
    span = ("--start-date", "2023-02-23", "--end-date", "2023-02-25")
    ran = lab.command("run", *JOB, *span)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "60 of 60 entities (100.0 %)" in ran.stdout
    assert "does not exist, counted as 0 found" in ran.stdout
    assert [row["game_id"] for row in lab.published(TARGET, DAY)] == ["0022"] * 20

    before = lab.table_bytes(TARGET)
    again = lab.inside("run", *JOB, *span)
    assert again.returncode == 0
    assert "nothing to do: all 3 date(s) are checkpointed" in again.stdout
    assert lab.table_bytes(TARGET) == before
    assert len(lab.ledger.runs.list_latest_runs()) == 1


def test_a_home_with_blanks_and_quotes_in_its_relative_path_is_as_good_as_any(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "summary.csv"
    file.write_text(
        "player_lookup,game_id,game_date,team_abbr,opponent_team_abbr,minutes_played,usage_rate\n"
        "a,1,2023-02-23,ATL,NYK,30.5,20\n"
    )
    home = os.path.relpath(tmp_path / "it's a höme; really")

    assert lab.inside("load", "nba_analytics.player_game_summary", str(file), BACKFILL_HOME=home).returncode == 0
    ran = lab.command("run", *JOB, "--dates", str(DAY), BACKFILL_HOME=home)

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_incomplete_dates_exit_with_3_and_status_names_them_and_who_is_missing(lab: Lab) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        lab.probe_all([day], players(20), first=players(20 if day == DAY else 5))

    ran = lab.command("run", "--job", "probe", "--dates", "2023-02-23..2023-02-24", "--no-preflight")
    status = lab.inside("status")

    assert (ran.returncode, status.returncode) == (3, 3)
    assert "backfill retry" in ran.stdout
    assert "2023-02-24  blocked  5 of 20 expected entities (25.0 %), below 90%" in status.stdout
    assert "missing 15: player005, player006" in status.stdout
    left = lab.inside("run", "--job", "probe", "--dates", "2023-02-24", "--reprocess", "none")
    assert (left.returncode, "1 incomplete date(s) were not selected" in left.stdout) == (3, True)
    (blocked,) = [one for one in lab.status()["dates"] if one["state"] == "blocked"]
    assert blocked["missing"] == players(20)[5:]
    assert Path(blocked["quarantined"]).exists()


PROBE_FILE = PACKAGES / "probe_jobs" / "probe_jobs.py"


def probe_line(text: str) -> int:
    """The number of the line of the probe jobs that has the text."""
    return next(n for n, line in enumerate(PROBE_FILE.read_text().splitlines(), 1) if text in line)


def test_a_failed_date_is_shown_with_the_line_of_the_job_that_raised_its_error(lab: Lab) -> None:
    days = [DAY + timedelta(days=n) for n in range(3)]
    raising, in_pandas = probe_line('f"no luck'), probe_line('batch.rows["no such column"]')
    for day, trick, spoil in zip(days, ("raise", "library", None), ("", "", "no frame"), strict=True):
        lab.probe_all([day], players(20), trick=trick, spoil=spoil)

    span = ("--start-date", str(days[0]), "--end-date", str(days[-1]))
    ran = lab.command("run", "--job", "probe", *span, cwd=PROBE_FILE.parent)
    elsewhere = lab.command("status", cwd=lab.home)

    lines = [line.strip() for line in ran.stdout.splitlines() if "raised at" in line]
    assert lines == [f"raised at probe_jobs.py:{raising}", f"raised at probe_jobs.py:{in_pandas}"]
    error = f"{days[0]}  failed  ProcessFailed: RuntimeError: no luck on {days[0]}"
    assert f"{error}\n              raised at {PROBE_FILE}:{raising}\n" in elsewhere.stdout
    places = [f"{PROBE_FILE}:{raising}", f"{PROBE_FILE}:{in_pandas}", None]  # the last: `process` itself did not fail
    assert [row["error_place"] for row in lab.status()["dates"]] == places


def test_a_retried_date_that_is_built_has_no_line_of_an_error(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), trick="transient:1")

    assert lab.inside("run", "--job", "probe", "--dates", str(DAY), "--sequential").returncode == 0

    (row,) = lab.status()["dates"]
    assert (row["attempt"], row["error"], row["error_place"]) == (2, None, None)


def test_a_blocked_date_names_its_unexpected_entities_next_to_the_missing_ones(lab: Lab) -> None:
    days = [DAY + timedelta(days=n) for n in range(3)]
    names = {days[0]: [*players(5), *players(15, "other")], days[1]: players(600, "other"), days[2]: players(20)}
    for day, present in names.items():
        lab.probe_all([day], players(20), first=present)

    span = ("--start-date", str(days[0]), "--end-date", str(days[-1]))
    ran = lab.inside("run", "--job", "probe", *span, "--no-preflight", "--sequential")
    status = lab.inside("status")

    shown = ", ".join(players(12, "other"))
    for text in (ran.stdout, status.stdout):
        assert "missing 15: player005" in text
        assert f"unexpected 15: {shown} and 3 more (more with --json)\n" in text
        assert f"unexpected 600: {shown} and 588 more (more with --json)\n" in text
    rows = lab.status()["dates"]
    assert [row["unexpected"] for row in rows] == [players(15, "other"), players(500, "other"), []]
    assert [(row["missing_count"], row["unexpected_count"]) for row in rows] == [(15, 15), (20, 600), (0, 0)]


def test_a_date_that_the_preflight_blocks_names_its_unexpected_entities_too(lab: Lab) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        lab.probe("expected", day, players(20))
    lab.probe("first", DAY, [*players(5), "somebody", "somebody else"])
    lab.probe("second", DAY, [*players(4), "of the fill"])
    lab.probe("first", DAY + timedelta(days=1), players(20))

    options = ("--dates", "2023-02-23..2023-02-24", "--allow-partial", "--fallback", "fill", "--sequential")
    ran = lab.inside("run", "--job", "probe", *options)

    assert "unexpected 2: somebody, somebody else\n" in ran.stdout
    assert lab.status()["dates"][0]["unexpected"] == ["somebody", "somebody else"]


def test_retry_builds_the_blocked_and_failed_dates_of_a_run_and_no_others(lab: Lab) -> None:
    for n in range(3):
        lab.probe("expected", DAY + timedelta(days=n), players(20))
    lab.probe("first", DAY, players(20))
    lab.probe("first", DAY + timedelta(days=1), players(5))
    lab.probe("first", DAY + timedelta(days=2), players(20), trick="raise")
    first = lab.run([DAY + timedelta(days=n) for n in range(3)], "probe")
    lab.probe("first", DAY + timedelta(days=1), players(20))
    lab.probe("first", DAY + timedelta(days=2), players(20))

    retried = lab.inside("retry", first.run.id, "--sequential")

    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert [one["day"] for one in lab.status()["dates"]] == ["2023-02-24", "2023-02-25"]
    again = lab.inside("retry", lab.latest_run().id)
    assert "nothing to retry" in again.stdout


def test_run_and_retry_print_one_json_document_with_the_run_and_its_result(lab: Lab) -> None:
    for day in (DAY, DAY + timedelta(days=1)):
        lab.probe_all([day], players(20), trick="raise" if day == DAY else None)
    dates = ("--dates", f"{DAY}..{DAY + timedelta(days=1)}", "--sequential", "--json")

    ran = lab.command("run", "--job", "probe", *dates)
    lab.probe("first", DAY, players(20))
    result = json.loads(ran.stdout)  # fails if anything else is printed
    retried = lab.command("retry", result["run"], "--sequential", "--json")
    retry_result = json.loads(retried.stdout)
    latest, first = (run.id for run in lab.ledger.runs.list_latest_runs())

    assert (ran.returncode, result["exit_code"], result["state"], result["run"]) == (3, 3, "partial", first)
    assert [(row["day"], row["state"]) for row in result["dates"]] == [
        ("2023-02-23", "failed"),
        ("2023-02-24", "checkpointed"),
    ]
    assert result["dates"][0]["error"] == f"RuntimeError: no luck on {DAY}"
    status = json.loads(lab.command("status", first, "--json").stdout)
    assert (status["actions"], result) == (result["actions"], status | {"exit_code": 3})
    assert status["actions"]
    assert (retried.returncode, retry_result["exit_code"], retry_result["state"]) == (0, 0, "succeeded")
    assert (retry_result["run"], [row["day"] for row in retry_result["dates"]]) == (latest, ["2023-02-23"])
    assert lab.command("retry", latest, "--json").stdout == "null\n"
    nothing = json.loads(lab.command("run", "--job", "probe", *dates).stdout)
    text = "nothing to do: all 2 date(s) are checkpointed"
    assert nothing == {"run": None, "result": text, "stale": [], "undone": [], "exit_code": 0}


def test_a_text_of_several_lines_is_shown_on_one(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), trick="raise")
    run = lab.run([DAY], "probe").run.id
    lab.change_ledger("UPDATE run_dates SET error = :error, reason = :error", error="Odd: first\nsecond\r\nthird [x]")

    for arguments in (("status", run), ("status", run, "--every-date")):
        shown = lab.command(*arguments)
        assert shown.returncode == 3, shown.stderr
        assert "Odd: first second third [x]" in shown.stdout


def test_no_one_else_writes_to_the_tools_own_tables(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"day,name\n{DAY},a\n")
    refusal = "backfill: backfill.backfill_metadata: only the tool writes to its own tables"
    dates = ("--job", "probe", "--dates", str(DAY))
    own_target = {"BACKFILL_METADATA_TABLE": "probe.probe"}

    loaded = lab.command("load", "backfill.backfill_metadata", str(file), "--date-column", "day")
    assert (loaded.returncode, loaded.stderr.splitlines()[0][: len(refusal)]) == (2, refusal)
    for command in (("plan", *dates), ("run", *dates, "--sequential"), ("tables", "create", "--job", "probe")):
        refused = lab.command(*command, **own_target)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "backfill: probe.probe: only the tool writes to its own tables" in refused.stderr
    assert not (lab.home / "warehouse" / "backfill").exists()


def test_a_refused_run_prints_no_json(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), first=players(5))

    refused = lab.inside("run", "--job", "probe", "--dates", str(DAY), "--json")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith("backfill: refused: 1 date(s) would be blocked: 2023-02-23")


def test_a_window_that_the_warehouse_cannot_publish_is_refused_in_the_plan(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BigQueryWarehouse.max_dates_per_publication == 4000
    monkeypatch.setattr(LocalWarehouse, "max_dates_per_publication", 2)
    days = [DAY + timedelta(days=n) for n in range(3)]
    lab.probe_all(days, players(20))
    for command in ("plan", "run"):
        refused = lab.inside(command, "--job", "probe", "--start-date", str(DAY), "--end-date", str(days[-1]))
        assert refused.returncode == 2
        assert "a window of 3 dates can't be published: the warehouse takes at most 2 dates at once" in refused.stderr
    assert lab.ledger.runs.list_latest_runs(1) == []
    assert lab.run(days, "probe", window=2).run.state is RunState.SUCCEEDED


def test_plan_launches_nothing_and_says_the_same_in_json(lab: Lab) -> None:
    for n in range(3):
        lab.probe("expected", DAY + timedelta(days=n), players(20))
    lab.probe("first", DAY, players(20))
    lab.probe("first", DAY + timedelta(days=1), players(5))
    lab.probe("second", DAY + timedelta(days=1), players(19))
    lab.run([DAY], "probe")
    span = ("--start-date", "2023-02-23", "--end-date", "2023-02-26")

    shown = lab.inside("plan", "--job", "probe", *span)
    told = json.loads(lab.inside("plan", "--job", "probe", *span, "--json").stdout)

    assert shown.returncode == 3  # the third date would be blocked
    actions = {step["day"]: (step["action"], step["source"], step["expected"]) for step in told["steps"]}
    assert actions == {
        "2023-02-23": ("done", None, 20),
        "2023-02-24": ("build", "second", 20),
        "2023-02-25": ("blocked", "first", 20),
        "2023-02-26": ("skip", None, 0),
    }
    for step in told["steps"]:
        assert step["day"] in shown.stdout
        assert step["reason"] in shown.stdout
    assert len(lab.ledger.runs.list_latest_runs()) == 1


def test_a_saved_plan_runs_exactly_as_shown_or_is_refused(lab: Lab, tmp_path: Path) -> None:
    for n in range(2):
        lab.probe("expected", DAY + timedelta(days=n), players(20))
        lab.probe("first", DAY + timedelta(days=n), players(20))
    saved = str(tmp_path / "plan.json")
    assert lab.inside("plan", "--job", "probe", "--dates", "2023-02-23..2023-02-24", "--save", saved).returncode == 0

    lab.probe("first", DAY, players(19))
    refused = lab.inside("run", "--plan", saved, "--sequential")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "1 date(s) differ (2023-02-23)" in refused.stderr

    lab.probe("first", DAY, players(20))
    ran = lab.inside("run", "--plan", saved, "--sequential")
    assert ran.returncode == 0, ran.stderr
    assert len(lab.published("probe.probe", DAY, "day")) == 20


def test_newest_first_excluded_and_windowed_dates_are_built_in_that_order(lab: Lab) -> None:
    days = [DAY + timedelta(days=n) for n in range(5)]
    lab.probe_all(days, players(3))

    span = ("--start-date", "2023-02-23", "--end-date", "2023-02-27", "--exclude", "2023-02-25")
    ran = lab.inside("run", "--job", "probe", *span, "--newest-first", "--window", "2", "--sequential")

    assert ran.returncode == 0, ran.stderr
    rows = lab.ledger.dates.list_dates(lab.latest_run().id)
    by_window = {number: [row.day.day for row in rows if row.window == number] for number in (1, 2)}
    assert by_window == {1: [26, 27], 2: [23, 24]}


def test_sequential_and_parallel_runs_give_byte_identical_tables(lab: Lab, tmp_path: Path) -> None:
    days = [DAY + timedelta(days=n) for n in range(8)]
    for day in days:
        lab.summary(day, players(30))
        lab.upcoming(day, players(30 if day.day % 2 else 4))
    span = ("--start-date", str(days[0]), "--end-date", str(days[-1]))

    assert lab.inside("run", *JOB, *span, "--sequential").returncode == 0
    sequential = lab.table_bytes(TARGET)
    assert lab.command("run", *JOB, *span, "--reprocess", "all", "--window", "3", "--newest-first").returncode == 0

    assert len(sequential) == 8
    assert lab.table_bytes(TARGET) == sequential


def test_help_is_printed_for_every_command(lab: Lab) -> None:
    for command in ("plan", "run", "retry", "status", "watch", "jobs", "load", "demo", "up", "down"):
        helped = lab.inside(command, "--help")
        assert (helped.returncode, "Usage" in helped.stdout) == (0, True)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("redis://:hun/ter2@127.0.0.1:1/0", id="slash-in-the-password"),
        pytest.param("sentinel://:hunter2@127.0.0.1:1", id="another-scheme"),
        pytest.param("redis://:hunter2@127.0.0.1:1/notadb", id="no-database-number"),
        pytest.param("redis://:hunter2@127.0.0.1:1/0", id="nobody-there"),
    ],
)
def test_a_broker_that_can_not_be_used_is_one_line_without_its_password(lab: Lab, url: str) -> None:
    lab.probe_all([DAY], players(20))

    refused = lab.inside("run", "--job", "probe", "--dates", str(DAY), BACKFILL_BROKER=url)

    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "hun" not in refused.stderr + refused.stdout
    assert lab.ledger.runs.list_latest_runs() == []


def test_a_launch_in_the_background_that_is_not_the_one_shown_is_refused(lab: Lab) -> None:
    lab.probe_all([DAY], players(20))
    launch = Launch(request=lab.request([DAY], "probe"), window=1, workers=1)
    for shown, refused in ((lab.plan([DAY], "probe").digest(), False), ("another plan's", True)):
        ran = subprocess.run(
            [sys.executable, "-m", "gated_backfill.producer.runs.background"],
            input=json.dumps(replace(launch, shown=shown).as_json()),
            env=lab.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout.startswith("refused the plan changed" if refused else "run "), ran.stderr
    assert len(lab.ledger.runs.list_latest_runs()) == 1


def test_a_command_that_only_looks_leaves_no_journal_of_the_ledger_behind(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    lab.ledger.close()
    for command in (["plan", *JOB, "--dates", str(DAY)], ["status"]):
        shown = lab.command(*command)

        assert shown.returncode == 0
        assert shown.stdout.strip()
        assert [path.name for path in lab.home.glob("ledger.db-*")] == []


@pytest.mark.parametrize("words", [(), ("",), ("20261127-no-such-run",), ("one", "too-many"), ("\udcff",)], ids=ascii)
def test_status_says_the_same_whether_or_not_its_words_take_parsing(lab: Lab, words: tuple[str, ...]) -> None:
    for day in (DAY, date(2023, 2, 24)):
        lab.summary(day, players(20))
        lab.upcoming(day, players(19))
        lab.run([day])

    short, whole = lab.command("status", *words), lab.inside("status", *words)

    assert (short.returncode, short.stdout, short.stderr) == (whole.returncode, whole.stdout, whole.stderr)
