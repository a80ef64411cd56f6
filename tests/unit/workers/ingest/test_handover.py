"""How long before the engine frees the next batch is closed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest.handover import Handover


def learned(takes: float, errors: list[float]) -> Handover:
    made = Handover()
    made.took(takes)
    for error in errors:
        made.ended(error)
    return made


def cost(lead: float, takes: float, errors: list[float]) -> float:
    """Seconds that rows wait since a batch was closed early, and twice those that the engine waits for one."""
    early = sum(max(0.0, error + lead - takes) for error in errors)
    return early + 2 * sum(min(max(0.0, takes - lead - error), takes) for error in errors)


def test_where_ends_are_predicted_exactly_the_lead_is_the_handover() -> None:
    assert learned(0.0007, [0.0] * 64).lead == pytest.approx(0.0007)


def test_where_a_handover_takes_no_time_no_batch_is_closed_before_the_engine_is_free() -> None:
    dice = random.Random(1)
    assert learned(0.0, [dice.gauss(0, 0.0004) for _ in range(64)]).lead < -0.5


def test_where_nobody_knows_when_a_batch_ends_the_next_is_closed_then() -> None:
    dice = random.Random(1)
    assert learned(0.0001, [dice.uniform(-0.05, 0.05) for _ in range(64)]).lead < -0.04


@given(st.floats(0, 0.002), st.lists(st.floats(-0.002, 0.002), min_size=64, max_size=64), st.floats(-0.004, 0.004))
def test_no_other_lead_would_have_cost_clearly_less(takes: float, errors: list[float], other: float) -> None:
    chosen = cost(learned(takes, errors).lead, takes, errors)
    assert chosen <= 1.25 * cost(other, takes, errors) + 64 * 0.0001


def test_what_a_handover_takes_is_the_median_of_the_last_ones() -> None:
    made = Handover()
    for takes in (0.0004, 0.0005, 0.3, 0.0006, -0.1):
        made.took(takes)
    assert made.seconds == 0.0005
