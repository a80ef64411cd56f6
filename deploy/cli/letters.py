"""Dead letters as the commands need them: read from their topic, selected, described; and moments in time as people
write them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from contracts.dead_letters import REASONS, DeadLetter, parse_dead_letter
from contracts.errors import ConfigurationError, InvalidRequest, TransportError

if TYPE_CHECKING:
    from contracts.adapters.kafka import Partition, Reader
    from contracts.settings import KafkaSettings

_age = re.compile(r"(\d+)([smhd])")
_unit_seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_POLL_MS = 200
_PATIENCE_POLLS = 50  # without a record, before the topic counts as unreadable


def parse_moment(text: str, now_ms: int) -> int:
    """Unix milliseconds of `2h` (ago; s, m, h, d) or of an ISO time, local unless it says otherwise."""
    age = _age.fullmatch(text)
    if age is not None:
        return now_ms - int(age[1]) * _unit_seconds[age[2]] * 1000
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        msg = f"{text!r} is no moment: write an age such as 30m, 2h or 7d, or a time such as 2026-01-31T14:00"
        raise ConfigurationError(msg) from None


def check_reason(reason: str) -> str:
    """A reason to select by, or none."""
    if reason and reason not in REASONS:
        msg = f"there is no reason {reason!r}; letters have one of {', '.join(REASONS)}"
        raise ConfigurationError(msg)
    return reason


@dataclass(frozen=True)
class Box:
    """The dead letters of one model; they lie in one partition."""

    reader: Reader
    partition: Partition
    start: int
    end: int

    async def letters(self, since_ms: int | None = None) -> AsyncIterator[DeadLetter]:
        """The letters that are there now, oldest first."""
        position = self.start
        if since_ms is not None:
            position = max(position, await self.reader.offset_at(self.partition, since_ms))
        self.reader.begin(self.partition, position)
        idle = 0
        while position < self.end:
            found = (await self.reader.poll(timeout_ms=_POLL_MS)).get(self.partition, [])
            idle = 0 if found else idle + 1
            if idle > _PATIENCE_POLLS:
                msg = f"{self.partition.topic} cannot be read beyond offset {position}"
                raise TransportError(msg)
            for record in found:
                position = record.offset + 1
                if record.offset < self.end:
                    yield parse_dead_letter(record.offset, record.timestamp, record.headers, record.value)


@asynccontextmanager
async def open_box(settings: KafkaSettings, model: str) -> AsyncIterator[Box]:
    """The box of a model. Raises ConfigurationError when it has none, TransportError."""
    from contracts import topics
    from contracts.adapters.kafka import Admin, Partition, Reader
    from contracts.names import check_model_name

    topic = topics.dead(settings.prefix, check_model_name(model))
    admin = Admin(settings)
    await admin.open()
    try:
        known = await admin.partition_counts()
    finally:
        await admin.close()
    if topic not in known:
        head = topics.dead(settings.prefix, "")
        models = sorted(name.removeprefix(head) for name in known if name.startswith(head))
        msg = f"{model} was never deployed here, so it has no dead letters; there are those of {', '.join(models)}"
        raise ConfigurationError(msg if models else f"{model} was never deployed here, and no other model either")
    reader = Reader(settings)
    await reader.open()
    try:
        partition = Partition(topic, 0)
        reader.assign([partition])
        start, end = (await reader.bounds([partition]))[partition]
        yield Box(reader, partition, start, end)
    finally:
        await reader.close()


def latest_by_id(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """One letter for each request, the newest; letters without an id stand for themselves."""
    found: dict[object, DeadLetter] = {}
    for letter in letters:
        found.pop(letter.request_id or letter.offset, None)
        found[letter.request_id or letter.offset] = letter
    return list(found.values())


def moment_text(unix_ms: int) -> str:
    """A time for people."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def letter_json(letter: DeadLetter, *, with_body: bool = False) -> dict[str, Any]:
    """A letter as plain data; its body base64, and decoded as far as it can be."""
    found: dict[str, Any] = {
        "offset": letter.offset,
        "id": letter.request_id,
        "reason": letter.reason,
        "message": letter.message,
        "time_ms": letter.time_ms,
        "model": letter.model,
        "digest": letter.digest,
        "source": letter.source,
        "worker": letter.worker,
        "token": letter.token,
        "host": letter.host,
        "attempts": letter.attempts,
        "redriven": letter.redriven,
        "bytes": len(letter.body),
        "is_cut": letter.is_cut,
    }
    if with_body:
        found["headers"] = [
            [name, None if value is None else value.decode(errors="replace")] for name, value in letter.headers
        ]
        found["body_base64"] = base64.b64encode(letter.body).decode()
        found["tensors"] = _tensors(letter)
    return found


def _tensors(letter: DeadLetter) -> list[dict[str, Any]] | None:
    from contracts.codec import decode_request

    try:
        body = decode_request(letter.body)
    except InvalidRequest:
        return None
    return [
        {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "bytes": tensor.size}
        for tensor in body.inputs
    ]


def letter_text(letter: DeadLetter) -> str:
    """A letter for people."""
    shown = letter_json(letter, with_body=True)
    lines = [
        f"{letter.reason}: {letter.message}",
        f"  request   {letter.request_id or '(no readable id)'}, put aside at {moment_text(letter.time_ms)}",
        f"  from      {letter.source}, asked of {letter.model or '?'} {letter.digest[:19]}".rstrip(),
        f"  by        {letter.worker} (token {letter.token}) on {letter.host}",
    ]
    if letter.attempts:
        lines.append(f"  attempts  {letter.attempts} launches ended with the engine")
    if letter.redriven:
        lines.append(f"  redriven  {letter.redriven} times before")
    lines.append(f"  headers   {', '.join(f'{name}={value}' for name, value in shown['headers'])}")
    if letter.is_cut:
        lines.append(f"  body      left out: it did not fit; see {letter.source} while that topic keeps it")
    else:
        lines.append(f"  body      {len(letter.body)} bytes")
        tensors = shown["tensors"]
        lines += (
            [f"            {t['name']} {t['datatype']} {t['shape']}" for t in tensors]
            if tensors is not None
            else ["            no request: it cannot be decoded"]
        )
    return "\n".join(lines)
