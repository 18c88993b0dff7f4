"""The rows of a file that is loaded: read in chunks, each row with its place in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import IDENTIFIER, ColumnType

PROBLEMS_SHOWN = 5
MAX_PROBLEMS = 10_000  #: then the rest of the file is not checked
VALUE_CHARACTERS = 60  #: shown of a value in a message
OTHER_DELIMITERS = (";", "\t", "|")

Progress = Callable[[str, int, int], None]  #: what is done, how much of it, and how much there is


def no_progress(step: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class RowChunk:
    """Some rows of a file: the columns as the file has them, and the place of each row."""

    places: Any  #: a range, or an Arrow array
    columns: Mapping[str, Any]

    def place(self, index: int) -> int:
        """Return the place of the row with that index."""
        place = self.places[index]
        return place if isinstance(place, int) else place.as_py()


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows, which can be read several times."""

    file: Path
    place_word: str  #: what the places number: "line" or "row"
    rows: int
    types: Mapping[str, ColumnType]  #: by column, in the file's order: the type that keeps every value
    chunks: Callable[[], Iterator[RowChunk]]


@dataclass(kw_only=True)
class Problems:
    """Problems of a file by place. The first ones are kept, the others counted."""

    file: Path
    place_word: str
    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def add(self, place: int, text: str) -> None:
        """Add a problem. Raises `UserError` when there are too many to go on."""
        self.count += 1
        self.first = sorted([*self.first, (place, text)])[:PROBLEMS_SHOWN]
        if self.count >= MAX_PROBLEMS:
            self.check()

    def check(self) -> None:
        """Check that there was no problem. Raises `UserError`."""
        if not self.count:
            return
        more = self.count - len(self.first)
        at_least = "at least " if self.count >= MAX_PROBLEMS else ""
        suffix = f" and {at_least}{more} more" if more else ""
        listed = "; ".join(f"{self.place_word} {place}: {text}" for place, text in self.first)
        raise UserError(f"{self.file}: nothing was loaded: {listed}{suffix}")


def shown(value: object) -> str:
    """Return a value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}... ({len(text)} characters)"


def column_names(file: Path, header: Sequence[str], renames: Mapping[str, str]) -> list[str]:
    """Return the names of the columns, renamed. Raises `UserError` for names that no table can have."""
    if len(set(header)) < len(header):
        repeated = sorted({name for name in header if header.count(name) > 1})
        raise UserError(f"{file}: two columns have the same name: {', '.join(map(shown, repeated))}")
    if absent := [old for old in renames if old not in header]:
        raise UserError(f"{file}: --rename: there is no column {shown(absent[0])}; the columns are {_listed(header)}")
    names = [renames.get(name, name) for name in header]
    for number, name in enumerate(names, 1):
        if not IDENTIFIER.fullmatch(name):
            raise UserError(f"{file}: {shown(name)} is not a valid column name: {_advice(header, number)}")
    _check_names_differ(file, header, names)
    return names


def _check_names_differ(file: Path, header: Sequence[str], names: Sequence[str]) -> None:
    """Check that no two columns have one name, or names that differ only by case. Raises `UserError`."""
    by_lower_case: dict[str, str] = {}
    for old_name, name in zip(header, names, strict=True):
        if name.lower() not in by_lower_case:
            by_lower_case[name.lower()] = name
            continue
        other = by_lower_case[name.lower()]
        if other == name:
            raise UserError(f"{file}: two columns would be named {name}: --rename gives them the same name")
        raise UserError(
            f"{file}: the columns {other} and {name} have the same name, but for upper and lower case: "
            f"rename one with --rename {old_name}=NEW_NAME"
        )


def _advice(header: Sequence[str], number: int) -> str:
    name = header[number - 1]
    if not name:
        return (
            f"column {number} of the header has none (pandas writes its index so); name it with --rename '=NEW_NAME', "
            f"or write the file without it"
        )
    delimiters = [delimiter for delimiter in OTHER_DELIMITERS if delimiter in name]
    if len(header) == 1 and delimiters:
        return f"if its columns are separated by {shown(delimiters[0])}, say so with --delimiter"
    rename = f"'{name}=NEW_NAME'" if len(name) <= VALUE_CHARACTERS else "OLD=NEW"
    return f"letters, digits and _ only, not starting with a digit; rename it with --rename {rename}"


def _listed(header: Sequence[str]) -> str:
    return ", ".join(map(shown, header[:30])) + (", ..." if len(header) > 30 else "")
