"""A request that was submitted: its result may be awaited any number of times, by any number of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from contracts.messages import Response


class Named(Protocol):
    """What has a request's id."""

    @property
    def id(self) -> str: ...


class Handle:
    """One submitted request. A task that is cancelled while it awaits `result()` does not end the request."""

    __slots__ = ("_future", "_request", "_withdraw")

    def __init__(
        self, request: Named, future: asyncio.Future[Response], withdraw: Callable[[], Awaitable[None]]
    ) -> None:
        """`withdraw` tells the workers that the request is not wanted."""
        self._request = request
        self._future = future
        self._withdraw = withdraw

    def __repr__(self) -> str:
        return f"<Handle {self.id} {'done' if self.done else 'in flight'}>"

    @property
    def id(self) -> str:
        """The request's id."""
        return self._request.id

    @property
    def done(self) -> bool:
        """Whether `result()` would return or raise at once."""
        return self._future.done()

    async def result(self, *, raise_on_error: bool = True) -> Response:
        """Await the response. Raises the RequestError of a status other than OK, ClientClosed, TransportError."""
        response = await asyncio.shield(self._future)
        return response.raise_for_status() if raise_on_error else response

    async def cancel(self) -> None:
        """Ask the workers not to run it. Best effort: `result()` ends in Cancelled, or in what was computed already.

        Raises TransportError when the wish could not be recorded.
        """
        if not self._future.done():
            await self._withdraw()
