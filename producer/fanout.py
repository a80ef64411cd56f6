"""The flow of one `map`: inputs in, responses out, never more than a bounded number between the two.

What counts against the bound is everything that was taken from the inputs and not yet handed to the caller, so neither
a slow caller nor a slow fleet lets memory grow. One task feeds; there is none per request. In order, the caller waits
for the oldest; otherwise each response queues itself when it arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from contracts.errors import Overloaded, RequestError
from contracts.messages import ErrorDetail, Response, status_of

_T = TypeVar("_T")
Sent = asyncio.Future[Response]

_BREATH = 64  # inputs sent in one go before other tasks, the sender above all, get their turn
_CROWDED_SECONDS = 0.005  # others fill the client's window: look again after about one round trip


class FanOut:
    """Requests under way for one caller."""

    def __init__(self, *, limit: int, ordered: bool) -> None:
        self._limit = limit
        self._ordered = ordered
        self._held = 0
        self._queue: deque[Sent] = deque()
        self._is_fed = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._freed = asyncio.Event()

    async def feed(
        self, inputs: Iterable[_T] | AsyncIterable[_T], send: Callable[[_T], Awaitable[Sent]], model: str, version: int
    ) -> None:
        """Send every input as room allows. An input that is refused becomes a response that says so, of the model and
        version that were asked; 0 is a version that the route decides.
        """
        try:
            taken = 0
            async for item in _each(inputs):
                while self._held >= self._limit:
                    self._freed.clear()
                    await self._freed.wait()
                self._hold(await _send(item, send, model, version))
                taken += 1
                if taken % _BREATH == 0:
                    await asyncio.sleep(0)
        except Exception as exc:  # noqa: BLE001 - raised to the caller by `next`, once what was sent is answered
            self._error = exc
        self._is_fed = True
        self._filled.set()

    async def next(self) -> Response | None:
        """The next response; None after the last one. Raises what ended the inputs, ClientClosed, TransportError."""
        while not self._queue:
            if self._is_fed and not self._held:
                if self._error is not None:
                    raise self._error
                return None
            self._filled.clear()
            await self._filled.wait()
        response = await self._queue.popleft()
        self._held -= 1
        self._freed.set()
        return response

    def _hold(self, sent: Sent) -> None:
        self._held += 1
        if self._ordered:
            self._arrived(sent)
        else:
            sent.add_done_callback(self._arrived)

    def _arrived(self, sent: Sent) -> None:
        self._queue.append(sent)
        self._filled.set()


async def _send(item: _T, send: Callable[[_T], Awaitable[Sent]], model: str, version: int) -> Sent:
    while True:
        try:
            return await send(item)
        except Overloaded:
            await asyncio.sleep(_CROWDED_SECONDS)
        except RequestError as exc:
            refused: Sent = asyncio.get_running_loop().create_future()
            detail = ErrorDetail(str(exc), retryable=exc.retryable)
            refused.set_result(Response("", status_of(exc), model, version, error=detail))
            return refused


async def _each(inputs: Iterable[_T] | AsyncIterable[_T]) -> AsyncIterator[_T]:
    if isinstance(inputs, AsyncIterable):
        async for item in inputs:
            yield item
    else:
        for item in inputs:
            yield item
