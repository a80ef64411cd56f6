from __future__ import annotations

import math
from concurrent.futures import Future

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts.errors import ClientClosed, InvalidRequest, Overloaded, TransportError
from contracts.messages import ErrorDetail, Receipt, Response, Status
from producer.pending import Outgoing, Pending, Waiter

LIMIT = 4
LIMIT_BYTES = 40


def make_waiter(name: str, *, started: float = 0.0, deadline: float = 30.0, size: int = 1) -> Waiter:
    record = Outgoing("topic", 0, b"x" * size, [])
    return Waiter(name, Future(), started, deadline, "m", 1, record)


def make_response(name: str, status: Status = Status.OK, receipt: Receipt | None = None) -> Response:
    return Response(name, status, "m", 1, receipt=receipt or Receipt())


def result_of(waiter: Waiter) -> Response:
    assert isinstance(waiter.future, Future)
    found = waiter.future.result(timeout=0)
    assert isinstance(found, Response)
    return found


def make_pending(*waiters: Waiter, limit: int = 100) -> Pending:
    pending = Pending(limit=limit, limit_bytes=1_000_000)
    for waiter in waiters:
        pending.add(waiter)
    return pending


def test_a_response_ends_its_own_waiter_only() -> None:
    first, second = make_waiter("a"), make_waiter("b")
    pending = make_pending(first, second)
    assert pending.resolve(make_response("b"), is_own=True, now=1.0)
    assert result_of(second).id == "b"
    assert not first.future.done()
    assert len(pending) == 1


def test_the_receipt_gets_the_whole_time_and_what_no_worker_accounts_for() -> None:
    waiter = make_waiter("a", started=10.0)
    pending = make_pending(waiter)
    receipt = Receipt(worker="w", queued_us=1_000, batched_us=200, computed_us=3_000)
    pending.resolve(make_response("a", receipt=receipt), is_own=True, now=10.005)
    found = result_of(waiter).receipt
    assert found.worker == "w"
    assert found.total_us == pytest.approx(5_000, abs=1)
    assert found.returned_us == found.total_us - 4_200


def test_what_a_worker_claims_beyond_the_whole_never_makes_the_rest_negative() -> None:
    waiter = make_waiter("a")
    pending = make_pending(waiter)
    pending.resolve(make_response("a", receipt=Receipt(queued_us=9_999_999)), is_own=True, now=0.001)
    assert result_of(waiter).receipt.returned_us == 0


def test_strays_are_counted_by_what_they_are() -> None:
    pending = make_pending(make_waiter("answered"), make_waiter("late"))
    pending.resolve(make_response("answered"), is_own=True, now=0.0)
    pending.give_up("late")
    for name in ("answered", "answered", "late", "stranger"):
        assert not pending.resolve(make_response(name), is_own=True, now=0.0)
    assert (pending.counts.duplicate, pending.counts.late, pending.counts.unknown) == (2, 1, 1)


def test_a_foreign_error_is_dropped_and_a_foreign_result_counts() -> None:
    waiter = make_waiter("a")
    pending = make_pending(waiter)
    assert not pending.resolve(make_response("a", Status.DEADLINE_EXCEEDED), is_own=False, now=0.0)
    assert pending.counts.foreign == 1
    assert not waiter.future.done()
    assert pending.resolve(make_response("a"), is_own=False, now=0.0)
    assert result_of(waiter).status is Status.OK


def test_expiry_answers_exactly_what_is_due() -> None:
    soon, later = make_waiter("soon", deadline=5.0), make_waiter("later", deadline=6.0)
    pending = make_pending(later, soon)
    assert pending.expire(4.9) == []
    assert pending.expire(5.0) == [soon]
    assert result_of(soon).status is Status.DEADLINE_EXCEEDED
    detail = result_of(soon).error
    assert isinstance(detail, ErrorDetail)
    assert detail.retryable
    assert "client itself" in detail.message
    assert pending.next_due == 6.0
    assert not later.future.done()


def test_an_earlier_deadline_moves_the_next_look() -> None:
    pending = make_pending(make_waiter("a", deadline=30.0), make_waiter("b", deadline=3.0))
    assert pending.next_due == 3.0


def test_the_window_counts_requests_and_bytes() -> None:
    pending = Pending(limit=2, limit_bytes=10)
    pending.add(make_waiter("a", size=6))
    with pytest.raises(Overloaded, match="10 bytes"):
        pending.add(make_waiter("b", size=5))
    pending.add(make_waiter("c", size=4))
    with pytest.raises(Overloaded, match="2 requests"):
        pending.add(make_waiter("d", size=0))
    assert pending.counts.overloaded == 2
    pending.give_up("a")
    pending.add(make_waiter("e", size=6))


def test_an_id_is_under_way_once_and_may_be_used_again_afterwards() -> None:
    pending = make_pending(make_waiter("a"))
    with pytest.raises(InvalidRequest, match="in flight already"):
        pending.add(make_waiter("a"))
    pending.resolve(make_response("a"), is_own=True, now=0.0)
    again = make_waiter("a")
    pending.add(again)
    assert pending.resolve(make_response("a"), is_own=True, now=0.0)
    assert result_of(again).id == "a"


def test_failing_all_gives_each_waiter_an_error_of_its_own() -> None:
    waiters = [make_waiter(name) for name in "abc"]
    pending = make_pending(*waiters)
    pending.fail_all(ClientClosed("closed"))
    errors = [waiter.future.exception() for waiter in waiters]
    assert all(isinstance(error, ClientClosed) for error in errors)
    assert len(set(map(id, errors))) == 3
    assert len(pending) == 0


def test_failing_somebody_who_has_ended_does_nothing() -> None:
    waiter = make_waiter("a")
    pending = make_pending(waiter)
    pending.resolve(make_response("a"), is_own=True, now=0.0)
    pending.fail("a", TransportError("too late"))
    assert result_of(waiter).status is Status.OK


def test_a_waiter_whose_future_was_cancelled_disturbs_nobody() -> None:
    gone, here = make_waiter("gone"), make_waiter("here")
    pending = make_pending(gone, here)
    assert isinstance(gone.future, Future)
    gone.future.cancel()
    assert not pending.resolve(make_response("gone"), is_own=True, now=0.0)
    assert pending.resolve(make_response("here"), is_own=True, now=0.0)
    assert pending.counts.late == 1


def test_memory_of_ended_ids_is_bounded_and_keeps_the_latest() -> None:
    remembered = Pending(limit=10, limit_bytes=1000)._given_up
    for number in range(20_000):
        remembered.add(str(number))
    assert all(str(number) in remembered for number in range(20_000 - 8192, 20_000))
    assert len(remembered._new) + len(remembered._old) <= 2 * 8192


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request ends at most once and the window adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = Pending(limit=LIMIT, limit_bytes=LIMIT_BYTES)
        self.now = 0.0
        self.number = 0
        self.waiting: dict[str, Waiter] = {}
        self.ended: dict[str, Waiter] = {}

    @rule(ttl=st.floats(0.1, 20.0), size=st.integers(0, 25))
    def send(self, ttl: float, size: int) -> None:
        self.number += 1
        waiter = make_waiter(str(self.number), started=self.now, deadline=self.now + ttl, size=size)
        used = sum(len(other.record.value) for other in self.waiting.values())
        if len(self.waiting) >= LIMIT or used + size > LIMIT_BYTES:
            with pytest.raises(Overloaded):
                self.pending.add(waiter)
        else:
            self.pending.add(waiter)
            self.waiting[waiter.id] = waiter

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), status=st.sampled_from(Status), is_own=st.booleans())
    def respond(self, data: st.DataObject, status: Status, is_own: bool) -> None:  # noqa: FBT001
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        expected = is_own or status is Status.OK
        assert self.pending.resolve(make_response(name, status), is_own=is_own, now=self.now) is expected
        if expected:
            self.end(name)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), is_own=st.booleans())
    def respond_again(self, data: st.DataObject, is_own: bool) -> None:  # noqa: FBT001
        name = data.draw(st.sampled_from(sorted(self.ended)))
        assert not self.pending.resolve(make_response(name), is_own=is_own, now=self.now)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        waiter = self.pending.give_up(name)
        assert waiter is self.waiting.pop(name)
        waiter.future.set_result(None)  # as if its caller had gone
        self.ended[name] = waiter

    @rule(seconds=st.floats(0.0, 10.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = {name for name, waiter in self.waiting.items() if waiter.deadline <= self.now}
        assert {waiter.id for waiter in self.pending.expire(self.now)} == due
        for name in due:
            self.end(name)

    @rule()
    def close(self) -> None:
        self.pending.fail_all(ClientClosed("closed"))
        for name in list(self.waiting):
            self.end(name)

    def end(self, name: str) -> None:
        waiter = self.waiting.pop(name)
        assert waiter.future.done()
        self.ended[name] = waiter

    @invariant()
    def adds_up(self) -> None:
        assert len(self.pending) == len(self.waiting)
        assert self.pending._bytes == sum(len(waiter.record.value) for waiter in self.waiting.values())
        assert not any(waiter.future.done() for waiter in self.waiting.values())
        earliest = min((waiter.deadline for waiter in self.waiting.values()), default=math.inf)
        assert self.pending.next_due <= earliest
        counts = self.pending.counts
        over = counts.responses + counts.expired + counts.abandoned
        assert over <= counts.requests == len(self.waiting) + len(self.ended)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30)
