"""What hostile or broken requests and models may do to a worker: nothing.

One stack for all; each case stands between good requests, all of which must be answered, by the same worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgpack
import numpy as np
import pytest
import pytest_asyncio

from contracts import topics
from contracts.codec import encode_request
from contracts.dead_letters import parse_dead_letter
from contracts.errors import InvalidRequest
from contracts.messages import Status
from contracts.tensors import Tensor
from tests.e2e.hostile_kit import (
    EXIT,
    GIVE_UP,
    GOOD,
    HANG,
    HOSTILE,
    KILL,
    KILL_WORKER,
    LEAK,
    NAME,
    NO_MEMORY,
    PARTITIONS,
    RAISE,
    REFUSE,
    REPLIES,
    REQUESTS,
    SHORT,
    TOO_FEW,
    Fleet,
    body,
    hostile_fleet,
    row,
)
from tests.helpers import wait_until
from workers.ingest.watchdog import MIN_SAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

SETTINGS = {
    "HEADRACE_KAFKA__REQUEST_TIMEOUT_SECONDS": "3",  # how long a topic that does not exist is looked for
    "HEADRACE_WORKER__WATCHDOG_SECONDS": "1",
    "HEADRACE_WORKER__ENGINE_MEMORY_MIB": "400",
    "HEADRACE_WORKER__RETRY_DELAYS_SECONDS": "[0.5, 0.6, 0.7]",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with hostile_fleet(tmp_path_factory.mktemp("hostile"), SETTINGS) as running:
        yield running


def packed(**changes: object) -> bytes:
    """A request body by an independent codec, wrong in one place."""
    tensor = {"name": "row", "datatype": "FP32", "shape": [1, 4], "data": np.ones((1, 4), np.float32).tobytes()}
    return bytes(msgpack.packb({"inputs": [tensor | changes]}))


def bomb() -> bytes:
    """A megabyte that would become 70: empty maps in a field that nobody asked for, nested arrays behind them."""
    tensor = {"name": "row", "datatype": "FP32", "shape": [1, 4], "data": np.ones((1, 4), np.float32).tobytes()}
    empty = msgpack.packb([{}] * 400_000)
    nested = b"\x91" * 200_000 + b"\xc0"
    return b"\x83" + b"".join(
        (msgpack.packb("x"), empty, msgpack.packb("y"), nested, msgpack.packb("inputs"), msgpack.packb([tensor]))
    )


NAN = np.array([[0, np.nan, 0, 0]], np.float32)
TABLE: dict[str, tuple[bytes | None, dict[str, bytes]]] = {
    "an undecodable body": (b"\xc1 rubbish", {}),
    "an empty body": (None, {}),
    "a body of another kind": (msgpack.packb([1, 2, 3]), {}),
    "an unknown protocol version": (body(), {"v": b"2.0"}),
    "a protocol version that is none": (body(), {"v": b"\xff\xfe"}),
    "another model in the headers": (body(), {"model": b"other"}),
    "another version in the headers": (body(), {"version": b"9"}),
    "a version that is no number": (body(), {"version": b"-1"}),
    "a priority that does not exist": (body(), {"priority": b"highest"}),
    "a wrong tensor name": (packed(name="line"), {}),
    "a wrong datatype": (packed(datatype="FP64"), {}),
    "an unknown datatype": (packed(datatype="FP8" * 1000), {}),
    "a wrong shape": (packed(shape=[1, 5]), {}),
    "too many dimensions": (packed(shape=[1] * 100), {}),
    "a negative dimension": (packed(shape=[-1, 4]), {}),
    "a shape that lies": (packed(shape=[1000, 4]), {}),
    "a shape whose product overflows": (packed(shape=[2**62, 4]), {}),
    "a number that no shape can hold": (packed(shape=[2**64 - 1, 4]), {}),
    "NaN where the model rejects it": (encode_request([Tensor.from_numpy("row", NAN)]), {}),
    "no rows": (packed(shape=[0, 4], data=b""), {}),
    "more rows than a batch": (packed(shape=[33, 4], data=bytes(33 * 16)), {}),
    "no tensors": (msgpack.packb({"inputs": []}), {}),
    "the same tensor twice": (
        msgpack.packb({"inputs": [{"name": "row", "datatype": "FP32", "shape": [1, 4], "data": bytes(16)}] * 2}),
        {},
    ),
    "twenty thousand tensors": (
        msgpack.packb({"inputs": [{"name": "", "datatype": "", "shape": [], "data": b""}] * 20_000}),
        {},
    ),
    "parameters that nest": (msgpack.packb({"inputs": [], "parameters": {"a": {"b": 1}}}), {}),
    "a msgpack bomb": (bomb(), {}),
}


@pytest.mark.parametrize("case", TABLE)
async def test_a_record_that_is_no_request_is_answered_invalid(case: str, fleet: Fleet) -> None:
    value, headers = TABLE[case]
    before = await fleet.metric("headrace_worker_responses_total", status="INVALID")
    async with fleet.traffic():
        response = await fleet.response_to(await fleet.publish(value, headers))
    assert response.status is Status.INVALID
    assert response.error is not None
    assert 0 < len(response.error.message) <= 1024
    assert not response.error.retryable
    assert await fleet.metric("headrace_worker_responses_total", status="INVALID") == before + 1


@pytest.mark.parametrize(
    "headers",
    [{"id": b""}, {"id": b"\xff\xfe"}, {"id": b"x" * 65}, {"re": b"no address"}, {"re": b"headrace.replies.raw/-1/x"}],
    ids=["no id", "an id that is no text", "an id too long", "no address", "a partition below zero"],
)
async def test_a_record_that_cannot_be_answered_is_put_aside(headers: dict[str, bytes], fleet: Fleet) -> None:
    known = len(fleet.dead)
    await asyncio.gather(fleet.good(4), fleet.publish(body(), headers))
    await wait_until(lambda: len(fleet.dead) == known + 1, "it was not put aside")
    assert dict(fleet.dead[-1].headers)["dead-reason"] == b"invalid"
    assert fleet.dead[-1].value == body()
    await fleet.good(4)


@pytest.mark.parametrize(
    "address",
    [b"headrace.requests.hostile.1/0/x", b"__consumer_offsets/0/x", REPLIES.encode() + b"/7/x"],
    ids=["a request topic", "a topic of the broker", "a partition that does not exist"],
)
async def test_a_response_without_a_place_to_go_becomes_a_dead_letter(address: bytes, fleet: Fleet) -> None:
    name = await fleet.publish(body(), {"re": address})
    letter = await fleet.letter_of(name)
    assert dict(letter.headers)["dead-reason"] == b"unroutable"
    assert letter.value == body()
    await fleet.good()


async def test_a_reply_topic_that_does_not_exist_holds_nobody_up(fleet: Fleet) -> None:
    name = await fleet.publish(body(), {"re": b"headrace.replies.nowhere/0/x"})
    async with asyncio.timeout(5.0):
        await fleet.good()
    letter = await fleet.letter_of(name, 30.0)
    assert dict(letter.headers)["dead-reason"] == b"unroutable"
    await fleet.good()


async def test_an_expired_request_is_answered_so_and_never_runs(fleet: Fleet) -> None:
    name = await fleet.publish(body(EXIT), {"ttl": b"0"})
    response = await fleet.response_to(name)
    assert response.status is Status.DEADLINE_EXCEEDED
    await fleet.good()


async def test_a_body_of_50_mb_is_refused_before_it_is_published(fleet: Fleet) -> None:
    huge = np.zeros((3_276_800, 4), np.float32)
    with pytest.raises(InvalidRequest, match="bytes"):
        await fleet.client.infer("hostile@1", {"row": huge})
    with pytest.raises(InvalidRequest, match="larger"):
        await fleet.publish(bytes(50_000_000), {})
    await fleet.good()


@pytest.mark.parametrize("wish", [RAISE, GIVE_UP], ids=["ValueError", "SystemExit"])
async def test_a_model_that_raises_fails_only_the_row_that_made_it(wish: int, fleet: Fleet) -> None:
    async with fleet.traffic():
        names = [await fleet.publish(body(wish), {}, partition) for partition in range(4)]
        for name in names:
            assert (await fleet.response_to(name)).status is Status.POISON
            letter = await fleet.letter_of(name)
            assert dict(letter.headers)["dead-reason"] == b"poison"
            assert letter.value == body(wish)
            assert letter.key == name.encode()
            told = parse_dead_letter(letter.offset, letter.timestamp, letter.headers, letter.value)
            assert told.source.startswith(f"{REQUESTS}/")
            assert told.model == "hostile@1"
            assert all((told.worker, told.token, told.host, told.time_ms))
            assert "fails" in told.message or "failed" in told.message


@pytest.mark.parametrize(
    ("wish", "text"),
    [(REFUSE, "this row is no good this row"), (NAME, "wish 12 is not granted")],
    ids=["InvalidRequest", "InvalidRows"],
)
async def test_a_row_that_the_model_refuses_is_invalid_and_neither_retried_nor_put_aside(
    wish: int, text: str, fleet: Fleet
) -> None:
    retries, letters = await fleet.metric("headrace_worker_retries_total"), len(fleet.dead)
    async with fleet.traffic():
        names = [await fleet.publish(body(wish), {}, partition) for partition in range(4)]
        for name in names:
            response = await fleet.response_to(name)
            assert response.status is Status.INVALID
            assert response.error is not None
            assert response.error.message.startswith(text)
            assert len(response.error.message) <= 500
            assert not response.error.retryable
            assert response.receipt.attempt == 1
        with pytest.raises(InvalidRequest, match=text):
            await fleet.client.infer("hostile@1", {"row": row(wish)})
    assert await fleet.metric("headrace_worker_retries_total") == retries
    assert len(fleet.dead) == letters


async def test_of_a_request_of_several_rows_the_refused_one_is_named(fleet: Fleet) -> None:
    rows = np.concatenate([row(GOOD), row(GOOD), row(NAME), row(GOOD)])
    with pytest.raises(InvalidRequest, match="row 2: wish 12 is not granted"):
        await fleet.client.infer("hostile@1", {"row": rows})
    await fleet.good()


async def test_a_request_that_fills_a_record_is_put_aside_without_its_body_and_stops_nobody(fleet: Fleet) -> None:
    async with fleet.traffic():
        value = body(RAISE)[:-1] + bytes(1_048_576 - 400)
        name = await fleet.publish(value, {"re": b"headrace.elsewhere/0/x"})
        letter = await fleet.letter_of(name)
    assert letter.value is None
    assert dict(letter.headers)["dead-size"] == b"%d" % len(value)


async def test_a_model_that_returns_too_few_rows_mixes_nobody_up(fleet: Fleet) -> None:
    async with fleet.traffic():
        response = await fleet.response_to(await fleet.publish(body(TOO_FEW), {}))
    assert response.status is Status.INTERNAL
    assert response.error is not None
    assert "shape" in response.error.message


async def test_a_request_that_never_fits_into_memory_is_answered_after_its_attempts(fleet: Fleet) -> None:
    before = await fleet.metric("headrace_worker_retries_total", reason="memory")
    async with fleet.traffic():
        response = await fleet.response_to(await fleet.publish(body(NO_MEMORY), {}))
    assert response.status is Status.INTERNAL
    assert response.error is not None
    assert response.error.retryable
    assert response.receipt.attempt == 4
    assert await fleet.metric("headrace_worker_retries_total", reason="memory") == before + 3


async def test_a_request_that_fits_into_memory_later_is_answered_then_and_not_before(fleet: Fleet) -> None:
    before, started = await fleet.metric("headrace_worker_retries_total", reason="memory"), time.monotonic()

    async def was_retried() -> bool:
        return await fleet.metric("headrace_worker_retries_total", reason="memory") > before

    name = await fleet.publish(body(SHORT, 7.0), {})
    await wait_until(was_retried, "it fitted")  # alone so far: it is short of memory in a batch of its own only
    async with fleet.traffic():
        response = await fleet.response_to(name)
    assert response.status is Status.OK
    assert response["sum"].to_numpy().item() == 7.0
    assert response.receipt.attempt == 2
    assert time.monotonic() - started >= 0.5


async def test_a_retry_whose_lane_is_gone_goes_to_the_request_topic(fleet: Fleet) -> None:
    home = {"retry-source": f"{topics.lane(REQUESTS, 'high')}/1/5".encode(), "attempt": b"2"}
    topic = topics.retry("headrace", *HOSTILE)
    name = await fleet.publish(body(GOOD, 3.0), home, topic=topic)
    behind = await fleet.publish(body(GOOD, 2.0), home | {"retry-source": f"{REQUESTS}/1/6".encode()}, topic=topic)
    response = await fleet.response_to(name)
    assert (response.status, response.receipt.attempt) == (Status.OK, 2)
    assert response["sum"].to_numpy().item() == 3.0
    assert (await fleet.response_to(behind)).status is Status.OK


async def test_a_retry_that_would_come_after_the_deadline_is_not_made(fleet: Fleet) -> None:
    response = await fleet.response_to(await fleet.publish(body(NO_MEMORY), {"ttl": b"400"}))
    assert response.status is Status.INTERNAL
    assert response.receipt.attempt == 1


@pytest.mark.parametrize("wish", [EXIT, KILL, HANG], ids=["os._exit", "SIGKILL", "a hang"])
async def test_a_row_that_takes_the_engine_down_is_put_aside_and_its_neighbours_are_answered(
    wish: int, fleet: Fleet
) -> None:
    for _ in range(MIN_SAMPLES):  # the worker may be new, and give what it has not measured yet a minute
        await fleet.good(4)
    before = await fleet.metric("headrace_engine_restarts_total")
    async with fleet.traffic():
        name = await fleet.publish(body(wish), {})
        response = await fleet.response_to(name, 40.0)
    assert response.status is Status.POISON
    assert response.error is not None
    assert "2 times alone" in response.error.message or "3 times alone" in response.error.message
    assert (await fleet.letter_of(name)).value == body(wish)
    assert await fleet.metric("headrace_engine_restarts_total") == before + 3


async def test_a_row_that_takes_the_whole_worker_down_is_put_aside_by_the_third_after_it(fleet: Fleet) -> None:
    async with fleet.traffic():
        name = await fleet.publish(body(KILL_WORKER), {})
        response = await fleet.response_to(name, 60.0)
    assert response.status is Status.POISON
    letter = await fleet.letter_of(name)
    assert dict(letter.headers)["dead-attempts"] == b"3"
    assert b"3 workers ended" in (dict(letter.headers)["dead-message"] or b"")
    assert letter.value == body(KILL_WORKER)
    await fleet.good()


async def test_an_engine_that_leaks_is_replaced_between_two_batches(fleet: Fleet) -> None:
    before = await fleet.metric("headrace_engine_kills_total", reason="memory")
    async with fleet.traffic():
        for _ in range(8):  # 64 MiB each
            assert (await fleet.response_to(await fleet.publish(body(LEAK), {}))).status is Status.OK

        async def was_replaced() -> bool:
            return await fleet.metric("headrace_engine_kills_total", reason="memory") > before

        await wait_until(was_replaced, "the engine was not replaced")
    await fleet.good()


async def test_a_burst_of_a_hundred_thousand_tiny_requests_is_answered(fleet: Fleet) -> None:
    count, value = 25_000, body()
    address = f"{REPLIES}/0/raw".encode()

    async def publish(partition: int) -> None:
        records = [
            (value, [("v", b"1.0"), ("id", b"b%d-%d" % (partition, number)), ("re", address), ("ttl", b"80000")])
            for number in range(count)
        ]
        await fleet.producer.publish_many(REQUESTS, partition, records)

    fleet.responses.clear()
    await asyncio.gather(*(publish(partition) for partition in range(PARTITIONS)))
    await wait_until(lambda: len(fleet.responses) == PARTITIONS * count, "not all were answered", timeout=80)
    odd = {name: got for name, got in fleet.responses.items() if [answer.status for answer in got] != [Status.OK]}
    assert odd == {}
    fleet.responses.clear()
    await fleet.good()
