"""The launcher: one thread that takes batches from the link and runs them one after another.

It answers itself where a model computes in this thread. Where a device computes beside the host it launches the batch,
and the completer answers.

It blocks in `recv` when there is nothing to do, so an idle engine costs no time and a batch starts as soon as its frame
is there. Nothing else happens on this thread: no timer, no metrics, no event loop. What the engine may know is in its
Load: the models, the slots, its threads.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contracts.errors import ModelLoadError
from workers.engine.blame import sendable
from workers.engine.completer import Completer
from workers.engine.model import LoadedModel
from workers.engine.streaming import LinkEnded
from workers.link import (
    Batch,
    Continue,
    Forget,
    FrameDecoder,
    Hello,
    Load,
    LoadFailed,
    Message,
    Part,
    Ready,
    Stop,
    encode,
)
from workers.slots import SlotFile

log = logging.getLogger(__name__)

_receive_bytes: Final = 64 * 1024
_timing_seconds: Final = 2.0  # for all models of an engine together
_thread_variables: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class EngineLink:
    """The engine's end of the link, blocking."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._decoder = FrameDecoder()
        self._sending = threading.Lock()  # launcher and completer both answer

    def send(self, message: Message) -> None:
        """Send a message; ConnectionError when the ingest process is gone."""
        frame = encode(message)
        with self._sending:
            self._socket.sendall(frame)

    def messages(self) -> Iterator[Message]:
        """What ingest sends, until it closes the connection or we go quiet."""
        with contextlib.suppress(ConnectionError):
            while data := self._socket.recv(_receive_bytes):
                yield from self._decoder.feed(data)

    def quiet(self) -> None:
        """Receive nothing new, also when `recv` is waiting now: it returns as at the end. Sending goes on."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class Engine:
    """Introduces itself, loads what it is told, and runs batches until the link ends, Stop or `quiet`."""

    def __init__(self, link: EngineLink, token: str, cache: Path | None = None) -> None:
        self._link, self._token, self._cache = link, token, cache
        self._messages = link.messages()
        self._waiting: deque[Message] = deque()
        self._models: list[LoadedModel] = []
        self._slots: SlotFile | None = None
        self._ready: Ready | None = None
        self._is_quiet = False
        self._completer: Completer | None = None

    def load(self) -> bool:
        """Shake hands and load; False when ingest ended first. Raises ModelLoadError, which ingest was told."""
        self._link.send(Hello(self._token, os.getpid()))
        load = next(self._messages, None)
        if load is None or isinstance(load, Stop):
            return False
        if not isinstance(load, Load):
            raise TypeError(f"the first message on the link is {type(load).__name__}, not Load")
        started = time.perf_counter()
        try:
            self._load_models(load)
        except ModelLoadError as exc:
            self._link.send(LoadFailed(sendable(str(exc))))
            raise
        limit = _timing_seconds / len(load.models)
        timings = tuple(
            model.measure(asked.timed, limit) for model, asked in zip(self._models, load.models, strict=True)
        )
        seconds = time.perf_counter() - started
        device = " + ".join(dict.fromkeys(model.backend.device for model in self._models))
        log.info("%s loaded on %s in %.2f s", ", ".join(model.key for model in load.models), device, seconds)
        graphs = tuple((len(model.graphs.captured), len(model.graphs.failed)) for model in self._models)
        self._ready = Ready(device, seconds, timings, graphs)
        if any(model.is_pipelined for model in self._models):
            self._completer = Completer(self._link.send, self._link.quiet)
        return True

    def serve(self) -> None:
        """Tell ingest that the models are ready, then run batches until there are no more. Raises DeviceLost."""
        if self._ready is None:
            raise RuntimeError("nothing is loaded")
        self._link.send(self._ready)
        try:
            self._run_batches()
        finally:
            if self._completer is not None:
                self._completer.close()

    def _run_batches(self) -> None:
        models = self._models
        for message in self._in_turn():
            if isinstance(message, Batch):
                self._run(models[message.model], message)
                if self._is_quiet:
                    return
            elif isinstance(message, Stop):
                return
            elif isinstance(message, Forget):
                models[message.model].states.forget(message.sequences)
            elif not isinstance(message, Continue):  # one for a stream that ended otherwise
                raise TypeError(f"{type(message).__name__} while batches are served")

    def _run(self, model: LoadedModel, batch: Batch) -> None:
        if self._completer is not None and model.is_pipelined:
            self._completer.put(model.launch(batch))
        else:
            self._link.send(model.run(batch, self._exchange))

    def _in_turn(self) -> Iterator[Message]:
        """What ingest sends, what came in the middle of a stream first."""
        while True:
            message = self._waiting.popleft() if self._waiting else next(self._messages, None)
            if message is None:
                return
            yield message

    def _exchange(self, part: Part) -> Continue:
        """Hand over a part and wait until it was read; what comes meanwhile has to wait. Raises LinkEnded."""
        try:
            self._link.send(part)
        except ConnectionError as exc:
            raise LinkEnded(str(exc)) from exc
        for message in self._messages:
            if not isinstance(message, Continue):
                self._waiting.append(message)
            elif (message.slot, message.sequence) == (part.slot, part.sequence):
                return message
        raise LinkEnded("the link ended in the middle of a stream")

    def quiet(self) -> None:
        """Finish the running batch, then let `serve` return; safe in a signal handler."""
        self._is_quiet = True
        self._link.quiet()

    def close(self) -> None:
        """Let go of models, slots and link."""
        for model in self._models:
            model.close()
        self._models = []
        if self._slots is not None:
            self._slots.close()
        self._link.close()

    def _load_models(self, load: Load) -> None:
        # For libraries that handlers import later; the lease's environment has set them for what is imported already.
        for variable in _thread_variables:
            os.environ.setdefault(variable, str(load.threads))
        try:
            self._slots = SlotFile.attach(Path(load.slots_path), load.slot_count, load.input_bytes, load.output_bytes)
        except (OSError, ValueError) as exc:
            raise ModelLoadError(f"the slots at {load.slots_path} cannot be mapped: {exc}") from exc
        for model in load.models:
            self._models.append(LoadedModel.load(model, self._slots, load.threads, self._cache))
        any(model.pin() for model in self._models)  # once for all: the device is the same, and so are the slots
        # What was made by now lives as long as the process: collections need not walk it again and again.
        gc.collect()
        gc.freeze()
