"""A stack that serves the hostile model, raw records to it, and what its workers and dead letters say afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.harness import control, deploy, wait_for_workers
from contracts import topics
from contracts.adapters.kafka import Admin, Partition, Producer, Reader, Record
from contracts.codec import decode_response, encode_request
from contracts.messages import Response
from contracts.names import ModelVersion
from contracts.service import Loops
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from contracts.tensors import Tensor
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.e2e.fleet_kit import client_settings
from tests.helpers import unique_name, wait_until

HOSTILE = ModelVersion("hostile", 1)
FOLDER = Path(__file__).resolve().parents[1] / "models/hostile/1"
PARTITIONS = 4
REPLIES = topics.replies("headrace", "raw")
REQUESTS = topics.requests("headrace", HOSTILE.model, HOSTILE.version)
DEAD = topics.dead("headrace", HOSTILE.model)
GOOD, RAISE, HANG, LEAK, EXIT, KILL, TOO_FEW, NO_MEMORY, GIVE_UP, KILL_WORKER, SHORT, REFUSE, NAME = range(13)
Headers = Mapping[str, bytes]


def row(wish: int, value: float = 1.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """One row that asks for something."""
    return np.array([[wish, value, 0, 0]], np.float32)


def body(wish: int = GOOD, value: float = 1.0) -> bytes:
    """The same as the body of a request."""
    return encode_request([Tensor.from_numpy("row", row(wish, value))])


@dataclass
class Fleet:
    """The running stack and the clients on it."""

    stack: EmbeddedStack
    client: InferenceClient
    producer: Producer
    reader: Reader
    loops: Loops = field(default_factory=lambda: Loops("hostile"))
    responses: dict[str, list[Response]] = field(default_factory=dict)
    dead: list[Record] = field(default_factory=list)

    # --- raw records --------------------------------------------------------------------------------------------------

    async def publish(self, value: bytes | None, headers: Headers, partition: int = 0, *, topic: str = REQUESTS) -> str:
        """Send a record as it is, with an id and a reply address unless it has its own; returns the id."""
        name = unique_name("raw")
        given = {"v": b"1.0", "id": name.encode(), "re": f"{REPLIES}/0/raw".encode(), "ttl": b"30000"} | dict(headers)
        pairs = list(given.items())
        await self.producer.send_and_wait(topic, partition, value, pairs, key=b"raw")
        return given["id"].decode("ascii", "replace")

    async def response_to(self, name: str, seconds: float = 20.0) -> Response:
        """The one response to a raw record."""
        await wait_until(lambda: self.responses.get(name), f"{name} was not answered", timeout=seconds)
        (response,) = self.responses[name]
        return response

    async def letter_of(self, name: str, seconds: float = 20.0) -> Record:
        """The one dead letter with this request id."""
        await wait_until(lambda: self.letters(name), f"{name} was not put aside", timeout=seconds)
        (letter,) = self.letters(name)
        return letter

    def letters(self, name: str) -> list[Record]:
        return [record for record in self.dead if dict(record.headers).get("id") == name.encode()]

    async def read_loop(self) -> None:
        """Collect responses and dead letters."""
        while True:
            for partition, records in (await self.reader.poll(timeout_ms=50)).items():
                if partition.topic == DEAD:
                    self.dead += records
                    continue
                for record in records:
                    response, token = decode_response(record.headers, record.value)
                    assert token == "raw"
                    self.responses.setdefault(response.id, []).append(response)

    # --- good requests ------------------------------------------------------------------------------------------------

    async def good(self, count: int = 12, ttl_seconds: float = 60.0) -> None:
        """Good requests to all partitions; every one of them must get its own answer."""
        values = [float(number) for number in range(count)]
        answers = await asyncio.gather(
            *(
                self.client.infer("hostile@1", {"row": row(GOOD, value)}, key=b"%d" % number, ttl_seconds=ttl_seconds)
                for number, value in enumerate(values)
            )
        )
        assert [answer["sum"].to_numpy().item() for answer in answers] == values

    @asynccontextmanager
    async def traffic(self, callers: int = 3) -> AsyncIterator[None]:
        """Good requests all the while; every one of them must get its own answer."""
        over = asyncio.Event()

        async def caller() -> None:
            while not over.is_set():
                await self.good(4)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
            yield
            over.set()

    # --- what the workers say -----------------------------------------------------------------------------------------

    async def metric(self, name: str, **labels: str) -> float:
        """A counter, summed up over the workers."""
        return await asyncio.to_thread(self._metric, name, labels)

    def _metric(self, name: str, labels: Mapping[str, str]) -> float:
        total = 0.0
        for port in self._ports():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                for line in page.read().decode().splitlines():
                    if line.startswith((f"{name} ", f"{name}{{")) and all(
                        f'{key}="{value}"' in line for key, value in labels.items()
                    ):
                        total += float(line.rpartition(" ")[2])
        return total

    def _ports(self) -> Sequence[str]:
        logs = [path for folder in self.stack._run_folders.values() for path in folder.glob("*.ingest.log")]
        return [port for log in logs for port in re.findall(r"metrics on http://127\.0\.0\.1:(\d+)/", log.read_text())]


def deployment(workers: int = 1, *, lanes: bool = False) -> DeploymentSpec:
    return DeploymentSpec(
        model=HOSTILE.model,
        version=HOSTILE.version,
        workers=WorkersSpec(min=workers, max=workers),
        device=DeviceSpec(kind="cpu", compute=25, memory_mib=64),
        topic=TopicSpec(partitions=PARTITIONS, lanes=lanes),
        allow_code=True,
    )


@asynccontextmanager
async def hostile_fleet(
    folder: Path, env: Mapping[str, str], workers: int = 1, *, lanes: bool = False
) -> AsyncIterator[Fleet]:
    """A stack of its own with workers that serve the hostile model."""
    async with EmbeddedStack(folder, kafka="embedded", env={"HEADRACE_WORKER__METRICS_PORT": "0", **env}) as stack:
        async with control(stack) as (registry, leases):
            await deploy(registry, FOLDER, deployment(workers, lanes=lanes))
            await wait_for_workers(leases, HOSTILE, workers)
        known = stack.settings()
        admin, producer, reader = Admin(known.kafka), Producer(known.kafka), Reader(known.kafka)
        await admin.open()
        await admin.ensure_topic(REPLIES, 1)
        await admin.close()
        await asyncio.gather(producer.open(), reader.open())
        async with InferenceClient(client_settings(stack)) as client:
            fleet = Fleet(stack, client, producer, reader)
            partitions = [Partition(REPLIES, 0), Partition(DEAD, 0)]
            reader.assign(partitions)
            for partition in partitions:
                reader.begin(partition, 0)
            fleet.loops.spawn("read", fleet.read_loop())
            try:
                yield fleet
            finally:
                await fleet.loops.stop()
                await asyncio.gather(producer.close(), reader.close())
