"""Turns outcomes into terminal responses, and requests that have none into dead letters.

The order of delivery: a response is published, acknowledged, and only then is its record marked as answered. A dead
letter is acknowledged before its response is published, so that no request ends as POISON without being kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from contracts import topics
from contracts.clock import Clock
from contracts.codec import encode_response, encode_response_headers, encode_stream_headers
from contracts.dead_letters import Reason, Undertaker
from contracts.errors import RequestError
from contracts.messages import DEFAULT_TTL_MS, ErrorDetail, Receipt, ResponseBody, Status, status_of
from contracts.names import ModelVersion
from contracts.payloads import URL_VARIABLE
from contracts.retries import DELAYS_SECONDS, MAX_ATTEMPTS, attempt_of, next_delay, number, retry_headers
from contracts.tensors import Tensor
from workers.draining.graves import Graves
from workers.draining.publisher import Publisher
from workers.ingest import metrics
from workers.ingest.delivery import Delivery, Origin, Place, tenant_of
from workers.ingest.large_results import LargeResults

if TYPE_CHECKING:
    from workers.ingest.onward import Onward

MAX_RESPONSE_BYTES = 1024 * 1024 - 16 * 1024
"""Below the broker's limit of 1 MiB for a whole batch, with room for headers."""
PART_TOO_LARGE = f"a part of the result is above the limit of {MAX_RESPONSE_BYTES} bytes"
_MAX_REASON = 1024
_UNDELIVERED = "the partition that the response is for takes nothing"
_UNDELIVERED_DELAY = 1  # 30 s by default: a partition that takes nothing is not back at once
_counters = {status: metrics.RESPONSES.labels(status.value) for status in Status}


_nothing = (lambda _: None, None)


class Responder:
    """Answers requests of one model version on behalf of one worker."""

    def __init__(
        self,
        publisher: Publisher,
        key: ModelVersion,
        *,
        prefix: str,
        undertaker: Undertaker,
        clock: Clock,
        retry_delays: Sequence[float] = DELAYS_SECONDS,
    ) -> None:
        """`undertaker` is what this worker's dead letters say about it."""
        self._publisher = publisher
        self._key = key
        self._prefix = prefix
        self._worker = undertaker.worker
        self._graves = Graves(publisher, topics.dead(prefix, key.model), undertaker, clock)
        self._clock = clock
        self._retry_topic = topics.retry(prefix, key.model, key.version)
        self._retry_delays = retry_delays
        self._succeeded = 0
        self.device = ""
        """Where the engine says it runs; stands in receipts."""
        self.onward: Onward
        """Takes what ends a step of a pipeline's job."""
        self.large_results: LargeResults | None = None
        """Where results go that do not fit into a record; without it they end as INTERNAL."""

    @property
    def way_back_seconds(self) -> float:
        """How long an answer travels, about."""
        return self._publisher.delay_seconds

    @property
    def has_room(self) -> bool:
        """Whether further results may be produced."""
        return self._publisher.has_room

    def succeed(
        self, delivery: Delivery, outputs: tuple[Tensor, ...], receipt: Receipt, place: Place | None = None
    ) -> None:
        """Answer OK, at its place in a stream. The outputs may be views: they are encoded before this returns."""
        if delivery.origin.leg is not None:
            self._succeeded += 1
            self.onward.succeed(delivery.origin, outputs, receipt, place)
            return
        index = 0 if place is None else place.number
        body = encode_response(ResponseBody(self._key.model, self._key.version, outputs, receipt=receipt, index=index))
        if len(body) > MAX_RESPONSE_BYTES:
            self._succeed_by_reference(delivery, body, place)
        else:
            self._succeeded += 1
            self._reply(delivery.origin, Status.OK, body, place)

    def when_known(self, delivery: Delivery, then: Callable[[bool], None]) -> None:
        """Call back with whether parts of an answer can be sent: always, but for steps of which nobody gets any."""
        if delivery.origin.leg is None:
            then(True)
        else:
            self.onward.when_known(delivery.origin, then)

    def partial(self, delivery: Delivery, outputs: tuple[Tensor, ...], place: Place) -> bool:
        """Send a part of a stream; False when the request has ended instead."""
        origin, key = delivery.origin, self._key
        if origin.leg is not None and origin.leg.plan is not None:
            timing = Receipt(queued_us=delivery.queued_us, batched_us=delivery.batched_us)
            found = self.onward.part(origin, outputs, self._receipt(origin, timing))
            if found is None:
                return False
            key, outputs = origin.leg.plan.pipeline, found
        is_sent = self.send_part(origin, key, outputs, place)
        if not is_sent:
            self.fail(delivery, Status.INTERNAL, PART_TOO_LARGE)
        return is_sent

    def send_part(self, origin: Origin, key: ModelVersion, outputs: tuple[Tensor, ...], place: Place) -> bool:
        """Send a part of an answer of `key`; False when it is too large, and then nothing was sent."""
        index, reply = place.number, origin.reply
        body = encode_response(ResponseBody(key.model, key.version, outputs, index=index, final=False))
        if len(body) > MAX_RESPONSE_BYTES:
            return False
        if reply is not None and topics.is_replies(self._prefix, reply.topic):  # if not, the final part finds out
            headers = encode_stream_headers(origin.root, Status.PARTIAL, reply.token, index=index, run=place.run)
            # A partition that takes nothing loses parts: the final response says how many there were.
            self._publisher.publish(reply.topic, reply.partition, (body, headers), _nothing, _nothing, _nothing)
        return True

    def _succeed_by_reference(self, delivery: Delivery, body: bytes, place: Place | None) -> None:
        if self.large_results is None:
            text = f"the result is {len(body)} bytes, above the limit of {MAX_RESPONSE_BYTES}; ask for fewer rows"
            self.fail(
                delivery, Status.INTERNAL, f"{text}, or give these workers a store for large ones: {URL_VARIABLE}"
            )
            return
        origin = delivery.origin

        def stored(small: bytes) -> None:
            _counters[Status.OK].inc()
            self._reply(origin, Status.OK, small, place)

        def failed(why: str) -> None:
            self.fail(delivery, Status.INTERNAL, why, retryable=True)

        self.large_results.put(body, tenant_of(origin), MAX_RESPONSE_BYTES, stored, failed)

    def batch_answered(self) -> None:
        """Send the answers of a batch now, and bring the metric up to date: one increment costs as much as encoding a
        response.
        """
        self._publisher.flush()
        _counters[Status.OK].inc(self._succeeded)
        self._succeeded = 0

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        """Answer a delivery with an error, unless its partition is another worker's by now, who may still answer OK."""
        if delivery.origin.claim.is_over:
            delivery.origin.claim.dropped()
            return
        timing = Receipt(queued_us=delivery.queued_us, batched_us=delivery.batched_us)
        self._fail(delivery.origin, status, message, timing, retryable=retryable)

    def _fail(
        self, origin: Origin, status: Status, message: str, timing: Receipt, *, retryable: bool, attempts: int = 0
    ) -> None:
        _counters[status].inc()
        if origin.leg is None:
            self._reply(origin, status, self._error_body(origin, message, timing, retryable=retryable))
        else:
            receipt = self._receipt(origin, timing)
            self.onward.fail(origin, status, message, receipt, retryable=retryable, attempts=attempts)

    def retry(self, delivery: Delivery, reason: str, message: str) -> None:
        """Put a request off that failed for a reason that passes; answer INTERNAL when it has had its attempts or has
        no time for another one, or is a step of a sequence: later steps must not overtake it.
        """
        left = delivery.deadline - self._clock.monotonic()

        def give_up(_: object = None) -> None:
            self.fail(delivery, Status.INTERNAL, message, retryable=True)

        if delivery.sequence or not self._postpone(delivery.origin, reason, message, left, left, give_up):
            give_up()

    def put_off(self, origin: Origin, message: str, *, left: float, timeout: float | None) -> bool:
        """Try a step again later; False when its job has no time left for that. An attempt may take `timeout`."""
        if origin.claim.is_over:
            origin.claim.dropped()
            return True
        delay = self._retry_delays[min(origin.attempt, len(self._retry_delays)) - 1]
        ttl = left if timeout is None else min(left, delay + timeout)
        text = f"{message}; it could not be tried again"

        def give_up(_: object) -> None:
            hopeless = structs.replace(origin, attempt=MAX_ATTEMPTS)
            self._fail(hopeless, Status.INTERNAL, text, Receipt(), retryable=True)

        return self._postpone(origin, "step", message, ttl, left, give_up)

    def _postpone(
        self, origin: Origin, reason: str, message: str, ttl: float, left: float, give_up: Callable[[object], None]
    ) -> bool:
        """Copy a request into the retry topic; False when it has had its attempts or has no time for another one."""
        delay = next_delay(origin.attempt, ttl, self._retry_delays)
        if delay is None:
            return False
        record = origin.record
        headers = retry_headers(
            record.headers,
            attempt=origin.attempt,
            left_ms=int(ttl * 1000),
            job_left_ms=int(left * 1000) if origin.leg is not None else None,
            reason=reason,
            message=message,
            source=f"{record.topic}/{record.partition}/{record.offset}",
            first_ms=record.timestamp,
        )
        metrics.RETRIES.labels(reason).inc()
        copy = (record.value, headers, record.key or origin.request_id.encode())
        settle = (origin.claim.answered, record.offset)
        self._publisher.publish(self._retry_topic, delay, copy, settle, (give_up, None))
        return True

    def poison(self, delivery: Delivery, message: str) -> None:
        """Put a request aside, then answer POISON; not when its partition is another worker's by now."""
        if delivery.origin.claim.is_over:
            delivery.origin.claim.dropped()
            return
        if delivery.origin.leg is not None:  # its own retries come before its grave
            timing = Receipt(queued_us=delivery.queued_us, batched_us=delivery.batched_us)
            self._fail(delivery.origin, Status.POISON, message, timing, retryable=False, attempts=delivery.lost)
            return
        self._bury(
            delivery.origin,
            "poison",
            message,
            lambda _: self.fail(delivery, Status.POISON, message),
            attempts=delivery.lost,
        )

    def condemn(self, origin: Origin, message: str, attempts: int) -> None:
        """Put a record aside that nobody dares to decode, then answer POISON if it says where."""
        if origin.leg is not None:
            hopeless = structs.replace(origin, attempt=MAX_ATTEMPTS)
            self._fail(hopeless, Status.POISON, message, Receipt(), retryable=False, attempts=attempts)
            return
        body = self._error_body(origin, message, Receipt(), retryable=False)
        self._bury(origin, "poison", message, lambda _: self._reply(origin, Status.POISON, body), attempts=attempts)

    def put_aside(self, origin: Origin, message: str, attempts: int, then: Callable[[object], None]) -> None:
        """Keep a step that cannot be run, then go on."""
        self._bury(origin, "poison", message, then, attempts=attempts)

    def unroutable(self, origin: Origin, message: str, then: Callable[[object], None]) -> None:
        """Keep the last step of a job whose answer has nowhere to go, then go on."""
        self._bury(origin, "unroutable", message, then)

    def refuse(self, origin: Origin, error: RequestError) -> None:
        """Answer a record that never became a delivery. Without a reply address it is put aside instead."""
        status = status_of(error)
        if origin.leg is not None:
            self._fail(origin, status, str(error), Receipt(), retryable=error.retryable)
        elif origin.reply is None and status is Status.INVALID:
            self._bury(origin, "invalid", str(error), self._settle(origin))
        else:
            _counters[status].inc()
            self._reply(origin, status, self._error_body(origin, str(error), Receipt(), retryable=error.retryable))

    def _error_body(self, origin: Origin, message: str, timing: Receipt, *, retryable: bool) -> bytes:
        receipt = self._receipt(origin, timing)
        detail = ErrorDetail(message[:_MAX_REASON], retryable)
        return encode_response(ResponseBody(self._key.model, self._key.version, error=detail, receipt=receipt))

    def _receipt(self, origin: Origin, timing: Receipt) -> Receipt:
        return Receipt(
            worker=self._worker,
            device=self.device,
            attempt=origin.attempt,
            queued_us=timing.queued_us,
            batched_us=timing.batched_us,
        )

    def _reply(self, origin: Origin, status: Status, body: bytes, place: Place | None = None) -> None:
        reply = origin.reply
        if reply is None:  # nobody asked for the result: that it ran is the outcome
            origin.claim.answered(origin.record.offset)
        elif topics.is_replies(self._prefix, reply.topic):
            headers = encode_response_headers(origin.request_id, status, reply.token)
            if place is not None:
                headers = encode_stream_headers(
                    origin.request_id, status, reply.token, index=place.number, run=place.run
                )
            settle = (origin.claim.answered, origin.record.offset)
            lost = (self._lost, origin)
            # A request that ends engines is not run again for the sake of its answer, and it is a dead letter by now.
            diverted = settle if status is Status.POISON else (self._divert, origin)
            self._publisher.publish(reply.topic, reply.partition, (body, headers), settle, lost, diverted)
        else:
            self._bury(origin, "unroutable", f"{reply.topic} is no reply topic", self._settle(origin))

    def _divert(self, origin: Origin) -> None:
        """The reply partition takes nothing: have the request carried out again later, whatever its answer is then, or
        keep it when it has had its attempts.
        """
        if origin.claim.is_over:
            origin.claim.dropped()
            return
        record = origin.record
        attempt = max(origin.attempt, attempt_of(record.headers))
        if attempt >= MAX_ATTEMPTS:
            self._bury(origin, "unroutable", f"{_UNDELIVERED}, after {attempt} attempts", self._settle(origin))
            return
        ttl = dict(record.headers).get("ttl")
        waited_ms = max(0, self._clock.unix_ms() - record.timestamp)
        headers = retry_headers(
            record.headers,
            attempt=attempt,
            left_ms=(DEFAULT_TTL_MS if ttl is None else number(ttl)) - waited_ms,
            reason="undelivered",
            message=_UNDELIVERED,
            source=f"{record.topic}/{record.partition}/{record.offset}",
            first_ms=record.timestamp,
        )
        metrics.RETRIES.labels("undelivered").inc()

        def keep(_: object) -> None:
            self._bury(origin, "unroutable", f"{_UNDELIVERED}, nor does {self._retry_topic}", self._settle(origin))

        copy = (record.value, headers, record.key or origin.request_id.encode())
        settle = (origin.claim.answered, record.offset)
        self._publisher.publish(self._retry_topic, _UNDELIVERED_DELAY, copy, settle, (keep, None))

    def _lost(self, origin: Origin) -> None:
        self._bury(origin, "unroutable", "the reply topic or its partition does not exist", self._settle(origin))

    @staticmethod
    def _settle(origin: Origin) -> Callable[[object], None]:
        return lambda _: origin.claim.answered(origin.record.offset)

    def _bury(
        self,
        origin: Origin,
        reason: Reason,
        message: str,
        then: Callable[[object], None],
        *,
        attempts: int = 0,
    ) -> None:
        """Keep the record as it came, with the reason, and go on when that is acknowledged."""
        self._graves.bury(origin.record, origin.request_id, reason, message, then, attempts=attempts)
