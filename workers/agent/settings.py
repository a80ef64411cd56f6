"""Settings of the node agent."""

from __future__ import annotations

import re
import socket
import tempfile
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.errors import ConfigurationError
from contracts.lease import check_node_timing
from contracts.names import NAME_PATTERN, is_name
from contracts.settings import Group, HeadraceSettings, LeaseSettings, register_settings


def default_node() -> str:
    """The host's name, made a valid node name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("._-")[:64]
    return name if is_name(name) else "node"


def default_folder() -> Path:
    """A folder of this user's own below the machine's temporary one; short, since socket paths are limited."""
    return Path(tempfile.gettempdir()) / f"headrace-{_user()}"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "agent"


class AgentGroup(Group):
    """What a node agent offers and how it treats its workers."""

    node: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = Field(default_factory=default_node)
    """Name of this machine in the pool; by default its host name."""
    run_dir: Path | None = None
    """Sockets, logs and records of workers, of this agent alone; by default below the temporary folder."""
    lock_dir: Path = Field(default_factory=lambda: default_folder() / "locks")
    """Locks of device shares; the same for all agents of a machine, so that two of them cannot use one device."""
    cores: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Cores to offer; by default those that this process may run on."""
    memory_mib: Annotated[int | None, Field(ge=1)] = None
    """Memory to offer; by default the machine's, or the container's limit."""
    gpus: bool = True
    """Whether to offer the GPUs that a driver shows."""
    nvml_fixture: Path | None = None
    """A YAML file that plays the GPU driver, for trying things out; its GPUs run nothing."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Time between heartbeats, which are also when leases are compared with processes at the latest."""
    suspect_seconds: Annotated[float, Field(gt=0)] = 3.0
    """No worker is started on news from the pool older than this."""
    dead_seconds: Annotated[float, Field(gt=0)] = 10.0
    """The pool gives up a node that was silent for so long."""
    quarantine_seconds: Annotated[float, Field(ge=0)] = 2.0
    """A worker whose lease is over is killed after this; it should have noticed by itself."""
    engine_grace_seconds: Annotated[float, Field(ge=0)] = 0.5
    """An engine without its ingest gets SIGTERM, and SIGKILL after this; nobody can use its results."""
    drain_seconds: Annotated[float, Field(ge=0)] = 26.0
    """Workers get this long to finish and commit when the agent stops; a little more than they give themselves."""
    leave_workers: bool = False
    """Whether workers outlive a stop of the agent, to be taken over by the next one (an upgrade of the agent)."""
    log_mib: Annotated[float, Field(gt=0)] = 4.0
    """Log of one process; its older half is dropped beyond this."""
    logs_kept: Annotated[int, Field(ge=0)] = 40
    """Logs of ended workers' processes that are kept."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """Port of /metrics on loopback; none by default."""

    @property
    def run_folder(self) -> Path:
        """`run_dir`, or this node's own folder."""
        return (self.run_dir or default_folder() / self.node).absolute()

    @model_validator(mode="after")
    def _related(self) -> Self:
        try:
            check_node_timing(
                heartbeat_seconds=self.heartbeat_seconds,
                suspect_seconds=self.suspect_seconds,
                dead_seconds=self.dead_seconds,
            )
        except ConfigurationError as exc:
            raise ValueError(str(exc)) from exc
        return self


@register_settings
class AgentSettings(HeadraceSettings):
    """Everything that the node agent reads."""

    lease: LeaseSettings = LeaseSettings()
    agent: AgentGroup = AgentGroup()
