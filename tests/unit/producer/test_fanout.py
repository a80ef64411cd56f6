from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from contracts.errors import ClientClosed, InvalidRequest, Overloaded
from contracts.messages import Response, Status
from producer.fanout import FanOut, Sent


def answer(number: int) -> Response:
    return Response(str(number), Status.OK, "m", 1)


class Sender:
    """Sends by keeping the futures, so that a test answers when and in which order it likes."""

    def __init__(self) -> None:
        self.sent: dict[int, Sent] = {}

    async def __call__(self, item: int) -> Sent:
        self.sent[item] = asyncio.get_running_loop().create_future()
        return self.sent[item]

    def answer(self, *items: int) -> None:
        for item in items:
            self.sent[item].set_result(answer(item))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def collect(run: FanOut) -> list[str]:
    found = []
    while (response := await run.next()) is not None:
        found.append(response.id)
    return found


@pytest.mark.parametrize(("ordered", "expected"), [(True, ["0", "1", "2"]), (False, ["2", "0", "1"])])
async def test_responses_come_in_the_order_of_inputs_or_of_arrival(*, ordered: bool, expected: list[str]) -> None:
    send, run = Sender(), FanOut(limit=10, ordered=ordered)
    async with asyncio.TaskGroup() as group:
        group.create_task(run.feed(range(3), send, "m", 2))
        await settle()
        for item in (2, 0, 1):
            send.answer(item)
            await settle()
        assert await collect(run) == expected


async def test_no_more_is_sent_than_the_limit_until_a_response_is_taken() -> None:
    send, run = Sender(), FanOut(limit=2, ordered=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(run.feed(range(5), send, "m", 2))
        await settle()
        assert set(send.sent) == {0, 1}
        send.answer(0, 1)
        await settle()
        assert set(send.sent) == {0, 1}  # answered, but not yet handed over
        await run.next()
        await settle()
        assert set(send.sent) == {0, 1, 2}
        send.answer(2)
        await run.next()
        await settle()
        send.answer(3)
        taken = group.create_task(collect(run))
        await settle()
        send.answer(4)
        assert await taken == ["2", "3", "4"]


async def test_no_inputs_give_no_responses() -> None:
    run = FanOut(limit=1, ordered=False)
    await run.feed([], Sender(), "m", 2)
    assert await collect(run) == []


async def test_an_input_that_is_refused_is_a_response_in_its_place() -> None:
    async def send(item: int) -> Sent:
        if item == 1:
            raise InvalidRequest("no such input")
        future: Sent = asyncio.get_running_loop().create_future()
        future.set_result(answer(item))
        return future

    run = FanOut(limit=10, ordered=True)
    await run.feed(range(3), send, "m", 2)
    responses = [await run.next() for _ in range(3)]
    assert [response.status for response in responses if response] == [Status.OK, Status.INVALID, Status.OK]
    refused = responses[1]
    assert refused is not None
    assert refused.error is not None
    assert refused.error.message == "no such input"
    assert (refused.id, refused.model, refused.version) == ("", "m", 2)


async def test_a_full_window_is_waited_out() -> None:
    refusals = iter([Overloaded("full"), Overloaded("full")])

    async def send(item: int) -> Sent:
        for refusal in refusals:
            raise refusal
        future: Sent = asyncio.get_running_loop().create_future()
        future.set_result(answer(item))
        return future

    run = FanOut(limit=10, ordered=True)
    await run.feed([7], send, "m", 2)
    assert await collect(run) == ["7"]


async def test_a_source_that_breaks_is_raised_after_what_was_sent() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 0
        raise ValueError("the source is broken")

    send, run = Sender(), FanOut(limit=10, ordered=True)
    await run.feed(broken(), send, "m", 2)
    send.answer(0)
    first = await run.next()
    assert first is not None
    assert first.id == "0"
    with pytest.raises(ValueError, match="the source is broken"):
        await run.next()


async def test_what_ends_a_request_ends_the_flow() -> None:
    send, run = Sender(), FanOut(limit=10, ordered=True)
    await run.feed(range(2), send, "m", 2)
    send.sent[0].set_exception(ClientClosed("closed"))
    with pytest.raises(ClientClosed):
        await run.next()
