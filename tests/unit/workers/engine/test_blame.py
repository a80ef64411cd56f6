"""Whom an engine blames for a failed batch, whatever it is that the model raised."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import InvalidRequest, InvalidRows
from contracts.messages import SequenceStep
from tests.engine_process import fill, python_model, rows_of, spec_in
from workers.engine import blame
from workers.engine.blame import MAX_MESSAGE, MAX_NAMED
from workers.engine.model import LoadedModel
from workers.link import MAX_FRAME_BYTES, Batch, Continue, Done, Failed, InvalidRow, ModelToLoad, Part, encode
from workers.slots import SlotFile

BATCH = Batch(1, 17, 0, 4, ())


class Unspeakable(Exception):
    """One whose text is no text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Trap(UserDict[int, str]):
    """A mapping that cannot be read."""

    def items(self) -> Any:
        raise SystemExit(3)


class Bare(InvalidRows):
    """One that was made without its rows."""

    def __init__(self) -> None:
        pass


def test_a_model_refuses_a_batch_in_its_own_words() -> None:
    assert blame.failed(BATCH, InvalidRequest("the page is\n no picture")) == Failed(
        1, 17, "invalid", "the page is no picture"
    )


def test_rows_are_named_in_their_order_each_with_its_reason() -> None:
    exc = InvalidRows({np.int64(3): "no date", 0: "no\nname"})  # type: ignore[dict-item]  # as a handler may say it
    assert blame.failed(BATCH, exc) == Failed(
        1, 17, "invalid", "", (InvalidRow(0, "no name"), InvalidRow(3, "no date"))
    )


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (InvalidRequest(), "the model refuses this content, and does not say why"),
        (InvalidRequest(None), "None"),
        (InvalidRequest({"page": 3}), "{'page': 3}"),
        (InvalidRequest("x" * 10_000_000), "x" * MAX_MESSAGE),
        (InvalidRequest(" \n" * 5_000_000), "the model refuses this content, and does not say why"),
        (InvalidRequest("half \ud83d a face"), "half ? a face"),
    ],
    ids=["none", "no text", "a dict", "10 MB", "10 MB of nothing", "half a character"],
)
def test_a_reason_may_be_anything_and_still_travels(exc: InvalidRequest, message: str) -> None:
    answer = blame.failed(BATCH, exc)
    assert (answer.kind, answer.message) == ("invalid", message)
    named = blame.failed(BATCH, InvalidRows({2: exc.args[0] if exc.args else ""}))
    assert named.rows == (InvalidRow(2, message),)
    assert len(encode(answer)) + len(encode(named)) < 10 * MAX_MESSAGE


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({4: "behind the end"}, "for row 4 of a batch of 4 rows"),
        ({-1: "from behind", 0: "right"}, "for row -1 of a batch of 4 rows"),
        ({10**5000: "far"}, "cannot be read: ValueError"),
        ({"0": "a text"}, "not all of its rows are numbers"),
        ({1.0: "a fraction"}, "not all of its rows are numbers"),
        ({}, "without a dict"),
        ([1, 2], "without a dict"),
        ("page 3 is no picture", "without a dict"),
        (None, "without a dict"),
        (Trap({0: "x"}), "cannot be read: SystemExit: 3"),
    ],
    ids=["beyond", "below", "far beyond", "a text", "a float", "nobody", "a list", "a string", "None", "a trap"],
)
def test_rows_that_cannot_be_told_are_the_models_fault_and_no_requests(rows: Any, words: str) -> None:
    answer = blame.failed(BATCH, InvalidRows(rows))
    assert answer.kind == "output"
    assert words in answer.message
    assert not answer.rows


def test_rows_that_were_never_given_are_the_models_fault() -> None:
    assert blame.failed(BATCH, Bare()).kind == "output"


def test_however_many_rows_are_named_the_answer_fits_a_frame() -> None:
    rows = 65536
    answer = blame.failed(Batch(0, 1, 0, rows, ()), InvalidRows(dict.fromkeys(range(rows), "\U0001f642" * 10_000)))
    assert [named.row for named in answer.rows] == list(range(MAX_NAMED))
    assert len(encode(answer)) < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("exc", "message"),
    [(ValueError("half \ud83d a face"), "ValueError: half ? a face"), (Unspeakable(), "Unspeakable")],
)
def test_an_exception_whose_text_cannot_be_told_is_an_answer_too(exc: Exception, message: str) -> None:
    answer = blame.failed(BATCH, exc)
    assert (answer.kind, answer.message) == ("error", message)
    encode(answer)


# --- through a handler, as it is loaded ------------------------------------------------------------------------------


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[SlotFile]:
    slots = SlotFile.create(tmp_path / "slots", 2, 4096, 4096)
    yield slots
    slots.close()


Loaded = Callable[..., LoadedModel]


@pytest.fixture
def loaded(slots: SlotFile, tmp_path: Path) -> Iterator[Loaded]:
    """Loads a model of some code, closed afterwards."""
    models: list[LoadedModel] = []

    def load(code: str, **fields: Any) -> LoadedModel:
        folder = python_model(tmp_path / "1", "from headrace import InvalidRequest, InvalidRows\n" + code, **fields)
        model = ModelToLoad("m@1", spec_in(folder).model_dump_json(), str(folder), allow_code=True)
        models.append(LoadedModel.load(model, slots, 1))
        return models[-1]

    yield load
    for model in models:
        model.close()


def batch(slots: SlotFile, rows: int, steps: tuple[SequenceStep, ...] = ()) -> Batch:
    return Batch(0, 9, 0, rows, fill(slots.input(0), {"x": rows_of(rows)}), {}, steps)


def test_a_handler_names_the_rows_that_it_refuses_and_nothing_is_logged_of_it(
    slots: SlotFile, loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
class Model:
    def infer(self, inputs):
        faults = {row: f"{x:g} is odd" for row, x in enumerate(inputs["x"][:, 0]) if x == 4}
        if faults:
            raise InvalidRows(faults)
        return {"y": inputs["x"]}
"""
    model = loaded(code)
    assert model.run(batch(slots, 4)) == Failed(0, 9, "invalid", "", (InvalidRow(2, "4 is odd"),))
    assert isinstance(model.run(batch(slots, 2)), Done)
    assert not caplog.records


def test_a_generator_may_refuse_a_row_after_its_first_part(slots: SlotFile, loaded: Loaded) -> None:
    code = """
class Model:
    def infer(self, inputs):
        yield {"y": inputs["x"]}
        raise InvalidRows({1: "too long"})
"""
    model, parts = loaded(code, streaming=True), list[Part]()

    def exchange(part: Part) -> Continue:
        parts.append(part)
        return Continue(part.slot, part.sequence)

    answer = model.run(batch(slots, 3), exchange)
    assert len(parts) == 1
    assert answer == Failed(0, 9, "invalid", "", (InvalidRow(1, "too long"),))


def test_a_refused_step_of_a_sequence_leaves_the_states_as_they_were(slots: SlotFile, loaded: Loaded) -> None:
    code = """
class Model:
    def infer(self, inputs, sequences):
        for step in sequences:
            step.state = (step.state or 0) + 1
        if any(step.id == "bad" and step.state == 2 for step in sequences):
            raise InvalidRequest("not twice")
        return {"y": inputs["x"] * 0 + [[step.state] for step in sequences]}
"""
    model = loaded(code, sequences={}, outputs=[{"name": "y", "datatype": "FP64", "shape": [-1, 2]}])
    first, then = ([SequenceStep(name, start=start) for name in ("good", "bad")] for start in (True, False))
    assert isinstance(model.run(batch(slots, 2, tuple(first))), Done)
    assert model.run(batch(slots, 2, tuple(then))) == Failed(0, 9, "invalid", "not twice")
    answer = model.run(batch(slots, 1, (then[0],)))
    assert isinstance(answer, Done)
    assert np.ndarray((1, 2), np.float64, slots.output(0)).tolist() == [[2, 2]]


def test_a_torch_module_may_refuse_as_well() -> None:
    def refuse(_: object) -> None:
        raise InvalidRequest("as asked")

    pytest.importorskip("torch")
    backend = pytest.importorskip("workers.backends.pytorch").TorchBackend()
    backend._inputs, backend._program = [("x", False)], refuse
    with pytest.raises(InvalidRequest, match="as asked"):
        backend.infer({"x": rows_of(1)}, 1, {})
