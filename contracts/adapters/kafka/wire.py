"""The two requests that carry the traffic, Fetch and Produce, packed and read by hand.

The library builds each message from a tree of objects, one per field, and takes answers apart the same way: for a lone
request that was more work than the request itself. Only one version of each is spoken, the oldest that every broker
since 0.11 understands, since nothing newer in them is of use here. Everything else stays with the library, whose
connection takes these in place of its own: it asks a request for the methods below and no others.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from aiokafka import errors as kafka_errors

_HEAD = struct.Struct(">hhih")  # API, version, correlation id, length of the client's name
_FRAME = struct.Struct(">ihhih")  # the same behind the length of all that follows
_NUMBER = struct.Struct(">i")
_SHORT = struct.Struct(">h")
_WISH = struct.Struct(">iqi")  # partition, offset, most bytes
_FETCH_HEAD = struct.Struct(">iiiibi")  # replica, wait, least bytes, most bytes, isolation, number of topics
_FETCHED_HEAD = struct.Struct(">ii")  # throttle time, number of topics
_FETCH_PART = struct.Struct(">ihqqi")  # partition, error, end, last stable offset, number of aborted transactions
_PRODUCE_HEAD = struct.Struct(">hhii")  # transaction, acknowledgements, timeout, number of topics
_PRODUCED = struct.Struct(">ii")  # partition, size of the batch
_PRODUCE_PART = struct.Struct(">ihqq")  # partition, error, base offset, append time
_ABORTED_BYTES = 16
_FETCH_VERSION, _PRODUCE_VERSION = 4, 3


class _Packed(bytes):
    """Bytes that say they are encoded."""

    __slots__ = ()

    def encode(self) -> bytes:
        return self


class _AnswerHead(NamedTuple):
    correlation_id: int


class ProduceAnswer:
    """The answer to a Produce, in the form in which the library looks at its own."""

    API_VERSION = _PRODUCE_VERSION

    def __init__(self, topics: list[tuple[str, list[tuple[int, int, int, int]]]]) -> None:
        self.topics = topics

    @classmethod
    def read(cls, data: bytes, at: int) -> Self:
        """Read it from behind its correlation id."""
        (count,) = _NUMBER.unpack_from(data, at)
        at += _NUMBER.size
        topics = []
        for _ in range(count):
            topic, parts, at = _topic_at(data, at)
            end = at + parts * _PRODUCE_PART.size
            topics.append((topic, list(_PRODUCE_PART.iter_unpack(data[at:end]))))
            at = end
        return cls(topics)


FetchedPart = tuple[str, int, int, bytes]
"""What a broker has of one partition: the topic, the partition, an error code and the records."""


def read_fetched(data: bytes, at: int) -> list[FetchedPart]:
    """Read an answer to a Fetch from behind its correlation id."""
    _throttle_ms, topics = _FETCHED_HEAD.unpack_from(data, at)
    at += _FETCHED_HEAD.size
    parts = []
    for _ in range(topics):
        topic, count, at = _topic_at(data, at)
        for _ in range(count):
            partition, error, _end, _stable, aborted = _FETCH_PART.unpack_from(data, at)
            at += _FETCH_PART.size + max(aborted, 0) * _ABORTED_BYTES
            (size,) = _NUMBER.unpack_from(data, at)
            at += _NUMBER.size
            end = at + max(size, 0)
            parts.append((topic, partition, error, data[at:end]))
            at = end
    return parts


class Exchange:
    """A request with its bytes, and how its answer is read. To the library it is its own type of answer, too."""

    __slots__ = ("_api", "_body", "_version", "hear", "read")

    def __init__(
        self,
        api: int,
        version: int,
        body: bytes,
        read: Callable[[bytes, int], Any],
        hear: Callable[[Any], None] | None = None,
    ) -> None:
        """`read` makes an answer of a frame and the place in it at which the answer begins.

        `hear` is called with the answer before those who wait for the exchange are woken, and must not raise.
        """
        self._api, self._version, self._body = api, version, body
        self.read, self.hear = read, hear

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Self:
        """Nothing to choose: there is one version. Raises IncompatibleBrokerVersion when the broker has it not."""
        lowest, highest = versions.get(self._api, (0, 0))
        if not lowest <= self._version <= highest:
            msg = f"the broker does not speak version {self._version} of API {self._api}"
            raise kafka_errors.IncompatibleBrokerVersion(msg)
        return self

    def frame(self, correlation_id: int, client_id: str) -> bytes:
        """The whole request as it stands on the wire."""
        name, body = client_id.encode(), self._body
        size = _HEAD.size + len(name) + len(body)
        return _FRAME.pack(size, self._api, self._version, correlation_id, len(name)) + name + body

    # --- for the library's connection, where that is not bypassed -----------------------------------------------------

    @property
    def RESPONSE_TYPE(self) -> Self:  # noqa: N802 - the library's name
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> _Packed:
        """What stands in front of the body."""
        name = client_id.encode()
        return _Packed(_HEAD.pack(self._api, self._version, correlation_id, len(name)) + name)

    def encode(self) -> bytes:
        """The body."""
        return self._body

    @staticmethod
    def parse_response_header(stream: io.BytesIO) -> _AnswerHead:
        """What stands in front of the answer."""
        return _AnswerHead(*_NUMBER.unpack(stream.read(_NUMBER.size)))

    def decode(self, stream: io.BytesIO) -> Any:
        """Read what follows the correlation id."""
        answer = self.read(stream.getvalue(), stream.tell())
        if self.hear is not None:
            self.hear(answer)
        return answer


def fetch(
    wishes: Iterable[tuple[Any, int]],
    *,
    wait_ms: int,
    most_bytes: int,
    most_of_each: int,
    hear: Callable[[list[FetchedPart]], None] | None = None,
) -> Exchange:
    """Ask for partitions from an offset each; the broker waits up to `wait_ms` for the first record.

    `hear` is called with the answer before those who wait for the exchange are woken, and must not raise.
    """
    topics: dict[str, list[bytes]] = {}
    for (topic, partition), offset in wishes:
        topics.setdefault(topic, []).append(_WISH.pack(partition, offset, most_of_each))
    parts = [_FETCH_HEAD.pack(-1, wait_ms, 1, most_bytes, 0, len(topics))]
    for topic, found in topics.items():
        parts += (_text(topic), _NUMBER.pack(len(found)), *found)
    return Exchange(1, _FETCH_VERSION, b"".join(parts), read_fetched, hear)


def produce(batches: Mapping[Any, bytes], *, timeout_ms: int) -> Exchange:
    """Append one batch to each of some partitions, acknowledged by all replicas in sync."""
    topics: dict[str, list[bytes]] = {}
    for (topic, partition), batch in batches.items():
        topics.setdefault(topic, []).extend((_PRODUCED.pack(partition, len(batch)), batch))
    no_transaction, all_in_sync = -1, -1
    parts = [_PRODUCE_HEAD.pack(no_transaction, all_in_sync, timeout_ms, len(topics))]
    for topic, found in topics.items():
        parts += (_text(topic), _NUMBER.pack(len(found) // 2), *found)
    return Exchange(0, _PRODUCE_VERSION, b"".join(parts), ProduceAnswer.read)


def _text(text: str) -> bytes:
    raw = text.encode()
    return _SHORT.pack(len(raw)) + raw


def _topic_at(data: bytes, at: int) -> tuple[str, int, int]:
    """A topic's name, the number of its partitions that follow, and where they begin."""
    (size,) = _SHORT.unpack_from(data, at)
    end = at + _SHORT.size + size
    (count,) = _NUMBER.unpack_from(data, end)
    return data[at + _SHORT.size : end].decode(), count, end + _NUMBER.size
