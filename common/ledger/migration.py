"""Migration of the ledger's tables. PostgreSQL is migrated only when a user asks for it: others may use it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, delete, insert, inspect, select, text

from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.common.ledger.connections import (
    autocommit_engine,
    begin_writing,
    file_is_there,
    is_shared,
    make_engine,
    parse_ledger_url,
    sqlite_engine,
)
from gated_backfill.common.ledger.database import translate_database_errors
from gated_backfill.common.ledger.revisions import HEAD_REVISION, SchemaSupport, check_usable, is_newer
from gated_backfill.common.ledger.tables import schema_support
from gated_backfill.common.ledger.users import LedgerUser, LedgerUsers, list_users
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.process.version import tool_version

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 7_203_411  #: an arbitrary key: PostgreSQL is migrated by one process at a time


def migrate(engine: Engine, *, create: bool, upgrade: bool = True) -> None:
    """With `create`, create the tables if there are none, and with `upgrade` migrate older ones.

    Raises `LedgerUnusable` when they can't be, or when this code can't use them as they are. Newer tables that this
    code can use stay as they are.
    """
    revision = read_revision(engine)
    if revision == HEAD_REVISION:
        return
    if create and not is_newer(revision) and (upgrade or revision is None):
        with _migration_lock(engine):
            _upgrade(engine)
        return
    check_usable(revision, read_support(engine) if is_newer(revision) else None)


def read_revision(engine: Engine) -> str | None:
    """Read the version of the tables; None before they are created."""
    with autocommit_engine(engine).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def read_support(engine: Engine) -> SchemaSupport | None:
    """Read which code may use the tables; None if they do not say."""
    with autocommit_engine(engine).connect() as connection:
        return support_of(connection)


def support_of(connection: Connection) -> SchemaSupport | None:
    """See `read_support`."""
    if not inspect(connection).has_table(schema_support.name):
        return None
    row = connection.execute(select(schema_support.c.oldest_code, schema_support.c.migrated_by)).one_or_none()
    return None if row is None else SchemaSupport(oldest_code=row.oldest_code, migrated_by=row.migrated_by)


@dataclass(frozen=True, kw_only=True)
class Migration:
    """A migration of a ledger's tables, and what uses them meanwhile."""

    revision: str | None  #: of the tables before it; None before they are created
    users: LedgerUsers | None  #: None for a SQLite file, which does not tell
    oldest_code: str  #: the revision that code must know to use the migrated tables

    @property
    def is_needed(self) -> bool:
        return self.revision != HEAD_REVISION and not is_newer(self.revision)

    @property
    def excluded(self) -> list[LedgerUser]:
        """The processes that cannot use the migrated tables."""
        users = self.users.processes if self.users is not None and self.is_needed else ()
        return [user for user in users if user.tables < self.oldest_code]

    def describe(self) -> list[str]:
        """What uses the ledger, and what the migration changes, in lines."""
        lines = [] if self.users is None else [f"the ledger is used by: {self.users.describe()}"]
        if not self.is_needed:
            return [*lines, f"the ledger's tables are up to date: version {self.revision}"]
        if self.revision is None:
            return [*lines, f"the ledger's tables are created, at version {HEAD_REVISION}"]
        return [
            *lines,
            f"the ledger's tables are migrated from version {self.revision} to {HEAD_REVISION}; processes that know "
            f"them up to {self.oldest_code} or newer can use them",
        ]

    def as_json(self) -> dict[str, Any]:
        users = self.users or LedgerUsers()
        return {
            "from": self.revision,
            "to": HEAD_REVISION if self.is_needed else self.revision,
            "oldest_code": self.oldest_code,
            "processes": None if self.users is None else [asdict(user) for user in users.processes],
            "other_connections": None if self.users is None else users.others,
            "excluded": [user.process for user in self.excluded],
        }


def plan_migration(url: str) -> Migration:
    """Look at what a migration would change, and at what uses the ledger. Raises as `open_ledger` does."""
    parsed = parse_ledger_url(url)
    if not is_shared(parsed) and not file_is_there(Path(str(parsed.database))):
        return Migration(revision=None, users=None, oldest_code=oldest_usable_code())
    engine = make_engine(url, create=False)
    try:
        with translate_database_errors():
            revision = read_revision(engine)
            if is_newer(revision):
                check_usable(revision, read_support(engine))
            users = None
            if is_shared(engine.url):
                with autocommit_engine(engine).connect() as connection:
                    users = list_users(connection)
            return Migration(revision=revision, users=users, oldest_code=oldest_usable_code())
    finally:
        engine.dispose()


def carry_out(migration: Migration, url: str, *, exclude: bool = False) -> None:
    """Create or migrate the ledger's tables. May be repeated.

    Raises `UserError`, and changes nothing, when processes that are connected could not use them, unless `exclude`.
    """
    if migration.excluded and not exclude:
        users = ", ".join(user.describe() for user in migration.excluded)
        raise UserError(
            f"nothing was migrated: {len(migration.excluded)} process(es) could not use the ledger's tables at "
            f"{HEAD_REVISION}: {users}; stop them first, or migrate nevertheless with --yes"
        )
    engine = make_engine(url)
    try:
        with translate_database_errors():
            migrate(engine, create=True)
    finally:
        engine.dispose()


def oldest_usable_code() -> str:
    """Return the newest revision that code must know to use the tables of this version.

    It is the latest migration that does not say `BREAKS_OLDER_CODE = False`: one that only adds tables, or columns that
    may be left out.
    """
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config()).walk_revisions()  # the newest first
    return next(script.revision for script in scripts if getattr(script.module, "BREAKS_OLDER_CODE", True))


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.util import CommandError

    revision = read_revision(engine)
    if is_newer(revision):  # another process has migrated it meanwhile
        check_usable(revision, read_support(engine))
        return
    _check_own_file(engine, revision)
    config = _config()
    # Alembic changes a constraint on SQLite by copying the table, which foreign keys would forbid.
    is_sqlite = engine.dialect.name == "sqlite"
    migrating = sqlite_engine(engine.url, foreign_keys=False) if is_sqlite else engine
    try:
        with migrating.begin() as connection:
            begin_writing(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _record_support(connection)
    except CommandError as exc:
        raise LedgerUnusable(f"the ledger's tables can't be migrated: {exc}") from exc
    finally:
        if migrating is not engine:
            migrating.dispose()


def _record_support(connection: Connection) -> None:
    connection.execute(delete(schema_support))
    values = {"id": 1, "oldest_code": oldest_usable_code(), "migrated_by": tool_version(), "migrated_at": utcnow()}
    connection.execute(insert(schema_support), values)


def _check_own_file(engine: Engine, revision: str | None) -> None:
    """Raise `LedgerUnusable` for a SQLite file with the tables of another program."""
    if revision is not None or engine.dialect.name != "sqlite":
        return
    if foreign := sorted(set(inspect(engine).get_table_names()) - {"alembic_version"}):
        examples = ", ".join(foreign[:3])
        raise LedgerUnusable(
            f"{engine.url.database} is another program's (it has the tables {examples}): name another file"
        )


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@contextmanager
def _migration_lock(engine: Engine) -> Generator[None]:
    if engine.dialect.name == "sqlite":
        with locked(Path(f"{engine.url.database}.migrating")):
            yield
        return
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
