"""`backfill up`: start the stack."""

from __future__ import annotations

from contextlib import ExitStack

import click

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.producer.stack.state_file import StackState, find_running_stack, stack_lock
from gated_backfill.producer.stack.supervised_stack import (
    SupervisedStack,
    UpOptions,
    check_places,
    check_ports,
    start_supervisor,
)
from gated_backfill.producer.terminal.console import Console, make_console
from gated_backfill.producer.terminal.exit_codes import COMPLETE


@click.command
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes for dates.  [default: BACKFILL_WORKERS or 2]"
)
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    help="Port of Flower.  [default: BACKFILL_FLOWER_PORT, or 5555, or a free port if that is taken]",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Port of the metrics.  [default: BACKFILL_METRICS_PORT, or 9808, or a free port if that is taken]",
)
@click.option("--foreground", is_flag=True, help="Run in the foreground until Ctrl-C, e.g. under a service manager.")
def up(workers: int | None, flower_port: int | None, metrics_port: int | None, foreground: bool) -> None:
    """Start a broker, workers, beat, Flower and a metrics server, and keep them running until `backfill down`.

    `run`, `retry` and `watch` use them from then on. With BACKFILL_BROKER set, that broker is used and none is started.
    Processes that die are restarted. Repeating the command is harmless: it prints the addresses.
    """
    settings = read_settings()
    console = make_console()
    options = UpOptions(workers=workers or settings.workers, flower_port=flower_port, metrics_port=metrics_port)
    with stack_lock(settings.home):
        state = find_running_stack(settings.home)
        if state is not None:
            console.print("the stack is already running")
            has_other_port = flower_port and not state.flower_url.endswith(f":{flower_port}")
            if workers not in (None, state.workers) or has_other_port:
                console.print("note: its options were not changed; other options take effect after `backfill down`")
        elif not foreground:
            check_ports(options, settings)
            start_supervisor(options, settings)
            state = find_running_stack(settings.home)
    if state is None:
        _run_in_foreground(options, settings, console)
        return
    _print_state(state, console)
    console.print("stop it: `backfill down`")
    raise SystemExit(COMPLETE)


def _run_in_foreground(options: UpOptions, settings: Settings, console: Console) -> None:
    try:
        with interrupt_on_signals(), ExitStack() as exit_stack:
            with stack_lock(settings.home):
                if find_running_stack(settings.home) is not None:
                    raise UserError("another `backfill up` has started the stack meanwhile")
                check_places(settings)
                stack = exit_stack.enter_context(SupervisedStack(settings, options))
            _print_state(stack.state, console)
            console.print("stop it: Ctrl-C, or `backfill down`")
            stack.supervise()
    except KeyboardInterrupt:
        console.print("stopped")


def _print_state(state: StackState, console: Console) -> None:
    lines = {
        "broker": state.broker + (" (embedded)" if state.embedded else ""),
        "workers": f"{state.workers} for dates, 2 for the gate, 1 each for small runs, maintenance, housekeeping; beat",
        "Flower": state.flower_url,
        "user": state.flower_user,
        "password": state.flower_password,
        "metrics": state.metrics_url,
        "log": state.log_file,
    }
    for name, value in lines.items():
        console.print(f"{name:<10}{value}")
