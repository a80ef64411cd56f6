"""The parts of one stream, put into one order. Pure.

A request may run more than once: after a failure its execution begins anew, and parts of the old and the new one may
both arrive. Within a run the log keeps their order, so each run is followed by itself: a part that its run has sent
before is dropped, one that skips another is a loss. Of each index the first part to arrive is handed out, from
whichever run; the others must equal it. So a run that repeats the earlier one is not noticed, and one that differs
breaks the stream, since what was handed out cannot be taken back.

What is not read yet waits here, up to a number of parts and of bytes: the inbox is shared by all requests of a client
and cannot stand still for one that is not read.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

from contracts.errors import HeadraceError, Overloaded, StreamBroken
from contracts.messages import Response, Status

MAX_PARTS = 1024
MAX_BYTES = 16 * 1024 * 1024
_DIGEST_BYTES = 16


class Parts:
    """What has arrived of one stream; `arrived` is called when there is something new to read."""

    __slots__ = ("_arrived", "_bytes", "_digests", "_limit", "_runs", "_unread")

    def __init__(self, arrived: Callable[[], None], limit: int = MAX_PARTS) -> None:
        self._arrived = arrived
        self._limit = limit
        self._unread: deque[Response] = deque()
        self._bytes = 0
        self._digests: list[bytes] = []
        self._runs: dict[str, int] = {}

    def put(self, part: Response) -> HeadraceError | None:
        """Take a part; an error when the stream cannot go on."""
        known = self._runs.get(part.run, 0)
        if part.index < known:
            return None
        if part.index > known:
            return StreamBroken(f"request {part.id}: part {known} of its stream was lost; ask again")
        self._runs[part.run] = known + 1
        digest = _digest(part)
        if known < len(self._digests):
            return None if self._digests[known] == digest else self._differs(part)
        size = sum(len(tensor.data) for tensor in part.outputs)
        if len(self._unread) >= self._limit or self._bytes + size > MAX_BYTES:
            text = f"request {part.id}: {len(self._unread)} parts of its stream were not read in time"
            return Overloaded(text)
        self._digests.append(digest)
        self._unread.append(part)
        self._bytes += size
        self._arrived()
        return None

    def finish(self, response: Response) -> HeadraceError | None:
        """Hear the final response; an error when it does not belong to what was handed out."""
        if response.status is not Status.OK:
            return None
        known = self._runs.get(response.run, 0)
        if known != response.index:
            return StreamBroken(f"request {response.id}: part {known} of its stream was lost; ask again")
        return None if known == len(self._digests) else self._differs(response)

    def take(self) -> Response | None:
        """The next part, None when none is there yet."""
        if not self._unread:
            return None
        part = self._unread.popleft()
        self._bytes -= sum(len(tensor.data) for tensor in part.outputs)
        return part

    def _differs(self, part: Response) -> HeadraceError:
        text = (
            f"request {part.id} ran again after a failure and came out differently from part {part.index} on, when "
            f"{len(self._digests)} parts were there already; ask again"
        )
        return StreamBroken(text)


def _digest(part: Response) -> bytes:
    made = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for tensor in part.outputs:
        made.update(f"{tensor.name}\0{tensor.datatype}\0{tensor.shape}\0".encode())
        made.update(tensor.data)
    return made.digest()
