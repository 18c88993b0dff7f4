"""Cleanup of stale rows over each warehouse: previewed, backed up, deleted, put back byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from gated_backfill.common.cleanup.cleanup import CleanupReport, clean
from gated_backfill.common.cleanup.operation import CleanupContext, backup_of
from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.cleanup.stale_rows import local_today, tables_to_clean
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackupMissing, RestoreConflict, UserError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.ledger.tables import alerts
from gated_backfill.common.model.registry import EXAMPLE_JOB
from gated_backfill.common.model.tables import DatedTable, TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance.cleanup import clean_stale_rows, expire_backups
from tests.builders import NOON_ZONE, queued_run
from tests.emulator import Emulator
from tests.lab import UPCOMING, Lab, players

TABLE = DatedTable(name=TableName.parse(UPCOMING))
TEAMS = "nba_analytics.upcoming_team_game_context"
TODAY = local_today(Settings(timezone=NOON_ZONE))  # pyright: ignore[reportCallIssue]
STALE = [TODAY - timedelta(days=n) for n in (30, 9, 8)]
FRESH = [TODAY - timedelta(days=7), TODAY, TODAY + timedelta(days=1)]


@pytest.fixture(autouse=True)
def _clean_upcoming_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_TIMEZONE", NOON_ZONE)
    monkeypatch.setenv("BACKFILL_CLEANUP_TABLES", f"{UPCOMING},nba_analytics.upcoming_team_game_context")


def filled(lab: Lab, days: Sequence[date] = (*STALE, *FRESH)) -> dict[str, bytes]:
    """Players on each of the days; what every partition holds then."""
    for n, day in enumerate(days):
        lab.upcoming(day, players(3 + n))
    return lab.table_bytes(UPCOMING)


def site_of(lab: Lab, owner: str = "", **settings: Any) -> CleanupContext:
    changed = lab.settings.model_copy(update=settings)
    site = CleanupContext(settings=changed, ledger=lab.ledger, warehouse=lab.context.warehouse, by="a test")
    return replace(site, owner=owner) if owner else site


def cleaned(lab: Lab, owner: str = "", *, max_share: float = 1.0) -> CleanupReport:
    return clean(site_of(lab, owner), [TABLE], today=TODAY, days=7, max_share=max_share)


def backup_part(lab: Lab, operation: CleanupOperation) -> Path:
    """The file of the middle date in the backup."""
    (part,) = (lab.home / "warehouse" / ".cleanup" / operation.id).rglob(f"*={STALE[1]}/part.parquet")
    return part


def rows_by_stale_date(lab: Lab) -> list[int]:
    return [len(lab.published(UPCOMING, day)) for day in STALE]


def one_operation(report: CleanupReport) -> CleanupOperation:
    assert report.failed == report.busy == report.refused == []
    (found,) = report.done
    return found


def days_of(partitions: dict[str, bytes]) -> list[str]:
    return [name[-23:-13] if name.endswith(".parquet") else name for name in sorted(partitions)]


def told(lab: Lab) -> list[dict[str, Any]]:
    with lab.ledger.cleanups._read() as connection:  # pyright: ignore[reportPrivateUsage]
        return [dict(row) for row in connection.execute(select(alerts)).mappings()]


def test_exactly_the_stale_rows_go_and_come_back_byte_for_byte(any_lab: Lab) -> None:
    before = filled(any_lab)

    operation = one_operation(cleaned(any_lab))

    assert (operation.state, operation.rows, operation.dates) == (CleanupState.DELETED, 3 + 4 + 5, 3)
    assert (operation.oldest, operation.newest, operation.error) == (STALE[0], STALE[2], None)
    after = any_lab.table_bytes(UPCOMING)
    assert days_of(after) == [str(day) for day in FRESH]
    assert after.items() <= before.items()
    assert cleaned(any_lab).done == []

    back = restore(operation.id, site_of(any_lab))

    assert (back.state, back.restored_by) == (CleanupState.RESTORED, "a test")
    assert any_lab.table_bytes(UPCOMING) == before
    with pytest.raises(UserError, match="was restored already, by a test"):
        restore(operation.id, site_of(any_lab))


def test_a_date_that_was_written_since_is_not_restored_over(any_lab: Lab) -> None:
    filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    any_lab.upcoming(STALE[1], players(1))
    now = any_lab.table_bytes(UPCOMING)

    with pytest.raises(RestoreConflict, match=rf"1 date\(s\) hold other rows by now.*{STALE[1]}"):
        restore(operation.id, site_of(any_lab))
    assert any_lab.table_bytes(UPCOMING) == now

    back = restore(operation.id, site_of(any_lab), leave_written=True)

    assert f"1 date(s) have other rows and were skipped: {STALE[1]}" in str(back.error)
    assert rows_by_stale_date(any_lab) == [3, 1, 5]


def test_the_dates_that_a_restore_left_out_are_restored_later(any_lab: Lab) -> None:
    filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    for day in STALE[1:]:
        any_lab.upcoming(day, players(1))
    first = restore(operation.id, site_of(any_lab), leave_written=True)
    assert (first.state, first.is_restorable, sorted(first.restored_days)) == (CleanupState.RESTORED, True, [STALE[0]])
    with pytest.raises(RestoreConflict, match=r"2 date\(s\) hold other rows by now"):
        restore(operation.id, site_of(any_lab))
    assert any_lab.ledger.cleanups.get_cleanup(operation.id).state is CleanupState.RESTORED
    any_lab.upcoming(STALE[0], players(7))  # a restored date that is written since is not in the way

    wrong = one_operation(clean(site_of(any_lab), [TABLE], today=TODAY, days=7, max_share=1.0, skip_restored=True))
    again = restore(operation.id, site_of(any_lab))

    assert (wrong.dates, again.state, again.is_restorable, again.error) == (2, CleanupState.RESTORED, False, None)
    assert rows_by_stale_date(any_lab) == [7, 4, 5]
    with pytest.raises(UserError, match="was restored already, by a test"):
        restore(operation.id, site_of(any_lab))


def test_restored_rows_that_are_gone_again_are_restored_again(any_lab: Lab) -> None:
    """Whatever the ledger says: they are in the backup and not in the table."""
    before = filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    restore(operation.id, site_of(any_lab))
    cleaned(any_lab)
    assert rows_by_stale_date(any_lab) == [0, 0, 0]

    restore(operation.id, site_of(any_lab))

    assert any_lab.table_bytes(UPCOMING) == before


def test_rows_written_between_backup_and_deletion_survive(any_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(any_lab)
    warehouse = any_lab.context.warehouse
    delete = warehouse.delete_backed_up

    def written_before(*arguments: Any, **named: Any) -> None:
        any_lab.upcoming(STALE[1], players(9))
        delete(*arguments, **named)

    monkeypatch.setattr(warehouse, "delete_backed_up", written_before)

    operation = one_operation(cleaned(any_lab))

    assert (operation.rows, operation.dates) == (3 + 5, 2)
    assert f"1 date(s) were written by another program after their backup and were not deleted: {STALE[1]}" in str(
        operation.error
    )
    assert len(any_lab.published(UPCOMING, STALE[1])) == 9


def test_a_backup_that_is_not_what_was_backed_up_is_never_put_back(lab: Lab) -> None:
    filled(lab)
    operation = one_operation(cleaned(lab))
    backup_part(lab, operation).write_bytes(b"something else")
    now = lab.table_bytes(UPCOMING)

    with pytest.raises(BackupMissing, match="is damaged"):
        restore(operation.id, site_of(lab))

    assert lab.table_bytes(UPCOMING) == now
    assert lab.ledger.cleanups.get_cleanup(operation.id).state is CleanupState.DELETED


def test_nothing_is_deleted_that_could_not_be_backed_up(lab: Lab) -> None:
    before = filled(lab)
    (lab.home / "warehouse" / ".cleanup").write_text("where the backup's folder would be")

    report = cleaned(lab)

    assert report.done == []
    assert "/.cleanup/" in report.failed[0]
    assert lab.table_bytes(UPCOMING) == before
    (operation,) = lab.ledger.cleanups.list_cleanups()
    assert operation.state is CleanupState.ABANDONED


def test_too_large_a_share_is_refused_unless_told(lab: Lab) -> None:
    before = filled(lab, [*STALE, *FRESH[:1]])

    report = cleaned(lab, max_share=0.5)

    assert (report.done, len(report.refused)) == ([], 1)
    assert "12 of its 18 rows (66.6 %)" in report.refused[0]
    assert lab.table_bytes(UPCOMING) == before


def test_a_job_s_own_target_is_not_cleaned(lab: Lab) -> None:
    target = DatedTable(name=TableName.parse("probe.probe"), date_column="day")
    with pytest.raises(UserError, match=r"probe\.probe is built by job probe"):
        clean(site_of(lab), [target], today=TODAY, days=7, max_share=1.0)


def test_a_table_that_is_being_cleaned_is_said_to_be(lab: Lab) -> None:
    """The living one is this very process, under another name."""
    filled(lab)
    delete = lab.context.warehouse.delete_backed_up
    second: list[CleanupReport] = []

    def meanwhile(*arguments: Any, **named: Any) -> None:
        second.append(cleaned(lab))
        delete(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.context.warehouse, "delete_backed_up", meanwhile)
        report = cleaned(lab, "elsewhere:1:1")

    assert one_operation(report).dates == 3
    ((reason,), done) = second[0].busy, second[0].done
    assert "is being cleaned or restored already" in reason
    assert "by elsewhere:1:1" in reason
    assert done == []


# -- what beat runs -----------------------------------------------------------------------------------------------


def test_beat_tells_an_unusual_cleanup_and_a_refused_one_in_one_message(lab: Lab) -> None:
    filled(lab)
    team = {"team": "STRING", "game_date": "DATE"}
    lab.load(TEAMS, STALE[0], [{"team": "x"}], team)
    deps = replace(lab.opened_again(), settings=lab.settings.model_copy(update={"cleanup_unusual_rows": 11}))

    said = clean_stale_rows(deps)

    assert f"{UPCOMING}: 12 rows on 3 date(s) deleted" in said
    assert f"refused: {TEAMS}: 1 of its 1 rows" in said
    (alert,) = told(lab)
    assert (alert["kind"], alert["title"]) == ("cleanup-unusual", "Cleanup: 12 stale rows deleted, 1 table(s) refused")
    assert "backfill cleanup restore" in alert["body"]
    assert "backfill cleanup --allow-large" in alert["body"]


def test_beat_leaves_restored_dates_alone(lab: Lab) -> None:
    before = filled(lab)
    deps = lab.opened_again()
    clean_stale_rows(deps)
    (operation,) = lab.ledger.cleanups.list_cleanups()
    restore(operation.id, site_of(lab))

    assert clean_stale_rows(deps) == f"{TEAMS} does not exist"

    assert lab.table_bytes(UPCOMING) == before
    assert told(lab) == []


def expired_after(deps: Deps, days: float) -> str:
    """What beat says so many days later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gated_backfill.common.cleanup.expiry.utcnow", lambda: utcnow() + timedelta(days=days))
        return expire_backups(deps)


def test_a_backup_expires_and_is_then_not_restored(any_lab: Lab) -> None:
    filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    deps = any_lab.opened_again()
    assert expire_backups(deps) == "no backup is due"
    assert expired_after(deps, 30.1) == "no backup is due"  # found for the first time

    assert expired_after(deps, 31.2) == "1 backup(s) removed"

    expired = any_lab.ledger.cleanups.get_cleanup(operation.id)
    assert (expired.state, expired.backup) == (CleanupState.EXPIRED, None)
    with pytest.raises(UserError, match="has expired"):
        restore(operation.id, site_of(any_lab))
    assert not list((any_lab.home / "warehouse" / ".cleanup").glob("*"))
    with pytest.raises(BackupMissing):
        any_lab.context.warehouse.read_backup(backup_of(operation))


def test_a_clock_that_is_set_ahead_removes_no_backup(lab: Lab) -> None:
    filled(lab)
    operation = one_operation(cleaned(lab))
    deps = lab.opened_again()

    assert expired_after(deps, 60) == "no backup is due"
    assert expired_after(deps, 60.5) == "no backup is due"
    assert expired_after(deps, 0) == "no backup is due"  # the clock is right again
    assert expired_after(deps, 30.1) == "no backup is due"  # what the wrong clock found does not count
    assert lab.ledger.cleanups.get_cleanup(operation.id).state is CleanupState.DELETED
    assert expired_after(deps, 31.2) == "1 backup(s) removed"


def test_the_retention_of_a_backup_counts_from_the_deletion(any_lab: Lab) -> None:
    """The deletion came late: its process had died, and no other one came for three weeks."""
    filled(any_lab)
    warehouse = any_lab.context.warehouse
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "delete_backed_up", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            cleaned(any_lab)
    any_lab.change_ledger("UPDATE cleanup_operations SET expires_at = '2023-01-01 00:00:00.000000'")

    operation = one_operation(cleaned(any_lab))

    assert operation.expires_at is not None
    assert timedelta(days=29.9) < operation.expires_at - utcnow() < timedelta(days=30.1)


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_ledger_that_knows_too_early_an_expiry_is_corrected_by_the_backup(any_lab: Lab) -> None:
    filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    any_lab.change_ledger(
        "UPDATE cleanup_operations SET expires_at = '2023-01-01 00:00:00.000000', "
        "found_expired_at = '2023-01-02 00:00:00.000000'"
    )

    assert expire_backups(any_lab.opened_again()) == "no backup is due"

    corrected = any_lab.ledger.cleanups.get_cleanup(operation.id)
    assert (corrected.state, corrected.found_expired_at) == (CleanupState.DELETED, None)
    assert corrected.expires_at is not None
    assert corrected.expires_at - utcnow() > timedelta(days=29.9)
    restore(operation.id, site_of(any_lab))
    assert [len(any_lab.published(UPCOMING, day)) for day in STALE] == [3, 4, 5]


# -- the commands -------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_is_stale_and_changes_nothing_at_all(lab: Lab) -> None:
    before = filled(lab)
    ledger = lab.home / "ledger.db"
    lab.ledger.close()
    ledger.unlink()

    shown = lab.invoke("cleanup", "--dry-run", "--json")

    assert shown.exit_code == 0, shown.stderr
    upcoming, teams = json.loads(shown.stdout)["tables"]
    dates = {"cutoff": str(FRESH[0]), "oldest": str(STALE[0]), "newest": str(STALE[2]), "restored_dates": 0}
    counts = {"rows": 12, "dates": 3, "table_rows": 33, "share": 0.3636}
    assert upcoming == {"table": UPCOMING, "exists": True, **dates, **counts}
    assert (teams["table"], teams["exists"]) == (TEAMS, False)
    assert lab.table_bytes(UPCOMING) == before
    assert not ledger.exists()


def test_the_commands_delete_list_and_restore(lab: Lab) -> None:
    before = filled(lab)
    unasked = lab.invoke("cleanup")
    assert isinstance(unasked.exception, UserError)
    assert "confirm with --yes" in str(unasked.exception)
    assert lab.table_bytes(UPCOMING) == before

    done = lab.invoke("cleanup", "--yes", "--json")

    assert done.exit_code == 0, done.stderr
    (operation,) = json.loads(done.stdout)["operations"]
    assert (operation["state"], operation["rows"]) == ("deleted", 12)
    listed = lab.invoke("cleanup", "list")
    assert operation["id"] in listed.stdout
    back = lab.invoke("cleanup", "restore", operation["id"], "--yes")
    assert back.exit_code == 0, back.stderr
    assert lab.table_bytes(UPCOMING) == before


def test_rows_that_are_restored_while_a_cleanup_counts_them_are_not_deleted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = filled(lab)
    count = LocalWarehouse.row_counts

    def cleaned_and_restored_after(*arguments: Any, **named: Any) -> dict[date, int]:
        counts = count(*arguments, **named)
        monkeypatch.setattr(LocalWarehouse, "row_counts", count)
        (operation,) = json.loads(lab.invoke("cleanup", "--yes", "--json").stdout)["operations"]
        assert lab.invoke("cleanup", "restore", operation["id"], "--yes").exit_code == 0
        return counts

    monkeypatch.setattr(LocalWarehouse, "row_counts", cleaned_and_restored_after)

    refused = lab.invoke("cleanup", "--yes")

    assert isinstance(refused.exception, UserError)
    assert "3 date(s) were restored after this cleanup began" in str(refused.exception)
    assert lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(["--days", "0", "--yes"], "dated today or later are never deleted", id="today"),
        pytest.param(["--days", "9999999", "--dry-run"], "nothing is that old", id="calendar"),
        pytest.param(["--table", "nba_raw.box_scores", "--yes"], "is not one of the tables to clean", id="table"),
        pytest.param(["--days", "1", "--yes"], "--allow-large deletes them anyway", id="share"),
        pytest.param(["restore", "nope", "--yes"], "there is no cleanup 'nope'", id="unknown"),
    ],
)
def test_what_is_refused_is_said_and_changes_nothing(lab: Lab, arguments: list[str], error: str) -> None:
    before = filled(lab, [*STALE, FRESH[0], FRESH[1]])

    refused = lab.invoke("cleanup", *arguments)

    assert isinstance(refused.exception, UserError)
    assert error in str(refused.exception)
    assert lab.table_bytes(UPCOMING) == before


def test_a_refusal_is_one_line_and_exit_code_2(lab: Lab) -> None:
    refused = lab.command("cleanup", "--days", "9999999", "--dry-run")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_the_tables_of_the_example_job_are_cleaned_once_it_was_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKFILL_CLEANUP_TABLES")
    settings, ledger = Settings(home=lab.home), lab.ledger
    assert tables_to_clean(settings, None) == tables_to_clean(settings, ledger) == ()

    queued_run(ledger, job=EXAMPLE_JOB)

    assert [str(table) for table in tables_to_clean(settings, ledger)] == [UPCOMING, TEAMS]


def test_a_table_of_the_example_job_is_cleaned_before_the_job_was_run_if_it_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(lab)
    monkeypatch.delenv("BACKFILL_CLEANUP_TABLES")

    unnamed = lab.invoke("cleanup", "--allow-large", "--yes", "--json")
    assert (unnamed.exit_code, json.loads(unnamed.stdout)["tables"]) == (0, [])
    done = lab.invoke("cleanup", "--table", UPCOMING, "--allow-large", "--yes", "--json")

    assert done.exit_code == 0, done.exception
    assert [table["table"] for table in json.loads(done.stdout)["tables"]] == [UPCOMING]
    assert days_of(lab.table_bytes(UPCOMING)) == [str(day) for day in FRESH]
    refused = lab.invoke("cleanup", "--table", "nba_raw.box_scores", "--yes")
    assert "nba_raw.box_scores is not one of the tables to clean, which are none" in str(refused.exception)


@pytest.mark.parametrize("kind", ["DATETIME", "TIMESTAMP", "STRING"])
def test_a_table_whose_dates_are_times_is_refused_before_anything_is_done(
    bigquery_lab: Lab, emulator: Emulator, kind: str
) -> None:
    filled(bigquery_lab)
    emulator.run("CREATE SCHEMA IF NOT EXISTS nba_analytics")
    emulator.run(f"CREATE TABLE {TEAMS} (game_date {kind}, team STRING)")
    emulator.run(f"INSERT INTO {TEAMS} VALUES (CAST('2023-02-23 00:00:00' AS {kind}), 'x')")
    before = bigquery_lab.table_bytes(UPCOMING)

    for arguments in (["--dry-run"], ["--allow-large", "--yes"]):
        refused = bigquery_lab.inside(
            "cleanup", *arguments, "--days", "7", BACKFILL_CLEANUP_TABLES=f"{UPCOMING},{TEAMS}"
        )
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert f"{TEAMS}: column game_date is {'a ' if kind == 'TIMESTAMP' else ''}{kind}" in refused.stderr

    tables = [DatedTable(name=TableName.parse(TEAMS))]
    report = clean(site_of(bigquery_lab), tables, today=TODAY, days=7, max_share=1.0)
    assert (report.done, [kind in reason for reason in report.failed]) == ([], [True])
    assert bigquery_lab.table_bytes(UPCOMING) == before


def test_dates_that_another_program_wrote_as_times_are_cleaned_up(lab: Lab) -> None:
    filled(lab)
    folder = lab.home / "warehouse" / "nba_analytics" / TABLE.name.table
    (folder / "schema.json").unlink()
    for part in folder.glob("*/part.parquet"):
        rows = pq.ParquetFile(part).read()
        place = rows.schema.get_field_index("game_date")
        pq.write_table(rows.set_column(place, "game_date", rows["game_date"].cast(pa.timestamp("us"))), part)

    operation = one_operation(cleaned(lab))

    assert (operation.state, operation.rows) == (CleanupState.DELETED, 3 + 4 + 5)
