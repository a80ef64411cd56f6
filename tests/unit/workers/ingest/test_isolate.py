"""Isolation: how a failed batch is taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest import isolate


@given(st.integers(1, 64), st.sets(st.integers(0, 63)))
def test_halving_finds_every_bad_row_and_only_those(size: int, bad: set[int]) -> None:
    """Runs batches as the batcher does, a batch with a bad row raising; counts the further runs."""
    bad = {row for row in bad if row < size}
    pending, runs = [list(range(size))], 0
    poisoned: set[int] = set()
    answered: set[int] = set()
    while pending:
        batch = pending.pop(0)
        runs += 1
        if not bad & set(batch):
            answered |= set(batch)
        elif len(batch) == 1:
            poisoned |= set(batch)
        else:
            pending = [*isolate.halves(batch), *pending]
    assert poisoned == bad
    assert answered == set(range(size)) - bad
    assert runs - 1 <= 2 * len(bad) * (size - 1).bit_length()  # and so 10 for one bad row in 32


def test_halves_are_as_even_as_can_be() -> None:
    assert isolate.halves([1, 2, 3, 4, 5]) == [[1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("lost", "alone", "poison"),
    [(1, 1, False), (2, 2, False), (3, 1, False), (3, 2, True), (3, 3, True), (9, 1, False)],
)
def test_only_a_request_that_was_alone_when_the_engine_died_is_to_blame(lost: int, alone: int, poison: bool) -> None:  # noqa: FBT001
    assert isolate.is_poison(lost, alone) is poison


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=3))
def test_killers_are_found_within_three_launches_and_nobody_else_is_blamed(size: int, killers: set[int]) -> None:
    """Two batches are in the engine when it dies; suspects run alone, as the batcher has it."""
    killers = {killer for killer in killers if killer < size}
    launches, lost, alone = [0] * size, [0] * size, [0] * size
    pending: list[list[int]] = [list(range(size // 2)), list(range(size // 2, size))]
    blamed, answered = set[int](), set[int]()
    while pending := [batch for batch in pending if batch]:
        is_alone = any(lost[row] for row in pending[0])
        engine, pending = (pending[:1], pending[1:]) if is_alone else (pending[:2], pending[2:])
        held = [row for batch in engine for row in batch]
        for row in held:
            launches[row] += 1
        if not killers & set(held):
            answered |= set(held)
            continue
        for row in held:
            lost[row] += 1
            alone[row] += len(held) == 1
        blamed |= {row for row in held if isolate.is_poison(lost[row], alone[row])}
        pending = [[row] for row in held if row not in blamed] + pending
    assert blamed == killers
    assert answered == set(range(size)) - killers
    assert max(launches) <= 3
