"""Faults on a running fleet under load, judged by its callers: `python -m tests.chaos --help`."""
