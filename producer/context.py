"""What a command works on."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass

from pydantic import SecretStr

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.storage.staging import Staging, open_staging
from gated_backfill.common.warehouse import open_warehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.rate_limited import limit_rate
from gated_backfill.producer.stack.state_file import running_stack_broker


@dataclass(frozen=True, kw_only=True)
class CommandContext:
    """The places that the four URLs name, opened."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    staging: Staging
    uses_running_stack: bool = False  #: the broker is that of the stack that `backfill up` keeps running here

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is one that each run brings along."""
        return self.settings.broker is None


def current_user() -> str:
    """Who runs this command, as it is stored with what it does."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def open_context(settings: Settings) -> CommandContext:
    """The ledger, warehouse and staging of the settings; the ledger is made or migrated as needed.

    The broker is that of the settings, or else that of the stack that `backfill up` keeps running on these places.
    """
    standing = running_stack_broker(settings)
    if standing is not None:
        settings = settings.model_copy(update={"broker": SecretStr(standing)})
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    return CommandContext(
        uses_running_stack=standing is not None,
        settings=settings,
        ledger=open_ledger(settings.ledger_url),
        warehouse=limit_rate(warehouse, settings.query_rate_limit),
        staging=open_staging(settings.staging_url),
    )
