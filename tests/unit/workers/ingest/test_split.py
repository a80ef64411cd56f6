"""Requests larger than a batch: split, run in parts, answered once."""

from __future__ import annotations

from typing import cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import Receipt, Status
from contracts.tensors import BYTES, Tensor, pack_elements, unpack_elements
from tests.deliveries import CLAIM, delivery
from workers.ingest.delivery import Delivery
from workers.ingest.responder import Responder
from workers.ingest.split import Answers, forget, is_settled, split


class Recorder:
    """Keeps what a responder would send."""

    device = "cpu"

    def __init__(self) -> None:
        self.sent: list[tuple[Delivery, str, tuple[Tensor, ...]]] = []

    def succeed(self, request: Delivery, outputs: tuple[Tensor, ...], _receipt: Receipt) -> None:
        self.sent.append((request, "OK", outputs))

    def batch_answered(self) -> None:
        pass

    def fail(self, request: Delivery, status: Status, _message: str, *, retryable: bool = False) -> None:
        self.sent.append((request, status.value, ()))

    def poison(self, request: Delivery, _message: str) -> None:
        self.sent.append((request, "POISON", ()))


def request(rows: int) -> Delivery:
    made = delivery(rows)
    numbers = Tensor.from_numpy("x", np.arange(rows * 3, dtype=np.float32).reshape(rows, 3))
    texts = [f"{n}" * (n % 5) for n in range(rows * 2)]
    made.inputs = (numbers, Tensor("t", BYTES, (rows, 2), memoryview(pack_elements(texts))))
    return made


def answers() -> tuple[Answers, Recorder]:
    recorder = Recorder()
    return Answers(cast("Responder", recorder)), recorder


@given(st.integers(1, 60), st.integers(1, 20), st.randoms())
def test_splitting_and_putting_together_gives_the_rows_back_in_order(rows: int, most: int, dice: object) -> None:
    whole = request(rows)
    parts = split(whole, most)
    assert sum(part.rows for part in parts) == rows
    assert max(part.rows for part in parts) <= most
    responder, recorder = answers()
    order = list(parts)
    dice.shuffle(order)  # type: ignore[attr-defined]
    for part in order:
        assert not recorder.sent
        responder.succeed(part, part.inputs, Receipt())
    ((answered, status, outputs),) = recorder.sent
    assert (answered, status) == (whole, "OK")
    assert [output.shape for output in outputs] == [(rows, 3), (rows, 2)]
    assert bytes(outputs[0].data) == bytes(whole.inputs[0].data)
    assert unpack_elements(outputs[1].data) == unpack_elements(whole.inputs[1].data)


def test_one_failed_part_fails_the_request_once_and_the_others_are_forgotten() -> None:
    whole = request(10)
    first, second, third = split(whole, 4)
    responder, recorder = answers()
    responder.succeed(first, first.inputs, Receipt())
    responder.poison(second, "bad")
    assert is_settled(third)
    responder.fail(third, Status.INTERNAL, "too")
    responder.succeed(third, third.inputs, Receipt())
    assert [(one, status) for one, status, _ in recorder.sent] == [(whole, "POISON")]


def test_parts_of_different_shapes_are_an_error_and_not_a_wrong_answer() -> None:
    whole = request(4)
    responder, recorder = answers()
    for part, width in zip(split(whole, 2), (3, 4), strict=True):
        responder.succeed(part, (Tensor.from_numpy("y", np.zeros((2, width), np.float32)),), Receipt())
    assert [(one, status) for one, status, _ in recorder.sent] == [(whole, "INTERNAL")]


def test_a_request_that_leaves_with_its_partition_is_dropped_once() -> None:
    CLAIM.open = 1
    for part in split(request(10), 4):
        forget(part)
    assert CLAIM.open == 0
