"""The client for blocking code: the asynchronous one on a loop in a thread of its own, shared by any number of threads.

    with SyncInferenceClient(bootstrap="127.0.0.1:9092") as client:
        response = client.infer("digits", {"image": image})

Ctrl-C while waiting gives the request up, as a cancelled task does. A client that is forgotten is closed when it is
collected or when the interpreter ends, with a ResourceWarning.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypedDict, Unpack

from contracts.errors import ClientClosed, HeadraceError
from contracts.messages import Parameters, ReplyAddress, Response
from contracts.names import Priority
from producer.client import InferenceClient
from producer.crossing import Crossing
from producer.handle import Handle
from producer.lasting import StreamOptions
from producer.loop_thread import LoopThread
from producer.pending import ClientStats
from producer.plan import Inputs
from producer.sequences import Sequence
from producer.settings import ClientSettings

_CLOSE_SECONDS = 20.0


class RequestOptions(TypedDict, total=False):
    """What `infer`, `submit` and `publish` take besides model and inputs; `InferenceClient.infer` explains each."""

    version: int | None
    parameters: Parameters | None
    ttl_seconds: float | None
    request_id: str | None
    key: str | bytes | None
    priority: Priority


class SharingOptions(RequestOptions, total=False):
    """What `infer` and `submit` take besides."""

    idempotency_key: str | None
    cache: bool | None


class MapOptions(TypedDict, total=False):
    """What `map` takes for all of its requests."""

    version: int | None
    parameters: Parameters | None
    ttl_seconds: float | None
    priority: Priority


class SyncHandle:
    """One submitted request."""

    __slots__ = ("_handle", "_thread")

    def __init__(self, thread: LoopThread, handle: Handle) -> None:
        self._thread = thread
        self._handle = handle

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def id(self) -> str:
        """The request's id."""
        return self._handle.id

    @property
    def done(self) -> bool:
        """Whether `result()` would return or raise at once."""
        return self._handle.done

    def result(self, timeout: float | None = None, *, raise_on_error: bool = True) -> Response:
        """Wait for the response, at most `timeout` seconds: then TimeoutError, and the request goes on."""
        return self._thread.wait_for(lambda: self._handle.result(raise_on_error=raise_on_error), timeout)

    def cancel(self) -> None:
        """Ask the workers not to run it; see `Handle.cancel`."""
        self._thread.wait_for(self._handle.cancel)


class StepOptions(TypedDict, total=False):
    """What a step of a sequence takes besides its inputs; `Sequence.infer` explains each."""

    start: bool
    end: bool
    parameters: Parameters | None
    ttl_seconds: float | None
    raise_on_error: bool


class SyncSequence:
    """One sequence, as a context manager."""

    def __init__(self, thread: LoopThread, sequence: Sequence) -> None:
        self._thread = thread
        self._sequence = sequence

    @property
    def id(self) -> str:
        """The sequence's id."""
        return self._sequence.id

    def __enter__(self) -> Self:
        self._thread.wait_for(self._sequence.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.soon(self._sequence.give_up)

    def infer(self, inputs: Inputs, **options: Unpack[StepOptions]) -> Response:
        """Take the next step; as `Sequence.infer`."""
        return self._thread.wait_for(lambda: self._sequence.infer(inputs, **options))


class SyncInferenceClient:
    """Sends inference requests from blocking code and from threads."""

    def __init__(
        self,
        settings: ClientSettings | None = None,
        *,
        bootstrap: str | None = None,
        redis: str | None = None,
        inbox: str | None = None,
        max_in_flight: int | None = None,
        blobs: str | None = None,
    ) -> None:
        """Settings come from the argument, or from the keywords and then the environment; connects in `open`."""
        self._client = InferenceClient(
            settings, bootstrap=bootstrap, redis=redis, inbox=inbox, max_in_flight=max_in_flight, blobs=blobs
        )
        self._thread = LoopThread("headrace-client")
        self._finalizer: weakref.finalize[[LoopThread, InferenceClient], SyncInferenceClient] | None = None

    def open(self) -> Self:
        """Start the thread and connect; errors as `InferenceClient.open`."""
        self._finalizer = weakref.finalize(self, _forgotten, self._thread, self._client)
        self._thread.start()
        try:
            self._thread.wait_for(self._client.open)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Fail every waiting thread with ClientClosed and disconnect. Idempotent."""
        if self._finalizer is not None and self._finalizer.detach() is not None:
            _close(self._thread, self._client)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(
        self, model: str, inputs: Inputs, *, raise_on_error: bool = True, **options: Unpack[SharingOptions]
    ) -> Response:
        """Ask a model and wait for its response; as `InferenceClient.infer`."""
        return self._thread.wait_for(
            lambda: self._client.infer(model, inputs, raise_on_error=raise_on_error, **options)
        )

    def submit(self, model: str, inputs: Inputs, **options: Unpack[SharingOptions]) -> SyncHandle:
        """Send a request and return a handle of it, without waiting for the response."""
        return SyncHandle(self._thread, self._thread.wait_for(lambda: self._client.submit(model, inputs, **options)))

    def publish(
        self,
        model: str,
        inputs: Inputs,
        *,
        reply_to: str | ReplyAddress | None = None,
        **options: Unpack[RequestOptions],
    ) -> str:
        """Send a request whose response goes elsewhere, or nowhere; return its id once the broker has it."""
        return self._thread.wait_for(lambda: self._client.publish(model, inputs, reply_to=reply_to, **options))

    def map(
        self,
        model: str,
        inputs: Iterable[Inputs],
        *,
        in_flight: int = 256,
        ordered: bool = True,
        raise_on_error: bool = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[Response]:
        """Ask for each of many inputs, `in_flight` at a time, and yield the responses; as `InferenceClient.map`.

        The inputs are taken in the calling thread.
        """
        crossing = Crossing(self._thread, max(1, in_flight))
        answers = self._client.map(
            model, crossing.inputs(), in_flight=in_flight, ordered=ordered, raise_on_error=raise_on_error, **options
        )
        pump = self._thread.call(lambda: crossing.pump(answers))
        try:
            yield from crossing.run(iter(inputs))
        finally:
            pump.cancel()
            with contextlib.suppress(concurrent.futures.CancelledError):
                pump.result(_CLOSE_SECONDS)

    def stream(self, model: str, inputs: Inputs, **options: Unpack[StreamOptions]) -> Iterator[Response]:
        """Ask a streaming model and yield the parts of its answer; as `InferenceClient.stream`."""
        parts = self._client.stream(model, inputs, **options)

        async def following() -> Response | None:
            return await anext(parts, None)

        async def leave() -> None:
            await parts.aclose()

        try:
            while (part := self._thread.wait_for(following)) is not None:
                yield part
        finally:
            with contextlib.suppress(ClientClosed):
                self._thread.wait_for(leave, _CLOSE_SECONDS)

    def sequence(self, model: str, *, version: int | None = None, sequence_id: str | None = None) -> SyncSequence:
        """A sequence of requests, as a context manager; as `InferenceClient.sequence`."""
        return SyncSequence(self._thread, self._client.sequence(model, version=version, sequence_id=sequence_id))

    def stats(self) -> ClientStats:
        """What this client has done so far."""
        return self._client.stats()


def _close(thread: LoopThread, client: InferenceClient) -> None:
    """Close a client and end its thread."""
    with contextlib.suppress(HeadraceError, TimeoutError):
        thread.wait_for(client.close, _CLOSE_SECONDS)
    thread.stop()


def _forgotten(thread: LoopThread, client: InferenceClient) -> None:
    """Called when a client that was not closed is collected, and at the end of the interpreter."""
    warnings.warn("a SyncInferenceClient was not closed: use `with`, or call close()", ResourceWarning, stacklevel=2)
    if thread.is_current():  # collected on the loop itself, which must not wait for itself
        threading.Thread(target=_close, args=(thread, client), name="headrace-client-close").start()
    else:
        _close(thread, client)
