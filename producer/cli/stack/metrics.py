"""`backfill metrics`: serve metrics for Prometheus."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.producer.metrics.server import MetricsServer
from gated_backfill.producer.terminal.console import make_console


@click.command
@click.option("--address", default="127.0.0.1", help="The address to listen on; 0.0.0.0 lets other machines connect.")
@click.option("--port", type=click.IntRange(0, 65535), default=9808, help="The port; 0 selects a free one.")
def metrics(address: str, port: int) -> None:
    """Serve /metrics for Prometheus and /healthz until stopped: dates, coverage, fallbacks, durations, queues, alerts.

    Reads the ledger and the broker at each scrape, and answers even while they are down. /healthz is 200 only while the
    ledger answers. With BACKFILL_METRICS_PASSWORD, /metrics asks for it (user: backfill); without it, an address that
    other machines can reach is refused.
    """
    configure_logs()
    console = make_console()
    with interrupt_on_signals():
        try:
            server = MetricsServer(read_settings(), address, port)
            host = f"[{address}]" if ":" in address else address
            console.print(f"serving http://{host}:{server.server_port}/metrics")
            server.serve()
        except KeyboardInterrupt:
            console.print("stopped")
