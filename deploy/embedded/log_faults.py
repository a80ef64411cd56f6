"""Faults on command: what a broker does on a bad day, done by this one whenever a test wants it.

A fault names what it does, to which API and topic (none = all), and how often (none = until cleared):

| kind | effect |
|---|---|
| `refuse` | the request, or its part for that topic, is answered with the error `code` and not done |
| `not_leader` | the same with NOT_LEADER_OR_FOLLOWER |
| `disk_full` | the same with what a full disk leads to |
| `delay` | it is done at once, its answer comes `ms` later |
| `drop_answer` | it is done, then the connection ends without an answer |

The control door is a unix socket in the data folder, which only the folder's owner can reach, who could as well delete
the files. Each line is a JSON object, `{"set": {"kind": …}}`, `{"clear": true}` or `{}`, answered with what is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kio.schema.errors import ErrorCode

from deploy.embedded.log_wire import Api, LogError

Kind = Literal["refuse", "not_leader", "disk_full", "delay", "drop_answer"]
SOCKET_NAME = "faults.sock"


@dataclass(slots=True, eq=False)
class Fault:
    """One line of the table above."""

    kind: Kind
    api: str | None = None
    topic: str | None = None
    code: str = ErrorCode.unknown_server_error.name
    ms: int = 0
    times: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.kind}: a fault is one of {', '.join(get_args(Kind))}")
        self.code = "not_leader_or_follower" if self.kind == "not_leader" else ErrorCode[self.code.lower()].name
        self.api = self.api and Api[self.api.upper()].name


class Faults:
    """The faults that are set. A request may meet several, each is counted once for it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._met: list[Fault] = []

    def begin(self) -> None:
        """A request is looked at, for the first time or again."""
        self._met.clear()

    def check(self, api: Api, topic: str | None = None) -> None:
        """Raise what refuses a request, or its part for a topic; remember what will become of its answer."""
        for fault in self._faults:
            if fault.api not in {None, api.name} or fault.topic not in {None, topic}:
                continue
            if fault not in self._met:
                self._met.append(fault)
            if fault.kind == "disk_full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if fault.kind in {"refuse", "not_leader"}:
                raise LogError(ErrorCode[fault.code], f"a fault on command: {fault.kind}")

    def settle(self) -> float | None:
        """Count what the request met; the seconds until its answer may go, None when it is to have none."""
        if not self._met:
            return 0.0
        met, self._met = self._met, []
        for fault in met:
            if fault.times is not None:
                fault.times -= 1
        self._faults = [fault for fault in self._faults if fault.times is None or fault.times > 0]
        if any(fault.kind == "drop_answer" for fault in met):
            return None
        return sum(fault.ms for fault in met) / 1000

    def command(self, line: bytes) -> dict[str, Any]:
        """Do what one line of the control door wants."""
        try:
            wish = json.loads(line)
            if "set" in wish:
                self._faults.append(Fault(**wish["set"]))
            elif "clear" in wish:
                self._faults.clear()
        except (ValueError, TypeError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"faults": [asdict(fault) for fault in self._faults]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk to one client of the control door."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps(self.command(line)).encode() + b"\n")
        writer.close()


@contextlib.contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """A name for the control door that fits into the 108 bytes of a socket's address, however deep the folder lies."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        short = Path(f"/proc/self/fd/{directory}")
        yield str((short if short.exists() else folder) / SOCKET_NAME)
    finally:
        os.close(directory)
