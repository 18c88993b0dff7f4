"""The processes that use a ledger in PostgreSQL, as their connections name themselves."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from gated_backfill.common.ledger.revisions import HEAD_REVISION
from gated_backfill.common.process.version import tool_version

HOST_LENGTH = 24  #: PostgreSQL cuts a name off after 63 bytes
NAME = re.compile(r"backfill (?P<version>\S+)/(?P<tables>\S+) (?P<process>\S+)")
OTHER_SESSIONS = text("""
    SELECT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND pid != pg_backend_pid() AND backend_type = 'client backend'
""")


@dataclass(frozen=True, kw_only=True, order=True)
class LedgerUser:
    """A process that is connected to the ledger."""

    version: str  #: of this tool
    tables: str  #: the newest revision of the ledger's tables that it knows
    process: str  #: HOST:PID

    def describe(self) -> str:
        return f"{self.process} (version {self.version}, tables {self.tables})"


@dataclass(frozen=True, kw_only=True)
class LedgerUsers:
    """Everything that is connected to a ledger apart from the connection that asks."""

    processes: tuple[LedgerUser, ...] = ()
    others: int = 0  #: connections of earlier versions, which give no name, and of other programs

    def describe(self) -> str:
        """The number of processes of each version, and of other connections."""
        counts = Counter((user.version, user.tables) for user in self.processes)
        parts = [
            f"{count} process(es) of version {version}, which knows the tables up to {tables}"
            for (version, tables), count in sorted(counts.items())
        ]
        if self.others:
            parts.append(f"{self.others} connection(s) of earlier versions or of other programs")
        return "; ".join(parts) or "no other process"


def application_name() -> str:
    """Return the name that this process gives to its connections, for `list_users`."""
    return f"backfill {tool_version()}/{HEAD_REVISION} {socket.gethostname()[:HOST_LENGTH]}:{os.getpid()}"


def list_users(connection: Connection) -> LedgerUsers:
    """List the other processes that are connected to the PostgreSQL database of the connection."""
    own_process = f"{socket.gethostname()[:HOST_LENGTH]}:{os.getpid()}"
    return parse_users([name or "" for name in connection.execute(OTHER_SESSIONS).scalars()], own_process)


def parse_users(names: Sequence[str], own_process: str) -> LedgerUsers:
    """Return who has connections of these names. A process may have several; `own_process` is left out."""
    matches = [NAME.fullmatch(name) for name in names]
    users = {LedgerUser(**match.groupdict()) for match in matches if match is not None}
    others = sum(match is None for match in matches)
    return LedgerUsers(processes=tuple(sorted(user for user in users if user.process != own_process)), others=others)
