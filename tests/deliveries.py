"""Deliveries made of nothing but what queue and policy look at."""

from __future__ import annotations

from typing import NamedTuple, cast

from contracts.adapters.kafka import Partition, Record
from workers.draining.claim import Claim
from workers.ingest.delivery import NORMAL, Delivery, Origin

CLAIM = Claim(Partition("t", 0), 0)


class Keyed(NamedTuple):
    """As much of a record as the order by key needs."""

    key: bytes | None


def delivery(
    rows: int = 1,
    *,
    key: str | None = None,
    taken: float = 0.0,
    deadline: float = 100.0,
    lane: int = NORMAL,
    record_key: bytes | None = None,
) -> Delivery:
    origin = Origin(CLAIM, cast("Record", Keyed(record_key)), "id", None)
    return Delivery(
        origin,
        inputs=(),
        parameters={},
        rows=rows,
        batch_key=key,
        taken=taken,
        deadline=deadline,
        queued_us=0,
        lane=lane,
    )
