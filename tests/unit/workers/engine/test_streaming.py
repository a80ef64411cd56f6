"""The engine's side of a stream: a generator, its parts, and what it is told in between."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.specs import TensorSpec
from workers.engine.exchange import OutputMismatch, OutputRegions, read_inputs
from workers.engine.streaming import LinkEnded, Steps, first_step, nobody, stream
from workers.link import Batch, Continue, Part
from workers.slots import SlotFile

ROWS = 3
OUTPUTS = OutputRegions([TensorSpec(name="y", datatype="FP32", shape=(-1, 1))], 4096)


def column(*values: float) -> dict[str, Any]:
    return {"y": np.array([[value] for value in values], np.float32)}


class Ingest:
    """Takes parts, and answers them as the test says."""

    def __init__(self, slots: SlotFile, answer: Callable[[int], Continue] | None = None) -> None:
        self._view = slots.output(0)
        self._answer = answer or (lambda _: Continue(0, 1))
        self.parts: list[Part] = []
        self.values: list[list[float]] = []

    def exchange(self, part: Part) -> Continue:
        self.parts.append(part)
        self.values.append(read_inputs(self._view, part.outputs)["y"].ravel().tolist())
        return self._answer(len(self.parts))


@pytest.fixture
def slots(tmp_path: Path) -> Any:
    made = SlotFile.create(tmp_path / "slots", 1, 4096, 4096)
    yield made
    made.close()


def run(slots: SlotFile, steps: Steps, ingest: Ingest) -> tuple[Any, int]:
    return stream(steps, Batch(0, 1, 0, ROWS, ()), OUTPUTS, slots.output(0), ingest.exchange)


def test_each_yield_is_a_part_for_all_rows_or_for_some_and_the_return_value_is_the_last(slots: SlotFile) -> None:
    def steps() -> Generator[Any, Any, Any]:
        yield column(1, 2, 3)
        yield column(4, 5), [2, 0]
        yield column(6), np.array([1]), True
        return column(7, 8, 9)

    ingest = Ingest(slots)
    regions, _ = run(slots, steps(), ingest)
    assert ingest.values == [[1, 2, 3], [4, 5], [6]]
    assert [(part.rows, part.final) for part in ingest.parts] == [(None, False), ((2, 0), False), ((1,), True)]
    assert read_inputs(slots.output(0), regions)["y"].ravel().tolist() == [7, 8, 9]


def test_the_model_is_told_who_has_gone_and_is_closed_when_everybody_has(slots: SlotFile) -> None:
    told: list[frozenset[int]] = []
    closed: list[bool] = []

    def steps() -> Generator[Any, Any, Any]:
        try:
            while True:
                told.append((yield column(1, 2, 3)))
        finally:
            closed.append(True)

    answers = {1: Continue(0, 1), 2: Continue(0, 1, (1,)), 3: Continue(0, 1, (0, 1, 2), stop=True)}
    regions, _ = run(slots, steps(), Ingest(slots, answers.__getitem__))
    assert told == [frozenset(), frozenset({1})]
    assert closed == [True]
    assert regions == ()


@pytest.mark.parametrize(
    ("yielded", "complaint"),
    [
        (None, "not a dict"),
        (column(1, 2), "for a batch of 3 rows"),
        ((column(1, 2), [0]), "for a batch of 1 rows"),
        ((column(1, 2), [0, 0]), "different ones of 0 to 2"),
        ((column(1), [3]), "different ones of 0 to 2"),
        ((column(1), [-1]), "different ones of 0 to 2"),
        ((column(), []), "for no row at all"),
        ((column(1), "x"), "not a list of numbers"),
        ((column(1), 1), "not a list of numbers"),
        ((column(1), [0], True, 1), "yielded 4 values"),
    ],
)
def test_what_is_no_part_is_said_to_be_none(slots: SlotFile, yielded: object, complaint: str) -> None:
    closed: list[bool] = []

    def steps() -> Generator[Any, Any, Any]:
        try:
            yield yielded
        finally:
            closed.append(True)

    with pytest.raises(OutputMismatch, match=complaint):
        run(slots, steps(), Ingest(slots))
    assert closed == [True]


def test_the_end_of_the_link_ends_the_stream(slots: SlotFile) -> None:
    def gone(_: int) -> Continue:
        raise LinkEnded

    def steps() -> Generator[Any, Any, Any]:
        yield column(1, 2, 3)

    with pytest.raises(LinkEnded):
        run(slots, steps(), Ingest(slots, gone))


def test_nobody_waits_means_stop() -> None:
    assert nobody(Part(2, 7, (), None, final=False, step_us=1)) == Continue(2, 7, stop=True)


def test_warming_up_takes_one_step_and_lets_go() -> None:
    seen: list[str] = []

    def steps() -> Generator[Any, Any, Any]:
        try:
            yield column(1), [0]
            seen.append("second")
        finally:
            seen.append("closed")

    first_step(steps(), OUTPUTS, ROWS)
    assert seen == ["closed"]
