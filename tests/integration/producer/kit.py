"""What the client's tests stand on: an echo model in the registry, its topic, and a responder that plays the worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from contracts import topics
from contracts.adapters.kafka import Admin, Partition, Producer, Reader
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.codec import decode_headers, decode_request, encode_response, encode_response_headers
from contracts.messages import (
    ErrorDetail,
    Receipt,
    ReplyAddress,
    RequestBody,
    RequestHeaders,
    ResponseBody,
    Status,
)
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings, RedisSettings
from contracts.specs import DeploymentSpec, ModelSpec, RouteSpec, TensorSpec
from deploy.embedded.log_faults import socket_path
from producer.settings import BehaviourSettings, ClientSettings, InboxSettings

ECHO = ModelVersion("echo", 1)
PARTITIONS = 4
ROW = TensorSpec(name="row", datatype="FP32", shape=(-1, 2))


def row(*values: float) -> dict[str, npt.ArrayLike]:
    """Inputs of the echo model: one row of a number and its negative."""
    return {"row": np.array([[value, -value] for value in values or (1.0,)], np.float32)}


@dataclass
class Fleet:
    """Where a test's clients, responder and registry meet."""

    kafka: KafkaSettings
    redis: RedisSettings

    def settings(self, *, inbox: InboxSettings | None = None, **client: object) -> ClientSettings:
        """Settings of a client that notices changes of the registry quickly."""
        behaviour = BehaviourSettings.model_validate({"refresh_seconds": 0.05, **client})
        return ClientSettings(kafka=self.kafka, redis=self.redis, client=behaviour, inbox=inbox or InboxSettings())

    @contextlib.asynccontextmanager
    async def door(self) -> AsyncIterator[RedisDoor]:
        async with await RedisDoor.open(self.redis.url.get_secret_value(), prefix=self.redis.prefix) as door:
            yield door

    async def deploy(self, key: ModelVersion, *, default: bool = False) -> None:
        """Register a version of the echo model and create its topic."""
        spec = ModelSpec(
            name=key.model, version=key.version, backend="python", inputs=(ROW,), outputs=(ROW,), handler="m:M"
        )
        await self.create_topic(topics.requests(self.kafka.prefix, key.model, key.version))
        async with self.door() as door:
            registry = Registry(door, self.redis.pool)
            await registry.put_models([RegisteredModel(spec=spec, uri="nowhere")])
            await registry.put_deployment(DeploymentSpec(model=key.model, version=key.version, allow_code=True))
            if default:
                await registry.put_route(key.model, RouteSpec(default=key.version))

    async def create_topic(self, topic: str, partitions: int = PARTITIONS) -> None:
        admin = Admin(self.kafka)
        await admin.open()
        try:
            await admin.ensure_topic(topic, partitions)
        finally:
            await admin.close()


def set_fault(folder: Path, **fault: object) -> None:
    """Have the embedded log that serves `folder` misbehave; its module says how."""
    _command(folder, {"set": fault})


def clear_faults(folder: Path) -> None:
    """Have it behave again."""
    _command(folder, {"clear": True})


def _command(folder: Path, command: dict[str, object]) -> None:
    with socket.socket(socket.AF_UNIX) as door, socket_path(folder) as path:
        door.connect(path)
        door.sendall(json.dumps(command).encode() + b"\n")
        answer = json.loads(door.makefile("rb").readline())
    assert "error" not in answer, answer


class Reply(NamedTuple):
    """One response that the responder is to send."""

    id: str
    status: Status = Status.OK
    body: ResponseBody = ResponseBody("echo", 1)
    token: str | None = None
    """Instead of the token in the request's address."""


class Seen(NamedTuple):
    """A request as the responder got it."""

    headers: RequestHeaders
    body: RequestBody
    topic: str
    partition: int
    key: bytes | None

    @property
    def id(self) -> str:
        return self.headers.id

    @property
    def reply(self) -> ReplyAddress:
        assert self.headers.reply is not None
        return self.headers.reply


Behaviour = Callable[[Seen], Sequence[Reply]]


def echo(seen: Seen) -> list[Reply]:
    """Answers with the inputs."""
    receipt = Receipt(worker="responder", device="cpu:0", batch_rows=1, queued_us=1, batched_us=1, computed_us=1)
    return [Reply(seen.id, body=ResponseBody("echo", 1, seen.body.inputs, receipt=receipt))]


def silent(_: Seen) -> list[Reply]:
    """Answers nothing."""
    return []


def refuse(status: Status, message: str = "no") -> Behaviour:
    """Answers with an error."""
    body = ResponseBody("echo", 1, error=ErrorDetail(message))
    return lambda seen: [Reply(seen.id, status, body)]


@dataclass
class Responder:
    """Plays the worker of one model version: a real reader and a real producer, and any behaviour."""

    kafka: KafkaSettings
    key: ModelVersion = ECHO
    behave: Behaviour = echo
    seen: list[Seen] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._producer, self._reader = Producer(self.kafka), Reader(self.kafka)
        await self._producer.open()
        await self._reader.open()
        topic = topics.requests(self.kafka.prefix, self.key.model, self.key.version)
        partitions = [Partition(topic, number) for number in range(PARTITIONS)]
        self._reader.assign(partitions)
        for partition in partitions:
            self._reader.begin(partition, 0)
        self._is_stopping = False
        self._loop = asyncio.get_running_loop().create_task(self._serve(), name="responder")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._is_stopping = True
        await self._loop
        await self._reader.close()
        await self._producer.close()

    async def _serve(self) -> None:
        while not self._is_stopping:
            for records in (await self._reader.poll(timeout_ms=50)).values():
                for record in records:
                    headers, body = decode_headers(record.headers), decode_request(record.value)
                    seen = Seen(headers, body, record.topic, record.partition, record.key)
                    self.seen.append(seen)
                    for reply in self.behave(seen):
                        await self.send(seen.reply, reply)

    async def send(self, address: ReplyAddress, reply: Reply) -> None:
        """Publish a response, whether anybody asked or not."""
        headers = encode_response_headers(reply.id, reply.status, reply.token or address.token)
        await self.send_raw(address, encode_response(reply.body), headers)

    async def send_raw(self, address: ReplyAddress, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Publish anything into an inbox."""
        _ = await self._producer.send(address.topic, address.partition, value, headers)
