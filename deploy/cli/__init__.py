"""The `headrace` command line: one file for each command.

Everything that costs time to import is imported inside the functions that need it, so that `headrace --help` and shell
completion answer at once.
"""

from __future__ import annotations


def main() -> None:
    """The console script."""
    from deploy.cli.app import run

    run()
