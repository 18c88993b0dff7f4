"""Files that are replaced, removed and added while another program writes them: before each system call of ours."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest

from gated_backfill.common.storage.files import make_folders
from gated_backfill.common.warehouse.local import exchange
from gated_backfill.common.warehouse.local.exchange import (
    finish_replacement,
    move_file,
    rename_to_new,
    replace_file,
    take_file,
    take_snapshot,
)
from tests.interleaving import before_system_calls


class Place:
    """A file of a table, and the place beside it where a new one is prepared."""

    def __init__(self, folder: Path, *, prepared: bool = True) -> None:
        folder.mkdir()
        self.live, self.side = folder / "live", folder / "side"
        self.live.write_text("old")
        if prepared:
            self.side.write_text("new")
        self.expected = take_snapshot(self.live)

    def write(self, text: str) -> None:
        """Write as another program does."""
        temporary = self.live.with_name("theirs")
        temporary.write_text(text)
        temporary.replace(self.live)

    def replace(self) -> bool:
        return replace_file(str(self.live), str(self.side), self.expected)

    def take(self) -> bool:
        return take_file(str(self.live), str(self.side), self.expected)

    def texts(self) -> tuple[str | None, str | None]:
        return text_of(self.live), text_of(self.side)


def text_of(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_renameat2", None)


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    without_exchange(monkeypatch)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(
    params=[
        pytest.param(lambda _: None, id="with-exchange"),
        pytest.param(without_exchange, id="without-exchange"),
        pytest.param(without_links, id="without-links"),
    ]
)
def _any_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


@pytest.mark.usefixtures("_any_file_system")
def test_the_expected_file_is_replaced_and_left_at_the_side(tmp_path: Path) -> None:
    place = Place(tmp_path / "a")
    assert place.replace()
    assert place.texts() == ("new", "old")


@pytest.mark.usefixtures("_any_file_system")
def test_another_file_stays(tmp_path: Path) -> None:
    place = Place(tmp_path / "a")
    place.write("theirs")
    assert not place.replace()
    assert place.texts() == ("theirs", "new")


@pytest.mark.usefixtures("_any_file_system")
def test_the_same_content_in_another_file_is_the_expected_one(tmp_path: Path) -> None:
    for work in (Place.replace, Place.take):
        place = Place(tmp_path / work.__name__, prepared=work is Place.replace)
        place.write("old")
        assert work(place)
        assert place.texts()[1] == "old"


@pytest.mark.usefixtures("_any_file_system")
def test_a_file_that_was_written_in_place_stays(tmp_path: Path) -> None:
    place = Place(tmp_path / "a")
    place.live.write_text("old and more")
    assert not place.replace()
    assert place.texts() == ("old and more", "new")


@pytest.mark.usefixtures("_any_file_system")
def test_a_file_that_was_removed_stays_removed(tmp_path: Path) -> None:
    for work in (Place.replace, Place.take):
        place = Place(tmp_path / work.__name__)
        place.live.unlink()
        assert not work(place)
        assert place.texts() == (None, "new")


@pytest.mark.usefixtures("_any_file_system")
def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    for work, after in ((Place.replace, "new"), (Place.take, None)):
        place = Place(tmp_path / work.__name__, prepared=work is Place.replace)
        elsewhere = place.live.rename(tmp_path / f"{work.__name__}-elsewhere")
        place.live.symlink_to(os.path.relpath(elsewhere, place.live.parent))
        assert work(place)
        assert place.texts() == (after, "old")
        assert elsewhere.read_text() == "old"
        assert not place.side.is_symlink()


@pytest.mark.usefixtures("_any_file_system")
def test_the_expected_file_is_taken(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", prepared=False)
    assert place.take()
    assert place.texts() == (None, "old")


@pytest.mark.usefixtures("_any_file_system")
def test_another_file_is_put_back(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", prepared=False)
    place.write("theirs")
    assert not place.take()
    assert place.texts() == ("theirs", None)


@pytest.mark.usefixtures("_any_file_system")
def test_a_file_is_added_only_where_there_is_none(tmp_path: Path) -> None:
    place = Place(tmp_path / "a")
    with pytest.raises(FileExistsError):
        rename_to_new(str(place.side), str(place.live))
    assert place.texts() == ("old", "new")
    place.live.unlink()
    rename_to_new(str(place.side), str(place.live))
    assert place.texts() == ("new", None)


@pytest.mark.usefixtures("_any_file_system")
def test_what_a_link_leads_to_is_moved_as_a_file(tmp_path: Path) -> None:
    place = Place(tmp_path / "a", prepared=False)
    (tmp_path / "a" / "link").symlink_to("live")
    move_file(str(tmp_path / "a" / "link"), str(place.side))
    assert place.texts() == ("old", "old")
    assert not place.side.is_symlink()


# -- another program writes, on a file system with an exchange: without one, a write at one moment is lost --


def test_a_write_at_any_moment_is_not_lost(tmp_path: Path) -> None:
    for number in range(1, 20):
        place = Place(tmp_path / str(number))
        with before_system_calls({number: lambda place=place: place.write("theirs")}) as calls:
            replaced = place.replace()
        if calls.count < number:
            assert place.texts() == ("new", "old")
            return
        assert place.texts() == ("theirs", "old" if replaced else "new"), number
    pytest.fail("it takes too many calls")


def test_the_last_of_several_writes_is_the_one_that_stays(tmp_path: Path) -> None:
    for numbers in combinations(range(1, 12), 3):
        place = Place(tmp_path / str(numbers))
        with before_system_calls({n: lambda place=place, n=n: place.write(str(n)) for n in numbers}) as calls:
            replaced = place.replace()
        written = [str(n) for n in numbers if n <= calls.count]
        live, side = place.texts()
        assert live == [*(["new"] if replaced else ["old"]), *written][-1], numbers
        assert side in (["old"] if replaced else ["new", *written[:-1]]), numbers


@pytest.mark.parametrize("text", ["theirs", "old"])
def test_a_write_while_a_file_is_taken_is_not_lost(tmp_path: Path, text: str) -> None:
    for number in range(1, 20):
        place = Place(tmp_path / str(number), prepared=False)
        with before_system_calls({number: lambda place=place: place.write(text)}) as calls:
            taken = place.take()
        if calls.count < number:
            assert (taken, *place.texts()) == (True, None, "old")
            return
        assert text in place.texts(), number
        assert not taken or place.texts()[1] == "old", number
    pytest.fail("it takes too many calls")


class Killed(BaseException):
    """What nothing catches."""


def die() -> None:
    raise Killed


@pytest.mark.usefixtures("_any_file_system")
def test_a_replacement_that_died_is_finished(tmp_path: Path) -> None:
    for number in range(1, 30):
        place = Place(tmp_path / str(number))
        with before_system_calls({number: die}) as calls, suppress(Killed):
            place.replace()
        finish_replacement(str(place.live), str(place.side))
        assert place.texts() in (("old", "new"), ("new", "old")), number
        assert sorted(file.name for file in place.live.parent.iterdir()) == ["live", "side"]
        if calls.count < number:
            return
    pytest.fail("it never came to its end")


def test_new_folders_are_made_durable_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    for _ in range(2):
        make_folders(tmp_path / "a" / "b")
        assert synced == [str(tmp_path), str(tmp_path / "a")]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folders(tmp_path / "file")
