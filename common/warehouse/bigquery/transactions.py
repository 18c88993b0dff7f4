"""Transactions of the BigQuery warehouse: check the lease, choose dates, keep, remove, insert, and record.

A transaction that deletes from a table excludes every other one that does, so what it checked still holds when it takes
effect. Transactions that only append to a table do not exclude each other.
"""

from __future__ import annotations

from typing import LiteralString, NamedTuple

from gated_backfill.common.warehouse.bigquery.statements import (
    CONTENT,
    IN_RANGE,
    ROW_HASH,
    WANTED,
    Partitions,
    QuotedSql,
    fill_placeholders,
    join_sql,
    partition_contents,
    quoted_column,
)

KEPT_COLUMN = "backfill_kept"  #: of an undo table: the copy that a row belongs to

BEGIN: LiteralString = """
    DECLARE backfill_days ARRAY<DATE>;
    BEGIN TRANSACTION;
"""

COMMIT: LiteralString = """
    COMMIT TRANSACTION;
"""

LEASE_TAKEN_OVER = "the lease was taken over"  #: of the error that ends a transaction, in `CHECK_LEASE`

#: Fail if a later process has taken over the work, or the work is over. Parameters: target, run, work, generation,
#: ended_by.
CHECK_LEASE: LiteralString = """
    SELECT IF(
        EXISTS (
            SELECT 1
            FROM {publications}
            WHERE target = @target AND day IS NULL AND run = @run
                AND (work = @ended_by OR (work = @work AND generation > @generation))
        ),
        ERROR('the lease was taken over'),
        0
    );
"""

CHOOSE_ALL: LiteralString = """
    SET backfill_days = @days;
"""

#: The number of the staged rows of each date, as text: all that is known of rows that were loaded from files.
STAGED_COUNTS: LiteralString = """
    SELECT {date} AS day, CAST(COUNT(*) AS STRING) AS content FROM {source} GROUP BY {date}
"""

#: Choose the requested dates to publish: all rows are staged as requested, and the target is unchanged since.
CHOOSE_UNCHANGED: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN ({staged}) AS s ON s.day = w.day AND s.content = w.staged
        LEFT JOIN ({now}) AS n ON n.day = w.day
        WHERE IFNULL(n.content, 'absent') = w.before
    );
"""

#: Choose the requested dates to restore: they hold the rows to remove, and the requested copy all earlier ones.
CHOOSE_KEPT: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        LEFT JOIN ({now}) AS n ON n.day = w.day
        LEFT JOIN ({kept}) AS k ON k.day = w.day AND k.copy = w.copy
        WHERE IFNULL(n.content, 'absent') = w.published AND IFNULL(k.content, 'absent') = w.before
    );
"""

#: Keep the rows that are about to be removed, each date as a copy of its own. Parameters: copy, first, last.
KEEP: LiteralString = """
    INSERT INTO {kept} ({columns}, {kept_column})
    SELECT {columns}, CONCAT(@copy, CAST({date} AS STRING)) FROM {target}
    WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days);
"""

REMOVE: LiteralString = """
    DELETE FROM {target} WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days);
"""

INSERT: LiteralString = """
    INSERT INTO {target} ({columns})
    SELECT {columns} FROM {source} WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days);
"""

#: Insert the rows of the requested copies.
INSERT_KEPT: LiteralString = """
    INSERT INTO {target} ({columns})
    SELECT {columns}
    FROM (
        SELECT {columns}, {key} AS backfill_copy
        FROM {source}
        WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days)
    )
    WHERE backfill_copy IN (SELECT copy FROM ({wanted}) WHERE copy IS NOT NULL);
"""

#: The content of each copy in an undo table, by its date and its key.
KEPT_CONTENTS: LiteralString = """
    SELECT day, copy, {contents}
    FROM (
        SELECT {date} AS day, {key} AS copy, {hashes}
        FROM {table}
        WHERE {within} AND {date} IN UNNEST(@days)
    )
    GROUP BY day, copy
"""

#: The key of a row's copy. Earlier versions kept one copy of each date, without a key: its date is the key.
KEY: LiteralString = "COALESCE({kept_column}, CAST({date} AS STRING))"
KEY_WITHOUT_COLUMN: LiteralString = "CAST({date} AS STRING)"

#: Record an operation's lease, in a row without a date, and its dates.
RECORD: LiteralString = """
    INSERT INTO {publications}
        (target, run, work, generation, published_at,
         day, window_number, attempt, row_count, checksum, content, before, kept)
    SELECT
        @target, @run, @work, @generation, CURRENT_TIMESTAMP(),
        d.day, d.window_number, d.attempt, d.row_count, d.checksum, d.content, d.before, d.kept
    FROM ({dates}) AS d;
"""

LEASE_ROW: LiteralString = """
    SELECT
        CAST(NULL AS DATE) AS day, CAST(NULL AS STRING) AS window_number, CAST(NULL AS INT64) AS attempt,
        CAST(NULL AS INT64) AS row_count, CAST(NULL AS STRING) AS checksum, CAST(NULL AS STRING) AS content,
        CAST(NULL AS STRING) AS before, CAST(NULL AS STRING) AS kept
"""

PUBLISHED_ROWS: LiteralString = """
    SELECT
        w.day, @window_number AS window_number, w.attempt, w.row_count, w.checksum, c.content, w.before,
        IF(w.before = 'absent', NULL, CONCAT(@copy, CAST(w.day AS STRING))) AS kept
    FROM ({wanted}) AS w
    JOIN ({content}) AS c ON c.day = w.day
    WHERE w.day IN UNNEST(backfill_days)
"""

#: The removed rows are recorded with their content in the columns in which they are kept.
RESTORED_ROWS: LiteralString = """
    SELECT
        w.day, CAST(NULL AS STRING) AS window_number, CAST(NULL AS INT64) AS attempt,
        CAST(NULL AS INT64) AS row_count, CAST(NULL AS STRING) AS checksum, w.before AS content,
        IFNULL(k.content, w.published) AS before, k.copy AS kept
    FROM ({wanted}) AS w
    LEFT JOIN ({kept}) AS k ON k.day = w.day AND k.copy = CONCAT(@copy, CAST(w.day AS STRING))
    WHERE w.day IN UNNEST(backfill_days)
"""

DELETED_ROWS: LiteralString = """
    SELECT
        w.day, CAST(NULL AS STRING) AS window_number, CAST(NULL AS INT64) AS attempt,
        CAST(NULL AS INT64) AS row_count, CAST(NULL AS STRING) AS checksum, CAST(NULL AS STRING) AS content,
        w.published AS before, CAST(NULL AS STRING) AS kept
    FROM ({wanted}) AS w
    WHERE w.day IN UNNEST(backfill_days)
"""

#: A restore of a backup records the content that it put back; a deletion records none.
PUT_BACK_ROWS: LiteralString = """
    SELECT
        w.day, CAST(NULL AS STRING) AS window_number, CAST(NULL AS INT64) AS attempt,
        CAST(NULL AS INT64) AS row_count, CAST(NULL AS STRING) AS checksum, w.published AS content,
        'absent' AS before, CAST(NULL AS STRING) AS kept
    FROM ({wanted}) AS w
    WHERE w.day IN UNNEST(backfill_days)
"""

AND_ROWS: LiteralString = " UNION ALL "

#: For each date, the content that an undo brings back, and that of the run's last publication. The former is what the
#: last publication replaced, unless that were the run's own rows: then it is what the one before replaced, and so on.
REPLACED: LiteralString = """
    SELECT
        day,
        ANY_VALUE(before HAVING MAX IF(comes_back, published_at, NULL)) AS before,
        ANY_VALUE(content HAVING MAX published_at) AS published
    FROM (
        SELECT
            day, before, content, published_at,
            ROW_NUMBER() OVER of_day = 1 OR ({keeps_all} AND before != LAG(content) OVER of_day) AS comes_back
        FROM {publications}
        WHERE target = @target AND run = @run AND day BETWEEN @first AND @last AND window_number IS NOT NULL
        WINDOW of_day AS (PARTITION BY day ORDER BY published_at)
    )
    GROUP BY day
"""

#: Whether a publication kept all that it replaced. Earlier versions kept what the run's first one of a date replaced.
KEEPS_ALL: LiteralString = "work IS NOT NULL"
KEEPS_FIRST: LiteralString = "FALSE"

#: The copies that operations on a table have kept, the newest first.
KEPT_COPIES: LiteralString = """
    SELECT day, run, work, before, kept, published_at
    FROM {publications}
    WHERE target = @target AND day BETWEEN @first AND @last AND kept IS NOT NULL
    ORDER BY published_at DESC, day DESC
"""


#: When a cleanup last deleted rows.
LAST_DELETION: LiteralString = """
    SELECT MAX(published_at) AS deleted_at
    FROM {publications}
    WHERE target = @target AND run = @run AND work = @work AND day IS NOT NULL AND content IS NULL
"""

#: The dates whose rows were put back from the backup of a cleanup.
PUT_BACK_DATES: LiteralString = """
    SELECT DISTINCT day
    FROM {publications}
    WHERE target = @target AND run = @run AND work = @work AND day IS NOT NULL AND content IS NOT NULL
"""


class UndoTable(NamedTuple):
    """An undo table, with the columns of the rows in it and the key of their copies."""

    partitions: Partitions
    key: QuotedSql


def undo_table(partitions: Partitions, *, has_kept_column: bool = True) -> UndoTable:
    """Return the names that statements on an undo table need."""
    key = KEY if has_kept_column else KEY_WITHOUT_COLUMN
    filled = fill_placeholders(key, kept_column=quoted_column(KEPT_COLUMN), date=partitions.date)
    return UndoTable(partitions=partitions, key=filled)


def kept_contents(undo: UndoTable) -> QuotedSql:
    """Build the query of the content of each copy: day, copy, content. Parameters: days, first, last."""
    table, date, columns = undo.partitions
    hash_column = quoted_column("content_hash")
    return fill_placeholders(
        KEPT_CONTENTS,
        table=table,
        date=date,
        key=undo.key,
        within=fill_placeholders(IN_RANGE, date=date),
        hashes=fill_placeholders(ROW_HASH, columns=columns, hash=hash_column),
        contents=fill_placeholders(CONTENT, hash=hash_column, content=quoted_column("content")),
    )


def publish(
    target: Partitions, source: QuotedSql, publications: QuotedSql, keep_in: UndoTable | None, *, compares_content: bool
) -> QuotedSql:
    """Build one transaction: keep the replaced rows, insert the source's rows, and record the publication.

    `compares_content` says whether `staged` of a requested date is the content of its rows, or their number.
    Parameters: days, first, last, window_number, copy, wanted, and those of the lease and of the source.
    """
    names = _names(target, source)
    content = partition_contents(target._replace(table=source))
    staged = content if compares_content else fill_placeholders(STAGED_COUNTS, **names)
    chosen = {"wanted": fill_placeholders(WANTED), "now": partition_contents(target), "staged": staged}
    published = {"wanted": fill_placeholders(WANTED), "content": content}
    return transaction(
        check_lease(publications),
        fill_placeholders(CHOOSE_UNCHANGED, **names, **chosen),
        *([_keep(target, keep_in)] if keep_in else []),
        fill_placeholders(REMOVE, **names),
        fill_placeholders(INSERT, **names),
        record(publications, fill_placeholders(PUBLISHED_ROWS, **published)),
    )


def load(target: Partitions, source: QuotedSql) -> QuotedSql:
    """Build one transaction that replaces the days' rows by the source's. Parameters: days, first, last."""
    names = _names(target, source)
    return transaction(
        fill_placeholders(CHOOSE_ALL), fill_placeholders(REMOVE, **names), fill_placeholders(INSERT, **names)
    )


def restore(target: Partitions, source: UndoTable, publications: QuotedSql, keep_in: UndoTable) -> QuotedSql:
    """Build one transaction that replaces the days' rows by kept ones, and keeps what it removes.

    A column of the target that the kept rows lack gets no values. Parameters: days, first, last, copy, wanted, and
    those of the lease.
    """
    wanted = fill_placeholders(WANTED)
    names = _names(source.partitions, source.partitions.table) | {"target": target.table}
    restored = fill_placeholders(RESTORED_ROWS, wanted=wanted, kept=kept_contents(keep_in))
    return transaction(
        check_lease(publications),
        fill_placeholders(CHOOSE_KEPT, wanted=wanted, now=partition_contents(target), kept=kept_contents(source)),
        _keep(target, keep_in),
        fill_placeholders(REMOVE, **names),
        fill_placeholders(INSERT_KEPT, **names, key=source.key, wanted=wanted),
        record(publications, restored),
    )


def renew_lease(publications: QuotedSql, exclusively: Partitions | None) -> QuotedSql:
    """Build one transaction that records a lease and changes no rows, so that an earlier lease has no effect later.

    `exclusively` names the table whose transactions it excludes. Parameters: those of the lease, first, last.
    """
    excluding = []
    if exclusively is not None:
        excluding = [fill_placeholders(REMOVE, **_names(exclusively, exclusively.table))]
    return transaction(check_lease(publications), *excluding, record(publications))


def check_lease(publications: QuotedSql) -> QuotedSql:
    """Build the statement that fails when the lease was taken over. Parameters: those of the lease."""
    return fill_placeholders(CHECK_LEASE, publications=publications)


def record(publications: QuotedSql, *dates: QuotedSql) -> QuotedSql:
    """Build the statement that records the lease and the dates. Parameters: those of the lease and of the dates."""
    rows = join_sql(AND_ROWS, [fill_placeholders(LEASE_ROW), *dates])
    return fill_placeholders(RECORD, publications=publications, dates=rows)


def replaced_partitions(publications: QuotedSql, *, keeps_all: bool) -> QuotedSql:
    """Build the query of a run's replaced partitions by day. Parameters: target, run, first, last.

    `keeps_all` says whether the record may hold publications that kept all that they replaced.
    """
    condition = fill_placeholders(KEEPS_ALL if keeps_all else KEEPS_FIRST)
    return fill_placeholders(REPLACED, publications=publications, keeps_all=condition)


def kept_copies(publications: QuotedSql) -> QuotedSql:
    """Build the query of the copies that were kept of a table. Parameters: target, first, last."""
    return fill_placeholders(KEPT_COPIES, publications=publications)


def last_deletion(publications: QuotedSql) -> QuotedSql:
    """Build the query of the time when a cleanup last deleted rows. Parameters: target, run, work."""
    return fill_placeholders(LAST_DELETION, publications=publications)


def put_back_dates(publications: QuotedSql) -> QuotedSql:
    """Build the query of the dates that were put back from a cleanup's backup. Parameters: target, run, work."""
    return fill_placeholders(PUT_BACK_DATES, publications=publications)


def _keep(target: Partitions, keep_in: UndoTable) -> QuotedSql:
    names = _names(keep_in.partitions, target.table) | {"target": target.table}
    return fill_placeholders(KEEP, **names, kept=keep_in.partitions.table, kept_column=quoted_column(KEPT_COLUMN))


def _names(target: Partitions, source: QuotedSql) -> dict[str, QuotedSql]:
    return {"target": target.table, "date": target.date, "columns": target.columns, "source": source}


def transaction(*steps: QuotedSql) -> QuotedSql:
    return join_sql("", [fill_placeholders(BEGIN), *steps, fill_placeholders(COMMIT)])
