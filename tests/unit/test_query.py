"""What the text of a SQL job may say: everything else is refused when the job is made, with its place in the text."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill import Column, Expectation, Input, Job, Query, Source, Target
from gated_backfill.common.errors import UserError

COLUMNS = ("store", "day", "revenue")
TABLES = ("rows", "rates")
SELECT = "SELECT store, day, revenue FROM "


def problem(text: str) -> str | None:
    """What is wrong with the text, in one line; None if nothing is."""
    try:
        Query(text).check("process", tables=TABLES, columns=COLUMNS)
    except UserError as exc:
        (line,) = str(exc).splitlines()
        return line
    return None


@pytest.mark.parametrize(
    "text",
    [
        SELECT + "rows",
        f"({SELECT}rows);",
        SELECT + "`rows` -- a comment",
        "SELECT rows.store, day, SUM(amount) AS revenue FROM rows JOIN rates USING (day) GROUP BY ALL",
        f"WITH sums AS ({SELECT}rows) {SELECT}sums WHERE day IN UNNEST(@days)",
        SELECT + "rows WHERE day BETWEEN DATE_SUB(@first_day, INTERVAL 1 DAY) AND @last_day",
        f"{SELECT}rows UNION ALL {SELECT}rates",
        SELECT + "rows QUALIFY ROW_NUMBER() OVER (PARTITION BY store ORDER BY day) = 1",
        SELECT + "rows, UNNEST(items) AS item",
        "SELECT store, day, (SELECT MAX(rate) FROM rates) AS revenue FROM rows",
        "SELECT store, day, ARRAY(SELECT AS STRUCT a, b FROM rates)[OFFSET(0)].a AS revenue FROM rows",
        "SELECT NET.HOST(store) AS store, day, SAFE.SUBSTR(revenue, 1) AS revenue FROM rows",
        f"WITH Sums AS ({SELECT}ROWS WHERE day IN UNNEST(@DAYS)) {SELECT}sums",
        SELECT + "rows WHERE " + " OR ".join(f"day = DATE '2024-01-{day:02}'" for day in range(1, 31)),
        SELECT + "rows WHERE NORMALIZE(store) = 'a'",
        "SELECT store, day, 'CURRENT_DATE from secret' AS revenue FROM rows -- RAND()",
    ],
)
def test_what_a_text_may_say(text: str) -> None:
    assert problem(text) is None


REPEATABLE = "a rebuild must give the same rows"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (" -- nothing", "it is empty"),
        ("SELEC 1", "line 1, column 7: it can't be read near '1'"),
        ("SELECT a,\nb FROM", "line 2, column 3: it can't be read near 'FROM'"),
        ("SELECT 'abc", "it is not GoogleSQL that can be read: a quotation mark may be missing"),
        (f"{SELECT}rows; {SELECT}rows", "it has 2 statements: only one SELECT is allowed"),
        ("DELETE FROM rows WHERE TRUE", "it has a statement DELETE: only one SELECT is allowed"),
        ("CREATE TABLE x AS SELECT 1", "it has a statement CREATE: only one SELECT is allowed"),
        ("MERGE rows USING rates ON TRUE WHEN MATCHED THEN DELETE", "it has a statement MERGE: only one SELECT"),
        ("DECLARE x INT64; SELECT 1", "it has a statement DECLARE: only one SELECT is allowed"),
        ("BEGIN SELECT 1; END", "it has a statement BEGIN: only one SELECT is allowed"),
        ("EXPORT DATA OPTIONS(uri='gs://x') AS SELECT 1", "it has a statement EXPORT: only one SELECT is allowed"),
        (SELECT + "shop.rows", "line 1, column 33: it reads shop.rows: the tables of the text are rows, rates"),
        (SELECT + "`p-1.shop.rows`", "line 1, column 33: it reads p-1.shop.rows"),
        (SELECT + "p-1.shop.rows", "line 1, column 33: it reads p-1.shop.rows"),
        (SELECT + "rows,\n  secret", "line 2, column 3: it reads secret"),
        (SELECT + "rows WHERE day IN (SELECT day FROM secret)", "line 1, column 68: it reads secret"),
        (f"{SELECT}rows UNION ALL {SELECT}secret", "it reads secret"),
        (SELECT + "INFORMATION_SCHEMA.TABLES", "it reads INFORMATION_SCHEMA.TABLES"),
        (SELECT + "EXTERNAL_QUERY('c', 'SELECT 1')", "it reads EXTERNAL_QUERY"),
        (f"WITH rows AS (SELECT 1 AS one) {SELECT}rows", "line 1, column 6: WITH rows hides a table of the job"),
        (SELECT + "rows FOR SYSTEM_TIME AS OF '2024-01-01'", f"it reads rows as of another time: {REPEATABLE}"),
        (SELECT + "rows TABLESAMPLE SYSTEM (10 PERCENT)", "TABLESAMPLE gives other rows each time"),
        (SELECT + "rows\nWHERE day < CURRENT_DATE", f"line 2, column 13: it calls CURRENT_DATE: {REPEATABLE}"),
        (SELECT + "rows WHERE day < current_date()", f"it calls CURRENT_DATE: {REPEATABLE}"),
        (SELECT + "rows WHERE at < CURRENT_TIMESTAMP()", f"it calls CURRENT_TIMESTAMP: {REPEATABLE}"),
        (SELECT + "rows WHERE at < CURRENT_DATETIME()", f"it calls CURRENT_DATETIME: {REPEATABLE}"),
        (SELECT + "rows WHERE at < CURRENT_TIME()", f"it calls CURRENT_TIME: {REPEATABLE}"),
        (SELECT + "rows WHERE RAND() < 0.5", f"line 1, column 44: it calls RAND: {REPEATABLE}"),
        (SELECT + "rows WHERE store = GENERATE_UUID()", f"it calls GENERATE_UUID: {REPEATABLE}"),
        (SELECT + "rows WHERE store = SESSION_USER()", f"it calls SESSION_USER: {REPEATABLE}"),
        (SELECT + "rows WHERE day = @day", "line 1, column 51: it has the parameter @day: the parameters are @days"),
        (SELECT + "rows WHERE day = ?", "line 1, column 50: it has the parameter ?"),
        (SELECT + "rows WHERE day = @@time_zone", "it has the parameter @"),
        *(
            (f"SELECT store, day, {call} AS revenue FROM rows", f"it calls {name}: {REPEATABLE}")
            for call, name in (
                ("NOW()", "NOW"),
                ("TODAY()", "TODAY"),
                ("get_current_timestamp()", "GET_CURRENT_TIMESTAMP"),
                ("current_setting('TimeZone')", "CURRENT_SETTING"),
                ("uuidv7()", "UUIDV7"),
                ("LOCALTIMESTAMP", "LOCALTIMESTAMP"),
            )
        ),
        ("SELECT store, UTC_DATE() AS day, revenue FROM rows", f": {REPEATABLE}"),
        ("SELECT store, day, shop.total(store) AS revenue FROM rows", "a function of a dataset may read other tables"),
        ("SELECT store, day, `p.shop.total`(store) AS revenue FROM rows", "a function of a dataset may read other"),
        ("SELECT store, day, AI.GENERATE('x') AS revenue FROM rows", "a function of a dataset may read other tables"),
        (SELECT + "secret WHERE EXISTS (WITH secret AS (SELECT 1 AS one) SELECT 1 FROM rows)", "it reads secret"),
        (
            SELECT + "shop.secret WHERE EXISTS (WITH `shop.secret` AS (SELECT 1 AS x) SELECT 1 FROM rows)",
            "it reads shop.secret",
        ),
        (f"WITH EXTERNAL_QUERY AS (SELECT 1 AS x) {SELECT}EXTERNAL_QUERY('c', 'x')", "it reads EXTERNAL_QUERY"),
        (f"WITH Rows AS (SELECT 1 AS one) {SELECT}rows", "WITH Rows hides a table of the job"),
        (f"{SELECT}rows UNION ALL SELECT * FROM rates", "it returns *: name each column"),
        (f"{SELECT}rows UNION ALL SELECT store, day FROM rates", "it returns 2 columns, and 3 before"),
        (f"{SELECT}rows UNION ALL BY NAME {SELECT}rates", "it has a UNION BY NAME"),
        (f"SELECT store, day, {'ABS(' * 60}1{')' * 60} AS revenue FROM rows", "it is nested too deeply"),
        (f"SELECT store, day, {'(' * 400}1{')' * 400} AS revenue FROM rows", "it is nested too deeply"),
        ("SELECT * FROM rows", "line 1, column 8: it returns *: name each column"),
        ("SELECT rows.* FROM rows", "it returns *: name each column"),
        ("SELECT * EXCEPT (amount) FROM rows", "it returns *: name each column"),
        ("SELECT AS STRUCT store, day, revenue FROM rows", "it is a SELECT AS STRUCT: name each column"),
        ("SELECT store, day FROM rows", "it does not return revenue"),
        (
            "SELECT store,\n  day,\n  SUM(amount)\nFROM rows",
            "line 3, column 3: column 3 has no name: add AS and a name",
        ),
        ("SELECT store, day, revenue, day FROM rows", "line 1, column 29: it returns two columns day"),
        ("SELECT store, day, revenue, more FROM rows", "it returns more, which is not a column of the target"),
    ],
)
def test_what_a_text_may_not_say(text: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert message in str(problem(text))
    assert caplog.records == []


@given(st.text(alphabet=st.sampled_from("SELECT rows,*()@?`'\"\n;-/FROM1"), max_size=40))
def test_any_text_is_accepted_or_refused_in_one_line(text: str) -> None:
    found = problem(text)
    assert found is None or not re.search(r"Traceback|sqlglot", found)


def job(process: object, **more: object) -> Job:
    target = Target(
        table="shop.revenue",
        date_column="day",
        key=("store",),
        columns={"store": Column(type="STRING"), "day": Column(type="DATE"), "revenue": Column(type="FLOAT64")},
    )
    values = {
        "name": "revenue",
        "version": "1",
        "target": target,
        "expectation": Expectation(table="shop.stores", date_column="day", entity="store"),
        "sources": (Source(name="tills", table="shop.tills", date_column="day"),),
        "process": process,
    }
    return Job(**values | more)  # type: ignore[arg-type]


def derived(query: object) -> tuple[Source, ...]:
    return (Source(name="past", table="shop.tills", date_column="day", lookback_days=1, derive=query),)  # type: ignore[arg-type]


def test_a_job_takes_a_query_with_its_inputs_and_a_derived_source() -> None:
    rates = Input(name="rates", table="shop.rates", date_column="day")
    history = Query("SELECT store, day, amount FROM history WHERE day IN UNNEST(@days)")
    job(Query(SELECT + "rows JOIN rates USING (day)"), inputs=(rates,), sources=derived(history))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: job(Query(SELECT + "rates")),
            "job revenue: process: line 1, column 33: it reads rates: the tables of",
        ),
        (lambda: job(Query(5)), "job revenue: process: the text of a Query is of type int, not str"),  # type: ignore[arg-type]
        (
            lambda: job(Query(SELECT + "rows"), sources=derived(Query("SELECT store, day FROM rows"))),
            "job revenue: derive of source past: line 1, column 24: it reads rows: the tables of the text are history",
        ),
        (
            lambda: job(Query(SELECT + "rows"), sources=derived(Query("SELECT store FROM history"))),
            "job revenue: derive of source past: it does not return day",
        ),
        (
            lambda: job(Query(SELECT + "rows"), sources=derived(lambda history, days: history)),
            "derive of source past is a Python function, but process is a Query: write both as queries or both as",
        ),
        (
            lambda: job(lambda batch: batch.rows, sources=derived(Query("SELECT store, day FROM history"))),
            "derive of source past is a Query, but process is a Python function",
        ),
        (
            lambda: job(
                Query(SELECT + "rows"), sources=derived(Query("SELECT store, day, 'x' AS _source FROM history"))
            ),
            "derive of source past: line 1, column 20: it returns _source, which each row gets by itself",
        ),
        (
            lambda: job(
                Query(SELECT + "rows"),
                inputs=(Input(name="rates", table="shop.rates", date_column="day", optional=True),),
            ),
            "job revenue: input rates is optional and read by a query: declare its columns",
        ),
        *(
            (
                lambda name=name: job(
                    Query(SELECT + "rows"), inputs=(Input(name=name, table="shop.rates", date_column="day"),)
                ),
                f"a query cannot read an input named '{name}'",
            )
            for name in ("rows", "Rows", "history", "_chosen", "exchange-rates", "1st")
        ),
    ],
)
def test_a_job_whose_queries_contradict_it_is_refused(make: object, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()  # type: ignore[operator]


def test_a_text_is_read_from_a_file_beside_the_module_and_named_in_errors(tmp_path: Path) -> None:
    (tmp_path / "revenue.sql").write_text(SELECT + "secret")
    (tmp_path / "jobs.py").write_text("")
    namespace = {"__file__": str(tmp_path / "jobs.py"), "Query": Query}

    exec("query = Query.file('revenue.sql')", namespace)  # noqa: S102 - as a job's module does

    with pytest.raises(UserError, match=re.escape("process (revenue.sql): line 1, column 33: it reads secret")):
        namespace["query"].check("process", tables=TABLES, columns=COLUMNS)
    with pytest.raises(UserError, match=r"can't read the query .*missing\.sql"):
        exec("Query.file('missing.sql')", namespace)  # noqa: S102
    assert replace(namespace["query"], file_name=None) == namespace["query"]  # the same query, wherever it is from
