"""Benchmarks: `python -m benchmarks` runs all of them and writes `benchmarks/results.json`."""
