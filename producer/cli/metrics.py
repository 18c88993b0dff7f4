"""The command that serves metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings


def add_metrics_command(app: typer.Typer) -> None:
    app.command()(metrics)


def metrics(
    address: Annotated[
        str, typer.Option("--address", help="The address to listen on: other machines reach 0.0.0.0, not this one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")] = 9808,
) -> None:
    """Serve /metrics for Prometheus and /healthz until stopped: dates, coverage, fallback, durations, queues, alerts.

    Reads the ledger and the broker at each scrape and answers also while they do not. /healthz is 200 only while the
    ledger answers. With BACKFILL_METRICS_PASSWORD, /metrics asks for it (user: backfill); an address that other
    machines reach is refused without one.
    """
    from gated_backfill.common.process.logs import configure_logs
    from gated_backfill.producer.metrics.server import MetricsServer
    from gated_backfill.producer.runs.attended import interrupt_on_signals

    configure_logs()
    with interrupt_on_signals():
        try:
            server = MetricsServer(read_settings(), address, port)
            typer.echo(f"serving http://{f'[{address}]' if ':' in address else address}:{server.server_port}/metrics")
            server.serve()
        except KeyboardInterrupt:
            typer.echo("stopped")
