"""Batches that overlap, from the link to the slots: the engine's launcher and completer over a made-up device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.messages import Parameters
from contracts.specs import ModelSpec
from tests.engine_process import fill, rows_of
from tests.unit.workers.backends.fake_device import FakeDevice
from workers.backends.base import Arrays, Graphs, Launched, ModelContext
from workers.backends.device_faults import DeviceLost
from workers.backends.pipeline import Pipeline
from workers.engine.completer import Completer
from workers.engine.exchange import read_inputs
from workers.engine.model import InFlight, LoadedModel
from workers.link import Batch, Done, Failed
from workers.slots import SlotFile

SIDE = [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
SPEC = ModelSpec.model_validate(
    {
        "name": "overlapping",
        "version": 1,
        "backend": "torch",
        "inputs": SIDE,
        "outputs": [SIDE[0] | {"name": "y"}],
        "batching": {"max_batch_size": 8, "padding": {"batch": True}},
    }
)
Program = Callable[..., dict[str, Any]]


class Overlapping:
    """A backend whose device is made up."""

    device = "cuda:0 made up"
    is_pipelined = True

    def __init__(self, program: Program, seed: int = 0) -> None:
        self.fake = FakeDevice(seed)
        self._pipeline = Pipeline(self.fake, program, [("x", False)], lambda result: result)

    def load(self, context: ModelContext) -> None:
        pass

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        raise NotImplementedError

    def launch(self, inputs: Arrays, rows: int, parameters: Parameters) -> Launched:
        return self._pipeline.launch(inputs)

    def capture(self, batches: Any) -> Graphs:
        return self._pipeline.capture(list(batches))

    def pin(self, memory: memoryview) -> bool:
        return self._pipeline.pin(memory)

    def close(self) -> None:
        self._pipeline.close()


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[SlotFile]:
    slots = SlotFile.create(tmp_path / "slots", 3, 4096, 4096)
    yield slots
    slots.close()


class Answers:
    """What the completer sends."""

    def __init__(self) -> None:
        self.all: list[Done | Failed] = []
        self.stopped = threading.Event()
        self.completer = Completer(self.all.append, self.stopped.set)


def model_of(slots: SlotFile, program: Program, seed: int = 0) -> LoadedModel:
    return LoadedModel(SPEC, Overlapping(program, seed), slots)


def double(x: Any) -> dict[str, Any]:
    return {"y": 2 * x}


def batch_in(slots: SlotFile, slot: int, rows: int, sequence: int = 1) -> Batch:
    x = rows_of(rows).astype(np.float64) + 100 * slot
    return Batch(slot, sequence, 0, rows, fill(slots.input(slot), {"x": x}))


@pytest.mark.parametrize("seed", range(4))
def test_batches_in_flight_are_answered_in_their_order_from_their_own_slots(slots: SlotFile, seed: int) -> None:
    model, answers = model_of(slots, double, seed), Answers()
    model.capture((1, 2, 4, 8))
    assert model.graphs.captured == (8, 4, 2, 1)
    for sequence in range(4):
        launched = [model.launch(batch_in(slots, slot, rows, sequence)) for slot, rows in ((0, 4), (1, 3), (2, 8))]
        for one in launched:
            answers.completer.put(one)
    answers.completer.close()
    assert [(answer.slot, answer.sequence) for answer in answers.all] == [(s, q) for q in range(4) for s in range(3)]
    for answer in answers.all[-3:]:
        assert isinstance(answer, Done)
        y = read_inputs(slots.output(answer.slot), answer.outputs)["y"]
        assert y.tolist() == (2 * (rows_of(len(y)) + 100 * answer.slot)).tolist()


def test_what_cannot_be_launched_is_answered_when_its_turn_comes(slots: SlotFile) -> None:
    def picky(x: Any) -> dict[str, Any]:
        if len(x) == 3:
            raise ValueError("three rows")
        return {"y": 2 * x} if len(x) != 5 else {"y": x[:1]}

    model, answers = model_of(slots, picky), Answers()
    for slot, rows in ((0, 4), (1, 3), (2, 5)):
        answers.completer.put(model.launch(batch_in(slots, slot, rows)))
    answers.completer.close()
    first, second, third = answers.all
    assert isinstance(first, Done)
    assert second == Failed(1, 1, "error", "ValueError: three rows")
    assert third == Failed(2, 1, "output", "output 'y' has the shape [1, 2] for a batch of 5 rows")


def test_the_time_of_a_batch_does_not_contain_the_one_before(slots: SlotFile) -> None:
    model = model_of(slots, double)
    flight = model.launch(batch_in(slots, 0, 4))
    assert isinstance(flight, InFlight)
    done = flight.finish(began_ns=2**62)
    assert isinstance(done, Done)
    assert done.compute_us <= 0


@pytest.mark.parametrize("fault", [DeviceLost("sticky"), ConnectionError("ingest is gone")])
def test_what_ends_the_completer_stops_the_launcher_and_is_raised_at_the_end(fault: Exception) -> None:
    class Broken:
        def finish(self, began_ns: int) -> Done | Failed:
            raise fault

    answers = Answers()
    answers.completer.put(Broken())
    answers.completer.put(Failed(0, 1, "error", "never sent"))
    assert answers.stopped.wait(5)
    with pytest.raises(type(fault), match=str(fault)):
        answers.completer.close()
    assert answers.all == []


def test_a_fault_that_the_device_tells_of_later_fails_its_batch_alone(slots: SlotFile) -> None:
    model = model_of(slots, double)
    flight = model.launch(batch_in(slots, 0, 4))
    assert isinstance(flight, InFlight)

    def refuse(_: object) -> None:
        raise RuntimeError("CUDA error: invalid argument")

    model.backend.fake.wait = refuse  # type: ignore[attr-defined]  # of the made-up device
    assert flight.finish(0) == Failed(0, 1, "error", "RuntimeError: CUDA error: invalid argument")


def test_the_device_is_told_of_all_slots_and_lets_go_of_them(slots: SlotFile) -> None:
    model = model_of(slots, double)
    assert model.pin()
    fake = model.backend.fake  # type: ignore[attr-defined]  # the same
    assert fake.memory.nbytes == 3 * (4096 + 4096)
    model.close()
    assert fake.memory is None


@pytest.mark.parametrize(
    "changes",
    [
        {"torch": {"graphs": False}},
        {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, -1]}]},
    ],
)
def test_no_graphs_where_they_are_unwanted_or_shapes_are_open(slots: SlotFile, changes: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate(SPEC.model_dump() | changes)
    model = LoadedModel(spec, Overlapping(double), slots)
    model.capture((1, 2))
    assert model.graphs == Graphs()
