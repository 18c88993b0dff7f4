"""The console script of installations that were made before `main` became it."""

from gated_backfill.producer.cli.main import main as main
