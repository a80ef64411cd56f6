from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.specs import ModelSpec
from tests.engine_process import fill, python_model, rows_of, spec_in
from workers.backends.base import Arrays, ModelContext
from workers.engine.blame import MAX_MESSAGE
from workers.engine.exchange import read_inputs
from workers.engine.model import LoadedModel
from workers.link import Batch, Done, Failed, ModelToLoad
from workers.slots import SlotFile

SIDE = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
SPEC = ModelSpec.model_validate(
    {
        "name": "scripted",
        "version": 3,
        "backend": "python",
        "inputs": SIDE,
        "outputs": [SIDE[0] | {"name": "y"}],
        "batching": {"max_batch_size": 8},
    }
)


class Scripted:
    """A backend that does what the test says, and counts rows."""

    device = "cpu"

    def __init__(self, infer: Callable[[Arrays], Any]) -> None:
        self._infer = infer
        self.rows: list[int] = []

    def load(self, context: ModelContext) -> None:
        pass

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        self.rows.append(rows)
        outputs: Arrays = self._infer(inputs)
        return outputs

    def close(self) -> None:
        pass


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[SlotFile]:
    slots = SlotFile.create(tmp_path / "slots", 3, 4096, 4096)
    yield slots
    slots.close()


def model_that(slots: SlotFile, infer: Callable[[Arrays], Any]) -> LoadedModel:
    return LoadedModel(SPEC, Scripted(infer), slots)


def batch_in(slots: SlotFile, rows: int = 3, slot: int = 1) -> Batch:
    return Batch(slot, 17, 0, rows, fill(slots.input(slot), {"x": rows_of(rows)}))


def raising(exc: BaseException) -> Callable[[Arrays], Any]:
    def infer(_: Arrays) -> Any:
        raise exc

    return infer


def test_outputs_stand_in_the_batchs_own_slot(slots: SlotFile) -> None:
    answer = model_that(slots, lambda inputs: {"y": inputs["x"] * 2}).run(batch_in(slots))
    assert isinstance(answer, Done)
    assert (answer.slot, answer.sequence) == (1, 17)
    assert read_inputs(slots.output(1), answer.outputs)["y"].tolist() == (rows_of(3) * 2).tolist()
    assert not any(slots.output(0))
    assert not any(slots.output(2))


@pytest.mark.parametrize(
    ("exc", "kind", "message"),
    [
        (ValueError("no such\n  class"), "error", "ValueError: no such class"),
        (MemoryError("of size 9"), "memory", "MemoryError: of size 9"),
        (SystemExit(4), "error", "SystemExit: 4"),
        (RecursionError("deep"), "error", "RecursionError: deep"),
        (asyncio.CancelledError(), "error", "CancelledError"),
    ],
)
def test_whatever_the_model_raises_becomes_the_answer(
    exc: BaseException, kind: str, message: str, slots: SlotFile
) -> None:
    answer = model_that(slots, raising(exc)).run(batch_in(slots))
    assert answer == Failed(1, 17, kind, message)  # type: ignore[arg-type]  # the kind comes from the table


def test_outputs_that_contradict_the_spec_fail_the_batch(slots: SlotFile) -> None:
    answer = model_that(slots, lambda inputs: {"y": inputs["x"][1:]}).run(batch_in(slots))
    assert answer == Failed(1, 17, "output", "output 'y' has the shape [2, 2] for a batch of 3 rows")


def test_outputs_that_do_not_fit_say_how_much_room_there_is(slots: SlotFile) -> None:
    rows = 4096 // 8 + 1
    answer = model_that(slots, lambda _: {"y": rows_of(rows)}).run(Batch(1, 17, 0, rows, ()))
    assert isinstance(answer, Failed)
    assert answer.kind == "output"
    assert "take 4104 bytes, but a slot has room for 4096" in answer.message


def test_a_long_text_is_cut(slots: SlotFile) -> None:
    answer = model_that(slots, raising(ValueError("x" * 10_000))).run(batch_in(slots))
    assert isinstance(answer, Failed)
    assert len(answer.message) == MAX_MESSAGE


def test_a_failing_place_is_logged_once_without_the_text(slots: SlotFile, caplog: pytest.LogCaptureFixture) -> None:
    model = model_that(slots, raising(ValueError("secret row 42")))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model.run(batch_in(slots))
    (record,) = caplog.records
    assert "scripted@3" in record.getMessage()
    assert "ValueError in " in record.getMessage()
    assert "raise exc" in record.getMessage()
    assert "secret" not in caplog.text


def test_a_failed_batch_keeps_nothing_alive(slots: SlotFile) -> None:
    model = model_that(slots, raising(ValueError("x")))
    model.run(batch_in(slots))
    good = LoadedModel(SPEC, Scripted(lambda inputs: {"y": inputs["x"]}), slots)
    assert isinstance(good.run(batch_in(slots)), Done)


def test_warm_up_runs_the_largest_a_middle_and_the_smallest_batch(slots: SlotFile) -> None:
    backend = Scripted(lambda inputs: {"y": inputs["x"]})
    LoadedModel(SPEC, backend, slots).warm_up()
    assert backend.rows == [8, 4, 1]


def test_warm_up_leaves_the_slots_alone(slots: SlotFile) -> None:
    # A respawned engine warms up while ingest still encodes what the last one left.
    for slot in range(3):
        slots.output(slot)[:] = bytes([slot + 1]) * 4096
    model_that(slots, lambda inputs: {"y": inputs["x"]}).warm_up()
    assert [set(slots.output(slot)) for slot in range(3)] == [{1}, {2}, {3}]


def test_a_model_that_refuses_zeros_is_served_all_the_same(slots: SlotFile, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model_that(slots, raising(ZeroDivisionError("mean of nothing"))).warm_up()
    assert "scripted@3 is not warmed up, it refuses 8 rows of zeros: ZeroDivisionError: mean of nothing" in caplog.text


@pytest.mark.parametrize(
    ("infer", "words"),
    [
        (lambda _: {"z": rows_of(8)}, "warm-up with 8 rows of zeros: output 'y' is missing"),
        (raising(MemoryError()), "no memory for a batch of 8 rows; lower max_batch_size"),
    ],
)
def test_what_would_fail_every_request_fails_the_load(
    infer: Callable[[Arrays], Any], words: str, slots: SlotFile
) -> None:
    with pytest.raises(ModelLoadError, match=f"scripted@3: {words}"):
        model_that(slots, infer).warm_up()


def test_a_model_that_takes_texts_is_not_warmed_up(slots: SlotFile) -> None:
    texts = ModelSpec.model_validate(
        SPEC.model_dump() | {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1]}]}
    )
    backend = Scripted(raising(AssertionError()))
    LoadedModel(texts, backend, slots).warm_up()
    assert backend.rows == []


def test_loading_goes_from_the_messages_spec_to_a_warm_model(slots: SlotFile, tmp_path: Path) -> None:
    code = """
class Model:
    def load(self, context):
        self.offset = context.threads
    def infer(self, inputs):
        return {"y": inputs["x"] + self.offset}
"""
    folder = python_model(tmp_path / "made-up" / "1", code)
    loaded = LoadedModel.load(
        ModelToLoad("made-up@1", spec_in(folder).model_dump_json(), str(folder), allow_code=True), slots, 2
    )
    answer = loaded.run(batch_in(slots))
    assert isinstance(answer, Done)
    got = read_inputs(slots.output(1), answer.outputs)["y"]
    np.testing.assert_array_equal(got, rows_of(3) + np.float32(2))
    loaded.backend.close()


def test_a_spec_that_is_none_is_a_load_error(slots: SlotFile) -> None:
    with pytest.raises(ModelLoadError, match="made-up@1: its spec cannot be read"):
        LoadedModel.load(ModelToLoad("made-up@1", '{"name": 3}', "/"), slots, 1)


def test_a_model_that_fails_while_it_is_closed_does_not_keep_the_engine(
    slots: SlotFile, caplog: pytest.LogCaptureFixture
) -> None:
    class Clinging(Scripted):
        def close(self) -> None:
            raise OSError("still busy")

    LoadedModel(SPEC, Clinging(lambda inputs: inputs), slots).close()
    assert "scripted@3 failed while it was closed" in caplog.text
