"""The commands that keep a stack running."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.producer.terminal.exit_codes import COMPLETE
from gated_backfill.producer.terminal.runs import make_console

if TYPE_CHECKING:
    from gated_backfill.producer.stack.standing import UpOptions
    from gated_backfill.producer.stack.state_file import StackState


def add_up_commands(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)


def up(
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Worker processes for dates.  [default: BACKFILL_WORKERS or 2]"),
    ] = None,
    flower_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Where Flower listens.  [default: BACKFILL_FLOWER_PORT, or 5555, or another one where that is taken]",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Where metrics are served.  [default: BACKFILL_METRICS_PORT, or 9808, or another one likewise]",
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop the stack at Ctrl-C: for a service manager.")
    ] = False,
) -> None:
    """Start a broker, workers, beat, Flower and a metrics server, and keep them running until `backfill down`.

    `run`, `retry` and `watch` use them from then on. With BACKFILL_BROKER set, that broker is used and none is started.
    What dies is started again. Repeating it is harmless: it prints where everything is.
    """
    from gated_backfill.producer.stack.standing import UpOptions, check_ports, start_supervisor
    from gated_backfill.producer.stack.state_file import find_running_stack, stack_lock

    settings = read_settings()
    console = make_console()
    options = UpOptions(workers=workers or settings.workers, flower_port=flower_port, metrics_port=metrics_port)
    with stack_lock(settings.home):
        found = find_running_stack(settings.home)
        if found is not None:
            console.print("it is up already")
            if workers not in (None, found.workers) or (
                flower_port and not found.flower_url.endswith(f":{flower_port}")
            ):
                console.print("note: it goes on as it is; other options take effect after `backfill down`")
        elif not foreground:
            check_ports(options, settings)
            start_supervisor(options, settings)
            found = find_running_stack(settings.home)
    if found is None:
        _stay(options, settings, console)
        return
    _print(found, settings, console)
    console.print("stop it: `backfill down`")
    raise typer.Exit(COMPLETE)


def down() -> None:
    """Stop what `backfill up` started; tasks in progress have BACKFILL_STOP_SECONDS (30) to end.

    Runs that are under way are named: they go on once `backfill up` is called again.
    """
    from gated_backfill.producer.stack.shutdown import shut_down_stack
    from gated_backfill.producer.stack.standing import clear_heartbeat

    settings = read_settings()
    console = make_console()
    stopped = shut_down_stack(settings)
    if stopped.killed:
        console.print("it did not end in time and was killed")
    if stopped.was_up:
        console.print("it is down: no process of it is left")
    elif stopped.was_dead:
        console.print("it was not up any more: the process that kept it had been killed; what it left is removed")
    else:
        console.print("nothing is up")
    if stopped.was_dead or stopped.killed:
        clear_heartbeat(settings)
    if stopped.was_up or stopped.was_dead:
        _name_active_runs(settings, console)


def _name_active_runs(settings: Settings, console: Console) -> None:
    from gated_backfill.common.ledger import open_ledger

    try:
        active = [run for run in open_ledger(settings.ledger_url).runs.list_active_runs() if run.owner is None]
    except BackfillError as exc:
        console.print(escape(f"which runs are under way could not be found out: {exc}"), soft_wrap=True)
        return
    for run in active:
        console.print(f"run {run.id} of {run.job} is under way: it goes on after `backfill up`", soft_wrap=True)


def _stay(options: UpOptions, settings: Settings, console: Console) -> None:
    from gated_backfill.producer.stack.signals import interrupt_on_signals
    from gated_backfill.producer.stack.standing import SupervisedStack, check_places
    from gated_backfill.producer.stack.state_file import find_running_stack, stack_lock

    try:
        with interrupt_on_signals(), ExitStack() as running:
            with stack_lock(settings.home):
                if find_running_stack(settings.home) is not None:
                    raise UserError("another `backfill up` was faster: it is up")
                check_places(settings)
                stack = running.enter_context(SupervisedStack(settings, options))
            _print(stack.state, settings, console)
            console.print("stop it: Ctrl-C, or `backfill down`")
            stack.supervise()
    except KeyboardInterrupt:
        console.print("stopped")


def _print(found: StackState, settings: Settings, console: Console) -> None:
    def line(what: str, is_what: str) -> None:
        console.print(f"{what:<10}{escape(is_what)}", soft_wrap=True, highlight=False)

    line("broker", found.broker + (" (its own)" if found.embedded else ""))
    line("workers", f"{found.workers} for dates, 1 each for the gate, maintenance and housekeeping; and beat")
    line("Flower", found.flower_url)
    line("user", found.flower_user)
    line("password", found.flower_password)
    line("metrics", found.metrics_url)
    line("log", found.log_file)
