from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.specs import parse_model

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "fleet" / "models" / "rowhash" / "1"

_spec = importlib.util.spec_from_file_location("rowhash_model", FOLDER / "model.py")
assert _spec is not None
assert _spec.loader is not None
model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)

ROW_BYTES = 64 * 4
batches = st.integers(1, 8).flatmap(
    lambda rows: st.binary(min_size=rows * ROW_BYTES, max_size=rows * ROW_BYTES).map(
        lambda raw: np.frombuffer(raw, "<f4").reshape(-1, 64)
    )
)


def hashes_of(rows: np.ndarray[Any, Any]) -> list[int]:
    result = model.row_hash(rows)
    assert result.shape == (len(rows), 1)
    assert result.dtype == np.uint64
    return [int(value) for value in result[:, 0]]


@given(rows=batches, data=st.data())
def test_a_flipped_bit_changes_the_hash_of_its_row_alone(rows: np.ndarray[Any, Any], data: st.DataObject) -> None:
    row, byte, bit = (
        data.draw(st.integers(0, len(rows) - 1)),
        data.draw(st.integers(0, ROW_BYTES - 1)),
        data.draw(st.integers(0, 7)),
    )
    raw = rows.copy().view(np.uint8)
    raw[row, byte] ^= 1 << bit
    before, after = hashes_of(rows), hashes_of(raw.view("<f4"))
    assert [a == b for a, b in zip(before, after, strict=True)] == [index != row for index in range(len(rows))]


def test_every_single_bit_of_a_row_counts() -> None:
    row = np.linspace(-1, 1, 64, dtype=np.float32)
    flips = np.tile(row.view(np.uint8), (ROW_BYTES * 8, 1))
    flips[np.arange(ROW_BYTES * 8), np.arange(ROW_BYTES * 8) // 8] ^= (1 << (np.arange(ROW_BYTES * 8) % 8)).astype("u1")
    hashes = [*hashes_of(flips.view("<f4")), *hashes_of(row[None])]
    assert len(set(hashes)) == ROW_BYTES * 8 + 1


@given(rows=batches, data=st.data())
def test_rows_in_another_order_give_the_same_hashes_in_that_order(
    rows: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    hashes = hashes_of(rows)
    assert hashes_of(rows[order]) == [hashes[index] for index in order]


@given(rows=batches)
def test_a_row_hashes_alone_as_it_does_among_others(rows: np.ndarray[Any, Any]) -> None:
    assert hashes_of(rows) == [hashes_of(row[None])[0] for row in rows]


def test_rows_of_small_whole_numbers_do_not_collide() -> None:
    # Their low mantissa bits are all zero, which a weak mix would turn into equal hashes.
    rows = np.random.default_rng(1).integers(0, 17, (50_000, 64)).astype(np.float32)
    assert len(set(hashes_of(rows))) == len(np.unique(rows, axis=0))


def test_exchanged_values_within_a_row_change_its_hash() -> None:
    row = np.arange(64, dtype=np.float32)
    rows = [row]
    for first in range(64):
        for second in range(first):
            exchanged = row.copy()
            exchanged[[first, second]] = exchanged[[second, first]]
            rows.append(exchanged)
    assert len(set(hashes_of(np.stack(rows)))) == len(rows)


def test_the_hash_stays_what_it_is() -> None:
    assert hashes_of(np.zeros((1, 64), np.float32)) == [0]
    assert hashes_of(np.arange(128, dtype=np.float32).reshape(2, 64)) == [16931914899523256036, 2459046491883325889]


def test_a_batch_of_no_rows_gives_no_hashes() -> None:
    assert hashes_of(np.empty((0, 64), np.float32)) == []


@pytest.mark.parametrize("rows", [np.zeros((2, 64)), np.zeros((2, 63), np.float32), np.zeros(64, np.float32)])
def test_anything_but_float32_rows_of_64_is_refused(rows: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="float32"):
        model.row_hash(rows)


def test_the_handler_named_in_the_model_file_answers_with_the_declared_tensors() -> None:
    spec = parse_model((FOLDER / "model.yaml").read_text(), "model.yaml")
    _, _, handler = spec.handler.partition(":")
    rows = np.random.default_rng(2).random((5, 64), np.float32)
    outputs = getattr(model, handler)().infer({spec.inputs[0].name: rows})
    assert list(outputs) == [tensor.name for tensor in spec.outputs]
    assert outputs["hash"].tolist() == model.row_hash(rows).tolist()
