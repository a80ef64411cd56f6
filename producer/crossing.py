"""The flow of one `map` between a calling thread and the loop's thread.

Waking the other thread costs as much as several requests, so what crosses while the other side is not yet awake crosses
together: inputs are left in a queue with one wake-up on its way, and the responses that one pass of the loop brought
come back as one list. Inputs are taken in the calling thread, where a generator may block or hold a database cursor;
what it has produced is under way before it is asked for more.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from contracts.errors import ClientClosed
from contracts.messages import Response
from producer.loop_thread import LoopThread
from producer.plan import Inputs


class Crossing:
    """Inputs to the loop, responses back, at most `limit` between the two."""

    def __init__(self, thread: LoopThread, limit: int) -> None:
        self._thread = thread
        self._limit = limit
        self._inputs: deque[Inputs] = deque()
        self._is_fed = False
        self._is_waking = False
        self._filled = asyncio.Event()
        self._batch: list[Response] = []
        self._answers: queue.SimpleQueue[list[Response] | BaseException | None] = queue.SimpleQueue()

    # --- in the calling thread ----------------------------------------------------------------------------------------

    def run(self, source: Iterator[Inputs]) -> Iterator[Response]:
        """Feed the loop and yield what it answers; raises what it raised."""
        held = 0
        while True:
            if held < self._limit and not self._is_fed:
                held += self._feed(source)
                if self._answers.empty():
                    continue
            answer = self._answers.get()
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise answer
            for response in answer:
                held -= 1
                yield response

    def _feed(self, source: Iterator[Inputs]) -> int:
        """Leave one more input for the loop, or the end; returns how many there were."""
        taken = 0
        try:
            self._inputs.append(next(source))
            taken = 1
        except StopIteration:
            self._is_fed = True
        if not self._is_waking:  # cleared by the loop before it looks, so nothing is left lying
            self._is_waking = True
            self._thread.soon(self._wake)
        return taken

    # --- on the loop --------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._is_waking = False
        self._filled.set()

    async def inputs(self) -> AsyncIterator[Inputs]:
        """What the calling thread left."""
        while True:
            self._filled.clear()
            while self._inputs:
                yield self._inputs.popleft()
            if self._is_fed and not self._inputs:
                return
            await self._filled.wait()

    async def pump(self, answers: AsyncGenerator[Response, None]) -> None:
        """Send the responses back until there are no more."""
        end: BaseException | None = None
        loop = asyncio.get_running_loop()
        try:
            async with contextlib.aclosing(answers):
                async for response in answers:
                    if not self._batch:
                        loop.call_soon(self._flush)
                    self._batch.append(response)
        except asyncio.CancelledError:
            self._answers.put(ClientClosed("the client was closed while its responses were read"))
            raise
        except Exception as exc:  # noqa: BLE001 - raised in the calling thread
            end = exc
        self._flush()
        self._answers.put(end)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._answers.put(batch)
