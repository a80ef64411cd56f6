"""The joiner process: `python -P -m workers.joiner --lease ID --token TOKEN --node NODE --run-dir DIR`.

Started by the node agent, which reads its exit: 0 when the lease ended in peace, 1 when the joiner could not go on.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from contracts import service, telemetry
from contracts.settings import load_settings
from workers.joiner.settings import JoinerSettings
from workers.joiner.worker import Joiner


async def _run(arguments: argparse.Namespace) -> int:
    settings = load_settings(JoinerSettings)
    telemetry.configure_logging("joiner", level=settings.log.level, as_json=settings.log.json_lines)
    if settings.joiner.metrics_port is not None:
        port = telemetry.serve_metrics(settings.joiner.metrics_port)
        logging.getLogger(__name__).info("metrics on http://127.0.0.1:%d/metrics", port)
    joiner = Joiner(arguments.lease, arguments.token, settings)
    return await service.run_until_signal(joiner, stop_seconds=settings.joiner.drain_seconds)


def main() -> None:
    """Read the arguments and join until the lease ends."""
    parser = argparse.ArgumentParser(prog="workers.joiner")
    parser.add_argument("--lease", required=True)
    parser.add_argument("--token", required=True, type=int)
    parser.add_argument("--node", required=True)
    parser.add_argument("--run-dir", required=True, type=Path)
    arguments = parser.parse_args()
    service.main(lambda: _run(arguments))


if __name__ == "__main__":
    main()
