"""From a record to a delivery, or to the error that answers it.

Nothing that a record contains may stop the worker: headers, body, shapes and names are all hostile until checked here.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from msgspec import Struct

from contracts.adapters.kafka import Record
from contracts.clock import Clock
from contracts.codec import decode_address, decode_headers, decode_request
from contracts.errors import DeadlineExceeded, InvalidRequest, RequestError
from contracts.messages import Hop, RequestBody, RequestHeaders, SequenceStep
from contracts.names import ModelVersion
from workers.draining.broker_time import BrokerTime
from workers.draining.claim import Claim
from workers.ingest.delivery import LANES, Delivery, Leg, Origin
from workers.ingest.responder import Responder
from workers.ingest.validate import Checked


class Checking(Protocol):
    """Says whether a request fits."""

    def check_step(self, step: SequenceStep | None) -> None:
        """Whether it may be, or must be, a step of a sequence; raises InvalidRequest."""

    def check(self, body: RequestBody) -> Checked:
        """What the batcher needs; raises InvalidRequest."""
        ...


class Moment(Struct, frozen=True, gc=False):
    """When records are taken, by this machine's monotonic clock and by the broker's."""

    now: float
    broker_ms: int

    def waited_ms(self, record: Record) -> int:
        """How long a record has been in the log; a stamp from the future, as a producer's clock may give, says 0."""
        return max(0, self.broker_ms - record.timestamp)


class Intake:
    """Takes the records of one model version."""

    def __init__(
        self, key: ModelVersion, validator: Checking, responder: Responder, clock: Clock, broker_time: BrokerTime
    ) -> None:
        self._key = key
        self._validator = validator
        self._responder = responder
        self._clock = clock
        self._broker_time = broker_time

    def moment(self) -> Moment:
        """Now, once for all records that were fetched together."""
        return Moment(self._clock.monotonic(), self._broker_time.now_ms())

    def take(self, claim: Claim, record: Record, moment: Moment) -> Delivery | None:
        """A delivery to be batched; None when the record was answered or put aside already."""
        claim.open += 1
        try:
            headers = decode_headers(record.headers)
        except InvalidRequest as error:
            request_id, reply = decode_address(record.headers)
            self._responder.refuse(Origin(claim, record, request_id, reply), error)
            return None
        hop = headers.hop
        leg = None if hop is None else self._leg(headers, hop, moment.now, moment.waited_ms(record))
        if leg is not None and hop is not None:
            self._responder.onward.expect(hop)
        origin = Origin(claim, record, headers.id, headers.reply, headers.attempt, leg)
        try:
            return self._accept(origin, headers, moment)
        except RequestError as error:
            self._responder.refuse(origin, error)
            return None

    def bury(self, claim: Claim, record: Record, message: str, attempts: int) -> None:
        """Put a record aside without looking into its body, which has ended workers before."""
        claim.open += 1
        request_id, reply = decode_address(record.headers)
        leg = None
        with contextlib.suppress(InvalidRequest):
            headers, moment = decode_headers(record.headers), self.moment()
            if headers.hop is not None:
                leg = self._leg(headers, headers.hop, moment.now, moment.waited_ms(record))
        self._responder.condemn(Origin(claim, record, request_id, reply, leg=leg), message, attempts)

    def _accept(self, origin: Origin, headers: RequestHeaders, moment: Moment) -> Delivery:
        if headers.model is not None or headers.version is not None:
            self._check_model(headers)
        self._validator.check_step(headers.sequence)
        now, waited_ms = moment.now, moment.waited_ms(origin.record)
        if waited_ms >= headers.ttl_ms:
            msg = f"the time to live of {headers.ttl_ms} ms ended {waited_ms - headers.ttl_ms} ms before it was taken"
            raise DeadlineExceeded(msg)
        body = decode_request(origin.record.value)
        if origin.leg is not None:
            origin.leg.carried, origin.leg.ran = body.carried, body.ran
        checked = self._validator.check(body)
        return Delivery(
            origin,
            inputs=checked.inputs,
            parameters=body.parameters,
            rows=checked.rows,
            batch_key=checked.batch_key,
            taken=now,
            deadline=now + (headers.ttl_ms - waited_ms) / 1000,
            queued_us=waited_ms * 1000,
            lane=LANES[headers.priority] if origin.claim.lane is None else origin.claim.lane,
            stream=headers.stream,
            sequence=headers.sequence,
            is_remote=checked.is_remote,
        )

    def _check_model(self, headers: RequestHeaders) -> None:
        """A pinned topic names the model version; headers may repeat it but not contradict it."""
        if headers.model is not None and headers.model != self._key.model:
            msg = f"the headers ask for model {headers.model}, the topic serves {self._key}"
            raise InvalidRequest(msg)
        if headers.version is not None and headers.version != self._key.version:
            msg = f"the headers ask for version {headers.version}, the topic serves {self._key}"
            raise InvalidRequest(msg)

    def _leg(self, headers: RequestHeaders, hop: Hop, now: float, waited_ms: int) -> Leg | None:
        left_ms = headers.ttl_ms if hop.left_ms is None else hop.left_ms
        return Leg(headers, now + (left_ms - waited_ms) / 1000)
