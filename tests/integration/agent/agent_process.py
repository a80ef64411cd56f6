"""The agent as a process, with the stand-ins as its workers; settings come from the environment as usual."""

from __future__ import annotations

from contracts.service import main
from contracts.telemetry import configure_logging
from tests.integration.agent.kit import MODULES
from workers.agent.__main__ import parse, run

if __name__ == "__main__":
    configure_logging("agent", level="INFO")
    settings = parse()
    main(lambda: run(settings, MODULES))
