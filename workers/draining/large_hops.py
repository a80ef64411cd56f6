"""What goes from step to step and does not fit into a record: it is stored, and the record refers to it.

Only what the next reader looks up by itself may become a reference: the inputs of a model, which its worker reads
before the request is queued, and the outputs of a job, which the client reads. Values that are carried along stay in
the record, because conditions, reducers and maps see them on the way.

Tensors of an ended step are views of a slot that is used again, so they are copied before anything is awaited; copies
count as unacknowledged bytes until they are stored, which stops launching when the store is slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import msgspec

from contracts.adapters.blobs import Blobs
from contracts.errors import ConfigurationError, TransportError
from contracts.names import DEFAULT_TENANT
from contracts.payloads import ENVELOPE_BYTES
from contracts.plans import Answer, Ask, Emission
from contracts.tensors import Tensor
from workers.draining import metrics
from workers.draining.publisher import Publisher

log = logging.getLogger(__name__)

_PAUSES_SECONDS = (0.2, 1.0, 3.0)  # between attempts to store

Then = Callable[[Emission], None]
Failed = Callable[[Emission, str], None]


class LargeHops:
    """Stores what is too large in the emissions of one worker."""

    def __init__(self, blobs: Blobs, publisher: Publisher, *, record_bytes: int, tensor_bytes: int) -> None:
        """A record may have `record_bytes`; tensors above `tensor_bytes` are stored in any case."""
        self._blobs = blobs
        self._publisher = publisher
        self._record_bytes = record_bytes
        self._tensor_bytes = tensor_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    def concerns(self, emission: Emission) -> bool:
        """Whether something of it has to be stored."""
        if not isinstance(emission, (Ask, Answer)):
            return False
        sizes = [len(tensor.data) for tensor in _movable(emission)]
        largest, whole = max(sizes, default=0), sum(sizes) + self._beside(emission)
        return largest > self._tensor_bytes or (largest > 0 and whole > self._record_bytes)

    def put(self, emission: Emission, tenant: str, then: Then, failed: Failed) -> None:
        """Store what is too large; `then` gets the same emission with references, or `failed` the reason why not."""
        copied = _copied(emission)
        size = sum(len(tensor.data) for tensor in _movable(copied))
        self._publisher.hold(size)
        work = self._store(copied, tenant or DEFAULT_TENANT, then, failed)
        task = asyncio.get_running_loop().create_task(work, name="worker.large-hop")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, size))

    async def stop(self) -> None:
        """Give up what is not stored; the next owner of the records behind it does them again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._publisher.release(size)

    def _beside(self, emission: Ask | Answer) -> int:
        carried = emission.carried.values() if isinstance(emission, Ask) else ()
        return ENVELOPE_BYTES + sum(len(tensor.data) for tensor in carried)

    async def _store(self, emission: Emission, tenant: str, then: Then, failed: Failed) -> None:
        try:
            small = await self._small(emission, tenant)
        except (TransportError, ConfigurationError) as exc:
            log.warning("a step's tensors could not be stored: %s", exc)
            failed(emission, f"its tensors are too large for a record and could not be stored: {exc}")
        except Exception:  # let through, the step would have no outcome for ever
            log.exception("a step's tensors could not be stored")
            failed(emission, "its tensors are too large for a record and could not be stored")
        else:
            stored = sum(tensor.ref.size for tensor in _movable(small) if tensor.ref is not None)
            metrics.HOP_PAYLOADS.inc(stored)
            then(small)

    async def _small(self, emission: Emission, tenant: str) -> Emission:
        for pause in _PAUSES_SECONDS:
            try:
                return await self._attempt(emission, tenant)
            except TransportError as exc:
                log.info("storing a step's tensors again in %g s: %s", pause, exc)
                await asyncio.sleep(pause)
        return await self._attempt(emission, tenant)

    async def _attempt(self, emission: Emission, tenant: str) -> Emission:
        assert isinstance(emission, (Ask, Answer))  # noqa: S101 - nothing else is put
        room = max(0, self._record_bytes - self._beside(emission))
        tensors = _movable(emission)
        here = tuple(tensor for tensor in tensors if tensor.ref is None)
        small = iter(await self._blobs.store(here, each=self._tensor_bytes, total=room, tenant=tenant))
        return _with(emission, tuple(next(small) if tensor.ref is None else tensor for tensor in tensors))


def _movable(emission: Emission) -> tuple[Tensor, ...]:
    if isinstance(emission, Ask):
        return emission.inputs
    return emission.outputs if isinstance(emission, Answer) else ()


def _with(emission: Ask | Answer, tensors: tuple[Tensor, ...]) -> Ask | Answer:
    if isinstance(emission, Ask):
        return msgspec.structs.replace(emission, inputs=tensors)
    return msgspec.structs.replace(emission, outputs=tensors)


def _copied(emission: Emission) -> Emission:
    if isinstance(emission, Ask):
        carried = dict(zip(emission.carried, _copies(emission.carried.values()), strict=True))
        return msgspec.structs.replace(emission, inputs=_copies(emission.inputs), carried=carried)
    if isinstance(emission, Answer):
        return msgspec.structs.replace(emission, outputs=_copies(emission.outputs))
    return emission


def _copies(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(msgspec.structs.replace(tensor, data=memoryview(bytes(tensor.data))) for tensor in tensors)
