"""Check of the ledger's database and the version of its tables."""

from __future__ import annotations

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, HostError, LedgerUnavailable, LedgerUnusable, UserError
from gated_backfill.common.ledger.inspection import LedgerInspection, inspect_ledger
from gated_backfill.common.ledger.revisions import HEAD_REVISION, is_newer
from gated_backfill.producer.doctor.results import PlaceCheck, fail, ok

NEXT_STEPS: dict[type[BackfillError], str] = {
    LedgerUnavailable: "check that BACKFILL_LEDGER is right, that its server runs and that nothing holds it locked",
    HostError: "set BACKFILL_LEDGER to a file in a folder that can be written",
    LedgerUnusable: "do as the message says, restore a backup of a corrupt file, or set BACKFILL_LEDGER to another one",
    UserError: "set BACKFILL_LEDGER as the message says",
}


def check_ledger(settings: Settings) -> PlaceCheck:
    """Check that the ledger can be opened, without creating or migrating it."""
    try:
        inspection = inspect_ledger(settings.ledger_url)
    except (LedgerUnavailable, UserError) as exc:
        next_step = next(text for kind, text in NEXT_STEPS.items() if isinstance(exc, kind))
        return PlaceCheck(result=fail("ledger", exc, next_step))
    message = f"{inspection.database}: {_describe_tables(inspection)}"
    return PlaceCheck(result=ok("ledger", message), clock=inspection.clock)


def _describe_tables(inspection: LedgerInspection) -> str:
    if not inspection.exists:
        return "does not exist yet; the first command that needs it creates it"
    if inspection.version is None:
        return "has no tables yet; the first command that needs them creates them"
    if is_newer(inspection.version):
        return f"can be written, tables at version {inspection.version}, which this version can use"
    if inspection.version != HEAD_REVISION:
        return f"tables at version {inspection.version}, which the next run migrates to {HEAD_REVISION}"
    return f"can be written, tables at version {inspection.version}"
