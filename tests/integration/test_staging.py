"""Result files that wait for the gate, and the quarantine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.errors import QueryFailed, UserError
from gated_backfill.common.storage import files
from gated_backfill.common.storage.staging import SAFE_NAME, Staging
from tests.buckets import path_of
from tests.builders import FEB_23, FEB_24, FEB_25, is_intact, rows_of, staged


def test_what_is_staged_reads_back_whole(any_staging: Staging) -> None:
    rows = rows_of(FEB_23, players=187)
    file = any_staging.write("run-1", FEB_23, 1, rows)
    assert (file.day, file.rows) == (FEB_23, 187)
    assert is_intact(any_staging, file)
    assert pq.read_table(path_of(file.location)).equals(rows)


def test_the_same_rows_give_the_same_file_whoever_stages_them(any_staging: Staging) -> None:
    first = any_staging.write("run-1", FEB_23, 1, rows_of(FEB_23))
    again = any_staging.write("run-2", FEB_23, 2, rows_of(FEB_23).replace_schema_metadata({"built": "elsewhere"}))
    assert first.checksum == again.checksum
    assert first.location != again.location


def test_rows_that_are_staged_in_parts_are_those_that_are_staged_at_once(any_staging: Staging) -> None:
    rows = rows_of(FEB_23, players=187)
    at_once = any_staging.write("run-1", FEB_23, 1, rows)
    in_parts = any_staging.write_parts("run-1", FEB_23, 2, rows.schema, rows.to_batches(max_chunksize=10))
    assert (in_parts.checksum, in_parts.rows) == (at_once.checksum, 187)
    assert is_intact(any_staging, in_parts)


def test_many_rows_are_staged_in_groups(any_staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_BYTES", 1000)
    rows = rows_of(FEB_23, players=187)
    file = any_staging.write_parts("run-1", FEB_23, 1, rows.schema, rows.to_batches(max_chunksize=50))
    with any_staging.open(file) as staged_rows:
        assert staged_rows.metadata.num_row_groups == 4
        assert staged_rows.read().equals(rows)


def test_a_file_that_others_write_is_staged_as_it_is(any_staging: Staging) -> None:
    rows = rows_of(FEB_23, players=187)
    file = any_staging.write_file("run-1", FEB_23, 1, lambda path: pq.write_table(rows, path))
    assert (file.day, file.rows) == (FEB_23, 187)
    assert is_intact(any_staging, file)
    with any_staging.open(file) as staged_rows:
        assert staged_rows.read().equals(rows)


def test_a_file_that_cannot_be_written_is_not_staged(any_staging: Staging) -> None:
    def fail_halfway(path: str) -> None:
        Path(path).write_bytes(b"PAR1")
        raise QueryFailed("the rest can't be read")

    with pytest.raises(QueryFailed, match="the rest"):
        any_staging.write_file("run-1", FEB_23, 1, fail_halfway)
    folder = path_of(any_staging.location("run-1", FEB_23, 1)).parent
    assert not folder.exists() or not list(folder.iterdir())


def test_rows_that_fail_on_their_way_leave_no_file(any_staging: Staging) -> None:
    rows = rows_of(FEB_23)

    def failing() -> Iterator[pa.RecordBatch]:
        yield from rows.to_batches()
        raise QueryFailed("the rest can't be read")

    with pytest.raises(QueryFailed, match="the rest"):
        any_staging.write_parts("run-1", FEB_23, 1, rows.schema, failing())
    folder = path_of(any_staging.location("run-1", FEB_23, 1)).parent
    assert not folder.exists() or not list(folder.iterdir())


def test_an_attempt_never_overwrites_anothers_rows(any_staging: Staging) -> None:
    first = staged(any_staging, FEB_23, players=1, attempt=1)
    second = staged(any_staging, FEB_23, players=187, attempt=2)
    assert is_intact(any_staging, first)
    assert is_intact(any_staging, second)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0"), id="longer"),
        pytest.param(lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]), id="one-byte-changed"),
    ],
)
def test_a_damaged_file_is_not_intact(any_staging: Staging, damage: object) -> None:
    file = staged(any_staging, FEB_23)
    damage(path_of(file.location))  # pyright: ignore[reportCallIssue]
    assert not is_intact(any_staging, file)


def test_a_refused_file_is_kept_in_quarantine(any_staging: Staging) -> None:
    file = staged(any_staging, FEB_23)
    data = path_of(file.location).read_bytes()
    kept = path_of(any_staging.quarantine("run-1", file))
    assert kept.read_bytes() == data
    assert "quarantine" in kept.parts
    assert not path_of(file.location).exists()
    assert path_of(any_staging.quarantine("run-1", file)) == kept
    assert kept.read_bytes() == data


def test_discarding_a_run_leaves_its_quarantine_and_other_runs(any_staging: Staging) -> None:
    kept = path_of(any_staging.quarantine("run-1", staged(any_staging, FEB_23)))
    file, other = staged(any_staging, FEB_24), any_staging.write("run-2", FEB_24, 1, rows_of(FEB_24))
    any_staging.delete("run-1")
    any_staging.delete("run-1")
    assert not path_of(file.location).parent.exists()
    assert kept.exists()
    assert is_intact(any_staging, other)


def test_discarding_days_removes_all_their_attempts_and_no_others(any_staging: Staging) -> None:
    gone = [staged(any_staging, FEB_23, attempt=1), staged(any_staging, FEB_23, attempt=2), staged(any_staging, FEB_24)]
    stays = staged(any_staging, FEB_25)
    any_staging.delete("run-1", frozenset({FEB_23, FEB_24}))
    any_staging.delete("run-2", frozenset({FEB_25}))
    assert [path_of(file.location).exists() for file in gone] == [False, False, False]
    assert is_intact(any_staging, stays)


NAMES = ["..", ".", "", "a/b", "../../etc", "/etc", "a b", "a\n", "a.b", "run\0"]


@pytest.mark.parametrize("run", NAMES)
def test_what_is_no_run_id_never_becomes_a_path(any_staging: Staging, tmp_path: Path, run: str) -> None:
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(b"dear")
    file = staged(any_staging, FEB_23)
    for act in (
        lambda: any_staging.write(run, FEB_23, 1, rows_of(FEB_23)),
        lambda: any_staging.location(run, FEB_23, 1),
        lambda: any_staging.quarantine(run, file),
        lambda: any_staging.delete(run),
    ):
        with pytest.raises(UserError):
            act()
    assert outside.exists()
    assert is_intact(any_staging, file)


@given(st.text(max_size=10))
def test_every_path_lies_under_the_staging_folder(run: str) -> None:
    try:
        path = Path(Staging(Path("/staging")).location(run, FEB_23, 1))
    except UserError:
        assert not SAFE_NAME.fullmatch(run)
        return
    assert path.parent.parent == Path("/staging")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "staging").write_bytes(b"a file where the folder should be")
    staging = Staging(tmp_path / "staging")
    with pytest.raises(UserError):
        staging.check()
    with pytest.raises(UserError):
        staged(staging, FEB_23)


def test_a_check_leaves_nothing_behind(any_staging: Staging) -> None:
    any_staging.check()
    assert not [path for path in path_of(str(any_staging.root)).rglob("*") if path.is_file()]


def test_a_kind_of_url_that_nobody_serves_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere://"):
        Staging("nowhere://bucket/prefix")


def test_nothing_half_written_is_left_behind(any_staging: Staging) -> None:
    file = staged(any_staging, FEB_23)
    assert [path.name for path in path_of(file.location).parent.iterdir()] == ["2023-02-23-1.parquet"]
