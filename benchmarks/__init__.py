"""Benchmarks against peers, in the same process run. Never in CI; results are committed with a date and the machine."""
