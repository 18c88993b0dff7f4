"""The jobs that ship with the tool; others are found by the entry point `backfill.jobs`."""
