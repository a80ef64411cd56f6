"""The broker's clock as estimated from acknowledgements."""

from __future__ import annotations

from contracts.adapters.kafka import Ack
from tests.helpers import FakeClock
from workers.draining.broker_time import BrokerTime


def observe(time: BrokerTime, clock: FakeClock, broker_ahead_ms: int) -> None:
    sent = clock.unix_ms()
    clock.advance(0.002)
    time.observe(Ack("t", 0, 0, sent + 1 + broker_ahead_ms), sent)


def test_a_broker_that_is_ahead_is_found_out() -> None:
    clock = FakeClock()
    time = BrokerTime(clock)
    assert time.now_ms() == clock.unix_ms()
    for _ in range(15):
        observe(time, clock, 5_000)
    assert time.now_ms() - clock.unix_ms() == 5_000


def test_one_delayed_acknowledgement_does_not_move_it() -> None:
    clock = FakeClock()
    time = BrokerTime(clock)
    for _ in range(10):
        observe(time, clock, 0)
    time.observe(Ack("t", 0, 0, clock.unix_ms() - 9_000), clock.unix_ms())
    assert time.now_ms() == clock.unix_ms()


def test_an_acknowledgement_without_a_stamp_teaches_nothing() -> None:
    clock = FakeClock()
    time = BrokerTime(clock)
    time.observe(Ack("t", 0, 0, -1), clock.unix_ms())
    assert time.offset_ms == 0
