"""The real things that tests talk to: started once a session, isolated per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import make_url

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from tests.buckets import serve_buckets
from tests.emulator import Emulator
from tests.lab import migrated_ledger
from tests.postgres import execute, of_database, started_postgres

# As in the tool's processes: a terminal's format would draw each error with its local variables, which takes seconds.
configure_logs()

#: Folders that need more than `make test` has, with the variable by which another target of the Makefile runs them.
OTHER_TARGETS = {
    "real_bigquery": "TEST_BIGQUERY",  # a project of Google's
    "browser": "TEST_BROWSER",  # Chromium
    "recovery": "TEST_RECOVERY",  # minutes: these measure
    "prometheus": "TEST_PROMETHEUS",  # Prometheus
    "compose_stack": "TEST_COMPOSE",  # a container engine
    "seasons": "TEST_SEASONS",  # minutes a season on the emulator
}
collect_ignore = [folder for folder, variable in OTHER_TARGETS.items() if not os.environ.get(variable)]


#: The same cases in every run, on a machine of any speed. `make fuzz` tries random cases, with settings of its own.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

#: Files with the longest tests, for each of four processes: a long test that begins last is waited for alone.
FIRST = (
    ("test_wheel.py", "test_compose.py"),
    ("test_docs.py", "test_own_broker.py"),
    ("test_kills.py", "test_liveness.py", "test_blame.py"),
    ("test_undo.py", "test_warehouse_death.py", "test_up.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the tests are dealt out in equal heaps, each has long ones on top."""
    heaps: list[list[pytest.Item]] = [[one for one in items if one.path.name in names] for names in FIRST]
    long = {one for heap in heaps for one in heap}
    others = iter([one for one in items if one not in long])
    for left, heap in zip(range(len(heaps), 0, -1), heaps, strict=True):
        dealt = len(items) - sum(map(len, heaps[: len(heaps) - left]))
        heap += islice(others, max(dealt // left - len(heap), 0))
    items[:] = [*(one for heap in heaps for one in heap), *others]


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BACKFILL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """Settings whose every default lies in a folder of the test's own."""
    return Settings(home=tmp_path / "home")


# -- warehouse and staging ----------------------------------------------------------------------------------------


@pytest.fixture
def local_warehouse(tmp_path: Path) -> LocalWarehouse:
    return LocalWarehouse(tmp_path / "warehouse")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """A BigQuery emulator that lives as long as the session."""
    with Emulator(tmp_path_factory.mktemp("bigquery")) as started:
        yield started


@pytest.fixture
def bigquery_warehouse(emulator: Emulator) -> Iterator[BigQueryWarehouse]:
    """BigQuery, through the real client, in which nothing is yet."""
    emulator.empty()
    yield BigQueryWarehouse(BigQueryAddress.parse(emulator.url))
    emulator.empty()


@pytest.fixture(params=["local", "bigquery"])
def warehouse(request: pytest.FixtureRequest) -> Warehouse:
    """Each warehouse that has to keep the contract."""
    return request.getfixturevalue(f"{request.param}_warehouse")


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "staging")


@pytest.fixture
def bucket_staging(tmp_path: Path) -> Staging:
    serve_buckets(tmp_path / "buckets")
    return Staging("gs://bucket/prefix")


@pytest.fixture(params=["folder", "bucket"])
def any_staging(request: pytest.FixtureRequest) -> Staging:
    """Each place that files may be staged in."""
    return request.getfixturevalue("staging" if request.param == "folder" else "bucket_staging")


# -- ledger -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the session."""
    with started_postgres(tmp_path_factory.mktemp("runtime")) as url:
        yield url


class Clones:
    """Databases cloned from a template: the next one is made, and used ones are dropped, while tests run."""

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._template = template
        self._background = ThreadPoolExecutor(1)
        self._next = self._background.submit(self._make)

    def database(self) -> Iterator[str]:
        """The URL of a database that nobody else has; it is dropped afterwards."""
        name = self._next.result()
        self._next = self._background.submit(self._make)
        yield of_database(self._server, name)
        self._background.submit(execute, self._server, f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        self._background.shutdown()

    def _make(self) -> str:
        name = f"test_{uuid4().hex}"
        execute(self._server, f"CREATE DATABASE {name} TEMPLATE {self._template}")
        return name


@pytest.fixture(scope="session")
def _empty_databases(postgres_server: str) -> Iterator[Clones]:
    clones = Clones(postgres_server, "template1")
    yield clones
    clones.close()


@pytest.fixture(scope="session")
def _migrated_databases(postgres_server: str) -> Iterator[Clones]:
    execute(postgres_server, "CREATE DATABASE migrated")
    open_ledger(of_database(postgres_server, "migrated")).close()
    clones = Clones(postgres_server, "migrated")
    yield clones
    clones.close()


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """Where no ledger is yet."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def empty_postgres_url(_empty_databases: Clones) -> Iterator[str]:
    """A database without any table."""
    yield from _empty_databases.database()


@pytest.fixture
def sqlite_url(empty_sqlite_url: str) -> str:
    """A migrated, empty ledger."""
    Path(str(make_url(empty_sqlite_url).database)).write_bytes(migrated_ledger())
    return empty_sqlite_url


@pytest.fixture
def postgres_url(_migrated_databases: Clones) -> Iterator[str]:
    """A migrated, empty ledger."""
    yield from _migrated_databases.database()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"empty_{request.param}_url")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Each ledger that has to keep the contract."""
    opened = open_ledger(ledger_url, create=False)
    yield opened
    opened.close()
