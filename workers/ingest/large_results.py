"""Results that do not fit into a record: their tensors are stored, and the response refers to them.

The encoded response is the copy that is written from, so nothing is copied twice; its bytes count as unacknowledged
ones until they are stored, which is what stops launching when a store is slow. A store that fails several times ends
the request as INTERNAL, which may be sent again: a result is never dropped in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import msgspec

from contracts.adapters.blobs import Blobs
from contracts.codec import decode_response_body, encode_response
from contracts.errors import ConfigurationError, TransportError
from contracts.messages import ResponseBody
from workers.draining.errands import Errands, patiently
from workers.draining.publisher import Publisher
from workers.ingest import metrics

log = logging.getLogger(__name__)


class LargeResults:
    """Stores the results of one worker that are too large."""

    def __init__(self, blobs: Blobs, publisher: Publisher) -> None:
        self._blobs = blobs
        self._publisher = publisher
        self._errands = Errands()
        self.stop = self._errands.stop

    def put(
        self, body: bytes, tenant: str, limit: int, then: Callable[[bytes], None], failed: Callable[[str], None]
    ) -> None:
        """Store what does not fit; `then` gets a body of at most `limit` bytes, or `failed` the reason why not."""
        self._publisher.hold(len(body))
        work = self._store(body, tenant, limit, then, failed)
        self._errands.run(work, "worker.large-result", lambda: self._publisher.release(len(body)))

    async def _store(
        self, body: bytes, tenant: str, limit: int, then: Callable[[bytes], None], failed: Callable[[str], None]
    ) -> None:
        try:
            decoded = decode_response_body(body)
            small = await patiently(partial(self._attempt, decoded, tenant, limit), "storing a result")
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

    async def _attempt(self, body: ResponseBody, tenant: str, limit: int) -> bytes:
        outputs = await self._blobs.store(body.outputs, each=limit, total=limit, tenant=tenant)
        return encode_response(msgspec.structs.replace(body, outputs=outputs))
