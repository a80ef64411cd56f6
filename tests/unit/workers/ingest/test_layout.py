"""Padding: what a model sees, and that requests get back exactly what is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.messages import RequestBody
from contracts.serving_specs import BatchingSpec, PaddingSpec
from contracts.specs import ModelSpec, TensorSpec
from contracts.tensors import Tensor
from tests.deliveries import delivery
from workers.engine.exchange import read_inputs
from workers.ingest.delivery import Delivery
from workers.ingest.layout import Layout
from workers.ingest.validate import Validator
from workers.link import Region

IDS = TensorSpec(name="ids", datatype="INT64", shape=(-1, -1))
MASK = TensorSpec(name="mask", datatype="INT64", shape=(-1, -1))
WORDS = TensorSpec(name="words", datatype="BYTES", shape=(-1, 2))
HIDDEN = TensorSpec(name="hidden", datatype="INT64", shape=(-1, -1, 2))
POOLED = TensorSpec(name="pooled", datatype="INT64", shape=(-1, 1))
OFFSETS = TensorSpec(name="offsets", datatype="INT32", shape=(-1,))


def model(padding: PaddingSpec, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (HIDDEN, POOLED)) -> ModelSpec:
    batching = BatchingSpec(max_batch_size=16, padding=padding)
    return ModelSpec(name="m", version=1, backend="python", inputs=inputs, outputs=outputs, batching=batching)


def request(*arrays: npt.NDArray[Any], names: tuple[str, ...] = ("ids", "words")) -> Delivery:
    made = delivery(arrays[0].shape[0])
    made.inputs = tuple(Tensor.from_numpy(name, array) for name, array in zip(names, arrays, strict=False))
    return made


def placed(spec: TensorSpec, array: npt.NDArray[Any], slot: memoryview, offset: int) -> Region:
    """Put an output into a slot as an engine does."""
    np.ndarray(array.shape, array.dtype, slot, offset)[...] = array
    return Region(spec.name, spec.datatype, array.shape, offset, array.nbytes)


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20)), min_size=1, max_size=4)
paddings = st.builds(
    PaddingSpec,
    batch=st.booleans(),
    length_buckets=st.just((4, 8, 20)),
    value=st.sampled_from((0, 7)),
    mask=st.just("mask"),
)


@given(shapes, paddings, st.randoms())
def test_padding_and_cutting_is_the_identity(sizes: list[tuple[int, int]], padding: PaddingSpec, dice: Any) -> None:
    validator, layout = Validator(spec := model(padding, IDS, MASK)), Layout(spec)
    longest = max(length for _, length in sizes)
    bucket = next(bucket for bucket in padding.length_buckets if bucket >= longest)
    lower = max((b for b in padding.length_buckets if b < bucket), default=0)
    arrays = [
        np.array([[dice.randrange(1, 1000) for _ in range(max(length, lower + 1))] for _ in range(rows)], np.int64)
        for rows, length in sizes
    ]
    requests = [request(array) for array in arrays]
    keys = {validator.check(RequestBody(one.inputs)).batch_key for one in requests}
    assert len(keys) == 1  # they may share a batch
    slot = memoryview(bytearray(1 << 16))
    laid = layout.fill(slot, requests)
    seen = read_inputs(slot, laid.regions)
    rows = sum(array.shape[0] for array in arrays)
    assert seen["ids"].shape == seen["mask"].shape == (laid.rows, bucket)
    assert laid.rows >= rows
    assert laid.rows == rows or padding.batch
    assert (seen["ids"][seen["mask"] == 0] == padding.value).all()
    assert seen["mask"].sum() == sum(array.size for array in arrays)

    hidden, pooled = np.stack([seen["ids"], -seen["ids"]], axis=2), (seen["ids"] * seen["mask"]).sum(1, keepdims=True)
    out = memoryview(bytearray(1 << 17))
    regions = [placed(HIDDEN, hidden, out, 0), placed(POOLED, pooled, out, 1 << 16)]
    for array, outputs in zip(arrays, layout.results(regions, out, requests), strict=True):
        first, second = (output.to_numpy() for output in outputs)
        assert first.tolist() == np.stack([array, -array], axis=2).tolist()
        assert second.tolist() == array.sum(1, keepdims=True).tolist()


def test_rows_are_filled_up_to_a_bucket_texts_too() -> None:
    spec = model(PaddingSpec(batch=True, value=3), TensorSpec(name="ids", datatype="INT64", shape=(-1, 2)), WORDS)
    slot = memoryview(bytearray(4096))
    words = np.array([["a", "bb"]] * 5, object)
    laid = Layout(spec).fill(slot, [request(np.ones((5, 2), np.int64), words)])
    seen = read_inputs(slot, laid.regions)
    assert laid.rows == 8
    assert seen["ids"].tolist() == [[1, 1]] * 5 + [[3, 3]] * 3
    assert seen["words"].tolist() == [[b"a", b"bb"]] * 5 + [[b"", b""]] * 3


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_a_batch_invariant_model_sees_batches_of_one_size(rows: int) -> None:
    spec = model(PaddingSpec(value=3), TensorSpec(name="ids", datatype="INT64", shape=(-1, 2)))
    spec = spec.model_copy(update={"batching": BatchingSpec(max_batch_size=16, batch_invariant=True)})
    slot = memoryview(bytearray(4096))
    laid = Layout(spec).fill(slot, [request(np.ones((rows, 2), np.int64))])
    assert laid.rows == 16
    assert read_inputs(slot, laid.regions)["ids"].tolist() == [[1, 1]] * rows + [[0, 0]] * (16 - rows)


def test_a_ragged_model_is_told_where_each_request_begins() -> None:
    points = TensorSpec(name="ids", datatype="INT64", shape=(-1, 3))
    spec = model(PaddingSpec(offsets="offsets"), points, OFFSETS)
    slot = memoryview(bytearray(4096))
    laid = Layout(spec).fill(slot, [request(np.ones((rows, 3), np.int64)) for rows in (2, 5, 1)])
    seen = read_inputs(slot, laid.regions)
    assert seen["offsets"].tolist() == [0, 2, 7, 8]
    assert seen["offsets"].dtype == np.int32
    assert laid.rows == 8


def test_what_is_longer_than_the_last_bucket_stays_as_it_is() -> None:
    spec = model(PaddingSpec(length_buckets=(4,)), IDS)
    slot = memoryview(bytearray(4096))
    laid = Layout(spec).fill(slot, [request(np.ones((1, 9), np.int64))])
    assert laid.regions[0].shape == (1, 9)


def test_a_padded_batch_that_does_not_fit_its_slot_says_so() -> None:
    spec = model(PaddingSpec(length_buckets=(64,)), IDS)
    with pytest.raises(ValueError, match="fit"):
        Layout(spec).fill(memoryview(bytearray(256)), [request(np.ones((1, 2), np.int64))])


@pytest.mark.parametrize(
    ("padding", "inputs", "fault"),
    [
        (PaddingSpec(mask="mask", length_buckets=(4,)), (IDS,), "padding.mask must name"),
        (PaddingSpec(mask="mask"), (IDS, MASK), "goes with padding.length_buckets"),
        (PaddingSpec(length_buckets=(4,)), (OFFSETS,), "open dimension"),
        (PaddingSpec(length_buckets=(4,)), (TensorSpec(name="t", datatype="BYTES", shape=(-1, -1)),), "BYTES"),
        (PaddingSpec(offsets="offsets", batch=True), (IDS, OFFSETS), "exclude each other"),
        (PaddingSpec(offsets="offsets"), (OFFSETS,), "no input for requests"),
    ],
)
def test_padding_that_the_model_cannot_have_is_refused(
    padding: PaddingSpec, inputs: tuple[TensorSpec, ...], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        model(padding, *inputs)
