"""`python -P -m scheduler`: run one scheduler; the first of a pool leads, the others stand by."""

from __future__ import annotations

import sys

from contracts.errors import ConfigurationError
from contracts.service import main, run_until_signal
from contracts.settings import load_settings
from contracts.telemetry import configure_logging
from scheduler.loop import Scheduler
from scheduler.settings import SchedulerSettings


async def run() -> int:
    """The process's exit status."""
    try:
        settings = load_settings(SchedulerSettings)
    except ConfigurationError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure_logging("scheduler", level=settings.log.level, as_json=settings.log.json_lines)
    return await run_until_signal(Scheduler(settings))


if __name__ == "__main__":
    main(run)
