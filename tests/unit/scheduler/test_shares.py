from __future__ import annotations

from collections import Counter
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from scheduler.shares import divide, numbers

LEASES = ["a", "b", "c", "d", "e"]
weights_of = st.dictionaries(st.sampled_from(LEASES), st.floats(0.1, 100.0), min_size=1)


@st.composite
def situations(draw: st.DrawFn, most: int = 40) -> tuple[int, dict[int, str], list[str]]:
    count = draw(st.integers(0, most))
    holders = st.one_of(st.none(), st.sampled_from([*LEASES, "gone"]))
    held = {p: who for p in range(count) if (who := draw(holders)) is not None}
    return count, held, draw(st.lists(st.sampled_from(LEASES), unique=True, min_size=1))


@given(situations())
def test_equal_weights_give_numbers_that_differ_by_one_at_most(
    situation: tuple[int, dict[int, str], list[str]],
) -> None:
    count, current, leases = situation
    result = divide(range(count), current, dict.fromkeys(leases, 1.0))
    loads = [Counter(result.values())[lease] for lease in leases]
    assert sorted(result) == list(range(count))
    assert max(loads) - min(loads) <= 1


@given(situations())
def test_a_division_divides_itself_without_a_move(situation: tuple[int, dict[int, str], list[str]]) -> None:
    count, current, leases = situation
    once = divide(range(count), current, dict.fromkeys(leases, 1.0))
    assert divide(range(count), once, dict.fromkeys(leases, 1.0)) == once


@given(situations(most=6))
def test_no_even_division_needs_fewer_moves(situation: tuple[int, dict[int, str], list[str]]) -> None:
    count, current, leases = situation
    result = divide(range(count), current, dict.fromkeys(leases, 1.0))
    best = min(
        sum(current.get(p) != who for p, who in enumerate(other))
        for other in product(leases, repeat=count)
        if max(c := [other.count(lease) for lease in leases]) - min(c) <= 1
    )
    assert sum(current.get(p) != who for p, who in result.items()) == best


@given(st.integers(0, 500), weights_of)
def test_numbers_add_up_and_stay_within_one_of_the_quota(total: int, weights: dict[str, float]) -> None:
    counts = numbers(total, weights, {})
    assert sum(counts.values()) == total
    for lease, count in counts.items():
        assert abs(count - total * weights[lease] / sum(weights.values())) < 1 + 1e-6


def test_a_gpu_that_is_fourteen_times_faster_gets_fourteen_of_fifteen() -> None:
    assert numbers(15, {"gpu": 14.0, "cpu": 1.0}, {}) == {"gpu": 14, "cpu": 1}


def test_what_is_settled_stays_and_what_is_under_way_moves() -> None:
    result = divide(range(4), dict.fromkeys(range(4), "a"), {"a": 1.0, "b": 1.0}, settled=[2, 3])
    assert result == {0: "b", 1: "b", 2: "a", 3: "a"}


def test_nobody_to_divide_among_gives_nothing() -> None:
    assert divide(range(8), {0: "gone"}, {}) == {}
