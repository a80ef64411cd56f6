"""What the parts of the client that share runs are handed: an encoded request, and the means to send it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from contracts.messages import Parameters, Response
from contracts.names import Priority
from producer.admission import check_request_id
from producer.idempotency import canonical, check_key
from producer.lasting import Extras, prioritized
from producer.pending import Waiter
from producer.plan import Inputs, ModelPlan


class Call(NamedTuple):
    """What a caller wrote."""

    model: str
    inputs: Inputs
    version: int | None
    parameters: Parameters | None
    ttl_seconds: float | None
    request_id: str | None
    key: str | bytes | None
    priority: Priority
    idempotency_key: str | None


class Ask(NamedTuple):
    """One caller's request, encoded. `named` is the model as the caller wrote it, with a version only if it named one:
    a route may move between a request and its repetition, and they are the same all the same.
    """

    plan: ModelPlan
    body: bytes
    named: str
    started: float
    deadline: float
    ttl_seconds: float | None
    request_id: str | None
    partition_key: str | bytes | None
    extras: Extras
    idempotency_key: str | None


class Sender(NamedTuple):
    """The part of the client that sends."""

    launch: Callable[
        [ModelPlan, bytes, float | None, str | None, str | bytes | None, Extras],
        tuple[Waiter, asyncio.Future[Response]],
    ]
    abandon: Callable[[Waiter], None]
    withdraw: Callable[[Waiter], Awaitable[None]]
    next_id: Callable[[], str]


Encode = Callable[[ModelPlan, Inputs, Parameters | None], Awaitable[bytes]]


async def make_ask(call: Call, plan: ModelPlan, encode: Encode, *, now: float, patience: float) -> Ask:
    """Check and encode a call that is to end in `patience` seconds. Raises InvalidRequest."""
    return Ask(
        plan=plan,
        body=await encode(plan, *canonical(call.inputs, call.parameters)),
        named=plan.key.model if call.version is None and "@" not in call.model else str(plan.key),
        started=now,
        deadline=now + patience,
        ttl_seconds=call.ttl_seconds,
        request_id=None if call.request_id is None else check_request_id(call.request_id),
        partition_key=call.key,
        extras=prioritized(call.priority),
        idempotency_key=None if call.idempotency_key is None else check_key(call.idempotency_key),
    )
