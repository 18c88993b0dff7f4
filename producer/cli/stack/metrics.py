"""`backfill metrics`: serve metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.producer.metrics.server import MetricsServer


def metrics(
    address: Annotated[
        str, typer.Option("--address", help="The address to listen on; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 selects a free one.")] = 9808,
) -> None:
    """Serve /metrics for Prometheus and /healthz until stopped: dates, coverage, fallbacks, durations, queues, alerts.

    Reads the ledger and the broker at each scrape, and answers even while they are down. /healthz is 200 only while the
    ledger answers. With BACKFILL_METRICS_PASSWORD, /metrics asks for it (user: backfill); without it, an address that
    other machines can reach is refused.
    """
    configure_logs()
    with interrupt_on_signals():
        try:
            server = MetricsServer(read_settings(), address, port)
            host = f"[{address}]" if ":" in address else address
            typer.echo(f"serving http://{host}:{server.server_port}/metrics")
            server.serve()
        except KeyboardInterrupt:
            typer.echo("stopped")
