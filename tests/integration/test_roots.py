"""Files are opened below their roots only: no `..` and no link leads out, in staging and in the local warehouse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from gated_backfill.common.errors import BackfillError, OutsideRoot, QueryFailed, StagedFileLost, UserError
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import Backup, PublishResult, StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import checked_path
from gated_backfill.common.storage.staged_files import check_staged
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT, Scan, StagedScan
from gated_backfill.worker.gate.gate import close_window
from tests.builders import FEB_23, FEB_24, files_below, is_intact, process_date, publication_of
from tests.lab import Lab, players

TABLE = TableName("nba", "factors")
SCAN = Scan(table=TABLE, date_column="day", dates=(DateRange(start=FEB_23, through=FEB_24),))
ROWS = pa.table({"player": ["ann", "ben"], "day": pa.array([FEB_23, FEB_23])})
BACKUP = Backup(id="20230301-1", table=TABLE, date_column="day")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's, laid out like a table, with a run's folder in it."""
    place = tmp_path / "outside"
    LocalWarehouse(place).load(TABLE, "day", ROWS)
    (place / "run-1").mkdir()
    (place / "run-1" / "2023-02-23-1.parquet").write_bytes(b"somebody else's")
    return place


@pytest.fixture
def unharmed(outside: Path) -> Iterator[Path]:
    """The folder of somebody else's, which must be the same after the test."""
    before = files_below(outside)
    yield outside
    assert files_below(outside) == before


def publish(warehouse: LocalWarehouse, file: StagedFile, before: str = ABSENT) -> PublishResult:
    before_by_day = {file.day: before}
    return warehouse.publish(
        TABLE, "day", [file], fingerprints_when_staged=before_by_day, publication=publication_of("run-1/0")
    )


# -- the rule itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "allowed"),
    [
        pytest.param("a/b", True, id="plain"),
        pytest.param("a/../b", True, id="dots-that-stay"),
        pytest.param("../outside/x", False, id="dots-that-leave"),
        pytest.param("a/../../outside", False, id="dots-later"),
        pytest.param("near/x", True, id="a-link-that-stays"),
        pytest.param("far/x", False, id="a-link-that-leaves"),
        pytest.param("far", False, id="a-link-that-leaves-itself"),
        pytest.param("gone", False, id="a-link-out-to-nothing"),
        pytest.param("/etc/passwd", False, id="elsewhere"),
    ],
)
@pytest.mark.parametrize("root_is_link", [False, True])
def test_a_way_that_leads_out_is_refused(tmp_path: Path, way: str, allowed: bool, root_is_link: bool) -> None:
    real = tmp_path / "real"
    (real / "a").mkdir(parents=True)
    for name, to in (("near", real / "a"), ("far", tmp_path), ("gone", tmp_path / "nothing")):
        (real / name).symlink_to(to)
    root = tmp_path / "root"
    root.symlink_to(real) if root_is_link else real.rename(root)
    if not root_is_link:
        (root / "near").unlink()
        (root / "near").symlink_to("a")
    if allowed:
        assert checked_path(root, root / way) == root / way
    else:
        with pytest.raises(OutsideRoot, match=r"leads out of"):
            checked_path(root, root / way)


# -- staging ------------------------------------------------------------------------------------------------------


def made_link(file: StagedFile, staging: Staging, outside: Path) -> StagedFile:
    there = outside / "copy.parquet"
    Path(file.location).rename(there)
    Path(file.location).symlink_to(there)
    return file


def made_linked_folder(file: StagedFile, staging: Staging, outside: Path) -> StagedFile:
    folder = Path(file.location).parent
    folder.rename(outside / "moved")
    folder.symlink_to(outside / "moved")
    return file


def elsewhere(file: StagedFile, staging: Staging, outside: Path) -> StagedFile:
    there = outside / "copy.parquet"
    Path(file.location).rename(there)
    return replace(file, location=str(there))


def with_dots(file: StagedFile, staging: Staging, outside: Path) -> StagedFile:
    found = elsewhere(file, staging, outside)
    return replace(found, location=f"{staging.root}/run-1/../../outside/copy.parquet")


ESCAPES = [made_link, made_linked_folder, elsewhere, with_dots]


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_staged_file_outside_of_the_staging_is_not_what_was_staged(
    staging: Staging, outside: Path, escape: Callable[[StagedFile, Staging, Path], StagedFile]
) -> None:
    file = escape(staging.write("run-1", FEB_23, 1, ROWS), staging, outside)
    before = files_below(outside)
    assert not is_intact(staging, file)
    with pytest.raises(OutsideRoot):
        staging.quarantine("run-1", file)
    staging.delete("run-1") if escape is not made_linked_folder else None
    assert files_below(outside) == before


def test_a_link_is_not_followed_by_whoever_reads_a_staged_file(
    staging: Staging, local_warehouse: LocalWarehouse, outside: Path
) -> None:
    file = made_link(staging.write("run-1", FEB_23, 1, ROWS), staging, outside)
    with pytest.raises(StagedFileLost, match="is a link"):
        check_staged(file)
    with pytest.raises(StagedFileLost, match="is a link"):
        local_warehouse.query("SELECT * FROM s", scans={"s": StagedScan(files=(file,))})
    assert publish(local_warehouse, file).lost == {FEB_23}


def test_a_pipe_in_place_of_a_staged_file_keeps_nobody_waiting(staging: Staging) -> None:
    file = staging.write("run-1", FEB_23, 1, ROWS)
    Path(file.location).unlink()
    os.mkfifo(file.location)
    assert not is_intact(staging, file)


@pytest.mark.parametrize("what", ["run-1", "quarantine"])
def test_nothing_is_changed_where_a_link_in_the_staging_leads(staging: Staging, unharmed: Path, what: str) -> None:
    root = Path(str(staging.root))
    file = staging.write("run-2", FEB_23, 1, ROWS)
    (root / what).symlink_to(unharmed)
    with pytest.raises(OutsideRoot):
        staging.write("run-1", FEB_23, 1, ROWS) if what == "run-1" else staging.quarantine("run-1", file)
    if what == "run-1":
        with pytest.raises(OutsideRoot):
            staging.delete("run-1", frozenset({FEB_23}))
        staging.delete("run-1")
        assert not (root / "run-1").is_symlink()
    else:
        with pytest.raises(OutsideRoot):
            staging.quarantined_runs()
        with pytest.raises(OutsideRoot):
            staging.delete_quarantine("run-1")


@pytest.mark.parametrize(
    "location",
    [
        "gs://other/prefix/run-1/2023-02-23-1.parquet",
        "gs://bucket/prefix-of-another/run-1/x.parquet",
        "gs://bucket/prefix/../secret.parquet",
        "gs://bucket/prefix/./secret.parquet",
        "gs://bucket/prefix//secret.parquet",
        "gs://bucket/prefix",
        "/etc/passwd",
        "file:///etc/passwd",
    ],
)
def test_only_objects_below_the_prefix_are_read_or_moved(bucket_staging: Staging, location: str) -> None:
    file = replace(bucket_staging.write("run-1", FEB_23, 1, ROWS), location=location)
    assert not is_intact(bucket_staging, file)
    with pytest.raises(OutsideRoot):
        bucket_staging.quarantine("run-1", file)


def test_a_stray_file_in_a_runs_folder_is_left_alone(staging: Staging) -> None:
    file = staging.write("run-1", FEB_23, 1, ROWS)
    stray = Path(file.location).parent / "notes.parquet"
    stray.write_bytes(b"x")
    staging.delete("run-1", frozenset({FEB_23}))
    assert stray.exists()
    assert not Path(file.location).exists()


def test_the_gate_does_not_publish_what_the_ledger_says_lies_outside(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(10))
    run, deps, _ = lab.opened([FEB_23], "probe")
    process_date(run.id, FEB_23, deps)
    (row,) = deps.ledger.dates.list_dates(run.id)
    there = lab.home.parent / "outside.parquet"
    Path(row.staged_file().location).rename(there)
    lab.change_ledger("UPDATE run_dates SET staged_path = :path", path=str(there))

    assert row.window is not None
    close_window(run.id, row.window, deps)

    (again,) = deps.ledger.dates.list_dates(run.id)
    assert again.state.value == "queued"
    assert there.exists()
    assert lab.published("probe.target", FEB_23, "day") == []


# -- the local warehouse ------------------------------------------------------------------------------------------


def linked(warehouse: LocalWarehouse, what: str, to: Path) -> None:
    """Put a link to the other tree in place of a part, a date's folder, a table or a dataset."""
    way = {"part": "nba/factors/day=2023-02-23/part.parquet", "date": "nba/factors/day=2023-02-23"}
    own = way.get(what, {"table": "nba/factors", "dataset": "nba"}.get(what, ""))
    place = warehouse.root / own
    place.rename(warehouse.root.parent / "aside")
    place.symlink_to(to / own)


@pytest.mark.parametrize("what", ["part", "date", "table", "dataset"])
def test_a_link_out_of_the_warehouse_is_refused_by_name(
    local_warehouse: LocalWarehouse, staging: Staging, unharmed: Path, what: str
) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    if what in ("part", "date"):  # a table with a schema of its own is described without a look at its partitions
        (local_warehouse.root / "nba" / "factors" / "schema.json").unlink()
    linked(local_warehouse, what, unharmed)
    file = staging.write("run-1", FEB_23, 1, ROWS)
    years = replace(SCAN, dates=(DateRange(start=date(2020, 1, 1), through=date(2024, 1, 1)),))
    tried: list[Callable[[], object]] = [
        lambda: local_warehouse.query("SELECT COUNT(*) FROM t", scans={"t": SCAN}),
        lambda: local_warehouse.query("SELECT COUNT(*) FROM t", scans={"t": years}),
        lambda: local_warehouse.read(SCAN),
        lambda: local_warehouse.describe(TABLE),
        lambda: local_warehouse.fingerprints(TABLE, "day", [FEB_23]),
        lambda: local_warehouse.row_counts(TABLE, "day", SCAN.dates[0]),
        lambda: local_warehouse.load(TABLE, "day", ROWS),
        lambda: local_warehouse.back_up(BACKUP, [FEB_23], until=utcnow()),
        lambda: publish(local_warehouse, file),
    ]
    for act in tried:
        with pytest.raises(OutsideRoot, match=r"nba.* leads out of"):
            act()


@pytest.mark.parametrize("name", [".lock", ".loading"])
def test_a_file_beside_a_table_is_no_way_out(local_warehouse: LocalWarehouse, unharmed: Path, name: str) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    place = local_warehouse.root / "nba" / "factors" / name
    place.unlink(missing_ok=True)
    place.symlink_to(unharmed / "new" if name == ".lock" else unharmed)
    with pytest.raises(OutsideRoot):
        local_warehouse.load(TABLE, "day", ROWS)


def test_undo_and_backups_follow_no_links(local_warehouse: LocalWarehouse, staging: Staging, unharmed: Path) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    for name in (".undo", ".cleanup"):
        (local_warehouse.root / name).symlink_to(unharmed)
    before = local_warehouse.fingerprints(TABLE, "day", [FEB_23])
    file = staging.write("run-2", FEB_23, 1, ROWS.slice(0, 1))
    for act in (
        lambda: publish(local_warehouse, file, before[FEB_23]),
        lambda: local_warehouse.replaced_partitions(TABLE, "day", "run-1", [FEB_23]),
        local_warehouse.delete_expired_undo,
        lambda: local_warehouse.back_up(BACKUP, [FEB_23], until=utcnow()),
        lambda: local_warehouse.drop_backup(BACKUP),
        lambda: local_warehouse.read_backup(BACKUP),
    ):
        with pytest.raises(OutsideRoot):
            act()
    assert local_warehouse.fingerprints(TABLE, "day", [FEB_23]) == before


@pytest.mark.parametrize("name", ["..", "../../outside", "x/../../../outside"])
@pytest.mark.usefixtures("unharmed")
def test_no_run_or_backup_of_that_name_leads_out(local_warehouse: LocalWarehouse, name: str) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    with pytest.raises(OutsideRoot):
        local_warehouse.replaced_partitions(TABLE, "day", name + "/..", [FEB_23])
    with pytest.raises(BackfillError):
        local_warehouse.drop_backup(replace(BACKUP, id=name))


def test_retention_does_not_reach_through_a_link(local_warehouse: LocalWarehouse, unharmed: Path) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    (local_warehouse.root / ".undo").mkdir()
    (local_warehouse.root / ".undo" / "run-1").symlink_to(unharmed)
    long_ago = (utcnow() - timedelta(days=400)).timestamp()
    os.utime(unharmed, (long_ago, long_ago))
    local_warehouse.delete_expired_undo()


def test_links_that_stay_inside_are_fine_and_so_is_a_root_that_is_one(tmp_path: Path) -> None:
    real = LocalWarehouse(tmp_path / "real")
    real.load(TABLE, "day", ROWS)
    (real.root / "nba" / "aside").mkdir()
    (real.root / "nba" / "factors" / "day=2023-02-23").rename(real.root / "nba" / "aside" / "moved")
    (real.root / "nba" / "factors" / "day=2023-02-23").symlink_to("../aside/moved")
    (tmp_path / "link").symlink_to(real.root)
    through = LocalWarehouse(tmp_path / "link")
    for warehouse in (real, through):
        assert warehouse.read(SCAN).num_rows == 2
        assert warehouse.query("SELECT COUNT(*) AS n FROM t", scans={"t": SCAN})["n"].to_pylist() == [2]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM `/etc/passwd`",
        "SELECT (SELECT content FROM read_text('/etc/passwd')) FROM t",
        "COPY t TO 'STOLEN'",
        "ATTACH 'STOLEN'",
        "INSTALL httpfs",
    ],
)
def test_no_query_reads_anything_but_its_scans(local_warehouse: LocalWarehouse, tmp_path: Path, sql: str) -> None:
    local_warehouse.load(TABLE, "day", ROWS)
    stolen = tmp_path / "stolen"
    with pytest.raises((QueryFailed, UserError)):
        local_warehouse.query(sql.replace("STOLEN", str(stolen)), scans={"t": SCAN})  # pyright: ignore
    assert not stolen.exists()
