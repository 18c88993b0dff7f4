"""The context of a command: settings, ledger, warehouse and staging."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import Ledger, open_ledger_of_command
from gated_backfill.common.process.user import describe_user
from gated_backfill.common.storage.staging import Staging, open_staging
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.rate_limited import limit_rate
from gated_backfill.producer.stack.state_file import running_stack_broker


@dataclass(frozen=True, kw_only=True)
class CommandContext:
    """The settings of a command, and its open ledger, warehouse and staging."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    staging: Staging
    uses_running_stack: bool = False  #: the broker belongs to the stack of `backfill up`

    @property
    def is_embedded(self) -> bool:
        """Whether each run starts its own embedded broker."""
        return self.settings.broker is None


def current_user(settings: Settings) -> str:
    """The user that the ledger stores with an action: `backfill`, or `backfill (says: ada)` with BACKFILL_USER."""
    return describe_user(settings.user)


def open_context(settings: Settings, *, only_looks: bool = False) -> CommandContext:
    """Open the ledger, warehouse and staging of the settings; see `open_ledger_of_command` for the ledger.

    The broker is the one in the settings, or else the one of the stack that `backfill up` runs on these URLs.
    """
    stack_broker = running_stack_broker(settings)
    if stack_broker is not None:
        settings = settings.model_copy(update={"broker": SecretStr(stack_broker)})
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    return CommandContext(
        uses_running_stack=stack_broker is not None,
        settings=settings,
        ledger=open_ledger_of_command(settings.ledger_url, only_looks=only_looks),
        warehouse=limit_rate(warehouse, settings.query_rate_limit),
        staging=open_staging(settings.staging_url),
    )
