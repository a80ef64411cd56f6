"""Tensors that do not fit into a record: stored before the request is sent, fetched before its caller has the response.

Callers see none of it, but for the errors: TransportError when the store takes nothing, and a response with status
INTERNAL when a result lies in a store that this client cannot read, or does not lie there any more.
"""

from __future__ import annotations

import asyncio

import msgspec

from contracts.adapters.blobs import Blobs
from contracts.clock import Clock
from contracts.codec import MAX_INLINE_BYTES
from contracts.errors import ClientClosed, ConfigurationError, PayloadLost, TransportError
from contracts.messages import ErrorDetail, Parameters, Response, Status
from contracts.payloads import URL_VARIABLE
from contracts.settings import BlobSettings
from contracts.tensors import check_tensor
from producer.admission import TooLarge
from producer.pending import Pending
from producer.plan import Inputs, ModelPlan

_NO_STORE = f"the result lies in a store, and this client has none: set {URL_VARIABLE} to that of the workers"


class LargeTensors:
    """One client's side of the store."""

    def __init__(self, settings: BlobSettings, pending: Pending, clock: Clock) -> None:
        self._blobs = Blobs.from_settings(settings)
        self._each = settings.claim_check_bytes
        self.inline_bytes = MAX_INLINE_BYTES if self._blobs is None else self._each
        """Requests up to this need no look at their tensors."""
        self._pending = pending
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def encode(self, plan: ModelPlan, inputs: Inputs, parameters: Parameters | None) -> bytes:
        """The body of a request, however large it is. Raises InvalidRequest without a store, TransportError."""
        try:
            return plan.encode(inputs, parameters, self.inline_bytes)
        except TooLarge:
            if self._blobs is None:
                raise
        tensors = plan.tensors(inputs, parameters, limit=None)
        stored = await self._blobs.store(tensors, each=self._each, total=MAX_INLINE_BYTES)
        if self._is_closed:  # meanwhile: nobody would wait for the response
            raise ClientClosed("the client is closed")
        return plan.pack(stored, parameters)

    def take(self, response: Response, *, is_own: bool) -> None:
        """Hand a response to its waiter when its outputs are complete."""
        if response.id not in self._pending:
            self._pending.resolve(response, is_own=is_own, now=self._clock.monotonic())
            return
        task = asyncio.get_running_loop().create_task(
            self._fetch(response, is_own=is_own), name="headrace.client.large"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Fetch nothing more."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._blobs is not None:
            self._blobs.close()

    async def _fetch(self, response: Response, *, is_own: bool) -> None:
        complete = await self._complete(response)
        # A failure to read it is this client's own, whoever asked.
        is_own = is_own or complete.status is not Status.OK
        self._pending.resolve(complete, is_own=is_own, now=self._clock.monotonic())

    async def _complete(self, response: Response) -> Response:
        if self._blobs is None:
            return _failed(response, _NO_STORE, retryable=False)
        try:
            outputs = await self._blobs.restore(response.outputs)
        except (PayloadLost, TransportError, ConfigurationError) as exc:
            return _failed(response, f"the result cannot be read: {exc}", retryable=exc.retryable)
        fault = next(filter(None, map(check_tensor, outputs)), None)
        if fault is not None:
            return _failed(response, f"the result is broken: {fault}", retryable=False)
        return msgspec.structs.replace(response, outputs=outputs)


def _failed(response: Response, message: str, *, retryable: bool) -> Response:
    detail = ErrorDetail(message, retryable)
    return msgspec.structs.replace(response, status=Status.INTERNAL, outputs=(), error=detail)
