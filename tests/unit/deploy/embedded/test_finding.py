"""What is taken on which machine, and what the operator is told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from contracts.errors import ConfigurationError
from deploy.embedded.guardian import watch
from deploy.embedded.kafka_home import find_java, living_brokers
from deploy.embedded.redis_server import bundled_valkey, configured_redis, find_redis
from deploy.embedded.servers import DOCKER_IMAGE, docker_command, find_kafka, open_kafka


def program(path: Path, script: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def java(folder: Path, version: str) -> dict[str, str]:
    program(folder / "java" / "bin" / "java", f"""echo 'openjdk version "{version}"' >&2""")
    return {"JAVA_HOME": str(folder / "java")}


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a distribution and a Java that is new enough."""
    for script in ("kafka-storage.sh", "kafka-server-start.sh"):
        program(tmp_path / "kafka" / "bin" / script)
    (tmp_path / "kafka" / "libs").mkdir()
    (tmp_path / "kafka" / "libs" / "kafka-clients-3.9.1.jar").touch()
    return java(tmp_path, "21.0.2") | {"KAFKA_HOME": str(tmp_path / "kafka")}


def test_a_configured_bootstrap_comes_first(machine: dict[str, str], tmp_path: Path) -> None:
    environ = machine | {"HEADRACE_KAFKA__BOOTSTRAP": "broker.example:9092"}
    assert find_kafka(None, environ).kind == "configured"
    server = open_kafka(tmp_path, choice=None, environ=environ)
    assert (server.address, server.is_ours) == ("broker.example:9092", False)
    assert "HEADRACE_KAFKA__BOOTSTRAP" in server.description


def test_a_distribution_with_java_comes_second(machine: dict[str, str]) -> None:
    found = find_kafka(None, machine)
    assert found.kind == "home"
    assert found.home is not None
    assert (found.home.version, found.home.java_version) == ("3.9.1", "21.0.2")


def test_the_embedded_log_comes_last() -> None:
    assert find_kafka(None, {}).kind == "embedded"


@pytest.mark.parametrize("choice", ["embedded", "home"])
def test_what_is_asked_for_wins_over_what_is_configured(machine: dict[str, str], choice: str) -> None:
    environ = machine | {"HEADRACE_KAFKA__BOOTSTRAP": "broker.example:9092"}
    assert find_kafka(choice, environ).kind == choice  # type: ignore[arg-type]  # a parameter is a plain str


def test_a_distribution_that_cannot_run_is_passed_over_and_the_note_says_why(
    machine: dict[str, str], tmp_path: Path
) -> None:
    found = find_kafka(None, machine | java(tmp_path, "11.0.2"))
    assert found.kind == "embedded"
    assert "Java 17" in found.note


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"KAFKA_HOME": ""}, "KAFKA_HOME is not set"),
        ({"KAFKA_HOME": "/nowhere"}, "has no bin/kafka-storage.sh"),
        ({"JAVA_HOME": "/nowhere"}, "Java 17 or newer"),
    ],
)
def test_asking_for_a_distribution_that_is_not_there_names_the_next_step(
    machine: dict[str, str], change: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        find_kafka("home", machine | change)


@pytest.mark.parametrize(("version", "good"), [("1.8.0_392", False), ("16.0.1", False), ("17", True), ("25-ea", True)])
def test_java_is_taken_from_version_17_on(tmp_path: Path, version: str, *, good: bool) -> None:
    assert (find_java(java(tmp_path, version)) is not None) is good


def test_docker_is_taken_only_when_asked_for_and_there(tmp_path: Path) -> None:
    program(tmp_path / "docker")
    assert find_kafka(None, {"PATH": str(tmp_path)}).kind == "embedded"
    assert find_kafka("docker", {"PATH": str(tmp_path)}).kind == "docker"
    with pytest.raises(ConfigurationError, match="docker is not on the PATH"):
        find_kafka("docker", {"PATH": str(tmp_path / "empty")})


def test_the_container_is_published_on_loopback_only_and_advertises_that_port() -> None:
    command = docker_command("name", 12345)
    assert command[:5] == ["docker", "run", "--rm", "--name", "name"]
    assert command[command.index("--publish") + 1] == "127.0.0.1:12345:9092"
    assert "KAFKA_ADVERTISED_LISTENERS=CLIENT://127.0.0.1:12345" in command
    assert command[-1] == DOCKER_IMAGE


def test_a_configured_redis_is_described_without_its_password() -> None:
    server = configured_redis({"HEADRACE_REDIS__URL": "rediss://me:secret@redis.example:6380/2"})
    assert server is not None
    assert server.address.endswith("secret@redis.example:6380/2")
    assert "redis.example:6380/2" in server.description
    assert "secret" not in f"{server.description} {server!r}"
    assert configured_redis({}) is None


def test_a_machine_without_redis_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bundled_valkey() is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="headrace\\[embedded\\]"):
        find_redis()


def metadata(brokers: int, controller: int) -> bytes:
    """A Metadata answer, version 4, without topics."""
    text = b"\x00\x09127.0.0.1"
    listed = b"".join(struct.pack(">i", n) + text + struct.pack(">ih", 9092, -1) for n in range(brokers))
    return struct.pack(">iii", 1, 0, brokers) + listed + b"\x00\x02id" + struct.pack(">ii", controller, 0)


@pytest.mark.parametrize(("brokers", "controller", "living"), [(0, -1, 0), (1, 0, 1), (3, 2, 3), (3, -1, 0)])
def test_brokers_count_once_there_is_a_controller(brokers: int, controller: int, living: int) -> None:
    assert living_brokers(metadata(brokers, controller)) == living


def test_the_guardian_watches_what_was_added_and_not_forgotten() -> None:
    assert watch(["+1\n", "+2\n", "-1\n", "+3\n", "nonsense\n", "-9\n"]) == [2, 3]
