"""`headrace env`: how a program of one's own finds the running stack."""

from __future__ import annotations

import os

from deploy.cli.options import AsJson, Data

_PRINTED = (
    "HEADRACE_KAFKA__BOOTSTRAP",
    "HEADRACE_KAFKA__PREFIX",
    "HEADRACE_REDIS__URL",
    "HEADRACE_REDIS__PREFIX",
    "HEADRACE_REDIS__POOL",
)


def environment(*, data: Data = None, json: AsJson = False) -> None:
    """Print the variables that lead to the running stack.

    For programs of your own: eval "$(headrace env)".
    """
    import shlex

    from deploy.cli.connection import find_environment
    from deploy.cli.output import print_json

    found = {name: os.environ[name] for name in _PRINTED if name in os.environ} | find_environment(data)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
