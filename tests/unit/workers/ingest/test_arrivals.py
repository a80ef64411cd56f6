"""Requests whose tensors lie in a store, while the lease is in doubt: what is wrong with them is said after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from contracts.adapters.blobs import Blobs, ByteBudget
from contracts.adapters.kafka import Partition, Record
from contracts.errors import InvalidRequest, PayloadLost, TransportError
from contracts.messages import Status
from contracts.tensors import Ref, Tensor
from tests.helpers import FakeClock, wait_until
from workers.draining.claim import Claim
from workers.ingest import arrivals as module
from workers.ingest.arrivals import Arrivals, Store
from workers.ingest.delivery import Delivery, Origin

SIZE = 16


class Desk:
    """The store, the responder, the suspects and the batcher of one worker, as far as arrivals need them."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.trusted = False
        self.clock, self.budget = FakeClock(), ByteBudget(SIZE)
        self.claim = Claim(Partition("t", 0), 0)
        self.outcomes: list[object] = []
        self.queued: list[Delivery] = []
        self.reads = self.asked = 0
        here = cast("Any", self)
        self.arrivals = Arrivals(
            here,
            store=Store(cast("Blobs", self), self.budget, 1 << 20),
            validator=here,
            responder=here,
            suspects=here,
            clock=self.clock,
            is_trusted=self._is_trusted,
            keeps_order=False,
        )

    def take(self) -> None:
        """A request whose tensor lies in the store."""
        self.claim.open += 1
        record = Record("t", 0, self.claim.tracker.expected, 0, 1, None, b"", ())
        self.claim.tracker.receive(record.offset)
        remote = Tensor("x", "UINT8", (1, SIZE), ref=Ref("0" * 64, SIZE))
        self.arrivals.put(
            Delivery(
                Origin(self.claim, record, "id", None),
                inputs=(remote,),
                parameters={},
                rows=1,
                batch_key=None,
                taken=self.clock.monotonic(),
                deadline=self.clock.monotonic() + 30,
                queued_us=0,
                is_remote=True,
            )
        )

    def _is_trusted(self) -> bool:
        self.asked += 1
        return self.trusted

    async def restore(self, tensors: Sequence[Tensor], *, tenant: str) -> list[Tensor]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return [Tensor(t.name, t.datatype, t.shape, memoryview(bytes(SIZE))) for t in tensors]

    def check_content(self, _: object) -> None: ...

    def fail(self, delivery: Delivery, status: Status, _: str, *, retryable: bool = False) -> None:
        self.outcomes.append(status)
        delivery.origin.claim.answered(delivery.origin.record.offset)

    def retry(self, delivery: Delivery, reason: str, _: str) -> None:
        self.outcomes.append(reason)
        delivery.origin.claim.answered(delivery.origin.record.offset)

    def put(self, delivery: Delivery) -> None:
        self.queued.append(delivery)

    def drop(self, *_: object, **__: object) -> None: ...

    def settled(self, _: Delivery) -> None: ...

    def dropped(self, _: Delivery) -> None: ...

    def pump(self) -> None: ...


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DOUBT_SECONDS", 0.001, raising=False)


@pytest.fixture
async def desks() -> AsyncIterator[list[Desk]]:
    desks: list[Desk] = []
    yield desks
    for desk in desks:
        await desk.arrivals.stop()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PayloadLost("the object is gone"), Status.INVALID),
        (InvalidRequest("the object is another one"), Status.INVALID),
        (TransportError("the store is away"), "payload"),
        (RuntimeError("nobody has thought of this"), Status.INTERNAL),
    ],
    ids=["gone", "another one", "out of reach", "a surprise"],
)
async def test_a_payload_that_cannot_be_had_is_answered_once_there_is_trust_again(
    desks: list[Desk], error: Exception, outcome: object
) -> None:
    desks.append(desk := Desk(error))
    desk.take()
    await wait_until(lambda: desk.asked > 2, "it has not waited")
    assert (desk.outcomes, desk.claim.open, desk.claim.tracker.commit_point) == ([], 1, 0)
    assert desk.budget.taken == 0, "it waits for trust, and others for the budget"
    desk.trusted = True
    await wait_until(lambda: desk.outcomes)
    assert (desk.outcomes, desk.claim.open, desk.claim.tracker.commit_point) == ([outcome], 0, 1)
    assert desk.reads == 1


async def test_a_request_that_expired_in_doubt_says_so_when_there_is_trust_again(desks: list[Desk]) -> None:
    desks.append(desk := Desk(None))
    await desk.budget.take(SIZE)
    desk.take()
    await asyncio.sleep(0)
    desk.clock.advance(31)
    desk.budget.give(SIZE)
    await wait_until(lambda: desk.asked > 2, "it has not waited")
    desk.trusted = True
    await wait_until(lambda: desk.outcomes == [Status.DEADLINE_EXCEEDED])
    assert desk.claim.tracker.commit_point == 1


async def test_what_waits_for_trust_is_left_to_the_next_owner_of_its_partition(desks: list[Desk]) -> None:
    desks.append(desk := Desk(PayloadLost("the object is gone")))
    desk.take()
    await wait_until(lambda: desk.asked > 2, "it has not waited")
    desk.arrivals.drop(lambda _: True)
    await wait_until(lambda: desk.claim.open == 0)
    desk.trusted = True
    await asyncio.sleep(0.01)
    assert (desk.outcomes, desk.claim.tracker.commit_point) == ([], 0)


async def test_a_payload_that_came_is_queued_whatever_is_known_of_the_lease(desks: list[Desk]) -> None:
    desks.append(desk := Desk(None))
    desk.take()
    await wait_until(lambda: desk.queued)
    (delivery,) = desk.queued
    assert (delivery.is_remote, bytes(delivery.inputs[0].data)) == (False, bytes(SIZE))
    assert desk.outcomes == []
