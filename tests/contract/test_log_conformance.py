"""The embedded log is held to Apache Kafka: the same sessions, the same observations, on both."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition

from contracts.errors import ConfigurationError
from deploy.embedded.kafka_home import find_kafka_home, start_apache_kafka
from deploy.embedded.processes import Server
from deploy.embedded.servers import start_embedded_log
from tests.contract.log_observations import OBSERVATIONS
from tests.contract.log_raw import RawClient, make_batch
from tests.contract.log_sessions import SESSIONS, STAMPED, Clients
from tests.contract.log_sessions_other import kafkajs, librdkafka
from tests.helpers import unique_name, wait_until, wait_until_sync
from tests.servers import FENCED_SOONER, missing

KAFKAJS = Path(__file__).with_name("kafkajs_client")
NPM_SECONDS = 60

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("session", SESSIONS)
async def test_aiokafka_sees_what_it_sees_on_apache_kafka(session: str, kafka_bootstrap: str) -> None:
    assert await SESSIONS[session](kafka_bootstrap) == OBSERVATIONS[session]


async def test_librdkafka_sees_what_it_sees_on_apache_kafka(kafka_bootstrap: str) -> None:
    assert await librdkafka(kafka_bootstrap) == OBSERVATIONS["librdkafka"]


@pytest.fixture(scope="module")
def kafkajs_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds kafkajs."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("no node and npm on the PATH")
    if (KAFKAJS / "node_modules" / "kafkajs").exists():
        return KAFKAJS
    folder = tmp_path_factory.mktemp("kafkajs")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(KAFKAJS / name, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    if installed.returncode:
        missing(f"kafkajs could not be installed: {installed.stderr.strip()[-200:]}")
    return folder


@pytest.mark.timeout(120)
async def test_kafkajs_sees_what_it_sees_on_apache_kafka(kafka_bootstrap: str, kafkajs_packages: Path) -> None:
    assert await kafkajs(kafka_bootstrap, kafkajs_packages) == OBSERVATIONS["kafkajs"]


@pytest.fixture(params=["embedded", "apache"])
def own_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A broker of the test's own, to be killed and started again."""
    if request.param == "embedded":
        server = start_embedded_log(tmp_path / "log")
    else:
        try:
            home = find_kafka_home(os.environ)
        except ConfigurationError as exc:
            missing(f"no Apache Kafka: {exc}")
        server = start_apache_kafka(home, tmp_path / "kafka", overrides=FENCED_SOONER)  # and so back sooner
    yield server
    server.kill()


@pytest.mark.timeout(120)
async def test_all_that_was_acknowledged_is_there_after_kill_9(own_broker: Server) -> None:
    group, bootstrap = unique_name("group"), own_broker.address
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(2, STAMPED)
        partition = TopicPartition(topic, 0)
        consumer = await clients.consumer(topic, 2, group_id=group)
        with RawClient(bootstrap) as raw:
            producer = raw.producer_id()
            sent = [make_batch([b"%d" % number] * 2, producer=(producer, 0, 2 * number)) for number in range(3)]
            acknowledged = [raw.produce(topic, batch)[0].base_offset for batch in sent]
            before = raw.fetch(topic, 0)[0].records
        await consumer.commit({partition: OffsetAndMetadata(4, "note")})

    own_broker.kill()
    own_broker.start()

    async with Clients(bootstrap) as clients:
        consumer, admin = await clients.consumer(topic, 2, group_id=group), await clients.admin()
        with RawClient(bootstrap) as raw:
            await wait_until(lambda: raw.has_leaders(topic, 2))
            after = raw.fetch(topic, 0)[0]
            repeated = raw.produce(topic, sent[-1])[0]
            following = raw.produce(topic, make_batch([b"next"], producer=(producer, 0, 6)))[0]
            wait_until_sync(lambda: raw.producer_id() > producer)
        committed = await admin.list_consumer_group_offsets(group)
        assert acknowledged == [0, 2, 4]
        assert (before, after.high_watermark) == (after.records, 6)
        assert (repeated.error_code, repeated.base_offset) == (0, 4)
        assert (following.error_code, following.base_offset) == (0, 6)
        assert committed == {partition: OffsetAndMetadata(4, "note")}
        assert await consumer.committed(partition) == 4
