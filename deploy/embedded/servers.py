"""Which Kafka and which Redis a machine uses, and the start of those that Headrace brings.

Kafka is looked for in this order: what was asked for (`--kafka embedded|home|docker`), a configured bootstrap address,
an Apache Kafka distribution (KAFKA_HOME and Java 17 or newer), the embedded log. Docker is never started unasked:
pulling an image is the user's decision. Redis: a configured URL, `redis-server` on the PATH, the bundled Valkey. Each
server says on one line what was taken and how to choose another.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from contracts.errors import ConfigurationError
from deploy.embedded.kafka_home import KafkaHome, MetadataProbe, find_kafka_home, start_apache_kafka
from deploy.embedded.processes import LOOPBACK, START_SECONDS, Child, Server, on_free_port
from deploy.embedded.redis_server import configured_redis, start_redis

KafkaKind = Literal["configured", "embedded", "home", "docker"]
KafkaChoice = Literal["embedded", "home", "docker"]

BOOTSTRAP_VARIABLE = "HEADRACE_KAFKA__BOOTSTRAP"
DOCKER_IMAGE = "apache/kafka:4.1.1"
DOCKER_SECONDS = 300.0  # the first start pulls an image of some 400 MB
_LISTENING = re.compile(rf"listening on {re.escape(LOOPBACK)}:(\d+)")


@dataclass(frozen=True)
class KafkaDecision:
    """Which Kafka is used; `note` says what was passed over, and why."""

    kind: KafkaKind
    home: KafkaHome | None = None
    note: str = ""


def find_kafka(choice: KafkaChoice | None, environ: Mapping[str, str]) -> KafkaDecision:
    """Which Kafka to use. Raises ConfigurationError when the one asked for cannot be had on this machine."""
    if choice == "home":
        return KafkaDecision("home", find_kafka_home(environ))
    if choice == "docker" and not shutil.which("docker", path=environ.get("PATH")):
        msg = "docker is not on the PATH: install it, or use --kafka embedded"
        raise ConfigurationError(msg)
    if choice is not None:
        return KafkaDecision(choice)
    if environ.get(BOOTSTRAP_VARIABLE):
        return KafkaDecision("configured")
    if not environ.get("KAFKA_HOME"):
        return KafkaDecision("embedded")
    try:
        return KafkaDecision("home", find_kafka_home(environ))
    except ConfigurationError as exc:
        return KafkaDecision("embedded", note=f"; passed over: {exc}")


def open_kafka(
    data: Path, *, choice: KafkaChoice | None, environ: Mapping[str, str], seconds: float = START_SECONDS
) -> Server:
    """Find a Kafka and start it when it is not there yet, with its files under `data`; returns when it serves."""
    found = find_kafka(choice, environ)
    if found.kind == "configured":
        address = environ[BOOTSTRAP_VARIABLE]
        return Server("Kafka", address, f"Kafka: configured, {address} ({BOOTSTRAP_VARIABLE})")
    if found.home is not None:
        return start_apache_kafka(found.home, data / "apache-kafka", seconds=seconds)
    if found.kind == "docker":
        return start_docker_kafka(data / "docker-kafka")
    server = start_embedded_log(data / "log", seconds=seconds)
    return replace(server, description=server.description + found.note)


def open_redis(data: Path, *, environ: Mapping[str, str], seconds: float = START_SECONDS) -> Server:
    """Find a Redis and start it when it is not there yet, with its files under `data`; returns when it answers."""
    return configured_redis(environ) or start_redis(data / "redis", seconds=seconds)


def start_embedded_log(data: Path, *, options: tuple[str, ...] = (), seconds: float = START_SECONDS) -> Server:
    """Start the embedded log on its segments under `data`; `options` are further arguments of its command line."""
    if find_spec("kio") is None:
        msg = "the embedded log needs the package kio: pip install 'headrace[embedded]'"
        raise ConfigurationError(msg)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = data.with_name(f"{data.name}.out")
    command = [sys.executable, "-P", "-m", "deploy.embedded.log_server", "--data", str(data), *options]
    child = Child("The embedded log", [*command, "--port", "0"], log=log, ready=lambda: _listening_port(log) > 0)
    child.start(seconds)
    port = _listening_port(log)
    child.argv[-1] = str(port)  # started again, it is found where its clients look for it
    return Server(
        "embedded log",
        f"{LOOPBACK}:{port}",
        f"Kafka: the embedded log on {LOOPBACK}:{port}, for this machine only "
        f"(choose another: --kafka home|docker, KAFKA_HOME, or {BOOTSTRAP_VARIABLE})",
        (child,),
    )


def _listening_port(log: Path) -> int:
    try:
        found = _LISTENING.search(log.read_text(errors="replace"))
    except FileNotFoundError:
        return 0
    return int(found.group(1)) if found else 0


def docker_settings(port: int) -> dict[str, str]:
    """The environment of a container whose broker is published on a port of the loopback."""
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "CLIENT",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_LISTENERS": "CLIENT://:9092,CONTROLLER://:9093",
        # Clients are sent to what a broker advertises: the published port, never the one inside.
        "KAFKA_ADVERTISED_LISTENERS": f"CLIENT://{LOOPBACK}:{port}",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    }


def docker_command(name: str, port: int, image: str = DOCKER_IMAGE) -> list[str]:
    """The command that runs one broker in a container, reachable on loopback only, removed when it ends."""
    pairs = [part for key, value in docker_settings(port).items() for part in ("--env", f"{key}={value}")]
    return ["docker", "run", "--rm", "--name", name, "--publish", f"{LOOPBACK}:{port}:9092", *pairs, image]


def start_docker_kafka(data: Path, *, seconds: float = DOCKER_SECONDS) -> Server:
    """Run Apache Kafka in a container until `stop`; its records live and die with the container.

    The child is the docker client, which hands SIGTERM on to the container; killing or pausing it reaches the client
    alone, so a test that needs a crashed broker uses a distribution instead.
    """
    return on_free_port(lambda port: _start_docker(port, data, seconds))


def _start_docker(port: int, data: Path, seconds: float) -> Server:
    name = f"headrace-kafka-{secrets.token_hex(4)}"
    child = Child(
        "Kafka in Docker", docker_command(name, port), log=data / "docker.log", ready=MetadataProbe(port, brokers=1)
    )
    try:
        child.start(seconds)
    except BaseException:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)  # noqa: S607
        raise
    address = f"{LOOPBACK}:{port}"
    how = f"choose another: --kafka embedded|home, or set {BOOTSTRAP_VARIABLE}"
    return Server(DOCKER_IMAGE, address, f"Kafka: {DOCKER_IMAGE} in Docker on {address} ({how})", (child,))
