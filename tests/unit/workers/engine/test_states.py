"""The states of sequences in the engine: kept when a batch came to its end, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.messages import SequenceStep
from tests.engine_process import fill, python_model, spec_in
from workers.engine.model import LoadedModel
from workers.engine.states import States
from workers.link import Batch, Done, Failed, ModelToLoad
from workers.slots import SlotFile

CODE = """
import numpy as np
class Model:
    def infer(self, inputs, *, sequences):
        for row, sequence in enumerate(sequences):
            sequence.state = (sequence.state or 0) + float(inputs["x"][row, 0])
        if (inputs["x"] < 0).any():
            raise ValueError("no")
        return {"y": np.array([[s.state, s.is_start] for s in sequences], np.float32)}
"""


@pytest.fixture
def slots(tmp_path: Path) -> Any:
    made = SlotFile.create(tmp_path / "slots", 3, 4096, 4096)
    yield made
    made.close()


@pytest.fixture
def model(tmp_path: Path, slots: SlotFile) -> Iterator[LoadedModel]:
    folder = python_model(tmp_path / "model", CODE, sequences={})
    spec = spec_in(folder)
    loaded = LoadedModel.load(
        ModelToLoad(str(spec.key), spec.model_dump_json(), str(folder), allow_code=True), slots, 1
    )
    yield loaded
    loaded.close()


def run(model: LoadedModel, slots: SlotFile, values: list[float], *steps: SequenceStep) -> list[float] | None:
    rows = np.array([[value, 0] for value in values], np.float32)
    answer = model.run(Batch(0, 1, 0, len(values), fill(slots.input(0), {"x": rows}), {}, steps))
    if isinstance(answer, Failed):
        return None
    assert isinstance(answer, Done)
    view = slots.output(0)[: answer.outputs[0].size]
    found: list[float] = np.frombuffer(view, np.float32).reshape(-1, 2)[:, 0].tolist()
    return found


def test_each_row_has_its_sequences_state_and_a_start_begins_anew(model: LoadedModel, slots: SlotFile) -> None:
    a, b = SequenceStep("a"), SequenceStep("b")
    assert run(model, slots, [1, 10], SequenceStep("a", start=True), SequenceStep("b", start=True)) == [1, 10]
    assert run(model, slots, [20, 2], b, a) == [30, 3]
    assert run(model, slots, [5], SequenceStep("a", start=True)) == [5]
    assert run(model, slots, [1], SequenceStep("a", end=True)) == [6]
    assert len(model.states) == 1
    model.states.forget(("b", "never heard of"))
    assert len(model.states) == 0


def test_a_batch_that_fails_has_left_every_state_as_it_was(model: LoadedModel, slots: SlotFile) -> None:
    a, b = SequenceStep("a"), SequenceStep("b")
    run(model, slots, [1, 10], SequenceStep("a", start=True), SequenceStep("b", start=True))
    assert run(model, slots, [1, -1], a, b) is None
    assert run(model, slots, [1, 1], a, b) == [2, 11]


def test_rows_that_fill_a_batch_leave_nothing(model: LoadedModel, slots: SlotFile) -> None:
    assert run(model, slots, [1, 0, 0], SequenceStep("a", start=True)) == [1, 0, 0]
    assert len(model.states) == 1


def test_a_step_without_its_state_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError):
        States().of([SequenceStep("a")], 1)
