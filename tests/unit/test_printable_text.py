"""Texts of others are made printable: on one line, without what acts on a terminal, and legible in every script."""

from __future__ import annotations

import logging

import pytest
from celery.app.log import TaskFormatter
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from gated_backfill.common.model.missing_names import list_names
from gated_backfill.common.process.logs import PrintableFormatter
from gated_backfill.common.process.printable_text import (
    NAME_LENGTH,
    TEXT_LENGTH,
    printable,
    printable_lines,
    printable_name,
    shorten,
)
from gated_backfill.producer.cli.runs.history import _format_cell
from gated_backfill.producer.metrics.collector import gauge
from gated_backfill.worker.dates.outcomes import AttemptOutcome, task_result
from tests.builders import FEB_23
from tests.texts import acting_characters, check_output, texts

LONGEST = 25_000  #: of what is not shortened: labels, and records of logs
anything = st.one_of(texts, st.text(st.characters(exclude_categories=[])))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a reason, as usual: 3 of 4 (75 %)", id="prose"),
        pytest.param(r"C:\folder\new [red] {x} 'y' \x1b", id="brackets-and-backslashes"),
        pytest.param("é ñ Łódź", id="latin"),
        pytest.param("中文 東京　太郎", id="chinese-and-a-wide-space"),
        pytest.param("می‌خواهم हिन्दी עברית", id="scripts-with-joiners-and-marks"),
        pytest.param("👩🏽‍🚀 ❤️‍🔥 🇩🇪", id="emoji-with-joiners"),
        pytest.param("\U0001fae9", id="an-emoji-newer-than-python"),
        pytest.param("5 000\N{NO-BREAK SPACE}km", id="a-fixed-space"),
    ],
)
def test_legible_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_name(text) == shorten(text) == text


@pytest.mark.parametrize(
    ("text", "shown", "name"),
    [
        pytest.param("a\nb", "a b", r"a\nb", id="line-break"),
        pytest.param("a\r\nb", "a b", r"a\r\nb", id="windows-line-break"),
        pytest.param("a\tb", "a b", r"a\tb", id="tab"),
        pytest.param("a\u2028b\x85c", "a b c", r"a\u2028b\x85c", id="unicode-line-breaks"),
        pytest.param("\x1b[31mred", r"\x1b[31mred", r"\x1b[31mred", id="escape-sequence"),
        pytest.param("\x9b2J", r"\x9b2J", r"\x9b2J", id="c1-escape-sequence"),
        pytest.param("\u202etxt.exe", r"\u202etxt.exe", r"\u202etxt.exe", id="direction-override"),
        pytest.param("ad\u200da", r"ad\u200da", r"ad\u200da", id="hidden-joiner"),
        pytest.param("a\u200bd\ufeffa", r"a\u200bd\ufeffa", r"a\u200bd\ufeffa", id="zero-width"),
        pytest.param("\udcff\x00", r"\udcff\x00", r"\udcff\x00", id="not-utf8-and-nul"),
    ],
)
def test_other_characters_are_escaped(text: str, shown: str, name: str) -> None:
    assert printable(text) == shown
    assert printable_name(text) == name


@given(text=anything)
def test_any_text_becomes_one_line_that_does_not_act(text: str) -> None:
    for shown in (printable(text), printable_name(text), shorten(text)):
        assert acting_characters(shown) == set()
        assert len(shown.splitlines()) <= 1
        assert printable(shown) == shown
        shown.encode()
    assert len(printable_name(text)) <= NAME_LENGTH
    assert len(shorten(text)) <= TEXT_LENGTH


@given(text=anything)
def test_of_several_lines_only_the_first_begins_at_the_margin(text: str) -> None:
    first, *others = printable_lines(text).split("\n")

    assert all(line.startswith("    ") for line in others)
    assert acting_characters(first + "".join(others)) == set()


def test_both_ends_of_a_long_text_are_shown() -> None:
    assert shorten("from here" + "-" * 5000 + "to there").startswith("from here-")
    assert shorten("from here" + "-" * 5000 + "to there").endswith("-to there")


@given(names=st.lists(texts, min_size=1, max_size=20))
def test_names_in_a_list_are_printable(names: list[str]) -> None:
    check_output(list_names(names, len(names)), longest=2000)


@given(reason=texts)
def test_the_result_that_flower_shows_is_printable(reason: str) -> None:
    result = task_result([AttemptOutcome(day=FEB_23, state="blocked", detail=reason)])

    check_output(result["detail"], longest=TEXT_LENGTH)


@given(label=texts)
def test_a_label_of_a_metric_stays_one_sample(label: str) -> None:
    class Labelled(Collector):
        def collect(self) -> list[object]:
            return [gauge("backfill_active_runs", [((label, "running"), 1.0)], "job", "state")]

    registry = CollectorRegistry()
    registry.register(Labelled())
    page = generate_latest(registry).decode()
    (family,) = text_string_to_metric_families(page)

    check_output(page, longest=LONGEST)
    assert family.samples[0].labels["job"] == printable(label)


@given(text=texts)
def test_a_record_of_a_log_forges_no_other(text: str) -> None:
    record = logging.LogRecord("job", logging.WARNING, __file__, 1, "strange player %s", (text,), None)
    formatter = PrintableFormatter(TaskFormatter("[%(levelname)s] %(message)s", use_color=False))

    check_output(formatter.format(record), longest=LONGEST)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        pytest.param("=HYPERLINK(1)", "'=HYPERLINK(1)", id="formula"),
        pytest.param(" =1", "' =1", id="formula-after-a-space"),
        pytest.param("\t=1", "' =1", id="formula-after-a-tab"),
        pytest.param("\r@x", "' @x", id="formula-after-a-return"),
        pytest.param("+49 30", "'+49 30", id="plus"),
        pytest.param("-1 of 2", "'-1 of 2", id="minus"),
        pytest.param("＝1", "'＝1", id="full-width"),
        pytest.param("1 = 1", "1 = 1", id="no-formula"),
        pytest.param(-1, -1, id="number"),
        pytest.param(None, None, id="null"),
    ],
)
def test_a_cell_is_no_formula(value: object, cell: object) -> None:
    assert _format_cell(value) == cell


@given(text=texts)
def test_a_cell_of_any_text_is_one_line_and_no_formula(text: str) -> None:
    cell = _format_cell(text)

    assert acting_characters(cell) == set()
    assert "\n" not in cell
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
