"""Apache Kafka from a distribution on this machine: one broker, or three that can be killed one by one.

Only the distribution's public scripts are used (`bin/kafka-storage.sh format`, `bin/kafka-server-start.sh`), so that
any distribution will do. Brokers are combined KRaft nodes on loopback. Topics are never created by being mentioned: a
misspelt name must be an error, and Headrace creates its topics with the settings that it needs.

Two things halve the start of a JVM, and cost nothing at the loads of one machine: the first compiler tier only, and a
class-data archive, which the first broker leaves in the user's cache as it ends and every later one maps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConfigurationError, TransportError
from deploy.embedded.guardian import exists
from deploy.embedded.processes import LOOPBACK, START_SECONDS, Child, Server, free_port, on_free_port

MIN_JAVA = 17
_FAST_JVM = "-XX:+IgnoreUnrecognizedVMOptions -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true"
_QUIET_ARCHIVE = "-Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off"
_HEAP = "-Xms128M -Xmx384M"
_REPLICATION = 3
_PROBE_SECONDS = 1.0
# Metadata, version 4, correlation id 1, no client id; no topics, no creation. A broker lists those that are alive.
_METADATA_REQUEST = struct.pack(">hhih", 3, 4, 1, -1) + struct.pack(">i?", 0, False)


@dataclass(frozen=True)
class KafkaHome:
    """A distribution, and the Java that runs it."""

    home: Path
    java: Path
    java_version: str

    @property
    def version(self) -> str:
        """The distribution's version as its libraries tell it; empty when they do not."""
        found = (re.search(r"kafka-clients-(\d[\w.]*)\.jar", path.name) for path in self.home.glob("libs/*.jar"))
        return next((match.group(1) for match in found if match), "")


def find_java(environ: Mapping[str, str]) -> tuple[Path, str] | None:
    """The Java that Kafka's scripts would take and its version, when it is new enough."""
    home = environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java", path=environ.get("PATH"))
    if not found or not os.access(found, os.X_OK):
        return None
    printed = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)([^"]*)"', printed.stderr + printed.stdout)
    if version is None or int(version.group(1)) < MIN_JAVA:
        return None
    return Path(found), version.group(1) + version.group(2)


def find_kafka_home(environ: Mapping[str, str]) -> KafkaHome:
    """The distribution at KAFKA_HOME. Raises ConfigurationError with the next step when it cannot be used."""
    named = environ.get("KAFKA_HOME", "")
    if not named:
        msg = "KAFKA_HOME is not set: unpack an Apache Kafka distribution and set it to that folder"
        raise ConfigurationError(msg)
    home = Path(named).absolute()
    for script in ("kafka-storage.sh", "kafka-server-start.sh"):
        if not os.access(home / "bin" / script, os.X_OK):
            msg = f"KAFKA_HOME={named} is no Apache Kafka distribution: it has no bin/{script}"
            raise ConfigurationError(msg)
    java = find_java(environ)
    if java is None:
        msg = f"Apache Kafka needs Java {MIN_JAVA} or newer: install it, or set JAVA_HOME to one"
        raise ConfigurationError(msg)
    return KafkaHome(home, *java)


def start_apache_kafka(
    kafka: KafkaHome,
    data: Path,
    *,
    brokers: int = 1,
    overrides: Mapping[str, str] | None = None,
    seconds: float = START_SECONDS,
) -> Server:
    """Start a cluster whose files live under `data`; returns when every broker serves.

    With three brokers or more, topics are replicated three times by default and need two replicas in sync. `overrides`
    are broker settings. The children of the server are the brokers: node 1 first.
    """
    if (data / "1").exists():
        return _start(kafka, data, seconds)
    return on_free_port(
        lambda port: _start_new(kafka, data, [port, *_ports(2 * brokers - 1)], overrides or {}, seconds)
    )


def _ports(count: int) -> Iterator[int]:
    for _ in range(count):
        yield free_port()


def _start_new(kafka: KafkaHome, data: Path, ports: list[int], overrides: Mapping[str, str], seconds: float) -> Server:
    """Configure and format every node, then start them; leaves nothing behind when the start fails."""
    nodes = {n: (ports[2 * n - 2], ports[2 * n - 1]) for n in range(1, len(ports) // 2 + 1)}
    shared = _shared_properties(nodes) | dict(overrides)
    for n, (client, controller) in nodes.items():
        folder = data / str(n)
        folder.mkdir(parents=True)
        own = {
            "node.id": str(n),
            "log.dirs": str((folder / "data").absolute()),
            "listeners": f"CLIENT://{LOOPBACK}:{client},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"CLIENT://{LOOPBACK}:{client}",
        }
        lines = [f"{name}={value}\n" for name, value in (shared | own).items()]
        (folder / "server.properties").write_text("".join(lines).replace("\\", "\\\\"))
    try:
        _format(kafka, data, list(nodes))
        return _start(kafka, data, seconds)
    except TransportError:
        for n in nodes:
            shutil.rmtree(data / str(n), ignore_errors=True)
        raise


def _shared_properties(nodes: Mapping[int, tuple[int, int]]) -> dict[str, str]:
    replicas = min(_REPLICATION, len(nodes))
    in_sync = max(1, replicas - 1)
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(f"{n}@{LOOPBACK}:{port}" for n, (_, port) in nodes.items()),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENT",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(replicas),
        "offsets.topic.num.partitions": "3",  # the default of 50 is 50 folders and logs for a handful of groups
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(in_sync),
        "transaction.state.log.num.partitions": "3",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "group.initial.rebalance.delay.ms": "0",
    }


def _format(kafka: KafkaHome, data: Path, nodes: list[int]) -> None:
    """Write each node's storage identity: a JVM each, so at the same time."""
    cluster = secrets.token_hex(8) + secrets.token_hex(3)  # 22 characters that are valid base64 of 16 bytes

    def one(n: int) -> None:
        done = subprocess.run(
            [
                kafka.home / "bin" / "kafka-storage.sh",
                "format",
                "-t",
                cluster,
                "-c",
                data / str(n) / "server.properties",
            ],
            env=os.environ | _environment(kafka, data / str(n), archive=""),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"kafka-storage.sh format failed for broker {n}:\n{done.stdout}{done.stderr}"
            raise TransportError(msg)

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="format") as pool:
        list(pool.map(one, nodes))


def _start(kafka: KafkaHome, data: Path, seconds: float) -> Server:
    nodes = sorted(int(path.name) for path in data.iterdir() if path.name.isdecimal())
    ports = {n: _client_port(data / str(n) / "server.properties") for n in nodes}
    writer = _adopt_archive(_class_archive(kafka))
    children = tuple(
        Child(
            f"Kafka broker {n}",
            [kafka.home / "bin" / "kafka-server-start.sh", data / str(n) / "server.properties"],
            log=data / str(n) / "broker.log",
            ready=MetadataProbe(port, len(nodes)),
            environment=_environment(kafka, data / str(n), archive=writer if n == nodes[0] else ""),
        )
        for n, port in ports.items()
    )
    name = f"Apache Kafka {kafka.version}".strip()
    address = ",".join(f"{LOOPBACK}:{port}" for port in ports.values())
    count = f"{len(nodes)} brokers" if len(nodes) > 1 else "1 broker"
    how = "choose another: --kafka embedded|docker, or set HEADRACE_KAFKA__BOOTSTRAP"
    server = Server(name, address, f"Kafka: {name}, {count} on {address}, KAFKA_HOME={kafka.home} ({how})", children)
    server.start(seconds)
    return server


def _client_port(properties: Path) -> int:
    found = re.search(r"^listeners=CLIENT://[^:]+:(\d+)", properties.read_text(), re.MULTILINE)
    if found is None:
        msg = f"{properties} was not written by Headrace: choose another data folder"
        raise ConfigurationError(msg)
    return int(found.group(1))


def _class_archive(kafka: KafkaHome) -> Path:
    """Where the class-data archive of exactly these libraries under exactly this Java belongs."""
    libraries = sorted((kafka.home / "libs").glob("*.jar"))
    identity = [str(kafka.home), str(kafka.java), kafka.java_version]
    identity += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in libraries]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
    return cache / f"kafka-{digest}.jsa"


def _adopt_archive(archive: Path) -> str:
    """Put an archive that an earlier run left in its place; returns the JVM option that reads it, or writes one.

    A broker writes it as it ends, to a name with the starter's process id: a broker that starts meanwhile must not map
    half a file. The JVM writes the header last, so a head of zeros tells a broker that was killed while writing.
    """
    with contextlib.suppress(OSError):
        archive.parent.mkdir(parents=True, exist_ok=True)
        for left in archive.parent.glob(f"{archive.name}.*"):
            if not exists(int(left.suffix[1:])):
                with left.open("rb") as stream:
                    whole = any(stream.read(4))
                if whole:
                    left.replace(archive)
                else:
                    left.unlink()
    return "" if archive.exists() else f"-XX:ArchiveClassesAtExit={archive}.{os.getpid()}"


def _environment(kafka: KafkaHome, folder: Path, *, archive: str) -> dict[str, str]:
    """What the scripts read. A heap, JVM options or a Java of the user's own win."""
    written = _class_archive(kafka)
    sharing = archive or (f"-XX:SharedArchiveFile={written}" if written.exists() else "")
    ours = {
        "KAFKA_HEAP_OPTS": _HEAP,
        "KAFKA_JVM_PERFORMANCE_OPTS": f"{_FAST_JVM} {_QUIET_ARCHIVE} {sharing}".strip(),
        "LOG_DIR": str((folder / "logs").absolute()),  # the distribution itself may be read-only
    }
    return {name: os.environ.get(name, value) for name, value in ours.items()}


@dataclass(frozen=True)
class MetadataProbe:
    """Asks a broker for the cluster: ready when it knows of a controller and of as many brokers as there are."""

    port: int
    brokers: int

    def __call__(self) -> bool:
        with (
            contextlib.suppress(OSError, struct.error),  # not there yet, or ended in the middle of its answer
            socket.create_connection((LOOPBACK, self.port), _PROBE_SECONDS) as connection,
        ):
            connection.sendall(struct.pack(">i", len(_METADATA_REQUEST)) + _METADATA_REQUEST)
            with connection.makefile("rb") as answer:
                (size,) = struct.unpack(">i", answer.read(4))
                return living_brokers(answer.read(size)) >= self.brokers
        return False


def living_brokers(answer: bytes) -> int:
    """How many brokers a Metadata answer (version 4) lists; 0 while there is no controller."""
    count, at = struct.unpack_from(">i", answer, 8)[0], 12  # after the correlation id and the throttle time
    for _ in range(count):
        at += 4  # node id
        at = _after_string(answer, at) + 4  # host, then the port
        at = _after_string(answer, at)  # rack
    at = _after_string(answer, at)  # cluster id
    (controller,) = struct.unpack_from(">i", answer, at)
    return int(count) if controller >= 0 else 0


def _after_string(answer: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">h", answer, at)
    return at + 2 + max(0, int(length))
