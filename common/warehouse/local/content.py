"""Fingerprints of what columns hold, however their file stores it.

A fingerprint does not depend on the file's compression, on how its rows are grouped, or on the width and encoding of
its types. The type of a column that was found in files may widen when another date is added, so whole floats count as
integers, times at midnight as dates, and NaN as null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.entities import MAX_WHOLE_FLOAT
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.warehouse.entities import day_numbers

DAY_MICROSECONDS = 86_400_000_000


def content_fingerprint(digests: Mapping[str, bytes]) -> str:
    """Hash the digests of named columns of the same rows, in the order of their names."""
    content = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        content.update(f"{name}\0".encode() + digest)
    return content.hexdigest()


def column_digest(values: pa.ChunkedArray[Any]) -> bytes:
    """Hash the values of a column, whose type is that of a column type, and their number."""
    content = hashlib.sha256(str(len(values)).encode())
    for part in _contents(values):
        content.update(part)
    return content.digest()


def _contents(values: pa.ChunkedArray[Any]) -> Iterator[Any]:
    """Yield the positions of nulls, then the other values, after a word for their kind: bytes or arrays of numbers."""
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = values.to_numpy()  # with NaN for null
        nulls = np.isnan(numbers)
        if nulls.any():
            yield np.packbits(nulls)
            numbers = numbers[~nulls]
        yield from _number_contents(numbers)
        return
    if values.null_count:
        yield np.packbits(pc.is_null(values).to_numpy())
        values = values.drop_null()
    if len(values):
        yield from _value_contents(values, kind)


def _value_contents(values: pa.ChunkedArray[Any], kind: pa.DataType) -> Iterator[Any]:
    types = pa.types
    if types.is_string(kind) or types.is_binary(kind):
        yield b"texts" if types.is_string(kind) else b"bytes"
        yield from _text_contents(values)
    elif kind.equals(ARROW_TYPES["NUMERIC"]):
        yield b"decimals"
        yield from _decimal_contents(values)
    elif types.is_integer(kind):
        yield from _number_contents(values.to_numpy())
    elif types.is_boolean(kind):
        yield b"booleans"
        yield values.cast(pa.uint8()).to_numpy()
    elif types.is_date32(kind):
        yield b"dates"
        yield day_numbers(values).astype(np.int64)
    elif types.is_timestamp(kind):
        yield from _time_contents(values.cast(pa.int64()).to_numpy(), has_zone=kind.tz is not None)
    else:
        yield checksum_of(repr(values.to_pylist()).encode()).encode()  # no column type: read as it is


def _number_contents(numbers: npt.NDArray[Any]) -> Iterator[Any]:
    if not len(numbers):
        return
    if numbers.dtype.kind == "f" and (np.abs(numbers) <= MAX_WHOLE_FLOAT).all() and (np.rint(numbers) == numbers).all():
        numbers = numbers.astype(np.int64)
    yield b"numbers" if numbers.dtype.kind == "f" else b"whole numbers"
    yield np.ascontiguousarray(numbers)


def _time_contents(microseconds: npt.NDArray[np.int64], *, has_zone: bool) -> Iterator[Any]:
    if not has_zone and not (microseconds % DAY_MICROSECONDS).any():
        yield b"dates"
        yield microseconds // DAY_MICROSECONDS
    else:
        yield b"times in a zone" if has_zone else b"times"
        yield np.ascontiguousarray(microseconds)


def _decimal_contents(values: pa.ChunkedArray[Any]) -> Iterator[Any]:
    """Yield the bytes of all values, of arrays that may be slices."""
    width = values.type.bit_width // 8
    for chunk in values.chunks:
        data = chunk.buffers()[1]
        if data is not None:
            yield memoryview(data)[chunk.offset * width : (chunk.offset + len(chunk)) * width]


def _text_contents(values: pa.ChunkedArray[Any]) -> Iterator[Any]:
    """Yield the lengths of all texts, or bytes, then these, of arrays that may be slices."""
    texts: list[memoryview] = []
    for chunk in values.chunks:
        if not len(chunk):
            continue
        _, offset_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offset_buffer, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield np.diff(offsets)
        if data is not None:
            texts.append(memoryview(data)[offsets[0] : offsets[-1]])
    yield from texts
