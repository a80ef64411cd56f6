"""Results that do not fit into a record: their tensors are stored, and the response refers to them.

The encoded response is the copy that is written from, so nothing is copied twice; its bytes count as unacknowledged
ones until they are stored, which is what stops launching when a store is slow. A store that fails several times ends
the request as INTERNAL, which may be sent again: a result is never dropped in silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from contracts.adapters.blobs import Blobs
from contracts.codec import decode_response_body, encode_response
from contracts.errors import ConfigurationError, TransportError
from contracts.messages import ResponseBody
from workers.draining.publisher import Publisher
from workers.ingest import metrics

log = logging.getLogger(__name__)

_PAUSES_SECONDS = (0.2, 1.0, 3.0)  # between attempts to store


class LargeResults:
    """Stores the results of one worker that are too large."""

    def __init__(self, blobs: Blobs, publisher: Publisher) -> None:
        self._blobs = blobs
        self._publisher = publisher
        self._tasks: set[asyncio.Task[None]] = set()

    def put(
        self, body: bytes, tenant: str, limit: int, then: Callable[[bytes], None], failed: Callable[[str], None]
    ) -> None:
        """Store what does not fit; `then` gets a body of at most `limit` bytes, or `failed` the reason why not."""
        self._publisher.hold(len(body))
        work = self._store(body, tenant, limit, then, failed)
        task = asyncio.get_running_loop().create_task(work, name="worker.large-result")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, len(body)))

    async def stop(self) -> None:
        """Give up what is not stored; its records stay uncommitted, and the next owner does them again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._publisher.release(size)

    async def _store(
        self, body: bytes, tenant: str, limit: int, then: Callable[[bytes], None], failed: Callable[[str], None]
    ) -> None:
        try:
            small = await self._small(decode_response_body(body), tenant, limit)
        except (TransportError, ConfigurationError) as exc:
            log.warning("a result of %d bytes could not be stored: %s", len(body), exc)
            failed(f"the result is {len(body):,} bytes and could not be stored: {exc}")
        except Exception:  # let through, the request would have no outcome for ever
            log.exception("a result could not be stored")
            failed("the result could not be stored")
        else:
            metrics.PAYLOADS.labels("written").inc(len(body) - len(small))
            if len(small) <= limit:
                then(small)
            else:
                failed(f"the result is {len(small):,} bytes beside its tensors, above the limit of {limit:,}")

    async def _small(self, body: ResponseBody, tenant: str, limit: int) -> bytes:
        for pause in _PAUSES_SECONDS:
            try:
                return await self._attempt(body, tenant, limit)
            except TransportError as exc:
                log.info("storing a result again in %g s: %s", pause, exc)
                await asyncio.sleep(pause)
        return await self._attempt(body, tenant, limit)

    async def _attempt(self, body: ResponseBody, tenant: str, limit: int) -> bytes:
        outputs = await self._blobs.store(body.outputs, each=limit, total=limit, tenant=tenant)
        return encode_response(msgspec.structs.replace(body, outputs=outputs))
