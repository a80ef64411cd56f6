"""What goes from step to step and does not fit into a record: it is stored, and the record refers to it.

Inputs of a model, values that are carried along or sent to a join, and the outputs of a job may all become references;
whoever looks into them reads them first (`contracts.references`, `lookups`).

Tensors of an ended step are views of a slot that is used again, so they are copied before anything is awaited; copies
count as unacknowledged bytes until they are stored, which stops launching when the store is slow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from contracts.adapters.blobs import Blobs
from contracts.errors import ConfigurationError, TransportError
from contracts.names import DEFAULT_TENANT
from contracts.payloads import ENVELOPE_BYTES
from contracts.plans import Answer, Ask, Emission, Plan
from contracts.references import movable, moved
from contracts.tensors import Tensor
from workers.draining import metrics
from workers.draining.errands import Errands, patiently
from workers.draining.publisher import Publisher

log = logging.getLogger(__name__)

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
        self._harmless_bytes = min(tensor_bytes, record_bytes - ENVELOPE_BYTES)  # whatever they are made up of
        self._errands = Errands()
        self.stop = self._errands.stop

    def concerns(self, plan: Plan, emission: Emission) -> bool:
        """Whether something of it has to be stored."""
        if sum([len(tensor.data) for tensor in _tensors(emission)]) <= self._harmless_bytes:
            return False
        sizes = [len(tensor.data) for tensor in movable(plan, emission)]
        largest = max(sizes, default=0)
        return largest > self._each(emission) or (largest > 0 and sum(sizes) + ENVELOPE_BYTES > self._record_bytes)

    def _each(self, emission: Emission) -> int:
        """What one tensor may have. A response has references only where it does not fit a record without."""
        return self._record_bytes if isinstance(emission, Answer) else self._tensor_bytes

    def put(self, plan: Plan, emission: Emission, tenant: str, then: Then, failed: Failed) -> None:
        """Store what is too large; `then` gets the same emission with references, or `failed` the reason why not."""
        tensors = movable(plan, emission)
        copied = moved(emission, _copies(tensors))
        size = sum({id(tensor.data): len(tensor.data) for tensor in movable(plan, copied)}.values())
        self._publisher.hold(size)
        work = self._store(plan, copied, tenant or DEFAULT_TENANT, then, failed)
        self._errands.run(work, "worker.large-hop", lambda: self._publisher.release(size))

    async def _store(self, plan: Plan, emission: Emission, tenant: str, then: Then, failed: Failed) -> None:
        try:
            small = await patiently(partial(self._attempt, plan, emission, tenant), "storing a step's tensors")
        except (TransportError, ConfigurationError) as exc:
            log.warning("a step's tensors could not be stored: %s", exc)
            failed(emission, f"its tensors are too large for a record and could not be stored: {exc}")
        except Exception:  # let through, the step would have no outcome for ever
            log.exception("a step's tensors could not be stored")
            failed(emission, "its tensors are too large for a record and could not be stored")
        else:
            stored = sum(tensor.ref.size for tensor in movable(plan, small) if tensor.ref is not None)
            metrics.HOP_PAYLOADS.inc(stored)
            then(small)

    async def _attempt(self, plan: Plan, emission: Emission, tenant: str) -> Emission:
        tensors = movable(plan, emission)
        one_each = list({id(tensor.data): tensor for tensor in tensors if tensor.ref is None}.values())
        twice = sum(len(tensor.data) for tensor in tensors) - sum(len(tensor.data) for tensor in one_each)
        total = max(0, self._record_bytes - twice)
        refs = {
            id(tensor.data): small.ref
            for tensor, small in zip(
                one_each,
                await self._blobs.store(one_each, each=self._each(emission), total=total, tenant=tenant),
                strict=True,
            )
        }
        return moved(
            emission,
            {
                id(tensor): Tensor(tensor.name, tensor.datatype, tensor.shape, ref=ref)
                for tensor in tensors
                if (ref := refs.get(id(tensor.data))) is not None
            },
        )


def _tensors(emission: Emission) -> Iterable[Tensor]:
    """All that it has, those included that must stay in it."""
    if isinstance(emission, Ask):
        return (*emission.inputs, *emission.carried.values())
    return emission.outputs if isinstance(emission, Answer) else emission.env.values()


def _copies(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Copies of tensors by the `id` of each; one that goes both to a model and past it is copied once."""
    data: dict[tuple[int, int], memoryview] = {}
    copies = {}
    for tensor in tensors:
        if tensor.ref is None and tensor.data:
            place = np.frombuffer(tensor.data, np.uint8).ctypes.data, len(tensor.data)
            if place not in data:
                data[place] = memoryview(bytes(tensor.data))
            copies[id(tensor)] = Tensor(tensor.name, tensor.datatype, tensor.shape, data[place])
    return copies
