"""The order in which batches overlap, on a device that takes every liberty that its marks leave it."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.backends.fake_device import RUBBISH, FakeDevice
from workers.backends.base import Arrays
from workers.backends.device_faults import DeviceLost
from workers.backends.pipeline import Flight, Pipeline

SIZES = (1, 2, 4)


def program(a: Any, b: Any) -> dict[str, Any]:
    return {"sum": a + b, "twice": 2 * b}


def pipeline_on(device: FakeDevice, *, graphs: bool) -> Pipeline:
    made = Pipeline(device, program, [("a", False), ("b", False)], lambda result: result)
    if graphs:
        made.capture([batch(rows, 0) for rows in SIZES])
    return made


def batch(rows: int, seed: int) -> Arrays:
    dice = np.random.default_rng(seed)
    return {"a": dice.integers(0, 99, (rows, 3)).astype(float), "b": dice.integers(0, 99, (rows, 3)).astype(float)}


def serve(pipeline: Pipeline, sizes: list[int], depth: int = 2) -> None:
    """Batches one behind the other, `depth` of them in flight, in slots that are spoilt once their answer was read."""
    flying: deque[tuple[Flight, Arrays, Arrays, Arrays]] = deque()

    def land() -> None:
        flight, slot, into, want = flying.popleft()
        flight.wait()
        for name, array in want.items():
            np.testing.assert_array_equal(into[name], array)
        for array in slot.values():
            array.fill(RUBBISH)

    for seed, rows in enumerate(sizes):
        slot = batch(rows, seed)
        want = {name: value.copy() for name, value in program(slot["a"], slot["b"]).items()}
        flight = pipeline.launch(slot)
        into = {name: np.full(array.shape, RUBBISH) for name, array in flight.outputs.items()}
        flight.fetch(into)
        flying.append((flight, slot, into, want))
        if len(flying) >= depth:
            land()
    while flying:
        land()


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.sampled_from((1, 2, 3, 4)), max_size=8), graphs=st.booleans())
def test_every_batch_gets_its_own_answer_in_whatever_order_the_streams_run(
    *, seed: int, sizes: list[int], graphs: bool
) -> None:
    serve(pipeline_on(FakeDevice(seed), graphs=graphs), sizes, depth=3)


@pytest.mark.parametrize("stream", ["compute", "out"])
@pytest.mark.parametrize("graphs", [False, True])
def test_without_either_hold_answers_would_be_wrong(*, stream: str, graphs: bool) -> None:
    def is_right(seed: int) -> bool:
        try:
            serve(pipeline_on(FakeDevice(seed, deaf=frozenset({stream})), graphs=graphs), [4, 2, 4, 4])
        except AssertionError:
            return False
        return True

    assert not all(is_right(seed) for seed in range(20))


@pytest.mark.parametrize("graphs", [False, True])
def test_tensors_that_are_let_go_of_too_early_would_be_noticed(*, graphs: bool) -> None:
    def is_right(seed: int) -> bool:
        pipeline = pipeline_on(FakeDevice(seed), graphs=graphs)
        slot = batch(4, seed)
        want = program(slot["a"], slot["b"])["sum"].copy()
        flight = pipeline.launch(slot)
        into = {name: np.zeros(array.shape) for name, array in flight.outputs.items()}
        flight._held.clear()
        flight.fetch(into)
        flight._results = {}
        flight._held.clear()
        flight.wait()
        return bool((into["sum"] == want).all())

    assert not all(is_right(seed) for seed in range(20))


def test_a_graphs_outputs_that_are_not_copied_would_be_overwritten_by_the_next_replay() -> None:
    class Careless(FakeDevice):
        def copy_of(self, tensor: Any) -> Any:
            return tensor

    def is_right(seed: int) -> bool:
        try:
            serve(pipeline_on(Careless(seed), graphs=True), [4, 4, 4, 4])
        except AssertionError:
            return False
        return True

    assert not all(is_right(seed) for seed in range(20))


def test_what_a_program_gives_out_may_be_its_own_and_be_overwritten_by_its_next_run() -> None:
    class Frugal(FakeDevice):
        """Its program writes every result into the same memory."""

        def _compute(self, program: Any, tensors: Any, *, in_graph: bool) -> Any:
            results, run = super()._compute(program, tensors, in_graph=True)
            self.own = getattr(self, "own", results)

            def overwrite() -> None:
                run()
                for name, result in self.own.items():
                    np.copyto(result.array, results[name].array)

            self.give("compute", overwrite)
            return self.own, run

    for seed in range(20):
        serve(pipeline_on(Frugal(seed), graphs=False), [4, 4, 4, 4], depth=3)


def test_a_batch_of_a_captured_shape_is_replayed_and_another_one_is_run() -> None:
    device = FakeDevice(0)
    pipeline = pipeline_on(device, graphs=True)
    assert [entry for entry in device.log if entry.startswith("capture")] == ["capture 4", "capture 2", "capture 1"]
    device.log.clear()
    serve(pipeline, [2])
    replayed = "upload,upload,mark in,hold compute,overwrite,overwrite,replay,copy,copy,mark compute"
    landed = "hold out,download,download,mark out,wait"
    assert ",".join(device.log) == f"{replayed},{landed}"
    device.log.clear()
    serve(pipeline, [3])
    assert ",".join(device.log) == f"upload,upload,mark in,hold compute,call,copy,copy,mark compute,{landed}"


def test_a_size_whose_capture_fails_is_run_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice(0)
    device.refuse_rows = frozenset({2})
    pipeline = pipeline_on(device, graphs=False)
    graphs = pipeline.capture([batch(rows, 0) for rows in SIZES])
    assert (graphs.captured, graphs.failed) == ((4, 1), (2,))
    assert "no graph for batches of 2 rows: RuntimeError" in caplog.text
    serve(pipeline, [2, 4, 2, 1])
    assert device.log.count("replay") == 2


def test_a_launch_that_fails_in_the_middle_leaves_nothing_under_way() -> None:
    device = FakeDevice(0)
    pipeline = pipeline_on(device, graphs=False)
    with pytest.raises(KeyError):
        pipeline.launch({"a": np.ones((2, 3))})
    assert device.log[-1] == "settle"
    flight = pipeline.launch(batch(2, 1))
    flight.abandon()
    serve(pipeline, [2, 2])


class Dying(FakeDevice):
    """Its faults last, and are called what nobody has heard of."""

    is_dead = False

    def settle(self) -> None:
        if self.is_dead:
            raise RuntimeError("CUDA error: unknown error")
        super().settle()

    def wait(self, mark: Any) -> None:
        if self.is_dead:
            raise RuntimeError("CUDA error: unknown error")
        super().wait(mark)

    def upload(self, array: Any, *, is_bf16: bool) -> Any:
        if self.is_dead:
            raise RuntimeError("CUDA error: unknown error")
        return super().upload(array, is_bf16=is_bf16)


@pytest.mark.parametrize("when", ["launch", "wait", "abandon"])
def test_a_device_that_cannot_even_come_to_rest_is_lost_whatever_it_calls_that(when: str) -> None:
    device = Dying(0)
    pipeline = pipeline_on(device, graphs=False)
    flight = pipeline.launch(batch(2, 1))
    flight.fetch({name: np.zeros(array.shape) for name, array in flight.outputs.items()})
    device.is_dead = True
    with pytest.raises(DeviceLost, match="unknown error"):
        pipeline.launch(batch(2, 1)) if when == "launch" else getattr(flight, when)()


def test_what_a_batch_holds_is_let_go_of_only_when_the_device_is_at_rest() -> None:
    class Hiccup(FakeDevice):
        def wait(self, mark: Any) -> None:
            raise RuntimeError("CUDA error: invalid argument")

    device = Hiccup(0)
    pipeline = pipeline_on(device, graphs=False)
    flight = pipeline.launch(batch(2, 1))
    into = {name: np.zeros(array.shape) for name, array in flight.outputs.items()}
    flight.fetch(into)
    with pytest.raises(RuntimeError, match="invalid argument"):
        flight.wait()
    assert device.log[-1] == "settle", "its slot is another batch's from now on"


def test_closing_waits_for_the_device_before_memory_is_taken_from_it() -> None:
    device = FakeDevice(0)
    pipeline = pipeline_on(device, graphs=True)
    assert pipeline.pin(memoryview(bytearray(8)))
    pipeline.launch(batch(2, 1))
    pipeline.close()
    assert device.log[-1] == "settle"
    assert device.memory is None
