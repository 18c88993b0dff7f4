"""A ledger comes into being, is brought up to date, or is refused."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.connections import make_engine
from gated_backfill.common.ledger.migration import MIGRATIONS, migrate
from gated_backfill.common.ledger.revisions import HEAD_REVISION
from gated_backfill.common.ledger.tables import metadata
from gated_backfill.common.process.clock import utcnow
from tests.builders import FEB_23, FEB_25, LEASE, everyone_lives, new_run, race


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    """A connection to a database without any table."""
    made = make_engine(empty_url)
    yield made
    made.dispose()


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)


def test_the_newest_script_is_the_head_that_the_program_needs() -> None:
    assert ScriptDirectory.from_config(config()).get_heads() == [HEAD_REVISION]


def test_migrating_nothing_gives_exactly_the_tables_of_the_program(engine: Engine) -> None:
    migrate(engine, create=True)
    assert set(inspect(engine).get_table_names()) == {*metadata.tables, "alembic_version"}
    assert differences(engine) == []


def test_the_databases_constraints_are_those_of_the_program(engine: Engine) -> None:
    migrate(engine, create=True)
    for table in metadata.sorted_tables:
        found = {one["name"]: one["sqltext"] for one in inspect(engine).get_check_constraints(table.name)}
        wanted = {str(one.name): str(one.sqltext) for one in table.constraints if isinstance(one, CheckConstraint)}
        assert {name: words(sql) for name, sql in found.items()} == {name: words(sql) for name, sql in wanted.items()}


def words(sql: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", sql))


def test_the_database_itself_refuses_an_unknown_state(engine: Engine) -> None:
    migrate(engine, create=True)
    columns = "id, job, job_version, options, requested, requested_by, first_date, last_date, created_at, state"
    values = "'r', 'j', '1', '{}', '', '', '2023-02-23', '2023-02-23', '2023-02-23 00:00:00', 'nearly done'"
    with pytest.raises(IntegrityError, match="ck_runs_state"), engine.begin() as connection:
        connection.execute(text(f"INSERT INTO runs ({columns}) VALUES ({values})"))


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine, create=True)
    migrate(engine, create=True)
    migrate(engine, create=False)
    assert differences(engine) == []


def test_down_and_up_again_gives_the_same_tables(engine: Engine) -> None:
    migrate(engine, create=True)
    with engine.begin() as connection:
        prepared = config()
        prepared.attributes["connection"] = connection
        command.downgrade(prepared, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(engine, create=True)
    assert differences(engine) == []


def test_a_ledger_of_the_version_before_is_migrated_with_its_runs(empty_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        prepared = config()
        prepared.attributes["connection"] = connection
        command.upgrade(prepared, "0004")
        columns = "id, job, job_version, options, requested, requested_by, first_date, last_date, created_at, state"
        values = "'r', 'players', '1', '{}', '', '', '2023-02-23', '2023-02-23', '2023-02-23 00:00:00', 'failed'"
        connection.execute(text(f"INSERT INTO runs ({columns}) VALUES ({values})"))
        columns = "run_id, day, job, state, active, missing, error_kind, error"
        values = "'r', '2023-02-23', 'players', 'failed', false, '[\"ann\"]', 'ProcessFailed', 'no luck'"
        connection.execute(text(f"INSERT INTO run_dates ({columns}) VALUES ({values})"))
    engine.dispose()

    ledger = open_ledger(empty_url)
    (row,) = ledger.dates.list_dates("r")
    ledger.close()

    assert differences(engine) == []
    assert (row.error, row.missing) == ("no luck", ("ann",))
    assert (row.error_place, row.unexpected, row.unexpected_count) == (None, (), None)


def test_the_dates_of_a_run_that_a_version_before_has_undone_are_undone(empty_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        prepared = config()
        prepared.attributes["connection"] = connection
        command.upgrade(prepared, "0006")
        columns = "id, job, job_version, options, requested, requested_by, first_date, last_date, created_at, state"
        values = "'players', '1', '{}', '', '', '2023-02-23', '2023-02-24', '2023-02-23 00:00:00', 'succeeded'"
        undone = "'2023-03-01 12:00:00', 'ada'"
        columns = f"{columns}, undone_at, undone_by"
        connection.execute(
            text(f"INSERT INTO runs ({columns}) VALUES ('r', {values}, {undone}), ('s', {values}, NULL, NULL)")
        )
        columns = "run_id, day, job, state, active"
        for run, day, state in (("r", 23, "checkpointed"), ("r", 24, "blocked"), ("s", 25, "checkpointed")):
            values = f"'{run}', '2023-02-{day}', 'players', '{state}', false"
            connection.execute(text(f"INSERT INTO run_dates ({columns}) VALUES ({values})"))
    engine.dispose()

    ledger = open_ledger(empty_url)
    undone_dates = ledger.checkpoints.list_undone("players", FEB_23, FEB_25)
    ledger.close()

    assert {day: (one.run_id, one.by, one.restored) for day, one in undone_dates.items()} == {
        FEB_23: ("r", "ada", True)
    }


def test_a_target_that_a_version_before_has_claimed_has_a_free_lease(empty_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        prepared = config()
        prepared.attributes["connection"] = connection
        command.upgrade(prepared, "0013")
        columns = "id, job, job_version, options, requested, requested_by, first_date, last_date, created_at, state"
        values = "'r', 'players', '1', '{}', '', '', '2023-02-23', '2023-02-23', '2023-02-23 00:00:00', 'running'"
        connection.execute(text(f"INSERT INTO runs ({columns}) VALUES ({values})"))
        values = "'nba.factors', 'players', 'r', '2023-02-23 00:00:00'"
        connection.execute(text(f"INSERT INTO targets (target, job, run_id, claimed_at) VALUES ({values})"))
    engine.dispose()

    ledger = open_ledger(empty_url)
    until = utcnow() + LEASE
    taken = [
        ledger.targets.claim_publishing("nba.factors", owner, until, is_dead=everyone_lives) for owner in ("a", "b")
    ]
    ledger.close()

    assert taken == [True, False]


def migrate_and_count_runs(wait: Callable[[], object], url: str) -> int:
    wait()
    ledger = open_ledger(url)
    runs = ledger.runs.list_latest_runs()
    ledger.close()
    return len(runs)


def test_processes_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    assert race(*[(migrate_and_count_runs, empty_url)] * 3) == [0, 0, 0]


def test_an_empty_ledger_is_not_made_unasked(engine: Engine) -> None:
    with pytest.raises(LedgerUnusable, match="has no tables yet: run `backfill ledger migrate`"):
        migrate(engine, create=False)
    assert inspect(engine).get_table_names() == []


def written_by_a_newer_version(engine: Engine) -> None:
    migrate(engine, create=True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE schema_support SET oldest_code = '9999', migrated_by = '9.0'"))


@pytest.mark.parametrize("create", [True, False])
def test_a_ledger_of_a_newer_version_is_refused(engine: Engine, create: bool) -> None:
    written_by_a_newer_version(engine)
    with pytest.raises(LedgerUnusable, match="9999"):
        migrate(engine, create=create)


def test_a_refused_ledger_does_not_keep_the_next_one_waiting(empty_postgres_url: str) -> None:
    first = make_engine(empty_postgres_url)
    written_by_a_newer_version(first)
    with pytest.raises(LedgerUnusable):
        migrate(first, create=True)
    second = make_engine(f"{empty_postgres_url}&options=-c%20lock_timeout%3D2000")
    try:
        with pytest.raises(LedgerUnusable):
            migrate(second, create=True)
    finally:
        first.dispose()
        second.dispose()


# -- files that are no ledger -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def execute(file: Path, statement: str) -> list[Any]:
    """The rows of a statement in an SQLite file, executed with nothing of ours."""
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("size", [pytest.param(150, id="short"), pytest.param(100_000, id="long")])
def test_a_file_of_random_bytes_is_refused_and_left_as_it_is(file: Path, size: int, create: bool) -> None:
    garbage = os.urandom(size)
    file.write_bytes(garbage)
    with pytest.raises(LedgerUnusable):
        open_ledger(f"sqlite:///{file}", create=create)
    assert file.read_bytes() == garbage


def test_a_ledger_with_destroyed_pages_is_refused(file: Path) -> None:
    ledger = open_ledger(f"sqlite:///{file}")
    ledger.runs.open_run(new_run())
    ledger.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(LedgerUnusable):
        open_ledger(f"sqlite:///{file}").runs.list_latest_runs()


def test_a_database_of_another_program_is_refused_for_good(file: Path) -> None:
    execute(file, "CREATE TABLE runs (distance REAL)")
    with pytest.raises(LedgerUnusable):
        open_ledger(f"sqlite:///{file}")


def test_a_file_of_another_program_is_left_as_it_is(file: Path) -> None:
    execute(file, "CREATE TABLE songs (title TEXT)")
    with pytest.raises(LedgerUnusable, match="another program's"):
        open_ledger(f"sqlite:///{file}")
    assert execute(file, "SELECT name FROM sqlite_master") == [("songs",)]


def test_a_ledger_that_lost_a_table_is_unusable_not_just_out_of_reach(sqlite_url: str, file: Path) -> None:
    execute(file, "DROP TABLE checkpoints")
    ledger = open_ledger(sqlite_url, create=False)
    with pytest.raises(LedgerUnusable):
        ledger.checkpoints.list_checkpoints("players", FEB_23, FEB_23)
    ledger.close()


def test_a_missing_folder_is_made(file: Path) -> None:
    nested = file.parent / "a" / "b" / "ledger.db"
    open_ledger(f"sqlite:///{nested}").close()
    assert nested.exists()


def test_a_file_where_the_folder_should_be_is_an_error_of_the_user(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(UserError, match="folder can't be created"):
        open_ledger(f"sqlite:///{file}/ledger.db")
