"""A column of texts gets a type only if its values give every text back."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.producer.tables.conversion import DateFormat, convert
from gated_backfill.producer.tables.exact_texts import ColumnGuess

ISO = DateFormat()


def type_of(*texts: str | None, chunk: int = 1000, dates: DateFormat = ISO) -> ColumnType:
    guess = ColumnGuess(dates.exact_dates)
    for at in range(0, len(texts), chunk):
        guess.add(pa.array(texts[at : at + chunk], pa.string()))
    return guess.type


TEXT = [
    ("12E5", "120E4"),
    ("0E7",),
    ("1e3", "1.5"),
    ("1e5", "1.5"),
    ("1E-05", "1.5"),
    ("1e-5", "1.5"),
    ("1.0e-05", "1.5"),
    ("5e-07",),
    ("5e-07", "2e-08"),
    ("+4930123456",),
    ("+5",),
    ("+1.5",),
    ("007",),
    ("-007",),
    ("00.5",),
    ("01.5",),
    ("1_000",),
    ("1,5",),
    (" 5",),
    ("5 ",),
    ("\t5",),
    ("5\n",),
    (" 1.5",),
    ("1.5 ",),
    ("\u0665",),
    ("1\u0663",),
    ("\uff15",),
    ("\u22125",),
    ("0x1F",),
    ("0b1",),
    (".5",),
    ("5.",),
    ("-.5",),
    ("-",),
    (".",),
    ("-0",),
    ("-0", "1.5"),
    ("1e400",),
    ("1" + "0" * 400 + ".5",),
    ("Infinity",),
    ("inf",),
    ("-inf",),
    ("nan",),
    ("NaN",),
    ("NA",),
    ("null",),
    ("9223372036854775808",),
    ("-9223372036854775809",),
    ("20230223000000000042", "1.5"),
    ("9007199254740993", "1.5"),
    ("0.1000000000000000055",),
    ("1.00000000000000001",),
    ("123456789.123456789012",),
    ("1.1", "1.10"),
    ("1", "1.0"),
    ("2", "1.50"),
    ("1.5", "1.50"),
    ("true", "True"),
    ("TRUE",),
    ("True",),
    ("t", "f"),
    ("yes",),
    ("true", "0"),
    ("2024-5-1",),
    ("2024-05-1",),
    ("2024-02-30",),
    ("2023-02-29",),
    ("2024-05-01 ",),
    ("0000-01-01",),
    ("24-05-01",),
    ("10000-01-01",),
    ("2024/05/01",),
    ("01.05.2024",),
    ("2024-05-01T00:00:00Z",),
    ("2024-05-01 00:00:00",),
    ("\u0662024-05-01",),
    ("2024-05-01", "x"),
    ("1", "x"),
    ("1.5", "true"),
    ("1", "2024-05-01"),
    (None, None),
    ("5\u00a0",),
]


@pytest.mark.parametrize("texts", TEXT, ids=str)
def test_texts_that_a_value_would_not_give_back_stay_text(texts: tuple[str | None, ...]) -> None:
    assert type_of(*texts) == "STRING"
    assert type_of(*texts, chunk=1) == "STRING"


TYPED: list[tuple[ColumnType, tuple[str | None, ...]]] = [
    ("INT64", ("0", "7", "-4", None)),
    ("INT64", ("9223372036854775807", "-9223372036854775808")),
    ("INT64", ("20240501",)),
    ("FLOAT64", ("0.5", "-0.25", "3")),
    ("FLOAT64", ("1.0", "2.5", "-3.0", None)),
    ("FLOAT64", ("1.50", "2.00", "10.25")),
    ("FLOAT64", ("0.00", "-0.00")),
    ("FLOAT64", ("-0.0", "0.0")),
    ("FLOAT64", ("0.000001", "1.5")),
    ("FLOAT64", ("1.5", "5e-07", "1e+22", "-1.5e-300")),
    ("FLOAT64", ("10.357019999999999",)),
    ("FLOAT64", ("0.1", "9007199254740992")),
    ("FLOAT64", ("123456789012345680.0",)),
    ("FLOAT64", ("0.30000000000000004",)),
    ("FLOAT64", ("1.10", "1.20")),
    ("DATE", ("2024-02-29", "0001-01-01", "9999-12-31", None)),
    ("BOOL", ("true", "false", None)),
]


@pytest.mark.parametrize(("kind", "texts"), TYPED, ids=str)
def test_texts_that_their_values_give_back_have_a_type(kind: ColumnType, texts: tuple[str | None, ...]) -> None:
    assert type_of(*texts) == kind
    assert type_of(*texts, chunk=1) == kind
    assert not convert(pa.array(texts, pa.string()), kind).problems


NEARLY_NUMBERS = st.from_regex(r"[+-]?0{0,2}[0-9]{0,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
ANY_TEXTS = st.one_of(
    NEARLY_NUMBERS,
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, places=2).map(str),
    st.dates().map(str),
    st.sampled_from(["true", "false", "True", "1.50", "1", "2024-5-1"]),
    st.text(max_size=5),
).filter(bool)


def text_of(value: object, kind: ColumnType, decimals: int | None) -> str:
    """The canonical text of a value: of a number in Python's way, or with so many decimals."""
    if kind == "BOOL":
        return str(value).lower()
    if kind == "FLOAT64" and decimals is not None:
        return f"{value:.{decimals}f}"
    return str(value)


@given(texts=st.one_of(st.lists(ANY_TEXTS, min_size=1, max_size=4), ANY_TEXTS.map(lambda text: [text])))
@example(texts=["0.00001", "1.5"])
@example(texts=["1e+16", "1.5"])
def test_the_values_of_a_column_give_its_texts_back(texts: list[str]) -> None:
    kind = type_of(*texts)
    converted = convert(pa.array(texts, pa.string()), kind)
    assert not converted.problems
    values = converted.values.to_pylist()
    if kind != "FLOAT64":
        assert [text_of(value, kind, None) for value in values] == texts
        return
    plain = [text for text in texts if "e" not in text]
    decimals = {len(text.partition(".")[2]) for text in plain}
    given_back = [text_of(value, kind, None) for value in values]
    without_point = [format(Decimal(text), "f").removesuffix(".0") if "e" not in text else text for text in given_back]
    in_plain_digits = [format(Decimal(text), "f") for text in given_back]
    if len(decimals) == 1 and len(plain) == len(texts):
        (count,) = decimals
        assert [text_of(value, kind, count) for value in values] == texts
    else:
        for text, *forms in zip(texts, given_back, without_point, in_plain_digits, strict=True):
            assert text in {*forms, *(form.removesuffix(".0") for form in forms)}


@pytest.mark.parametrize("kind", ["INT64", "FLOAT64", "BOOL", "DATE", "DATETIME", "TIMESTAMP"])
@given(text=ANY_TEXTS)
def test_a_text_for_a_declared_type_is_converted_or_a_problem(kind: ColumnType, text: str) -> None:
    converted = convert(pa.array([text], pa.string()), kind)
    (value,) = converted.values.to_pylist()
    assert (value is None) == bool(converted.problems)
    if isinstance(value, float) and "e" not in text.lower():
        digits = max(len(text.strip("+-").replace(".", "").strip("0")), 1)
        assert Decimal(text) in (Decimal(f"{value:.{min(digits, 17) - 1}e}"), Decimal(value))


DECLARED: list[tuple[ColumnType, str, str | None]] = [
    ("INT64", "+5", None),
    ("INT64", "9.0", None),
    ("INT64", "9.00", None),
    ("INT64", "9.5", "is not a whole number"),
    ("INT64", "007", "is not a whole number"),
    ("INT64", " 5", "is not a whole number"),
    ("INT64", "1e3", "is not a whole"),
    ("INT64", "9223372036854775808", "does not fit in 64 bits"),
    ("INT64", "\u0665", "is not a whole number"),
    ("FLOAT64", "1e3", None),
    ("FLOAT64", ".5", None),
    ("FLOAT64", "5.", None),
    ("FLOAT64", "0E7", None),
    ("FLOAT64", "0.10000000000000001", None),
    ("FLOAT64", "1.50", None),
    ("FLOAT64", "9007199254740993", "more digits"),
    ("FLOAT64", "0.1000000000000000055", "more digits"),
    ("FLOAT64", "1152921504606846976", None),
    ("FLOAT64", "1e400", "is not a finite number"),
    ("FLOAT64", "1e-400", "too small"),
    ("FLOAT64", "1e-999999999999", "too small"),
    ("FLOAT64", "Infinity", "is not a finite number"),
    ("FLOAT64", "1_0", "is not a number"),
    ("FLOAT64", "1,5", "is not a number"),
    ("BOOL", "TRUE", None),
    ("BOOL", "f", None),
    ("BOOL", "1", None),
    ("BOOL", "yes", "is neither true nor false"),
    ("DATE", "2024-05-01", None),
    ("DATE", "20240501", "is not a date"),
    ("DATE", "2024-5-1", "is not a date"),
    ("DATE", " 2024-05-01", "has blanks"),
    ("DATE", "\u0662024-05-01", "not a date"),
    ("TIMESTAMP", "2024-05-01T10:00:00.123456000Z", None),
    ("TIMESTAMP", "2024-05-01 10:00:00+0200", None),
    ("TIMESTAMP", "2024-05-01 10:00:00.5 +02:00", None),
    ("TIMESTAMP", "2024-05-01T10:00Z", None),
    ("TIMESTAMP", "2024-05-01T10:00:00.1234567Z", "beyond microseconds"),
    ("TIMESTAMP", "2024-05-01T10:00:00", "has no zone"),
    ("TIMESTAMP", "9999-12-31T23:59:59-05:00", "outside the years"),
    ("TIMESTAMP", "0001-01-01T00:00:00+01:00", "outside the years"),
    ("TIMESTAMP", "2024-02-30T00:00:00Z", "not a time of the calendar"),
    ("TIMESTAMP", "2024-05-01T24:00:00Z", "not a time"),
    ("TIMESTAMP", "2024-05-01x10:00:00Z", "is not a time"),
    ("TIMESTAMP", "1714557600", "is not a time"),
    ("DATETIME", "2024-05-01T10:00:00", None),
    ("DATETIME", "2024-05-01T10:00:00Z", "has a zone"),
]


@pytest.mark.parametrize(("kind", "text", "problem"), DECLARED)
def test_a_declared_type_takes_what_it_keeps(kind: ColumnType, text: str, problem: str | None) -> None:
    converted = convert(pa.array([text, None], pa.string()), kind)
    if problem is None:
        assert not converted.problems
        assert converted.values.null_count == 1
    else:
        assert problem in converted.problems[0]
        assert text in converted.problems[0] or repr(text) in converted.problems[0]


@pytest.mark.parametrize(
    ("strptime", "text", "expected"),
    [
        ("%d.%m.%Y", "01.05.2024", "2024-05-01"),
        ("%d.%m.%Y", "1.5.2024", "2024-05-01"),
        ("%m/%d/%Y", "05/01/2024", "2024-05-01"),
        ("%Y%m%d", "20240501", "2024-05-01"),
        ("%d %b %Y", "01 May 2024", "2024-05-01"),
        ("%d.%m.%Y %H:%M", "01.05.2024 00:00", "2024-05-01"),
        ("%d.%m.%Y %H:%M", "01.05.2024 00:01", None),
        ("%Y%m%d", "2024511", None),
        ("%d.%m.%Y", "31.02.2024", None),
        ("%d.%m.%Y", "01.05.2024 ", None),
        ("%d.%m.%Y", "2024-05-01", None),
        ("%d.%m.%Y", "\u0661.05.2024", None),
    ],
)
def test_a_format_of_dates(strptime: str, text: str, expected: str | None) -> None:
    dates = DateFormat(strptime)
    converted = convert(pa.array([text], pa.string()), "DATE", dates)
    assert [value and str(value) for value in converted.values.to_pylist()] == [expected]
    assert bool(converted.problems) == (expected is None)
    assert (type_of(text, dates=dates) == "DATE") == (expected is not None)


@pytest.mark.parametrize("strptime", ["", "%d.%m.", "%Y", "%H:%M", "%Q", "d.m.Y", "%", "%Y-%m-%d %z"])
def test_a_format_that_is_no_date_is_refused(strptime: str) -> None:
    with pytest.raises(UserError, match="--date-format"):
        DateFormat(strptime)


@pytest.mark.parametrize(
    ("strptime", "problem"),
    [
        ("%d/%d/%Y", "gives the same part twice: use %d once"),
        ("%d.%m.%Y %m", "gives the same part twice: use %m once"),
        ("%%%d%%.%m.%Y%Y", "gives the same part twice: use %Y once"),
        ("%d.%m.%Y %c", "gives the same part twice: use one of its codes once"),
    ],
)
def test_a_format_that_gives_a_part_twice_is_refused(strptime: str, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        DateFormat(strptime)
    assert str(refused.value) == f"--date-format {strptime!r} {problem}"


@given(st.lists(st.sampled_from("%") | st.characters(codec="utf-8"), max_size=12).map("".join))
@example("%d.%m.%Y(")
@example("%d.%m.%Y\x00")
@example("%-d.%m.%Y")
@example("%")
def test_any_format_is_taken_or_refused_in_one_line(strptime: str) -> None:
    try:
        DateFormat(strptime)
    except UserError as exc:
        refusal = str(exc)
    else:
        refusal = "none"
    assert len(refusal.splitlines()) == 1
