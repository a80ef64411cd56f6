"""Isolation: how a failed batch is taken apart."""

from __future__ import annotations

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
    if size == 32 and len(bad) == 1:
        assert runs - 1 <= 10
