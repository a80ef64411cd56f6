"""The blocking client: threads, Ctrl-C, and what happens when it is forgotten."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from contracts.errors import Cancelled, ClientClosed, InvalidRequest, ModelNotFound, TransportError
from contracts.messages import Response, Status
from producer.plan import Inputs
from producer.sync import SyncInferenceClient
from tests.helpers import wait_until, wait_until_sync
from tests.integration.producer.kit import Fleet, Responder, echo, refuse, row, silent

_T = TypeVar("_T")


async def away(work: Callable[[], _T]) -> _T:
    """Run blocking code beside the responder, which lives on this loop."""
    return await asyncio.to_thread(work)


def value_of(response: Response) -> float:
    return float(response["row"].to_numpy()[0, 0])


async def test_a_blocking_caller_gets_its_answer_and_typed_errors(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        with SyncInferenceClient(fleet.settings()) as client:
            assert value_of(client.infer("echo", row(5), parameters={"a": 1}, ttl_seconds=9)) == 5.0
            with pytest.raises(ModelNotFound):
                client.infer("nothing", row())
            with pytest.raises(InvalidRequest):
                client.infer("echo", {"x": [1]})
            assert client.stats().responses == 1

    await away(caller)
    assert responder.seen[0].headers.ttl_ms == 9000


async def test_many_threads_share_one_client(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        with SyncInferenceClient(fleet.settings()) as client, ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda number: value_of(client.infer("echo", row(float(number)))), range(200)))
        assert found == [float(number) for number in range(200)]

    await away(caller)


@pytest.mark.parametrize("ordered", [True, False])
async def test_map_takes_its_inputs_in_the_calling_thread(fleet: Fleet, responder: Responder, *, ordered: bool) -> None:
    def caller() -> None:
        here = threading.current_thread()

        def inputs() -> Iterator[Inputs]:
            for number in range(300):
                assert threading.current_thread() is here
                yield row(float(number))

        with SyncInferenceClient(fleet.settings()) as client:
            values = [value_of(response) for response in client.map("echo", inputs(), in_flight=50, ordered=ordered)]
            assert (values if ordered else sorted(values)) == [float(number) for number in range(300)]
            assert list(client.map("echo", [])) == []

    await away(caller)


async def test_map_never_takes_more_than_may_be_in_flight(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        taken = 0

        def inputs() -> Iterator[Inputs]:
            nonlocal taken
            for number in range(100):
                taken += 1
                yield row(float(number))

        with SyncInferenceClient(fleet.settings()) as client:
            for yielded, _ in enumerate(client.map("echo", inputs(), in_flight=8)):
                assert taken - yielded <= 8

    await away(caller)


async def test_a_slow_source_does_not_hold_back_what_it_has_produced(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        answered = threading.Event()

        def inputs() -> Iterator[Inputs]:
            yield row(1)
            # Only the response to the first input lets the source go on.
            wait_until_sync(lambda: client.stats().responses == 1)
            answered.set()
            yield row(2)

        with SyncInferenceClient(fleet.settings()) as client:
            assert [value_of(response) for response in client.map("echo", inputs())] == [1.0, 2.0]
        assert answered.is_set()

    await away(caller)


async def test_map_surfaces_errors_of_requests_and_of_the_source(fleet: Fleet, responder: Responder) -> None:
    responder.behave = refuse(Status.POISON)

    def broken() -> Iterator[Inputs]:
        yield row()
        raise ValueError("the source is broken")

    def caller() -> None:
        with SyncInferenceClient(fleet.settings()) as client:
            assert [response.status for response in client.map("echo", [row()])] == [Status.POISON]
            with pytest.raises(ModelNotFound):
                list(client.map("nothing", [row()]))
            with pytest.raises(ValueError, match="the source is broken"):
                list(client.map("echo", broken()))

    await away(caller)


async def test_leaving_a_map_early_abandons_the_rest(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        with SyncInferenceClient(fleet.settings()) as client:
            responses = client.map("echo", (row(float(number)) for number in range(10_000)), in_flight=16)
            assert value_of(next(responses)) == 0.0
            responses.close()  # type: ignore[attr-defined]  # a generator
            assert client.stats().in_flight == 0

    await away(caller)


async def test_a_handle_waits_as_long_as_it_is_told_and_can_be_cancelled(fleet: Fleet, responder: Responder) -> None:
    loop = asyncio.get_running_loop()
    responder.behave = silent

    def caller() -> None:
        with SyncInferenceClient(fleet.settings()) as client:
            handle = client.submit("echo", row(4), request_id="h")
            assert (handle.id, handle.done) == ("h", False)
            with pytest.raises(TimeoutError):
                handle.result(timeout=0.05)
            wait_until_sync(lambda: responder.seen)
            answer = responder.send(responder.seen[0].reply, echo(responder.seen[0])[0])
            asyncio.run_coroutine_threadsafe(answer, loop).result(5)
            assert value_of(handle.result(timeout=5)) == 4.0
            assert handle.done
            responder.behave = refuse(Status.CANCELLED)
            unwanted = client.submit("echo", row())
            unwanted.cancel()
            with pytest.raises(Cancelled):
                unwanted.result()

    await away(caller)


async def test_publish_returns_the_id_once_the_broker_has_it(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent

    def caller() -> str:
        with SyncInferenceClient(fleet.settings()) as client:
            return client.publish("echo", row())

    name = await away(caller)
    await wait_until(lambda: [seen.id for seen in responder.seen] == [name])


async def test_closing_wakes_every_waiting_thread(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    client = SyncInferenceClient(fleet.settings())
    await away(client.open)

    def mapping() -> None:
        list(client.map("echo", (row(float(number)) for number in range(100)), in_flight=4))

    waiting = [asyncio.to_thread(client.infer, "echo", row()) for _ in range(4)]
    calls = asyncio.gather(*waiting, asyncio.to_thread(mapping), return_exceptions=True)
    await wait_until(lambda: client.stats().in_flight == 8)
    await asyncio.gather(away(client.close), away(client.close))
    assert all(isinstance(outcome, ClientClosed) for outcome in await calls)
    with pytest.raises(ClientClosed):
        client.infer("echo", row())
    with pytest.raises(ClientClosed):
        next(client.map("echo", [row()]))


async def test_a_client_that_cannot_open_leaves_nothing_behind(fleet: Fleet) -> None:
    unreachable = Fleet(fleet.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"}), fleet.redis)

    def caller() -> None:
        with pytest.raises(TransportError), SyncInferenceClient(unreachable.settings()):
            pass

    await away(caller)
    with pytest.raises(ClientClosed):
        SyncInferenceClient(fleet.settings()).infer("echo", row())


async def test_a_forgotten_client_warns_and_is_closed(fleet: Fleet, responder: Responder) -> None:
    def caller() -> None:
        SyncInferenceClient(fleet.settings()).open().infer("echo", row())
        gc.collect()

    with pytest.warns(ResourceWarning, match="not closed"):
        await away(caller)


SCRIPT = """
from producer.sync import SyncInferenceClient
from tests.helpers import wait_until_sync
client = SyncInferenceClient().open()
print("open", flush=True)
try:
    client.infer("echo", {"row": [[1, 2]]}, ttl_seconds=60)
except KeyboardInterrupt:
    wait_until_sync(lambda: client.stats().in_flight == 0)
    print("given up", client.stats().abandoned, flush=True)
"""


async def test_control_c_gives_the_request_up_and_a_forgotten_client_does_not_hold_the_process(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    environment = {
        "PATH": "/usr/bin:/bin",
        "HEADRACE_KAFKA__BOOTSTRAP": fleet.kafka.bootstrap,
        "HEADRACE_KAFKA__PREFIX": fleet.kafka.prefix,
        "HEADRACE_REDIS__URL": fleet.redis.url.get_secret_value(),
        "HEADRACE_REDIS__PREFIX": fleet.redis.prefix,
    }
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", SCRIPT]
    child = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        await wait_until(lambda: responder.seen, "the child sent nothing")
        child.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:  # or it, its threads and its pipes would fail the tests that follow
            child.kill()
            await child.communicate()
    assert out.decode().splitlines() == ["open", "given up 1"]
    assert "was not closed" in err.decode()
    assert child.returncode == 0
