"""The reserve before deadlines: it follows what came late, within what it may cost."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest.reserve import Reserve, most_reserve

RATES = [(size, size / (0.008 + 0.0001 * size)) for size in (1, 8, 32, 64)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0.001, 0.2))
def test_the_share_of_late_answers_comes_to_the_aim_whatever_happens(shares: list[float], seconds: float) -> None:
    """The bound of adaptive conformal inference, for lateness that knows nothing of the reserve."""
    reserve = Reserve()
    for share in shares:
        reserve.learn(share, seconds, math.inf)
    excess = sum(share - Reserve.AIM for share in shares)
    # What came late more often than aimed at stands in the reserve, so that it cannot go on once that is large enough.
    assert reserve.seconds >= Reserve.FIRST + Reserve.STEP * seconds * excess - 1e-9
    assert reserve.seconds >= 0


@given(st.floats(0.0005, 0.005), st.integers(0, 1 << 30))
def test_against_jitter_the_late_share_is_as_aimed_at(jitter: float, seed: int) -> None:
    dice, reserve, late = random.Random(seed), Reserve(), []
    for _ in range(6000):
        is_late = dice.gauss(0.0, jitter) > reserve.seconds
        reserve.learn(float(is_late), 0.01, math.inf)
        late.append(is_late)
    assert sum(late[1000:]) / 5000 <= 2 * Reserve.AIM
    assert reserve.seconds < 8 * jitter + Reserve.STEP * 0.01


def test_where_nothing_is_late_there_is_no_reserve() -> None:
    reserve = Reserve()
    for _ in range(1000):
        reserve.learn(0.0, 0.01, math.inf)
    assert reserve.seconds == 0.0


@given(st.floats(0, 1), st.floats(0.001, 1), st.floats(-0.01, 0.05))
def test_it_never_exceeds_what_it_may_be(share: float, seconds: float, most: float) -> None:
    reserve = Reserve()
    reserve.learn(share, seconds, most)
    assert reserve.seconds <= max(most, 0.0)


@given(st.floats(10, 20_000), st.floats(0.02, 0.5))
def test_the_most_costs_hardly_any_of_what_can_be_served(arriving: float, allowed: float) -> None:
    def served(reserve: float) -> float:
        windows = [(size, rate, allowed - size / rate - reserve) for size, rate in RATES]
        return min(arriving, max(min(rate, rate * arriving * window / size) for size, rate, window in windows))

    most = most_reserve(RATES, arriving, allowed)
    assert served(most) == pytest.approx((1 - Reserve.COST) * served(0.0), rel=1e-6)
    assert served(most + 0.001) < served(most)


def test_a_tight_objective_leaves_hardly_any_and_an_ample_one_much() -> None:
    assert most_reserve(RATES, 0.95 * RATES[-1][1], 0.030) < 0.002
    assert most_reserve(RATES, 1.5 * RATES[-1][1], 0.100) > 0.050
    assert most_reserve([], 100.0, 0.1) == most_reserve(RATES, 0.0, 0.1) == math.inf
