"""`python -P -m workers.agent`: the agent of one machine."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.errors import ConfigurationError
from contracts.service import main, run_until_signal
from contracts.settings import load_settings
from contracts.telemetry import configure_logging, serve_metrics
from workers.agent.agent import NodeAgent
from workers.agent.host import MODULES
from workers.agent.settings import AgentSettings
from workers.devices.fake_nvml import FakeNvml
from workers.devices.nvml import Nvml, NvmlAbsent, NvmlError, PynvmlBackend

log = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> AgentSettings:
    """Settings from the environment, with what the command line says on top."""
    parser = argparse.ArgumentParser(prog="python -P -m workers.agent", description=__doc__)
    parser.add_argument("--node", help="name of this machine in the pool; by default its host name")
    parser.add_argument("--run-dir", type=Path, help="folder for sockets, logs and records of workers")
    given = vars(parser.parse_args(arguments))
    over = {name: value for name, value in given.items() if value is not None}
    return load_settings(AgentSettings, agent=over) if over else load_settings(AgentSettings)


def open_nvml(settings: AgentSettings) -> Nvml | None:
    """The GPUs' driver, or the fixture that plays it; None when there is nothing to open."""
    if not settings.agent.gpus:
        return None
    fixture = settings.agent.nvml_fixture
    nvml: Nvml = PynvmlBackend() if fixture is None else FakeNvml.load(fixture)
    try:
        nvml.open()
    except NvmlAbsent as exc:
        log.info("no GPUs are offered: %s", exc)
        return None
    except NvmlError as exc:
        log.warning("the GPU driver does not work, so no GPUs are offered: %s", exc)
        return None
    return nvml


async def run(settings: AgentSettings, modules: tuple[str, ...] = MODULES) -> int:
    """Run an agent until a signal."""
    if settings.agent.metrics_port is not None:
        log.info("metrics on port %d", serve_metrics(settings.agent.metrics_port))
    redis = settings.redis
    nvml = open_nvml(settings)
    # Not `open`, which would fail without a server: workers of an earlier agent must be looked after in any case.
    door = RedisDoor(redis.url.get_secret_value(), prefix=redis.prefix, timeout_seconds=1.0)
    try:
        agent = NodeAgent(settings, Leases(door, redis.pool), nvml=nvml, modules=modules)
        return await run_until_signal(agent, stop_seconds=settings.agent.drain_seconds + 5.0)
    finally:
        await door.close()
        if nvml is not None:
            nvml.close()


if __name__ == "__main__":
    try:
        chosen = parse()
    except ConfigurationError as fault:
        raise SystemExit(str(fault)) from None
    configure_logging("agent", level=chosen.log.level, as_json=chosen.log.json_lines)
    main(lambda: run(chosen))
