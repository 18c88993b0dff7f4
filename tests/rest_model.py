"""What the targets hold as publications go by: the effect of our scripts, known by their names and parameters."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from gated_backfill.common.warehouse.protocol import ABSENT

SOURCE = re.compile(r"`[a-z0-9-]+\.(\w+)\.((?:staged|load)_\w+)`")
KEPT = re.compile(r"`[a-z0-9-]+\.(\w+\.cleanup_\w+)`")
UNDO = re.compile(r"`[a-z0-9-]+\.(\w+\.undo_\w+)`")
CONTENT = re.compile(r"AS `(content\d*)`")
ANY_TABLE = re.compile(r"`[a-z0-9-]+\.(\w+\.\w+)`")
DATE_COLUMN = re.compile(r"DELETE FROM `[^`]+` WHERE `(\w+)` BETWEEN")
TARGET = re.compile(r"DELETE FROM `[a-z0-9-]+\.(\w+\.\w+)`|FROM `[a-z0-9-]+\.(\w+\.\w+)`")


class PublishedDates:
    """Which dates of which target hold which content, and which copies of them are in which undo table."""

    def __init__(self) -> None:
        self.held: dict[str, dict[date, str]] = {}
        self.copies: dict[str, dict[str, tuple[date, str]]] = {}  #: of each undo table: date and content by key
        self.scripts: list[tuple[str, dict[str, Any]]] = []  #: that took effect, with their parameters
        self._seen: dict[str, dict[date, tuple[str, datetime]]] = {}  #: contents, and when they were first seen
        self._clock = datetime(2024, 1, 1, tzinfo=UTC)

    def rewrite(self, name: str, day: date) -> None:
        """Write the same rows of a partition once more."""
        self.partitions(name)
        self._clock += timedelta(seconds=1)
        self._seen[name][day] = self.held[name][day], self._clock

    def partitions(self, name: str, loaded: pa.Table | None = None) -> dict[date, datetime]:
        """The days that a table has, each with the time of its last change. `loaded` rows are of a whole table."""
        held, seen = _contents(loaded) | self.held.get(name, {}), self._seen.get(name, {})
        self._clock += timedelta(seconds=1)
        self._seen[name] = {
            day: seen[day] if day in seen and seen[day][0] == content else (content, self._clock)
            for day, content in held.items()
            if content != ABSENT
        }
        return {day: moment for day, (_, moment) in self._seen[name].items()}

    def is_asked(self, sql: str) -> bool:
        return "FARM_FINGERPRINT" in sql and "BEGIN TRANSACTION" not in sql

    def answer(self, sql: str, params: Mapping[str, Any]) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
        """The rows of a query for contents, or for the days that hold what was published from a file.

        A content is named here by the checksum of the file that it came from.
        """
        found = TARGET.search(sql)
        assert found, "a query for the fingerprints of no table"
        if "GROUP BY day, copy" in sql:
            copies = self.copies.get(found[1] or found[2], {})
            rows = [(day, key, content) for key, (day, content) in copies.items() if day in params["days"]]
            return {"day": "DATE", "copy": "STRING", "content": "STRING"}, rows
        held = self.held.get(found[1] or found[2], {})
        if "wanted" in params:
            wanted = {date.fromisoformat(one["day"]): one["checksum"] for one in map(json.loads, params["wanted"])}
            return {"day": "DATE"}, [(day,) for day, checksum in sorted(wanted.items()) if held.get(day) == checksum]
        contents = CONTENT.findall(sql)  # one for each set of columns
        days = [day for day in sorted(params["days"]) if held.get(day, ABSENT) != ABSENT]
        rows = [(day, *[held[day]] * len(contents)) for day in days]
        return {"day": "DATE"} | dict.fromkeys(contents, "STRING"), rows

    def run(
        self, job: str, sql: str, params: Mapping[str, Any], rows_in: Callable[[str, str], pa.Table | None]
    ) -> None:
        """The effect of a script of ours, whole. `rows_in` tells what was loaded into a staging table."""
        if job.startswith("backfill-lease-"):
            return  # it changes no rows
        if job.startswith(("backfill-backup-", "backfill-cleanup-", "backfill-putback-")):
            self._run_of_cleanup(job, sql, params)
            self.scripts.append((job, dict(params)))
            return
        target = TARGET.search(sql[sql.index("DELETE FROM") :])
        assert target, "a script that names no target"
        held, undo = self.held.setdefault(target[1], {}), UNDO.search(sql)
        copies = self.copies.setdefault(undo[1], {}) if undo else {}
        if job.startswith("backfill-restore-"):
            wanted = {date.fromisoformat(one["day"]): one for one in map(json.loads, params["wanted"])}
            for day, one in wanted.items():
                kept = copies[one["copy"]][1] if one["copy"] else ABSENT
                if held.get(day, ABSENT) == one["published"] and kept == one["before"]:
                    copies[f"{params['copy']}{day}"] = (day, held[day])
                    held[day] = kept
        elif job.startswith("backfill-publish-"):
            _publish(held, copies, _rows_by_day(sql, rows_in), params)
        else:
            assert job.startswith("backfill-replace-"), f"no script of ours is named {job}"
            staged = _rows_by_day(sql, rows_in)
            held.update({day: f"{staged[day]} rows of {job}" for day in params["days"]})
        self.scripts.append((job, dict(params)))

    def _run_of_cleanup(self, job: str, sql: str, params: Mapping[str, Any]) -> None:
        """A backup, the deletion of what is backed up, or its restoration."""
        kept_name = KEPT.search(sql)
        others = {found for found in ANY_TABLE.findall(sql) if not KEPT.search(f"`x.{found}`")}
        (name,) = others - {"backfill.publications"}
        assert kept_name, "a script that names no backup"
        held, kept = self.held.setdefault(name, {}), self.held.setdefault(kept_name[1], {})
        if job.startswith("backfill-backup-"):
            kept.update({day: held[day] for day in params["days"] if day in held})
            return
        wanted = {date.fromisoformat(one["day"]): one["published"] for one in map(json.loads, params["wanted"])}
        for day, content in wanted.items():
            if job.startswith("backfill-cleanup-") and held.get(day) == kept.get(day) == content:
                del held[day]
            elif job.startswith("backfill-putback-") and day not in held and kept.get(day) == content:
                held[day] = content


def _contents(rows: pa.Table | None) -> dict[date, str]:
    """The rows of each day, in words."""
    contents: dict[date, str] = {}
    for row in [] if rows is None else rows.to_pylist():
        for day in {value for value in row.values() if isinstance(value, date)}:
            contents[day] = contents.get(day, "") + repr(row)
    return contents


def _rows_by_day(sql: str, rows_in: Callable[[str, str], pa.Table | None]) -> Counter[Any]:
    source = SOURCE.search(sql)
    assert source, "a script that names no staging table"
    rows = rows_in(source[1], source[2])
    assert rows is not None, "a script over a staging table that was never loaded"
    date_column = DATE_COLUMN.search(sql)
    assert date_column, "a script that deletes by no date"
    return Counter(rows[date_column[1]].to_pylist())


def _publish(
    held: dict[date, str], copies: dict[str, tuple[date, str]], staged: Counter[Any], params: Mapping[str, Any]
) -> None:
    wanted = {date.fromisoformat(one["day"]): one for one in map(json.loads, params["wanted"])}
    assert sorted(wanted) == sorted(params["days"])
    assert (params["first"], params["last"]) == (min(wanted), max(wanted))
    for day, one in wanted.items():
        before = held.get(day, ABSENT)
        if before == one["before"] and staged[day] == one["row_count"]:
            if before != ABSENT:
                copies[f"{params['copy']}{day}"] = (day, before)
            held[day] = one["checksum"]
