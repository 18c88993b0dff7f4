"""CSV files: read once, line by line, into a temporary file of texts, with the type of each column."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import UserError
from gated_backfill.common.storage.batch_spool import BatchSpool
from gated_backfill.producer.tables.conversion import DateFormat
from gated_backfill.producer.tables.exact_texts import ColumnGuess
from gated_backfill.producer.tables.row_file import Problems, Progress, RowChunk, RowFile, column_names

CHUNK_CHARACTERS = 2 * 1024 * 1024  #: of the rows that are in memory as Python objects
MAX_FIELD_CHARACTERS = 131_072  #: a longer field is nearly always a quote that is never closed
MAX_LINE_CHARACTERS = 16 * 1024 * 1024  #: a longer line is nearly always no text
ENCODING_ADVICE = "name its encoding with --encoding, such as cp1252 or latin-1"
DECODED_BYTES = 1024 * 1024  #: at once, in search of a byte that is no text


@dataclass(frozen=True, kw_only=True)
class CsvFormat:
    """How a CSV file is written."""

    encoding: str = "utf-8"
    delimiter: str = ","

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0':
            raise UserError(f"--delimiter {self.delimiter!r} is not one character, such as ';' or '\\t'")
        try:
            is_text = codecs.lookup(self.encoding)._is_text_encoding  # as `open` does
        except LookupError:
            is_text = False
        if not is_text:
            raise UserError(f"--encoding {self.encoding!r} is not known; usual ones are utf-8, cp1252 and latin-1")

    @property
    def codec(self) -> str:
        """The name of the encoding's codec: of UTF-8, the one that drops a byte order mark."""
        name = codecs.lookup(self.encoding).name
        return "utf-8-sig" if name == "utf-8" else name


@contextmanager
def csv_rows(
    file: Path,
    csv_format: CsvFormat,
    renames: Mapping[str, str],
    dates: DateFormat,
    spool_folder: Path | None,
    progress: Progress,
) -> Generator[RowFile]:
    """Read the rows of a CSV file with a header. Raises `UserError`, which names the line of each fault."""
    reader = _CsvReader(file, csv_format, progress)
    with reader.opened():
        names = column_names(file, reader.header(), renames)
        schema = pa.schema([("", pa.int64()), *((name, pa.string()) for name in names)])
        guesses = {name: ColumnGuess(dates.exact_dates) for name in names}
        spool = BatchSpool(schema, spool_folder)
        with spool:
            for places, columns in reader.chunks(len(names)):
                for guess, column in zip(guesses.values(), columns, strict=True):
                    guess.add(column)
                spool.append(pa.record_batch([pa.array(places, pa.int64()), *columns], schema=schema))
            yield RowFile(
                file=file,
                place_word="line",
                rows=spool.rows,
                types={name: guess.type for name, guess in guesses.items()},
                chunks=lambda: map(_chunk_of, spool),
            )


def _chunk_of(batch: pa.RecordBatch) -> RowChunk:
    names = batch.schema.names[1:]
    columns: dict[str, pa.Array[Any]] = dict(zip(names, batch.columns[1:], strict=True))
    return RowChunk(places=batch.column(0), columns=columns)


class _CsvReader:
    """Reads the header and the rows of an open file."""

    def __init__(self, file: Path, csv_format: CsvFormat, progress: Progress) -> None:
        self._file = file
        self._format = csv_format
        self._progress = progress
        self._characters = 0  #: of the lines read so far
        self._row_line = 1  #: the line on which the present row begins

    @contextmanager
    def opened(self) -> Generator[None]:
        """Open the file, and name the line of whatever cannot be read."""
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        with self._file.open(encoding=self._format.codec, newline="") as text:
            self._text: Any = text
            self._size = self._file.stat().st_size
            self._records = csv.reader(self._lines(text), strict=True, delimiter=self._format.delimiter)
            yield

    @contextmanager
    def _naming_lines(self) -> Generator[None]:
        try:
            yield
        except UnicodeError as exc:
            raise UserError(_undecodable(self._file, self._format, exc)) from exc
        except csv.Error as exc:
            raise UserError(f"{self._file} can't be read: {self._fault(exc)}") from exc

    def _lines(self, text: TextIO) -> Iterator[str]:
        number = 0
        while line := text.readline(MAX_LINE_CHARACTERS):
            number += 1
            self._characters += len(line)
            if "\0" in line:
                raise UserError(
                    f"{self._file} can't be read: line {number} has a NUL character: the file is no text, or has "
                    f"another encoding (--encoding utf-16?)"
                )
            if len(line) == MAX_LINE_CHARACTERS:
                raise UserError(f"{self._file} can't be read: line {number} has {MAX_LINE_CHARACTERS} characters")
            yield line

    def header(self) -> list[str]:
        with self._naming_lines():
            header = next(self._records, None)
        if not header:
            raise UserError(
                f"{self._file} is empty" if header is None else f"{self._file}: line 1, the header, is empty"
            )
        self._row_line = self._records.line_num + 1
        return header

    def chunks(self, width: int) -> Iterator[tuple[list[int], list[pa.Array[Any]]]]:
        """Yield the rows: the line on which each begins, and the columns, whose empty fields are null."""
        ragged = Problems(file=self._file, place_word="line")
        with self._naming_lines():
            while True:
                rows, places = self._read_rows(width, ragged)
                if not rows:
                    break
                self._progress("reading", self._text.buffer.tell(), self._size)
                yield places, [_texts(values) for values in zip(*rows, strict=True)]
        ragged.check()

    def _read_rows(self, width: int, ragged: Problems) -> tuple[list[list[str]], list[int]]:
        rows: list[list[str]] = []
        places: list[int] = []
        end = self._characters + CHUNK_CHARACTERS
        for fields in self._records:
            if len(fields) == width:
                rows.append(fields)
                places.append(self._row_line)
            elif fields:
                ragged.add(self._row_line, f"{len(fields)} fields, the header has {width}")
            self._row_line = self._records.line_num + 1
            if self._characters >= end and rows:
                break
        return rows, places

    def _fault(self, exc: csv.Error) -> str:
        """Describe the fault with its line. A quote that is never closed is named by the line on which it opens."""
        line = self._records.line_num
        text = str(exc)
        is_long = "field limit" in text
        if not is_long and "unexpected end" not in text:
            return f"line {line}: text after a closing quote: a quote within a quoted field is written twice ({exc})"
        opened = self._line_of_open_quote(line)
        if opened is None:
            return f"line {line}: a field has more than {MAX_FIELD_CHARACTERS} characters"
        if is_long:
            return (
                f"line {opened}: the quoted field that begins there has more than {MAX_FIELD_CHARACTERS} characters: "
                f"is its closing quote missing?"
            )
        return f"line {opened}: the quote that opens there is never closed"

    def _line_of_open_quote(self, through: int) -> int | None:
        """Return the line on which the last quote of the present row opens; None for a row without one."""
        opened: int | None = None
        is_quoted, at_start = False, True
        with self._file.open(encoding=self._format.codec, newline="") as text:
            for number, line in enumerate(itertools.islice(text, self._row_line - 1, through), self._row_line):
                at_start = at_start or not is_quoted
                after_quote = False
                for character in line:
                    if character == '"' and is_quoted:
                        is_quoted, after_quote = False, True
                    elif character == '"' and (at_start or after_quote):
                        opened = number if at_start else opened
                        is_quoted, after_quote = True, False
                    else:
                        after_quote = False
                    at_start = not is_quoted and character == self._format.delimiter
        return opened if is_quoted else None


def _texts(values: Sequence[str]) -> pa.Array[Any]:
    texts: Any = pa.array(values, pa.string())
    return pc.if_else(pc.equal(texts, pa.scalar("")), pa.scalar(None, pa.string()), texts)


def _undecodable(file: Path, csv_format: CsvFormat, exc: UnicodeError) -> str:
    """Describe the first bytes of the file that are no text, with their line."""
    name = "UTF-8" if csv_format.codec == "utf-8-sig" else csv_format.encoding
    decoder = codecs.getincrementaldecoder(csv_format.codec)()
    line, consumed, after_return = 1, 0, False
    with file.open("rb") as data:
        is_whole = False
        while not is_whole:
            block = data.read(DECODED_BYTES)
            is_whole = not block
            before = decoder.getstate()
            try:
                text = decoder.decode(block, final=is_whole)
            except UnicodeDecodeError as fault:
                valid = len(block) - len(fault.object) + fault.start
                decoder.setstate(before)
                with suppress(UnicodeError):  # without the byte order mark of UTF-16 nothing is decoded
                    text = decoder.decode(block[: max(valid, 0)])
                    line += _line_ends(text) - (after_return and text.startswith("\n"))
                place = f"line {line}, byte {consumed + valid} of the file"
                return f"{file} is not {name} text: {fault.reason} on {place}: {ENCODING_ADVICE}"
            except UnicodeError:
                break
            consumed += len(block)
            line += _line_ends(text) - (after_return and text.startswith("\n"))
            after_return = text.endswith("\r")
    return f"{file} is not {name} text: {exc} (line {line}): {ENCODING_ADVICE}"


def _line_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")
