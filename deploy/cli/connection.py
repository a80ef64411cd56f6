"""How a command finds the stack: `--data`, else the environment, else the stack that runs on the default folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contracts.errors import ConfigurationError, TransportError

if TYPE_CHECKING:
    from contracts.adapters.leases import Leases
    from contracts.adapters.registry import Registry
    from contracts.settings import HeadraceSettings
    from scheduler.observe import Observation

_T = TypeVar("_T")
_NEEDED = ("HEADRACE_KAFKA__BOOTSTRAP", "HEADRACE_REDIS__URL")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine."""
    import uvloop

    return uvloop.run(main)


def find_environment(data: Path | None) -> dict[str, str]:
    """The variables that lead to the stack. Raises ConfigurationError when there is none to be found."""
    from deploy.embedded.connection import default_data_folder, read_stack_file

    given = {name: os.environ[name] for name in _NEEDED if os.environ.get(name)}
    if data is None and len(given) == len(_NEEDED):
        return {}
    folder = data or default_data_folder(os.environ)
    found = read_stack_file(folder.expanduser())
    if found is None:
        msg = (
            f"no stack runs on {folder}: start one with `headrace up{f' --data {data}' if data else ''}`, "
            f"or set {' and '.join(_NEEDED)}"
        )
        raise ConfigurationError(msg)
    return found.environment if data is not None else found.environment | given


def load(data: Path | None) -> HeadraceSettings:
    """The settings of this command; whatever it starts or builds in this process uses the same ones."""
    from contracts.settings import HeadraceSettings, load_settings

    os.environ.update(find_environment(data))
    return load_settings(HeadraceSettings)


@dataclass(frozen=True)
class ControlPlane:
    """What there is and what should be, to be read and changed."""

    settings: HeadraceSettings
    registry: Registry
    leases: Leases

    async def look(self) -> Observation:
        """Pool and registry at one moment."""
        from scheduler.observe import look

        return await look(self.leases, self.registry, prefix=self.settings.kafka.prefix)


@asynccontextmanager
async def open_control(settings: HeadraceSettings) -> AsyncIterator[ControlPlane]:
    """Connect to Redis. Raises TransportError."""
    from contracts.adapters.leases import Leases
    from contracts.adapters.redis import RedisDoor
    from contracts.adapters.registry import Registry

    url = settings.redis.url.get_secret_value()
    where = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
    try:
        door = await RedisDoor.open(url, prefix=settings.redis.prefix, timeout_seconds=5.0)
    except TransportError as exc:
        msg = f"no Redis answers at {where} ({exc}): start the stack with `headrace up`, or correct HEADRACE_REDIS__URL"
        raise TransportError(msg) from exc
    async with door:
        pool = settings.redis.pool
        yield ControlPlane(settings, Registry(door, pool), Leases(door, pool))
