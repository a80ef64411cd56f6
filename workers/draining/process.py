"""The frame of a process that drains topics under a lease: what the node agent tells it, log, metrics and exit.

The agent starts `python -P -m MODULE --lease ID --token TOKEN --node NODE --run-dir DIR` and reads the exit: 0 when the
lease ended in peace, 1 when the process could not go on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from contracts import service, telemetry
from contracts.service import Service
from contracts.settings import LogSettings
from workers.draining.settings import DrainGroup

log = logging.getLogger(__name__)


class Orders(NamedTuple):
    """What the node agent tells the process."""

    lease: str
    token: int
    node: str
    run_dir: Path


class Duty(NamedTuple):
    """What the process makes of that: its service, and how that logs, is measured and ends."""

    service: Service
    log: LogSettings
    drain: DrainGroup


def main(module: str, name: str, take: Callable[[Orders], Duty]) -> None:
    """Read the arguments and serve until the lease ends; `name` is the component's in every line of its log."""
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--lease", required=True)
    parser.add_argument("--token", required=True, type=int)
    parser.add_argument("--node", required=True)
    parser.add_argument("--run-dir", required=True, type=Path)
    orders = Orders(**vars(parser.parse_args()))
    service.main(lambda: _serve(name, orders, take))


async def _serve(name: str, orders: Orders, take: Callable[[Orders], Duty]) -> int:
    duty = take(orders)
    telemetry.configure_logging(name, level=duty.log.level, as_json=duty.log.json_lines)
    if duty.drain.metrics_port is not None:
        log.info("metrics on http://127.0.0.1:%d/metrics", telemetry.serve_metrics(duty.drain.metrics_port))
    return await service.run_until_signal(duty.service, stop_seconds=duty.drain.drain_seconds)
