"""A stack on which fleets are applied as `headrace apply` does it, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from contracts.adapters.registry import Registry
from contracts.pool import Lease
from contracts.settings import load_settings
from deploy.cli.apply import carry_out, plan_changes
from deploy.cli.connection import ControlPlane, open_control
from deploy.cli.repository import FleetFile, read_fleet
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from producer.settings import ClientSettings


def client_settings(stack: EmbeddedStack, *, blobs: str = "") -> ClientSettings:
    """What a client of a stack is told; `blobs` is the store for what is too large, by default none."""
    known = stack.settings()
    return load_settings(
        ClientSettings, kafka=known.kafka.model_dump(), redis=known.redis.model_dump(), blobs={"url": blobs}
    )


async def apply(registry: Registry, path: Path, *, replace: bool = False, prune: bool = False) -> FleetFile:
    """`headrace apply -f path`; returns what is wanted now."""
    wanted = read_fleet(path)
    await carry_out(registry, wanted, await plan_changes(registry, wanted, replace=replace, prune=prune))
    return wanted


@dataclass
class AppliedFleet:
    """The running stack, the way to its control plane, and a client; `root` holds the fleet's files."""

    root: Path
    stack: EmbeddedStack
    control: ControlPlane
    client: InferenceClient

    async def leases(self) -> list[Lease]:
        return [lease for lease in (await self.control.leases.state()).leases.values() if lease.is_live]

    def engines(self) -> list[psutil.Process]:
        agent = psutil.Process(self.stack.processes["agent"].pid)
        return [child for child in agent.children(recursive=True) if _is_engine(child)]


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "workers.engine" in process.cmdline()
    except psutil.NoSuchProcess:  # it has just ended
        return False


@asynccontextmanager
async def applied_fleet(root: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[AppliedFleet]:
    """Start the stack; nothing is applied yet."""
    async with (
        EmbeddedStack(root / "data", kafka="embedded", env=dict(env or {})) as stack,
        open_control(stack.settings()) as control,
        InferenceClient(client_settings(stack)) as client,
    ):
        yield AppliedFleet(root, stack, control, client)
