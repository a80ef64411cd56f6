from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.idempotency import Claim
from contracts.codec import decode_kept, encode_kept, encode_request
from contracts.errors import InvalidRequest, TransportError
from contracts.messages import Response, Status
from contracts.names import ModelVersion
from contracts.tensors import Tensor
from producer.idempotency import (
    Answer,
    BeginAgain,
    Submit,
    Wait,
    canonical,
    check_key,
    digest,
    expired,
    is_kept,
    next_step,
)

MODEL = ModelVersion("echo", 1)


def response(status: Status = Status.OK) -> Response:
    return Response("r-1", status, "echo", 1, (Tensor.from_numpy("y", np.arange(3.0)),))


def body(values: dict[str, float], parameters: dict[str, str | int | float | bool | None]) -> bytes:
    inputs, ordered = canonical({name: np.array([value]) for name, value in values.items()}, parameters)
    assert isinstance(inputs, dict)
    return encode_request([Tensor.from_numpy(name, value) for name, value in inputs.items()], dict(ordered or {}))


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(allow_nan=False), min_size=1),
    st.dictionaries(st.text("pq", min_size=1, max_size=3), st.integers(0, 9)),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_a_caller_writes_things_is_no_part_of_a_request(
    inputs: dict[str, float], parameters: dict[str, int], random: object
) -> None:
    turned = dict(reversed(inputs.items()))
    assert body(inputs, {**parameters}) == body(turned, dict(reversed(parameters.items())))
    tensors = [Tensor.from_numpy(name, np.array([value])) for name, value in turned.items()]
    in_order, _ = canonical(tensors, None)
    assert encode_request(list(in_order)) == body(inputs, {})  # type: ignore[arg-type]  # tensors went in


def test_another_model_version_or_another_body_is_another_request() -> None:
    found = {digest(MODEL, b"a"), digest(MODEL, b"b"), digest(ModelVersion("echo", 2), b"a"), digest("echo", b"a")}
    assert len(found) == 4
    assert {len(name) for name in found} == {32}
    assert digest(MODEL, b"a") == digest("echo@1", b"a")


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 129, "new\nline"])
def test_a_key_is_short_visible_ascii(key: str) -> None:
    with pytest.raises(InvalidRequest, match="idempotency_key"):
        check_key(key)
    assert check_key("order:4711/{a}") == "order:4711/{a}"


@given(
    st.sampled_from(["RUN", "WAIT", "DONE", "OVER"]),
    st.sampled_from([None, *Status]),
    st.floats(0, 1e4),
    st.floats(0, 1e4),
    st.floats(0, 30),
)
def test_every_standing_of_a_key_has_one_step(
    standing: str, status: Status | None, waited: float, left: float, lapses: float
) -> None:
    kept = None if status is None else response(status)
    claim = Claim(standing, "r-1", lapses, kept)  # type: ignore[arg-type]  # one of the four
    step = next_step(claim, key="k", waited_seconds=waited, left_seconds=left)
    match standing:
        case "RUN":
            assert step == Submit("r-1")
        case "WAIT":
            assert isinstance(step, Wait)
            assert 0 < step.seconds <= 0.25
            assert step.seconds <= lapses + 0.01
        case _ if kept is None or (status is Status.DEADLINE_EXCEEDED and left > 0.001):
            assert step == BeginAgain()
        case _:
            assert step == Answer(kept)


def test_a_key_that_stands_for_another_request_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest, match="'k' is taken: request r-1"):
        next_step(Claim("CONFLICT", "r-1"), key="k", waited_seconds=0, left_seconds=1)


def test_only_what_repeating_cannot_change_answers_a_key_for_good() -> None:
    assert {status for status in Status if is_kept(status)} == {Status.OK, Status.INVALID, Status.POISON}


def test_a_response_is_kept_whole_and_rubbish_is_an_error() -> None:
    kept = decode_kept(encode_kept(response()))
    assert (kept.id, kept.status, kept["y"].to_numpy().tolist()) == ("r-1", Status.OK, [0.0, 1.0, 2.0])
    with pytest.raises(TransportError):
        decode_kept(b"\xc1")


def test_the_own_deadline_is_answered_as_any_other() -> None:
    answer = expired("r-1", MODEL, 1.5)
    assert (answer.status, answer.id, answer.model, answer.version) == (Status.DEADLINE_EXCEEDED, "r-1", "echo", 1)
